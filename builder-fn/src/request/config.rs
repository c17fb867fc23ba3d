//! The file `com.openfaas.docker.config`: what to make of the context.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

mod cache;

use super::image::{ImageError, ImageRef};
use super::time;
use crate::compression::Compression;
pub use cache::CacheTo;

/// A build configuration whose every value has been checked.
#[derive(Clone)]
pub struct BuildConfig {
    /// The name to push to, as it is used from here on.
    pub image: ImageRef,
    /// The same as the caller wrote it, for answers.
    pub image_as_given: String,
    /// The same image under the further tags of `tags`.
    pub tags: Vec<ImageRef>,
    /// Build arguments by name.
    pub build_args: BTreeMap<String, String>,
    /// Platforms such as `linux/arm64`; empty for the daemon's own.
    pub platforms: Vec<String>,
    /// Build only.
    pub skip_push: bool,
    /// The stage to build, where it is not the last.
    pub target: Option<String>,
    /// Labels for the image.
    pub labels: BTreeMap<String, String>,
    /// Run every step anew.
    pub no_cache: bool,
    /// Images to take cached steps from.
    pub cache_from: Vec<ImageRef>,
    /// Images to leave cached steps in.
    pub cache_to: Vec<CacheTo>,
    /// How much the image is to say about how it was built, if anything.
    pub provenance: Option<Provenance>,
    /// Whether the image is to have a list of what is in it.
    pub sbom: bool,
    /// How layers are to be compressed, where the operator's choice is not the right one.
    pub compression: Option<Compression>,
    /// Path of the Dockerfile, relative to the context, cleaned.
    pub dockerfile: Option<String>,
    /// How long the build may take.
    pub timeout: Option<Duration>,
    /// When the request stops being good.
    pub not_after: Option<SystemTime>,
    /// The function to deploy afterwards: the gateway's request without `image`.
    pub deploy: Option<Map<String, Value>>,
    /// How the deployer asks that function whether it works; the deployer knows what may be in it.
    pub probe: Option<Map<String, Value>>,
    /// Keys that mean nothing here, for a warning.
    pub unknown: Vec<String>,
}

/// How much an attestation of the build says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provenance {
    /// Sources and the build's own identity.
    Min,
    /// All of it, with build arguments and the Dockerfile.
    Max,
}

/// Why a build configuration is refused. The text says all: which key, what is wrong, and what would be right.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON.
    #[error("com.openfaas.docker.config is not JSON: {reason}")]
    Syntax {
        /// What the parser says: a position, never content.
        reason: String,
    },
    /// JSON, but not an object.
    #[error("com.openfaas.docker.config should be a JSON object")]
    NotAnObject,
    /// A key that has to be there is not.
    #[error("com.openfaas.docker.config has no {key}; it should be {should_be}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What would be right.
        should_be: &'static str,
    },
    /// A value of the wrong kind, or that makes no sense.
    #[error("{key} in com.openfaas.docker.config should be {should_be}")]
    Wrong {
        /// The key, with the way to it.
        key: String,
        /// What would be right.
        should_be: String,
    },
    /// A name that cannot be pushed to.
    #[error("{key} in com.openfaas.docker.config is not an image reference: {reason}")]
    Image {
        /// The key.
        key: String,
        /// What is wrong with it.
        reason: ImageError,
    },
    /// A build argument that steers BuildKit itself.
    #[error(
        "buildArgs.{name} in com.openfaas.docker.config is not allowed: arguments that begin with BUILDKIT_ change \
         how BuildKit itself works"
    )]
    Reserved {
        /// Its name.
        name: String,
    },
}

