//! The daemon's history of finished builds.

use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::moby::buildkit::v1::{
    BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest,
};
use tonic::{Code, Status};

use super::Connection;
use super::outcome::{BuiltImage, Outcome};

/// The time between two requests for an outcome that is not recorded yet.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Returns the outcome of the build `reference`, if the daemon has a record of its end.
///
/// A daemon without a history, or whose history fails, counts as one without a record: the history saves work, and
/// must not prevent it.
pub(super) async fn outcome(connection: &Connection, reference: &str) -> Option<Outcome> {
    match record(connection, reference).await {
        Ok(record) => record.map(Outcome::from),
        Err(status) => {
            tracing::debug!(%status, "could not read BuildKit's history");
            None
        }
    }
}

/// Waits up to `limit` until the outcome of a build that has just ended is recorded.
pub(super) async fn wait_for_outcome(
    connection: &Connection,
    reference: &str,
    limit: Duration,
) -> Option<Outcome> {
    let recorded = async {
        loop {
            if let Some(outcome) = outcome(connection, reference).await {
                return outcome;
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    };
    tokio::time::timeout(limit, recorded).await.ok()
}

async fn record(connection: &Connection, reference: &str) -> Result<Option<BuildHistoryRecord>, Status> {
    // With a filter and not with the field `ref`: the daemon keeps a counter for every value of that field.
    let request = BuildHistoryRequest {
        filter: vec![format!("ref=={reference}")],
        early_exit: true,
        ..BuildHistoryRequest::default()
    };
    let mut events = connection
        .control()
        .listen_build_history(request)
        .await?
        .into_inner();
    while let Some(event) = events.message().await? {
        // Builds that are running come first, whatever the filter.
        let complete = event.r#type() == BuildHistoryEventType::Complete;
        if let Some(record) = event.record
            && complete
            && record.r#ref == reference
        {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

fn time(seconds: i64, nanos: i32) -> Option<SystemTime> {
    let since = Duration::new(seconds.try_into().ok()?, nanos.try_into().ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since)
}

impl From<BuildHistoryRecord> for Outcome {
    fn from(record: BuildHistoryRecord) -> Self {
        if let Some(error) = record.error {
            return Self::Failed(Status::new(Code::from_i32(error.code), error.message));
        }
        // The result of the first exporter, which is the only one. The history does not keep the solve's own answer.
        let mut results = record.result.map(|result| result.results).unwrap_or_default();
        let digest = results.remove(&0).map(|descriptor| descriptor.digest);
        let completed_at = record.completed_at.and_then(|at| time(at.seconds, at.nanos));
        Self::Succeeded(BuiltImage { digest, completed_at })
    }
}
