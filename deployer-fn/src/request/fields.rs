//! Reads the fields of a JSON object one by one and collects all problems, so that a caller sees them at once.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// The problems and warnings that were collected while the fields of a document were read.
#[derive(Debug, Default)]
pub(super) struct ProblemsAndWarnings {
    /// The problems for which the document is rejected.
    pub(super) problems: Vec<String>,
    /// The warnings about fields that are ignored, or read in another way than they are written.
    pub(super) warnings: Vec<String>,
}

/// A reader of the fields of a JSON object, which holds those that were not read yet. `null` counts as absent, also
/// within maps and lists. Names match whatever their case, as in Go, where no other field has the exact name.
pub(super) struct JsonFieldReader<'p> {
    path: String,
    unread: Map<String, Value>,
    remarks: &'p mut ProblemsAndWarnings,
}

impl<'p> JsonFieldReader<'p> {
    /// Creates a reader for the fields of the object at `path`, which is empty for the whole document.
    pub(super) fn new(path: &str, object: Map<String, Value>, remarks: &'p mut ProblemsAndWarnings) -> Self {
        Self {
            path: path.to_owned(),
            unread: object,
            remarks,
        }
    }

    /// Adds a problem with a field: the rest of a sentence that begins with the field's name.
    pub(super) fn add_problem(&mut self, key: &str, problem: impl AsRef<str>) {
        let name = self.full_field_name(key);
        self.remarks.problems.push(format!("{name} {}", problem.as_ref()));
    }

    /// Adds a warning about a field: the rest of a sentence that begins with the field's name.
    fn add_warning(&mut self, key: &str, warning: impl AsRef<str>) {
        let name = self.full_field_name(key);
        self.remarks.warnings.push(format!("{name} {}", warning.as_ref()));
    }

    /// Ignores a field, and adds a warning with `reason` if the document has it and it is not empty.
    pub(super) fn ignore_field_with_warning(&mut self, key: &str, reason: &str) {
        if self.take_non_null_field(key).is_some_and(|value| value != "") {
            self.add_warning(key, format!("is ignored: {reason}"));
        }
    }

    /// Reads a string field. Returns `None` if it is absent, and reports a value of another type.
    pub(super) fn read_possibly_empty_string(&mut self, key: &str) -> Option<String> {
        match self.take_non_null_field(key)? {
            Value::String(text) => Some(text),
            other => self.report_wrong_type_and_return_none(key, "a string", &other),
        }
    }

    /// Reads a string field. Returns `None` and reports a problem if it is absent or has another type.
    pub(super) fn read_required_possibly_empty_string(&mut self, key: &str) -> Option<String> {
        if !self.has_unread_non_null_field(key) {
            self.add_problem(key, "is missing");
        }
        self.read_possibly_empty_string(key)
    }

    /// Reads a field that is `true` or `false`. Returns `None` if it is absent, and reports a value of another type.
    pub(super) fn read_boolean(&mut self, key: &str) -> Option<bool> {
        match self.take_non_null_field(key)? {
            Value::Bool(flag) => Some(flag),
            other => self.report_wrong_type_and_return_none(key, "true or false", &other),
        }
    }

    /// Reads a field with a whole number that is not negative. Returns `None` if it is absent, and reports another
    /// value.
    pub(super) fn read_whole_number(&mut self, key: &str) -> Option<u64> {
        let value = self.take_non_null_field(key)?;
        match value.as_u64() {
            Some(number) => Some(number),
            None if value.is_number() => {
                self.add_problem(key, "must be a whole number of at least 0");
                None
            }
            None => self.report_wrong_type_and_return_none(key, "a number", &value),
        }
    }

    /// Reads a field with an array of strings, and reports other items and the strings that fail `check`. Returns an
    /// empty list if the field is absent.
    pub(super) fn read_strings_reporting_invalid(
        &mut self,
        key: &str,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Vec<String> {
        let Some(value) = self.take_non_null_field(key) else {
            return Vec::new();
        };
        let Value::Array(items) = value else {
            return self
                .report_wrong_type_and_return_none(key, "an array", &value)
                .unwrap_or_default();
        };
        let mut strings = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let key = format!("{key}[{index}]");
            match item {
                Value::String(text) => {
                    if let Err(problem) = check(&text) {
                        self.add_problem(&key, problem);
                    }
                    strings.push(text);
                }
                Value::Null => {}
                other => drop(self.report_wrong_type_and_return_none::<()>(&key, "a string", &other)),
            }
        }
        strings
    }

