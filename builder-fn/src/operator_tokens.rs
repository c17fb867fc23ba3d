//! The operator's tokens: for git repositories that contexts are read from (`git_tokens`), and for the statuses of
//! commits (`status_tokens`).
//!
//! A step of a build can mount every secret of its session (`RUN --mount=type=secret`), and a frontend can read every
//! attribute of a source. So a token of the operator is in no session of a build: the daemon checks the context out
//! before the build, in a session of its own without steps and frontend, and the build finds the checkout by its
//! commit.
//!
//! Such a token is used for the context of a request only, without submodules: a repository names their addresses
//! itself.

use std::fmt;
use std::str::FromStr;

use function_host::Secret;
use function_host::policy::{AllowedSourcesBesidesOwn, Tenant, UrlPattern, UrlPatterns};

use crate::buildkit::SecretStore;
use crate::redact::SecretMask;

/// The name of the secret that BuildKit sends to a git server as a token.
const GIT_TOKEN_SECRET_NAME: &str = "GIT_AUTH_TOKEN";

/// The names of the secrets that BuildKit sends to a git server. One with a dot and the host comes first.
const GIT_AUTH_SECRET_NAMES: [&str; 2] = [GIT_TOKEN_SECRET_NAME, "GIT_AUTH_HEADER"];

/// The names of the secrets with the operator's tokens, by the URLs that they are for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperatorTokenSecretNames(Vec<(UrlPattern, String)>);

/// A token of the operator, as the only secret of a session. `Debug` does not show it.
pub(crate) struct OperatorGitToken {
    token: Secret,
    mask: SecretMask,
}

impl OperatorTokenSecretNames {
    /// Returns the name of the secret with the token for a git repository, for a build of `tenant` with `own_secrets`.
    /// Returns `None` for a build with a token of its own, and for a tenant whose policy does not name the repository.
    pub(crate) fn secret_name_for_repository(
        &self,
        repository: &str,
        tenant: Option<&Tenant>,
        own_secrets: &dyn SecretStore,
    ) -> Option<&str> {
        let host = host_with_port_of(repository);
        let has_own = GIT_AUTH_SECRET_NAMES.iter().any(|name| {
            own_secrets.secret(name).is_some() || own_secrets.secret(&format!("{name}.{host}")).is_some()
        });
        match has_own {
            true => None,
            false => self.secret_name_for_url(repository, tenant, AllowedSourcesBesidesOwn::git),
        }
    }

    /// Returns the name of the secret with the token for the project at this URL of a forge's API.
    pub(crate) fn secret_name_for_project(&self, project: &str, tenant: Option<&Tenant>) -> Option<&str> {
        self.secret_name_for_url(project, tenant, AllowedSourcesBesidesOwn::http)
    }

    /// Returns the name of the secret with the token for a URL. A tenant gets it only if `rule` of its policy names the
    /// URL: one without rules may read everything that needs no token.
    fn secret_name_for_url(
        &self,
        url: &str,
        tenant: Option<&Tenant>,
        rule: impl Fn(&AllowedSourcesBesidesOwn) -> &UrlPatterns,
    ) -> Option<&str> {
        let (_, secret) = self.0.iter().find(|(pattern, _)| pattern.matches(url))?;
        let is_allowed = |tenant: &Tenant| {
            tenant
                .allowed_sources_besides_own()
                .is_some_and(|rules| rule(rules).allows(url))
        };
        tenant.is_none_or(is_allowed).then_some(secret)
    }

    /// Returns the names of the secrets.
    pub(crate) fn secret_names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(_, secret)| secret.as_str())
    }
}

impl FromStr for OperatorTokenSecretNames {
    type Err = String;

    /// Parses a list of `URL=SECRET`, separated by commas. The first entry whose URL a repository begins with counts.
    fn from_str(text: &str) -> Result<Self, String> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let entries = entries.map(|entry| {
            let (url, secret) = entry.split_once('=').unwrap_or((entry, ""));
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            if secret.is_empty() || !secret.bytes().all(is_name) {
                return Err(format!(
                    "should be a list of URL=SECRET, like https://github.com/acme/=github-token, separated by commas, not \
                     {entry:?}"
                ));
            }
            let pattern = UrlPattern::parse(url, &["https", "http"]);
            let pattern = pattern.map_err(|problem| format!("{url:?} {problem}"))?;
            Ok((pattern, secret.to_owned()))
        });
        entries.collect::<Result<_, _>>().map(Self)
    }
}

impl OperatorGitToken {
    /// Creates the secrets of a session with a token only.
    pub(crate) fn new(token: Secret) -> Self {
        Self {
            mask: SecretMask::new([token.expose()]),
            token,
        }
    }

