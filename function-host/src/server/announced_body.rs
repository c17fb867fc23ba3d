//! Decides from the first bytes of a connection whether its request is a small one.

/// The length up to which a body counts as small, in bytes.
const MAX_SMALL_BODY_BYTES: u64 = 64 << 10;

/// The number of first bytes of a connection that [`is_whole_head_of_small_request`] is
/// given. The head of a small request fits, with the headers that gateways add.
pub(super) const PEEKED_BYTES: usize = 4 << 10;

/// Returns whether `first_bytes`, the first bytes of a connection, contains the whole head of a request with no body or
/// a small one.
///
/// This only decides who is served first. The request is parsed later, by hyper.
pub(super) fn is_whole_head_of_small_request(first_bytes: &[u8]) -> bool {
    let Some(end) = first_bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return false;
    };
    let head = first_bytes.get(..end).unwrap_or_default();
    let mut lines = head.split(|byte| *byte == b'\n').skip(1);
    lines.all(|line| {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            return true;
        };
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            return false;
        }
        if !name.eq_ignore_ascii_case(b"content-length") {
            return true;
        }
        let length = std::str::from_utf8(value)
            .ok()
            .and_then(|text| text.parse::<u64>().ok());
        length.is_some_and(|length| length <= MAX_SMALL_BODY_BYTES)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_small_if_its_whole_head_announces_a_small_body_or_none() {
        for (start, is_small) in [
            ("GET /_/health HTTP/1.1\r\nHost: a\r\n\r\n", true),
            ("POST / HTTP/1.1\r\ncontent-length: 65536\r\n\r\nabc", true),
            ("POST / HTTP/1.1\r\nA: b\r\nContent-Length:7\r\n\r\n", true),
            ("POST / HTTP/1.1\r\nContent-Length: 65537\r\n\r\n", false),
            ("POST / HTTP/1.1\r\nContent-Length: 7, 7\r\n\r\n", false),
            (
                "POST / HTTP/1.1\r\nContent-Length: 7\r\nContent-Length: 70000\r\n\r\n",
                false,
            ),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", false),
            ("POST / HTTP/1.1\r\nContent-Length: 7\r\n", false),
            ("", false),
            ("\r\n\r\n", true),
        ] {
            assert_eq!(
                is_whole_head_of_small_request(start.as_bytes()),
                is_small,
                "{start:?}"
            );
        }
    }
}
