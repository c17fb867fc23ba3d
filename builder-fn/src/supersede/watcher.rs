//! The watcher: follows the daemon's history while builds are registered, and for some time after the last one.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use function_host::ErrorChain;
use futures_util::TryStreamExt;
use tokio::time::error::Elapsed;
use tonic::Status;

use super::{HISTORY_TIMEOUT, NewestSuccesses, SharedSupersession, history_start_for};
use crate::buildkit::{ConnectError, Connection};

/// The pause before the watcher's first attempt to reconnect. Every further pause is twice as long as the one before
/// it, up to [`RECONNECT_PAUSE_MAX`].
const RECONNECT_PAUSE_MIN: Duration = Duration::from_millis(200);

/// The longest pause between two of the watcher's attempts to reconnect.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(30);

/// The time for which the history is followed after the last registered build has ended, so that of builds which follow
/// each other slowly not each one makes the daemon decode all of its records.
const LINGER_TIME: Duration = Duration::from_secs(30);

/// How long before the first registration a build may have been submitted so that the history is not read again for it.
const LOOKBACK_TIME: Duration = Duration::from_secs(900);

/// The reason why the watcher stopped following the history.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("BuildKit's history cannot be followed")]
    Listen(#[from] Status),
    #[error("BuildKit's history did not answer in time")]
    Timeout(#[from] Elapsed),
    #[error("BuildKit ended the stream of its history")]
    Ended,
}

/// Passes the builds in the daemon's history to the registry and the known builds, and reconnects until no build has
/// been registered for some time.
pub(super) async fn watch_history(shared: Arc<SharedSupersession>) {
    let mut pause = RECONNECT_PAUSE_MIN;
    loop {
        let error = match follow_history(&shared, &mut pause).await {
            Ok(StopReason::Idle) => return,
            Ok(StopReason::StreamEnded) => WatchError::Ended,
            Err(error) => error,
        };
        shared.log_history_failure(&ErrorChain(&error));
        let requests = shared.lock_state().requests;
        shared.mark_requests_handled_even_if_unread_up_to(requests);
        // A new build is worth an attempt at once.
        let _ = tokio::time::timeout(pause, shared.changed.notified()).await;
        pause = (pause * 2).min(RECONNECT_PAUSE_MAX);
        if shared.stop_watching_if_idle(Duration::ZERO) {
            return;
        }
    }
}

/// The reason for which the watcher stopped without an error.
enum StopReason {
    /// No build has been registered for [`LINGER_TIME`].
    Idle,
    /// The daemon ended the stream.
    StreamEnded,
}

/// Follows the history over one connection: subscribes to it, reads what was before the subscription as far as
/// registered builds need it, and passes on each build that starts or ends.
async fn follow_history(shared: &SharedSupersession, pause: &mut Duration) -> Result<StopReason, WatchError> {
    let connection = match shared.is_one_of_several {
        true => shared.daemon.connect_if_host_accepts_quickly().await?,
        false => shared.daemon.connect().await?,
    };
    let mut builds = connection.watch_builds().await?;
    shared.lock_state().known = NewestSuccesses::empty_complete_from(SystemTime::now());
    let mut answered = None;
    loop {
        let requests = shared.lock_state().requests;
        if answered != Some(requests) {
            tokio::time::timeout(
                HISTORY_TIMEOUT,
                read_builds_that_may_supersede(shared, &connection),
            )
            .await??;
            answered = Some(requests);
            shared.log_history_success();
            shared.mark_requests_handled_even_if_unread_up_to(requests);
            *pause = RECONNECT_PAUSE_MIN;
        }
        let idle_since = shared.lock_state().idle_since;
        let lingered = async {
            match idle_since {
                Some(since) => tokio::time::sleep_until(since + LINGER_TIME).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            build = builds.try_next() => match build? {
                Some(build) => shared.supersede_by_and_note_known_build(&build),
                None => return Ok(StopReason::StreamEnded),
            },
            () = shared.changed.notified() => {}
            () = lingered => if shared.stop_watching_if_idle(LINGER_TIME) {
                return Ok(StopReason::Idle);
            }
        }
    }
}

/// Reads the builds in the history that may supersede registered ones: those that run, and their records if not all
/// that may do so are known.
async fn read_builds_that_may_supersede(
    shared: &SharedSupersession,
    connection: &Connection,
) -> Result<(), Status> {
    let missing_from = {
        let mut state = shared.lock_state();
        let earliest = state.registry.earliest_submission();
        match earliest.filter(|earliest| !state.known.are_complete_for(*earliest)) {
            Some(earliest) => {
                let lookback = SystemTime::now().checked_sub(LOOKBACK_TIME);
                let from = lookback.map_or(earliest, |lookback| lookback.min(earliest));
                state.known.claim_complete_from(from);
                Some(from)
            }
            None => None,
        }
    };
    let mut builds = match missing_from {
        Some(from) => {
            connection
                .request_running_and_succeeded_builds(history_start_for(from))
                .await?
        }
        None => connection.request_running_builds().await?,
    };
    while let Some(build) = builds.try_next().await? {
        shared.supersede_by_and_note_known_build(&build);
    }
    Ok(())
}
