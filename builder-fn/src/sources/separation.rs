//! The separation of what a BuildKit daemon has fetched for the tenants that share it.
//!
//! The daemon finds again what it fetched before, whoever asks (BuildKit `source/git/source.go`,
//! `source/http/source.go`):
//!
//! - the checkout of a git repository by its commit and folder, without the address (`shaToCacheKey`);
//! - the commits of a git repository by its address, without the token that they were fetched with (`mountRemote`). It
//!   asks the server nothing if it has the commit that is named;
//! - a file from the web with a checksum by name and checksum, without the address (`formatCacheKey`).
//!
//! Each of these keys has a part that the answer to the daemon's question may change. That part gets the tag of the
//! tenant.

use std::collections::BTreeMap;

use function_host::policy::TenantName;
use sha2::{Digest, Sha256};

use super::locator::{GIT_BUNDLE_ATTRIBUTE, GIT_FULL_URL_ATTRIBUTE};
use crate::buildkit::SecretStore;

/// The attribute with the policy for modification times in a checkout, which is part of the checkout's key. BuildKit
/// treats every value but `commit` alike.
const GIT_MTIME_ATTRIBUTE: &str = "git.mtime";
/// The value of [`GIT_MTIME_ATTRIBUTE`] for the time of the checkout, which is the default.
const MTIME_OF_CHECKOUT: &str = "checkout";
/// The value of [`GIT_MTIME_ATTRIBUTE`] for the time of the commit.
const MTIME_OF_COMMIT: &str = "commit";
/// The attributes with the names of the secrets that git sends to the server. A secret with the name, a dot and the
/// host comes first.
const GIT_SECRET_ATTRIBUTES: [&str; 2] = ["git.authtokensecret", "git.authheadersecret"];
/// The attribute with the checksum of a file from the web.
const HTTP_CHECKSUM_ATTRIBUTE: &str = "http.checksum";
/// The attribute with the `User-Agent` of a request, which is part of the file's key. BuildKit ignores its case.
const HTTP_USER_AGENT_ATTRIBUTE: &str = "http.header.user-agent";

/// The start of every tag.
const TAG_PREFIX: &str = "slipway-";
/// The text that precedes a tenant's name in the input from which the tenant's tag is derived.
const TAG_DERIVATION_PREFIX: &str = "slipway: tag for the fetched sources of the tenant ";
/// The length of the digest in a tag, in bytes.
const TAG_DIGEST_BYTES: usize = 16;

/// The reason for rejecting a source that cannot be kept apart from those of other tenants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SeparationError {
    /// The checkout has the times of the commit, so its key has no room for a tag.
    #[error(
        "{MTIME_OF_COMMIT:?} as the time of a git repository's files needs a BuildKit daemon of the tenant's own"
    )]
    CommitTimes,
    /// The commits come from a bundle, which the daemon finds by its digest alone.
    #[error("bundles of git repositories need a BuildKit daemon of the tenant's own")]
    Bundle,
    /// The address has a user name like those that tell tenants apart.
    #[error(
        "the user name in the address of a git repository should not start with {TAG_PREFIX:?}, nor have encoded characters \
         without a password"
    )]
    UserName,
}

/// The tag of a tenant in the daemon's keys for fetched sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TenantTag(String);

impl TenantTag {
    /// Derives the tag of a tenant. Servers see it, and not the tenant's name.
    pub(super) fn of_tenant(tenant: &TenantName) -> Self {
        let digest = Sha256::digest(format!("{TAG_DERIVATION_PREFIX}{tenant}"));
        let digest: String = hex::encode(digest).chars().take(2 * TAG_DIGEST_BYTES).collect();
        Self(format!("{TAG_PREFIX}{digest}"))
    }

    /// Changes the attributes of a git repository so that neither its checkout nor its commits are another tenant's.
    /// `identifier_without_scheme` is that of BuildKit, and `secrets` are those of the build.
    ///
    /// # Errors
    /// Fails if the user name in the address could be the tag of a tenant, or if the daemon is shared and the
    /// attributes leave no room for the tag.
    pub(super) fn separate_git(
        &self,
        attributes: &mut BTreeMap<String, String>,
        identifier_without_scheme: &str,
        secrets: &dyn SecretStore,
        is_daemon_shared: bool,
    ) -> Result<(), SeparationError> {
        if is_daemon_shared && attributes.contains_key(GIT_BUNDLE_ATTRIBUTE) {
            return Err(SeparationError::Bundle);
        }
        let mtime = attributes.get(GIT_MTIME_ATTRIBUTE).map(String::as_str);
        match mtime {
            Some(MTIME_OF_COMMIT) if is_daemon_shared => return Err(SeparationError::CommitTimes),
            Some(MTIME_OF_COMMIT) => {}
            _ => {
                let tagged = format!("{MTIME_OF_CHECKOUT}-{}", self.0);
                attributes.insert(GIT_MTIME_ATTRIBUTE.to_owned(), tagged);
            }
        }
        self.separate_git_remote(attributes, identifier_without_scheme, secrets)
    }

