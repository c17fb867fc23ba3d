//! The file system with BuildKit's data: of a fixed size, so that builds cannot fill the machine's disk, and guarded,
//! so that the build step that fills it ends before other builds have no room.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::{Pid, Signal};

use crate::{
    cgroup::{self, StepGroupAndProcesses},
    command::run_program_blocking,
    directories::{StackDir, free_space_bytes},
    error::{IoResultExt as _, LauncherError, Result},
    supervisor::{part_spec::StackDirAndPlan, reaper::ProcessReaper},
};

/// The share of the file system's blocks, and of its inodes, that stays free, as a divisor. With less, the step that
/// uses most is ended.
const BUILDKIT_DISK_RESERVE_DIVISOR: u64 = 8;

/// The space that stays free on the machine's own file system, in bytes: the file system for BuildKit takes space there
/// as it fills.
const MACHINE_RESERVE_BYTES: u64 = 1 << 30;

/// The share of the file system that a step may write without being ended, as a divisor.
const DISK_SHARE_OF_SPARED_STEP_DIVISOR: u64 = 64;

/// The kernel memory that a step may use without being ended when inodes are scarce, in bytes. The kernel keeps about 1
/// KiB for a new file.
const KERNEL_MEMORY_OF_SPARED_STEP_BYTES: u64 = 4 << 20;

/// The time that BuildKit gets to remove what an ended step wrote, before another step is ended.
const CLEAN_UP_TIME_AFTER_STEP: Duration = Duration::from_secs(2);

/// The interval between checks of the free space. A disk that takes 2 GB/s takes a twentieth of a reserve of 4 GiB in
/// it.
const FREE_SPACE_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Mounts the file system for BuildKit's data, which the launcher has made and checked, in the stack's mount namespace.
pub(super) fn mount_buildkit_disk(dir: &StackDir) -> Result<()> {
    run_program_blocking(&mut buildkit_disk_mount_command(dir)).map(drop)
}

fn buildkit_disk_mount_command(dir: &StackDir) -> Command {
    let (image, target) = (dir.buildkit_disk_image(), dir.part_data_directory("buildkit"));
    let mut command = Command::new("mount");
    // The loop device ends with the mount. Space that the cache frees is freed on the machine's disk too.
    command
        .args(["-o", "loop,discard,noatime,nobarrier"])
        .args([image.as_os_str(), target.as_os_str()]);
    command
}

/// Repairs and mounts the file system for BuildKit's data again if nothing can be written to it, or if it is not
/// mounted.
///
/// The kernel allows no more writes after one has failed: the image has holes, and the machine's disk was full.
/// BuildKit must not run. Fails if the machine's disk is still full.
pub(super) async fn repair_and_remount_unwritable_disk(dir: &StackDir, reaper: &ProcessReaper) -> Result<()> {
    let path = dir.part_data_directory("buildkit");
    if is_mount_point_or_unreadable(&path) && can_be_written_once_space_is_free(&path) {
        return Ok(());
    }
    let free = free_space_bytes(&dir.root)?;
    if free < MACHINE_RESERVE_BYTES {
        return Err(LauncherError::Environment(format!(
            "nothing can be written to BuildKit's disk, because the disk with {} is full: {} MB are free there, and {} are \
             needed",
            dir.root.display(),
            free / 1_000_000,
            MACHINE_RESERVE_BYTES / 1_000_000
        )));
    }
    let image = dir.buildkit_disk_image();
    let run = async |command: &mut Command, accepted: &str| {
        let status = reaper
            .run_to_exit_and_describe_failure(command)
            .await
            .with_operation("repair", &image)?;
        let Some(status) = status.filter(|status| status != accepted) else {
            return Ok(());
        };
        Err(LauncherError::Environment(format!(
            "cannot repair BuildKit's disk {}: {} ended with {status}; stop the stack and start it: the start checks the \
             disk, and makes it anew if need be",
            image.display(),
            command.get_program().display()
        )))
    };
    for namespace in mount_namespace_files_with_mount_at(&path)? {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount={}", namespace.display()));
        command.args(["umount", "--recursive"]).arg(&path);
        run(&mut command, "").await?;
    }
    // e2fsck(8): with status 1, it has corrected the errors.
    run(Command::new("e2fsck").arg("-fy").arg(&image), "exit status 1").await?;
    run(&mut buildkit_disk_mount_command(dir), "").await
}

/// Returns whether a file system is mounted at `path`. After a repair that failed, none is.
fn is_mount_point_or_unreadable(path: &Path) -> bool {
    let device_of = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
    match (device_of(path), path.parent().map(device_of)) {
        (Ok(own), Some(Ok(parent))) => own != parent,
        // It is mounted, and cannot be read.
        (Err(_), _) => true,
        (Ok(_), _) => false,
    }
}

