//! The question that up to 16 daemons of a pool are asked before a build begins: whether they have the build already,
//! how many builds they run, and whether somebody asked to cancel the build.

use std::sync::Arc;
use std::time::Duration;

use function_host::ErrorChain;
use futures_util::future::join_all;

use super::member::PoolMember;
use crate::buildkit::job::{ATTEMPT_REFERENCES_OF_CALL_MAX, is_connection_loss};
use crate::buildkit::{
    BuildReference, BuildState, Cancellation, ConnectError, Connection, HistoryListing, ListedBuild,
};

/// The longest wait for a daemon's history, and for the connection before it if the daemon is given up soon. A daemon
/// that takes longer counts as one that does not answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The attempts of a build for which a daemon is asked whether it may have a record. The first ones may be those of a
/// daemon that is gone.
const ASKED_ATTEMPT_NUMBERS: std::ops::RangeInclusive<u32> = 1..=3;

/// Whether a daemon is given up soon, because there are others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostAcceptTimeout {
    /// The host has to accept the connection within 300 ms.
    Short,
    /// The host has to accept the connection within 10 s, as that of a pool's only daemon.
    Long,
}

/// A daemon's answer to the question about a build, with the connection to the daemon.
pub(super) struct DaemonAnswer {
    pub(super) member: Arc<PoolMember>,
    pub(super) connection: Connection,
    /// The number of builds of all builders that run on the daemon.
    pub(super) running: usize,
    /// The attempts of the build that the daemon knows: those that run, until the records are read.
    pub(super) attempts: Vec<KnownAttempt>,
    /// Whether the daemon may have a record of one of the first attempts, and so of others.
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

/// Asks a daemon about a build. One that would be given up soon and is not left out is asked once more if it does not
/// answer the first time: a single packet that was lost must not hide the build that it runs.
pub(super) async fn ask_about_build_retrying_if_short_timeout(
    member: Arc<PoolMember>,
    reference: &BuildReference,
    call: &Cancellation,
    accept_timeout: HostAcceptTimeout,
) -> Result<DaemonAnswer, ConnectError> {
    let ask = || ask_once(member.clone(), reference, call, accept_timeout);
    let in_time = async |asking| match accept_timeout {
        HostAcceptTimeout::Long => Box::pin(asking).await,
        HostAcceptTimeout::Short => match tokio::time::timeout(ANSWER_TIMEOUT, Box::pin(asking)).await {
            Ok(answer) => answer,
            Err(elapsed) => Err(member.daemon.unreachable_error(elapsed)),
        },
    };
    match in_time(ask()).await {
        Err(error) if accept_timeout == HostAcceptTimeout::Short && !member.is_left_out() => {
            tracing::debug!(daemon = member.name(), error = %ErrorChain(&error), "asking a BuildKit daemon once more");
            in_time(ask()).await
        }
        answer => answer,
    }
}

/// Connects to a daemon, and asks it what it answers without decoding its records: which builds run, and whether there
/// is a record of the build `reference`, or one of a request to cancel it. [`DaemonAnswer::read_attempts`] asks for the
/// rest.
async fn ask_once(
    member: Arc<PoolMember>,
    reference: &BuildReference,
    call: &Cancellation,
    accept_timeout: HostAcceptTimeout,
) -> Result<DaemonAnswer, ConnectError> {
    let connection = match accept_timeout {
        HostAcceptTimeout::Short => member.daemon.connect_if_host_accepts_quickly().await?,
        HostAcceptTimeout::Long => member.daemon.connect().await?,
    };
    let running = match tokio::time::timeout(ANSWER_TIMEOUT, connection.list_running_builds()).await {
        Ok(Ok(running)) => running,
        Ok(Err(status)) if is_connection_loss(&status) => {
            return Err(member.daemon.unreachable_error(status));
        }
        Ok(Err(status)) => {
            tracing::debug!(daemon = member.name(), %status, "could not read BuildKit's history");
            HistoryListing::default()
        }
        Err(elapsed) => return Err(member.daemon.unreachable_error(elapsed)),
    };
    // After the question for what runs, so that a build that ends in between is seen by one of them.
    let names: Vec<_> = ASKED_ATTEMPT_NUMBERS
        .map(|number| reference.attempt_name(number))
        .collect();
    let recorded = join_all(
        names
            .iter()
            .map(|name| connection.may_have_record_unpinning_it(name)),
    );
    let cancelled = connection.is_cancellation_known_to_be_requested(call);
    let asking = async { tokio::join!(recorded, cancelled) };
    let (is_recorded, is_cancelled) = match tokio::time::timeout(ANSWER_TIMEOUT, asking).await {
        Ok((recorded, is_cancelled)) => (recorded.contains(&true), is_cancelled),
        // What runs is known all the same.
        Err(_) => (true, false),
    };
    Ok(DaemonAnswer {
        running: running.builds.len(),
        attempts: attempts_among(&running.builds, reference),
        is_recorded,
        is_cancelled,
        member,
        connection,
    })
}

impl DaemonAnswer {
    /// Reads the attempts of the build from the daemon's records. A history that fails counts as one without records:
    /// it prevents no build.
    pub(super) async fn read_attempts(&mut self, reference: &BuildReference, call: &Cancellation) {
        // The first attempt may be another daemon's. Only a daemon that has one decodes its records.
        let mut is_recorded = self.is_recorded;
        for number in ASKED_ATTEMPT_NUMBERS.end() + 1..=ATTEMPT_REFERENCES_OF_CALL_MAX {
            if is_recorded {
                break;
            }
            let name = reference.attempt_name(number);
            is_recorded = self.connection.may_have_record_unpinning_it(&name).await;
        }
        if !is_recorded {
            return;
        }
        let name = reference.to_string();
        match self
            .connection
            .list_attempts_and_running_builds(&name, 0, call)
            .await
        {
            Ok(listing) => self.attempts = attempts_among(&listing.builds, reference),
            Err(status) => {
                tracing::debug!(daemon = self.member.name(), %status, "could not read BuildKit's history");
            }
        }
    }
}

/// Returns whether a daemon runs the build `reference`; `false` if it does not answer.
pub(super) async fn is_known_to_run_build(connection: &Connection, reference: &BuildReference) -> bool {
    let running = tokio::time::timeout(ANSWER_TIMEOUT, connection.list_running_builds()).await;
    matches!(running, Ok(Ok(running)) if !attempts_among(&running.builds, reference).is_empty())
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
