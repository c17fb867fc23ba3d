//! Constructors of responses that handlers often return.

use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};

use crate::response::{Response, ResponseBody};

/// The value of the header `Content-Type` of text responses.
const TEXT_CONTENT_TYPE: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
/// The value of the header `Content-Type` of JSON responses.
const JSON_CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/json");

/// Returns a response with status 200 and a text body.
pub fn text(text: impl Into<String>) -> Response {
    response_with_body(StatusCode::OK, TEXT_CONTENT_TYPE, text.into())
}

/// Returns a response with status 200 and a body of serialized JSON, such as the result of
/// `serde_json::to_vec`.
pub fn json(json: impl Into<bytes::Bytes>) -> Response {
    response_with_body(StatusCode::OK, JSON_CONTENT_TYPE, json.into())
}

/// Returns a response with this status and no body.
pub fn status(status: StatusCode) -> Response {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = status;
    response
}

/// Returns a response with this status and a text body.
pub fn message(status: StatusCode, text: impl Into<String>) -> Response {
    response_with_body(status, TEXT_CONTENT_TYPE, text.into())
}

/// Returns a response with status 500 and the call id, by which the error is found in the log, but no other
/// details.
pub(crate) fn internal_error(call_id: &str) -> Response {
    message(
        StatusCode::INTERNAL_SERVER_ERROR,
        format!("internal error, call id {call_id}\n"),
    )
}

/// Returns a response with status 429 and the text of OpenFaaS's own concurrency limit, which queues
/// recognize and retry.
pub fn concurrency_limit_exceeded(limit: usize) -> Response {
    too_many_requests(format!(
        "Concurrent request limit exceeded. Max concurrent requests: {limit}\n"
    ))
}

/// Returns a response with status 429, a text body and the header `Retry-After: 1` (second).
pub fn too_many_requests(text: impl Into<String>) -> Response {
    let mut response = response_with_body(
        StatusCode::TOO_MANY_REQUESTS,
        HeaderValue::from_static("text/plain"),
        text.into(),
    );
    response
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

fn response_with_body(
    status: StatusCode,
    content_type: HeaderValue,
    body: impl Into<bytes::Bytes>,
) -> Response {
    let mut response = Response::new(ResponseBody::full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
