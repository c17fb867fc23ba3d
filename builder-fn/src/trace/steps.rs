//! The steps of one build as spans, with the times at which the daemon says they ran.

use std::collections::HashMap;
use std::time::SystemTime;

use function_host::trace::Span;

use super::Cover;
use crate::buildkit::Event;

/// The most spans of one build. Further steps have none.
const SPANS_MAX: usize = 2000;

/// What the exporter says of its own steps, as far as it is the same for every image: BuildKit
/// `exporter/containerimage/export.go`, `util/push/push.go`.
const EXPORTS: [&str; 3] = ["exporting layers", "pushing layers", "pushing manifest"];

/// Makes a span of each step, and of each push.
#[derive(Debug)]
pub struct Steps<'a> {
    /// That of the build. Without one, nothing is done here.
    build: &'a Span,
    cover: &'a Cover,
    /// Spans of the steps that run.
    open: HashMap<String, Span>,
    /// Spans that were begun.
    begun: usize,
}

impl<'a> Steps<'a> {
    /// The steps of a build. `cover` hides what is not to be told of them.
    pub fn new(build: &'a Span, cover: &'a Cover) -> Self {
        Self {
            build,
            cover,
            open: HashMap::new(),
            begun: 0,
        }
    }

    /// Takes notice of an event.
    pub fn note(&mut self, event: &Event) {
        if !self.build.is_recording() {
            return;
        }
        match event {
            Event::StepStarted {
                digest,
                name,
                at,
                is_rerun: false,
            } => {
                if let Some(span) = self.span(digest, || self.cover.name(name), *at) {
                    self.open.insert(digest.clone(), span);
                }
            }
            Event::StepEnded {
                digest,
                name,
                started: Some(started),
                ended,
                cached,
                error,
                is_rerun: false,
            } => {
                let Some(span) = self.span(digest, || self.cover.name(name), *started) else {
                    return;
                };
                span.set("buildkit.cached", *cached);
                if !error.is_empty() {
                    span.mark_failed(self.cover.text(error));
                }
                span.end_at(*ended);
            }
            Event::Progress {
                id,
                at,
                done,
                is_rerun: false,
                ..
            } => {
                let Some(name) = EXPORTS.into_iter().find(|export| id.starts_with(export)) else {
                    return;
                };
                let Some(span) = self.span(id, || name.to_owned(), *at) else {
                    return;
                };
                match done {
                    true => span.end_at(*at),
                    false => {
                        self.open.insert(id.clone(), span);
                    }
                }
            }
            _ => {}
        }
    }

    /// Takes the open span of `key`, or begins one; returns `None` once there are [`SPANS_MAX`].
    fn span(&mut self, key: &str, name: impl FnOnce() -> String, begun: SystemTime) -> Option<Span> {
        if let Some(open) = self.open.remove(key) {
            return Some(open);
        }
        if self.begun >= SPANS_MAX {
            return None;
        }
        self.begun += 1;
        Some(self.build.child_started_at(name(), begun))
    }
}

impl Drop for Steps<'_> {
    fn drop(&mut self) {
        for span in self.open.values() {
            span.mark_failed("it was not finished");
        }
    }
}
