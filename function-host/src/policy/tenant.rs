//! A tenant: whoever signs with its keys, and what they may do.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::Arc;

use super::deployment::DeploymentRules;
use super::error::Violation;
use super::reader::ObjectReader;
use super::repositories::{RepositoryPattern, RepositoryPatterns};
use super::reserved;
use super::urls::{UrlPattern, UrlPatterns};

/// The longest name of a tenant, in characters.
const MAX_TENANT_NAME_CHARS: usize = 63;

/// The name of a tenant: lower-case letters, digits and hyphens, so that it may be a part of other names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantName(String);

/// The error for a text that is not the name of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "should have a name of at most {MAX_TENANT_NAME_CHARS} lower-case letters, digits and hyphens, with a letter or a digit at both \
     ends"
)]
pub struct InvalidTenantName;

impl TenantName {
    /// Returns the tenant's name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TenantName {
    type Err = InvalidTenantName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let ends_well = |byte: Option<u8>| byte.is_some_and(is_word);
        let is_valid = (1..=MAX_TENANT_NAME_CHARS).contains(&text.len())
            && text.bytes().all(|byte| is_word(byte) || byte == b'-')
            && ends_well(text.bytes().next())
            && ends_well(text.bytes().next_back());
        match is_valid {
            true => Ok(Self(text.to_owned())),
            false => Err(InvalidTenantName),
        }
    }
}

impl Borrow<str> for TenantName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The network of a tenant's build steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DefaultOrNoStepNetwork {
    /// Steps have the daemon's network for steps.
    #[default]
    Default,
    /// Steps have no network.
    None,
}

/// The only sources that a tenant's builds may read, besides the repositories that they may push to, keep caches in or
/// have frontends from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedSourcesBesidesOwn {
    images: RepositoryPatterns,
    http: UrlPatterns,
    git: UrlPatterns,
}

impl AllowedSourcesBesidesOwn {
    /// Returns the patterns of the repositories whose images may be read.
    #[must_use]
    pub fn images(&self) -> &RepositoryPatterns {
        &self.images
    }

    /// Returns the patterns of the addresses from which files may be read by http or https.
    #[must_use]
    pub fn http(&self) -> &UrlPatterns {
        &self.http
    }

    /// Returns the patterns of the addresses of Git repositories that may be read.
    #[must_use]
    pub fn git(&self) -> &UrlPatterns {
        &self.git
    }
}

/// A tenant with its keys and rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    name: TenantName,
    keys: Vec<String>,
    deploy_keys: Vec<String>,
    push: Option<RepositoryPatterns>,
    cache: Option<RepositoryPatterns>,
    read: Option<AllowedSourcesBesidesOwn>,
    frontends: RepositoryPatterns,
    buildkit: Option<String>,
    network: DefaultOrNoStepNetwork,
    max_builds: Option<NonZeroUsize>,
    registry_config: Option<String>,
    pull_config: Option<String>,
    deployments: DeploymentRules,
    /// The secrets that the policy names for the platform's own use, of all tenants.
    policy_secrets: Arc<BTreeSet<String>>,
}

