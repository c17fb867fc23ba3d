//! Tests of parts that stop, start and fail, and of their reports.

use std::{
    collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use slipway_stack::{LauncherError, PartState, ProgressSink, Stack, StackOptions, StackPart};

use crate::{
    STACK_START_LOCK, machine::StackFootprint, remove_stack, start_bare_stack, start_fresh_bare_stack,
};

#[tokio::test]
async fn each_part_can_be_stopped_and_started_and_starting_a_running_stack_keeps_the_process_count()
-> Result<(), LauncherError> {
    let name = "test-parts";
    let stack = start_fresh_bare_stack(name).await?;
    for part in StackPart::parts_in_start_order_then_builder().filter(|part| *part != StackPart::Builder) {
        stack.stop_part(part).await?;
        assert_eq!(part_state(&stack, part).await?, Some(PartState::Stopped));
        stack.start_part(part).await?;
        assert_eq!(part_state(&stack, part).await?, Some(PartState::Running));
    }
    assert_eq!(
        stack
            .current_part_log_tail_or_empty(StackPart::Buildkit, 5)
            .lines()
            .count(),
        5
    );
    let footprint = StackFootprint::footprint_of_stack(&stack);
    start_bare_stack(name).await?;
    assert_eq!(
        StackFootprint::footprint_of_stack(&stack).process_count(),
        footprint.process_count(),
        "starting a running stack restarts no part"
    );
    remove_stack(name).await
}

/// The longest time until a killed part runs again. BuildKit and containerd look through their data first.
const KILLED_PART_RESTART_TIMEOUT: Duration = Duration::from_secs(60);

/// Returns the process IDs of the stack's parts, which are the children of its supervisor.
fn part_process_ids(stack: &Stack) -> BTreeSet<i32> {
    let supervisor = stack.supervisor_pid().unwrap();
    let children = fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).unwrap();
    children
        .split_whitespace()
        .map(|id| id.parse().unwrap())
        .collect()
}

async fn part_state(stack: &Stack, part: StackPart) -> Result<Option<PartState>, LauncherError> {
    let statuses = stack.statuses_of_parts_ever_started().await?;
    let status = statuses.into_iter().find(|status| status.part == part);
    Ok(status.map(|status| status.state))
}

#[tokio::test]
async fn a_part_that_is_killed_is_started_again() -> Result<(), LauncherError> {
    let name = "test-killed-parts";
    let stack = start_fresh_bare_stack(name).await?;
    for part in StackPart::parts_in_start_order_then_builder().filter(|part| *part != StackPart::Builder) {
        stack.stop_part(part).await?;
        let others = part_process_ids(&stack);
        stack.start_part(part).await?;
        let with_part = part_process_ids(&stack);
        let killed: Vec<i32> = with_part.difference(&others).copied().collect();
        assert_eq!(killed.len(), 1, "{part}: {killed:?}");

        for id in &killed {
            kill_process(Pid::from_raw(*id).unwrap(), Signal::KILL).unwrap();
        }
        let restarted = async {
            loop {
                // The supervisor sends no event to this process.
                tokio::time::sleep(Duration::from_millis(50)).await;
                let ids = part_process_ids(&stack);
                if killed.iter().all(|id| !ids.contains(id))
                    && part_state(&stack, part).await? == Some(PartState::Running)
                {
                    return Ok::<_, LauncherError>(());
                }
            }
        };
        let restarted = tokio::time::timeout(KILLED_PART_RESTART_TIMEOUT, restarted).await;
        restarted.unwrap_or_else(|_| panic!("{part} was not started again"))?;
    }
    remove_stack(name).await
}

#[tokio::test]
async fn a_part_that_has_ended_and_is_then_stopped_stays_stopped() -> Result<(), LauncherError> {
    let name = "test-stopped-after-its-end";
    let stack = start_fresh_bare_stack(name).await?;
    let with_part = part_process_ids(&stack);
    stack.stop_part(StackPart::QueueWorker).await?;
    let others = part_process_ids(&stack);
    assert_eq!(with_part.difference(&others).count(), 1);
    stack.start_part(StackPart::QueueWorker).await?;
    let with_part = part_process_ids(&stack);
    for id in with_part.difference(&others) {
        kill_process(Pid::from_raw(*id).unwrap(), Signal::KILL).unwrap();
    }
    stack.stop_part(StackPart::QueueWorker).await?;

    // A restart would come after a second.
    tokio::time::sleep(Duration::from_secs(3)).await;

    assert_eq!(
        part_state(&stack, StackPart::QueueWorker).await?,
        Some(PartState::Stopped)
    );
    assert_eq!(part_process_ids(&stack), others);
    remove_stack(name).await
}

