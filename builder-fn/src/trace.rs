//! The trace of a build: the steps that BuildKit reports, as spans.
//!
//! The names of steps contain the Dockerfile's own words, with variables replaced. The values of secrets and of build
//! arguments are therefore masked ([`TraceMask`](crate::redact::TraceMask)), and of a here-document only the first line is
//! shown. The host creates and exports spans: [`function_host::trace`].

mod step_spans;

pub(crate) use step_spans::StepSpans;

use function_host::ErrorChain;
use function_host::trace::Span;

use crate::error::Error;
use crate::request::RequestError;

/// Marks the span of receiving a request as failed. Repeats nothing of a Dockerfile's content.
pub(crate) fn mark_receive_failed(span: &Span, error: &Error) {
    if span.is_recording() {
        match error {
            Error::Request(RequestError::Frontend(_)) => {
                span.mark_failed("the Dockerfile names a frontend that is not allowed");
            }
            error => span.mark_failed(ErrorChain(error)),
        }
    }
}
