//! Finds builds: in this process, in the histories of the daemons that build for the caller, and in the record store.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use function_host::ErrorChain;
use function_host::policy::TenantName;
use futures_util::future::join_all;
use tokio::sync::watch;
use tonic::Status;

use super::page_link::LinkSigner;
use super::record::{base_reference, log_section};
use super::store::StoreError;
use super::{BuildPhase, BuildRecord, BuildRecords, RecordKey};
use crate::buildkit::{
    BuildState, Cancellation, ConnectError, Connection, DaemonPool, HistoryListing, ListedBuild,
    ManifestLookup, SealedSecrets,
};
use crate::redact::SecretMask;
use crate::sealed::SealKeyFile;

/// The longest wait for what a daemon answers without reading its whole history, when somebody asks about builds.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest wait for a search through a daemon's whole history, and for the turn to search. A busy daemon needs
/// seconds to decode thousands of records.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(30);

/// A lookup of the builds that one caller may see.
#[derive(Clone, Debug)]
pub(super) struct BuildLookup {
    /// The records of this process's builds.
    pub(super) records: BuildRecords,
    /// The tenant of the caller; `None` without a policy.
    pub(super) tenant: Option<String>,
    /// The daemons that the caller's requests are built on.
    pub(super) pool: DaemonPool,
    /// The private key of sealed secrets.
    pub(super) seal_key: Option<SealKeyFile>,
    /// The registries that the caller's images are pushed to.
    pub(super) manifests: Arc<dyn ManifestLookup>,
    /// The signer of links to pages; `None` for a caller who has a link, which renews none.
    pub(super) links: Option<LinkSigner>,
}

/// A build that was found.
#[derive(Debug)]
pub(super) struct FoundBuild {
    /// What is known of the build.
    pub(super) record: BuildRecord,
    /// The attempts of the build in the daemons' histories, in the order of their logs.
    pub(super) attempts: Vec<ListedBuild>,
    /// The record of this process's own build, which changes with it; `None` for a build of another builder.
    pub(super) own: Option<watch::Receiver<BuildRecord>>,
    /// The mask of the log; `None` if the secrets of the build are not known, or no history has the build.
    pub(super) mask: Option<SecretMask>,
    /// The places that could not be read.
    pub(super) unread: UnreadPlaces,
}

/// The reason why no build was found.
#[derive(Debug)]
pub(super) struct NotFound {
    /// The places that could not be read.
    pub(super) unread: UnreadPlaces,
    /// Whether there is a record store.
    pub(super) has_store: bool,
}

/// The places that could not be read for a question, with the reasons.
#[derive(Clone, Debug, Default)]
pub(super) struct UnreadPlaces {
    /// The reason why the history of a daemon could not be read.
    pub(super) history: Option<String>,
    /// The reason why the record store could not be read.
    pub(super) store: Option<String>,
}

impl UnreadPlaces {
    /// Returns what an answer says about the places; `None` if all were read.
    pub(super) fn to_text(&self) -> Option<String> {
        let places = [
            ("BuildKit's history", &self.history),
            ("the record store", &self.store),
        ];
        let texts = places
            .iter()
            .filter_map(|(place, reason)| Some(format!("{place} could not be read: {}", reason.as_ref()?)));
        let texts: Vec<_> = texts.collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }
}

/// The reason why a daemon did not answer a question.
struct UnreadReason(String);

impl From<ConnectError> for UnreadReason {
    fn from(error: ConnectError) -> Self {
        Self(ErrorChain(&error).to_string())
    }
}

