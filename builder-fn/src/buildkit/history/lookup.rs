//! Records of finished solves, looked up by their references.
//!
//! BuildKit decodes all of its records for every question to its history, whatever the filter. The question's field
//! `ref` avoids that, but a record that was asked for by it is never deleted. BuildKit looks up a single record only to
//! change it, and reports what it has changed to everyone who follows the history. So a record is read from the events
//! of the history, after a request to change the record in nothing.

use std::collections::HashSet;
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::{
    BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest, UpdateBuildHistoryRequest,
};
use futures_util::TryStreamExt;
use futures_util::future::try_join_all;
use tokio::time::Instant;
use tonic::Status;

use super::{Connection, listen_to_history};

/// The part of the daemon's error by which it is known that a reference has no record: `UpdateRef` in BuildKit's
/// `solver/llbsolver/history`.
const NO_RECORD_MESSAGE: &str = "failed to retrieve ref ";

/// The first wait for the event of a record. Every further one is twice as long.
const FIRST_EVENT_WAIT: Duration = Duration::from_millis(100);

impl Connection {
    /// Returns whether the daemon may have a record of a finished solve with this reference; `false` only if the daemon
    /// answers that it has none. A record that a user has pinned is pinned no longer.
    pub(in crate::buildkit) async fn may_have_record_unpinning_it(&self, reference: &str) -> bool {
        self.make_daemon_report_record_unpinning_it(reference)
            .await
            .unwrap_or(true)
    }

    /// Makes the daemon report the record of a finished solve to everyone who follows its history. Returns whether
    /// there is a record.
    ///
    /// The request changes nothing, but if a user has pinned the record, it is pinned no longer.
    ///
    /// # Errors
    /// Fails if the daemon does not say whether it has a record.
    async fn make_daemon_report_record_unpinning_it(&self, reference: &str) -> Result<bool, Status> {
        let unchanged = UpdateBuildHistoryRequest {
            r#ref: reference.to_owned(),
            ..UpdateBuildHistoryRequest::default()
        };
        match self.control_client().update_build_history(unchanged).await {
            Ok(_) => Ok(true),
            Err(status) if status.message().contains(NO_RECORD_MESSAGE) => Ok(false),
            Err(status) => Err(status),
        }
    }
}

/// Reads the records of the finished solves among `references`, in no order. The daemon decodes no other record, unless
/// it cannot look up single ones.
///
/// # Errors
/// Fails if the history cannot be read. Waits as long as the daemon does not answer.
pub(super) async fn read_finished_records_unpinning_them(
    connection: &Connection,
    references: &[String],
) -> Result<Vec<BuildHistoryRecord>, Status> {
    match read_reported_records(connection, references).await {
        Ok(records) => Ok(records),
        Err(status) => {
            tracing::debug!(%status, "could not look up records in BuildKit's history; reading all of it");
            read_all_records(connection, references).await
        }
    }
}

/// Makes the daemon report the records, and reads them from the events of the history.
async fn read_reported_records(
    connection: &Connection,
    references: &[String],
) -> Result<Vec<BuildHistoryRecord>, Status> {
    // Most references have no record, and then there is nothing to follow.
    let mut awaited = make_daemon_report_records_unpinning_them(connection, references).await?;
    if awaited.is_empty() {
        return Ok(Vec::new());
    }
    let request = BuildHistoryRequest {
        active_only: true,
        ..BuildHistoryRequest::default()
    };
    let mut events = listen_to_history(connection, request).await?;
    let mut records = Vec::new();
    let mut wait = FIRST_EVENT_WAIT;
    loop {
        // Again after each wait: the daemon answers a moment before it passes events on, and a record may be deleted.
        awaited = make_daemon_report_records_unpinning_them(connection, awaited).await?;
        let end = Instant::now() + wait;
        while !awaited.is_empty() {
            let Ok(event) = tokio::time::timeout_at(end, events.try_next()).await else {
                break;
            };
            let event =
                event?.ok_or_else(|| Status::unavailable("BuildKit ended the stream of its history"))?;
            let is_end = event.r#type() == BuildHistoryEventType::Complete;
            if let Some(record) = event.record.filter(|_| is_end)
                && awaited.remove(record.r#ref.as_str())
            {
                records.push(record);
            }
        }
        if awaited.is_empty() {
            return Ok(records);
        }
        wait *= 2;
    }
}

/// Makes the daemon report the records of `references`. Returns those that have one.
async fn make_daemon_report_records_unpinning_them<'a>(
    connection: &Connection,
    references: impl IntoIterator<Item = &'a (impl AsRef<str> + ?Sized + 'a)>,
) -> Result<HashSet<&'a str>, Status> {
    let reports = references.into_iter().map(|reference| async move {
        let reference = reference.as_ref();
        let has_record = connection
            .make_daemon_report_record_unpinning_it(reference)
            .await?;
        Ok::<_, Status>(has_record.then_some(reference))
    });
    Ok(try_join_all(reports).await?.into_iter().flatten().collect())
}

/// Reads the records with a question for which the daemon decodes all of them: the way for a daemon that looks up none.
async fn read_all_records(
    connection: &Connection,
    references: &[String],
) -> Result<Vec<BuildHistoryRecord>, Status> {
    let request = BuildHistoryRequest {
        filter: references
            .iter()
            .map(|reference| format!("ref=={reference}"))
            .collect(),
        early_exit: true,
        ..BuildHistoryRequest::default()
    };
    let mut events = listen_to_history(connection, request).await?;
    let mut records = Vec::new();
    while let Some(event) = events.try_next().await? {
        // Builds that run come first, whatever the filter.
        let is_end = event.r#type() == BuildHistoryEventType::Complete;
        records.extend(
            event
                .record
                .filter(|record| is_end && references.contains(&record.r#ref)),
        );
    }
    Ok(records)
}
