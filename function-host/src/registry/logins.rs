//! The content of a Docker `config.json`, and the lookup of the entry for a registry.
//!
//! The reference is `docker/cli` `cli/config/configfile/file.go`. Each entry stands alone: an unusable one disables its
//! own registry only, whereas Docker then uses no entry.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::credentials::RegistryCredentials;
use super::{DOCKER_HUB_NAME_AND_HOST, json};
use crate::secret::Secret;

/// The key of Docker Hub in a Docker `config.json`, as `docker login` writes it.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// The names of Docker Hub: in image references, as the host of its API, and in [`DOCKER_HUB_KEY`].
const DOCKER_HUB_NAMES: [&str; 3] = [
    DOCKER_HUB_NAME_AND_HOST.0,
    DOCKER_HUB_NAME_AND_HOST.1,
    "index.docker.io",
];

/// The Base64 decoder, which decodes as Go does. Padding may be missing, which Go rejects.
const LENIENT_BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The error for content that is not a Docker `config.json`. Its text quotes nothing of the content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MalformedDockerConfig(String);

/// The error for a registry's unusable entry in a Docker `config.json`. Its text quotes only the entry's key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{entry} should be {expected}")]
pub struct UnusableDockerConfigEntry {
    entry: String,
    expected: &'static str,
}

/// The credentials and credential helpers of registries in a Docker `config.json`.
#[derive(Debug, Default)]
pub struct RegistryLogins {
    /// The credentials in `auths`, by their keys in the file.
    auths: BTreeMap<String, Result<RegistryCredentials, UnusableDockerConfigEntry>>,
    /// The names of credential helpers in `credHelpers`, by registry.
    helpers: BTreeMap<String, Result<String, UnusableDockerConfigEntry>>,
    /// The name of the credential helper for all other registries (`credsStore`).
    store: String,
    /// The keys of the `config.json` that are not supported.
    ignored: Vec<String>,
}

impl RegistryLogins {
    /// Parses the content of a Docker `config.json`. Empty content has no entries.
    ///
    /// # Errors
    /// Fails if the content is not a JSON object, or `auths`, `credHelpers` or `credsStore` has the wrong type.
    pub fn parse_config(content: &[u8]) -> Result<Self, MalformedDockerConfig> {
        // Go replaces what is not UTF-8, and reads nothing after the first value.
        let content = String::from_utf8_lossy(content);
        let mut logins = Self::default();
        if content.trim_ascii().is_empty() {
            return Ok(logins);
        }
        let file = <&RawValue>::deserialize(&mut serde_json::Deserializer::from_str(&content));
        let file = file.map_err(|error| {
            // The error's own text may quote a value.
            let place = format!("invalid at line {}, column {}", error.line(), error.column());
            MalformedDockerConfig(match content.starts_with('\u{feff}') {
                true => format!("{place}: it begins with a byte order mark"),
                false => place,
            })
        })?;
        for (key, value) in object_members_or_none_if_null(file, "the content")? {
            if json::key_matches_field(&key, "auths") {
                logins.add_auths_or_clear_if_null(value)?;
            } else if json::key_matches_field(&key, "credHelpers") {
                logins.add_cred_helpers_or_clear_if_null(value)?;
            } else if json::key_matches_field(&key, "credsStore") {
                let store = json::parse_json_string_or_null(value);
                let store =
                    store.map_err(|_| MalformedDockerConfig("credsStore should be text".to_owned()))?;
                logins.store = store.unwrap_or(logins.store);
            }
        }
        Ok(logins)
    }

    /// Adds the credentials in an object `auths`. A value `null` removes those of an earlier `auths`.
    fn add_auths_or_clear_if_null(&mut self, value: &RawValue) -> Result<(), MalformedDockerConfig> {
        if value.get() == "null" {
            self.auths.clear();
        }
        for (key, value) in object_members_or_none_if_null(value, "auths")? {
            let (entry, has_registry_token) =
                AuthEntry::parse_credentials_and_whether_registry_token(&key, value);
            if has_registry_token {
                self.ignored.push(format!(
                    "{}.registrytoken",
                    key_path_without_user_info("auths", &key)
                ));
            }
            self.auths.insert(key, entry);
        }
        Ok(())
    }

