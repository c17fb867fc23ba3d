//! Constructors of common responses.

use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};

use crate::response::{Response, ResponseBody};

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Returns status 200 with text.
pub fn text(text: impl Into<String>) -> Response {
    with(StatusCode::OK, TEXT, text.into())
}

/// Returns status 200 with serialized JSON, such as the result of `serde_json::to_vec`.
pub fn json(json: impl Into<bytes::Bytes>) -> Response {
    with(StatusCode::OK, JSON, json.into())
}

/// Returns `status` without a body.
pub fn status(status: StatusCode) -> Response {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = status;
    response
}

/// Returns `status` with text.
pub fn message(status: StatusCode, text: impl Into<String>) -> Response {
    with(status, TEXT, text.into())
}

/// Returns status 500 with the call id, by which the error is found in the log, and no other details.
pub(crate) fn internal_error(call_id: &str) -> Response {
    message(
        StatusCode::INTERNAL_SERVER_ERROR,
        format!("internal error, call id {call_id}\n"),
    )
}

/// Returns status 429 with the text of OpenFaaS's own concurrency limit, which queues recognize and retry.
pub fn concurrency_limit_exceeded(limit: usize) -> Response {
    too_many_requests(format!(
        "Concurrent request limit exceeded. Max concurrent requests: {limit}\n"
    ))
}

/// Returns status 429 with text and `Retry-After: 1` (second).
pub fn too_many_requests(text: impl Into<String>) -> Response {
    let mut response = with(
        StatusCode::TOO_MANY_REQUESTS,
        HeaderValue::from_static("text/plain"),
        text.into(),
    );
    response
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

fn with(status: StatusCode, content_type: HeaderValue, body: impl Into<bytes::Bytes>) -> Response {
    let mut response = Response::new(ResponseBody::full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
