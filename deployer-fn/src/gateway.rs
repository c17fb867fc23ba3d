//! The gateway's REST API: requests as pure functions ([`call`]), a function's state as it is returned
//! ([`FunctionStatus`]), and the trait of what sends requests ([`GatewayRequestSender`]).

pub(crate) mod call;
mod info;
mod logs;
mod status;
mod token;
mod transport;

use std::future::Future;
use std::time::Duration;

use function_host::Bytes;
use function_host::gateway::GatewayError;
use function_host::http::{Request, Response, StatusCode};
use serde::Deserialize;

pub(crate) use self::info::{ProviderName, read_provider_name};
pub(crate) use self::logs::read_last_log_lines;
pub(crate) use self::status::FunctionStatus;
pub(crate) use self::token::CachingTokenExchanger;
pub(crate) use self::transport::HttpGatewaySender;
use crate::function::FunctionAddress;

/// The most bytes of a gateway response's text that are quoted in a message.
const QUOTED_TEXT_MAX_BYTES: usize = 300;

/// A sender of requests to the gateway, which receives the whole response to each within a time limit.
///
/// The URIs of requests have no host. The sender adds it, and the credentials.
pub trait GatewayRequestSender: Send + Sync {
    /// Sends `request` once, without retries.
    fn send(
        &self,
        request: Request<Bytes>,
        limit: Duration,
    ) -> impl Future<Output = Result<Response<Bytes>, GatewayError>> + Send;
}

/// The reason why a read of a function, of names or of the provider from the gateway gave no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GatewayReadError {
    /// The read could not be sent, or the gateway gave no complete response to it.
    #[error(transparent)]
    NoResponse(GatewayError),
    /// The gateway answered a read with an unexpected status or form.
    #[error("the gateway answered GET {path} with {response}")]
    Response {
        /// The path of the read, such as `/system/info`, without its query.
        path: String,
        /// The status of the unexpected response.
        status: StatusCode,
        /// Status and text of the unexpected response, from [`summarize_response`].
        response: String,
    },
}

/// Reads the state of a function from the gateway; `None` if the function does not exist.
pub(crate) async fn read_function(
    transport: &impl GatewayRequestSender,
    function: &FunctionAddress,
    limit: Duration,
) -> Result<Option<FunctionStatus>, GatewayReadError> {
    let request = call::status_request(function).map_err(GatewayReadError::NoResponse)?;
    let path = request.uri().path().to_owned();
    let response = transport
        .send(request, limit)
        .await
        .map_err(GatewayReadError::NoResponse)?;
    if response.status() == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    // A web page with status 200 is not a function, and neither is JSON without the function's name.
    match serde_json::from_slice::<FunctionStatus>(response.body()) {
        Ok(status) if response.status() == StatusCode::OK && status.name == function.name => Ok(Some(status)),
        _ => Err(unexpected_response(path, &response)),
    }
}

/// Reads a list of names from the gateway: of namespaces, which are strings, or of secrets, which are objects
/// with a name. `None` if the provider does not implement the list.
pub(crate) async fn read_names_if_provider_lists_them(
    transport: &impl GatewayRequestSender,
    request: Result<Request<Bytes>, GatewayError>,
    limit: Duration,
) -> Result<Option<Vec<String>>, GatewayReadError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum NameOrObject {
        String(String),
        Object { name: String },
    }
    let request = request.map_err(GatewayReadError::NoResponse)?;
    let path = request.uri().path().to_owned();
    let response = transport
        .send(request, limit)
        .await
        .map_err(GatewayReadError::NoResponse)?;
    if matches!(
        response.status(),
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
    ) {
        return Ok(None);
    }
    match serde_json::from_slice::<Option<Vec<NameOrObject>>>(response.body()) {
        Ok(items) if response.status() == StatusCode::OK => Ok(Some(
            items
                .unwrap_or_default()
                .into_iter()
                .map(|item| match item {
                    NameOrObject::String(name) | NameOrObject::Object { name } => name,
                })
                .collect(),
        )),
        _ => Err(unexpected_response(path, &response)),
    }
}

/// Returns the error for a gateway response with an unexpected status or form.
fn unexpected_response(path: String, response: &Response<Bytes>) -> GatewayReadError {
    GatewayReadError::Response {
        path,
        status: response.status(),
        response: summarize_response(response),
    }
}

impl GatewayReadError {
    /// Returns whether a retry of the failed read may succeed.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::NoResponse(error) => !matches!(
                error,
                GatewayError::Url | GatewayError::Path { .. } | GatewayError::TooLarge { .. }
            ),
            Self::Response { status, .. } => {
                !status.is_client_error()
                    || matches!(
                        *status,
                        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
                    )
            }
        }
    }
}

/// Returns the status and the beginning of the text of a gateway response, on one line.
pub(crate) fn summarize_response(response: &Response<Bytes>) -> String {
    let text = String::from_utf8_lossy(response.body());
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
        .collect();
    let mut text = words.join(" ");
    if text.is_empty() {
        return format!("{} and no text", response.status().as_u16());
    }
    if text.len() > QUOTED_TEXT_MAX_BYTES {
        let end = text.floor_char_boundary(QUOTED_TEXT_MAX_BYTES);
        text.truncate(end);
        text.push('…');
    }
    format!("{}: {text}", response.status().as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response_with(status: u16, body: impl Into<Bytes>) -> Response<Bytes> {
        Response::builder().status(status).body(body.into()).unwrap()
    }

    #[test]
    fn a_response_summary_is_one_line_of_bounded_length() {
        assert_eq!(summarize_response(&response_with(200, "")), "200 and no text");
        assert_eq!(
            summarize_response(&response_with(400, "unable to find\r\n  secret: x\n")),
            "400: unable to find secret: x"
        );
        let long = summarize_response(&response_with(502, "ä".repeat(1000)));
        assert!(
            long.len() < QUOTED_TEXT_MAX_BYTES + 20 && long.ends_with('…'),
            "{long}"
        );
    }
}
