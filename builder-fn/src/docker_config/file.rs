//! The content of a `config.json`, and which of its entries is for which registry.

use std::collections::BTreeMap;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::Credentials;

/// The key that `docker login` writes for Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// Docker Hub's names: as images have it, as BuildKit connects to it, as in the key above.
const DOCKER_HUB: [&str; 3] = ["docker.io", "registry-1.docker.io", "index.docker.io"];

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a file says about credentials.
#[derive(Debug, Default)]
pub(super) struct Logins {
    /// Credentials by the key they have in the file.
    auths: BTreeMap<String, Credentials>,
    /// The names of helpers by registry.
    helpers: BTreeMap<String, String>,
    /// The name of the helper for all others.
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

impl Logins {
    /// Reads a file's content. Returns also what of it will be ignored.
    ///
    /// # Errors
    /// What is wrong, without what stands there.
    pub(super) fn parse(content: &[u8]) -> Result<(Self, Vec<String>), String> {
        let file: File = serde_json::from_slice(content).map_err(|error| {
            // The error itself may quote a value.
            format!(
                "line {}, column {}, is not as it should be",
                error.line(),
                error.column()
            )
        })?;
        let mut ignored = Vec::new();
        let mut auths = BTreeMap::new();
        for (key, auth) in file.auths.unwrap_or_default() {
            let Some(auth) = auth else { continue };
            if auth.registrytoken.as_ref().is_some_and(|token| !token.is_empty()) {
                ignored.push(format!("registrytoken for {key}"));
            }
            let credentials = auth.credentials().ok_or_else(|| {
                format!("auths.{key}.auth should be the base64 of a user name, a colon and a password")
            })?;
            // `docker login` with a helper leaves empty entries behind.
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

    /// The helper that knows the credentials for `host`, and what it calls that registry.
    ///
    /// A helper of its own goes before the one for all. Its key is the very host, but Docker Hub has several names.
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

    /// The credentials for `host`, the entry that is named exactly so before those whose URL has that host.
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
            // BuildKit takes a secret without a user name for an identity token.
            false => Credentials {
                username: String::new(),
                secret: identity,
            },
        })
    }
}

/// Host and port of a key, which is a host or a URL, with or without a path.
fn host_of(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(content: &str, host: &str) -> (String, String) {
        let (logins, _) = Logins::parse(content.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
        let Credentials { username, secret } = logins.find(host);
        (username, secret)
    }

    fn pair(username: &str, secret: &str) -> (String, String) {
        (username.to_owned(), secret.to_owned())
    }

    #[test]
    fn an_entry_can_be_written_in_several_ways() {
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
    fn a_registry_is_found_under_all_its_keys() {
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
    fn another_registry_gets_nothing() {
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
    fn the_exact_key_goes_first() {
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
    fn what_is_not_supported_is_told() {
        let content = br#"{
            "auths": {"example.com": {"registrytoken": "t"}, "gcr.io": {}}
        }"#;
        let (_, ignored) = Logins::parse(content).unwrap();
        assert_eq!(ignored, ["registrytoken for example.com"]);
    }

    #[test]
    fn a_helper_of_its_own_goes_before_the_one_for_all() {
        let content = br#"{
            "credsStore": "pass",
            "credHelpers": {"gcr.io": "gcloud", "docker.io": "hub", "none.example": ""}
        }"#;
        let (logins, _) = Logins::parse(content).unwrap();
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
        let (logins, _) = Logins::parse(br#"{"credsStore": ""}"#).unwrap();
        assert_eq!(logins.helper("gcr.io"), None);
    }

    #[test]
    fn a_malformed_file_is_told_by_its_place_and_not_by_its_content() {
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
            let error = Logins::parse(content.as_bytes()).unwrap_err();
            assert!(
                error.contains(hint) && !error.contains("hunter2"),
                "{content}: {error}"
            );
        }
    }
}