/// Returns whether a file can be written to the disk, or could be if the disk were not full. The state that the kernel
/// reports is not enough: since Linux 6.12, ext4 does not become read-only after an error.
fn can_be_written_once_space_is_free(folder: &Path) -> bool {
    let probe = folder.join("write-probe");
    let written = File::create(&probe).and_then(|mut file| {
        file.write_all(b"probe")?;
        file.sync_all()
    });
    let is_removed = fs::remove_file(&probe).is_ok();
    match written {
        Ok(()) => is_removed,
        Err(error) => error.kind() == io::ErrorKind::StorageFull,
    }
}

/// Returns the mount namespaces of the stack's processes in which something is mounted at `path`, each as a file in
/// `/proc`. Some parts, like slirp4netns, have a namespace of their own with copies of all mounts, and the file system
/// stays mounted while one of them has it.
fn mount_namespace_files_with_mount_at(path: &Path) -> Result<Vec<PathBuf>> {
    let text = path.display().to_string();
    let mut found = BTreeMap::new();
    let processes = fs::read_dir("/proc").with_operation("list", Path::new("/proc"))?;
    for process in processes.flatten() {
        let folder = process.path();
        // Most entries are not processes, and a process may end while the list is read.
        let (Ok(mounts), Ok(namespace)) = (
            fs::read_to_string(folder.join("mountinfo")),
            fs::read_link(folder.join("ns/mnt")),
        ) else {
            continue;
        };
        // proc(5): the fifth field is the mount point.
        if mounts
            .lines()
            .any(|line| line.split(' ').nth(4) == Some(text.as_str()))
        {
            found.entry(namespace).or_insert_with(|| folder.join("ns/mnt"));
        }
    }
    Ok(found.into_values().collect())
}

/// Ends the build step that has written most whenever the file system with BuildKit's data has too little free space,
/// or the machine's file system below it, and the step that uses most kernel memory whenever inodes are scarce; returns
/// only an error.
pub(super) async fn end_steps_that_fill_disk_until_error(
    config: &StackDirAndPlan,
    reaper: &ProcessReaper,
) -> Result<()> {
    let dir = &config.dir;
    let path = dir.part_data_directory("buildkit");
    loop {
        tokio::time::sleep(FREE_SPACE_CHECK_INTERVAL).await;
        let space = rustix::fs::statvfs(&path).with_operation("read the free space of", &path)?;
        let small = space.f_blocks.saturating_mul(space.f_frsize) / DISK_SHARE_OF_SPARED_STEP_DIVISOR;
        let lacks_blocks = space.f_bavail < space.f_blocks / BUILDKIT_DISK_RESERVE_DIVISOR
            || free_space_bytes(&dir.root)? < MACHINE_RESERVE_BYTES;
        let lacks_inodes = space.f_favail < space.f_files / BUILDKIT_DISK_RESERVE_DIVISOR;
        let ended = lacks_blocks
            && end_step_that_uses_most(&path, small, |step| bytes_written_by(&step.processes))
            || lacks_inodes
                && end_step_that_uses_most(
                    &path,
                    KERNEL_MEMORY_OF_SPARED_STEP_BYTES,
                    StepGroupAndProcesses::kernel_memory_bytes_or_zero,
                );
        if ended {
            // Until BuildKit has freed what the step wrote, no other step has to end. By itself it frees it later.
            tokio::time::sleep(CLEAN_UP_TIME_AFTER_STEP).await;
            let _ = reaper
                .run_to_exit_and_describe_failure(&mut config.prune_failed_step_data_command())
                .await;
        }
    }
}

/// Ends the build step that uses most, if it uses more than `more_than_bytes`. Returns whether it did.
fn end_step_that_uses_most(
    disk_path_for_log: &Path,
    more_than_bytes: u64,
    usage: impl Fn(&StepGroupAndProcesses) -> u64,
) -> bool {
    let largest = cgroup::running_steps_or_empty_if_unreadable()
        .into_iter()
        .map(|step| (usage(&step), step))
        .max_by_key(|(used, _)| *used);
    let Some((used, step)) = largest.filter(|(used, _)| *used > more_than_bytes) else {
        return false;
    };
    // The supervisor's log; nothing can be done if it cannot be written.
    let _ = writeln!(
        io::stderr(),
        "ending a build step that fills BuildKit's disk: path={} step={} used_bytes={used}",
        disk_path_for_log.display(),
        step.id
    );
    for process in step.processes {
        if let Some(process) = i32::try_from(process).ok().and_then(Pid::from_raw) {
            // A process that has ended meanwhile is not an error.
            let _ = rustix::process::kill_process(process, Signal::KILL);
        }
    }
    true
}

/// Returns how much the processes, and their children that have ended, have written to disks, in bytes (proc(5),
/// `/proc/PID/io`).
fn bytes_written_by(pids: &[u32]) -> u64 {
    let written = |process: &u32| {
        let text = fs::read_to_string(format!("/proc/{process}/io")).ok()?;
        let bytes = text.lines().find_map(|line| line.strip_prefix("write_bytes: "))?;
        bytes.parse::<u64>().ok()
    };
    pids.iter().filter_map(written).sum()
}
