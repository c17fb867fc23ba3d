//! A stack leaves nothing behind, however it ends.

use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use slipway_stack::{Error, Part, Stack, State};

use crate::{
    CLEARED_WITHIN, fresh,
    machine::{Traces, Untouched},
    remove, up,
};

#[tokio::test]
async fn down_leaves_no_process_mount_namespace_interface_or_control_group() -> Result<(), Error> {
    let name = "test-down";
    let before = Untouched::now();
    let stack = fresh(name).await?;
    let traces = Traces::of(&stack);
    assert!(traces.processes() > 8, "{traces:?}");
    assert_eq!(
        traces.kinds().into_iter().collect::<Vec<_>>(),
        ["cgroup", "mnt", "net", "pid"]
    );
    assert!(!traces.groups().is_empty());
    assert_eq!(Untouched::now(), before, "while it runs");
    stack.down().await?;
    assert_eq!(traces.left(), Vec::<String>::new());
    assert_eq!(traces.groups(), Vec::<std::path::PathBuf>::new());
    assert_eq!(Untouched::now(), before, "afterwards");
    assert!(Stack::load(name)?.is_none());
    remove(name).await
}

#[tokio::test]
async fn killing_the_holder_ends_all_of_it_and_it_starts_again() -> Result<(), Error> {
    let name = "test-kill";
    let stack = fresh(name).await?;
    let traces = Traces::of(&stack);
    kill(stack.holder_pid()?);
    let end = Instant::now() + CLEARED_WITHIN;
    while !traces.left().is_empty() && Instant::now() < end {
        tokio::task::yield_now().await;
    }
    assert_eq!(traces.left(), Vec::<String>::new());
    assert!(Stack::load(name)?.is_none(), "it is seen that it does not run");

    let again = up(name).await?;
    assert_eq!(
        again.gateway.password, stack.gateway.password,
        "its credentials live as long as its data"
    );
    let all = again.status().await?;
    assert!(all.iter().all(|status| status.state == State::Running), "{all:?}");
    remove(name).await?;
    assert_eq!(traces.groups(), Vec::<std::path::PathBuf>::new());
    assert!(!stack.dir.exists());
    Ok(())
}

#[tokio::test]
async fn killing_the_supervisor_ends_all_of_it() -> Result<(), Error> {
    let name = "test-supervisor";
    let stack = fresh(name).await?;
    let traces = Traces::of(&stack);
    kill(stack.supervisor_pid()?);
    let end = Instant::now() + CLEARED_WITHIN;
    while !traces.left().is_empty() && Instant::now() < end {
        tokio::task::yield_now().await;
    }
    assert_eq!(traces.left(), Vec::<String>::new());
    assert!(stack.start(Part::Gateway).await.is_err());
    remove(name).await
}

fn kill(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}
