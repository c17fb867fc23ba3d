//! Splits `HOST[:PORT]`, in which an IPv6 address is in brackets.

/// Splits `HOST[:PORT]`. An empty port counts as missing. Returns `None` if the port is no number from 0 to 65535, or a
/// bracket is not closed. The host's own characters are not checked.
pub(crate) fn split_host_with_brackets_and_port(text: &str) -> Option<(&str, Option<u16>)> {
    let host_end = match text.starts_with('[') {
        true => text.find(']')? + 1,
        false => 0,
    };
    let Some(colon) = text.get(host_end..)?.find(':') else {
        return Some((text, None));
    };
    let (host, port) = text.split_at(host_end + colon);
    match port.strip_prefix(':')? {
        "" => Some((host, None)),
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some((host, Some(digits.parse().ok()?)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_host_port_needs_one_colon_at_most_outside_of_brackets_and_a_port_number() {
        for (text, expected) in [
            ("a", Some(("a", None))),
            ("a:1", Some(("a", Some(1)))),
            ("a:", Some(("a", None))),
            ("[::1]", Some(("[::1]", None))),
            ("[::1]:80", Some(("[::1]", Some(80)))),
            ("[::1", None),
            ("a:b", None),
            ("a:+1", None),
            ("a:1:2", None),
            ("a:65536", None),
        ] {
            assert_eq!(split_host_with_brackets_and_port(text), expected, "{text}");
        }
    }
}
