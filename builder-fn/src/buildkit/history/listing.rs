//! Builds as the daemon's history describes them to somebody who asks about them.

use std::collections::{HashMap, HashSet};
use std::iter::Sum;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::{
    BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest,
};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tonic::{Code, Status};

use super::{
    BuildState, find_finished_record, find_running_or_finished_record, listen_to_history, lookup,
    none_after_logged_failure, request_for_running_solves, time_from_unix, within_answer_timeout,
};
use crate::buildkit::attributes::SolveAttributes;
use crate::buildkit::job::ATTEMPT_REFERENCES_OF_CALL_MAX;
use crate::buildkit::reference::part_name;
use crate::buildkit::solve::{OMITTED_SEALED_SECRETS_VALUE, SEALED_SECRETS_ATTRIBUTE};
use crate::buildkit::status::without_rpc_prefix;
use crate::buildkit::{Cancellation, Connection, Daemon};

/// The length at which the error of a build is cut off, in bytes.
const ERROR_BYTES_MAX: usize = 16 << 10;

/// A build in the daemon's history, with what the history has of it.
#[derive(Clone, Debug)]
pub struct ListedBuild {
    /// The daemon whose history has the build.
    pub daemon: Daemon,
    /// The name of the build at the daemon: that of one attempt.
    pub reference: String,
    /// The attributes of the build's request.
    pub attributes: SolveAttributes,
    /// The full name of the image, with its registry and tag.
    pub image: Option<String>,
    /// The state of the build.
    pub state: BuildState,
    /// Whether the solve was cancelled.
    pub is_cancelled: bool,
    /// The error of a failed build, without the prefix of a gRPC error.
    pub error: Option<String>,
    /// The digest of the image; `None` for a build that runs or failed.
    pub digest: Option<String>,
    /// The time at which the solve began.
    pub started_at: Option<SystemTime>,
    /// The time at which the solve ended.
    pub ended_at: Option<SystemTime>,
    /// The counts of the build's steps. They are zero while it runs.
    pub steps: StepCounts,
    /// The sealed secrets of the build, whose values must not be shown.
    pub secrets: SealedSecrets,
}

/// The builds in the history of one daemon, or merged of several, and the requests to cancel builds.
#[derive(Clone, Debug, Default)]
pub struct HistoryListing {
    /// The running and the finished builds of all builders, without those of other clients.
    pub builds: Vec<ListedBuild>,
    /// The requests to cancel builds.
    pub cancellations: HashSet<Cancellation>,
}

/// A change of a daemon's history.
#[derive(Clone, Debug)]
pub(crate) enum HistoryChange {
    /// A build has started or ended.
    Build(Box<ListedBuild>),
    /// The record of the build with this reference was deleted.
    Deleted(String),
    /// Somebody asked to cancel a build.
    Cancellation(Cancellation),
}

/// The counts of a build's steps: of all, of those that ended, and of cached ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepCounts {
    /// The number of all steps.
    pub total: u64,
    /// The number of steps that ended.
    pub completed: u64,
    /// The number of steps whose results came from the cache.
    pub cached: u64,
}

impl Sum for StepCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, counts| Self {
            total: sum.total + counts.total,
            completed: sum.completed + counts.completed,
            cached: sum.cached + counts.cached,
        })
    }
}

/// The sealed secrets in a build's history record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SealedSecrets {
    /// The build had no secrets.
    None,
    /// The build had these secrets, as the caller sealed them.
    Envelope(Vec<u8>),
    /// The build had secrets, and the record does not contain them in a readable form.
    Omitted,
}

impl Connection {
    /// Lists the running builds, and the finished ones among the newest records of the history, up to
    /// `record_limit_or_zero`; 0 stands for all records. Records of cancellations and of other clients count too.
    ///
    /// # Errors
    /// Fails if the daemon does not answer in time, or has no history.
    pub async fn list_builds(&self, record_limit_or_zero: u16) -> Result<HistoryListing, Status> {
        let request = BuildHistoryRequest {
            early_exit: true,
            limit: record_limit_or_zero.into(),
            ..BuildHistoryRequest::default()
        };
        within_answer_timeout(self.list_kept_builds_and_all_cancellations(request, |_| true)).await
    }

