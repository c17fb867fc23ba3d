//! Turns the steps of one build into spans, with the times that BuildKit reports.

use std::collections::HashMap;
use std::time::SystemTime;

use function_host::trace::Span;

use crate::buildkit::BuildEvent;
use crate::redact::TraceMask;

/// The limit on the spans of one build. Further steps get none.
const MAX_SPANS_PER_BUILD: usize = 2000;

/// The beginnings of the exporter's progress IDs that are the same for every image: BuildKit
/// `exporter/containerimage/export.go`, `util/push/push.go`.
const EXPORT_PROGRESS_PREFIXES: [&str; 3] = ["exporting layers", "pushing layers", "pushing manifest"];

/// Opens and ends a span for each step and each export of a build.
#[derive(Debug)]
pub(crate) struct StepAndExportSpans<'a> {
    /// The span of the build, which contains all others. If it is not recorded, no spans are opened.
    build: &'a Span,
    mask: &'a TraceMask,
    /// The open spans of running steps and exports, by BuildKit's digest of the step or id of the export.
    open: HashMap<String, Span>,
    /// The number of spans that were opened so far.
    opened: usize,
}

impl<'a> StepAndExportSpans<'a> {
    /// Creates the spans for the steps within `build`, with names and errors masked.
    pub(crate) fn new(build: &'a Span, mask: &'a TraceMask) -> Self {
        Self {
            build,
            mask,
            open: HashMap::new(),
            opened: 0,
        }
    }

    /// Opens, updates or ends the span that `event` belongs to.
    pub(crate) fn record_event(&mut self, event: &BuildEvent) {
        if !self.build.is_recording() {
            return;
        }
        match event {
            BuildEvent::StepStarted {
                digest,
                name,
                at,
                is_rerun: false,
            } => {
                if let Some(span) =
                    self.take_or_open_span_up_to_limit(digest, || self.mask.mask_and_cut_step_name(name), *at)
                {
                    self.open.insert(digest.clone(), span);
                }
            }
            BuildEvent::StepEnded {
                digest,
                name,
                started: Some(started),
                ended,
                cached,
                error,
                is_rerun: false,
            } => {
                let Some(span) = self.take_or_open_span_up_to_limit(
                    digest,
                    || self.mask.mask_and_cut_step_name(name),
                    *started,
                ) else {
                    return;
                };
                span.set_attribute("buildkit.cached", *cached);
                if !error.is_empty() {
                    span.mark_failed(self.mask.mask_text(error));
                }
                span.end_at(*ended);
            }
            BuildEvent::Progress {
                id,
                at,
                done,
                is_rerun: false,
                ..
            } => {
                let Some(name) = EXPORT_PROGRESS_PREFIXES
                    .into_iter()
                    .find(|export| id.starts_with(export))
                else {
                    return;
                };
                let Some(span) = self.take_or_open_span_up_to_limit(id, || name.to_owned(), *at) else {
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

    /// Takes the open span of `key`, or opens one. Returns `None` once [`MAX_SPANS_PER_BUILD`] were opened.
    fn take_or_open_span_up_to_limit(
        &mut self,
        key: &str,
        name: impl FnOnce() -> String,
        started: SystemTime,
    ) -> Option<Span> {
        if let Some(open) = self.open.remove(key) {
            return Some(open);
        }
        if self.opened >= MAX_SPANS_PER_BUILD {
            return None;
        }
        self.opened += 1;
        Some(self.build.child_started_at(name(), started))
    }
}

impl Drop for StepAndExportSpans<'_> {
    fn drop(&mut self) {
        for span in self.open.values() {
            span.mark_failed("the build ended before this step");
        }
    }
}
