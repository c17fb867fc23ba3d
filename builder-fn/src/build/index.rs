//! The index of a split build: the images of all parts, with their attestations, under the build's tags.

use std::collections::HashSet;
use std::time::Duration;

use function_host::{ErrorChain, trace};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::Builder;
use super::call::BuilderCall;
use super::retry::BuildRetries;
use crate::buildkit::{
    BuildFailure, BuiltImageDigestCommitAndTimes, FaultyParty, INDEX_MEDIA_TYPE, Platform,
};
use crate::error::Error;
use crate::report::{LineFormatter, LogSink};
use crate::request::{BuildRequest, ImageRef};

/// The reason why the images of the parts cannot be joined.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum JoinError {
    /// The content is not what the digest stands for.
    #[error("the registry has another content under {digest}")]
    OtherContent {
        /// The digest that BuildKit reported.
        digest: String,
    },
    /// BuildKit pushed something else than an index.
    #[error("{digest} is not an index of images")]
    NoIndex {
        /// The digest that BuildKit reported.
        digest: String,
    },
    /// Two parts have an image for one platform: they were built by builders with different settings.
    #[error(
        "two BuildKit daemons built for the platform {platform}; the bindings of daemons to platforms have changed"
    )]
    SamePlatform {
        /// The platform, as in the index.
        platform: String,
    },
    /// The parts have more or fewer platforms than the build.
    #[error(
        "the images are for {found} platforms, and the build is for {expected}; the bindings of daemons to platforms have changed"
    )]
    OtherPlatforms {
        /// The number of platforms that there are images for.
        found: usize,
        /// The number of platforms of the build.
        expected: usize,
    },
}

impl Builder {
    /// Joins the images of a split build's parts into one index, and pushes it under the build's tags, unless the
    /// config skips that: then there is no index. An image that an earlier delivery of the call pushed keeps the tags
    /// as they are.
    ///
    /// # Errors
    /// Fails if a registry does, with retries for a queued call, or the parts are not of one commit.
    pub(super) async fn join_and_push_index(
        &self,
        request: &BuildRequest,
        call: &BuilderCall<'_>,
        parts: Vec<BuiltImageDigestCommitAndTimes>,
        lines: &mut LineFormatter,
        log: &mut dyn LogSink,
    ) -> Result<BuiltImageDigestCommitAndTimes, Error> {
        let config = &request.config;
        let is_of_earlier_delivery = parts.iter().all(|part| part.completed_at.is_some());
        let last = parts.iter().max_by_key(|part| part.completed_at);
        let mut joined = match last {
            Some(last) if is_of_earlier_delivery => last.clone(),
            _ => BuiltImageDigestCommitAndTimes {
                digest: None,
                commit: parts.first().and_then(|part| part.commit.clone()),
                completed_at: None,
                submitted_at: None,
            },
        };
        if parts.iter().any(|part| part.commit != joined.commit) {
            return Err(platform_failure(
                "the ref of the context moved to another commit while the platforms were built".to_owned(),
            ));
        }
        joined.digest = None;
        if config.skip_push {
            return Ok(joined);
        }
        let digests = parts.into_iter().map(|part| part.digest.ok_or(Error::NoDigest));
        let digests = digests.collect::<Result<Vec<_>, _>>()?;
        let mut retries = BuildRetries::new(match call.is_asynchronous {
            true => self.settings.retry_time,
            false => Duration::ZERO,
        });
        let names: Vec<_> = [&config.image].into_iter().chain(&config.tags).collect();
        let step = format!("[index] join {} images and push {}", digests.len(), config.image);
        let start = Instant::now();
        log.push(lines.format_own_step_start(&step));
        let span = trace::client_span("push index");
        let pushing = async {
            loop {
                let pushed = self
                    .push_joined_once(request, &names, &digests, is_of_earlier_delivery)
                    .await;
                let error = match pushed {
                    Ok(digest) => return Ok(digest),
                    Err(error) => error,
                };
                let Some(pause) = retries.begin_retry_and_return_pause_if_allowed(&error) else {
                    return Err(error);
                };
                let seconds = pause.as_secs_f64();
                log.push(
                    lines.format_unrecorded_warning(&format!("{error}; it is tried again in {seconds:.1} s")),
                );
                tokio::time::sleep(pause).await;
            }
        };
        let pushed = span.run(pushing).await;
        log.push(lines.format_own_step_end(&step, start.elapsed()));
        if let Err(error) = &pushed {
            span.mark_failed(call.trace_mask.mask_text(&ErrorChain(error).to_string()));
        }
        joined.digest = Some(pushed?);
        Ok(joined)
    }

