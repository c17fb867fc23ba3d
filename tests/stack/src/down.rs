//! Stopping a stack: the parts end in order, then the rest is taken away by the kernel, then what no process holds.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};

use crate::{
    address::Number,
    cgroup::Groups,
    control::{Command, Conversation, Event},
    error::{At as _, Error, Result},
    external,
    places::{Places, StackDir},
    plan::Running,
    progress::Progress,
    stack::Stack,
};

/// How long the parts may take to end.
const PARTS_WITHIN: Duration = Duration::from_secs(60);

/// How long the kernel may take to clear namespaces away: it writes out what was not written yet when it unmounts, which was
/// seen to take over half a minute after all tests had run.
const KERNEL_WITHIN: Duration = Duration::from_secs(180);

/// How long to wait between two looks.
const BETWEEN: Duration = Duration::from_millis(20);

impl Stack {
    /// Stops this stack; its data stays.
    pub async fn down(self) -> Result<()> {
        down(self.name(), false, &Progress::silent()).await
    }
}

/// Stops the stack of a name, whatever state it is in, and with `purge` removes its data too.
pub async fn down(name: &str, purge: bool, progress: &Progress) -> Result<()> {
    if name == external::NAME {
        progress.step("stack", "it is somebody else's, and left alone");
        return Ok(());
    }
    let place = Places::from_env()?.stack(name)?;
    if !place.root.exists() {
        progress.step("stack", format_args!("there is no stack {name}"));
        return Ok(());
    }
    let lock = place.lock().await?;
    stop(&place, progress).await?;
    if purge {
        fs::remove_dir_all(&place.root).at("remove", &place.root)?;
        progress.step("stack", "its data is removed");
    }
    drop(lock);
    Ok(())
}

/// Stops what runs of a stack, and clears away what it left if it was killed.
pub(crate) async fn stop(place: &StackDir, progress: &Progress) -> Result<()> {
    let Some(running) = Running::read(place)? else {
        return Ok(());
    };
    if running.alive() {
        progress.step("stack", "stopping");
        // Whoever does not answer, or not in time, is killed.
        let _ = tokio::time::timeout(PARTS_WITHIN, stop_parts(place, progress)).await;
        if wait_until(Duration::from_secs(5), || !running.alive())
            .await
            .is_err()
            && let Some(pid) = i32::try_from(running.holder).ok().and_then(Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
    let gone = || !running.alive() && !interface(running.number).exists();
    let waited = wait_until(KERNEL_WITHIN, gone).await;
    waited.map_err(|()| Error::TooLong {
        what: format!(
            "the end of process {} and of interface {}",
            running.holder,
            running.number.interface()
        ),
        seconds: KERNEL_WITHIN.as_secs(),
    })?;
    Groups::at(running.groups).remove()?;
    for path in [place.control(), place.running()] {
        let _ = fs::remove_file(path);
    }
    progress.step("stack", "stopped");
    Ok(())
}

async fn stop_parts(place: &StackDir, progress: &Progress) -> Result<()> {
    let tell = |event| {
        if let Event::Stopped { part } = event {
            progress.step(part, "stopped");
        }
    };
    Conversation::open(&place.control())
        .await?
        .ask(Command::Down, tell)
        .await
        .map(drop)
}

async fn wait_until(limit: Duration, so: impl Fn() -> bool) -> Result<(), ()> {
    let end = Instant::now() + limit;
    while !so() {
        if Instant::now() > end {
            return Err(());
        }
        tokio::time::sleep(BETWEEN).await;
    }
    Ok(())
}

/// Where the kernel shows a stack's interface on this machine.
pub(crate) fn interface(number: Number) -> PathBuf {
    Path::new("/sys/class/net").join(number.interface())
}