impl Tenant {
    /// Reads a tenant's keys and rules from its object in the policy.
    pub(super) fn read(name: TenantName, reader: &mut ObjectReader<'_>) -> Self {
        let keys = reader
            .read_list_empty_if_wrong("keys", parse_key_secret_name)
            .unwrap_or_default();
        let deploy_keys = reader
            .read_list_empty_if_wrong("deployKeys", parse_key_secret_name)
            .unwrap_or_default();
        if keys.is_empty() && deploy_keys.is_empty() {
            reader.report_problem(
                "keys",
                "should name at least one secret with a key, or deployKeys should",
            );
        }
        let repositories = |reader: &mut ObjectReader<'_>, name| {
            reader
                .read_list_empty_if_wrong(name, RepositoryPattern::parse)
                .map(RepositoryPatterns::new)
        };
        let push = repositories(reader, "push");
        let cache = repositories(reader, "cache");
        let frontends = repositories(reader, "frontends").unwrap_or_default();
        let read = reader.take_member("read").map(|json| {
            let mut reader = reader.nested_reader("read", json);
            let urls = |reader: &mut ObjectReader<'_>, name, schemes: &[&str]| {
                let list = reader.read_list_empty_if_wrong(name, |text| UrlPattern::parse(text, schemes));
                UrlPatterns::new(list.unwrap_or_default())
            };
            let rules = AllowedSourcesBesidesOwn {
                images: repositories(&mut reader, "images").unwrap_or_default(),
                http: urls(&mut reader, "http", &["https", "http"]),
                git: urls(&mut reader, "git", &["https", "http", "ssh", "git"]),
            };
            reader.report_unknown_members();
            rules
        });
        let buildkit = reader.read_text("buildkit", |text| {
            match text.starts_with("tcp://") || text.starts_with("unix://") {
                true => Ok(text.to_owned()),
                false => Err("should be the address of a daemon, unix://PATH or tcp://HOST:PORT".to_owned()),
            }
        });
        if frontends.iter().next().is_some() && buildkit.is_none() {
            reader.report_problem(
                "frontends",
                "needs a BuildKit daemon of the tenant's own (buildkit): a frontend chooses whose cache mounts it uses",
            );
        }
        let network = reader.read_text("network", |text| match text {
            "default" => Ok(DefaultOrNoStepNetwork::Default),
            "none" => Ok(DefaultOrNoStepNetwork::None),
            _ => Err("should be \"default\" or \"none\"".to_owned()),
        });
        if network == Some(DefaultOrNoStepNetwork::None) && frontends.iter().next().is_some() {
            reader.report_problem(
                "network",
                "should be \"default\" for a tenant with frontends of its own: they do not obey it",
            );
        }
        let max_builds = reader
            .read_positive_number("maxBuilds")
            .map(|number| number as usize);
        Self {
            keys,
            deploy_keys,
            push,
            cache,
            read,
            frontends,
            buildkit,
            network: network.unwrap_or_default(),
            max_builds: max_builds.and_then(NonZeroUsize::new),
            registry_config: reader.read_text("registryConfig", parse_registry_config_secret_name),
            pull_config: reader.read_text("pullConfig", parse_registry_config_secret_name),
            deployments: DeploymentRules::read(name.clone(), reader),
            policy_secrets: Arc::default(),
            name,
        }
    }

    /// Sets the names of the secrets that the policy names for the platform's own use, for all tenants.
    pub(super) fn set_secret_names_reserved_by_policy(&mut self, secrets: &Arc<BTreeSet<String>>) {
        self.policy_secrets = Arc::clone(secrets);
    }

    /// Returns the tenant's name.
    #[must_use]
    pub fn name(&self) -> &TenantName {
        &self.name
    }

    /// Returns the names of the secrets with the keys that the tenant's builds are signed with.
    #[must_use]
    pub fn key_secrets(&self) -> &[String] {
        &self.keys
    }

    /// Returns the names of the secrets with the keys of hand-overs that do not come through the builder.
    #[must_use]
    pub fn deploy_key_secrets(&self) -> &[String] {
        &self.deploy_keys
    }

    /// Returns the repositories that the tenant may push to; `None` for all.
    #[must_use]
    pub fn push_repositories_unless_unrestricted(&self) -> Option<&RepositoryPatterns> {
        self.push.as_ref()
    }

    /// Returns the repositories that the tenant may keep caches in: those of `push` unless the policy has others; `None`
    /// for all.
    #[must_use]
    pub fn cache_or_push_repositories_unless_unrestricted(&self) -> Option<&RepositoryPatterns> {
        self.cache.as_ref().or(self.push.as_ref())
    }

    /// Returns the sources that the tenant's builds may read, besides its repositories for pushes, caches and
    /// frontends; `None` for everything that is not forbidden to all.
    #[must_use]
    pub fn allowed_sources_besides_own(&self) -> Option<&AllowedSourcesBesidesOwn> {
        self.read.as_ref()
    }

    /// Returns the frontends that a Dockerfile may name, besides the built-in one. They need a daemon of the tenant's
    /// own.
    #[must_use]
    pub fn additional_frontends(&self) -> &RepositoryPatterns {
        &self.frontends
    }

    /// Returns the address of the tenant's own BuildKit daemon, as the policy has it; `None` if the tenant has none.
    #[must_use]
    pub fn own_buildkit_address(&self) -> Option<&str> {
        self.buildkit.as_deref()
    }

    /// Returns the network of the tenant's build steps.
    #[must_use]
    pub fn step_network(&self) -> DefaultOrNoStepNetwork {
        self.network
    }

    /// Returns the number of builds that the tenant may have at one builder at a time; `None` for no limit of its own.
    #[must_use]
    pub fn max_builds(&self) -> Option<NonZeroUsize> {
        self.max_builds
    }

    /// Returns the name of the secret with the only registry credentials that the tenant's builds use, a Docker
    /// `config.json`; `None` if the policy names none.
    #[must_use]
    pub fn registry_config_secret(&self) -> Option<&str> {
        self.registry_config.as_deref()
    }

    /// Returns the name of the secret with the registry credentials with which the deployer looks up the tenant's
    /// images; `None` if the policy names none.
    #[must_use]
    pub fn pull_config_secret(&self) -> Option<&str> {
        self.pull_config.as_deref()
    }

    /// Returns the rules on what the tenant may deploy.
    #[must_use]
    pub fn deployments(&self) -> &DeploymentRules {
        &self.deployments
    }

    /// Returns the names of the secrets that the platform itself uses for this tenant: with its keys and its registry
    /// credentials.
    pub fn secret_names_used_by_platform(&self) -> impl Iterator<Item = &str> {
        let keys = self.keys.iter().chain(&self.deploy_keys).map(String::as_str);
        keys.chain(self.registry_config_secret())
            .chain(self.pull_config_secret())
    }

    /// Returns whether the policy names a secret for the platform's own use, for this or another tenant.
    #[must_use]
    pub fn policy_reserves_secret(&self, name: &str) -> bool {
        self.policy_secrets.contains(name)
    }

    /// Checks that the tenant may push to a repository, given in full: `registry/path` without tag and digest.
    ///
    /// # Errors
    /// The violation of the rule `push`.
    pub fn may_push(&self, repository: &str) -> Result<(), Violation> {
        self.check_rule(
            "push",
            self.push_repositories_unless_unrestricted()
                .is_none_or(|allowed| allowed.allows(repository)),
            repository,
        )
    }

    /// Checks that the tenant may keep a cache in a repository, given in full.
    ///
    /// # Errors
    /// The violation of the rule `cache`, or of `push` where there is no `cache`.
    pub fn may_cache(&self, repository: &str) -> Result<(), Violation> {
        let rule = if self.cache.is_some() { "cache" } else { "push" };
        self.check_rule(
            rule,
            self.cache_or_push_repositories_unless_unrestricted()
                .is_none_or(|allowed| allowed.allows(repository)),
            repository,
        )
    }

    /// Checks that the tenant may read the images of a repository, given in full. The tenant's repositories for pushes,
    /// caches and frontends are allowed as well.
    ///
    /// # Errors
    /// The violation of the rule `read.images`.
    pub fn may_read_image(&self, repository: &str) -> Result<(), Violation> {
        let is_own =
            |list: &Option<RepositoryPatterns>| list.as_ref().is_some_and(|own| own.allows(repository));
        let is_allowed = self
            .read
            .as_ref()
            .is_none_or(|read| read.images.allows(repository))
            || is_own(&self.push)
            || is_own(&self.cache)
            || self.frontends.allows(repository);
        self.check_rule("read.images", is_allowed, repository)
    }

    /// Checks that the tenant may run the images of a repository, given in full: those that it may push, and those that
    /// the policy lists for reading. The provider pulls them with its own credentials.
    ///
    /// # Errors
    /// The violation of the rule `push`.
    pub fn may_run_image(&self, repository: &str) -> Result<(), Violation> {
        let is_listed = self
            .read
            .as_ref()
            .is_some_and(|read| read.images.allows(repository));
        match is_listed {
            true => Ok(()),
            false => self.may_push(repository),
        }
    }

    /// Checks that the tenant may read a file by http or https. Addresses that are forbidden to all are not checked here.
    ///
    /// # Errors
    /// The violation of the rule `read.http`.
    pub fn may_read_http(&self, url: &str) -> Result<(), Violation> {
        self.check_rule(
            "read.http",
            self.read.as_ref().is_none_or(|read| read.http.allows(url)),
            url,
        )
    }

    /// Checks that the tenant may read a Git repository. Addresses that are forbidden to all are not checked here.
    ///
    /// # Errors
    /// The violation of the rule `read.git`.
    pub fn may_read_git(&self, url: &str) -> Result<(), Violation> {
        self.check_rule(
            "read.git",
            self.read.as_ref().is_none_or(|read| read.git.allows(url)),
            url,
        )
    }

    /// Checks that the tenant's Dockerfiles may name a frontend, whose repository is given in full.
    ///
    /// # Errors
    /// The violation of the rule `frontends`.
    pub fn may_use_frontend(&self, repository: &str) -> Result<(), Violation> {
        self.check_rule("frontends", self.frontends.allows(repository), repository)
    }

    /// Fails with the violation of `rule` by `subject`, unless `is_allowed`.
    fn check_rule(&self, rule: &str, is_allowed: bool, subject: &str) -> Result<(), Violation> {
        match is_allowed {
            true => Ok(()),
            false => Err(Violation::of_rule(
                rule,
                &self.name,
                format_args!("does not allow {subject:?}"),
            )),
        }
    }
}

/// Parses the name of a secret that holds a tenant's keys; rejects the platform's own secrets except `payload-secret`.
fn parse_key_secret_name(text: &str) -> Result<String, String> {
    // The builder's own signature tells the deployer that a tenant was checked: no tenant may make it.
    if reserved::is_platform_secret(text) && text != reserved::PAYLOAD_SECRET_NAME {
        return Err("should be a secret that Slipway and the gateway do not use themselves".to_owned());
    }
    parse_secret_name(text)
}

/// Parses the name of a secret that holds registry credentials, which may be one of the platform's own.
fn parse_registry_config_secret_name(text: &str) -> Result<String, String> {
    parse_secret_name(text)
}

/// Returns the name of a secret unchanged; fails if it has other characters than lower-case letters, digits, `-` and
/// `.`.
fn parse_secret_name(text: &str) -> Result<String, String> {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    if text.is_empty() || text.starts_with('.') || !text.bytes().all(allowed) {
        return Err("should be the name of a secret".to_owned());
    }
    Ok(text.to_owned())
}
