//! Authentication of requests to the routes below `/builds` and `/functions`, which have no body to sign: questions
//! about builds and versions, cancellations and rollbacks.
//!
//! The signature is the HMAC-SHA256 of method, path with query, and `X-Signed-At`, joined by newlines.

use std::time::{Duration, SystemTime};

use function_host::http::header::HeaderMap;
use function_host::http::{Method, Uri};

use crate::request::time::{format_rfc3339, parse_rfc3339};
use crate::request::{SIGNATURE_HEADER, SignatureCheck, VerifiedSignature};

/// The header with the time at which a request without a body was signed.
pub(crate) const SIGNED_AT_HEADER: &str = "x-signed-at";

/// How far [`SIGNED_AT_HEADER`] may be off the builder's clock.
const SIGNED_AT_TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// The reason why a request without a body is rejected. The texts are for the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RejectedBodylessRequest {
    /// A header is missing.
    #[error(
        "the header {0} is missing; a question about builds has X-Signed-At (RFC 3339) and X-Build-Signature: sha256= with \
         the HMAC-SHA256 of METHOD, PATH and X-Signed-At, joined by newlines"
    )]
    Missing(&'static str),
    /// The time of the signature is malformed or too far off.
    #[error("X-Signed-At should be RFC 3339 and at most five minutes off; this builder's clock says {now}")]
    SignedAt {
        /// The builder's time.
        now: String,
    },
    /// The signature is not one of this request by any key.
    #[error("X-Build-Signature is not the signature of this question")]
    Signature,
}

/// Verifies the signature and the time of a request without a body, and returns the signature; `None` if signatures are
/// disabled.
///
/// # Errors
/// Fails if the request is not signed by a key of `check`, or was not signed within five minutes of `now`.
pub(super) fn verify_bodyless_request(
    check: &SignatureCheck,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    now: SystemTime,
) -> Result<Option<VerifiedSignature>, RejectedBodylessRequest> {
    let SignatureCheck::Required(keys) = check else {
        return Ok(None);
    };
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let signature = header(SIGNATURE_HEADER).ok_or(RejectedBodylessRequest::Missing("X-Build-Signature"))?;
    let signed_at = header(SIGNED_AT_HEADER).ok_or(RejectedBodylessRequest::Missing("X-Signed-At"))?;
    let is_now = parse_rfc3339(signed_at).is_some_and(|at| {
        let off = at.duration_since(now).or_else(|_| now.duration_since(at));
        off.is_ok_and(|off| off <= SIGNED_AT_TOLERANCE)
    });
    if !is_now {
        return Err(RejectedBodylessRequest::SignedAt {
            now: format_rfc3339(now),
        });
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let text = format!("{method}\n{path}\n{signed_at}");
    let verified = keys.verify_text(text.as_bytes(), signature);
    verified.map(Some).ok_or(RejectedBodylessRequest::Signature)
}

#[cfg(test)]
mod tests {
    use function_host::Secret;
    use function_host::signature::{HmacKeys, sign_body};

    use super::*;
    use crate::request::SignatureKeys;

    const NOW_RFC3339: &str = "2026-12-01T10:00:00Z";

    /// Verifies a request whose signature is that of the text `signed_text`.
    fn verify_bodyless_request_signed_over(
        signed_text: &str,
        signed_at: &str,
        method: Method,
        path: &str,
    ) -> Result<(), RejectedBodylessRequest> {
        let keys = HmacKeys::new(&Secret::new("payload key")).expect("a key");
        let mut headers = HeaderMap::new();
        let signature = sign_body(&keys, signed_text.as_bytes());
        headers.insert(SIGNATURE_HEADER, signature.parse().expect("header"));
        headers.insert(SIGNED_AT_HEADER, signed_at.parse().expect("header"));
        let check =
            SignatureCheck::Required(SignatureKeys::new(&Secret::new("payload key"), true).expect("a key"));
        let now = parse_rfc3339(NOW_RFC3339).expect("a time");
        verify_bodyless_request(&check, &method, &path.parse().expect("path"), &headers, now).map(|_| ())
    }

    #[test]
    fn a_bodyless_request_is_signed_with_its_method_its_path_its_query_and_its_time() {
        let signed = format!("GET\n/builds/5f0c?x=1\n{NOW_RFC3339}");
        assert_eq!(
            verify_bodyless_request_signed_over(&signed, NOW_RFC3339, Method::GET, "/builds/5f0c?x=1"),
            Ok(())
        );
        for (signed_at, method, path) in [
            (NOW_RFC3339, Method::DELETE, "/builds/5f0c?x=1"),
            (NOW_RFC3339, Method::GET, "/builds/5f0c"),
            (NOW_RFC3339, Method::GET, "/builds/5f0d?x=1"),
            ("2026-12-01T10:00:01Z", Method::GET, "/builds/5f0c?x=1"),
        ] {
            assert_eq!(
                verify_bodyless_request_signed_over(&signed, signed_at, method.clone(), path),
                Err(RejectedBodylessRequest::Signature),
                "{method} {path} {signed_at}"
            );
        }
    }

    #[test]
    fn a_signature_of_a_bodyless_request_is_valid_for_five_minutes_before_and_after_its_time() {
        for (signed_at, is_valid) in [
            ("2026-12-01T09:55:00Z", true),
            ("2026-12-01T10:05:00Z", true),
            ("2026-12-01T09:54:59.999999999Z", false),
            ("2026-12-01T10:05:00.000000001Z", false),
            ("yesterday", false),
        ] {
            let signed = format!("GET\n/builds\n{signed_at}");
            assert_eq!(
                verify_bodyless_request_signed_over(&signed, signed_at, Method::GET, "/builds").is_ok(),
                is_valid,
                "{signed_at}"
            );
        }
    }

    #[test]
    fn the_error_for_an_unsigned_bodyless_request_names_both_headers_to_send() {
        let check = SignatureCheck::Required(SignatureKeys::new(&Secret::new("key"), true).expect("a key"));
        let uri = "/builds".parse().expect("path");
        let error = verify_bodyless_request(&check, &Method::GET, &uri, &HeaderMap::new(), SystemTime::now());
        let text = error.expect_err("it is not signed").to_string();
        assert!(
            text.contains("X-Signed-At") && text.contains("X-Build-Signature"),
            "{text}"
        );
    }
}