impl BuildConfig {
    /// Reads the file's content.
    ///
    /// `null` counts as absent everywhere: several clients write it for what they leave out.
    ///
    /// # Errors
    /// At the first value that is not as it should be.
    pub fn parse(content: &[u8]) -> Result<Self, ConfigError> {
        let value = serde_json::from_slice(content).map_err(|error| ConfigError::Syntax {
            reason: error.to_string(),
        })?;
        let Value::Object(map) = value else {
            return Err(ConfigError::NotAnObject);
        };
        let mut keys = Keys(map);

        let image_as_given = keys.text("image")?.ok_or(ConfigError::Missing {
            key: "image",
            should_be: "the name to push to, like registry.example.com/team/name:tag",
        })?;
        let refuse = |key: String| move |reason| ConfigError::Image { key, reason };
        let image = ImageRef::parse(&image_as_given).map_err(refuse("image".to_owned()))?;
        let tags = keys.list("tags")?.into_iter().enumerate();
        let tags = tags.map(|(at, tag)| image.with_tag(&tag).map_err(refuse(format!("tags[{at}]"))));
        let config = Self {
            tags: tags.collect::<Result<_, _>>()?,
            build_args: build_args(keys.texts("buildArgs")?)?,
            platforms: platforms(keys.list("platforms")?)?,
            skip_push: keys.flag("skipPush")?,
            target: target(keys.text("target")?)?,
            labels: labels(keys.texts("labels")?)?,
            no_cache: keys.flag("noCache")?,
            cache_from: cache::cache_from(keys.list("cacheFrom")?)?,
            cache_to: cache::cache_to(keys.list("cacheTo")?)?,
            provenance: provenance(keys.take("provenance"))?,
            sbom: keys.flag("sbom")?,
            compression: compression(keys.text("compression")?, keys.take("compressionLevel"))?,
            dockerfile: keys
                .text("dockerfile")?
                .map(|path| dockerfile(&path))
                .transpose()?,
            timeout: timeout(keys.take("timeout"))?,
            not_after: keys.text("notAfter")?.map(|text| not_after(&text)).transpose()?,
            deploy: keys.object("deploy")?,
            probe: keys.object("probe")?,
            unknown: keys.0.into_iter().map(|(key, _)| key).collect(),
            image,
            image_as_given,
        };
        config.check_deploy()?;
        Ok(config)
    }

    fn check_deploy(&self) -> Result<(), ConfigError> {
        let Some(deploy) = &self.deploy else {
            return match self.probe {
                None => Ok(()),
                Some(_) => Err(wrong(
                    "probe",
                    "left out, or beside deploy: it is about what is deployed",
                )),
            };
        };
        if deploy
            .get("service")
            .and_then(Value::as_str)
            .is_none_or(str::is_empty)
        {
            return Err(wrong("deploy.service", "the name of the function"));
        }
        if deploy.contains_key("image") {
            return Err(wrong(
                "deploy.image",
                "left out: what is deployed is what was built",
            ));
        }
        if self.skip_push {
            return Err(wrong(
                "skipPush",
                "false, or deploy left out: what is not pushed cannot be deployed",
            ));
        }
        Ok(())
    }
}

impl fmt::Debug for BuildConfig {
    /// Without values: build arguments and environment variables hold secrets all too often.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuildConfig")
            .field("image", &self.image)
            .field("build_args", &self.build_args.keys())
            .field("platforms", &self.platforms)
            .field("deploy", &self.deploy.as_ref().map(Map::keys))
            .finish_non_exhaustive()
    }
}

/// The keys that have not been looked at yet.
struct Keys(Map<String, Value>);

impl Keys {
    fn take(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key).filter(|value| !value.is_null())
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(wrong(key, "a string")),
        }
    }

    fn flag(&mut self, key: &str) -> Result<bool, ConfigError> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(_) => Err(wrong(key, "true or false")),
        }
    }

    fn object(&mut self, key: &str) -> Result<Option<Map<String, Value>>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err(wrong(key, "an object")),
        }
    }

    fn list(&mut self, key: &str) -> Result<Vec<String>, ConfigError> {
        let items = match self.take(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(_) => return Err(wrong(key, "a list of strings")),
        };
        let text = |(at, item)| match item {
            Value::String(text) => Ok(text),
            _ => Err(wrong(format!("{key}[{at}]"), "a string")),
        };
        items.into_iter().enumerate().map(text).collect()
    }

    fn texts(&mut self, key: &str) -> Result<BTreeMap<String, String>, ConfigError> {
        let text = |(name, value)| match value {
            Value::String(text) => Ok((name, text)),
            _ => Err(wrong(
                format!("{key}.{name}"),
                "a string (numbers and booleans need quotes)",
            )),
        };
        self.object(key)?
            .unwrap_or_default()
            .into_iter()
            .map(text)
            .collect()
    }
}