    /// Joins the images `digests` and pushes their index under each of `names` once. Returns its digest.
    async fn push_joined_once(
        &self,
        request: &BuildRequest,
        names: &[&ImageRef],
        digests: &[String],
        is_of_earlier_delivery: bool,
    ) -> Result<String, Error> {
        let registries = self.manifests_for(request);
        let failure =
            |name: &ImageRef, reason: String| platform_failure(format!("failed to push {name}: {reason}"));
        let Some(first) = names.first() else {
            return Err(Error::NoDigest);
        };
        let mut indexes = Vec::new();
        for digest in digests {
            let fetched = registries
                .fetch_unverified_manifest(&first.to_string(), digest)
                .await;
            let index = fetched.map_err(|error| failure(first, ErrorChain(&*error).to_string()))?;
            let index =
                index.ok_or_else(|| failure(first, format!("the registry no longer has {digest}")))?;
            indexes.push((digest.as_str(), index));
        }
        let index = join_indexes(&indexes, count_platforms(&request.config.platforms));
        let index = index.map_err(|error| failure(first, error.to_string()))?;
        let digest = sha256_digest(index.as_bytes());
        if is_of_earlier_delivery {
            let text = first.to_string();
            let tag = text.rsplit_once(':').map_or("latest", |(_, tag)| tag);
            let known = registries.has_manifest(&text, &digest).await;
            if known.map_err(|error| failure(first, ErrorChain(&*error).to_string()))? {
                let tagged = registries.fetch_unverified_manifest(&text, tag).await;
                let tagged = tagged.map_err(|error| failure(first, ErrorChain(&*error).to_string()))?;
                // It was pushed before, and another build has its tags since.
                if tagged.is_some_and(|tagged| sha256_digest(tagged.as_ref()) != digest) {
                    return Ok(digest);
                }
            }
        }
        for name in names {
            let text = name.to_string();
            let pushed = registries.push_index(&text, index.clone()).await;
            pushed.map_err(|error| failure(name, ErrorChain(&*error).to_string()))?;
        }
        Ok(digest)
    }
}

/// Returns the error of a build that failed through the platform's fault.
fn platform_failure(message: String) -> Error {
    Error::Failed(BuildFailure {
        message,
        fault: FaultyParty::Platform,
        dockerfile_line: None,
    })
}

/// Returns the number of different platforms that a config names.
fn count_platforms(platforms: &[String]) -> usize {
    let canonical =
        |text: &String| Platform::parse(text).map_or_else(|| text.clone(), |known| known.to_string());
    platforms.iter().map(canonical).collect::<HashSet<_>>().len()
}

/// Joins the indexes of parts, each with its digest, into the index of an image for `platform_count` platforms. The
/// descriptors of images and attestations stay as they are, in the order of the parts.
fn join_indexes(parts: &[(&str, impl AsRef<[u8]>)], platform_count: usize) -> Result<String, JoinError> {
    let mut manifests: Vec<Value> = Vec::new();
    let mut platforms: Vec<String> = Vec::new();
    for (digest, content) in parts {
        let content = content.as_ref();
        if sha256_digest(content) != *digest {
            return Err(JoinError::OtherContent {
                digest: (*digest).to_owned(),
            });
        }
        let index: Value = serde_json::from_slice(content).unwrap_or_default();
        let found = index.get("manifests").and_then(Value::as_array);
        let found = found.ok_or_else(|| JoinError::NoIndex {
            digest: (*digest).to_owned(),
        })?;
        for manifest in found {
            if let Some(platform) = platform_of_image(manifest) {
                if platforms.contains(&platform) {
                    return Err(JoinError::SamePlatform { platform });
                }
                platforms.push(platform);
            }
            manifests.push(manifest.clone());
        }
    }
    if platforms.len() != platform_count {
        return Err(JoinError::OtherPlatforms {
            found: platforms.len(),
            expected: platform_count,
        });
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX_MEDIA_TYPE, "manifests": manifests});
    Ok(index.to_string())
}

