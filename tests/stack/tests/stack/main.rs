//! The launcher on this machine: stacks are started, disturbed and stopped, and what they leave is looked for.
//!
//! These need root, and what `Stack::up` needs. Each has a stack of its own, and removes it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod isolation;
mod leftovers;
mod lifecycle;
mod machine;

use std::time::Duration;

use slipway_stack::{Error, Options, Progress, Stack, down};
use tokio::sync::Mutex;

/// Stacks are started one at a time: they would only wait for each other's disk.
static STARTING: Mutex<()> = Mutex::const_new(());

/// How long the kernel may take to clear away what was killed.
const CLEARED_WITHIN: Duration = Duration::from_secs(20);

/// A stack without base images and without Slipway, from nothing.
async fn fresh(name: &str) -> Result<Stack, Error> {
    down(name, true, &Progress::silent()).await?;
    up(name).await
}

/// The same stack, again.
async fn up(name: &str) -> Result<Stack, Error> {
    let _one = STARTING.lock().await;
    let mut options = Options::named(name);
    (options.images, options.deploy) = (false, false);
    Stack::up(&options, &Progress::stderr()).await
}

/// Stops a stack and removes its data.
async fn remove(name: &str) -> Result<(), Error> {
    down(name, true, &Progress::silent()).await
}
