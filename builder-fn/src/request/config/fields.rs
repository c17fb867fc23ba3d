//! Reads the keys of a configuration one by one as JSON types. This module decides which JSON a key accepts.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use super::error::{ConfigProblem, KeyErrors, escape_and_shorten_key};

/// The keys of a configuration that have not been read yet, and the errors in those that have.
///
/// Keys are found whatever the case of their letters, as by the Go programs that wrote and read them before.
pub(super) struct ConfigFields {
    unread: Map<String, Value>,
    errors: KeyErrors,
    respelled: Vec<RespelledKey>,
}

/// A key of a configuration whose letters have another case than they should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RespelledKey {
    /// The key as the caller wrote it.
    pub(crate) given: String,
    /// The key of a build configuration that it was taken for.
    pub(crate) key: String,
}

/// The keys of a configuration that are unknown or were read in another spelling.
pub(super) struct UnreadAndRespelledKeys {
    /// The keys that this builder does not know, as the caller wrote them; they are ignored.
    pub(super) unknown: Vec<String>,
    /// The keys that were read although their letters have another case.
    pub(super) respelled: Vec<RespelledKey>,
}

impl ConfigFields {
    /// Returns the keys of `map`, none of which has been read.
    pub(super) fn new(map: Map<String, Value>) -> Self {
        Self {
            unread: map,
            errors: KeyErrors::default(),
            respelled: Vec::new(),
        }
    }

    /// Records that `key` is wrong. `problem` follows the key, as in "should be a string".
    pub(super) fn record_wrong_key(&mut self, key: impl fmt::Display, problem: impl fmt::Display) {
        self.errors.push(key, problem);
    }

    /// Returns whether `key` has a value that has not been read yet.
    pub(super) fn has_unread_key(&self, key: &str) -> bool {
        let mut found = self
            .unread
            .iter()
            .filter(|(given, _)| given.eq_ignore_ascii_case(key));
        found.any(|(_, value)| !counts_as_absent(value))
    }

    /// Removes every spelling of a key and returns its value, of any type. `null` and the empty string count as absent:
    /// Go clients write them for what they leave out.
    pub(super) fn take_unless_null_or_empty(&mut self, key: &str) -> Option<Value> {
        let read = take_every_spelling(&mut self.unread, key, key, &mut self.respelled, &mut self.errors);
        read.filter(|value| !counts_as_absent(value))
    }

    /// Reads a key with a string, and records a value of another type as an error.
    pub(super) fn read_string(&mut self, key: &str) -> Option<String> {
        match self.take_unless_null_or_empty(key)? {
            Value::String(text) => Some(text),
            _ => {
                self.record_wrong_key(key, "should be a string");
                None
            }
        }
    }

    /// Reads a key with a boolean, which is `default` if absent. A value of another type is recorded as an error.
    pub(super) fn read_flag(&mut self, key: &str, default: bool) -> bool {
        match self.take_unless_null_or_empty(key) {
            None => default,
            Some(Value::Bool(flag)) => flag,
            Some(_) => {
                self.record_wrong_key(key, "should be true or false");
                default
            }
        }
    }

    /// Reads a key with an object, and records a value of another type as an error.
    pub(super) fn read_object(&mut self, key: &str) -> Option<Map<String, Value>> {
        match self.take_unless_null_or_empty(key)? {
            Value::Object(map) => Some(map),
            _ => {
                self.record_wrong_key(key, "should be an object");
                None
            }
        }
    }

    /// Reads a key with an object whose known keys may be spelled with letters of another case. `null` counts
    /// as absent in all of the object.
    pub(super) fn read_object_with_known_keys_in_any_case(
        &mut self,
        key: &str,
        known: &[&str],
    ) -> Option<Map<String, Value>> {
        let mut given = self.read_object(key)?;
        let mut map = Map::new();
        for name in known {
            let shown = format!("{key}.{name}");
            if let Some(value) =
                take_every_spelling(&mut given, name, &shown, &mut self.respelled, &mut self.errors)
            {
                map.insert((*name).to_owned(), value);
            }
        }
        map.extend(given);
        remove_nulls(&mut map);
        Some(map)
    }

    /// Reads a key with a list of strings, and returns each string with its index.
    pub(super) fn read_strings(&mut self, key: &str) -> Vec<(usize, String)> {
        let items = match self.take_unless_null_or_empty(key) {
            None => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(_) => {
                self.record_wrong_key(key, "should be a list of strings");
                return Vec::new();
            }
        };
        let mut strings = Vec::new();
        for (at, item) in items.into_iter().enumerate() {
            match item {
                Value::Null => {}
                Value::String(text) => strings.push((at, text)),
                _ => self.record_wrong_key(format_args!("{key}[{at}]"), "should be a string"),
            }
        }
        strings
    }

    /// Reads a key with an object whose values are strings, of which empty ones are kept.
    pub(super) fn read_string_map(&mut self, key: &str) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        for (name, value) in self.read_object(key).unwrap_or_default() {
            match value {
                Value::Null => {}
                Value::String(text) => {
                    map.insert(name, text);
                }
                _ => self.record_wrong_key(
                    format_args!("{key}.{}", escape_and_shorten_key(&name)),
                    "should be a string (numbers and booleans need quotes)",
                ),
            }
        }
        map
    }

    /// Returns the keys that are unknown or were read in another spelling; fails if any key was rejected.
    ///
    /// # Errors
    /// Fails if a key was rejected.
    pub(super) fn into_unread_and_respelled_keys(self) -> Result<UnreadAndRespelledKeys, ConfigProblem> {
        match self.errors.is_empty() {
            true => Ok(UnreadAndRespelledKeys {
                unknown: self.unread.into_iter().map(|(key, _)| key).collect(),
                respelled: self.respelled,
            }),
            false => Err(self.into_problem()),
        }
    }

    /// Returns the error of the keys that were rejected.
    pub(super) fn into_problem(self) -> ConfigProblem {
        ConfigProblem::Keys(self.errors)
    }
}

/// Returns whether a JSON value counts as absent: `null` and the empty string do.
fn counts_as_absent(value: &Value) -> bool {
    value.is_null() || value.as_str() == Some("")
}

/// Removes every spelling of `key` from `map`, and returns its value. Two spellings with different values are an error.
/// `shown` is the key in errors and warnings.
fn take_every_spelling(
    map: &mut Map<String, Value>,
    key: &str,
    shown: &str,
    respelled: &mut Vec<RespelledKey>,
    errors: &mut KeyErrors,
) -> Option<Value> {
    let is_another = |given: &&String| given.eq_ignore_ascii_case(key) && *given != key;
    let others: Vec<String> = map.keys().filter(is_another).cloned().collect();
    let mut found = map.remove(key).filter(|value| !value.is_null());
    for given in others {
        let value = map.remove(&given).filter(|value| !value.is_null());
        if found.is_some() && value.is_some() && found != value {
            errors.push(
                shown,
                "is given twice, in two spellings and with different values",
            );
        }
        respelled.push(RespelledKey {
            given,
            key: shown.to_owned(),
        });
        found = found.or(value);
    }
    found
}

/// Removes `null` from an object, and from every object and list in it.
fn remove_nulls(map: &mut Map<String, Value>) {
    fn remove_nulls_in(value: &mut Value) {
        match value {
            Value::Object(map) => remove_nulls(map),
            Value::Array(items) => {
                items.retain(|item| !item.is_null());
                items.iter_mut().for_each(remove_nulls_in);
            }
            _ => {}
        }
    }
    map.retain(|_, value| !value.is_null());
    map.values_mut().for_each(remove_nulls_in);
}