    /// Adds the names of credential helpers in an object `credHelpers`. A value `null` removes those of an earlier one.
    fn add_cred_helpers_or_clear_if_null(&mut self, value: &RawValue) -> Result<(), MalformedDockerConfig> {
        if value.get() == "null" {
            self.helpers.clear();
        }
        for (key, value) in object_members_or_none_if_null(value, "credHelpers")? {
            let name = json::parse_json_string_or_null(value).map(Option::unwrap_or_default);
            let name = name.map_err(|_| UnusableDockerConfigEntry {
                entry: key_path_without_user_info("credHelpers", &key),
                expected: "the name of a credential helper",
            });
            self.helpers.insert(key, name);
        }
        Ok(())
    }

    /// Returns the name of the credential helper for a registry's host, and the registry's name for the helper.
    ///
    /// A helper for the registry precedes the one for all registries. Its key is exactly the host, except for Docker Hub,
    /// which has several names.
    ///
    /// # Errors
    /// Fails if the helper's name is not text.
    pub fn helper_and_server_name_for<'a>(
        &'a self,
        host: &'a str,
    ) -> Result<Option<(&'a str, &'a str)>, UnusableDockerConfigEntry> {
        let is_hub = DOCKER_HUB_NAMES.contains(&host);
        let server = if is_hub { DOCKER_HUB_KEY } else { host };
        let hub = is_hub.then_some(DOCKER_HUB_NAMES).into_iter().flatten();
        let own = [server, host]
            .into_iter()
            .chain(hub)
            .find_map(|key| self.helpers.get(key));
        let name = match own {
            Some(own) => own.as_ref().map_err(Clone::clone)?,
            None => &self.store,
        };
        Ok((!name.is_empty()).then_some((name, server)))
    }

    /// Returns the credentials for a registry's `host[:port]`; they are empty if the file has none.
    ///
    /// The entry with exactly this key precedes those whose URL has this host.
    ///
    /// # Errors
    /// Fails if the entry cannot be used.
    pub fn credentials_or_anonymous_for(
        &self,
        host: &str,
    ) -> Result<RegistryCredentials, UnusableDockerConfigEntry> {
        let is_hub = DOCKER_HUB_NAMES.contains(&host);
        let exact = if is_hub { DOCKER_HUB_KEY } else { host };
        let is_wanted = |key: &str| {
            let named = host_of_key(key);
            named == host || is_hub && DOCKER_HUB_NAMES.contains(&named)
        };
        let others = || {
            let mut named = self.auths.iter().filter(|(key, _)| is_wanted(key));
            // `docker login` with a helper leaves empty entries in the file.
            named.find(|(_, entry)| entry.as_ref().map_or(true, |found| !found.secret.is_empty()))
        };
        let found = self.auths.get(exact).or_else(|| others().map(|(_, entry)| entry));
        found
            .cloned()
            .unwrap_or_else(|| Ok(RegistryCredentials::default()))
    }

    /// Describes the unusable entries and keys of the `config.json`, quoting only their keys.
    pub fn describe_faults(&self) -> impl Iterator<Item = String> {
        let auths = self.auths.values().filter_map(|entry| entry.as_ref().err());
        let helpers = self.helpers.values().filter_map(|entry| entry.as_ref().err());
        let ignored = self.ignored.iter().map(|key| format!("{key} is not supported"));
        auths
            .chain(helpers)
            .map(UnusableDockerConfigEntry::to_string)
            .chain(ignored)
    }
}

/// One entry of `auths` in a Docker `config.json`.
#[derive(Default)]
struct AuthEntry {
    auth: String,
    username: String,
    password: String,
    identity_token: String,
    registry_token: String,
}

