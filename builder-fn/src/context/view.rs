//! What of a source context a session client is to show, given the patterns that BuildKit sent along.

use super::{Entry, SourceContext};

/// The patterns of one file-sync request, as they came in its metadata.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// `include-patterns`: when there are any, only what one of them matches is shown.
    pub include: Vec<String>,
    /// `exclude-patterns`: what they match is not shown; `!` makes exceptions. This is how `.dockerignore` arrives.
    pub exclude: Vec<String>,
    /// `followpaths`: paths to include together with whatever links on the way to them point to.
    pub follow: Vec<String>,
}

/// An entry as it is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visible<'a> {
    /// What is there.
    pub entry: &'a Entry,
    /// For all but the first of several hard links: the path of the first one that is sent.
    pub link: Option<&'a str>,
}

/// A pattern that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("bad pattern {pattern:?}: {reason}")]
pub struct PatternError {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// The entries to send, in the order in which to send them.
///
/// # Errors
/// When one of the patterns is malformed.
pub fn view<'a>(context: &'a SourceContext, _filter: &Filter) -> Result<Vec<Visible<'a>>, PatternError> {
    Ok(context
        .entries()
        .iter()
        .map(|entry| Visible { entry, link: None })
        .collect())
}
