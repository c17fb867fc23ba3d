//! Stops a stack: first its parts, in order; the kernel then removes the namespaces; last, the launcher
//! removes the control groups and state files.

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

/// The longest time for the parts to stop.
const PARTS_WITHIN: Duration = Duration::from_secs(60);

/// The longest time for the kernel to remove the namespaces. When it unmounts, it writes out dirty pages,
/// which took over half a minute after all tests had run.
const KERNEL_WITHIN: Duration = Duration::from_secs(180);

/// The interval between checks of something that has no event.
const BETWEEN: Duration = Duration::from_millis(20);

impl Stack {
    /// Stops this stack and keeps its data.
    pub async fn down(self) -> Result<()> {
        down(self.name(), false, &Progress::silent()).await
    }
}

/// Stops the named stack, whatever state it is in; with `purge`, removes its data too.
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

/// Stops a running stack and removes what a killed one left behind.
pub(crate) async fn stop(place: &StackDir, progress: &Progress) -> Result<()> {
    let Some(running) = Running::read(place)? else {
        return Ok(());
    };
    if running.alive() {
        progress.step("stack", "stopping");
        // A supervisor that fails or does not answer in time is killed below.
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

/// Returns the sysfs path of a stack's interface on this machine.
pub(crate) fn interface(number: Number) -> PathBuf {
    Path::new("/sys/class/net").join(number.interface())
}
