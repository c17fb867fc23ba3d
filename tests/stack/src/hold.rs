//! The holder of a stack: when this process ends, the whole stack ends.
//!
//! It moves into the stack's control groups, writes its process id to the state file, and executes `unshare`,
//! which makes the namespaces and starts the supervisor in them as PID 1. The kernel kills the supervisor
//! when the holder ends; with PID 1 end all processes of its namespace, and with the last of them the mounts,
//! the network and its interfaces.

use std::{env, os::unix::process::CommandExt as _, process::Command};

use crate::{
    cgroup::Groups,
    error::{At as _, Error, Result},
    places::StackDir,
    plan::{Plan, Running, started},
};

/// Becomes the holder of a stack; returns only if that fails.
pub fn hold(dir: &StackDir) -> Result<()> {
    // The stack outlives the command that started it, so it must not get signals of that command's terminal.
    rustix::process::setsid().at("leave the session of", &dir.root)?;
    let program = env::current_exe().at("find", "/proc/self/exe")?;
    let groups = Groups::of(&dir.name)?;
    let holder = std::process::id();
    let plan = Plan::read(dir)?.ok_or_else(|| Error::Machine(format!("there is no stack {}", dir.name)))?;
    let running = Running {
        number: plan.number,
        holder,
        started: started(holder).unwrap_or_default(),
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
