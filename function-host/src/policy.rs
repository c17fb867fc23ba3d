//! The operator's policy: the tenants that may build and deploy, each with its keys and its rules.
//!
//! builder-fn and deployer-fn read the same JSON file ([`PolicyFile`]), and ask the same [`Tenant`] whether a rule allows
//! something. `docs/settings.md#policy` describes the format. An absent list of rules allows everything, an empty one
//! nothing.
//!
//! [`ReservedNames`] has what no policy can allow: the functions and secrets of the platform itself.

mod deployment;
mod error;
mod file;
mod json;
mod keys;
mod names;
mod quantity;
mod reader;
mod repositories;
mod reserved;
mod tenant;
mod urls;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use deployment::{DeploymentRules, LimitOrReservationAmounts, RequestedFunction};
pub use error::{InvalidPolicy, PolicyFileError, Violation, Violations};
pub use file::PolicyFile;
pub use keys::KeySecretReader;
pub use names::NamePatterns;
pub use quantity::Quantity;
pub use repositories::{AllowedContinuation, RepositoryPattern, RepositoryPatterns};
pub use reserved::ReservedNames;
pub use tenant::{AllowedSourcesBesidesOwn, DefaultOrNoStepNetwork, Tenant, TenantName};
pub use urls::{UrlPattern, UrlPatterns};

use json::JsonWithUniqueMembers;
use reader::ObjectReader;

/// The highest number of secrets with keys that a policy may name. Each one is tried on a request that names no tenant.
const KEY_SECRETS_MAX: usize = 64;

/// The tenants of the platform, with their keys and rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    tenants: BTreeMap<TenantName, Arc<Tenant>>,
}

impl Policy {
    /// Parses the JSON of a policy.
    ///
    /// # Errors
    /// Fails with every problem of the policy, each with the path of its member: unknown members, wrong values, members
    /// that are given twice, and rules that would not do what they seem to say.
    pub fn parse(text: &str) -> Result<Self, InvalidPolicy> {
        let json: JsonWithUniqueMembers =
            serde_json::from_str(text).map_err(|error| InvalidPolicy::of_syntax_error(&error))?;
        let mut problems = Vec::new();
        let tenants = read_tenants(ObjectReader::new(json, &mut problems));
        if !problems.is_empty() {
            return Err(InvalidPolicy { problems });
        }
        let own_secrets = tenants
            .values()
            .flat_map(Tenant::secret_names_used_by_platform)
            .map(str::to_owned);
        let own_secrets = Arc::new(own_secrets.collect());
        let tenants = tenants.into_iter().map(|(name, mut tenant)| {
            tenant.set_secret_names_reserved_by_policy(&own_secrets);
            (name, Arc::new(tenant))
        });
        Ok(Self {
            tenants: tenants.collect(),
        })
    }

    /// Returns the tenants, in the order of their names.
    pub fn tenants(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        self.tenants.values()
    }

    /// Returns the tenant with this name, if the policy has it.
    #[must_use]
    pub fn tenant(&self, name: &str) -> Option<&Arc<Tenant>> {
        self.tenants.get(name)
    }
}

/// Reads the tenants from the policy's only member, the object `tenants`, and reports every problem to `reader`.
fn read_tenants(mut reader: ObjectReader<'_>) -> BTreeMap<TenantName, Tenant> {
    for (old, instead) in [
        ("rules", "the rules of a tenant belong to tenants.NAME"),
        (
            "keys",
            "the keys of a tenant belong to tenants.NAME.keys, and those of hand-overs to tenants.NAME.deployKeys",
        ),
    ] {
        if reader.take_member(old).is_some() {
            reader.report_problem(old, format!("is from a policy without tenants; {instead}"));
        }
    }
    let mut tenants = BTreeMap::new();
    match reader.take_member("tenants") {
        Some(JsonWithUniqueMembers::Object(members)) if !members.is_empty() => {
            for (name, value) in members {
                let mut reader = reader.nested_reader(&format!("tenants.{name}"), value);
                match name.parse::<TenantName>() {
                    Ok(name) => {
                        let tenant = Tenant::read(name.clone(), &mut reader);
                        reader.report_unknown_members();
                        tenants.insert(name, tenant);
                    }
                    Err(error) => reader.report_problem("", error.to_string()),
                }
            }
        }
        _ => reader.report_problem("tenants", "should be an object with at least one tenant"),
    }
    report_misused_or_too_many_key_secrets(&tenants, &mut reader);
    reader.report_unknown_members();
    tenants
}

/// Reports each secret with keys that has a second use, because a key must show whose request it signed; and a policy
/// that names more than [`KEY_SECRETS_MAX`] of them.
fn report_misused_or_too_many_key_secrets(
    tenants: &BTreeMap<TenantName, Tenant>,
    reader: &mut ObjectReader<'_>,
) {
    let mut owners: BTreeMap<&str, String> = BTreeMap::new();
    for (name, tenant) in tenants {
        for (list, secrets) in [
            ("keys", tenant.key_secrets()),
            ("deployKeys", tenant.deploy_key_secrets()),
        ] {
            for (at, secret) in secrets.iter().enumerate() {
                let path = format!("tenants.{name}.{list}[{at}]");
                match owners.get(secret.as_str()) {
                    Some(first) => reader.report_problem(
                        &path,
                        format!(
                            "should be another secret than {first}: a key belongs to one tenant and one use"
                        ),
                    ),
                    None => drop(owners.insert(secret, path)),
                }
            }
        }
        for (member, secret) in [
            ("registryConfig", tenant.registry_config_secret()),
            ("pullConfig", tenant.pull_config_secret()),
        ] {
            if let Some(secret) = secret
                && let Some(first) = owners.get(secret)
            {
                reader.report_problem(
                    &format!("tenants.{name}.{member}"),
                    format!("should be another secret than {first}, which holds keys"),
                );
            }
        }
    }
    if owners.len() > KEY_SECRETS_MAX {
        reader.report_problem(
            "tenants",
            format!(
                "should name at most {KEY_SECRETS_MAX} secrets with keys, not {}",
                owners.len()
            ),
        );
    }
}

#[cfg(test)]
mod tests;
