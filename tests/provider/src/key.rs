//! The full name of a function.

use std::fmt;

use crate::error::Error;

/// The longest name; a container's id, made from it, has at most 76 characters.
const MAX_NAME: usize = 63;

/// A function's name and namespace.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) namespace: String,
}

impl Key {
    pub(crate) fn new(name: impl Into<String>, namespace: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            namespace: namespace.into(),
        }
    }

    /// Reads `name` or `name.namespace`, as they stand in a proxied path.
    pub(crate) fn from_path(name: &str, default_namespace: &str) -> Self {
        match name.rsplit_once('.') {
            Some((name, namespace)) => Self::new(name, namespace),
            None => Self::new(name, default_namespace),
        }
    }

    /// Refuses names that are no identifier for containerd, and those with a dot, which divides name and namespace.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let name = &self.name;
        let ok = name.len() <= MAX_NAME
            && name.chars().all(allowed)
            && edge(name.chars().next())
            && edge(name.chars().last())
            && !["--", "__", "-_", "_-"].iter().any(|pair| name.contains(pair));
        match ok {
            true => Ok(()),
            false => Err(Error::Invalid(format!(
                "service: {name:?} is not a valid name for a function"
            ))),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_follows_the_last_dot() {
        assert_eq!(
            Key::from_path("hello", "openfaas-fn"),
            Key::new("hello", "openfaas-fn")
        );
        assert_eq!(
            Key::from_path("hello.dev", "openfaas-fn"),
            Key::new("hello", "dev")
        );
        assert_eq!(Key::from_path("a.b.dev", "openfaas-fn"), Key::new("a.b", "dev"));
    }

    #[test]
    fn names_that_containerd_would_refuse_are_refused() {
        for name in ["hello", "hello-world", "h2", "Under_score"] {
            assert!(Key::new(name, "n").check().is_ok(), "{name}");
        }
        for name in ["", "-a", "a-", "a--b", "a.b", "a/b", "..", &"a".repeat(64)] {
            assert!(Key::new(name, "n").check().is_err(), "{name}");
        }
    }
}
