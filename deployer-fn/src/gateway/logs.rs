//! Reads what a function has written to its log from `/system/logs`.
//!
//! Form: openfaas/faas-provider, `logs/logs.go` and `logs/handler.go`: one JSON object per line.

use std::time::Duration;

use function_host::http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;

use super::{GatewayReadError, GatewayRequestSender, call, unexpected_response};
use crate::function::FunctionAddress;

/// A line of a function's log, without what the deployer does not need of it.
#[derive(Deserialize)]
struct TimestampAndText {
    timestamp: String,
    #[serde(default)]
    text: String,
}

/// Reads the last lines that a function has written since `since`, by the provider's clock, and returns them in the
/// order of their times. Lines that are malformed are left out.
pub(crate) async fn read_last_log_lines(
    transport: &impl GatewayRequestSender,
    function: &FunctionAddress,
    since: Timestamp,
    limit: Duration,
) -> Result<String, GatewayReadError> {
    let request = call::last_log_lines_request(function, since).map_err(GatewayReadError::NoResponse)?;
    let path = request.uri().path().to_owned();
    let response = transport
        .send(request, limit)
        .await
        .map_err(GatewayReadError::NoResponse)?;
    if response.status() != StatusCode::OK {
        return Err(unexpected_response(path, &response));
    }
    let mut lines: Vec<_> = response
        .body()
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<TimestampAndText>(line).ok())
        .filter_map(|message| Some((message.timestamp.parse::<Timestamp>().ok()?, message.text)))
        // faasd cuts the time in the query to seconds.
        .filter(|(at, _)| *at >= since)
        .collect();
    // Kubernetes sends the lines of each pod as they come.
    lines.sort_by_key(|(at, _)| *at);
    let texts: Vec<_> = lines.into_iter().map(|(_, text)| text).collect();
    Ok(texts.join("\n"))
}
