//! The trace of a build: the steps that BuildKit reports, as spans.
//!
//! The names of steps contain the Dockerfile's own words, with variables replaced. The values of secrets and of build
//! arguments are therefore masked ([`TraceMask`](crate::redact::TraceMask)), and of a here-document only the first line
//! is shown. The host creates and exports spans: [`function_host::trace`].

mod step_spans;

pub(crate) use step_spans::StepAndExportSpans;

use function_host::ErrorChain;
use function_host::trace::Span;

use crate::error::Error;
use crate::remote_context::ContextError;
use crate::request::RequestError;

/// Marks the span of receiving a request, or of fetching or storing a context, as failed. Repeats nothing of a
/// Dockerfile's content.
pub(crate) fn mark_failed_without_frontend_name(span: &Span, error: &Error) {
    if span.is_recording() {
        match error {
            Error::Request(error) if is_frontend_rejection(error) => span.mark_failed(FRONTEND_NOT_ALLOWED),
            Error::Context(error) if matches!(&**error, ContextError::Unusable(error) if is_frontend_rejection(error)) =>
            {
                span.mark_failed(FRONTEND_NOT_ALLOWED);
            }
            error => span.mark_failed(ErrorChain(error)),
        }
    }
}

/// The reason of a span that failed because of a Dockerfile's frontend, whose name is not repeated.
const FRONTEND_NOT_ALLOWED: &str = "the Dockerfile names a frontend that is not allowed";

fn is_frontend_rejection(error: &RequestError) -> bool {
    matches!(error, RequestError::Frontend(_))
}
