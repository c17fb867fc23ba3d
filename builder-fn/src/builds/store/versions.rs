//! Stores the versions of functions, which rollbacks choose from.
//!
//! Each version is a manifest of its own, sealed as records are, under a tag of its own ([`VersionTag`]), so that
//! nothing that two builders write at the same time is lost.
//!
//! A version is written while it is deployed, so that a rollback which follows immediately knows what it replaces, and
//! again with the outcome. One that was not deployed is deleted. So are those that newer ones of the same function
//! replace, after each deployment, and those of functions that are not deployed any more, by the sweep
//! (`sweep/versions.rs`).

use std::collections::HashSet;
use std::time::Duration;

use function_host::ErrorChain;
use futures_util::StreamExt;
use tokio::sync::oneshot;

use super::document::{ArtifactManifest, digest_of};
use super::seal::SealedContent;
use super::version_tag::{VersionTag, version_tag_prefix};
use super::{CONCURRENT_READS, PendingRecordGuard, RecordStore, StoreError, WRITE_ATTEMPT_TIMEOUT};
use crate::versions::{FunctionVersion, VERSIONS_KEPT_PER_FUNCTION, VersionState};

/// The number of versions that are stored beyond those that can be chosen: some may turn out not to be deployed.
const SPARE_STORED_VERSIONS: usize = 2;

/// The limit on the versions of a function that are deleted after one deployment of it.
const DELETIONS_MAX: usize = 100;

/// The number of attempts to write a version.
const VERSION_WRITE_ATTEMPTS: u32 = 5;

/// The recording of a deployment, which waits for its outcome. Dropping it leaves the version as one whose outcome is
/// not known.
#[derive(Debug)]
pub(crate) struct DeploymentRecording(Option<oneshot::Sender<VersionState>>);

/// What the registry has of a version at the beginning of its deployment.
#[derive(Debug)]
enum BegunVersion {
    /// The registry has the version as one that is being deployed, in the manifest with this digest.
    Written(String),
    /// The registry has the version as one that was deployed.
    DeployedBefore,
    /// The registry has failed.
    Unrecorded,
}

impl DeploymentRecording {
    /// Returns a recording that records nothing: there is no record store, or too many records wait.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Records the outcome of the deployment, in the background.
    pub(crate) fn finish(self, state: VersionState) {
        if let Some(outcome) = self.0 {
            // The task that records it has given up.
            let _ = outcome.send(state);
        }
    }
}

