//! The fields of `tracing` spans and events in the log.

use std::fmt;

use tracing::field::{Field, Visit};

/// The fields of a `tracing` span or event. The first one is stored inline, because the span of a request has
/// only one.
#[derive(Debug, Default)]
pub(crate) struct LogFields {
    first: Option<(&'static str, FieldValue)>,
    others: Vec<(&'static str, FieldValue)>,
}

/// The value of a `tracing` field in the log.
#[derive(Debug)]
pub(crate) enum FieldValue {
    Text(String),
    /// A number or boolean, formatted for the log line.
    Literal(String),
}

impl LogFields {
    /// Returns the names and values of the fields in the order in which they were added.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &FieldValue)> {
        self.first
            .iter()
            .chain(&self.others)
            .map(|(name, value)| (*name, value))
    }

    /// Sets a field of the span or event, replacing one with the same name.
    pub(crate) fn set_field(&mut self, name: &'static str, value: FieldValue) {
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

    /// Moves all fields of `newer` into these fields, replacing those with the same names.
    pub(crate) fn set_all_fields(&mut self, newer: Self) {
        for (name, value) in newer.first.into_iter().chain(newer.others) {
            self.set_field(name, value);
        }
    }
}

impl Visit for LogFields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON cannot represent infinities and NaN as numbers.
        let text = value.to_string();
        self.set_field(
            field.name(),
            if value.is_finite() {
                FieldValue::Literal(text)
            } else {
                FieldValue::Text(text)
            },
        );
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set_field(field.name(), FieldValue::Literal(value.to_string()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set_field(field.name(), FieldValue::Literal(value.to_string()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set_field(field.name(), FieldValue::Literal(value.to_string()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set_field(field.name(), FieldValue::Text(value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set_field(field.name(), FieldValue::Text(format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fields_newer_value_replaces_the_older_one_in_place() {
        let mut fields = LogFields::default();
        for (name, value) in [("a", "1"), ("b", "2"), ("c", "3"), ("b", "4")] {
            fields.set_field(name, FieldValue::Literal(value.to_owned()));
        }
        let mut newer = LogFields::default();
        newer.set_field("a", FieldValue::Literal("5".to_owned()));
        fields.set_all_fields(newer);
        let texts: Vec<_> = fields
            .iter()
            .map(|(name, value)| format!("{name}{value:?}"))
            .collect();
        assert_eq!(texts, ["aLiteral(\"5\")", "bLiteral(\"4\")", "cLiteral(\"3\")"]);
    }
}
