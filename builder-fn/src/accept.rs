//! Content negotiation: which form of answer a request's header `Accept` asks for.

use function_host::http::header::{ACCEPT, HeaderMap};

use crate::report::StreamFormat;
use crate::request::SIGNATURE_HEADER;

/// Returns the format in which to stream the answer, or `None` if it is to be sent as a whole, after the build.
///
/// Only a request that names a streaming type gets a stream: no header, `*/*` and `application/*` mean a whole answer.
/// Of several types, the one with the highest quality counts; of equal ones, the first, and one that is named before a
/// wildcard.
pub(crate) fn negotiate_stream_format(headers: &HeaderMap) -> Option<StreamFormat> {
    let ranges = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(AcceptedMediaRangeForPrograms::parse_if_accepted_and_for_programs);
    ranges
        .reduce(
            |best, other| match other.preference_rank() > best.preference_rank() {
                true => other,
                false => best,
            },
        )?
        .format
}

/// Returns whether the answer is to be a page: if the header `Accept` names HTML, and no form of an answer for programs
/// that is as good. The sender of a signed request is a program, whatever its library accepts by itself (Java:
/// `text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2`), so it gets a page only if it accepts nothing else.
pub(crate) fn should_answer_with_html(headers: &HeaderMap) -> bool {
    let is_signed = headers.contains_key(SIGNATURE_HEADER);
    let ranges = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    let (mut html, mut other, mut accepts_other) = (0, 0, false);
    for element in ranges {
        let media_type = element.split(';').next().unwrap_or_default().trim();
        let is_html = ["text/html", "application/xhtml+xml"]
            .iter()
            .any(|name| media_type.eq_ignore_ascii_case(name));
        // A quality that is malformed, such as Java's, excludes nothing.
        accepts_other |= !is_html
            && includes_answer_for_programs(media_type)
            && quality_thousandths_or_default(element) != Some(0);
        match (
            is_html,
            AcceptedMediaRangeForPrograms::parse_if_accepted_and_for_programs(element),
        ) {
            (true, _) => {
                html = quality_thousandths_or_default(element)
                    .unwrap_or_default()
                    .max(html)
            }
            (false, Some(range)) if range.is_exact => other = range.quality.max(other),
            _ => {}
        }
    }
    match is_signed {
        true => html > 0 && !accepts_other,
        false => html > 0 && html > other,
    }
}

/// Returns whether a media range includes a form of an answer for programs. Java writes `*` for `*/*`.
fn includes_answer_for_programs(media_type: &str) -> bool {
    let media_type = media_type.to_ascii_lowercase();
    matches!(
        media_type.as_str(),
        "*" | "*/*" | "application/*" | "application/json"
    ) || matches!(
        media_type.as_str(),
        "application/x-ndjson" | "application/ndjson" | "text/event-stream"
    )
}

/// One element of the header `Accept` that includes a form of an answer for programs.
struct AcceptedMediaRangeForPrograms {
    /// The client's preference for the media range (`q`), from 1 to 1000 thousandths; 1000 if it names none.
    quality: u16,
    /// Whether the media type is named in full, without a wildcard.
    is_exact: bool,
    /// The streaming format that the media range names; `None` for `application/json` and wildcards.
    format: Option<StreamFormat>,
}

impl AcceptedMediaRangeForPrograms {
    /// Parses one element of the header `Accept`. Returns `None` if it is malformed, excluded by `q=0`, or includes no
    /// answer for programs, as `text/html` does not.
    fn parse_if_accepted_and_for_programs(element: &str) -> Option<Self> {
        let media_type = element.split(';').next()?.trim().to_ascii_lowercase();
        let quality = quality_thousandths_or_default(element)?;
        let (is_exact, format) = match media_type.as_str() {
            "application/x-ndjson" | "application/ndjson" => (true, Some(StreamFormat::Ndjson)),
            "text/event-stream" => (true, Some(StreamFormat::EventStream)),
            "application/json" => (true, None),
            "*/*" | "application/*" => (false, None),
            _ => return None,
        };
        (quality > 0).then_some(Self {
            quality,
            is_exact,
            format,
        })
    }