impl RecordStore {
    /// Begins to record in the background that a version is being deployed, unless too many records wait for the
    /// registry; records the outcome later, once the caller passes it to [`DeploymentRecording::finish`].
    /// `dropped_afterwards` is dropped after that.
    pub(crate) fn begin_recording_deployment_unless_crowded(
        &self,
        tenant: Option<String>,
        version: FunctionVersion,
        dropped_afterwards: impl Send + 'static,
    ) -> DeploymentRecording {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return DeploymentRecording::none();
        };
        let (guard, is_one_too_many) = self.count_pending_record_and_is_crowded(&tenant);
        if is_one_too_many {
            tracing::warn!(
                "a version of a function was not recorded: too many records wait for the registry"
            );
            return DeploymentRecording::none();
        }
        let (sender, outcome) = oneshot::channel();
        let store = self.clone();
        runtime.spawn(async move {
            let _work = dropped_afterwards;
            store.record_deployment(&tenant, version, outcome, guard).await;
        });
        DeploymentRecording(Some(sender))
    }

    async fn record_deployment(
        &self,
        tenant: &Option<String>,
        mut version: FunctionVersion,
        outcome: oneshot::Receiver<VersionState>,
        pending: PendingRecordGuard,
    ) {
        version.state = VersionState::Deploying;
        let begun = match self.write_begun_version_unless_deployed(tenant, &version).await {
            Ok(begun) => begun,
            Err(error) => {
                log_version_error(&version, &error);
                BegunVersion::Unrecorded
            }
        };
        // While the version is deployed, nothing waits for the registry.
        drop(pending);
        let Ok(state) = outcome.await else { return };
        version.state = state;
        match (state, &begun) {
            // The call was delivered again, and a newer version is deployed: this one was good all the same.
            (VersionState::Failed, BegunVersion::DeployedBefore) => return,
            (VersionState::Failed, BegunVersion::Unrecorded) => return,
            (VersionState::Failed, BegunVersion::Written(digest))
                if self.0.repository.delete(tenant, digest).await =>
            {
                return;
            }
            _ => {}
        }
        for attempt in 1..=VERSION_WRITE_ATTEMPTS {
            match self.write_version_and_return_digest(tenant, &version).await {
                Ok(_) => {
                    self.0.writes.count(true);
                    if let BegunVersion::Written(digest) = &begun {
                        self.0.repository.delete(tenant, digest).await;
                    }
                    return self
                        .delete_old_versions_except_last_good(tenant, &version.function)
                        .await;
                }
                Err(error) => log_version_error(&version, &error),
            }
            self.0.writes.count(false);
            tokio::time::sleep(Duration::from_secs(1 << attempt)).await;
        }
    }

    /// Writes that a version is being deployed, unless an earlier delivery of the call has deployed it.
    async fn write_begun_version_unless_deployed(
        &self,
        tenant: &Option<String>,
        version: &FunctionVersion,
    ) -> Result<BegunVersion, StoreError> {
        let limit = WRITE_ATTEMPT_TIMEOUT;
        let tag = VersionTag::new(tenant, version).to_string();
        let earlier = match tokio::time::timeout(
            limit,
            self.read_version_unless_missing_or_unreadable(tenant, &tag),
        )
        .await
        {
            Ok(earlier) => earlier?,
            Err(_) => return Err(StoreError::Timeout { limit }),
        };
        match earlier.map(|earlier| earlier.state) {
            Some(VersionState::Ready | VersionState::Unverified | VersionState::Sent) => {
                Ok(BegunVersion::DeployedBefore)
            }
            Some(VersionState::Deploying | VersionState::Failed) | None => Ok(BegunVersion::Written(
                self.write_version_and_return_digest(tenant, version).await?,
            )),
        }
    }

    /// Writes a version, and returns the digest of its manifest.
    async fn write_version_and_return_digest(
        &self,
        tenant: &Option<String>,
        version: &FunctionVersion,
    ) -> Result<String, StoreError> {
        let writing = async {
            let _writer = self.0.writers.acquire().await;
            let json = serde_json::to_vec(version).map_err(|_| StoreError::Malformed)?;
            let sealed = self.0.seal.seal(SealedContent::Version, tenant, &json)?;
            let manifest = ArtifactManifest::of_version(&sealed);
            let tag = VersionTag::new(tenant, version).to_string();
            self.0.repository.put(tenant, &tag, &manifest).await?;
            Ok(manifest.digest())
        };
        match tokio::time::timeout(WRITE_ATTEMPT_TIMEOUT, writing).await {
            Ok(written) => written,
            Err(_) => Err(StoreError::Timeout {
                limit: WRITE_ATTEMPT_TIMEOUT,
            }),
        }
    }

    /// Lists the versions of a function that can be chosen for a rollback, the newest first.
    ///
    /// # Errors
    /// Fails if the registry does not answer in a short time.
    pub(crate) async fn list_versions_for_rollback(
        &self,
        tenant: &Option<String>,
        function: &str,
    ) -> Result<Vec<FunctionVersion>, StoreError> {
        let limit = self.0.times.exchange;
        let listing = async {
            let tags = self.list_version_tags(tenant, function).await?;
            let mut versions = futures_util::stream::iter(tags)
                .map(|tag| async move { self.read_version_unless_missing_or_unreadable(tenant, &tag).await })
                .buffered(CONCURRENT_READS);
            let mut found = Vec::new();
            while let Some(version) = versions.next().await {
                // The tag says nothing that counts: every writer to the registry can choose it.
                let version = version?.filter(|version| version.function == function);
                found.extend(version.filter(|version| version.state != VersionState::Failed));
                if found.len() >= 2 * VERSIONS_KEPT_PER_FUNCTION {
                    break;
                }
            }
            found.sort_by_key(|version| std::cmp::Reverse(version.submitted_at));
            // A call that was delivered twice may have two times.
            let mut ids = HashSet::new();
            found.retain(|version| ids.insert(version.id.clone()));
            found.truncate(VERSIONS_KEPT_PER_FUNCTION);
            Ok(found)
        };
        match tokio::time::timeout(limit, listing).await {
            Ok(listed) => listed,
            Err(_) => Err(StoreError::Timeout { limit }),
        }
    }

    /// Reads the version with this tag; `None` if the tag is missing or the version cannot be opened.
    pub(super) async fn read_version_unless_missing_or_unreadable(
        &self,
        tenant: &Option<String>,
        tag: &str,
    ) -> Result<Option<FunctionVersion>, StoreError> {
        let Some(manifest) = self.0.repository.get(tenant, tag).await? else {
            return Ok(None);
        };
        let opened = ArtifactManifest::sealed_content(&manifest)
            .and_then(|sealed| self.0.seal.open(SealedContent::Version, tenant, &sealed));
        match opened {
            Ok(json) => Ok(serde_json::from_slice(&json).ok()),
            // Sealed with a key that is gone, or not a version: no reason to miss the others.
            Err(StoreError::OtherKey | StoreError::Malformed) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the tags of a function's versions, the newest first.
    async fn list_version_tags(
        &self,
        tenant: &Option<String>,
        function: &str,
    ) -> Result<Vec<String>, StoreError> {
        let prefix = version_tag_prefix(tenant, function);
        let mut tags = self
            .0
            .repository
            .list_tags_after_and_maybe_earlier(tenant, &prefix, &prefix)
            .await?;
        tags.sort_unstable();
        tags.dedup();
        Ok(tags)
    }

    /// Deletes the versions of a function that cannot be chosen any more, except the newest good one of them if none
    /// that can be chosen is good: those may turn out not to be deployed. A failure is logged: the next deployment
    /// tries again.
    async fn delete_old_versions_except_last_good(&self, tenant: &Option<String>, function: &str) {
        if self.0.repository.refuses_deletion(tenant) {
            return;
        }
        let deleting = async {
            let kept = self.list_versions_for_rollback(tenant, function).await?;
            let mut keeps_good_one = kept.iter().any(|version| version.state == VersionState::Ready);
            let tags = self.list_version_tags(tenant, function).await?;
            for tag in tags
                .iter()
                .skip(VERSIONS_KEPT_PER_FUNCTION + SPARE_STORED_VERSIONS)
                .take(DELETIONS_MAX)
            {
                if !keeps_good_one {
                    let version = self
                        .read_version_unless_missing_or_unreadable(tenant, tag)
                        .await?;
                    keeps_good_one = version.is_some_and(|version| version.state == VersionState::Ready);
                    if keeps_good_one {
                        continue;
                    }
                }
                if let Some(manifest) = self.0.repository.get(tenant, tag).await? {
                    self.0.repository.delete(tenant, &digest_of(&manifest)).await;
                }
            }
            Ok::<_, StoreError>(())
        };
        if let Err(error) = deleting.await {
            tracing::warn!(function, error = %ErrorChain(&error), "could not delete old versions of a function");
        }
    }
}

fn log_version_error(version: &FunctionVersion, error: &StoreError) {
    tracing::warn!(
        function = version.function,
        call_id = version.id,
        error = %ErrorChain(error),
        "could not record a version of a function"
    );
}
