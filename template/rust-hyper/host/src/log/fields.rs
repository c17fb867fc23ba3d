//! The fields of spans and events, as far as lines care.

use std::fmt;

use tracing::field::{Field, Visit};

/// What a span or an event was given. The first field has a place of its own: a request's span has no other.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    first: Option<(&'static str, Value)>,
    others: Vec<(&'static str, Value)>,
}

/// A field's value.
#[derive(Debug)]
pub(crate) enum Value {
    Text(String),
    /// A number or truth value, written already.
    Plain(String),
}

impl Fields {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.first
            .iter()
            .chain(&self.others)
            .map(|(name, value)| (*name, value))
    }

    /// Takes a field over, in place of an older one of its name.
    pub(crate) fn put(&mut self, name: &'static str, value: Value) {
        if let Some(known) = self
            .first
            .iter_mut()
            .chain(&mut self.others)
            .find(|(known, _)| *known == name)
        {
            known.1 = value;
        } else if self.first.is_none() {
            self.first = Some((name, value));
        } else {
            self.others.push((name, value));
        }
    }

    /// Takes all fields of `newer` over.
    pub(crate) fn update(&mut self, newer: Self) {
        for (name, value) in newer.first.into_iter().chain(newer.others) {
            self.put(name, value);
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no words for the others.
        let text = value.to_string();
        self.put(
            field.name(),
            if value.is_finite() {
                Value::Plain(text)
            } else {
                Value::Text(text)
            },
        );
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), Value::Plain(value.to_string()));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), Value::Plain(value.to_string()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), Value::Plain(value.to_string()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), Value::Text(value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), Value::Text(format!("{value:?}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_value_takes_the_place_of_the_older() {
        let mut fields = Fields::default();
        for (name, value) in [("a", "1"), ("b", "2"), ("c", "3"), ("b", "4")] {
            fields.put(name, Value::Plain(value.to_owned()));
        }
        let mut newer = Fields::default();
        newer.put("a", Value::Plain("5".to_owned()));
        fields.update(newer);
        let texts: Vec<_> = fields
            .iter()
            .map(|(name, value)| format!("{name}{value:?}"))
            .collect();
        assert_eq!(texts, ["aPlain(\"5\")", "bPlain(\"4\")", "cPlain(\"3\")"]);
    }
}
