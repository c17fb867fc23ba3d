//! The check of the header `Host`. Programs that forward a request may read a wrong one in different ways.

use http::header::HOST;
use http::{HeaderMap, Version};

/// Returns what is wrong with a request's `Host` headers, which the server answers with 400 (RFC 9112, section 3.2);
/// `None` if they are right.
pub(super) fn wrong_host_header_reason(version: Version, headers: &HeaderMap) -> Option<&'static str> {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if version >= Version::HTTP_11 => Some("the request has no Host header\n"),
        (Some(_), Some(_)) => Some("the request has several Host headers\n"),
        (Some(host), None) if !host.as_bytes().iter().all(is_allowed_in_host) => {
            Some("the Host header should be a host, with a port if it has one\n")
        }
        _ => None,
    }
}

/// Returns whether a host or port may contain `byte` (RFC 3986, section 3.2.2).
fn is_allowed_in_host(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_exactly_one_host_and_none_only_before_http_1_1() {
        for (version, hosts, is_right) in [
            (Version::HTTP_11, &["fn.example:8080"][..], true),
            (Version::HTTP_11, &["[::1]:8080"], true),
            (Version::HTTP_11, &[""], true),
            (Version::HTTP_11, &[], false),
            (Version::HTTP_11, &["a", "b"], false),
            (Version::HTTP_11, &["a", "a"], false),
            (Version::HTTP_11, &["me@a"], false),
            (Version::HTTP_11, &["a/b"], false),
            (Version::HTTP_11, &["a b"], false),
            (Version::HTTP_10, &[], true),
            (Version::HTTP_10, &["a"], true),
            (Version::HTTP_10, &["a", "b"], false),
        ] {
            let headers = hosts.iter().map(|host| (HOST, host.parse().unwrap()));
            let fault = wrong_host_header_reason(version, &headers.collect());
            assert_eq!(fault.is_none(), is_right, "{version:?} {hosts:?}");
        }
    }
}
