//! Registry credentials from a Docker `config.json`: user and password of an entry in `auths`.
//!
//! Credential helpers that it names are not run, and identity tokens are not used: the lookup then goes without
//! credentials.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use function_host::Secrets;
use serde::Deserialize;

/// The secret with the Docker `config.json`. It is read for each lookup. It is not the builder's, so that deployer-fn
/// needs no credentials that may push.
pub(super) const CONFIG_SECRET: &str = "registry-pull-config";

/// The names under which Docker Hub's credentials are stored.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// User and password for a registry.
pub(super) struct Credentials {
    user: String,
    password: String,
}

#[derive(Deserialize)]
struct ConfigFile {
    auths: Option<BTreeMap<String, Option<Auth>>>,
}

#[derive(Deserialize)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

impl Credentials {
    /// Returns the value of an `Authorization` header for basic authentication.
    pub(super) fn basic(&self) -> String {
        format!(
            "Basic {}",
            BASE64.encode(format!("{}:{}", self.user, self.password))
        )
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Returns the credentials for a registry; `None` if there are none.
///
/// # Errors
/// The reason why the file cannot be used, without any of its content.
pub(super) fn find(secrets: &Secrets, registry: &str) -> Result<Option<Credentials>, String> {
    if !secrets.exists(CONFIG_SECRET) {
        return Ok(None);
    }
    let invalid = |problem: &str| format!("the secret {CONFIG_SECRET} {problem}");
    let secret = secrets
        .read(CONFIG_SECRET)
        .map_err(|_| invalid("could not be read"))?;
    let file: ConfigFile =
        serde_json::from_slice(secret.expose()).map_err(|_| invalid("is not a Docker config.json"))?;
    let entries = file.auths.unwrap_or_default();
    let is_for_registry = |key: &str| {
        let host = host_of(key);
        host == registry || DOCKER_HUB.contains(&host) && DOCKER_HUB.contains(&registry)
    };
    let exact = entries.get(registry);
    let entry = exact.or_else(|| {
        entries
            .iter()
            .find(|(key, _)| is_for_registry(key))
            .map(|(_, auth)| auth)
    });
    let Some(Some(auth)) = entry else { return Ok(None) };
    let credentials = match auth
        .auth
        .as_deref()
        .map(str::trim)
        .filter(|text| !text.is_empty())
    {
        Some(text) => {
            let pair = BASE64
                .decode(text)
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok());
            let pair = pair.ok_or_else(|| invalid("has an \"auth\" that is not base64"))?;
            let (user, password) = pair
                .split_once(':')
                .ok_or_else(|| invalid("has an \"auth\" that is not USER:PASSWORD in base64"))?;
            Credentials {
                user: user.to_owned(),
                password: password.to_owned(),
            }
        }
        None => Credentials {
            user: auth.username.clone().unwrap_or_default(),
            password: auth.password.clone().unwrap_or_default(),
        },
    };
    Ok(Some(credentials).filter(|found| !found.user.is_empty() && !found.password.is_empty()))
}

/// Returns the host of a key, which is a host or an address with a path.
fn host_of(key: &str) -> &str {
    let bare = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"));
    let bare = bare.unwrap_or(key);
    bare.split_once('/').map_or(bare, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(config: &str, registry: &str) -> Result<Option<String>, String> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(CONFIG_SECRET), config).unwrap();
        let credentials = find(&Secrets::new(directory.path()), registry)?;
        Ok(credentials.map(|found| format!("{}:{}", found.user, found.password)))
    }

    #[test]
    fn credentials_are_found_under_the_names_that_docker_writes() {
        let config = r#"{"auths": {"r.example:5000": {"auth": "dTpw"}, "https://index.docker.io/v1/": {"auth": "aHViOng="},
            "https://other.example/v2/": {"username": "o", "password": "q"}, "empty.example": {}}}"#;
        for (registry, credentials) in [
            ("r.example:5000", Some("u:p")),
            ("docker.io", Some("hub:x")),
            ("other.example", Some("o:q")),
            ("empty.example", None),
            ("r.example", None),
        ] {
            assert_eq!(
                found(config, registry).unwrap().as_deref(),
                credentials,
                "{registry}"
            );
        }
        assert_eq!(found("{}", "r.example").unwrap(), None);
    }

    #[test]
    fn an_error_names_the_secret_and_shows_none_of_it() {
        for config in [
            "hunter2",
            r#"{"auths": {"r": {"auth": "hunter2!"}}}"#,
            r#"{"auths": {"r": {"auth": "aHVudGVyMg=="}}}"#,
        ] {
            let problem = found(config, "r").unwrap_err();
            assert!(
                problem.contains(CONFIG_SECRET) && !problem.contains("hunter2"),
                "{problem}"
            );
        }
    }

    #[test]
    fn debug_shows_no_password() {
        let credentials = Credentials {
            user: "u".to_owned(),
            password: "hunter2".to_owned(),
        };
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }
}
