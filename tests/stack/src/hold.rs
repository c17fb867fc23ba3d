//! The holder of a stack: the process whose end is the end of all of it.
//!
//! It moves into the stack's control groups, writes down who it is, and becomes `unshare`, which makes the namespaces
//! and starts the supervisor in them as PID 1. The supervisor is killed when the holder goes, by the kernel, and with
//! PID 1 go all processes of its namespace; with the last of them go the mounts, the network and its interfaces.

use std::{env, os::unix::process::CommandExt as _, process::Command};

use crate::{
    cgroup::Groups,
    error::{At as _, Error, Result},
    places::StackDir,
    plan::{Plan, Running, started},
};

/// Becomes the holder of a stack; returns only when that fails.
pub fn hold(dir: &StackDir) -> Result<()> {
    // Out of the terminal's reach: the stack outlives the command that started it.
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
