//! Boxed errors, and the display of an error with its sources.

use std::error::Error;
use std::fmt;

/// An error of any type that can move between threads.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// An error that is displayed with its sources on one line, separated by `: `.
///
/// ```
/// # let error = std::io::Error::other("no space left");
/// tracing::error!(error = %function_host::ErrorChain(&error), "could not write the file");
/// ```
pub struct ErrorChain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.0, f)?;
        let mut next = self.0.source();
        while let Some(source) = next {
            write!(f, ": {source}")?;
            next = source.source();
        }
        Ok(())
    }
}

impl fmt::Debug for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("could not read {0}")]
    struct OuterError(&'static str, #[source] std::num::ParseIntError);

    #[test]
    fn every_source_of_an_error_is_displayed_once() {
        let error = OuterError("the count", "x".parse::<u8>().unwrap_err());
        assert_eq!(
            ErrorChain(&error).to_string(),
            "could not read the count: invalid digit found in string"
        );
    }
}