    /// Subscribes to the changes of the history: the builds that run, and then every change.
    ///
    /// # Errors
    /// Fails if the daemon has no history.
    pub(crate) async fn watch_history(
        &self,
    ) -> Result<BoxStream<'static, Result<HistoryChange, Status>>, Status> {
        let request = BuildHistoryRequest {
            active_only: true,
            ..BuildHistoryRequest::default()
        };
        let events = listen_to_history(self, request).await?;
        let daemon = self.daemon().clone();
        let changes = events.try_filter_map(move |event| {
            let kind = event.r#type();
            let change = event.record.and_then(|record| match kind {
                BuildHistoryEventType::Deleted => Some(HistoryChange::Deleted(record.r#ref)),
                _ => match Cancellation::from_attributes(&record.frontend_attrs) {
                    Some(cancellation) => Some(HistoryChange::Cancellation(cancellation)),
                    None => ListedBuild::from_record(kind, record, &daemon)
                        .map(|build| HistoryChange::Build(Box::new(build))),
                },
            });
            std::future::ready(Ok(change))
        });
        Ok(changes.boxed())
    }

    /// Lists the attempts of the build `reference`, and of up to `part_count` parts if it is split, and whether
    /// somebody asked to cancel it. Other builds that run are listed too. The daemon decodes no records of other
    /// builds.
    ///
    /// # Errors
    /// Fails if the daemon does not answer in time, or has no history.
    pub async fn list_attempts_and_running_builds(
        &self,
        reference: &str,
        part_count: u32,
        cancellation: &Cancellation,
    ) -> Result<HistoryListing, Status> {
        let parts = (1..=part_count).map(|number| part_name(reference, number));
        let mut references = vec![cancellation.reference_of_marker()];
        for build in [reference.to_owned()].into_iter().chain(parts) {
            references.extend((2..=ATTEMPT_REFERENCES_OF_CALL_MAX).map(|number| format!("{build}-{number}")));
            references.push(build);
        }
        let listing = async {
            // In this order, a build that ends meanwhile is listed.
            let mut listing = self
                .list_kept_builds_and_all_cancellations(request_for_running_solves(), |_| true)
                .await?;
            for record in lookup::read_finished_records_unpinning_them(self, &references).await? {
                listing.append_cancellation_or_build_if_kept(
                    BuildHistoryEventType::Complete,
                    record,
                    self.daemon(),
                    |_| true,
                );
            }
            Ok(listing)
        };
        within_answer_timeout(listing).await
    }

    /// Returns whether the history has a record of this attempt. A later attempt under the same reference is not it:
    /// the two are told apart by the times at which they began.
    ///
    /// # Errors
    /// Fails if the daemon does not answer in time, or has no history.
    pub(crate) async fn has_record_of_attempt(&self, attempt: &ListedBuild) -> Result<bool, Status> {
        let record = find_running_or_finished_record(self, &attempt.reference).await?;
        Ok(record
            .is_some_and(|record| record.created_at.as_ref().and_then(to_system_time) == attempt.started_at))
    }

    /// Lists the running builds of all builders, without those of other clients, and the requests to cancel builds
    /// whose markers are just being made. The daemon decodes no records for it.
    ///
    /// # Errors
    /// Fails if the daemon has no history, or the connection breaks.
    pub(crate) async fn list_running_builds(&self) -> Result<HistoryListing, Status> {
        self.list_kept_builds_and_all_cancellations(request_for_running_solves(), |_| true)
            .await
    }

    /// Lists the builds of a call, and all requests to cancel builds. Nothing else is kept in memory, however many
    /// records the history has, all of which the daemon decodes. Waits as long as that takes.
    ///
    /// # Errors
    /// Fails if the daemon has no history, or the connection breaks.
    pub async fn list_builds_of_call_and_all_cancellations(
        &self,
        call_id: &str,
    ) -> Result<HistoryListing, Status> {
        let is_of_call = |build: &ListedBuild| build.attributes.call_id == call_id;
        let request = BuildHistoryRequest {
            early_exit: true,
            ..BuildHistoryRequest::default()
        };
        self.list_kept_builds_and_all_cancellations(request, is_of_call)
            .await
    }

    /// Lists the builds that `keeps` returns `true` for, among the answers to `request`, and the requests to cancel
    /// builds.
    async fn list_kept_builds_and_all_cancellations(
        &self,
        request: BuildHistoryRequest,
        keeps: impl Fn(&ListedBuild) -> bool,
    ) -> Result<HistoryListing, Status> {
        let mut listing = HistoryListing::default();
        let mut events = listen_to_history(self, request).await?;
        while let Some(event) = events.try_next().await? {
            let kind = event.r#type();
            if let Some(record) = event.record {
                listing.append_cancellation_or_build_if_kept(kind, record, self.daemon(), &keeps);
            }
        }
        Ok(listing)
    }

    /// Returns whether the history has the request to cancel a call's build; `false` if the history fails.
    pub(crate) async fn is_cancellation_known_to_be_requested(&self, cancellation: &Cancellation) -> bool {
        none_after_logged_failure(self.find_cancellation_marker(cancellation).await).is_some()
    }

    /// Returns whether the history has the request to cancel a call's build. A request whose marker is just being made
    /// is an event of [`subscribe_to_new_cancellations`](Connection::subscribe_to_new_cancellations).
    ///
    /// # Errors
    /// Fails if the history cannot be read, or not in time.
    pub(crate) async fn try_is_cancellation_requested(
        &self,
        cancellation: &Cancellation,
    ) -> Result<bool, Status> {
        Ok(self.find_cancellation_marker(cancellation).await?.is_some())
    }

    /// Finds the marker of a request to cancel a call's build.
    async fn find_cancellation_marker(
        &self,
        cancellation: &Cancellation,
    ) -> Result<Option<BuildHistoryRecord>, Status> {
        find_finished_record(self, &cancellation.reference_of_marker()).await
    }
}

impl HistoryListing {
    /// Adds a record of a daemon's history: a build that `keeps` returns `true` for, or a request to cancel a build.
    fn append_cancellation_or_build_if_kept(
        &mut self,
        kind: BuildHistoryEventType,
        record: BuildHistoryRecord,
        daemon: &Daemon,
        keeps: impl Fn(&ListedBuild) -> bool,
    ) {
        match Cancellation::from_attributes(&record.frontend_attrs) {
            Some(cancellation) => drop(self.cancellations.insert(cancellation)),
            None => self
                .builds
                .extend(ListedBuild::from_record(kind, record, daemon).filter(keeps)),
        }
    }