    /// Returns the key by which media ranges are compared: the quality, then whether the type is named in full.
    fn preference_rank(&self) -> (u16, bool) {
        (self.quality, self.is_exact)
    }
}

/// Returns the quality of one element of the header `Accept`, in thousandths; 1000 if it names none, and `None` if it
/// is malformed.
fn quality_thousandths_or_default(element: &str) -> Option<u16> {
    let parameters = element.split(';').skip(1);
    parameters
        .filter_map(|parameter| parameter.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
        .map_or(Some(1000), |(_, value)| parse_quality_thousandths(value.trim()))
}

/// Parses a quality such as `0.5` to thousandths. Returns `None` if it is not one as in RFC 9110, 12.4.2.
fn parse_quality_thousandths(value: &str) -> Option<u16> {
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
    fn an_answer_is_streamed_only_if_the_accept_header_names_and_prefers_a_streaming_media_type() {
        let ndjson = Some(StreamFormat::Ndjson);
        let events = Some(StreamFormat::EventStream);
        for (accept, expected) in [
            (&[][..], None),
            (&[""], None),
            (&["*/*"], None),
            (&["application/json"], None),
            (&["text/html,application/xhtml+xml,*/*;q=0.8"], None),
            (&["application/x-ndjson"], ndjson),
            (&["Application/X-NDJSON; charset=utf-8"], ndjson),
            (&["text/event-stream"], events),
            (&["text/event-stream, */*"], events),
            (&["*/*, text/event-stream"], events),
            (&["*/*", "application/x-ndjson"], ndjson),
            (&["application/x-ndjson, application/json"], ndjson),
            (&["application/json, application/x-ndjson"], None),
            (&["application/json;q=0.5, application/x-ndjson;q=0.9"], ndjson),
            (&["application/json, application/x-ndjson;q=0.9"], None),
            (&["application/x-ndjson;q=0.1, */*"], None),
            (&["application/x-ndjson;q=0.5, text/event-stream;q=0.75"], events),
            (&["application/x-ndjson; q=0, application/json;q=0.1"], None),
            (&["application/x-ndjson;q=0"], None),
            (&["application/x-ndjson;Q=1.000"], ndjson),
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
            assert_eq!(negotiate_stream_format(&headers), expected, "{accept:?}");
        }
    }

    #[test]
    fn an_unsigned_request_prefers_html_only_if_it_rates_html_above_every_answer_for_programs() {
        for (accept, expected) in [
            (
                "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8",
                true,
            ),
            ("text/html", true),
            ("text/html;q=0.5, application/json;q=0.4", true),
            ("text/html;q=0.5, application/json", false),
            ("text/html, application/json", false),
            ("application/json, text/html", false),
            ("application/x-ndjson, text/html;q=0.9", false),
            ("text/html;q=0", false),
            ("*/*", false),
            ("text/*", false),
            ("application/json", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().expect("header"));
            assert_eq!(should_answer_with_html(&headers), expected, "{accept}");
        }
        assert!(!should_answer_with_html(&HeaderMap::new()));
    }

    #[test]
    fn a_signed_request_prefers_html_only_if_it_accepts_no_form_of_answer_for_programs() {
        for (accept, expected) in [
            ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", false),
            (
                "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8",
                false,
            ),
            ("text/html, application/json;q=0.1", false),
            ("text/html, application/*;q=0.1", false),
            ("text/html, *", false),
            ("text/html", true),
            ("text/html, */*;q=0", true),
            ("application/xhtml+xml, image/png", true),
            ("text/html;q=0", false),
            ("*/*", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().expect("header"));
            headers.insert(SIGNATURE_HEADER, "sha256=00".parse().expect("header"));
            assert_eq!(should_answer_with_html(&headers), expected, "{accept}");
        }
    }
}