impl BuildLookup {
    /// Finds the build of the call `id`: in this process, in the record store, and in the histories of the daemons.
    ///
    /// The daemons decode only the records of the build if anyone knows its reference: this process, the store, or a
    /// daemon that runs it. Their whole histories are searched only for a build that nobody else knows.
    pub(super) async fn find(&self, id: &str) -> Result<FoundBuild, NotFound> {
        let key = RecordKey {
            tenant: self.tenant.clone(),
            id: id.to_owned(),
        };
        let own = self.records.find_receiver_and_mask(&key);
        let own_record = own.as_ref().map(|(own, _)| own.borrow().clone());
        let own_reference = own_record.as_ref().and_then(|own| own.reference.clone());
        let known = own_reference.or_else(|| self.records.known_reference(&key));
        let is_own_rollback = own_record.as_ref().is_some_and(|own| own.rollback.is_some());
        // A request that was rejected here may have been accepted by another builder.
        let is_rejected = own_record.as_ref().is_some_and(was_rejected);
        let reading = async {
            match self.records.store() {
                Some(store) if own.is_none() || is_rejected => Box::pin(store.read(&key)).await,
                _ => Ok(None),
            }
        };
        let asking = async {
            match known.is_some() || is_own_rollback {
                true => (None, None),
                false => self.running_reference_and_unread_reason(&key).await,
            }
        };
        let (stored, (running, unread_running)) = tokio::join!(reading, asking);
        let mut unread = UnreadPlaces {
            history: unread_running,
            store: None,
        };
        let stored = stored.unwrap_or_else(|error| {
            unread.store = Some(log_store_error_and_return_text(&error));
            None
        });
        // Another builder has accepted what was rejected here.
        let own = own.filter(|_| !(is_rejected && stored.is_some()));
        let stored_reference = stored.as_ref().and_then(|stored| stored.reference.clone());
        let reference = known.or(running).or(stored_reference);
        let mut listing = HistoryListing::default();
        if let Some(reference) = reference.as_deref().filter(|_| !is_own_rollback) {
            (listing, unread.history) = self.list_attempts_and_running_builds(&key, reference).await;
        }
        let is_unknown = (own.is_none() || is_rejected) && stored.is_none();
        if is_unknown && !listing.has_call(id) {
            // Nobody else knows the build, or its records are gone and it was built again under another reference.
            (listing, unread.history) = self.await_permit_and_search_whole_histories(id).await;
        }
        let is_cancelled = listing.cancellations.contains(&key.to_cancellation());
        let attempts = listing
            .builds
            .into_iter()
            .filter(|build| build.attributes.call_id == id);
        let attempts = attempts_of_one_build(attempts.collect(), reference.as_deref());
        if let Some(attempt) = attempts.first() {
            self.records
                .remember_reference(&key, base_reference(&attempt.reference));
        }
        let in_history = BuildRecord::from_history(id, &attempts, is_cancelled);
        let mask = match &own {
            Some((own, Some(mask))) if !was_retried_by_another_builder(&own.borrow(), &attempts) => {
                Some(mask.clone())
            }
            _ => self.mask_from_last_attempt(&attempts),
        };
        // It may have changed meanwhile.
        let own_record = own.as_ref().map(|(own, _)| own.borrow().clone());
        let record = match (own_record, in_history) {
            (Some(own), None) => own,
            (Some(own), Some(history)) => merge_preferring_own_unless_retried(own, history, &attempts),
            (None, history) => match merge_stored_record(stored, history, &attempts) {
                Some(record) => record,
                None => {
                    let has_store = self.records.store().is_some();
                    return Err(NotFound { unread, has_store });
                }
            },
        };
        Ok(FoundBuild {
            record,
            attempts,
            own: own.map(|(own, _)| own),
            mask,
            unread,
        })
    }