    /// Changes the address of a git repository that is fetched with a secret: the address with the user name stands for
    /// the secret. An address with a password stands for that password, so no secret is sent to it.
    fn separate_git_remote(
        &self,
        attributes: &mut BTreeMap<String, String>,
        identifier_without_scheme: &str,
        secrets: &dyn SecretStore,
    ) -> Result<(), SeparationError> {
        let full = attributes.get(GIT_FULL_URL_ATTRIBUTE).cloned();
        let full = full.unwrap_or_else(|| format!("https://{}", without_fragment(identifier_without_scheme)));
        let Some((scheme, rest)) = full.split_once("://") else {
            // SSH knows no tokens, and the session serves no keys for it.
            return Ok(());
        };
        if !["http", "https"].contains(&scheme.to_ascii_lowercase().as_str()) {
            return Ok(());
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (user, host) = authority.split_once('@').unwrap_or(("", authority));
        let (user, password) = user.split_once(':').unwrap_or((user, ""));
        if !password.is_empty() {
            attributes.retain(|name, _| !GIT_SECRET_ATTRIBUTES.contains(&name.as_str()));
            return Ok(());
        }
        let is_own = user == self.0;
        if !is_own && (user.starts_with(TAG_PREFIX) || user.contains('%')) {
            return Err(SeparationError::UserName);
        }
        let names = GIT_SECRET_ATTRIBUTES
            .iter()
            .filter_map(|name| attributes.get(*name));
        let has_secret = names.into_iter().any(|name| {
            secrets.secret(name).is_some() || secrets.secret(&format!("{name}.{host}")).is_some()
        });
        match (has_secret, is_own) {
            (true, _) => {
                let tagged = format!("{scheme}://{}@{host}{path}", self.0);
                attributes.insert(GIT_FULL_URL_ATTRIBUTE.to_owned(), tagged);
                Ok(())
            }
            (false, true) => Err(SeparationError::UserName),
            (false, false) => Ok(()),
        }
    }

    /// Changes the attributes of a file from the web so that, with a checksum, it is not found for another tenant.
    pub(super) fn separate_http_if_checksum(&self, attributes: &mut BTreeMap<String, String>) {
        if attributes.contains_key(HTTP_CHECKSUM_ATTRIBUTE) {
            attributes.retain(|name, _| !name.eq_ignore_ascii_case(HTTP_USER_AGENT_ATTRIBUTE));
            attributes.insert(HTTP_USER_AGENT_ATTRIBUTE.to_owned(), self.0.clone());
        }
    }
}

fn without_fragment(identifier: &str) -> &str {
    identifier.split_once('#').map_or(identifier, |(named, _)| named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buildkit::NamedSecretsWithValueX;

    const NO_SECRETS: NamedSecretsWithValueX = NamedSecretsWithValueX(&[]);
    const WITH_GIT_TOKEN: NamedSecretsWithValueX = NamedSecretsWithValueX(&["GIT_AUTH_TOKEN"]);

    fn tag(name: &str) -> TenantTag {
        TenantTag::of_tenant(&name.parse().expect("name"))
    }

    fn git_attributes(more_attributes: &[(&str, &str)]) -> BTreeMap<String, String> {
        let defaults = [
            ("git.authtokensecret", "GIT_AUTH_TOKEN"),
            ("git.authheadersecret", "GIT_AUTH_HEADER"),
        ];
        let all = defaults.iter().chain(more_attributes);
        all.map(|(name, value)| (name.to_string(), value.to_string()))
            .collect()
    }

    fn separate(
        tenant: &str,
        more_attributes: &[(&str, &str)],
        secrets: &NamedSecretsWithValueX,
    ) -> Result<BTreeMap<String, String>, SeparationError> {
        let mut attributes = git_attributes(more_attributes);
        tag(tenant).separate_git(&mut attributes, "example.com/a.git#main:b", secrets, true)?;
        Ok(attributes)
    }

    fn separated_url(tenant: &str, url: &str, secrets: &NamedSecretsWithValueX) -> String {
        separate(tenant, &[("git.fullurl", url)], secrets).expect(url)["git.fullurl"].clone()
    }

    #[test]
    fn each_tenant_has_checkouts_of_its_own() {
        let mtime =
            |tenant, more: &[_]| separate(tenant, more, &NO_SECRETS).expect("git")["git.mtime"].clone();
        let acme = mtime("acme", &[]);
        assert!(acme.starts_with("checkout-slipway-"), "{acme}");
        assert_ne!(acme, mtime("globex", &[]));
        for given in ["", "checkout", &*acme, &mtime("globex", &[]), "anything"] {
            assert_eq!(mtime("acme", &[("git.mtime", given)]), acme, "{given}");
        }
    }

    #[test]
    fn an_address_that_is_read_with_a_token_has_the_tag_of_the_tenant() {
        let TenantTag(acme) = tag("acme");
        for (url, expected) in [
            ("https://example.com/a.git", "example.com/a.git"),
            ("HTTPS://Example.com:8443/a.git", "Example.com:8443/a.git"),
            ("https://git@example.com/a.git", "example.com/a.git"),
            ("https://git:@example.com/a.git", "example.com/a.git"),
        ] {
            let scheme = &url[..url.find(':').unwrap()];
            let expected = format!("{scheme}://{acme}@{expected}");
            assert_eq!(separated_url("acme", url, &WITH_GIT_TOKEN), expected);
            assert_eq!(separated_url("acme", &expected, &WITH_GIT_TOKEN), expected);
        }
        let named = separate("acme", &[], &WITH_GIT_TOKEN).expect("git");
        assert_eq!(named["git.fullurl"], format!("https://{acme}@example.com/a.git"));
        let of_host = NamedSecretsWithValueX(&["GIT_AUTH_HEADER.example.com:8443"]);
        let url = "https://example.com:8443/a.git";
        assert_ne!(separated_url("acme", url, &of_host), url);
        let other = "https://example.com/a.git";
        assert_eq!(separated_url("acme", other, &of_host), other);
    }

    #[test]
    fn an_address_that_is_read_without_a_token_stays() {
        for url in [
            "https://example.com/a.git",
            "https://git@example.com/a.git",
            "git://example.com/a.git",
            "ssh://git@example.com/a.git",
            "git@example.com:a.git",
        ] {
            assert_eq!(separated_url("acme", url, &NO_SECRETS), url);
        }
        assert_eq!(
            separate("acme", &[], &NO_SECRETS)
                .expect("git")
                .get("git.fullurl"),
            None
        );
    }

    #[test]
    fn no_token_is_sent_to_an_address_with_a_password() {
        let url = "https://user:pass@example.com/a.git";
        let separated = separate("acme", &[("git.fullurl", url)], &WITH_GIT_TOKEN).expect("git");
        assert_eq!(separated["git.fullurl"], url);
        assert!(
            !separated.keys().any(|name| name.starts_with("git.auth")),
            "{separated:?}"
        );
    }

    #[test]
    fn an_address_with_a_tags_user_name_is_rejected_for_other_tenants_and_without_a_token() {
        let TenantTag(acme) = tag("acme");
        let encoded = acme.replacen('s', "%73", 1);
        for user in [&*acme, &format!("{acme}:"), &encoded, "slipway-x"] {
            for (tenant, secrets) in [
                ("globex", &NO_SECRETS),
                ("globex", &WITH_GIT_TOKEN),
                ("acme", &NO_SECRETS),
            ] {
                let url = format!("https://{user}@example.com/a.git");
                let separated = separate(tenant, &[("git.fullurl", &url)], secrets);
                assert_eq!(separated, Err(SeparationError::UserName), "{tenant} {url}");
            }
        }
    }

    #[test]
    fn attributes_of_a_git_source_that_leave_no_room_for_a_tag_need_a_daemon_of_the_tenants_own() {
        let bundle = ("git.bundle", "docker-image+blob://r.example/a@sha256:00");
        for (attribute, expected) in [
            (("git.mtime", "commit"), SeparationError::CommitTimes),
            (bundle, SeparationError::Bundle),
        ] {
            assert_eq!(separate("acme", &[attribute], &NO_SECRETS), Err(expected));
            let mut attributes = git_attributes(&[attribute]);
            let separated = tag("acme").separate_git(&mut attributes, "example.com/a", &NO_SECRETS, false);
            assert_eq!(separated, Ok(()));
            assert_eq!(attributes[attribute.0], attribute.1);
        }
    }

    #[test]
    fn a_file_with_a_checksum_gets_the_tenants_tag_as_user_agent() {
        let separate = |more: &[(&str, &str)]| {
            let attributes = more
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()));
            let mut attributes = attributes.collect();
            tag("acme").separate_http_if_checksum(&mut attributes);
            attributes
        };
        assert_eq!(separate(&[]), BTreeMap::new());
        let TenantTag(acme) = tag("acme");
        let pinned = separate(&[("http.checksum", "sha256:00")]);
        assert_eq!(pinned["http.header.user-agent"], acme);
        let chosen = [
            ("http.checksum", "sha256:00"),
            ("http.header.User-Agent", "other"),
        ];
        assert_eq!(separate(&chosen), pinned);
    }
}
