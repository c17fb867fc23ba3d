//! What the daemon remembers of builds that are over.

use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::moby::buildkit::v1::{
    BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest,
};
use tonic::{Code, Status};

use super::{Connection, Solved};

/// Between two questions for an outcome that is about to be written down.
const AGAIN: Duration = Duration::from_millis(200);

/// How a build ended.
#[derive(Debug)]
pub(super) enum Past {
    /// There is an image.
    Succeeded(Solved),
    /// There is none; the answer to the solve was this.
    Failed(Status),
}

/// How the build `reference` ended, if the daemon knows of one that did.
///
/// A daemon without a history, or with one that fails, knows of none: history spares work, and is not to prevent it.
pub(super) async fn past(connection: &Connection, reference: &str) -> Option<Past> {
    match record(connection, reference).await {
        Ok(record) => record.map(Past::from),
        Err(status) => {
            tracing::debug!(%status, "BuildKit has no history");
            None
        }
    }
}

/// The same for a build that has just ended: waits up to `limit` until it is known.
pub(super) async fn outcome(connection: &Connection, reference: &str, limit: Duration) -> Option<Past> {
    let known = async {
        loop {
            if let Some(past) = past(connection, reference).await {
                return past;
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    tokio::time::timeout(limit, known).await.ok()
}

async fn record(connection: &Connection, reference: &str) -> Result<Option<BuildHistoryRecord>, Status> {
    // By filter rather than by the field `ref`: the daemon keeps a counter for every name asked for by the latter.
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

impl From<BuildHistoryRecord> for Past {
    fn from(record: BuildHistoryRecord) -> Self {
        if let Some(error) = record.error {
            return Self::Failed(Status::new(Code::from_i32(error.code), error.message));
        }
        // The first exporter's result; there is only one. The solve's own answer is not kept.
        let mut results = record.result.map(|result| result.results).unwrap_or_default();
        let digest = results.remove(&0).map(|descriptor| descriptor.digest);
        let completed_at = record.completed_at.and_then(|at| time(at.seconds, at.nanos));
        Self::Succeeded(Solved { digest, completed_at })
    }
}
