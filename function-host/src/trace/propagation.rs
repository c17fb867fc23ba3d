//! The trace headers of incoming and outgoing requests (<https://www.w3.org/TR/trace-context/>).

use http::HeaderMap;
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_sdk::propagation::TraceContextPropagator;

const TRACEPARENT_HEADER: &str = "traceparent";
const TRACESTATE_HEADER: &str = "tracestate";

/// The longest `tracestate` that is passed on, in bytes; a longer one is dropped.
///
/// The standard requires to pass on at least this length.
const MAX_TRACESTATE_BYTES: usize = 512;

/// Returns an OpenTelemetry context with the span that the request's headers name as the caller, or an empty
/// one.
pub(super) fn extract_caller_context(headers: &HeaderMap) -> Context {
    let mut parents = headers.get_all(TRACEPARENT_HEADER).iter();
    match (parents.next(), parents.next()) {
        (Some(parent), None) if is_well_formed_traceparent(parent.as_bytes()) => {
            let headers = TraceHeaders {
                parent: parent.to_str().unwrap_or_default(),
                state: joined_tracestate_or_empty_if_too_long(headers),
            };
            TraceContextPropagator::new().extract_with_context(&Context::new(), &headers)
        }
        _ => Context::new(),
    }
}

/// Sets the trace headers of a request, which name the context's span as the caller.
pub(super) fn inject_context(context: &Context, headers: &mut HeaderMap) {
    TraceContextPropagator::new().inject_context(context, &mut HeaderInjector(headers));
    if headers
        .get(TRACESTATE_HEADER)
        .is_some_and(|state| state.is_empty())
    {
        headers.remove(TRACESTATE_HEADER);
    }
}

/// The request headers for OpenTelemetry's propagator, with several `tracestate` headers joined into one.
struct TraceHeaders<'a> {
    parent: &'a str,
    state: String,
}

impl Extractor for TraceHeaders<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            TRACEPARENT_HEADER => Some(self.parent),
            TRACESTATE_HEADER => Some(self.state.as_str()).filter(|state| !state.is_empty()),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT_HEADER, TRACESTATE_HEADER]
    }
}

/// Returns the `tracestate` headers of a request, joined by commas; an empty text if they are longer than
/// [`MAX_TRACESTATE_BYTES`] together.
fn joined_tracestate_or_empty_if_too_long(headers: &HeaderMap) -> String {
    let headers = HeaderExtractor(headers);
    let state = headers.get_all(TRACESTATE_HEADER).unwrap_or_default().join(",");
    match state.len() {
        ..=MAX_TRACESTATE_BYTES => state,
        _ => String::new(),
    }
}

/// Returns whether a text is a valid `traceparent` header.
///
/// The format is `00-<32 hex digits>-<16>-<2>`. A later version may have further fields after another `-`.
///
/// The propagator accepts more than the standard does.
fn is_well_formed_traceparent(parent: &[u8]) -> bool {
    const TRACEPARENT_BYTES: usize = 55;
    const DASH_POSITIONS: [usize; 3] = [2, 35, 52];
    let Some((fixed, more)) = parent.split_at_checked(TRACEPARENT_BYTES) else {
        return false;
    };
    let fits = |(at, byte): (usize, &u8)| match DASH_POSITIONS.contains(&at) {
        true => *byte == b'-',
        false => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
    };
    fixed.iter().enumerate().all(fits)
        && match &fixed[..2] {
            b"00" => more.is_empty(),
            b"ff" => false,
            _ => more.is_empty() || more.starts_with(b"-"),
        }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use opentelemetry::trace::TraceContextExt;

    use super::*;

    const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn headers_from(all: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn only_a_well_formed_traceparent_names_a_caller() {
        let cases = [
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", true),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", true),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", true),
            (
                "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
                true,
            ),
            (
                "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.more",
                false,
            ),
            (
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
                false,
            ),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-", false),
            ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false),
            ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", false),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01", false),
            ("00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false),
            ("00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false),
            ("00-1-1-01", false),
            ("0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false),
            ("", false),
        ];
        for (parent, valid) in cases {
            let context = extract_caller_context(&headers_from(&[(TRACEPARENT_HEADER, parent)]));
            assert_eq!(context.has_active_span(), valid, "{parent}");
            if valid {
                let span = context.span().span_context().clone();
                assert_eq!(span.trace_id().to_string(), TRACE_ID);
                assert_eq!(span.is_sampled(), !parent.ends_with("-00"), "{parent}");
            }
        }
    }

    #[test]
    fn two_traceparent_headers_count_as_no_caller() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = extract_caller_context(&headers_from(&[
            (TRACEPARENT_HEADER, parent),
            (TRACEPARENT_HEADER, parent),
        ]));
        assert!(!context.has_active_span());
    }

    #[test]
    fn a_well_formed_tracestate_is_passed_on() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let long = format!("a={}", "x".repeat(MAX_TRACESTATE_BYTES));
        for (states, passed_on) in [
            (&["a=1", "b=2"][..], Some("a=1,b=2")),
            (&["a=1,b=2"], Some("a=1,b=2")),
            (&["no state"], None),
            (&[&long], None),
            (&[], None),
        ] {
            let mut all = vec![(TRACEPARENT_HEADER, parent)];
            all.extend(states.iter().map(|state| (TRACESTATE_HEADER, *state)));
            let mut sent = HeaderMap::new();
            inject_context(&extract_caller_context(&headers_from(&all)), &mut sent);
            assert_eq!(sent.get(TRACEPARENT_HEADER).unwrap(), parent, "{states:?}");
            let state = sent.get(TRACESTATE_HEADER).map(|state| state.to_str().unwrap());
            assert_eq!(state, passed_on, "{states:?}");
        }
    }

    #[test]
    fn no_trace_headers_are_set_without_a_span() {
        let mut sent = HeaderMap::new();
        inject_context(&Context::new(), &mut sent);
        assert!(sent.is_empty());
    }
}
