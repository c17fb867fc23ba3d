//! What a build may read: images, files from the web and git repositories.
//!
//! BuildKit asks about every source of a build before it reads it ([`SourceCheck`]). Two kinds of rules decide:
//!
//! - No build reads a file or a git repository from an address within the machine, the cluster or the cloud, nor an
//!   image from a metadata service, unless the operator opens the host ([`AllowedPrivateHosts`]).
//! - A tenant reads what its policy allows, and of that nothing that the daemon has fetched for another tenant
//!   ([`separation`]).
//!
//! An address is checked as it is written. What its name resolves to, and where its server redirects to, only the
//! daemon sees: its own network has to be closed to private addresses.

mod allowed;
mod connection;
mod host;
mod locator;
mod separation;
mod web_url;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use function_host::policy::Tenant;

use crate::buildkit::{SecretStore, SourceCheck, SourceDecision};
use crate::registry::{ImageName, OperatorRepository, RepositoryAccess};
pub use allowed::AllowedPrivateHosts;
pub(crate) use connection::ConnectionRule;
use host::Host;
use locator::{CheckableSource, GIT_SKIP_SUBMODULES_ATTRIBUTE, Url};
use separation::TenantTag;
pub(crate) use web_url::UrlRejection;
pub use web_url::{WebUrl, WebUrlError};

/// The rules for the sources of one build.
#[derive(Clone, Debug)]
pub struct SourceRules {
    /// The tenant whose build it is, if the builder has a policy.
    pub tenant: Option<Arc<Tenant>>,
    /// The hosts that builds may read from although they are private.
    pub allowed: AllowedPrivateHosts,
    /// The image of the operator's SBOM generator, which every build may read.
    pub sbom_generator: Option<String>,
    /// The repository for stored contexts, from which no build of a tenant reads images.
    pub stored_contexts: Option<OperatorRepository>,
    /// The repository for records of builds, which no build reads.
    pub records: Option<OperatorRepository>,
    /// The repository for caches, from which no build reads an image.
    pub caches: Option<OperatorRepository>,
    /// The repositories that the build may use. Each image that it may read is added.
    pub access: RepositoryAccess,
    /// The secrets of the build, with which the daemon fetches git repositories.
    pub secrets: Arc<dyn SecretStore>,
    /// Whether git repositories are read without their submodules, whose addresses they name themselves.
    pub skips_submodules: bool,
}

impl SourceCheck for SourceRules {
    fn check(&self, identifier: &str, attributes: &BTreeMap<String, String>) -> SourceDecision {
        match self.decide_source(identifier, attributes) {
            Ok(decision) => decision,
            Err(reason) => SourceDecision::Deny(reason),
        }
    }
}

impl SourceRules {
    /// Decides about a source that BuildKit asks for. Fails with the reason to deny it, a text for the caller.
    fn decide_source(
        &self,
        identifier: &str,
        attributes: &BTreeMap<String, String>,
    ) -> Result<SourceDecision, String> {
        let mut separated = attributes.clone();
        match CheckableSource::parse(identifier, attributes).map_err(|error| error.to_string())? {
            CheckableSource::Context => {}
            CheckableSource::Image(image) => self.check_image_and_allow_pull(&image)?,
            CheckableSource::Blob(image) => {
                if self.is_build_of_tenant_without_own_daemon() {
                    return Err("blobs of images need a BuildKit daemon of the tenant's own".to_owned());
                }
                self.check_image_and_allow_pull(&image)?;
            }
            CheckableSource::Http(url) => {
                self.check_host_not_private(&url)?;
                self.check_tenants_rule(|tenant| tenant.may_read_http(&url.to_string()))?;
                if let Some(tenant) = &self.tenant {
                    TenantTag::of_tenant(tenant.name()).separate_http_if_checksum(&mut separated);
                }
            }
            CheckableSource::Git { url, bundle } => {
                self.check_host_not_private(&url)?;
                self.check_tenants_rule(|tenant| tenant.may_read_git(&url.to_string()))?;
                if let Some(image) = bundle {
                    self.check_image_and_allow_pull(&image)?;
                }
                if let Some(tenant) = &self.tenant {
                    self.separate_git_and_skip_submodules_if_sources_are_listed(
                        tenant,
                        identifier,
                        &mut separated,
                    )?;
                }
                if self.skips_submodules {
                    separated.insert(GIT_SKIP_SUBMODULES_ATTRIBUTE.to_owned(), "true".to_owned());
                }
            }
        }
        Ok(match separated == *attributes {
            true => SourceDecision::Allow,
            false => SourceDecision::AllowWith(separated),
        })
    }

