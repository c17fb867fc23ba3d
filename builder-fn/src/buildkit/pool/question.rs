//! The question that every daemon is asked before a build begins: whether it has the build already, and how many it runs.

use std::sync::Arc;
use std::time::Duration;

use tonic::Status;

use super::member::PoolMember;
use crate::buildkit::job::{ATTEMPTS_MAX, is_connection_loss};
use crate::buildkit::{BuildReference, BuildState, Cancellation, ConnectError, Connection, ListedBuild};

/// The longest wait for a daemon's history. A daemon that takes longer counts as one that does not answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// Whether a daemon is given up soon, because there are others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// The host has to accept the connection within 300 ms.
    Short,
    /// The host has as long as the only daemon has.
    Long,
}

/// A daemon's answer.
pub(super) struct DaemonAnswer {
    pub(super) member: Arc<PoolMember>,
    pub(super) connection: Connection,
    /// The number of builds of all builders that run on the daemon.
    pub(super) running: usize,
    /// The attempts of the build that the daemon knows: those that run, until the records are read.
    pub(super) attempts: Vec<KnownAttempt>,
    /// Whether the daemon may have a record of the first attempt, and so of others.
    pub(super) is_recorded: bool,
    /// Whether somebody asked to cancel the build.
    pub(super) is_cancelled: bool,
}

/// An attempt of a build in a daemon's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KnownAttempt {
    pub(super) number: u32,
    pub(super) state: BuildState,
}

/// Connects to a daemon, and asks it what it answers without decoding its records: which builds run, and whether there is a
/// record of the build `reference`, or one of a request to cancel it. [`DaemonAnswer::read_attempts`] asks for the rest.
pub(super) async fn ask_about_build(
    member: Arc<PoolMember>,
    reference: &BuildReference,
    call: &Cancellation,
    patience: Patience,
) -> Result<DaemonAnswer, ConnectError> {
    let connection = match patience {
        Patience::Short => member.daemon.connect_quickly().await?,
        Patience::Long => member.daemon.connect().await?,
    };
    let first = reference.attempt_name(1);
    let asking = async {
        let running = connection.list_running_builds();
        let recorded = connection.may_have_record(&first);
        let cancelled = connection.is_cancellation_requested(call.tenant.as_deref(), &call.call_id);
        let (running, is_recorded, is_cancelled) = tokio::join!(running, recorded, cancelled);
        Ok::<_, Status>((running?, is_recorded, is_cancelled))
    };
    let answer = match tokio::time::timeout(ANSWER_TIMEOUT, asking).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(status)) if is_connection_loss(&status) => {
            return Err(member.daemon.unreachable_error(status));
        }
        Ok(Err(status)) => {
            tracing::debug!(daemon = member.name(), %status, "could not read BuildKit's history");
            (Vec::new(), false, false)
        }
        Err(elapsed) => return Err(member.daemon.unreachable_error(elapsed)),
    };
    let (running, is_recorded, is_cancelled) = answer;
    Ok(DaemonAnswer {
        running: running.len(),
        attempts: attempts_among(&running, reference),
        is_recorded,
        is_cancelled,
        member,
        connection,
    })
}

impl DaemonAnswer {
    /// Reads the attempts of the build from the daemon's records. A history that fails counts as one without records: it
    /// prevents no build.
    pub(super) async fn read_attempts(&mut self, reference: &BuildReference, call: &Cancellation) {
        // The first attempt may be another daemon's. Only a daemon that has one decodes its records.
        let mut is_recorded = self.is_recorded;
        for number in 2..=ATTEMPTS_MAX {
            if is_recorded {
                break;
            }
            let name = reference.attempt_name(number);
            is_recorded = self.connection.may_have_record(&name).await;
        }
        if !is_recorded {
            return;
        }
        let name = reference.to_string();
        match self.connection.list_attempts(&name, call).await {
            Ok(listing) => self.attempts = attempts_among(&listing.builds, reference),
            Err(status) => {
                tracing::debug!(daemon = self.member.name(), %status, "could not read BuildKit's history");
            }
        }
    }
}

/// Returns whether a daemon runs the build `reference`; `false` if it does not answer.
pub(super) async fn runs_build(connection: &Connection, reference: &BuildReference) -> bool {
    let running = tokio::time::timeout(ANSWER_TIMEOUT, connection.list_running_builds()).await;
    running.is_ok_and(|running| running.is_ok_and(|running| !attempts_among(&running, reference).is_empty()))
}

/// Returns the attempts of a build among `builds`, each in the last state that it has there.
fn attempts_among(builds: &[ListedBuild], reference: &BuildReference) -> Vec<KnownAttempt> {
    let mut attempts: Vec<KnownAttempt> = Vec::new();
    for build in builds {
        let Some(number) = reference.attempt_number(&build.reference) else {
            continue;
        };
        // A build that has just ended is listed as running first.
        attempts.retain(|known| known.number != number);
        attempts.push(KnownAttempt {
            number,
            state: build.state,
        });
    }
    attempts
}
