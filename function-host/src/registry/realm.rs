//! The hosts of token servers, from which tokens for registries are fetched.

use std::collections::BTreeSet;
use std::str::FromStr;

use http::Uri;

use super::error::RegistryError;

/// The well-known registries whose token servers are on another host, with those hosts.
///
/// <https://distribution.github.io/distribution/spec/auth/token/> shows the first, and
/// <https://metacpan.org/pod/Docker::Registry::Auth::Gitlab> the second.
const KNOWN_REGISTRIES_AND_TOKEN_HOSTS: [(&str, &str); 2] = [
    ("registry-1.docker.io", "auth.docker.io"),
    ("registry.gitlab.com", "gitlab.com"),
];

/// The length of the longest host name, in bytes (RFC 1035).
const HOST_NAME_MAX_BYTES: usize = 255;

/// The hosts on which registries may have their token servers, in addition to their own hosts.
///
/// A registry names the server, its realm, in a header. Whoever chooses the registry of an image would otherwise choose
/// which addresses are requested from inside the cluster, and would receive the token from there.
///
/// A realm on the registry's own host may have another port: docker_auth and similar servers run beside a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdditionalTokenHosts(BTreeSet<String>);

impl FromStr for AdditionalTokenHosts {
    type Err = String;

    /// Parses a list of `HOST` or `HOST:PORT`, separated by commas. A host without a port stands for every
    /// port.
    fn from_str(text: &str) -> Result<Self, String> {
        let hosts = text.split(',').map(str::trim).filter(|host| !host.is_empty());
        let hosts = hosts.map(|host| match host.parse::<http::uri::Authority>() {
            Ok(authority) if !host.contains('@') && !authority.host().is_empty() => {
                Ok(host.to_ascii_lowercase())
            }
            _ => Err("should be hosts, HOST or HOST:PORT, separated by commas".to_owned()),
        });
        hosts.collect::<Result<_, _>>().map(Self)
    }
}

impl AdditionalTokenHosts {
    /// Parses the token server's URL that a registry names; fails if its host is not allowed, or its scheme is not
    /// `https` (nor `http` with `insecure`).
    pub(super) fn parse_allowed_realm(
        &self,
        registry: &str,
        realm: &str,
        insecure: bool,
    ) -> Result<Uri, RegistryError> {
        let host = || registry.to_owned();
        let uri: Uri = realm
            .parse()
            .map_err(|_| RegistryError::Realm { registry: host() })?;
        let authority = uri.authority().filter(|authority| {
            !authority.as_str().contains('@')
                && !authority.host().is_empty()
                && authority.as_str().len() <= HOST_NAME_MAX_BYTES
        });
        let authority = authority.ok_or_else(|| RegistryError::Realm { registry: host() })?;
        // Credentials for a registry with TLS must not be sent in plain text.
        let default_port = match uri.scheme_str() {
            Some("https") => 443,
            Some("http") if insecure => 80,
            _ => return Err(RegistryError::PlainRealm { registry: host() }),
        };
        let realm = authority.host().to_ascii_lowercase();
        let port = authority.port_u16().unwrap_or(default_port);
        let own: Option<Uri> = registry.parse().ok();
        let own = own.as_ref().and_then(Uri::host);
        let is_own = own.is_some_and(|own| own.eq_ignore_ascii_case(&realm));
        let is_known = KNOWN_REGISTRIES_AND_TOKEN_HOSTS.contains(&(registry, &*realm));
        if is_own || is_known || self.0.contains(&realm) || self.0.contains(&format!("{realm}:{port}")) {
            return Ok(uri);
        }
        Err(RegistryError::ForeignRealm {
            registry: host(),
            realm,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_realm_is_https_on_the_registrys_own_a_well_known_or_an_allowed_host() {
        let realms: AdditionalTokenHosts = "auth.example:8443".parse().unwrap();
        for (registry, realm, is_allowed) in [
            ("r.example", "https://r.example/token", true),
            ("r.example:5000", "https://R.example:5001/token", true),
            ("[::1]:5000", "https://[::1]/token", true),
            ("r.example", "https://auth.example:8443/token", true),
            ("r.example", "https://auth.example/token", false),
            ("r.example", "http://r.example/token", false),
            ("r.example", "https://sub.r.example/token", false),
            ("r.example", "https://169.254.169.254/token", false),
            ("registry-1.docker.io", "https://auth.docker.io/token", true),
            ("r.example", "https://auth.docker.io/token", false),
            ("registry.gitlab.com", "https://gitlab.com/jwt/auth", true),
        ] {
            let checked = realms.parse_allowed_realm(registry, realm, false);
            assert_eq!(checked.is_ok(), is_allowed, "{registry}: {realm}");
        }
    }
}