    fn separate_git_and_skip_submodules_if_sources_are_listed(
        &self,
        tenant: &Tenant,
        identifier: &str,
        attributes: &mut BTreeMap<String, String>,
    ) -> Result<(), String> {
        if tenant.allowed_sources_besides_own().is_some() {
            // The repository names the addresses of its submodules, and the daemon asks about none of them.
            attributes.insert(GIT_SKIP_SUBMODULES_ATTRIBUTE.to_owned(), "true".to_owned());
        }
        let named = identifier.strip_prefix("git://").unwrap_or(identifier);
        TenantTag::of_tenant(tenant.name())
            .separate_git(
                attributes,
                named,
                &*self.secrets,
                self.is_build_of_tenant_without_own_daemon(),
            )
            .map_err(|error| error.to_string())
    }

    /// Returns whether the build's daemon may serve other tenants too; `false` without a policy.
    fn is_build_of_tenant_without_own_daemon(&self) -> bool {
        self.tenant
            .as_ref()
            .is_some_and(|tenant| tenant.own_buildkit_address().is_none())
    }

    /// Fails if the build may not read `image`, and else adds its repository to those that the build may pull from.
    fn check_image_and_allow_pull(&self, image: &ImageName) -> Result<(), String> {
        let host = Host::parse_with_ipv6_in_brackets(image.host())
            .map_err(|error| format!("the registry {error}"))?;
        if host.is_metadata_or_link_local() && !self.allowed.allows_host(&host, image.port_or_443()) {
            return Err(format!(
                "no image is read from {host}, a link-local address or a metadata service, unless the builder's setting \
                 allowed_sources names it"
            ));
        }
        let stored = self.stored_contexts.as_ref();
        if self.tenant.is_some() && stored.is_some_and(|stored| stored.is_or_contains(image)) {
            return Err(format!(
                "{image} is a repository for stored contexts, which only \"context\" of a request may refer to"
            ));
        }
        if self
            .records
            .as_ref()
            .is_some_and(|records| records.is_or_contains(image))
        {
            return Err(format!(
                "{image} is the builder's repository for records of builds, which no build reads"
            ));
        }
        if self
            .caches
            .as_ref()
            .is_some_and(|caches| caches.is_or_contains(image))
        {
            return Err(format!(
                "{image} is the builder's repository for caches, which no build names"
            ));
        }
        let is_generator = self
            .sbom_generator
            .as_deref()
            .and_then(ImageName::parse_with_registry)
            .is_some_and(|generator| generator == *image);
        if !is_generator {
            self.check_tenants_rule(|tenant| tenant.may_read_image(&image.to_string()))?;
        }
        self.access.allow_pull(image.clone());
        Ok(())
    }

    /// Fails if the host of `url` is private and not one of [`AllowedPrivateHosts`].
    fn check_host_not_private(&self, url: &Url) -> Result<(), String> {
        match url.host.private_kind() {
            Some(kind) if !self.allowed.allows_host(&url.host, url.port()) => Err(format!(
                "{} is {kind}, from which no build reads, unless the builder's setting allowed_sources names it",
                url.host
            )),
            _ => Ok(()),
        }
    }

    /// Fails with the violation of the tenant's rule that `may` checks. Without a policy there is no rule to violate.
    fn check_tenants_rule<V: fmt::Display>(
        &self,
        may: impl FnOnce(&Tenant) -> Result<(), V>,
    ) -> Result<(), String> {
        match &self.tenant {
            Some(tenant) => may(tenant).map_err(|violation| violation.to_string()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
