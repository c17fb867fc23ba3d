//! What kind of answer a caller wants: the header `Accept`.

use function_host::http::header::{ACCEPT, HeaderMap};

use crate::report::Format;

/// The format in which the answer is to be streamed. Nothing, where it is to come as a whole, after the build.
///
/// That is so without the header, and for `*/*`: a stream is for those who name it. Of several types the one with the
/// highest quality counts, of equal ones that which is named before the others, and any that is named before a wildcard.
pub fn streamed(headers: &HeaderMap) -> Option<Format> {
    let ranges = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(range);
    let first_of_the_best = |best: Range, other: Range| {
        if (other.0, other.1) > (best.0, best.1) {
            other
        } else {
            best
        }
    };
    ranges.reduce(first_of_the_best)?.2
}

/// Thousandths of quality, whether it is named in full, and what it is.
type Range = (u16, bool, Option<Format>);

/// One element of the header, if it is something that is served here.
fn range(element: &str) -> Option<Range> {
    let mut parts = element.split(';').map(str::trim);
    let media_type = parts.next()?.to_ascii_lowercase();
    let quality = parts
        .filter_map(|parameter| parameter.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
        .map_or(Some(1000), |(_, value)| quality(value.trim()))?;
    let (named, format) = match media_type.as_str() {
        "application/x-ndjson" | "application/ndjson" => (true, Some(Format::Lines)),
        "text/event-stream" => (true, Some(Format::Events)),
        "application/json" => (true, None),
        "*/*" | "application/*" => (false, None),
        _ => return None,
    };
    (quality > 0).then_some((quality, named, format))
}

/// `0.5` in thousandths. Nothing, where it is no quality: RFC 9110, 12.4.2.
fn quality(value: &str) -> Option<u16> {
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let digits = fraction.len() <= 3 && fraction.bytes().all(|byte| byte.is_ascii_digit());
    let thousandths: u16 = format!("{fraction:0<3}").parse().ok().filter(|_| digits)?;
    match (whole, thousandths) {
        ("0", thousandths) => Some(thousandths),
        ("1", 0) => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_for_those_who_name_it() {
        let lines = Some(Format::Lines);
        let events = Some(Format::Events);
        for (accept, expected) in [
            (&[][..], None),
            (&[""], None),
            (&["*/*"], None),
            (&["application/json"], None),
            (&["text/html,application/xhtml+xml,*/*;q=0.8"], None),
            (&["application/x-ndjson"], lines),
            (&["Application/X-NDJSON; charset=utf-8"], lines),
            (&["text/event-stream"], events),
            (&["text/event-stream, */*"], events),
            (&["*/*, text/event-stream"], events),
            (&["*/*", "application/x-ndjson"], lines),
            (&["application/x-ndjson, application/json"], lines),
            (&["application/json, application/x-ndjson"], None),
            (&["application/json;q=0.5, application/x-ndjson;q=0.9"], lines),
            (&["application/json, application/x-ndjson;q=0.9"], None),
            (&["application/x-ndjson;q=0.1, */*"], None),
            (&["application/x-ndjson;q=0.5, text/event-stream;q=0.75"], events),
            (&["application/x-ndjson; q=0, application/json;q=0.1"], None),
            (&["application/x-ndjson;q=0"], None),
            (&["application/x-ndjson;Q=1.000"], lines),
            (
                &["application/x-ndjson;q=much, text/event-stream;q=0.001"],
                events,
            ),
            (&["application/x-ndjson;q=1.5"], None),
            (&["text/*"], None),
        ] {
            let mut headers = HeaderMap::new();
            for value in accept {
                headers.append(ACCEPT, value.parse().expect("header"));
            }
            assert_eq!(streamed(&headers), expected, "{accept:?}");
        }
    }
}