    /// Returns whether a build of the call `id` is listed.
    pub(crate) fn has_call(&self, id: &str) -> bool {
        self.builds.iter().any(|build| build.attributes.call_id == id)
    }

    /// Adds the listing of another daemon. Of the builds with one name, one is kept: one that runs or has succeeded
    /// rather than one that failed, and of two alike the one that began last. A build that has just ended is listed
    /// twice by its daemon, the second time with its outcome, which counts.
    pub(crate) fn merge(&mut self, other: Self) {
        let mut ended: HashMap<String, ListedBuild> = HashMap::new();
        for build in other.builds {
            ended.insert(build.reference.clone(), build);
        }
        for build in &mut self.builds {
            if let Some(other) = ended.remove(&build.reference)
                && other.outranks_duplicate(build)
            {
                *build = other;
            }
        }
        self.builds.extend(ended.into_values());
        self.cancellations.extend(other.cancellations);
    }
}

impl ListedBuild {
    /// Returns whether this build replaces `other`, which has the same name at another daemon: one that failed gives
    /// way to one that did not, and of two alike the one that began first.
    fn outranks_duplicate(&self, other: &Self) -> bool {
        let rank = |build: &Self| (build.state != BuildState::Failed, build.started_at);
        rank(self) > rank(other)
    }