/// Names are refused when they steer BuildKit (pitfall: `BUILDKIT_SYNTAX` chooses the program that reads the
/// Dockerfile). `SOURCE_DATE_EPOCH` is one that BuildKit knows too, and that a reproducible build needs.
fn build_args(given: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ConfigError> {
    for name in given.keys() {
        if name.to_ascii_uppercase().starts_with("BUILDKIT_") {
            return Err(ConfigError::Reserved { name: name.clone() });
        }
        if name.is_empty() || name.contains('=') || name.chars().any(|c| c.is_whitespace() || c.is_control())
        {
            return Err(wrong(
                format!("buildArgs.{name:?}"),
                "named without blanks and '='",
            ));
        }
    }
    Ok(given)
}

fn labels(given: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ConfigError> {
    match given.keys().find(|name| name.trim().is_empty()) {
        Some(_) => Err(wrong("labels", "an object whose keys are not blank")),
        None => Ok(given),
    }
}

/// `os/architecture/variant`, where the last, or all but one, may be missing. Blank ones are left out: clients split
/// an empty option into a list of one empty string.
fn platforms(given: Vec<String>) -> Result<Vec<String>, ConfigError> {
    let mut platforms: Vec<String> = Vec::new();
    for (at, platform) in given.into_iter().enumerate() {
        let platform = platform.trim().to_ascii_lowercase();
        let is_part = |part: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
            !part.is_empty() && part.bytes().all(allowed)
        };
        if platform.is_empty() || platforms.contains(&platform) {
            continue;
        }
        if !platform.split('/').all(is_part) || platform.split('/').count() > 3 {
            return Err(wrong(
                format!("platforms[{at}]"),
                "a platform like linux/amd64 or linux/arm/v7",
            ));
        }
        platforms.push(platform);
    }
    Ok(platforms)
}

fn target(given: Option<String>) -> Result<Option<String>, ConfigError> {
    match given {
        Some(target) if target.trim().is_empty() || target.chars().any(char::is_control) => {
            Err(wrong("target", "the name or number of a stage"))
        }
        other => Ok(other),
    }
}

/// `true` means as little as other builders' default: build arguments hold secrets all too often.
fn provenance(given: Option<Value>) -> Result<Option<Provenance>, ConfigError> {
    match given {
        None | Some(Value::Bool(false)) => Ok(None),
        Some(Value::Bool(true)) => Ok(Some(Provenance::Min)),
        Some(Value::String(text)) if matches!(text.as_str(), "min" | "mode=min") => Ok(Some(Provenance::Min)),
        Some(Value::String(text)) if matches!(text.as_str(), "max" | "mode=max") => Ok(Some(Provenance::Max)),
        Some(_) => Err(wrong("provenance", "true, false, \"min\" or \"max\"")),
    }
}

fn compression(format: Option<String>, level: Option<Value>) -> Result<Option<Compression>, ConfigError> {
    let Some(format) = format else {
        return match level {
            None => Ok(None),
            Some(_) => Err(wrong("compressionLevel", "left out, or compression said with it")),
        };
    };
    let format = format
        .parse()
        .map_err(|_| wrong("compression", "\"zstd\", \"gzip\" or \"uncompressed\""))?;
    // What is no whole number is no level of any format.
    let level = level.map(|level| level.as_u64().unwrap_or(u64::MAX));
    Compression::new(format, level).map(Some).map_err(|error| {
        let text = error.to_string();
        wrong("compressionLevel", text.trim_start_matches("should be "))
    })
}

fn dockerfile(path: &str) -> Result<String, ConfigError> {
    let components: Vec<&str> = path
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    let leads_out = path.starts_with('/') || components.contains(&"..") || path.chars().any(char::is_control);
    if leads_out || components.is_empty() {
        return Err(wrong(
            "dockerfile",
            "a path in context/, like Dockerfile or build/Dockerfile",
        ));
    }
    Ok(components.join("/"))
}

/// A Go duration, or a whole number of seconds.
fn timeout(given: Option<Value>) -> Result<Option<Duration>, ConfigError> {
    let timeout = match given {
        None => return Ok(None),
        Some(Value::String(text)) => function_host::duration::parse(&text).ok(),
        Some(Value::Number(seconds)) => seconds.as_u64().map(Duration::from_secs),
        Some(_) => None,
    };
    match timeout {
        Some(timeout) if !timeout.is_zero() => Ok(Some(timeout)),
        _ => Err(wrong("timeout", "a duration above zero, like 90s or 10m")),
    }
}

fn not_after(text: &str) -> Result<SystemTime, ConfigError> {
    time::parse_rfc3339(text).ok_or_else(|| wrong("notAfter", "a time like 2030-01-31T12:00:00Z"))
}

fn wrong(key: impl Into<String>, should_be: impl Into<String>) -> ConfigError {
    ConfigError::Wrong {
        key: key.into(),
        should_be: should_be.into(),
    }
}

#[cfg(test)]
mod tests;