    /// Returns the mask of the token.
    pub(crate) fn mask(&self) -> &SecretMask {
        &self.mask
    }
}

impl SecretStore for OperatorGitToken {
    fn secret(&self, id: &str) -> Option<&[u8]> {
        (id == GIT_TOKEN_SECRET_NAME).then(|| self.token.expose())
    }

    fn is_empty(&self) -> bool {
        false
    }
}

impl fmt::Debug for OperatorGitToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OperatorGitToken")
    }
}

/// Returns the host of a URL, with its port, as git servers' secrets are named after it.
fn host_with_port_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use function_host::policy::Policy;

    use super::*;
    use crate::buildkit::NamedSecretsWithValueX;

    const REPOSITORY_URL: &str = "https://git.example/acme/app.git";

    fn tokens(text: &str) -> OperatorTokenSecretNames {
        text.parse().unwrap()
    }

    #[test]
    fn a_repository_gets_the_token_of_the_first_entry_that_it_begins_with() {
        let tokens = tokens("https://git.example/acme/=acme-token, https://git.example/=token");
        let secret_name_for_url = |url: &str| {
            tokens
                .secret_name_for_repository(url, None, &NamedSecretsWithValueX(&[]))
                .map(str::to_owned)
        };
        for (url, secret) in [
            (REPOSITORY_URL, Some("acme-token")),
            ("https://git.example/other/app.git", Some("token")),
            ("https://git.example/acme-b/app.git", Some("token")),
            ("http://git.example/acme/app.git", None),
            ("https://git.example:8443/acme/app.git", None),
            ("https://git.example.evil/acme/app.git", None),
            ("https://git.example@evil/acme/app.git", None),
            ("https://git.example/acme/../other/app.git", None),
        ] {
            assert_eq!(secret_name_for_url(url).as_deref(), secret, "{url}");
        }
        assert_eq!(tokens.secret_names().collect::<Vec<_>>(), ["acme-token", "token"]);
    }

    #[test]
    fn only_a_tenant_whose_rules_name_the_repository_gets_its_token() {
        let tokens = tokens("https://git.example/=token");
        for (rules, expected) in [
            (
                r#", "read": {"git": ["https://git.example/acme/"]}"#,
                Some("token"),
            ),
            (r#", "read": {"git": ["https://git.example/other/"]}"#, None),
            (r#", "read": {}"#, None),
            ("", None),
        ] {
            let policy = format!(r#"{{"tenants": {{"acme": {{"keys": ["k"]{rules}}}}}}}"#);
            let policy = Policy::parse(&policy).unwrap();
            let tenant = policy.tenants().next().unwrap();
            let secret =
                tokens.secret_name_for_repository(REPOSITORY_URL, Some(tenant), &NamedSecretsWithValueX(&[]));
            assert_eq!(secret, expected, "{rules}");
        }
    }

    #[test]
    fn a_build_with_a_token_of_its_own_gets_none_of_the_operator() {
        let tokens = tokens("https://git.example/=token");
        for (own, expected) in [
            (&["npm"][..], Some("token")),
            (&["GIT_AUTH_TOKEN"], None),
            (&["GIT_AUTH_HEADER"], None),
            (&["GIT_AUTH_TOKEN.git.example"], None),
            (&["GIT_AUTH_TOKEN.other.example"], Some("token")),
        ] {
            assert_eq!(
                tokens.secret_name_for_repository(REPOSITORY_URL, None, &NamedSecretsWithValueX(own)),
                expected,
                "{own:?}"
            );
        }
    }

    #[test]
    fn a_wrong_entry_of_operator_tokens_is_rejected_with_its_problem() {
        for (text, problem) in [
            ("https://git.example/", "should be a list of URL=SECRET"),
            ("https://git.example/=", "should be a list of URL=SECRET"),
            ("https://git.example/=a/b", "should be a list of URL=SECRET"),
            ("git.example=token", "should be a URL"),
            ("ssh://git.example/=token", "should begin with https://"),
            ("https://git.example/a/../=token", "should be a URL"),
        ] {
            let error = text.parse::<OperatorTokenSecretNames>().unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
        assert_eq!(tokens(""), OperatorTokenSecretNames::default());
    }

    #[test]
    fn a_git_token_is_the_only_secret_of_its_session_and_is_masked_and_hidden_from_debug() {
        let token = OperatorGitToken::new(Secret::new("the-token"));
        assert_eq!(token.secret("GIT_AUTH_TOKEN"), Some(&b"the-token"[..]));
        assert_eq!(token.secret("GIT_AUTH_HEADER"), None);
        assert_eq!(format!("{token:?}"), "OperatorGitToken");
        assert!(!token.mask().mask_text("x the-token").contains("the-token"));
    }
}
