//! The watcher: follows the daemon's history while builds are registered.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use function_host::ErrorChain;
use futures_util::TryStreamExt;
use tonic::Status;

use super::{SharedSupersession, history_start};
use crate::buildkit::ConnectError;

/// The pause before the watcher's first attempt to reconnect. Every further pause is twice as long as the one before
/// it, up to [`RECONNECT_PAUSE_MAX`].
const RECONNECT_PAUSE_MIN: Duration = Duration::from_millis(200);

/// The longest pause between two of the watcher's attempts to reconnect.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(30);

/// The reason why the watcher stopped following the history.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("BuildKit's history cannot be followed")]
    Listen(#[from] Status),
    #[error("BuildKit ended the stream of its history")]
    Ended,
}

/// Passes the builds in the daemon's history to the registry, and reconnects until the task is aborted.
pub(super) async fn watch_history(shared: Arc<SharedSupersession>) {
    let mut pause = RECONNECT_PAUSE_MIN;
    loop {
        let error = match follow_history(&shared, &mut pause).await {
            Ok(()) => WatchError::Ended,
            Err(error) => error,
        };
        shared.log_history_failure(&ErrorChain(&error));
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RECONNECT_PAUSE_MAX);
    }
}

/// Passes builds to the registry over one connection: first those that run or have succeeded since the earliest
/// registered build was submitted, then each that starts or ends.
async fn follow_history(shared: &SharedSupersession, pause: &mut Duration) -> Result<(), WatchError> {
    let connection = shared.daemon.connect().await?;
    let mut builds = connection
        .watch_builds(history_start(earliest_submission_time(shared)))
        .await?;
    shared.log_history_success();
    *pause = RECONNECT_PAUSE_MIN;
    loop {
        tokio::select! {
            build = builds.try_next() => match build? {
                Some(build) => shared.lock_state().registry.supersede_by_known_build(&build, SystemTime::now()),
                None => return Ok(()),
            },
            // What happened before the registration is in the history, and not among the events to come.
            () = shared.registered.notified() => shared.apply_history(&connection, earliest_submission_time(shared)).await,
        }
    }
}

/// Returns the time of the earliest submission of a registered build.
fn earliest_submission_time(shared: &SharedSupersession) -> SystemTime {
    let earliest = shared.lock_state().registry.earliest_submission();
    earliest.unwrap_or_else(SystemTime::now)
}
