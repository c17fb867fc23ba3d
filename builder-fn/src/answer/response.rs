//! Converts answers to HTTP responses.

use bytes::Bytes;
use function_host::http::StatusCode;
use function_host::http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use function_host::{Response, ResponseBody, reply, trace};
use futures_util::{Stream, StreamExt};
use serde_json::json;

use super::{Answer, AnswerImageAndSeconds, ReasonForTooManyRequests, report_of_failure};
use crate::hand_over::HandOverAndAnswerSigner;
use crate::report::{Report, StreamFormat, to_json_with_escaped_line_ends};

/// The header that tells nginx not to buffer the answer.
const ACCEL_BUFFERING_HEADER: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The most bytes of the log in an answer that a queue-worker delivers to the deployer. The deployer does not
/// use the log, and accepts 1 MiB in total.
const MAX_CALLBACK_LOG_BYTES: usize = 256 * 1024;

impl Answer {
    /// Converts the answer to a response with one JSON object, which is signed if it encloses a hand-over. A 429 is
    /// plain text, which is what queues expect.
    pub(crate) fn into_json_response_or_text_429(mut self) -> Response {
        if let Some(retry) = self.retry {
            let response = match retry {
                ReasonForTooManyRequests::Busy { limit } => reply::concurrency_limit_exceeded(limit),
                ReasonForTooManyRequests::Later => {
                    reply::too_many_requests(self.report.error.unwrap_or_default() + "\n")
                }
            };
            return with_close_header_if(self.closes_connection, response);
        }
        let signer = self.enclosed.map(|HandOverAndAnswerSigner { document, signer }| {
            if let Some(deployment) = &mut self.report.deployment {
                deployment["handOver"] = document;
            }
            if let Some(log) = &mut self.report.log {
                let left_out = drop_first_lines_above_limit(log, MAX_CALLBACK_LOG_BYTES);
                if left_out > 0 {
                    let reason = format!(
                        "{left_out} lines left out: the log of a callback may have {MAX_CALLBACK_LOG_BYTES} bytes"
                    );
                    self.report.warnings.push_incomplete_log(&reason);
                }
            }
            signer
        });
        let body = to_json_line(&self.report);
        let signature = signer.map(|signer| signer.signature_header(&body));
        let mut response = json_response(self.status, body);
        if let Some((name, signature)) = signature
            && let Ok(signature) = HeaderValue::from_str(&signature)
        {
            response.headers_mut().insert(name, signature);
            // The queue-worker delivers these headers to the deployer, which continues the trace.
            trace::inject_trace_headers(response.headers_mut());
        }
        with_close_header_if(self.closes_connection, response)
    }

    /// Converts the answer to a streamed response of one record, the terminal one.
    pub(crate) fn into_streamed_response(self, format: StreamFormat) -> Response {
        unbuffered_response(format, ResponseBody::full(format.terminal_record(self.report)))
    }
}

