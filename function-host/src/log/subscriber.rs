//! The `tracing` subscriber that writes events as log lines.

use std::io::Write;
use std::time::SystemTime;

use jiff::Timestamp;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_core::span::Current;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;

use super::LogFormat;
use super::fields::{FieldValue, LogFields};
use super::line::LogLine;
use super::spans::{self, SpanStore};

/// A `tracing` subscriber that writes each event as a log line, with the fields of its spans.
pub(crate) struct LogSubscriber<W> {
    format: LogFormat,
    filter: Targets,
    spans: SpanStore,
    write: W,
}

/// The field name that `tracing` gives to the message of an event.
const MESSAGE_FIELD_NAME: &str = "message";

impl<W: Fn(&[u8]) + 'static> LogSubscriber<W> {
    pub(crate) fn new(format: LogFormat, filter: Targets, write: W) -> Self {
        Self {
            format,
            filter,
            spans: SpanStore::default(),
            write,
        }
    }
}

/// Writes a log line to standard output. Errors are ignored, because there is nowhere to report them.
pub(crate) fn write_to_stdout(line: &[u8]) {
    let _ = std::io::stdout().lock().write_all(line);
}

impl<W: Fn(&[u8]) + 'static> Subscriber for LogSubscriber<W> {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.would_enable(metadata.target(), metadata.level())
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Layer::<Self>::max_level_hint(&self.filter)
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut fields = LogFields::default();
        attributes.record(&mut fields);
        let parent = match attributes.parent() {
            Some(parent) => Some(parent.clone()),
            None if attributes.is_contextual() => spans::current_span(),
            None => None,
        };
        self.spans.open_span(attributes.metadata(), parent, fields)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        let mut fields = LogFields::default();
        values.record(&mut fields);
        self.spans.record_fields(span, fields);
    }

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = LogFields::default();
        event.record(&mut fields);
        let message = fields.iter().find(|(name, _)| *name == MESSAGE_FIELD_NAME);
        let message = message.map_or("", |(_, FieldValue::Text(text) | FieldValue::Literal(text))| text);

        let metadata = event.metadata();
        let mut line = LogLine::new(
            self.format,
            // Not `Timestamp::now`, which panics if the clock is beyond the year 9999.
            Timestamp::try_from(SystemTime::now()).unwrap_or_default(),
            *metadata.level(),
            metadata.target(),
        );
        line.add_message(message);
        let span = match event.parent() {
            Some(parent) => Some(parent.clone()),
            None if event.is_contextual() => spans::current_span(),
            None => None,
        };
        if let Some(span) = span {
            // A field of the event takes precedence over one of a span.
            let in_event = |name: &str| fields.iter().any(|(field, _)| field == name);
            self.spans
                .visit_fields_of_span_and_ancestors(&span, &mut |outer| {
                    for (name, value) in outer.iter().filter(|(name, _)| !in_event(name)) {
                        line.add_field_prefixed_if_name_is_taken(name, value);
                    }
                });
        }
        for (name, value) in fields.iter().filter(|(name, _)| *name != MESSAGE_FIELD_NAME) {
            line.add_field_prefixed_if_name_is_taken(name, value);
        }
        (self.write)(&line.into_finished_text());
    }

    fn enter(&self, span: &Id) {
        spans::enter_span(span);
    }

    fn exit(&self, span: &Id) {
        spans::exit_span(span);
    }

    fn clone_span(&self, id: &Id) -> Id {
        self.spans.add_reference(id);
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        self.spans.remove_reference(&id)
    }

    fn current_span(&self) -> Current {
        let current = spans::current_span().and_then(|id| Some((self.spans.metadata_of(&id)?, id)));
        current.map_or_else(Current::none, |(metadata, id)| Current::new(id, metadata))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};
    use tracing::Instrument;

    use super::*;

    /// Runs `action` and returns the lines that it logs, parsed as JSON.
    fn logged_json_lines(filter: &str, action: impl FnOnce()) -> Vec<Value> {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let write = {
            let lines = lines.clone();
            move |line: &[u8]| lines.lock().unwrap().push(serde_json::from_slice(line).unwrap())
        };
        let subscriber = LogSubscriber::new(LogFormat::Json, filter.parse().unwrap(), write);
        tracing::subscriber::with_default(subscriber, action);
        Arc::try_unwrap(lines).unwrap().into_inner().unwrap()
    }

    #[test]
    fn a_line_has_the_fields_of_its_event_and_its_spans() {
        let lines = logged_json_lines("info", || {
            let _request = tracing::error_span!("request", call_id = "c-1").entered();
            let _build = tracing::info_span!("build", image = "a/b", tries = 2).entered();
            tracing::info!(seconds = 0.5, ok = true, tries = 3, "built {}", 3);
        });
        let mut line = lines[0].clone();
        assert!(line["time"].take().is_string());
        assert_eq!(
            line,
            json!({
                "time": null, "level": "INFO", "target": "function_host::log::subscriber::tests", "message": "built 3",
                "call_id": "c-1", "image": "a/b", "tries": 3, "seconds": 0.5, "ok": true,
            })
        );
    }

    #[test]
    fn a_level_filter_never_removes_the_call_id() {
        let lines = logged_json_lines("error", || {
            let _request = tracing::error_span!("request", call_id = "c-1").entered();
            tracing::warn!("not this");
            tracing::error!("this");
        });
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["message"], "this");
        assert_eq!(lines[0]["call_id"], "c-1");
    }

    #[test]
    fn levels_can_be_set_for_each_target() {
        let lines = logged_json_lines("warn,shop=debug", || {
            tracing::info!("not this");
            tracing::debug!(target: "shop::cart", "this");
        });
        assert_eq!(lines.len(), 1);
    }

    #[test]
    fn a_task_in_the_span_of_a_request_logs_the_call_id() {
        let lines = logged_json_lines("info", || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let span = tracing::error_span!("request", call_id = "c-1");
                let task = span.in_scope(|| tokio::spawn(async { tracing::info!("in") }.in_current_span()));
                // The task keeps the span open.
                drop(span);
                task.await.unwrap();
                tracing::info!("out");
            });
        });
        assert_eq!(lines[0]["call_id"], "c-1");
        assert!(lines[1].get("call_id").is_none());
    }

    #[test]
    fn spans_may_be_recorded_exited_and_closed_in_any_order() {
        let lines = logged_json_lines("info", || {
            let outer = tracing::info_span!("outer", found = tracing::field::Empty);
            let inner = tracing::info_span!(parent: &outer, "inner");
            outer.record("found", 7);
            drop(outer);
            let entered = inner.enter();
            let other = tracing::info_span!("other", at = "x").entered();
            drop(entered);
            tracing::info!("one");
            drop(other);
            tracing::info!(parent: &inner, "two");
            drop(inner);
            tracing::info!(parent: None, "three");
        });
        assert_eq!((&lines[0]["found"], &lines[0]["at"]), (&json!(7), &json!("x")));
        assert_eq!(lines[1]["found"], 7);
        assert!(lines[2].get("found").is_none());
        assert_eq!(spans::current_span(), None);
    }
}
