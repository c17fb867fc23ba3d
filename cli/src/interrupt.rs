//! Ctrl-C at the terminal.

use std::time::Duration;

/// The time within which a second Ctrl-C cancels the build.
pub(crate) const SECOND_INTERRUPT_WAIT: Duration = Duration::from_secs(3);

/// Waits for a Ctrl-C. After a first call, Ctrl-C no longer ends the process by itself.
pub(crate) async fn wait_for_interrupt() {
    if tokio::signal::ctrl_c().await.is_err() {
        // Ctrl-C then ends the process, as without this function.
        std::future::pending::<()>().await;
    }
}

/// Returns whether a second Ctrl-C comes in time.
pub(crate) async fn is_pressed_again() -> bool {
    tokio::time::timeout(SECOND_INTERRUPT_WAIT, wait_for_interrupt())
        .await
        .is_ok()
}