    /// Converts a record of the history; `None` for a deleted one and for builds of other clients.
    fn from_record(kind: BuildHistoryEventType, record: BuildHistoryRecord, daemon: &Daemon) -> Option<Self> {
        let attributes = SolveAttributes::from_history_record(&record.frontend_attrs)?;
        let state = match (kind, &record.error) {
            (BuildHistoryEventType::Started, _) => BuildState::Running,
            (BuildHistoryEventType::Complete, None) => BuildState::Succeeded,
            (BuildHistoryEventType::Complete, Some(_)) => BuildState::Failed,
            (BuildHistoryEventType::Deleted, _) => return None,
        };
        let exporter = record.exporters.first().map(|exporter| &exporter.attrs);
        let names = exporter.and_then(|attrs| attrs.get("name"));
        let secrets = exporter.and_then(|attrs| attrs.get(SEALED_SECRETS_ATTRIBUTE));
        let mut results = record.result.map(|result| result.results).unwrap_or_default();
        let count = |number: i32| u64::try_from(number).unwrap_or_default();
        Some(Self {
            daemon: daemon.clone(),
            image: names.and_then(|names| names.split(',').next()).map(str::to_owned),
            state,
            is_cancelled: record.error.as_ref().is_some_and(|error| {
                Code::from_i32(error.code) == Code::Cancelled || error.message.contains("context canceled")
            }),
            error: record
                .error
                .map(|error| truncate_error(without_rpc_prefix(&error.message))),
            digest: results.remove(&0).map(|descriptor| descriptor.digest),
            started_at: record.created_at.as_ref().and_then(to_system_time),
            ended_at: record.completed_at.as_ref().and_then(to_system_time),
            steps: StepCounts {
                total: count(record.num_total_steps),
                completed: count(record.num_completed_steps),
                cached: count(record.num_cached_steps),
            },
            secrets: SealedSecrets::from_attribute_none_if_absent(secrets.map(String::as_str)),
            reference: record.r#ref,
            attributes,
        })
    }
}

impl SealedSecrets {
    /// Parses the attribute with a build's sealed secrets. One that is not base64 counts as omitted.
    fn from_attribute_none_if_absent(value: Option<&str>) -> Self {
        match value {
            None => Self::None,
            Some(OMITTED_SEALED_SECRETS_VALUE) => Self::Omitted,
            Some(text) => STANDARD.decode(text).map_or(Self::Omitted, Self::Envelope),
        }
    }
}

/// Returns an error, cut off after [`ERROR_BYTES_MAX`]: it may contain all that a step has printed.
fn truncate_error(error: &str) -> String {
    let end = error.floor_char_boundary(ERROR_BYTES_MAX);
    match error.get(..end) {
        Some(start) if end < error.len() => format!("{start}…"),
        _ => error.to_owned(),
    }
}

fn to_system_time(timestamp: &Timestamp) -> Option<SystemTime> {
    time_from_unix(timestamp.seconds, timestamp.nanos)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Returns a listing of a daemon with builds of these names, states and times of their start.
    fn listing(references_states_and_start_seconds: &[(&str, BuildState, u64)]) -> HistoryListing {
        let builds = references_states_and_start_seconds
            .iter()
            .map(|(reference, state, started)| ListedBuild {
                daemon: Daemon::at("unix:///run/buildkitd.sock".parse().expect("address")),
                reference: (*reference).to_owned(),
                attributes: SolveAttributes {
                    call_id: "call-1".into(),
                    signature: None,
                    tenant: None,
                    submitted_at: SystemTime::UNIX_EPOCH,
                    function: None,
                    supersede: true,
                    commit: None,
                    attempt: None,
                },
                image: None,
                state: *state,
                is_cancelled: false,
                error: None,
                digest: None,
                started_at: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(*started)),
                ended_at: None,
                steps: StepCounts::default(),
                secrets: SealedSecrets::None,
            });
        HistoryListing {
            builds: builds.collect(),
            cancellations: HashSet::new(),
        }
    }

    #[test]
    fn of_a_build_on_several_daemons_merge_keeps_one_that_did_not_fail_and_began_last() {
        use BuildState::{Failed, Running, Succeeded};
        for (one, other, expected) in [
            ((Failed, 2), (Running, 1), Running),
            ((Failed, 2), (Succeeded, 1), Succeeded),
            ((Running, 1), (Succeeded, 2), Succeeded),
            ((Running, 2), (Succeeded, 1), Running),
        ] {
            for (first, second) in [(one, other), (other, one)] {
                let mut merged = HistoryListing::default();
                merged.merge(listing(&[("a", first.0, first.1), ("b", Failed, 1)]));
                merged.merge(listing(&[("a", second.0, second.1)]));
                let found = merged.builds.iter().find(|build| build.reference == "a");
                assert_eq!(found.map(|build| build.state), Some(expected));
                assert_eq!(merged.builds.len(), 2);
            }
        }
    }

    #[test]
    fn the_last_state_of_a_build_that_one_daemon_lists_twice_counts() {
        let mut merged = HistoryListing::default();
        merged.merge(listing(&[
            ("a", BuildState::Running, 1),
            ("a", BuildState::Failed, 1),
        ]));
        let states: Vec<_> = merged.builds.iter().map(|build| build.state).collect();
        assert_eq!(states, [BuildState::Failed]);
    }

    #[test]
    fn a_long_error_is_cut_off_between_two_characters() {
        assert_eq!(truncate_error("exit code: 1"), "exit code: 1");
        let long = format!("x{}", "\u{e4}".repeat(ERROR_BYTES_MAX));
        let short = truncate_error(&long);
        assert!(
            short.len() <= ERROR_BYTES_MAX + 3 && short.ends_with('…'),
            "{}",
            short.len()
        );
    }

    #[test]
    fn secrets_that_cannot_be_read_from_a_record_count_as_omitted() {
        for (value, expected) in [
            (None, SealedSecrets::None),
            (Some("eA=="), SealedSecrets::Envelope(b"x".to_vec())),
            (Some(OMITTED_SEALED_SECRETS_VALUE), SealedSecrets::Omitted),
            (Some("%"), SealedSecrets::Omitted),
        ] {
            assert_eq!(
                SealedSecrets::from_attribute_none_if_absent(value),
                expected,
                "{value:?}"
            );
        }
    }
}
