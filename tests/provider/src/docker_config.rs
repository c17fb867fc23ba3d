//! Registry credentials from a Docker `config.json`. Only `auths` is read; credential helpers are not run.

use std::{collections::HashMap, fmt, path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use crate::error::ProviderError;

/// The key of Docker Hub's credentials in a Docker `config.json`, without the scheme and the path.
const DOCKER_HUB_KEY: &str = "index.docker.io";
/// The host of Docker Hub's registry, for which containerd asks.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// The credentials of registries by host, from a Docker `config.json`; empty if none is configured. A configured file
/// that is missing is an error, and the pull fails.
#[derive(Clone, Default)]
pub(crate) struct DockerConfig {
    by_host: Arc<HashMap<String, RegistryCredentials>>,
}

/// The credentials for one image registry.
#[derive(Clone, Eq, PartialEq)]
pub(crate) enum RegistryCredentials {
    Password { user: String, password: String },
    IdentityToken(String),
}

#[derive(Deserialize)]
struct DockerConfigFile {
    #[serde(default)]
    auths: HashMap<String, AuthEntry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AuthEntry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

impl DockerConfig {
    /// Reads the current content of a Docker `config.json`.
    pub(crate) async fn read_existing_file(path: &Path) -> Result<Self, ProviderError> {
        let bytes = tokio::fs::read(path)
            .await
            .map_err(ProviderError::io_error("read", path))?;
        Self::parse_config(&bytes)
    }

    /// Parses the content of a `config.json`; entries without usable credentials are skipped.
    fn parse_config(bytes: &[u8]) -> Result<Self, ProviderError> {
        let file: DockerConfigFile = serde_json::from_slice(bytes).map_err(|error| {
            ProviderError::Invalid(format!(
                "registry_config: not valid JSON at line {}",
                error.line()
            ))
        })?;
        let mut by_host = HashMap::new();
        for (key, entry) in file.auths {
            if let Some(credentials) = entry.credentials() {
                by_host.insert(registry_host_of_key(&key).to_owned(), credentials);
            }
        }
        Ok(Self {
            by_host: Arc::new(by_host),
        })
    }

    /// Returns the credentials for a registry's host.
    pub(crate) fn credentials_for_host(&self, host: &str) -> Option<RegistryCredentials> {
        let key = if host == DOCKER_HUB_HOST {
            DOCKER_HUB_KEY
        } else {
            host
        };
        self.by_host.get(key).cloned()
    }
}

impl AuthEntry {
    /// Returns the entry's identity token, or else its user name and password, or else those in `auth`.
    fn credentials(self) -> Option<RegistryCredentials> {
        if !self.identitytoken.is_empty() {
            return Some(RegistryCredentials::IdentityToken(self.identitytoken));
        }
        if !self.username.is_empty() {
            return Some(RegistryCredentials::Password {
                user: self.username,
                password: self.password,
            });
        }
        let decoded = String::from_utf8(STANDARD.decode(self.auth.trim()).ok()?).ok()?;
        let (user, password) = decoded.split_once(':')?;
        Some(RegistryCredentials::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }
}

/// Returns the registry host in a key of the Docker `config.json`, which is a host or a URL.
fn registry_host_of_key(key: &str) -> &str {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    key.split('/').next().unwrap_or(key)
}

impl fmt::Debug for DockerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DockerConfig")
            .field("hosts", &self.by_host.keys())
            .finish()
    }
}

impl fmt::Debug for RegistryCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_test_config(text: &str) -> DockerConfig {
        DockerConfig::parse_config(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_password_is_found_by_host_for_every_form_of_the_key() {
        let password = RegistryCredentials::Password {
            user: "me".into(),
            password: "a:b".into(),
        };
        for key in ["reg:5000", "http://reg:5000", "https://reg:5000/v2/"] {
            let config = parse_test_config(&format!(r#"{{"auths":{{"{key}":{{"auth":"bWU6YTpi"}}}}}}"#));
            assert!(
                config.credentials_for_host("reg:5000").unwrap() == password,
                "{key}"
            );
        }
    }

    #[test]
    fn docker_hubs_credentials_are_found_under_its_old_name() {
        let config = parse_test_config(r#"{"auths":{"https://index.docker.io/v1/":{"identitytoken":"t"}}}"#);
        assert!(
            config.credentials_for_host("registry-1.docker.io").unwrap()
                == RegistryCredentials::IdentityToken("t".into())
        );
    }

    #[test]
    fn a_host_without_an_entry_or_with_an_empty_one_has_no_credentials() {
        assert!(
            parse_test_config(r#"{"auths":{"a":{}},"credsStore":"x"}"#)
                .credentials_for_host("a")
                .is_none()
        );
        assert!(parse_test_config("{}").credentials_for_host("b").is_none());
    }

    #[test]
    fn debug_output_has_no_secret() {
        let config = parse_test_config(r#"{"auths":{"a":{"username":"u","password":"secret"}}}"#);
        let printed = format!("{config:?} {:?}", config.credentials_for_host("a"));
        assert!(!printed.contains("secret"), "{printed}");
    }
}
