//! The name and namespace of a function.

use std::fmt;

use crate::error::ProviderError;

/// The longest name of a function, in characters. A container's id is made from it and has at most 76
/// characters.
const FUNCTION_NAME_MAX_CHARS: usize = 63;

/// The name and namespace that identify a function.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct FunctionKey {
    pub(crate) name: String,
    pub(crate) namespace: String,
}

impl FunctionKey {
    pub(crate) fn new(name: impl Into<String>, namespace: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            namespace: namespace.into(),
        }
    }

    /// Parses a function's key from its name in the path of a call: `name` or `name.namespace`.
    pub(crate) fn from_name_in_path(name: &str, default_namespace: &str) -> Self {
        match name.rsplit_once('.') {
            Some((name, namespace)) => Self::new(name, namespace),
            None => Self::new(name, default_namespace),
        }
    }

    /// Fails if the function's name is not a valid identifier for containerd, or has a dot, which separates
    /// name and namespace.
    pub(crate) fn check_name_is_short_dotless_identifier(&self) -> Result<(), ProviderError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let name = &self.name;
        let ok = name.len() <= FUNCTION_NAME_MAX_CHARS
            && name.chars().all(allowed)
            && edge(name.chars().next())
            && edge(name.chars().last())
            && !["--", "__", "-_", "_-"].iter().any(|pair| name.contains(pair));
        match ok {
            true => Ok(()),
            false => Err(ProviderError::Invalid(format!(
                "service: {name:?} is not a valid function name; use at most {FUNCTION_NAME_MAX_CHARS} letters, digits, and single - or _ \
                 between them"
            ))),
        }
    }
}

impl fmt::Display for FunctionKey {
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
            FunctionKey::from_name_in_path("hello", "openfaas-fn"),
            FunctionKey::new("hello", "openfaas-fn")
        );
        assert_eq!(
            FunctionKey::from_name_in_path("hello.dev", "openfaas-fn"),
            FunctionKey::new("hello", "dev")
        );
        assert_eq!(
            FunctionKey::from_name_in_path("a.b.dev", "openfaas-fn"),
            FunctionKey::new("a.b", "dev")
        );
    }

    #[test]
    fn function_names_that_are_malformed_too_long_or_have_a_dot_are_rejected() {
        for name in ["hello", "hello-world", "h2", "Under_score"] {
            assert!(
                FunctionKey::new(name, "n")
                    .check_name_is_short_dotless_identifier()
                    .is_ok(),
                "{name}"
            );
        }
        for name in ["", "-a", "a-", "a--b", "a.b", "a/b", "..", &"a".repeat(64)] {
            assert!(
                FunctionKey::new(name, "n")
                    .check_name_is_short_dotless_identifier()
                    .is_err(),
                "{name}"
            );
        }
    }
}