    /// Lists the newest builds of the caller's tenant, and the places that could not be read, so that some may be
    /// missing.
    pub(super) async fn list_newest_builds(&self) -> (Vec<BuildRecord>, UnreadPlaces) {
        let listing = async {
            let daemons = self.pool.current_daemons_and_whether_available().await;
            let is_one_of_several = daemons.len() > 1;
            let listings = daemons.iter().map(|(daemon, is_available)| async move {
                match is_available {
                    true => {
                        self.records
                            .newest()
                            .list(daemon, &self.tenant, is_one_of_several)
                            .await
                    }
                    false => {
                        let name = daemon.address_for_messages();
                        Err(format!("BuildKit at {name} did not answer a moment ago"))
                    }
                }
            });
            self.merge_listings_of_tenant_and_log_errors(join_all(listings).await)
        };
        let reading = async {
            match self.records.store() {
                Some(store) => Box::pin(store.list(&self.tenant)).await,
                None => (Vec::new(), None),
            }
        };
        let ((listing, unread_history), (stored, store_error)) = tokio::join!(listing, reading);
        let unread = UnreadPlaces {
            history: unread_history,
            store: store_error.as_ref().map(log_store_error_and_return_text),
        };
        let mut stored: HashMap<_, _> = stored
            .into_iter()
            .map(|record| (record.id.clone(), record))
            .collect();
        let own = self.records.list(self.tenant.as_deref());
        let mut own: HashMap<_, _> = own
            .into_iter()
            // Another builder has accepted what was rejected here.
            .filter(|own| !(was_rejected(own) && stored.contains_key(&own.id)))
            .map(|record| (record.id.clone(), record))
            .collect();
        let mut calls: HashMap<String, Vec<ListedBuild>> = HashMap::new();
        for build in listing.builds {
            let call_id = build.attributes.call_id.clone();
            calls.entry(call_id).or_default().push(build);
        }
        let mut builds = Vec::new();
        for (id, attempts) in calls {
            let (own, stored) = (own.remove(&id), stored.remove(&id));
            let known = own.as_ref().or(stored.as_ref());
            let reference = known.and_then(|known| known.reference.as_deref());
            let attempts = attempts_of_one_build(attempts, reference);
            let key = RecordKey {
                tenant: self.tenant.clone(),
                id: id.clone(),
            };
            let is_cancelled = listing.cancellations.contains(&key.to_cancellation());
            builds.extend(
                match (own, BuildRecord::from_history(&id, &attempts, is_cancelled)) {
                    (Some(own), Some(history)) => {
                        Some(merge_preferring_own_unless_retried(own, history, &attempts))
                    }
                    (Some(own), None) => Some(own),
                    (None, history) => merge_stored_record(stored, history, &attempts),
                },
            );
        }
        // This process knows more of its own builds than it has stored.
        stored.extend(own);
        builds.extend(stored.into_values());
        (builds, unread)
    }

    /// Puts the request to cancel a build into the histories of all daemons that answer: a builder follows those that
    /// it knows.
    ///
    /// # Errors
    /// Fails with the reason if no daemon takes the request.
    pub(super) async fn request_cancellation(&self, cancellation: &Cancellation) -> Result<(), String> {
        let requested = self
            .pool
            .ask_all_daemons_with_errors_for_left_out(|connection| async move {
                let requesting = connection.request_cancellation(cancellation);
                let requested = tokio::time::timeout(HISTORY_TIMEOUT, requesting).await;
                match requested {
                    Ok(requested) => requested.map_err(|status| UnreadReason(status.message().to_owned())),
                    Err(_) => Err(UnreadReason("BuildKit does not answer in time".to_owned())),
                }
            });
        let mut reason = "there is no BuildKit daemon".to_owned();
        for requested in requested.await {
            match requested {
                Ok(()) => return Ok(()),
                Err(UnreadReason(error)) => reason = error,
            }
        }
        Err(reason)
    }

    /// Asks the daemons for the reference of a call's build that runs; `None` if none runs it. Also returns the reason
    /// why a daemon could not be asked; `None` if all were.
    async fn running_reference_and_unread_reason(&self, key: &RecordKey) -> (Option<String>, Option<String>) {
        let request = |connection: Connection| async move { connection.list_running_builds().await };
        let (running, unread) = self.request_histories(request, HISTORY_TIMEOUT).await;
        let of_call = running
            .builds
            .iter()
            .filter(|build| build.attributes.call_id == key.id);
        let newest = of_call.max_by_key(|build| build.started_at);
        let reference = newest.map(|build| base_reference(&build.reference).to_owned());
        (reference, unread)
    }

