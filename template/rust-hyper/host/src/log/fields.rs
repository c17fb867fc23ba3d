//! The fields of `tracing` spans and events in the log.

use std::fmt;

use tracing::field::{Field, Visit};

/// The fields of a `tracing` span or event. The first one is stored inline, because the span of a request has
/// only one.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    first: Option<(&'static str, Value)>,
    others: Vec<(&'static str, Value)>,
}

/// The value of a `tracing` field in the log.
#[derive(Debug)]
pub(crate) enum Value {
    Text(String),
    /// A number or boolean, formatted for the log line.
    Literal(String),
}

impl Fields {
    /// Returns the names and values of the fields in the order in which they were added.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.first
            .iter()
            .chain(&self.others)
            .map(|(name, value)| (*name, value))
    }

    /// Sets a field of the span or event, replacing one with the same name.
    pub(crate) fn set(&mut self, name: &'static str, value: Value) {
        if let Some(existing) = self
            .first
            .iter_mut()
            .chain(&mut self.others)
            .find(|(existing, _)| *existing == name)
        {
            existing.1 = value;
        } else if self.first.is_none() {
            self.first = Some((name, value));
        } else {
            self.others.push((name, value));
        }
    }

    /// Copies all fields of `newer` into these fields, replacing those with the same names.
    pub(crate) fn update(&mut self, newer: Self) {
        for (name, value) in newer.first.into_iter().chain(newer.others) {
            self.set(name, value);
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON cannot represent infinities and NaN as numbers.
        let text = value.to_string();
        self.set(
            field.name(),
            if value.is_finite() {
                Value::Literal(text)
            } else {
                Value::Text(text)
            },
        );
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field.name(), Value::Literal(value.to_string()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field.name(), Value::Literal(value.to_string()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field.name(), Value::Literal(value.to_string()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field.name(), Value::Text(value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field.name(), Value::Text(format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_value_replaces_the_older_one_in_place() {
        let mut fields = Fields::default();
        for (name, value) in [("a", "1"), ("b", "2"), ("c", "3"), ("b", "4")] {
            fields.set(name, Value::Literal(value.to_owned()));
        }
        let mut newer = Fields::default();
        newer.set("a", Value::Literal("5".to_owned()));
        fields.update(newer);
        let texts: Vec<_> = fields
            .iter()
            .map(|(name, value)| format!("{name}{value:?}"))
            .collect();
        assert_eq!(texts, ["aLiteral(\"5\")", "bLiteral(\"4\")", "cLiteral(\"3\")"]);
    }
}
