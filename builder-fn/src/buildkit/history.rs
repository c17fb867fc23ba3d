//! The daemon's build history: the running builds, and the records of finished ones.
//!
//! It is the memory that all builders of one daemon share. A daemon without a history, or whose history fails, counts
//! as one without records: the history saves work and orders builds, and must not prevent one.

mod listing;
mod lookup;

use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::moby::buildkit::v1::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest,
};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use tonic::{Code, Status};

use super::Connection;
use super::attributes::{SolveAttributes, to_nearest_jiff_timestamp};
use super::outcome::{BuiltImageDigestCommitAndTimes, SolveOutcome};

pub(crate) use listing::HistoryChange;
pub use listing::{HistoryListing, ListedBuild, SealedSecrets, StepCounts};

/// The time between two requests for a build's record that the daemon has not written yet.
const RECORD_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The longest wait for the complete answer to one request to the daemon's history.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest wait for the record of a build that the daemon reports to be running. BuildKit writes the record shortly
/// after it has taken the reference.
const RECORD_TIMEOUT: Duration = Duration::from_secs(5);

/// The record of a finished build in the daemon's history.
#[derive(Debug)]
pub(super) struct CallAttemptAndOutcomeOfBuild {
    /// The id of the call that the build belongs to, if the record has one.
    pub(super) call_id: Option<String>,
    /// The number of the attempt, if the record has one.
    pub(super) attempt: Option<u32>,
    /// The image of the build, or the status with which it failed, from the record.
    pub(super) outcome: SolveOutcome,
}

/// A build of this or another builder, as the daemon's history has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownBuild {
    /// The description of the build's request.
    pub attributes: SolveAttributes,
    /// Whether the build is running, has succeeded or has failed.
    pub state: BuildState,
}

/// The state of a build in the daemon's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildState {
    /// The build is running. The daemon reports it at its start, and to every client that asks while it runs.
    Running,
    /// The build ended with an image.
    Succeeded,
    /// The build failed or was cancelled.
    Failed,
}

/// A stream of builds in the order in which the daemon reports them. Builds of other clients are left out.
pub(crate) type KnownBuildStream = BoxStream<'static, Result<KnownBuild, Status>>;

impl Connection {
    /// Requests the running builds, and those that succeeded at or after `since`; the stream ends with them. The daemon
    /// decodes all of its records for this, whatever the time.
    pub(crate) async fn request_running_and_succeeded_builds(
        &self,
        since: SystemTime,
    ) -> Result<KnownBuildStream, Status> {
        let since = to_nearest_jiff_timestamp(since);
        self.listen_for_builds(BuildHistoryRequest {
            // The filter is for records only: running builds come in any case.
            filter: vec![format!("status==completed,completedAt>={since:.0}")],
            early_exit: true,
            ..BuildHistoryRequest::default()
        })
        .await
    }

    /// Requests the running builds; the stream ends with them. The daemon decodes no records for this.
    pub(crate) async fn request_running_builds(&self) -> Result<KnownBuildStream, Status> {
        self.listen_for_builds(request_for_running_solves()).await
    }

    /// Subscribes to builds: those that run, and then every build that starts or ends.
    pub(crate) async fn watch_builds(&self) -> Result<KnownBuildStream, Status> {
        self.listen_for_builds(BuildHistoryRequest {
            active_only: true,
            ..BuildHistoryRequest::default()
        })
        .await
    }

    async fn listen_for_builds(&self, request: BuildHistoryRequest) -> Result<KnownBuildStream, Status> {
        let events = listen_to_history(self, request).await?;
        Ok(events
            .try_filter_map(|event| std::future::ready(Ok(KnownBuild::from_history_event(event))))
            .boxed())
    }
}

impl KnownBuild {
    /// Converts an event of the history; `None` for a deleted record and for builds of other clients.
    fn from_history_event(event: BuildHistoryEvent) -> Option<Self> {
        let kind = event.r#type();
        let record = event.record?;
        let state = match kind {
            BuildHistoryEventType::Started => BuildState::Running,
            BuildHistoryEventType::Complete if record.error.is_none() => BuildState::Succeeded,
            BuildHistoryEventType::Complete => BuildState::Failed,
            BuildHistoryEventType::Deleted => return None,
        };
        let attributes = SolveAttributes::from_history_record(&record.frontend_attrs)?;
        Some(Self { attributes, state })
    }
}

/// Requests the record of the finished build `reference`; `None` if the daemon has none, or its history fails.
pub(super) async fn request_finished_build(
    connection: &Connection,
    reference: &str,
) -> Option<CallAttemptAndOutcomeOfBuild> {
    let record = none_after_logged_failure(find_finished_record(connection, reference).await)?;
    Some(CallAttemptAndOutcomeOfBuild::from(record))
}

/// Waits until the outcome of a build that has just ended is recorded; `None` if that takes longer than `limit`.
pub(super) async fn wait_for_outcome(
    connection: &Connection,
    reference: &str,
    limit: Duration,
) -> Option<SolveOutcome> {
    let recorded = async {
        loop {
            if let Some(finished) = request_finished_build(connection, reference).await {
                return finished.outcome;
            }
            tokio::time::sleep(RECORD_POLL_INTERVAL).await;
        }
    };
    tokio::time::timeout(limit, recorded).await.ok()
}