    /// Requests what the daemons' histories have of the build `reference`. Also returns the reason why the history of a
    /// daemon could not be read.
    async fn list_attempts_and_running_builds(
        &self,
        key: &RecordKey,
        reference: &str,
    ) -> (HistoryListing, Option<String>) {
        let cancellation = &key.to_cancellation();
        let part_count = self.pool.max_parts_of_split_build();
        let request = |connection: Connection| async move {
            connection
                .list_attempts_and_running_builds(reference, part_count, cancellation)
                .await
        };
        self.request_histories(request, HISTORY_TIMEOUT).await
    }

    /// Searches the whole histories of the daemons for the builds of the call `id`. Also returns the reason why the
    /// history of a daemon could not be read.
    async fn await_permit_and_search_whole_histories(&self, id: &str) -> (HistoryListing, Option<String>) {
        // Few at a time: the daemons decode all their records for each.
        let waiting = self.records.wait_without_limit_for_search_permit();
        let Ok(_permit) = tokio::time::timeout(SEARCH_TIMEOUT, waiting).await else {
            let reason = "too many others search through it at this moment";
            return (HistoryListing::default(), Some(reason.to_owned()));
        };
        let request = |connection: Connection| async move {
            connection.list_builds_of_call_and_all_cancellations(id).await
        };
        self.request_histories(request, SEARCH_TIMEOUT).await
    }

    /// Requests the history of every daemon with `request`, which may take up to `limit`, and leaves out the builds of
    /// other tenants. Also returns the reason why one could not be read.
    async fn request_histories<F>(
        &self,
        request: impl Fn(Connection) -> F,
        limit: Duration,
    ) -> (HistoryListing, Option<String>)
    where
        F: Future<Output = Result<HistoryListing, Status>>,
    {
        let request = &request;
        let listings =
            self.pool
                .ask_all_daemons_with_errors_for_left_out(|connection| async move {
                    let daemon = connection.daemon().clone();
                    let listing = tokio::time::timeout(limit, request(connection)).await;
                    let daemon = daemon.address_for_messages();
                    match listing {
                        Ok(listing) => listing
                            .map_err(|status| UnreadReason(format!("{daemon}: {}", ErrorChain(&status)))),
                        Err(_) => Err(UnreadReason(format!("{daemon} does not answer in time"))),
                    }
                });
        let listings = listings.await.into_iter();
        self.merge_listings_of_tenant_and_log_errors(
            listings.map(|listing| listing.map_err(|UnreadReason(error)| error)),
        )
    }

    /// Merges the histories of daemons without the builds of other tenants, and also returns the reason why one could
    /// not be read.
    fn merge_listings_of_tenant_and_log_errors(
        &self,
        listings: impl IntoIterator<Item = Result<HistoryListing, String>>,
    ) -> (HistoryListing, Option<String>) {
        let mut merged = HistoryListing::default();
        let mut unread = None;
        for listing in listings {
            match listing {
                Ok(mut listing) => {
                    listing
                        .builds
                        .retain(|build| build.attributes.tenant == self.tenant);
                    merged.merge(listing);
                }
                Err(error) => {
                    tracing::warn!(
                        error,
                        "could not read BuildKit's history for a question about builds"
                    );
                    unread = Some(error);
                }
            }
        }
        (merged, unread)
    }

    /// Returns the mask of the sealed secrets in the record of the last attempt; `None` if they cannot be opened or
    /// there is no attempt.
    fn mask_from_last_attempt(&self, attempts: &[ListedBuild]) -> Option<SecretMask> {
        match &attempts.last()?.secrets {
            SealedSecrets::None => Some(SecretMask::default()),
            SealedSecrets::Omitted => None,
            SealedSecrets::Envelope(envelope) => {
                let tenant = self.tenant.as_deref().map(str::parse::<TenantName>);
                let tenant = tenant.transpose().ok()?;
                let opened = self.seal_key.as_ref()?.open_envelope(envelope, tenant.as_ref());
                Some(opened.ok()?.mask().clone())
            }
        }
    }
}

