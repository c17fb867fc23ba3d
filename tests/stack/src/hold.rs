//! The holder of a stack: when this process ends, the whole stack ends.
//!
//! It moves into the stack's control groups, writes its process id to the state file, and executes `unshare`,
//! which makes the namespaces and starts the supervisor in them as PID 1. The kernel kills the supervisor
//! when the holder ends; with PID 1 end all processes of its namespace, and with the last of them the mounts,
//! the network and its interfaces.

use std::{convert::Infallible, env, os::unix::process::CommandExt as _, process::Command};

use crate::{
    address::StackNumber,
    cgroup::StackControlGroups,
    directories::StackDir,
    error::{IoResultExt as _, LauncherError, Result},
    plan::{RunningStackState, StackPlan, process_start_ticks},
};

/// Makes this process the holder of a stack by executing `unshare`; returns only an error.
pub fn exec_as_holder(dir: &StackDir) -> Result<Infallible> {
    let plan = StackPlan::read_plan(dir)?.ok_or_else(|| {
        LauncherError::Environment(format!(
            "stack {:?} has no plan; `slipway-stack up` makes one",
            dir.name
        ))
    })?;
    let groups = StackControlGroups::of_stack(&dir.name)?;
    hold_and_supervise(dir, plan.number, groups, &["supervise"])
}

/// Makes this process the holder of a stack or cluster by executing `unshare`, with the launcher's command
/// `supervise_command` as the supervisor; returns only an error.
pub(crate) fn hold_and_supervise(
    dir: &StackDir,
    number: StackNumber,
    groups: StackControlGroups,
    supervise_command: &[&str],
) -> Result<Infallible> {
    // The stack outlives the command that started it, so it must not get signals of that command's terminal.
    rustix::process::setsid().with_operation("start a session for", &dir.root)?;
    let program = env::current_exe().with_operation("find", "/proc/self/exe")?;
    let holder = std::process::id();
    let running = RunningStackState {
        number,
        holder,
        started: process_start_ticks(holder).unwrap_or_default(),
        groups: groups.directories().to_vec(),
    };
    running.write_running_state(dir)?;
    groups.create_and_enter()?;
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--cgroup", "--fork", "--kill-child", "--"]);
    unshare
        .arg(program)
        .args(supervise_command)
        .args(["--name", &dir.name]);
    Err(LauncherError::Spawn {
        program: "unshare".into(),
        source: unshare.exec(),
    })
}
