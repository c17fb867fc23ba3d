//! The content of a `config.json`, and the lookup of the entry for a registry.

use std::collections::BTreeMap;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use crate::buildkit::Credentials;

/// The key of Docker Hub in the file, as `docker login` writes it.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// The names of Docker Hub: in images, as the host that BuildKit connects to, and in the key above.
const DOCKER_HUB: [&str; 3] = ["docker.io", "registry-1.docker.io", "index.docker.io"];

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The credentials and helpers that a file names.
#[derive(Debug, Default)]
pub(super) struct RegistryLogins {
    /// Credentials by their key in the file.
    auths: BTreeMap<String, Credentials>,
    /// The names of helpers by registry: `credHelpers`.
    helpers: BTreeMap<String, String>,
    /// The name of the helper for all other registries: `credsStore`.
    store: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    auths: Option<BTreeMap<String, Option<Auth>>>,
    creds_store: Option<String>,
    cred_helpers: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl RegistryLogins {
    /// Parses the content of a file. Returns also the keys that are ignored because they are not supported.
    ///
    /// # Errors
    /// Fails with the place and the kind of the fault, without quoting the content.
    pub(super) fn parse(content: &[u8]) -> Result<(Self, Vec<String>), String> {
        let file: File = serde_json::from_slice(content).map_err(|error| {
            // The error's own text may quote a value.
            format!("invalid at line {}, column {}", error.line(), error.column())
        })?;
        let mut ignored = Vec::new();
        let mut auths = BTreeMap::new();
        for (key, auth) in file.auths.unwrap_or_default() {
            let Some(auth) = auth else { continue };
            if auth.registrytoken.as_ref().is_some_and(|token| !token.is_empty()) {
                ignored.push(format!("auths.{key}.registrytoken"));
            }
            let credentials = auth.credentials().ok_or_else(|| {
                format!("auths.{key}.auth should be the base64 of a user name, a colon and a password")
            })?;
            // `docker login` with a helper leaves empty entries in the file.
            if !credentials.secret.is_empty() {
                auths.insert(key, credentials);
            }
        }
        let logins = Self {
            auths,
            helpers: file.cred_helpers.unwrap_or_default(),
            store: file.creds_store.filter(|name| !name.is_empty()),
        };
        Ok((logins, ignored))
    }

    /// Returns the name of the helper for `host`, and the name of the registry for the helper.
    ///
    /// A helper for the registry precedes the one for all registries. Its key is exactly the host, except for Docker Hub,
    /// which has several names.
    pub(super) fn helper<'a>(&'a self, host: &'a str) -> Option<(&'a str, &'a str)> {
        let is_hub = DOCKER_HUB.contains(&host);
        let server = if is_hub { DOCKER_HUB_KEY } else { host };
        let hub = is_hub.then_some(DOCKER_HUB).into_iter().flatten();
        let own = [server, host]
            .into_iter()
            .chain(hub)
            .find_map(|key| self.helpers.get(key));
        let name = own.or(self.store.as_ref())?;
        (!name.is_empty()).then_some((name, server))
    }

    /// Returns the credentials for `host`. The entry with exactly this key precedes those whose URL has this host.
    pub(super) fn find(&self, host: &str) -> Credentials {
        let is_hub = DOCKER_HUB.contains(&host);
        let exact = if is_hub { DOCKER_HUB_KEY } else { host };
        let wanted = |key: &str| {
            let named = host_of(key);
            named == host || is_hub && DOCKER_HUB.contains(&named)
        };
        let found = self.auths.get(exact);
        let found = found.or_else(|| {
            self.auths
                .iter()
                .find(|(key, _)| wanted(key))
                .map(|(_, login)| login)
        });
        found.cloned().unwrap_or_default()
    }
}

impl Auth {
    /// Returns the credentials of the entry; `None` if its `auth` is malformed.
    fn credentials(self) -> Option<Credentials> {
        let identity = self.identitytoken.unwrap_or_default();
        let (mut username, mut secret) = (
            self.username.unwrap_or_default(),
            self.password.unwrap_or_default(),
        );
        if let Some(auth) = self.auth.filter(|auth| !auth.is_empty()) {
            let decoded = BASE64.decode(auth.trim().as_bytes()).ok()?;
            let decoded = String::from_utf8(decoded).ok()?;
            let (user, password) = decoded.split_once(':')?;
            (username, secret) = (user.to_owned(), password.trim_matches('\0').to_owned());
        }
        Some(match identity.is_empty() {
            true => Credentials { username, secret },
            // For BuildKit, a secret without a user name is an identity token.
            false => Credentials {
                username: String::new(),
                secret: identity,
            },
        })
    }
}

