//! The build configuration: the file `com.openfaas.docker.config`.
//!
//! [`BuildConfig::parse`] reads every key through [`fields`], which knows how JSON values are accepted, and [`values`]
//! and [`cache`], which know what each key may be. Wrong keys are collected and reported together.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

mod cache;
mod commit_status;
mod context;
mod error;
mod fields;
mod git;
mod values;

use super::image::ImageRef;
use crate::compression::LayerCompression;
use crate::sources::WebUrl;
pub(crate) use cache::CacheToItem;
pub(crate) use commit_status::{CommitStatusConfig, Forge, is_full_commit_hash};
pub(super) use context::NamedContext;
pub use context::{ContextArtifactReference, ContextTarReference, UrlContext};
pub(super) use error::ConfigError;
use error::ConfigProblem;
use fields::{ConfigFields, RespelledKey};
pub use git::GitContext;

/// A build configuration whose every value has been checked.
#[derive(Clone)]
pub struct BuildConfig {
    /// The full reference of the image to push.
    pub image: ImageRef,
    /// The image's reference as the caller wrote it, for answers.
    pub image_as_given: String,
    /// The references of the image under the further tags of `tags`.
    pub tags: Vec<ImageRef>,
    /// The build arguments by name.
    pub build_args: BTreeMap<String, String>,
    /// The platforms to build for, such as `linux/arm64`; empty for BuildKit's own.
    pub platforms: Vec<String>,
    /// Whether the image is built and not pushed.
    pub skip_push: bool,
    /// The stage of the Dockerfile to build; `None` for the last.
    pub target: Option<String>,
    /// The labels in the image's configuration, by name.
    pub labels: BTreeMap<String, String>,
    /// Whether every step of the build runs without the cache.
    pub no_cache: bool,
    /// The images to import cached steps from.
    pub cache_from: Vec<ImageRef>,
    /// The images to export cached steps to.
    pub cache_to: Vec<CacheToItem>,
    /// The provenance attestation of the image, if it gets one.
    pub provenance: Option<ProvenanceMinOrMax>,
    /// Whether the image gets an SBOM, a list of its contents.
    pub sbom: bool,
    /// The compression of the image's layers; `None` for the operator's choice.
    pub compression: Option<LayerCompression>,
    /// The cleaned path of the Dockerfile, relative to the context; `None` for `Dockerfile`.
    pub dockerfile: Option<String>,
    /// The time limit that the caller sets for the build.
    pub timeout: Option<Duration>,
    /// The time at which the request expires.
    pub not_after: Option<SystemTime>,
    /// The time at which the request was signed.
    pub submitted_at: Option<SystemTime>,
    /// Whether a newer build of the function supersedes this one, and this one supersedes older ones.
    pub supersede: bool,
    /// The function to deploy after the build: the gateway's request without `image`.
    pub deploy: Option<Map<String, Value>>,
    /// The URL that the result of the build is sent to.
    pub notify: Option<WebUrl>,
    /// The status of a commit that the build sets.
    pub(crate) commit_status: Option<CommitStatusConfig>,
    /// The probe that the deployer runs against the function. The deployer validates its fields.
    pub probe: Option<Map<String, Value>>,
    /// The unknown keys of the configuration, which are ignored with a warning.
    pub unknown: Vec<String>,
    /// The keys of the configuration whose letters have another case, for a warning.
    pub(crate) respelled: Vec<RespelledKey>,
}

/// The level of detail of a provenance attestation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProvenanceMinOrMax {
    /// A minimal provenance attestation: sources and the build's own identity.
    Min,
    /// A maximal provenance attestation: everything, including build arguments and the Dockerfile.
    Max,
}

impl BuildConfig {
    /// Parses a build configuration, the content of `com.openfaas.docker.config`.
    ///
    /// `null` counts as absent for every key, and in maps and lists; so does the empty string, except in maps. Several
    /// clients write them for what they leave out.
    ///
    /// # Errors
    /// Fails if the content is not a JSON object, or with every key that is missing or wrong.
    pub fn parse(content: &[u8]) -> Result<Self, ConfigError> {
        let config = parse_fields(content).and_then(Self::read);
        config.map_err(|problem| ConfigError {
            place: "com.openfaas.docker.config",
            problem,
        })
    }

