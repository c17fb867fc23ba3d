//! The route `/system/logs`. A function without pods is answered with 500.

use axum::{
    body::Body,
    extract::{Query, State},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use http::header;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::answer::{ClusterOperation, ErrorResponse};
use crate::{
    api::logs::{LogParameters, json_line},
    error::ProviderError,
    kubernetes::{ClusterFunctions, PodLogQuery},
};

/// Answers with the log lines of a function's pods until the write timeout. The instance in a query is not read.
pub(super) async fn answer_logs(
    State(functions): State<ClusterFunctions>,
    Query(parameters): Query<LogParameters>,
) -> Result<Response, ErrorResponse> {
    let deadline = Instant::now() + functions.settings().write_timeout;
    let started = async {
        let query = parse_log_query(parameters)?;
        functions
            .stream_pod_logs_or_fail_without_pods(query, deadline)
            .await
    };
    let lines = started.await.map_err(ClusterOperation::Log.to_error_response())?;
    let body = Body::from_stream(ReceiverStream::new(lines).map(|message| json_line(&message)));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// Parses the query parameters as faas-provider does.
fn parse_log_query(parameters: LogParameters) -> Result<PodLogQuery, ProviderError> {
    let invalid = |name: &str, text: &str| ProviderError::Invalid(format!("{name}: {text:?}"));
    let tail = match parameters.tail.as_str() {
        "" => 0,
        given => given.parse().map_err(|_| invalid("tail", given))?,
    };
    let since = match parameters.since.as_str() {
        "" => None,
        given => Some(given.parse().map_err(|_| invalid("since", given))?),
    };
    Ok(PodLogQuery {
        follow: parameters.is_followed(),
        function: parameters.name,
        namespace: parameters.namespace,
        since,
        tail,
    })
}
