//! The names that no deployment may use, whatever the policy says: those of the platform's own functions and secrets.

use std::collections::BTreeSet;

use super::deployment::{RequestedFunction, SERVICE_ACCOUNT_ANNOTATION};
use super::error::Violation;
use super::tenant::Tenant;
use crate::env::SettingsParser;

/// The name of the secret that builds are signed with where no policy names others.
pub(super) const PAYLOAD_SECRET_NAME: &str = "payload-secret";

/// The names of Slipway's own functions.
const SLIPWAY_FUNCTIONS: [&str; 2] = ["builder-fn", "deployer-fn"];

/// The names of secrets that Slipway uses, or that hold credentials of the gateway and of OpenFaaS itself.
const PLATFORM_SECRETS: [&str; 15] = [
    PAYLOAD_SECRET_NAME,
    "deploy-secret",
    "registry-config",
    "registry-pull-config",
    "buildkit-ca",
    "buildkit-cert",
    "buildkit-key",
    "build-secrets-key",
    "basic-auth-user",
    "basic-auth-password",
    "basic-auth",
    "gateway-token",
    "gateway-ca",
    "otel-headers",
    "openfaas-license",
];

/// The beginning of the names of secrets in which Helm keeps releases, with all that was installed: Helm
/// `pkg/storage/storage.go`.
const HELM_RELEASE_SECRET_PREFIX: &str = "sh.helm.release.";

/// The label by which faas-netes finds the replicas of a function.
const FAAS_NETES_FUNCTION_LABEL: &str = "faas_function";

/// Returns whether a secret with this name is reserved for the platform whatever the settings and the policy.
pub(super) fn is_platform_secret(secret_name: &str) -> bool {
    PLATFORM_SECRETS.contains(&secret_name) || secret_name.starts_with(HELM_RELEASE_SECRET_PREFIX)
}

/// The names of functions and secrets that no deployment may use, with or without a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservedNames {
    functions: BTreeSet<String>,
    secrets: BTreeSet<String>,
}

impl Default for ReservedNames {
    fn default() -> Self {
        Self {
            functions: SLIPWAY_FUNCTIONS.map(str::to_owned).into(),
            secrets: PLATFORM_SECRETS.map(str::to_owned).into(),
        }
    }
}

impl ReservedNames {
    /// Reads the settings `protected_functions` and `protected_secrets`, whose names are added to those that are always
    /// reserved.
    pub fn built_in_and_from_settings(parser: &mut SettingsParser<'_>) -> Self {
        let mut reserved = Self::default();
        reserved
            .functions
            .extend(read_lower_case_name_list(parser, "protected_functions"));
        reserved
            .secrets
            .extend(read_lower_case_name_list(parser, "protected_secrets"));
        reserved
    }

    /// Reserves the name of a function, `NAME` or `NAME.NAMESPACE`, in every namespace.
    pub fn reserve_function_in_every_namespace(&mut self, name: &str) {
        self.functions.insert(lower_case_name_without_namespace(name));
    }

    /// Reserves the name of a secret, which no function may use then.
    pub fn reserve_secret(&mut self, name: &str) {
        self.secrets.insert(name.to_owned());
    }

    /// Fails if a function's name, with or without a namespace behind a dot, is reserved.
    ///
    /// # Errors
    /// The violation, if the name is reserved.
    pub fn check_function_name_not_reserved(&self, name: &str) -> Result<(), Violation> {
        match self.functions.contains(&lower_case_name_without_namespace(name)) {
            true => Err(Violation::that_no_policy_allows(format_args!(
                "deploying a function under the name {name:?}, which is the platform's own"
            ))),
            false => Ok(()),
        }
    }

    /// Fails if a secret is reserved, so that no function may use it. The policy of `tenant` reserves further secrets.
    ///
    /// # Errors
    /// The violation, if the secret is reserved.
    pub fn check_secret_not_reserved(&self, name: &str, tenant: Option<&Tenant>) -> Result<(), Violation> {
        let is_of_policy = tenant.is_some_and(|tenant| tenant.policy_reserves_secret(name));
        match self.secrets.contains(name) || is_platform_secret(name) || is_of_policy {
            true => Err(Violation::that_no_policy_allows(format_args!(
                "a function to use the secret {name:?}, which is the platform's own"
            ))),
            false => Ok(()),
        }
    }

    /// Returns a violation for every reserved name that a function uses, as its own name, as a secret or as its service
    /// account, and for the label by which the provider finds replicas.
    #[must_use]
    pub fn violations(&self, function: &RequestedFunction<'_>, tenant: Option<&Tenant>) -> Vec<Violation> {
        let name = self.check_function_name_not_reserved(function.name).err();
        let secrets = function.secrets.iter();
        let secrets = secrets.filter_map(|secret| self.check_secret_not_reserved(secret, tenant).err());
        let account = function.annotations.get(SERVICE_ACCOUNT_ANNOTATION);
        let account = account.filter(|account| {
            self.functions
                .contains(&lower_case_name_without_namespace(account))
        });
        let account = account.map(|account| {
            Violation::that_no_policy_allows(format_args!(
                "a function to use the service account {account:?}, which is the platform's own"
            ))
        });
        // The provider finds a function's replicas by this label.
        let label = function.labels.contains_key(FAAS_NETES_FUNCTION_LABEL);
        let label = label.then(|| {
            Violation::that_no_policy_allows(format_args!(
                "a function to set the label {FAAS_NETES_FUNCTION_LABEL:?}"
            ))
        });
        name.into_iter()
            .chain(secrets)
            .chain(account)
            .chain(label)
            .collect()
    }
}

/// Returns the name of a function in lower case, without the namespace that callers of a function write behind it.
fn lower_case_name_without_namespace(name: &str) -> String {
    let name = name.trim().split('.').next().unwrap_or_default();
    name.to_ascii_lowercase()
}

/// Reads a setting with names that are separated by commas or blanks, and converts them to lower case. Other
/// characters than letters, digits, `-` and `.` in a name are a problem of the setting.
fn read_lower_case_name_list(parser: &mut SettingsParser<'_>, setting: &str) -> Vec<String> {
    parser.parse_or_default(setting, Vec::new(), |text| {
        let names = text.split(|c: char| c == ',' || c.is_whitespace());
        let names: Vec<String> = names
            .filter(|name| !name.is_empty())
            .map(str::to_lowercase)
            .collect();
        let allowed =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        match names.iter().all(|name| name.bytes().all(allowed)) {
            true => Ok(names),
            false => Err("should be names, separated by commas"),
        }
    })
}
