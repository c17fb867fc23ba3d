//! User and password for a registry, from a Docker `config.json`: its `auths`. Programs that it names are not run, and
//! identity tokens not used: what they are for is then not asked.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use function_host::Secrets;
use serde::Deserialize;

use super::CONFIG_SECRET;

/// The names under which Docker Hub's credentials are kept.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// What to log in with.
pub(super) struct Login {
    user: String,
    password: String,
}

#[derive(Deserialize)]
struct File {
    auths: Option<BTreeMap<String, Option<Auth>>>,
}

#[derive(Deserialize)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

impl Login {
    /// For `Authorization`.
    pub(super) fn basic(&self) -> String {
        format!(
            "Basic {}",
            BASE64.encode(format!("{}:{}", self.user, self.password))
        )
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// The login for a registry; `None` where there is none.
///
/// # Errors
/// Why the file cannot be used, without what stands there.
pub(super) fn find(secrets: &Secrets, registry: &str) -> Result<Option<Login>, String> {
    if !secrets.exists(CONFIG_SECRET) {
        return Ok(None);
    }
    let wrong = |what: &str| format!("the secret {CONFIG_SECRET} {what}");
    let secret = secrets.read(CONFIG_SECRET).map_err(|_| wrong("cannot be read"))?;
    let file: File =
        serde_json::from_slice(secret.expose()).map_err(|_| wrong("is no Docker config.json"))?;
    let entries = file.auths.unwrap_or_default();
    let is_it = |key: &str| {
        let host = host_of(key);
        host == registry || DOCKER_HUB.contains(&host) && DOCKER_HUB.contains(&registry)
    };
    let exact = entries.get(registry);
    let entry = exact.or_else(|| entries.iter().find(|(key, _)| is_it(key)).map(|(_, auth)| auth));
    let Some(Some(auth)) = entry else { return Ok(None) };
    let login = match auth
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
            let pair = pair.ok_or_else(|| wrong("has an auth that is not base64"))?;
            let (user, password) = pair
                .split_once(':')
                .ok_or_else(|| wrong("has an auth without a colon"))?;
            Login {
                user: user.to_owned(),
                password: password.to_owned(),
            }
        }
        None => Login {
            user: auth.username.clone().unwrap_or_default(),
            password: auth.password.clone().unwrap_or_default(),
        },
    };
    Ok(Some(login).filter(|login| !login.user.is_empty() && !login.password.is_empty()))
}

/// The host of a key, which is a host or an address with a path.
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
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(CONFIG_SECRET), config).unwrap();
        let login = find(&Secrets::new(folder.path()), registry)?;
        Ok(login.map(|login| format!("{}:{}", login.user, login.password)))
    }

    #[test]
    fn logins_are_found_under_the_names_that_docker_writes() {
        let config = r#"{"auths": {"r.example:5000": {"auth": "dTpw"}, "https://index.docker.io/v1/": {"auth": "aHViOng="},
            "https://other.example/v2/": {"username": "o", "password": "q"}, "empty.example": {}}}"#;
        for (registry, login) in [
            ("r.example:5000", Some("u:p")),
            ("docker.io", Some("hub:x")),
            ("other.example", Some("o:q")),
            ("empty.example", None),
            ("r.example", None),
        ] {
            assert_eq!(found(config, registry).unwrap().as_deref(), login, "{registry}");
        }
        assert_eq!(found("{}", "r.example").unwrap(), None);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_and_not_shown() {
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
        let login = Login {
            user: "u".to_owned(),
            password: "hunter2".to_owned(),
        };
        assert!(!format!("{login:?}").contains("hunter2"));
    }
}