/// Returns the host and port of a key, which is a host or a URL, with or without a path.
fn host_of(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(content: &str, host: &str) -> (String, String) {
        let (logins, _) = RegistryLogins::parse(content.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
        let Credentials { username, secret } = logins.find(host);
        (username, secret)
    }

    fn pair(username: &str, secret: &str) -> (String, String) {
        (username.to_owned(), secret.to_owned())
    }

    #[test]
    fn an_entry_may_have_any_of_dockers_forms() {
        for (entry, expected) in [
            (r#"{"auth": "dXNlcjpwYXNz"}"#, pair("user", "pass")),
            (r#"{"auth": "dXNlcjpwYTpzcw=="}"#, pair("user", "pa:ss")),
            (r#"{"auth": "dXNlcjpwYTpzcw"}"#, pair("user", "pa:ss")),
            (r#"{"auth": "dXNlcjpwYXNzAAA="}"#, pair("user", "pass")),
            (
                r#"{"username": "user", "password": "pass"}"#,
                pair("user", "pass"),
            ),
            (
                r#"{"username": "x", "password": "y", "auth": "dXNlcjpwYXNz"}"#,
                pair("user", "pass"),
            ),
            (
                r#"{"username": "user", "password": "pass", "auth": "", "email": "x"}"#,
                pair("user", "pass"),
            ),
            (
                r#"{"auth": "dXNlcjo=", "identitytoken": "token"}"#,
                pair("", "token"),
            ),
            (r#"{}"#, pair("", "")),
            ("null", pair("", "")),
        ] {
            let content = format!(r#"{{"auths": {{"example.com": {entry}}}}}"#);
            assert_eq!(find(&content, "example.com"), expected, "{entry}");
        }
    }

    #[test]
    fn a_registry_is_found_by_every_form_of_its_key() {
        for (key, host) in [
            ("example.com", "example.com"),
            ("https://example.com", "example.com"),
            ("https://example.com/v1/", "example.com"),
            ("http://example.com/v2/", "example.com"),
            ("example.com/some/path", "example.com"),
            ("example.com:5000", "example.com:5000"),
            ("https://10.63.1.2:5000/v2/", "10.63.1.2:5000"),
            ("[::1]:5000", "[::1]:5000"),
            ("https://index.docker.io/v1/", "registry-1.docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("index.docker.io", "registry-1.docker.io"),
            ("docker.io", "registry-1.docker.io"),
            ("registry-1.docker.io", "docker.io"),
        ] {
            let content = format!(r#"{{"auths": {{"{key}": {{"auth": "dXNlcjpwYXNz"}}}}}}"#);
            assert_eq!(find(&content, host), pair("user", "pass"), "{key} for {host}");
        }
    }

    #[test]
    fn another_registry_gets_no_credentials() {
        let content = r#"{"auths": {"example.com": {"auth": "dXNlcjpwYXNz"}}}"#;
        for host in [
            "example.com:5000",
            "example.org",
            "sub.example.com",
            "com",
            "",
            "docker.io",
        ] {
            assert_eq!(find(content, host), pair("", ""), "{host}");
        }
        assert_eq!(find("{}", "example.com"), pair("", ""));
        assert_eq!(
            find(r#"{"auths": null, "HttpHeaders": {}}"#, "example.com"),
            pair("", "")
        );
    }

    #[test]
    fn the_exact_key_precedes_the_others() {
        let content = r#"{"auths": {
            "https://index.docker.io/v1/access-token": {"username": "x", "password": "refresh"},
            "https://index.docker.io/v1/": {"username": "user", "password": "pass"},
            "a.example.com/v1": {"username": "x", "password": "x"},
            "http://a.example.com": {"username": "y", "password": "y"},
            "a.example.com": {"username": "user", "password": "pass"}
        }}"#;
        for host in ["registry-1.docker.io", "a.example.com"] {
            assert_eq!(find(content, host), pair("user", "pass"), "{host}");
        }
    }

    #[test]
    fn unsupported_keys_are_reported() {
        let content = br#"{
            "auths": {"example.com": {"registrytoken": "t"}, "gcr.io": {}}
        }"#;
        let (_, ignored) = RegistryLogins::parse(content).unwrap();
        assert_eq!(ignored, ["auths.example.com.registrytoken"]);
    }

    #[test]
    fn the_helper_of_a_registry_precedes_the_one_for_all() {
        let content = br#"{
            "credsStore": "pass",
            "credHelpers": {"gcr.io": "gcloud", "docker.io": "hub", "none.example": ""}
        }"#;
        let (logins, _) = RegistryLogins::parse(content).unwrap();
        for (host, expected) in [
            ("gcr.io", Some(("gcloud", "gcr.io"))),
            ("eu.gcr.io", Some(("pass", "eu.gcr.io"))),
            ("gcr.io:443", Some(("pass", "gcr.io:443"))),
            (
                "registry-1.docker.io",
                Some(("hub", "https://index.docker.io/v1/")),
            ),
            ("none.example", None),
        ] {
            assert_eq!(logins.helper(host), expected, "{host}");
        }
        let (logins, _) = RegistryLogins::parse(br#"{"credsStore": ""}"#).unwrap();
        assert_eq!(logins.helper("gcr.io"), None);
    }

    #[test]
    fn the_error_of_a_malformed_file_names_the_place_and_quotes_nothing() {
        for (content, hint) in [
            ("", "line 1"),
            ("[]", "line 1"),
            (r#"{"auths": []}"#, "line 1"),
            (r#"{"auths": {"example.com": "hunter2"}}"#, "line 1"),
            (
                r#"{"auths": {"example.com": {"auth": "hunter2!"}}}"#,
                "auths.example.com.auth",
            ),
            (
                r#"{"auths": {"example.com": {"auth": "aHVudGVyMg=="}}}"#,
                "auths.example.com.auth",
            ),
            (
                r#"{"auths": {"example.com": {"auth": "/////w=="}}}"#,
                "auths.example.com.auth",
            ),
        ] {
            let error = RegistryLogins::parse(content.as_bytes()).unwrap_err();
            assert!(
                error.contains(hint) && !error.contains("hunter2"),
                "{content}: {error}"
            );
        }
    }
}
