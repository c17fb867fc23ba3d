//! The errors of a policy, and its verdict on a request.

use std::fmt;
use std::path::PathBuf;

use super::tenant::TenantName;

/// The problems of a policy that is not valid, each with the path of its member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidPolicy {
    /// The problems, such as `tenants.acme.push[0] should …`.
    pub problems: Vec<String>,
}

impl InvalidPolicy {
    pub(super) fn of_syntax_error(error: &serde_json::Error) -> Self {
        Self {
            problems: vec![format!("the policy should be JSON: {error}")],
        }
    }
}

impl fmt::Display for InvalidPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("; "))
    }
}

impl std::error::Error for InvalidPolicy {}

/// The reason why a policy's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFileError {
    /// The policy's file could not be read.
    #[error("could not read the policy {}", path.display())]
    Read {
        /// The path of the policy's file.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
    /// The policy's file is larger than a policy may be.
    #[error("the policy {} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The path of the policy's file.
        path: PathBuf,
        /// The limit on the size of a policy's file, in bytes.
        limit: u64,
    },
    /// The policy's file does not have a valid policy.
    #[error("the policy {} is not valid", path.display())]
    Invalid {
        /// The path of the policy's file.
        path: PathBuf,
        /// All problems that the file's text has as a policy.
        #[source]
        source: InvalidPolicy,
    },
}

/// The largest number of violations that an error text lists; of further ones it gives the number.
const MAX_SHOWN_VIOLATIONS: usize = 20;

/// The number of characters after which the text of a violation is cut off.
const MAX_VIOLATION_CHARS: usize = 300;

/// A request's violation of one rule. The text names the rule, and is meant for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(String);

impl Violation {
    /// Creates the violation of a tenant's rule; `problem` follows the tenant's name.
    pub(super) fn of_rule(rule: &str, tenant: &TenantName, problem: impl fmt::Display) -> Self {
        Self::shortened(format!("policy rule {rule} of tenant {tenant} {problem}"))
    }

    /// Creates the violation of a rule that holds for every tenant, and without a policy.
    pub(super) fn that_no_policy_allows(problem: impl fmt::Display) -> Self {
        Self::shortened(format!("no policy allows {problem}"))
    }

    /// Shortens a text that quotes a name of the caller's, which may be long.
    fn shortened(text: String) -> Self {
        match text.char_indices().nth(MAX_VIOLATION_CHARS) {
            Some((end, _)) => Self(format!("{}…", &text[..end])),
            None => Self(text),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

/// Every violation of the rules in one request; there is at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// Fails with the violations, if there are any.
    ///
    /// # Errors
    /// The violations.
    pub fn fail_if_any(violations: Vec<Violation>) -> Result<(), Self> {
        match violations.is_empty() {
            true => Ok(()),
            false => Err(Self(violations)),
        }
    }

    /// Returns all violations of the rules, in the order in which they were found.
    pub fn iter(&self) -> impl Iterator<Item = &Violation> {
        self.0.iter()
    }
}

impl From<Violation> for Violations {
    fn from(violation: Violation) -> Self {
        Self(vec![violation])
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, violation) in self.0.iter().take(MAX_SHOWN_VIOLATIONS).enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{violation}")?;
        }
        match self.0.len().saturating_sub(MAX_SHOWN_VIOLATIONS) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl std::error::Error for Violations {}