impl AuthEntry {
    /// Parses the credentials of one `auths` entry, and returns whether the entry has a registry token.
    fn parse_credentials_and_whether_registry_token(
        key: &str,
        value: &RawValue,
    ) -> (Result<RegistryCredentials, UnusableDockerConfigEntry>, bool) {
        let unusable = |field: &str, expected| UnusableDockerConfigEntry {
            entry: format!("{}{field}", key_path_without_user_info("auths", key)),
            expected,
        };
        let Ok(members) = json::parse_object_members_or_null(value) else {
            return (Err(unusable("", "an object")), false);
        };
        let mut entry = Self::default();
        for (name, value) in members.unwrap_or_default() {
            let fields = [
                ("auth", &mut entry.auth),
                ("username", &mut entry.username),
                ("password", &mut entry.password),
                ("identitytoken", &mut entry.identity_token),
                ("registrytoken", &mut entry.registry_token),
            ];
            let Some((known, field)) = fields
                .into_iter()
                .find(|(known, _)| json::key_matches_field(&name, known))
            else {
                continue;
            };
            match json::parse_json_string_or_null(value) {
                Ok(Some(text)) => *field = text,
                Ok(None) => {}
                Err(_) => return (Err(unusable(&format!(".{known}"), "text")), false),
            }
        }
        let has_registry_token = !entry.registry_token.is_empty();
        let expected = "the base64 of a user name, a colon and a password";
        let credentials = entry
            .credentials_unless_malformed()
            .ok_or_else(|| unusable(".auth", expected));
        (credentials, has_registry_token)
    }

    /// Returns the credentials of the `auths` entry, or `None` if its `auth` is malformed. An identity token precedes a
    /// password, and `auth` the fields `username` and `password`.
    fn credentials_unless_malformed(self) -> Option<RegistryCredentials> {
        let (mut username, mut secret) = (self.username, self.password);
        if !self.auth.is_empty() {
            let mut text = self.auth.into_bytes();
            text.retain(|byte| !byte.is_ascii_whitespace());
            let decoded = String::from_utf8(LENIENT_BASE64.decode(text).ok()?).ok()?;
            let (user, password) = decoded.split_once(':').filter(|(user, _)| !user.is_empty())?;
            (username, secret) = (user.to_owned(), password.trim_matches('\0').to_owned());
        }
        Some(match self.identity_token.is_empty() {
            true => RegistryCredentials { username, secret },
            false => RegistryCredentials {
                username: String::new(),
                secret: self.identity_token,
            },
        })
    }
}

/// A cache of the last parsed Docker `config.json`, which may change. Each fault of a content is logged once.
#[derive(Debug)]
pub struct LoginsCache {
    file: String,
    /// The content that was parsed last, with its result.
    parsed: Mutex<Option<(Secret, Arc<RegistryLogins>)>>,
}

impl LoginsCache {
    /// Creates a cache for a `config.json` that the log calls `file`.
    pub fn new(file: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            parsed: Mutex::default(),
        }
    }

    /// Parses the content of a `config.json`, unless it is the same as the last time.
    ///
    /// # Errors
    /// Fails as [`RegistryLogins::parse_config`] does.
    pub fn parse_if_changed(&self, content: &[u8]) -> Result<Arc<RegistryLogins>, MalformedDockerConfig> {
        let mut parsed = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, logins)) = &*parsed
            && known.expose() == content
        {
            return Ok(Arc::clone(logins));
        }
        let logins = Arc::new(RegistryLogins::parse_config(content)?);
        for fault in logins.describe_faults() {
            tracing::warn!(
                file = self.file,
                fault,
                "ignored an entry of the registry credentials"
            );
        }
        *parsed = Some((Secret::new(content), Arc::clone(&logins)));
        Ok(logins)
    }
}

/// Parses a JSON object to its members; returns no members for `null`.
fn object_members_or_none_if_null<'a>(
    value: &'a RawValue,
    name_in_error: &str,
) -> Result<Vec<(String, &'a RawValue)>, MalformedDockerConfig> {
    let members = json::parse_object_members_or_null(value)
        .map_err(|_| MalformedDockerConfig(format!("{name_in_error} should be an object")))?;
    Ok(members.unwrap_or_default())
}

/// Returns the name of an entry for error texts, without the user and password that a URL may have.
fn key_path_without_user_info(object: &str, key: &str) -> String {
    let name = if key.contains('@') { host_of_key(key) } else { key };
    format!("{object}.{name}")
}

/// Returns the host and port in an entry's key, which is a host or a URL, with or without a path.
fn host_of_key(key: &str) -> &str {
    let Some((_, rest)) = key.split_once("://") else {
        return key.split('/').next().unwrap_or(key);
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let host = authority.rsplit('@').next().unwrap_or(authority);
    host.strip_suffix(':').unwrap_or(host)
}