#[tokio::test]
async fn starting_buildkit_repairs_its_disk_after_the_kernel_has_stopped_all_writes()
-> Result<(), LauncherError> {
    let name = "test-read-only-disk";
    let stack = start_fresh_bare_stack(name).await?;
    let disk = stack.dir.root.join("data/buildkit");
    let in_stack = |program: &str, arguments: &[&str]| {
        let status = Command::new("nsenter")
            .arg(format!(
                "--mount=/proc/{}/ns/mnt",
                stack.supervisor_pid().unwrap()
            ))
            .arg(program)
            .args(arguments)
            .arg(&disk)
            .status();
        status.unwrap().success()
    };
    let can_write = || in_stack("sh", &["-c", r#": >"$0/file" && rm "$0/file""#]);
    // The second simulates what the kernel does after a failed write.
    for options in ["remount,ro", "remount,abort"] {
        stack.stop_part(StackPart::Buildkit).await?;
        assert!(can_write());
        in_stack("mount", &["-o", options]);
        assert!(!can_write(), "{options}");

        stack.start_part(StackPart::Buildkit).await?;

        assert_eq!(
            part_state(&stack, StackPart::Buildkit).await?,
            Some(PartState::Running)
        );
        assert!(can_write(), "{options}");
    }
    remove_stack(name).await
}

#[tokio::test]
async fn a_layer_lost_from_the_registrys_store_is_pushed_again_at_the_next_start() -> Result<(), LauncherError>
{
    let name = "test-lost-layer";
    remove_stack(name).await?;
    let with_images = async || {
        let _one = STACK_START_LOCK.lock().await;
        let mut options = StackOptions::with_stack_name(name);
        (options.images, options.deploy) = (true, false);
        Stack::start_stack(&options, &ProgressSink::to_stderr()).await
    };
    let stack = with_images().await?;
    let largest = || {
        let blobs = stack
            .dir
            .root
            .join("data/registry/docker/registry/v2/blobs/sha256");
        let blobs = fs::read_dir(blobs).unwrap().flatten();
        let blobs = blobs.flat_map(|group| fs::read_dir(group.path()).unwrap().flatten());
        let sized =
            blobs.filter_map(|blob| Some((fs::metadata(blob.path().join("data")).ok()?.len(), blob.path())));
        sized.max().unwrap()
    };
    let (size, lost) = largest();
    assert!(
        size > 10_000_000,
        "the largest blob is the toolchain layer, not one of {size} bytes"
    );

    fs::remove_dir_all(&lost).unwrap();
    assert_ne!(largest().1, lost);
    with_images().await?;

    assert_eq!(largest(), (size, lost));
    remove_stack(name).await
}

#[tokio::test]
async fn a_part_that_fails_is_reported_with_the_end_of_its_log_and_the_stack_is_stopped()
-> Result<(), LauncherError> {
    let name = "test-failing";
    let dir = tempfile::tempdir().unwrap();
    let gateway = dir.path().join("gateway");
    fs::write(
        &gateway,
        "#!/bin/sh\necho first; echo it is too early >&2; exit 7\n",
    )
    .unwrap();
    fs::set_permissions(&gateway, fs::Permissions::from_mode(0o755)).unwrap();
    remove_stack(name).await?;
    let mut options = StackOptions::with_stack_name(name);
    (options.images, options.deploy, options.gateway) = (false, false, Some(gateway));
    let error = {
        let _one = STACK_START_LOCK.lock().await;
        Stack::start_stack(&options, &ProgressSink::to_stderr())
            .await
            .unwrap_err()
    };
    let LauncherError::NotReady {
        part,
        reason,
        tail,
        log,
    } = error
    else {
        panic!("unexpected error: {error}")
    };
    assert_eq!(
        (part, reason.as_str()),
        (StackPart::Gateway.to_string(), "it ended: exit status 7")
    );
    assert_eq!(tail, "first\nit is too early");
    assert!(log.ends_with("test-failing/log/gateway.log"));
    assert!(Stack::load_running(name)?.is_none());
    let plan = fs::read(log.ancestors().nth(2).unwrap().join("plan.json")).unwrap();
    let plan: serde_json::Value = serde_json::from_slice(&plan).unwrap();
    let interface = format!("slipway{}", plan["number"]);
    assert!(
        !Path::new("/sys/class/net").join(&interface).exists(),
        "{interface} is left"
    );
    remove_stack(name).await
}

#[tokio::test]
async fn a_dropped_start_leaves_no_running_stack() -> Result<(), LauncherError> {
    let name = "test-given-up";
    remove_stack(name).await?;
    let _one = STACK_START_LOCK.lock().await;
    let mut options = StackOptions::with_stack_name(name);
    (options.images, options.deploy) = (false, false);
    let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let progress = ProgressSink::new(move |line| {
        let _ = sender.send(line.to_owned());
    });
    let up = Stack::start_stack(&options, &progress);
    let gateway_starting = async {
        while let Some(line) = lines.recv().await {
            if line.contains("gateway: starting") {
                return;
            }
        }
    };
    tokio::select! {
        up = up => panic!("the start ended before the gateway was started: {up:?}"),
        () = gateway_starting => {}
    }
    assert!(Stack::load_running(name)?.is_none(), "the holder was killed");
    remove_stack(name).await
}