/// Makes the connection close after `response`, if `closes` says so.
fn with_close_header_if(closes: bool, mut response: Response) -> Response {
    if closes {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    response
}

/// Returns a streamed response of `records`, with status 200.
pub(crate) fn streamed_response(
    format: StreamFormat,
    records: impl Stream<Item = Bytes> + Send + 'static,
) -> Response {
    unbuffered_response(format, ResponseBody::stream(records.map(Ok)))
}

/// The answer to a caller whose context was stored.
#[derive(Debug)]
pub(crate) struct StoredContextAnswer {
    /// The reference to the context: `registry/repository@sha256:…`.
    pub(crate) reference: String,
    /// The length of the stored tar in bytes.
    pub(crate) bytes: u64,
    /// The warnings about the tar.
    pub(crate) warnings: Vec<String>,
}

/// Returns the 201 response to `POST /contexts`. Its JSON field `context` can be copied into a JSON build request.
pub(crate) fn stored_context_response(stored: &StoredContextAnswer, seconds: f64) -> Response {
    let mut body = json!({
        "status": "success",
        "context": { "oci": stored.reference },
        "bytes": stored.bytes,
        "duration": (seconds * 1000.0).round() / 1000.0,
    });
    if !stored.warnings.is_empty() {
        body["warnings"] = json!(stored.warnings);
    }
    json_response(StatusCode::CREATED, format!("{body}\n").into_bytes())
}

/// Returns the 200 response to `GET /publickey` with the JSON object `key`.
pub(crate) fn public_key_response(key: &serde_json::Value) -> Response {
    reply::json(format!("{key}\n"))
}

/// Returns a 404 response with a JSON report that has the status `failed` and `error`.
pub(crate) fn not_found_response(error: &str) -> Response {
    error_response(StatusCode::NOT_FOUND, error)
}

/// Returns a response with this HTTP status, and a JSON report that has the status `failed` and `error`.
pub(crate) fn error_response(status: StatusCode, error: &str) -> Response {
    let report = report_of_failure(error.to_owned(), AnswerImageAndSeconds::default());
    json_response(status, to_json_line(&report))
}

/// Returns a response with one JSON value.
pub(crate) fn json_value_response(status: StatusCode, value: &serde_json::Value) -> Response {
    let mut body = to_json_with_escaped_line_ends(value);
    body.push(b'\n');
    json_response(status, body)
}

/// Returns the plain-text 429 response for a caller that wants to read a log while as many are read as the builder
/// allows.
pub(crate) fn too_many_log_readers_response() -> Response {
    reply::too_many_requests("as many logs are being read as this builder allows; try again\n".to_owned())
}

/// Returns a 200 response with plain text that proxies must not buffer.
pub(crate) fn streamed_text_response(body: ResponseBody) -> Response {
    let mut response = unbuffered_response(StreamFormat::Ndjson, body);
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    response
}

/// Returns a 405 response that names the allowed methods, such as `GET, DELETE`.
pub(crate) fn method_not_allowed_response(allowed: &str) -> Response {
    let report = report_of_failure(
        format!("only {allowed} is served here"),
        AnswerImageAndSeconds::default(),
    );
    let mut response = json_response(StatusCode::METHOD_NOT_ALLOWED, to_json_line(&report));
    if let Ok(allowed) = HeaderValue::from_str(allowed) {
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

/// Keeps the last log lines of at most `max_bytes` bytes in total, and drops the others. Returns how many it dropped.
fn drop_first_lines_above_limit(lines: &mut Vec<String>, max_bytes: usize) -> usize {
    let mut left = max_bytes;
    let fits = |line: &&String| {
        let rest = left.checked_sub(line.len());
        left = rest.unwrap_or_default();
        rest.is_some()
    };
    let kept = lines.iter().rev().take_while(fits).count();
    lines.drain(..lines.len() - kept).count()
}

/// Serializes the report as JSON, with a newline at its end.
pub(super) fn to_json_line(report: &Report) -> Vec<u8> {
    let mut body = to_json_with_escaped_line_ends(report);
    body.push(b'\n');
    body
}

/// Returns a response with this status, and `body`, which is JSON.
fn json_response(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = reply::json(body);
    *response.status_mut() = status;
    response
}

/// Returns a 200 response with the media type of `format`, and the headers that stop caches from reusing it and nginx
/// from buffering it.
pub(crate) fn unbuffered_response(format: StreamFormat, body: ResponseBody) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(ACCEL_BUFFERING_HEADER, HeaderValue::from_static("no"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_above_the_limit_keeps_as_many_whole_last_lines_as_fit() {
        let lines = || vec!["12345".to_owned(), "1234".to_owned(), "123".to_owned()];
        for (limit, left) in [(12, 3), (11, 2), (7, 2), (6, 1), (2, 0)] {
            let mut lines = lines();
            assert_eq!(
                drop_first_lines_above_limit(&mut lines, limit),
                3 - left,
                "{limit}"
            );
            assert_eq!(lines.len(), left, "{limit}");
            assert!(lines.last().is_none_or(|last| last == "123"));
        }
    }
}
