//! Takes a JSON object apart field by field and remembers every complaint, so that a caller hears all at once.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// The fields of one object that nobody has asked for yet. `null` counts as absent, as Go's clients mean it.
pub(super) struct Fields<'p> {
    path: String,
    left: Map<String, Value>,
    problems: &'p mut Vec<String>,
}

impl<'p> Fields<'p> {
    /// `path` is where the object is, for the complaints; empty for the whole document.
    pub(super) fn new(path: &str, object: Map<String, Value>, problems: &'p mut Vec<String>) -> Self {
        Self {
            path: path.to_owned(),
            left: object,
            problems,
        }
    }

    /// Remembers that something is wrong with a field.
    pub(super) fn complain(&mut self, key: &str, reason: impl AsRef<str>) {
        let name = self.name(key);
        self.problems.push(format!("{name} {}", reason.as_ref()));
    }

    /// A text; absent or wrong gives `None`, and only wrong a complaint.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        match self.take(key)? {
            Value::String(text) => Some(text),
            other => self.is_not(key, "a text", &other),
        }
    }

    /// A text that has to be there.
    pub(super) fn needed(&mut self, key: &str) -> Option<String> {
        if !self.has(key) {
            self.complain(key, "is missing");
        }
        self.text(key)
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, key: &str) -> Option<bool> {
        match self.take(key)? {
            Value::Bool(flag) => Some(flag),
            other => self.is_not(key, "true or false", &other),
        }
    }

    /// A whole number that is not negative.
    pub(super) fn number(&mut self, key: &str) -> Option<u64> {
        let value = self.take(key)?;
        match value.as_u64() {
            Some(number) => Some(number),
            None if value.is_number() => {
                self.complain(key, "must be a whole number that is not negative");
                None
            }
            None => self.is_not(key, "a number", &value),
        }
    }

    /// A list of texts, each of which has to pass `check`.
    pub(super) fn texts(&mut self, key: &str, check: impl Fn(&str) -> Result<(), String>) -> Vec<String> {
        let Some(value) = self.take(key) else {
            return Vec::new();
        };
        let Value::Array(items) = value else {
            return self.is_not(key, "a list", &value).unwrap_or_default();
        };
        let mut texts = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let key = format!("{key}[{index}]");
            match item {
                Value::String(text) => {
                    if let Err(reason) = check(&text) {
                        self.complain(&key, reason);
                    }
                    texts.push(text);
                }
                other => drop(self.is_not::<()>(&key, "a text", &other)),
            }
        }
        texts
    }

    /// An object of texts, each of whose names has to pass `check`.
    pub(super) fn map(
        &mut self,
        key: &str,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        for (name, value) in self.object(key).unwrap_or_default() {
            if let Err(reason) = check(&name) {
                self.complain(key, format!("has a name that {reason}"));
            }
            match value {
                Value::String(text) => drop(map.insert(name, text)),
                other => drop(self.is_not::<()>(&format!("{key}.{name}"), "a text", &other)),
            }
        }
        map
    }

    /// An object, to be taken apart in its turn.
    pub(super) fn object(&mut self, key: &str) -> Option<Map<String, Value>> {
        match self.take(key)? {
            Value::Object(object) => Some(object),
            other => self.is_not(key, "an object", &other),
        }
    }

    /// The fields of an object within this one.
    pub(super) fn within<T>(
        &mut self,
        key: &str,
        object: Map<String, Value>,
        read: impl FnOnce(&mut Fields<'_>) -> T,
    ) -> T {
        let mut inner = Fields::new(&self.name(key), object, self.problems);
        read(&mut inner)
    }

    /// Complains of every field that nobody asked for: a misspelt one would otherwise be lost without a word.
    pub(super) fn refuse_rest(&mut self) {
        let rest = std::mem::take(&mut self.left);
        for (key, value) in rest {
            if !value.is_null() {
                self.complain(&key, "is not a field that is known here");
            }
        }
    }

    /// The names of the fields that nobody asked for.
    pub(super) fn rest(self) -> Vec<String> {
        self.left.into_iter().map(|(key, _)| key).collect()
    }

    fn has(&self, key: &str) -> bool {
        self.left.get(key).is_some_and(|value| !value.is_null())
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.left.remove(key).filter(|value| !value.is_null())
    }

    fn is_not<T>(&mut self, key: &str, wanted: &str, found: &Value) -> Option<T> {
        let found = match found {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::String(_) => "a text",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        self.complain(key, format!("must be {wanted}, is {found}"));
        None
    }

    fn name(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }
}
