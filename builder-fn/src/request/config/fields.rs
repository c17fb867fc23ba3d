//! The keys of a configuration, read one by one as values of JSON types. Here is decided which JSON a key accepts.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use super::error::{ConfigError, KeyErrors, shown};

/// The keys that have not been read yet, and the errors in those that have.
pub(super) struct Fields {
    unread: Map<String, Value>,
    errors: KeyErrors,
}

impl Fields {
    pub(super) fn new(map: Map<String, Value>) -> Self {
        Self {
            unread: map,
            errors: KeyErrors::default(),
        }
    }

    /// Records that `key` is wrong. `problem` follows the key, as in "should be a string".
    pub(super) fn reject(&mut self, key: impl fmt::Display, problem: impl fmt::Display) {
        self.errors.push(key, problem);
    }

    /// Returns whether `key` has a value that has not been read yet.
    pub(super) fn has(&self, key: &str) -> bool {
        self.unread.get(key).is_some_and(|value| !value.is_null())
    }

    /// Reads a key of any type. `null` counts as absent.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.unread.remove(key).filter(|value| !value.is_null())
    }

    /// Reads a string.
    pub(super) fn string(&mut self, key: &str) -> Option<String> {
        match self.take(key)? {
            Value::String(text) => Some(text),
            _ => {
                self.reject(key, "should be a string");
                None
            }
        }
    }

    /// Reads a boolean, `default` when absent.
    pub(super) fn flag(&mut self, key: &str, default: bool) -> bool {
        match self.take(key) {
            None => default,
            Some(Value::Bool(flag)) => flag,
            Some(_) => {
                self.reject(key, "should be true or false");
                default
            }
        }
    }

    /// Reads an object.
    pub(super) fn object(&mut self, key: &str) -> Option<Map<String, Value>> {
        match self.take(key)? {
            Value::Object(map) => Some(map),
            _ => {
                self.reject(key, "should be an object");
                None
            }
        }
    }

    /// Reads a list of strings, each with its index.
    pub(super) fn strings(&mut self, key: &str) -> Vec<(usize, String)> {
        let items = match self.take(key) {
            None => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(_) => {
                self.reject(key, "should be a list of strings");
                return Vec::new();
            }
        };
        let mut strings = Vec::new();
        for (at, item) in items.into_iter().enumerate() {
            match item {
                Value::String(text) => strings.push((at, text)),
                _ => self.reject(format_args!("{key}[{at}]"), "should be a string"),
            }
        }
        strings
    }

    /// Reads an object whose values are strings.
    pub(super) fn string_map(&mut self, key: &str) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        for (name, value) in self.object(key).unwrap_or_default() {
            match value {
                Value::String(text) => {
                    map.insert(name, text);
                }
                _ => self.reject(
                    format_args!("{key}.{}", shown(&name)),
                    "should be a string (numbers and booleans need quotes)",
                ),
            }
        }
        map
    }

    /// Returns the names of the keys that have not been read.
    ///
    /// # Errors
    /// When a key was rejected.
    pub(super) fn finish(self) -> Result<Vec<String>, ConfigError> {
        match self.errors.is_empty() {
            true => Ok(self.unread.into_iter().map(|(key, _)| key).collect()),
            false => Err(self.into_error()),
        }
    }

    /// Returns the error of the keys that were rejected.
    pub(super) fn into_error(self) -> ConfigError {
        ConfigError::Keys(self.errors)
    }
}