    /// Reads a field with an object of strings, and reports other values and the names that fail `check`. Returns an
    /// empty map if the field is absent.
    pub(super) fn read_string_map_reporting_invalid_names(
        &mut self,
        key: &str,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        for (name, value) in self.read_object(key).unwrap_or_default() {
            if value.is_null() {
                continue;
            }
            if let Err(problem) = check(&name) {
                self.add_problem(key, format!("has a name that {problem}"));
            }
            match value {
                Value::String(text) => drop(map.insert(name, text)),
                other => drop(self.report_wrong_type_and_return_none::<()>(
                    &format!("{key}.{name}"),
                    "a string",
                    &other,
                )),
            }
        }
        map
    }

    /// Reads a field with an object, whose own fields are then read with
    /// [`read_nested_fields`](Self::read_nested_fields).
    pub(super) fn read_object(&mut self, key: &str) -> Option<Map<String, Value>> {
        match self.take_non_null_field(key)? {
            Value::Object(object) => Some(object),
            other => self.report_wrong_type_and_return_none(key, "an object", &other),
        }
    }

    /// Reads a field with an object, and reports its absence.
    pub(super) fn read_required_object(&mut self, key: &str) -> Option<Map<String, Value>> {
        if !self.has_unread_non_null_field(key) {
            self.add_problem(key, "is missing");
        }
        self.read_object(key)
    }

    /// Calls `read` with a reader of the fields of a nested object, and returns its result. `read` has to report the
    /// fields that it leaves unread.
    pub(super) fn read_nested_fields<T>(
        &mut self,
        key: &str,
        object: Map<String, Value>,
        read: impl FnOnce(&mut JsonFieldReader<'_>) -> T,
    ) -> T {
        let mut inner = JsonFieldReader::new(&self.full_field_name(key), object, self.remarks);
        read(&mut inner)
    }

    /// Reports every field that was not read: a misspelt one would otherwise be ignored silently.
    pub(super) fn report_unread_fields_as_problems(&mut self) {
        let unread = std::mem::take(&mut self.unread);
        for (key, value) in unread {
            if !value.is_null() {
                self.add_problem(&key, "is not a known field");
            }
        }
    }

    /// Ignores the fields that were not read, and adds a warning for each: a newer builder may send them.
    pub(super) fn ignore_unread_fields_with_warnings(mut self) {
        for key in std::mem::take(&mut self.unread).keys() {
            self.add_warning(key, "is not a known field, and is ignored");
        }
    }

    /// Returns whether the document has a field.
    fn has_unread_non_null_field(&self, key: &str) -> bool {
        let value = self
            .spelling_in_document(key)
            .and_then(|name| self.unread.get(&name));
        value.is_some_and(|value| !value.is_null())
    }

    /// Removes a field and returns its value; `None` if it is absent or `null`.
    fn take_non_null_field(&mut self, key: &str) -> Option<Value> {
        let name = self.spelling_in_document(key)?;
        let value = self.unread.remove(&name).filter(|value| !value.is_null())?;
        if name != key {
            self.add_warning(&name, format!("is read as {key}"));
        }
        Some(value)
    }

    /// Returns the name of a field as the document writes it: exactly, or else with letters of another case.
    fn spelling_in_document(&self, key: &str) -> Option<String> {
        if self.unread.contains_key(key) {
            return Some(key.to_owned());
        }
        self.unread
            .keys()
            .find(|name| name.eq_ignore_ascii_case(key))
            .cloned()
    }

    /// Reports that a field has a value of the wrong type, and returns `None`.
    fn report_wrong_type_and_return_none<T>(
        &mut self,
        key: &str,
        expected: &str,
        found: &Value,
    ) -> Option<T> {
        let found = match found {
            Value::Null => "null",
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
            Value::Object(_) => "an object",
        };
        self.add_problem(key, format!("must be {expected}, is {found}"));
        None
    }

    /// Returns a field's name with the path of its object.
    fn full_field_name(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }
}
