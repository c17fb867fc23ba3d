//! The parts of a build request's HTTP head that the build depends on.

use std::time::SystemTime;

use function_host::http::header::CONTENT_TYPE;
use function_host::http::{HeaderMap, HeaderValue};

/// The name of the header with the signature of the request's body.
pub const SIGNATURE_HEADER: &str = "x-build-signature";

/// The name of the header with the tenant whose key the request is signed with. It saves trying the keys of all others.
pub const TENANT_HEADER: &str = "x-slipway-tenant";

/// The header with the time at which the gateway received the call, in nanoseconds since 1970. The gateway appends a
/// value each time that the call passes it, so the first value is the time at which a queued call was submitted.
pub(crate) const START_TIME_HEADER: &str = "x-start-time";

/// The parts of a request's head that its build depends on.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// The value of the request's [`SIGNATURE_HEADER`]. One that is not ASCII counts as missing.
    pub signature: Option<String>,
    /// The value of the request's [`TENANT_HEADER`]. One that is not ASCII is a name that no tenant has.
    pub tenant: Option<String>,
    /// The value of the request's first `X-Start-Time`, which may hold several times, separated by commas.
    pub start_time: Option<Vec<u8>>,
    /// Whether the call passed the gateway twice, as a call does that waited in its queue.
    pub is_asynchronous: bool,
    /// Whether the request was accepted before, when it arrived, and its build is resumed.
    pub is_resumed: bool,
    /// Whether the body is JSON, by its `Content-Type`: a configuration that refers to its context. Any other body is a
    /// tar.
    pub is_json: bool,
    /// The time at which the head of the request reached this builder, by its own clock.
    pub arrived: SystemTime,
}

impl RequestHead {
    /// Reads the headers of a request that arrived at the time `arrived`.
    pub fn new(headers: &HeaderMap, arrived: SystemTime) -> Self {
        Self {
            signature: headers
                .get(SIGNATURE_HEADER)
                .and_then(|value| Some(value.to_str().ok()?.to_owned())),
            tenant: headers
                .get(TENANT_HEADER)
                .map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned()),
            start_time: headers
                .get(START_TIME_HEADER)
                .map(|value| value.as_bytes().to_vec()),
            is_asynchronous: count_start_times(headers) > 1,
            is_resumed: false,
            is_json: headers.get(CONTENT_TYPE).is_some_and(is_json_media_type),
            arrived,
        }
    }
}

/// Returns how many times a gateway has received the call.
fn count_start_times(headers: &HeaderMap) -> usize {
    let values = headers.get_all(START_TIME_HEADER).iter();
    let times = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    times.filter(|time| !time.trim_ascii().is_empty()).count()
}

/// Returns whether the value of a `Content-Type` is `application/json`, whatever its parameters.
fn is_json_media_type(value: &HeaderValue) -> bool {
    let media_type = value.as_bytes().split(|byte| *byte == b';').next();
    media_type.is_some_and(|media_type| media_type.trim_ascii().eq_ignore_ascii_case(b"application/json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_passed_the_gateway_twice_is_asynchronous() {
        for (values, is_asynchronous) in [
            (&[][..], false),
            (&["1795948800000000000"], false),
            (&["1795948800000000000,"], false),
            (&["1795948800000000000, 1795948800000000001"], true),
            (&["1795948800000000000", "1795948800000000001"], true),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(START_TIME_HEADER, value.parse().expect("header"));
            }
            let head = RequestHead::new(&headers, SystemTime::UNIX_EPOCH);
            assert_eq!(head.is_asynchronous, is_asynchronous, "{values:?}");
        }
    }

    #[test]
    fn only_the_media_type_of_json_makes_a_body_json() {
        for (content_type, is_json) in [
            (Some("application/json"), true),
            (Some("Application/JSON; charset=utf-8"), true),
            (Some("application/json-patch+json"), false),
            (Some("application/octet-stream"), false),
            (Some("application/x-www-form-urlencoded"), false),
            (Some("text/plain; application/json"), false),
            (None, false),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(content_type) = content_type {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
            }
            let head = RequestHead::new(&headers, SystemTime::now());
            assert_eq!(head.is_json, is_json, "{content_type:?}");
        }
    }
}
