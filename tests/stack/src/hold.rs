//! The holder of a stack: when this process ends, the whole stack ends.
//!
//! It moves into the stack's control groups, writes its process id to the state file, and executes `unshare`,
//! which makes the namespaces and starts the supervisor in them as PID 1. The kernel kills the supervisor
//! when the holder ends; with PID 1 end all processes of its namespace, and with the last of them the mounts,
//! the network and its interfaces.

use std::{env, os::unix::process::CommandExt as _, process::Command};

use crate::{
    cgroup::ControlGroups,
    directories::StackDir,
    error::{Error, IoResultExt as _, Result},
    plan::{Plan, RunningStack, start_time},
};

/// Turns this process into the holder of a stack; returns only if that fails.
pub fn hold(dir: &StackDir) -> Result<()> {
    // The stack outlives the command that started it, so it must not get signals of that command's terminal.
    rustix::process::setsid().at("start a session for", &dir.root)?;
    let program = env::current_exe().at("find", "/proc/self/exe")?;
    let groups = ControlGroups::of_stack(&dir.name)?;
    let holder = std::process::id();
    let plan = Plan::read(dir)?.ok_or_else(|| {
        Error::Environment(format!(
            "stack {:?} has no plan; `slipway-stack up` makes one",
            dir.name
        ))
    })?;
    let running = RunningStack {
        number: plan.number,
        holder,
        started: start_time(holder).unwrap_or_default(),
        groups: groups.dirs().to_vec(),
    };
    running.write(dir)?;
    groups.enter()?;
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--cgroup", "--fork", "--kill-child", "--"]);
    unshare.arg(program).args(["supervise", "--name", &dir.name]);
    Err(Error::Spawn {
        program: "unshare".into(),
        source: unshare.exec(),
    })
}
