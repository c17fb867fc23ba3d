//! The stop of a stack: first its parts, in order; the kernel then removes the namespaces; last, the launcher
//! removes the control groups and state files.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};

use crate::{
    address::StackNumber,
    cgroup::StackControlGroups,
    control::{CommandAnswerEvent, ControlClient, SupervisorCommand},
    directories::{LauncherDirectories, StackDir},
    error::{IoResultExt as _, LauncherError, Result},
    part::{StackPart, SupervisedPart},
    plan::RunningStackState,
    progress::ProgressSink,
    stack::{Stack, external},
};

/// The longest time for a start that is under way to end and then for the stack's parts to stop. If the stack's holder
/// still runs 5 s later, it is killed.
const PARTS_STOP_TIMEOUT: Duration = Duration::from_secs(120);

/// The longest time for the kernel to remove a stack's namespaces. When it unmounts, it writes out dirty pages,
/// which took over half a minute after all tests had run.
const NAMESPACE_REMOVAL_TIMEOUT: Duration = Duration::from_secs(180);

/// The interval between checks whether the holder and the interface of a stopped stack are gone.
const DOWN_POLL_INTERVAL: Duration = Duration::from_millis(20);

impl Stack {
    /// Stops this stack and keeps its data.
    pub async fn down(self) -> Result<()> {
        stop_named_stack(self.name(), false, &ProgressSink::discarding()).await
    }
}

/// Stops the named stack, whatever state it is in; with `purge`, removes its data too.
pub async fn stop_named_stack(name: &str, purge: bool, progress: &ProgressSink) -> Result<()> {
    if name == external::EXTERNAL_STACK_NAME {
        progress.emit_progress_line("stack", "external: not started by this launcher, so not stopped");
        return Ok(());
    }
    let dir = LauncherDirectories::from_env()?.stack_directory(name)?;
    if !dir.root.exists() {
        progress.emit_progress_line(
            "stack",
            format_args!("no stack has the name {name}; nothing to stop"),
        );
        return Ok(());
    }
    let lock = dir.lock_stack_and_create_its_directory().await?;
    stop_and_remove_cgroups_and_state_files::<StackPart>(&dir, progress).await?;
    if purge {
        rename_and_remove_directory(&dir.root)?;
        progress.emit_progress_line("stack", "removed its data");
    }
    drop(lock);
    Ok(())
}

/// Renames a directory and then removes it: after an interrupted removal, nothing is left under the directory's own
/// name, and the next removal deletes the rest.
pub(crate) fn rename_and_remove_directory(path: &Path) -> Result<()> {
    let mut name = OsString::from(".removed-");
    name.push(path.file_name().unwrap_or_default());
    let removed = path.with_file_name(name);
    if removed.exists() {
        fs::remove_dir_all(&removed).with_operation("remove", &removed)?;
    }
    fs::rename(path, &removed).with_operation("rename", path)?;
    fs::remove_dir_all(&removed).with_operation("remove", &removed)
}

/// Stops a stack or cluster, of which `P` are the parts, if it runs, and removes the control groups and state files of
/// a running or killed one; its data stays.
pub(crate) async fn stop_and_remove_cgroups_and_state_files<P: SupervisedPart>(
    dir: &StackDir,
    progress: &ProgressSink,
) -> Result<()> {
    let Some(running) = RunningStackState::read_state_if_running_or_killed(dir)? else {
        return Ok(());
    };
    if running.holder_is_alive() {
        progress.emit_progress_line(P::WHOLE, "stopping");
        // A supervisor that fails or does not answer in time is killed below, with the holder.
        let _ = tokio::time::timeout(
            PARTS_STOP_TIMEOUT,
            ask_supervisor_to_shut_down::<P>(dir, progress),
        )
        .await;
        if wait_until_condition(Duration::from_secs(5), || !running.holder_is_alive())
            .await
            .is_err()
            && let Some(pid) = i32::try_from(running.holder).ok().and_then(Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
    let removed = || !running.holder_is_alive() && !sysfs_interface_path(running.number).exists();
    let waited = wait_until_condition(NAMESPACE_REMOVAL_TIMEOUT, removed).await;
    waited.map_err(|()| LauncherError::Timeout {
        operation: format!(
            "the end of process {} and of interface {}",
            running.holder,
            running.number.machines_end_interface()
        ),
        seconds: NAMESPACE_REMOVAL_TIMEOUT.as_secs(),
        details: "\nrun the command again: the kernel may still be writing data to disk".into(),
    })?;
    StackControlGroups::from_directories(running.groups).wait_until_empty_and_remove()?;
    for path in [dir.control_socket(), dir.running_state_file()] {
        let _ = fs::remove_file(path);
    }
    progress.emit_progress_line(P::WHOLE, "stopped");
    Ok(())
}

/// Lets the supervisor stop all parts, in order, and end itself.
async fn ask_supervisor_to_shut_down<P: SupervisedPart>(
    dir: &StackDir,
    progress: &ProgressSink,
) -> Result<()> {
    let on_event = |event: CommandAnswerEvent<P>| {
        if let CommandAnswerEvent::Stopped { part } = event {
            progress.emit_progress_line(part, "stopped");
        }
    };
    ControlClient::connect_to_supervisor(&dir.control_socket())
        .await?
        .send_command_and_return_done_failed_or_status(SupervisorCommand::Shutdown, on_event)
        .await
        .map(drop)
}

/// Polls a condition until it holds; fails if it does not within `limit`.
async fn wait_until_condition(limit: Duration, condition: impl Fn() -> bool) -> Result<(), ()> {
    let end = Instant::now() + limit;
    while !condition() {
        if Instant::now() > end {
            return Err(());
        }
        tokio::time::sleep(DOWN_POLL_INTERVAL).await;
    }
    Ok(())
}

/// Returns the sysfs path of a stack's interface on this machine.
pub(crate) fn sysfs_interface_path(number: StackNumber) -> PathBuf {
    Path::new("/sys/class/net").join(number.machines_end_interface())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_directory_leaves_nothing_even_after_an_interrupted_removal() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("x");
        for directory in [&path, &parent.path().join(".removed-x")] {
            fs::create_dir_all(directory.join("data")).unwrap();
        }
        rename_and_remove_directory(&path).unwrap();
        assert!(fs::read_dir(parent.path()).unwrap().next().is_none());
    }
}