/// Returns whether the record is of a request that was rejected before it was built.
fn was_rejected(record: &BuildRecord) -> bool {
    record.phase == BuildPhase::Failed && record.reference.is_none() && record.rollback.is_none()
}

/// Returns whether another builder builds, or has built, again what failed in this process.
fn was_retried_by_another_builder(own: &BuildRecord, attempts: &[ListedBuild]) -> bool {
    matches!(own.phase, BuildPhase::Failed)
        && attempts.iter().any(|attempt| match attempt.state {
            BuildState::Running => true,
            BuildState::Succeeded | BuildState::Failed => attempt.started_at > own.ended_at,
        })
}

/// Merges a build's record in this process or in the store with that from the history. The first counts, unless it is
/// outdated.
fn merge_preferring_own_unless_retried(
    own_or_stored: BuildRecord,
    history: BuildRecord,
    attempts: &[ListedBuild],
) -> BuildRecord {
    if was_retried_by_another_builder(&own_or_stored, attempts) {
        return history;
    }
    BuildRecord {
        steps: history.steps.or(own_or_stored.steps),
        started_at: history.started_at.or(own_or_stored.started_at),
        attempts: own_or_stored.attempts.max(history.attempts),
        ..own_or_stored
    }
}

/// Returns what is known of a build of another process, or of this one before its start: by its stored record, and by
/// the history.
fn merge_stored_record(
    stored: Option<BuildRecord>,
    history: Option<BuildRecord>,
    attempts: &[ListedBuild],
) -> Option<BuildRecord> {
    let (stored, history) = match (stored, history) {
        (Some(stored), Some(history)) => (stored, history),
        (stored, history) => return stored.or(history),
    };
    if stored.phase.is_terminal() {
        return Some(merge_preferring_own_unless_retried(stored, history, attempts));
    }
    // The build has not ended, whatever became of its attempts: its builder tries again, deploys, or another one
    // resumes it.
    let phase = match history.phase {
        BuildPhase::Unknown => BuildPhase::Deploying,
        BuildPhase::Failed => BuildPhase::Waiting,
        phase => phase,
    };
    let mut outcome = history.outcome;
    if !phase.is_terminal() {
        outcome.remove("error");
    }
    Some(BuildRecord {
        phase,
        outcome,
        steps: history.steps,
        started_at: history.started_at,
        ended_at: history.ended_at.filter(|_| phase.is_terminal()),
        attempts: history.attempts,
        ..stored
    })
}

/// Logs why the record store could not be read, and returns the note for the caller.
fn log_store_error_and_return_text(error: &StoreError) -> String {
    tracing::warn!(error = %ErrorChain(error), "could not read the record store for a question about builds");
    error.to_string()
}

/// Returns the attempts of the build `reference`, or else of the last build that began, the first attempt first; those
/// of each part of a split build together. A caller may have sent different requests under one ID.
fn attempts_of_one_build(mut attempts: Vec<ListedBuild>, reference: Option<&str>) -> Vec<ListedBuild> {
    let newest = attempts.iter().max_by_key(|attempt| attempt.started_at);
    let known = reference.filter(|reference| {
        attempts
            .iter()
            .any(|attempt| base_reference(&attempt.reference) == *reference)
    });
    let base = match (known, newest) {
        (Some(known), _) => known.to_owned(),
        (None, Some(newest)) => base_reference(&newest.reference).to_owned(),
        (None, None) => return Vec::new(),
    };
    attempts.retain(|attempt| base_reference(&attempt.reference) == base);
    attempts.sort_by_key(log_section);
    // A build that has just ended may be listed twice.
    attempts.reverse();
    attempts.dedup_by(|one, other| one.reference == other.reference);
    attempts.reverse();
    attempts
}
