//! The steps of one build as spans, with the times at which the daemon says they ran.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use function_host::trace::Span;

use super::Cover;
use crate::buildkit::Event;

/// Steps that are remembered; of what comes after them nothing is told.
const REMEMBERED: usize = 2000;

/// What the exporter says of its own steps, as far as it is the same for every image: BuildKit
/// `exporter/containerimage/export.go`, `util/push/push.go`.
const EXPORTS: [&str; 3] = ["exporting layers", "pushing layers", "pushing manifest"];

/// Makes a span of each step, and of each push.
#[derive(Debug)]
pub struct Steps<'a> {
    /// That of the build. Without one, nothing is done here.
    build: &'a Span,
    cover: &'a Cover,
    /// Steps that run.
    open: HashMap<String, Span>,
    /// Steps that ended: the daemon repeats itself.
    ended: HashSet<String>,
}

impl<'a> Steps<'a> {
    /// The steps of a build. `cover` hides what is not to be told of them.
    pub fn new(build: &'a Span, cover: &'a Cover) -> Self {
        Self {
            build,
            cover,
            open: HashMap::new(),
            ended: HashSet::new(),
        }
    }

    /// Takes notice of an event.
    pub fn note(&mut self, event: &Event) {
        if !self.build.is_recording() {
            return;
        }
        match event {
            Event::Step {
                digest,
                name,
                started: Some(started),
                completed,
                cached,
                error,
            } => {
                let Some(span) = self.span(digest, || self.cover.name(name), *started) else {
                    return;
                };
                let Some(completed) = completed else {
                    self.open.insert(digest.clone(), span);
                    return;
                };
                span.set("buildkit.cached", *cached);
                if !error.is_empty() {
                    span.mark_failed(self.cover.text(error));
                }
                self.end(digest, span, *completed);
            }
            Event::Progress { id, at, done, .. } => {
                let Some(name) = EXPORTS.into_iter().find(|export| id.starts_with(export)) else {
                    return;
                };
                let Some(span) = self.span(id, || name.to_owned(), *at) else {
                    return;
                };
                match done {
                    true => self.end(id, span, *at),
                    false => {
                        self.open.insert(id.clone(), span);
                    }
                }
            }
            _ => {}
        }
    }

    /// The span that was opened for this key, or a new one; none where it has ended.
    fn span(&mut self, key: &str, name: impl FnOnce() -> String, begun: SystemTime) -> Option<Span> {
        if self.ended.contains(key) {
            return None;
        }
        let open = self.open.remove(key);
        if open.is_none() && self.open.len() + self.ended.len() >= REMEMBERED {
            return None;
        }
        Some(open.unwrap_or_else(|| self.build.child_started_at(name(), begun)))
    }

    fn end(&mut self, key: &str, span: Span, at: SystemTime) {
        span.end_at(at);
        self.ended.insert(key.to_owned());
    }
}

impl Drop for Steps<'_> {
    fn drop(&mut self) {
        for span in self.open.values() {
            span.mark_failed("it was not finished");
        }
    }
}
