//! The stop of a stack: first its parts, in order; the kernel then removes the namespaces; last, the launcher
//! removes the control groups and state files.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};

use crate::{
    address::StackNumber,
    cgroup::ControlGroups,
    control::{Command, ControlClient, Event},
    directories::{Directories, StackDir},
    error::{Error, IoResultExt as _, Result},
    plan::RunningStack,
    progress::Progress,
    stack::{Stack, external},
};

/// The longest time for the parts of a stack to stop.
const PARTS_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest time for the kernel to remove a stack's namespaces. When it unmounts, it writes out dirty pages,
/// which took over half a minute after all tests had run.
const KERNEL_TIMEOUT: Duration = Duration::from_secs(180);

/// The interval between checks of a condition that has no event.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

impl Stack {
    /// Stops this stack and keeps its data.
    pub async fn down(self) -> Result<()> {
        down(self.name(), false, &Progress::silent()).await
    }
}

/// Stops the named stack, whatever state it is in; with `purge`, removes its data too.
pub async fn down(name: &str, purge: bool, progress: &Progress) -> Result<()> {
    if name == external::NAME {
        progress.step("stack", "external: not started by this launcher, so not stopped");
        return Ok(());
    }
    let dir = Directories::from_env()?.stack(name)?;
    if !dir.root.exists() {
        progress.step(
            "stack",
            format_args!("no stack has the name {name}; nothing to stop"),
        );
        return Ok(());
    }
    let lock = dir.lock().await?;
    stop(&dir, progress).await?;
    if purge {
        fs::remove_dir_all(&dir.root).at("remove", &dir.root)?;
        progress.step("stack", "removed its data");
    }
    drop(lock);
    Ok(())
}

/// Stops a running stack and removes what a killed one left behind.
pub(crate) async fn stop(dir: &StackDir, progress: &Progress) -> Result<()> {
    let Some(running) = RunningStack::read(dir)? else {
        return Ok(());
    };
    if running.is_alive() {
        progress.step("stack", "stopping");
        // A supervisor that fails or does not answer in time is killed below.
        let _ = tokio::time::timeout(PARTS_TIMEOUT, stop_parts(dir, progress)).await;
        if wait_until(Duration::from_secs(5), || !running.is_alive())
            .await
            .is_err()
            && let Some(pid) = i32::try_from(running.holder).ok().and_then(Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
    let removed = || !running.is_alive() && !interface_path(running.number).exists();
    let waited = wait_until(KERNEL_TIMEOUT, removed).await;
    waited.map_err(|()| Error::Timeout {
        operation: format!(
            "the end of process {} and of interface {}",
            running.holder,
            running.number.outer_interface()
        ),
        seconds: KERNEL_TIMEOUT.as_secs(),
        details: "\nrun the command again: the kernel may still be writing data to disk".into(),
    })?;
    ControlGroups::from_dirs(running.groups).remove()?;
    for path in [dir.control(), dir.running()] {
        let _ = fs::remove_file(path);
    }
    progress.step("stack", "stopped");
    Ok(())
}

async fn stop_parts(dir: &StackDir, progress: &Progress) -> Result<()> {
    let on_event = |event| {
        if let Event::Stopped { part } = event {
            progress.step(part, "stopped");
        }
    };
    ControlClient::connect(&dir.control())
        .await?
        .send(Command::Shutdown, on_event)
        .await
        .map(drop)
}

async fn wait_until(limit: Duration, condition: impl Fn() -> bool) -> Result<(), ()> {
    let end = Instant::now() + limit;
    while !condition() {
        if Instant::now() > end {
            return Err(());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// Returns the sysfs path of a stack's interface on this machine.
pub(crate) fn interface_path(number: StackNumber) -> PathBuf {
    Path::new("/sys/class/net").join(number.outer_interface())
}
