//! Tests the launcher on this machine: starts, disturbs and stops stacks, and looks for what they leave
//! behind.
//!
//! The tests need root and everything that `Stack::start_stack` needs. Each test has stacks of its own and removes
//! them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod builds;
mod isolation;
mod leftovers;
mod lifecycle;
mod machine;

use std::time::Duration;

use slipway_stack::{LauncherError, ProgressSink, Stack, StackOptions, stop_named_stack};
use tokio::sync::Mutex;

/// A lock that is held while a stack starts: concurrent starts would only wait for each other's disk.
static STACK_START_LOCK: Mutex<()> = Mutex::const_new(());

/// The longest time for the kernel to clean up after a killed stack.
const CLEAN_UP_TIMEOUT: Duration = Duration::from_secs(20);

/// Starts a stack without base images and Slipway, after removing an earlier one with its data.
async fn start_fresh_bare_stack(name: &str) -> Result<Stack, LauncherError> {
    stop_named_stack(name, true, &ProgressSink::discarding()).await?;
    start_bare_stack(name).await
}

/// Starts a stack, or its missing parts, without base images and Slipway.
async fn start_bare_stack(name: &str) -> Result<Stack, LauncherError> {
    let _one = STACK_START_LOCK.lock().await;
    let mut options = StackOptions::with_stack_name(name);
    (options.images, options.deploy) = (false, false);
    Stack::start_stack(&options, &ProgressSink::to_stderr()).await
}

/// Stops a stack and removes its data.
async fn remove_stack(name: &str) -> Result<(), LauncherError> {
    stop_named_stack(name, true, &ProgressSink::discarding()).await
}
