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
    pub(super) fn syntax(error: &serde_json::Error) -> Self {
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
        /// The path of the file.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
    /// The policy's file is larger than a policy may be.
    #[error("the policy {} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The path of the file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// The policy's file does not have a valid policy.
    #[error("the policy {} is not valid", path.display())]
    Invalid {
        /// The path of the file.
        path: PathBuf,
        /// The problems of the policy.
        #[source]
        source: InvalidPolicy,
    },
}

/// A request's violation of one rule. The text names the rule, and is meant for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(String);

impl Violation {
    /// Creates the violation of a tenant's rule; `problem` follows the tenant's name.
    pub(super) fn of_rule(rule: &str, tenant: &TenantName, problem: impl fmt::Display) -> Self {
        Self(format!("policy rule {rule} of tenant {tenant} {problem}"))
    }

    /// Creates the violation of a rule that holds for every tenant, and without a policy.
    pub(super) fn of_platform(problem: impl fmt::Display) -> Self {
        Self(format!("no policy allows {problem}"))
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}
