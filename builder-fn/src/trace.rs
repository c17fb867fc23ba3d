//! What of a build is told in its trace: the steps that BuildKit reports, and nothing that is secret.
//!
//! The names of steps have the Dockerfile's own words in them, with variables replaced. So the values of secrets are hidden
//! there, those of build arguments too, and of a here-document there is only its first line. How spans are made and where
//! they go is the host's: [`function_host::trace`].

mod cover;
mod steps;

pub use cover::Cover;
pub use steps::Steps;

use function_host::ErrorChain;
use function_host::trace::Span;

use crate::error::Error;
use crate::request::RequestError;

/// It failed, for this reason. Nothing of what was sent is repeated.
pub(crate) fn failed(span: &Span, error: &Error) {
    if span.is_recording() {
        match error {
            Error::Request(RequestError::Frontend(_)) => {
                span.mark_failed("the Dockerfile wants to be read by a frontend that is not allowed");
            }
            error => span.mark_failed(ErrorChain(error)),
        }
    }
}