    /// Reads a build configuration from `fields`, which may have errors already.
    fn read(mut fields: ConfigFields) -> Result<Self, ConfigProblem> {
        let image = values::read_image_in_full_and_as_given(&mut fields);
        let tags = values::read_tags(&mut fields);
        let build_args = values::read_build_args(&mut fields);
        let platforms = values::read_platforms(&mut fields);
        let skip_push = fields.read_flag("skipPush", false);
        let target = values::read_target(&mut fields);
        let labels = values::read_labels(&mut fields);
        let no_cache = fields.read_flag("noCache", false);
        let cache_from = cache::read_cache_from(&mut fields);
        let cache_to = cache::read_cache_to(&mut fields);
        let provenance = values::read_provenance(&mut fields);
        let sbom = fields.read_flag("sbom", false);
        let compression = values::read_compression(&mut fields);
        let dockerfile = values::read_dockerfile_path(&mut fields);
        let timeout = values::read_timeout(&mut fields);
        let not_after = values::read_time(&mut fields, "notAfter");
        let submitted_at = values::read_time(&mut fields, "submittedAt");
        let supersede = fields.read_flag("supersede", true);
        let notify = values::read_notify_url(&mut fields);
        let commit_status = commit_status::read_commit_status(&mut fields);
        let (deploy, probe) = values::read_deploy_and_probe(&mut fields, skip_push);

        let Some((image, image_as_given)) = image else {
            return Err(fields.into_problem());
        };
        let keys = fields.into_unread_and_respelled_keys()?;
        Ok(Self {
            tags: tags.into_iter().map(|tag| image.with_tag(tag)).collect(),
            unknown: keys.unknown,
            respelled: keys.respelled,
            image,
            image_as_given,
            build_args,
            platforms,
            skip_push,
            target,
            labels,
            no_cache,
            cache_from,
            cache_to,
            provenance,
            sbom,
            compression,
            dockerfile,
            timeout,
            not_after,
            submitted_at,
            supersede,
            deploy,
            notify,
            commit_status,
            probe,
        })
    }
}

/// Parses the fields of a configuration, or of a JSON request.
fn parse_fields(content: &[u8]) -> Result<ConfigFields, ConfigProblem> {
    if let Some(encoding) = error::byte_order_mark_encoding(content) {
        return Err(ConfigProblem::ByteOrderMark { encoding });
    }
    let value = serde_json::from_slice(content).map_err(|error| ConfigProblem::Syntax {
        reason: error.to_string(),
    })?;
    let Value::Object(map) = value else {
        return Err(ConfigProblem::NotAnObject);
    };
    Ok(ConfigFields::new(map))
}

/// A JSON request: a build configuration, with a reference to its context and the sealed secrets beside it.
pub(super) struct JsonRequest {
    /// The build configuration.
    pub(super) config: BuildConfig,
    /// The reference to the context: a tar in a registry or on a web server, or a git repository.
    pub(super) context: NamedContext,
    /// The envelope with the sealed secrets, as text.
    pub(super) sealed_secrets: Option<String>,
}

impl JsonRequest {
    /// Parses the body of a JSON request: the members of a configuration, `context`, and maybe `sealedSecrets`.
    ///
    /// # Errors
    /// Fails if the content is not a JSON object, or with every key that is missing or wrong.
    pub(super) fn parse(content: &[u8]) -> Result<Self, ConfigError> {
        Self::read(content).map_err(|problem| ConfigError {
            place: "the JSON request",
            problem,
        })
    }

    /// Parses the body of a JSON request, and fails with the problem without its place.
    fn read(content: &[u8]) -> Result<Self, ConfigProblem> {
        let mut fields = parse_fields(content)?;
        let context = context::read_named_context(&mut fields);
        let sealed_secrets = fields.read_string("sealedSecrets");
        Ok(Self {
            config: BuildConfig::read(fields)?,
            // A missing one is among the errors of the fields.
            context: context.ok_or(ConfigProblem::NotAnObject)?,
            sealed_secrets,
        })
    }
}

impl fmt::Debug for BuildConfig {
    /// Formats the configuration without values: build arguments and environment variables often hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuildConfig")
            .field("image", &self.image)
            .field("build_args", &self.build_args.keys())
            .field("platforms", &self.platforms)
            .field("deploy", &self.deploy.as_ref().map(Map::keys))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
