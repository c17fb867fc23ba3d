//! Lists of allowed names, in which `*` at the end of an entry matches any end.

/// A rule's list of allowed names: of functions, namespaces, secrets, environment variables, labels, annotations or
/// constraints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamePatterns(Vec<String>);

impl NamePatterns {
    pub(super) fn new(patterns: Vec<String>) -> Self {
        Self(patterns)
    }

    /// Returns an entry of a list of allowed names unchanged; fails if it is empty, or has white space or a `*` before
    /// its end.
    pub(super) fn check_name_pattern(text: &str) -> Result<String, String> {
        let (name, _) = text.split_once('*').unwrap_or((text, ""));
        if text.is_empty() || text.len() > name.len() + 1 || text.chars().any(char::is_whitespace) {
            return Err("should be a name, with \"*\" only at its end".to_owned());
        }
        Ok(text.to_owned())
    }

    /// Returns whether the name equals an entry, or begins with an entry that ends in `*`.
    #[must_use]
    pub fn allows(&self, name: &str) -> bool {
        self.0.iter().any(|entry| match entry.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => entry == name,
        })
    }

    /// Returns the name patterns as they were written in the policy.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}