/// Returns the platform of an image in an index; `None` for an attestation, whose platform is `unknown`.
fn platform_of_image(manifest: &Value) -> Option<String> {
    let platform = manifest.get("platform")?;
    let text = |key: &str| platform.get(key).and_then(Value::as_str).unwrap_or_default();
    let (os, architecture, variant) = (text("os"), text("architecture"), text("variant"));
    (architecture != "unknown").then(|| {
        format!("{os}/{architecture}/{variant}")
            .trim_end_matches('/')
            .to_owned()
    })
}

/// Returns the digest of `content`, `sha256:…`.
fn sha256_digest(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns an index with an image for `architecture`, and an attestation of it if `has_attestation`.
    fn index_for(architecture: &str, has_attestation: bool) -> (String, String) {
        let image = json!({
            "digest": format!("sha256:{architecture}"), "size": 7,
            "platform": {"os": "linux", "architecture": architecture},
        });
        let attestation = json!({
            "digest": format!("sha256:attestation-{architecture}"), "size": 8,
            "platform": {"os": "unknown", "architecture": "unknown"},
            "annotations": {"vnd.docker.reference.digest": format!("sha256:{architecture}")},
        });
        let manifests: Vec<_> = [image]
            .into_iter()
            .chain(has_attestation.then_some(attestation))
            .collect();
        let content = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
        (sha256_digest(content.as_bytes()), content)
    }

    fn join(parts: &[(String, String)], platform_count: usize) -> Result<Value, JoinError> {
        let parts: Vec<_> = parts
            .iter()
            .map(|(digest, content)| (&**digest, content))
            .collect();
        join_indexes(&parts, platform_count).map(|index| serde_json::from_str(&index).expect("JSON"))
    }

    #[test]
    fn the_joined_index_has_the_images_and_attestations_of_all_parts_as_they_were() {
        let parts = [index_for("amd64", true), index_for("arm64", true)];
        let index = join(&parts, 2).expect("an index");
        assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
        let digests: Vec<_> = index["manifests"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|one| &one["digest"])
            .collect();
        assert_eq!(
            digests,
            [
                "sha256:amd64",
                "sha256:attestation-amd64",
                "sha256:arm64",
                "sha256:attestation-arm64"
            ]
        );
        let annotation = &index["manifests"][3]["annotations"]["vnd.docker.reference.digest"];
        assert_eq!(annotation, "sha256:arm64");
        assert_eq!(join(&parts, 2), Ok(index), "the same images make the same index");
    }

    #[test]
    fn images_that_are_not_those_of_the_build_are_not_joined() {
        let amd64 = index_for("amd64", false);
        let (digest, content) = index_for("arm64", false);
        assert_eq!(
            join(&[amd64.clone(), (digest.clone(), format!("{content} "))], 2),
            Err(JoinError::OtherContent { digest })
        );
        assert_eq!(
            join(&[amd64.clone(), amd64.clone()], 2),
            Err(JoinError::SamePlatform {
                platform: "linux/amd64".into()
            })
        );
        assert_eq!(
            join(&[amd64.clone(), index_for("arm64", false)], 3),
            Err(JoinError::OtherPlatforms {
                found: 2,
                expected: 3
            })
        );
        let manifest = "{}".to_owned();
        let digest = sha256_digest(manifest.as_bytes());
        assert_eq!(
            join(&[amd64, (digest.clone(), manifest)], 2),
            Err(JoinError::NoIndex { digest })
        );
    }
}
