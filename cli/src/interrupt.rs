//! Ctrl-C at the terminal.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Mutex;

use crate::failure::Failure;

/// The time within which a second Ctrl-C cancels the build.
pub(crate) const SECOND_INTERRUPT_WAIT: Duration = Duration::from_secs(3);

/// The Ctrl-C of a command. While it exists, Ctrl-C does not end the process, and none is lost that comes while nobody
/// waits for one.
pub(crate) struct Interrupts {
    signal: Mutex<Signal>,
}

impl Interrupts {
    /// Begins to receive Ctrl-C.
    ///
    /// # Errors
    /// Fails if the system does not deliver signals to this process.
    pub(crate) fn receive() -> Result<Self, Failure> {
        let signal = signal(SignalKind::interrupt()).map_err(|error| {
            Failure::platform(
                format!("could not receive Ctrl-C: {error}"),
                "close some of this terminal's programs, or raise its limit of open files (ulimit -n)",
            )
        })?;
        Ok(Self {
            signal: Mutex::new(signal),
        })
    }

    /// Waits for a Ctrl-C since the last one that was returned.
    pub(crate) async fn wait_for_press_not_reported_yet(&self) {
        if self.signal.lock().await.recv().await.is_none() {
            // No signal can come any more.
            std::future::pending::<()>().await;
        }
    }

    /// Returns whether another Ctrl-C comes in time to cancel a build.
    pub(crate) async fn is_pressed_again_in_time(&self) -> bool {
        tokio::time::timeout(SECOND_INTERRUPT_WAIT, self.wait_for_press_not_reported_yet())
            .await
            .is_ok()
    }
}
