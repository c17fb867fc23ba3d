//! Tests that a stack leaves nothing behind on the machine, however it ends.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use slipway_stack::{LauncherError, PartState, Stack, StackPart};

use crate::{
    CLEAN_UP_TIMEOUT,
    machine::{HostFirewallSettingsAndFiles, StackFootprint},
    remove_stack, start_bare_stack, start_fresh_bare_stack,
};

#[tokio::test]
async fn down_leaves_no_process_mount_namespace_interface_or_control_group() -> Result<(), LauncherError> {
    let name = "test-down";
    let before = HostFirewallSettingsAndFiles::current_host_state();
    let stack = start_fresh_bare_stack(name).await?;
    let footprint = StackFootprint::footprint_of_stack(&stack);
    assert!(footprint.process_count() > 8, "{footprint:?}");
    assert_eq!(
        footprint.namespace_kinds().into_iter().collect::<Vec<_>>(),
        ["cgroup", "mnt", "net", "pid"]
    );
    assert!(!footprint.existing_control_groups().is_empty());
    assert_eq!(
        HostFirewallSettingsAndFiles::current_host_state(),
        before,
        "while the stack runs"
    );
    stack.down().await?;
    assert_eq!(
        footprint.remaining_traces_except_control_groups(),
        Vec::<String>::new()
    );
    assert_eq!(
        footprint.existing_control_groups(),
        Vec::<std::path::PathBuf>::new()
    );
    assert_eq!(
        HostFirewallSettingsAndFiles::current_host_state(),
        before,
        "after it was stopped"
    );
    assert!(Stack::load_running(name)?.is_none());
    remove_stack(name).await
}

#[tokio::test]
async fn killing_the_holder_ends_the_whole_stack_which_can_start_again() -> Result<(), LauncherError> {
    let name = "test-kill";
    let stack = start_fresh_bare_stack(name).await?;
    let footprint = StackFootprint::footprint_of_stack(&stack);
    kill_process_by_id(stack.recorded_holder_pid()?);
    assert_eq!(
        wait_and_list_remaining_traces(&footprint).await,
        Vec::<String>::new()
    );
    assert!(
        Stack::load_running(name)?.is_none(),
        "a stack whose holder was killed does not count as running"
    );

    let again = start_bare_stack(name).await?;
    assert_eq!(
        again.gateway.password, stack.gateway.password,
        "credentials are kept as long as the data"
    );
    let all = again.statuses_of_parts_ever_started().await?;
    assert!(
        all.iter().all(|status| status.state == PartState::Running),
        "{all:?}"
    );
    remove_stack(name).await?;
    assert_eq!(
        footprint.existing_control_groups(),
        Vec::<std::path::PathBuf>::new()
    );
    assert!(!stack.dir.root.exists());
    Ok(())
}

#[tokio::test]
async fn killing_the_supervisor_ends_the_whole_stack() -> Result<(), LauncherError> {
    let name = "test-supervisor";
    let stack = start_fresh_bare_stack(name).await?;
    let footprint = StackFootprint::footprint_of_stack(&stack);
    kill_process_by_id(stack.supervisor_pid()?);
    assert_eq!(
        wait_and_list_remaining_traces(&footprint).await,
        Vec::<String>::new()
    );
    assert!(stack.start_part(StackPart::Gateway).await.is_err());
    remove_stack(name).await
}

/// Waits until the kernel has cleaned up after a killed stack, and returns what remains of it.
///
/// The kernel has no event for the end of a namespace, so this polls.
async fn wait_and_list_remaining_traces(footprint: &StackFootprint) -> Vec<String> {
    let end = Instant::now() + CLEAN_UP_TIMEOUT;
    loop {
        let remaining = footprint.remaining_traces_except_control_groups();
        if remaining.is_empty() || Instant::now() > end {
            return remaining;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn kill_process_by_id(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}
