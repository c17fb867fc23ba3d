//! From events to lines.

use std::fmt;
use std::io::Write;
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::Format;
use super::line::Line;

/// Writes each event as a line, with the fields of the spans it is in.
pub(crate) struct Lines {
    format: Format,
}

impl Lines {
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }
}

/// What a span was given, kept with it.
#[derive(Default)]
struct Fields(Vec<(&'static str, Value)>);

/// A field's value, as far as lines care.
pub(crate) enum Value {
    Text(String),
    /// A number or truth value, written already.
    Plain(String),
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        self.0.retain(|(name, _)| *name != field.name());
        self.0.push((field.name(), value));
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no words for the others.
        let text = value.to_string();
        self.put(
            field,
            if value.is_finite() {
                Value::Plain(text)
            } else {
                Value::Text(text)
            },
        );
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, Value::Plain(value.to_string()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, Value::Plain(value.to_string()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::Plain(value.to_string()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::Text(value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::Text(format!("{value:?}")));
    }
}

impl<S> Layer<S> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            record.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let message = fields
            .0
            .iter()
            .position(|(name, _)| *name == "message")
            .map(|at| fields.0.remove(at).1);
        let message = match &message {
            Some(Value::Text(text) | Value::Plain(text)) => text,
            None => "",
        };

        let metadata = event.metadata();
        let mut line = Line::new(
            self.format,
            SystemTime::now(),
            *metadata.level(),
            metadata.target(),
        );
        for span in context
            .event_scope(event)
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            if let Some(fields) = span.extensions().get::<Fields>() {
                for (name, value) in &fields.0 {
                    line.span_field(name, value);
                }
            }
        }
        line.message(message);
        for (name, value) in &fields.0 {
            line.field(name, value);
        }
        // Where standard output is gone there is nobody left to tell.
        let _ = std::io::stdout().lock().write_all(&line.finish());
    }
}
