//! The usual responses.

use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};

use crate::response::ResponseBody;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// 200 with text.
pub fn text(text: impl Into<String>) -> crate::Response {
    with(StatusCode::OK, TEXT, text.into())
}

/// 200 with JSON that is written already, as `serde_json::to_vec` gives it.
pub fn json(json: impl Into<bytes::Bytes>) -> crate::Response {
    with(StatusCode::OK, JSON, json.into())
}

/// `status` without a body.
pub fn status(status: StatusCode) -> crate::Response {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = status;
    response
}

/// `status` with text.
pub fn message(status: StatusCode, text: impl Into<String>) -> crate::Response {
    with(status, TEXT, text.into())
}

/// 500 that says no more than where to look.
pub(crate) fn internal_error(call_id: &str) -> crate::Response {
    message(
        StatusCode::INTERNAL_SERVER_ERROR,
        format!("internal error, call id {call_id}\n"),
    )
}

/// 429 in the words of OpenFaaS's own concurrency limit: queues know it and try again.
pub fn concurrency_limit_exceeded(limit: usize) -> crate::Response {
    too_many_requests(format!(
        "Concurrent request limit exceeded. Max concurrent requests: {limit}\n"
    ))
}

/// 429 with text, and how soon to try again.
pub fn too_many_requests(text: impl Into<String>) -> crate::Response {
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

fn with(status: StatusCode, content_type: HeaderValue, body: impl Into<bytes::Bytes>) -> crate::Response {
    let mut response = Response::new(ResponseBody::full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