/// Requests the id of the call that the running or finished build `reference` belongs to. Waits for its record for up
/// to 5 s.
pub(super) async fn wait_for_call_id_up_to_5_seconds(
    connection: &Connection,
    reference: &str,
) -> Option<String> {
    let known = async {
        loop {
            let found = find_running_or_finished_record(connection, reference).await;
            if let Some(record) = none_after_logged_failure(found) {
                return SolveAttributes::from_history_record(&record.frontend_attrs)
                    .map(|attributes| attributes.call_id);
            }
            tokio::time::sleep(RECORD_POLL_INTERVAL).await;
        }
    };
    tokio::time::timeout(RECORD_TIMEOUT, known).await.ok().flatten()
}

/// Returns what was found in the daemon's history; `None` also if the history failed, which is logged.
fn none_after_logged_failure<T>(found: Result<Option<T>, Status>) -> Option<T> {
    found.unwrap_or_else(|status| {
        match status.code() {
            Code::DeadlineExceeded => tracing::warn!(%status, "could not read BuildKit's history"),
            _ => tracing::debug!(%status, "could not read BuildKit's history"),
        }
        None
    })
}

/// Finds the record of the finished solve `reference`. The daemon decodes no other record, unless it cannot look up a
/// single one.
///
/// # Errors
/// Fails if the history cannot be read, or not in time.
async fn find_finished_record(
    connection: &Connection,
    reference: &str,
) -> Result<Option<BuildHistoryRecord>, Status> {
    let references = [reference.to_owned()];
    let reading = lookup::read_finished_records_unpinning_them(connection, &references);
    Ok(within_answer_timeout(reading).await?.pop())
}

/// Finds the record of the solve `reference` while it runs, or after its end.
///
/// # Errors
/// Fails if the history cannot be read, or not in time.
async fn find_running_or_finished_record(
    connection: &Connection,
    reference: &str,
) -> Result<Option<BuildHistoryRecord>, Status> {
    // In this order, a build that ends meanwhile is found.
    match within_answer_timeout(find_running(connection, reference)).await? {
        Some(running) => Ok(Some(running)),
        None => find_finished_record(connection, reference).await,
    }
}

/// Waits for an answer of the history; fails with `DeadlineExceeded` after 10 s.
async fn within_answer_timeout<T>(answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(Status::deadline_exceeded(
            "BuildKit's history did not answer in time",
        )),
    }
}

/// Finds the solve `reference` among those that run.
async fn find_running(
    connection: &Connection,
    reference: &str,
) -> Result<Option<BuildHistoryRecord>, Status> {
    let mut events = listen_to_history(connection, request_for_running_solves()).await?;
    while let Some(event) = events.try_next().await? {
        let record = event.record.filter(|record| record.r#ref == reference);
        if record.is_some() {
            return Ok(record);
        }
    }
    Ok(None)
}

/// Returns the request for the solves that run, for which the daemon decodes no record.
fn request_for_running_solves() -> BuildHistoryRequest {
    BuildHistoryRequest {
        active_only: true,
        early_exit: true,
        ..BuildHistoryRequest::default()
    }
}

/// Requests the events of the history that `request` describes.
pub(super) async fn listen_to_history(
    connection: &Connection,
    request: BuildHistoryRequest,
) -> Result<BoxStream<'static, Result<BuildHistoryEvent, Status>>, Status> {
    let mut control = connection.control_client();
    let events = control.listen_build_history(request).await?.into_inner();
    Ok(events.boxed())
}

/// Converts seconds and nanoseconds since 1970; `None` if one of them is negative or the time is out of range.
fn time_from_unix(seconds: i64, nanos: i32) -> Option<SystemTime> {
    let since = Duration::new(seconds.try_into().ok()?, nanos.try_into().ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since)
}

impl From<BuildHistoryRecord> for CallAttemptAndOutcomeOfBuild {
    fn from(record: BuildHistoryRecord) -> Self {
        let attributes = SolveAttributes::from_history_record(&record.frontend_attrs);
        Self {
            attempt: attributes.as_ref().and_then(|attributes| attributes.attempt),
            call_id: attributes.map(|attributes| attributes.call_id),
            outcome: record.into(),
        }
    }
}

impl From<BuildHistoryRecord> for SolveOutcome {
    fn from(record: BuildHistoryRecord) -> Self {
        if let Some(error) = record.error {
            return Self::Failed(Status::new(Code::from_i32(error.code), error.message));
        }
        // The result of the first exporter, which is the only one. The history does not keep the solve's own answer.
        let mut results = record.result.map(|result| result.results).unwrap_or_default();
        let digest = results.remove(&0).map(|descriptor| descriptor.digest);
        let completed_at = record
            .completed_at
            .and_then(|at| time_from_unix(at.seconds, at.nanos));
        let attributes = SolveAttributes::from_history_record(&record.frontend_attrs);
        Self::Succeeded(BuiltImageDigestCommitAndTimes {
            digest,
            completed_at,
            submitted_at: attributes.as_ref().map(|attributes| attributes.submitted_at),
            commit: attributes.and_then(|attributes| attributes.commit),
        })
    }
}
