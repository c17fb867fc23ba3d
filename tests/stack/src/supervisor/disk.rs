//! The file system with BuildKit's data: of a fixed size, so that builds cannot fill the machine's disk, and guarded,
//! so that the build step that fills it ends before other builds have no room.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    process::Command,
    time::Duration,
};

use rustix::process::{Pid, Signal};

use crate::{
    cgroup::{self, RunningStep},
    command::run_program_blocking,
    directories::{StackDir, free_space},
    error::{IoResultExt as _, Result},
    supervisor::{part_spec::PartSpecSource, reaper::ProcessReaper},
};

/// The share of the file system's blocks, and of its inodes, that stays free, as a divisor. With less, the step that
/// uses most is ended.
const RESERVE_DIVISOR: u64 = 8;

/// The space that stays free on the machine's own file system, in bytes: the file system for BuildKit takes space there
/// as it fills.
const MACHINE_RESERVE_BYTES: u64 = 1 << 30;

/// The share of the file system that a step may write without being ended, as a divisor.
const SMALL_WRITER_DIVISOR: u64 = 64;

/// The kernel memory that a step may use without being ended when inodes are scarce, in bytes. The kernel keeps about 1
/// KiB for a new file.
const SMALL_KERNEL_MEMORY: u64 = 4 << 20;

/// The time that BuildKit gets to remove what an ended step wrote, before another step is ended.
const CLEAN_UP_TIME_AFTER_STEP: Duration = Duration::from_secs(2);

/// The interval between checks of the free space. A disk that takes 2 GB/s takes a twentieth of a reserve of 4 GiB in it.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Mounts the file system for BuildKit's data, which the launcher has made and checked, in the stack's mount namespace.
pub(super) fn mount_buildkit_disk(dir: &StackDir) -> Result<()> {
    let (image, target) = (dir.buildkit_disk_image(), dir.part_data_directory("buildkit"));
    // The loop device ends with the mount. Space that the cache frees is freed on the machine's disk too.
    run_program_blocking(
        Command::new("mount")
            .args(["-o", "loop,discard,noatime,nobarrier"])
            .args([image.as_os_str(), target.as_os_str()]),
    )
    .map(drop)
}

/// Ends the build step that has written most whenever the file system with BuildKit's data has too little free space,
/// or the machine's file system below it, and the step that uses most kernel memory whenever inodes are scarce; returns
/// only an error.
pub(super) async fn guard_free_space(config: &PartSpecSource, reaper: &ProcessReaper) -> Result<()> {
    let dir = &config.dir;
    let path = dir.part_data_directory("buildkit");
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        let space = rustix::fs::statvfs(&path).with_operation("read the free space of", &path)?;
        let small = space.f_blocks.saturating_mul(space.f_frsize) / SMALL_WRITER_DIVISOR;
        let lacks_blocks = space.f_bavail < space.f_blocks / RESERVE_DIVISOR
            || free_space(&dir.root)? < MACHINE_RESERVE_BYTES;
        let lacks_inodes = space.f_favail < space.f_files / RESERVE_DIVISOR;
        let ended = lacks_blocks && end_largest_step(&path, small, |step| bytes_written_by(&step.processes))
            || lacks_inodes && end_largest_step(&path, SMALL_KERNEL_MEMORY, RunningStep::kernel_memory);
        if ended {
            // Until BuildKit has freed what the step wrote, no other step has to end. By itself it frees it later.
            tokio::time::sleep(CLEAN_UP_TIME_AFTER_STEP).await;
            let _ = reaper.run_to_exit(&mut config.collect_garbage_command()).await;
        }
    }
}

/// Ends the build step that uses most, if it uses more than `small` bytes. Returns whether it did.
fn end_largest_step(path: &Path, small: u64, usage: impl Fn(&RunningStep) -> u64) -> bool {
    let largest = cgroup::running_steps()
        .into_iter()
        .map(|step| (usage(&step), step))
        .max_by_key(|(used, _)| *used);
    let Some((used, step)) = largest.filter(|(used, _)| *used > small) else {
        return false;
    };
    // The supervisor's log; nothing can be done if it cannot be written.
    let _ = writeln!(
        io::stderr(),
        "ending a build step that fills BuildKit's disk: path={} step={} used_bytes={used}",
        path.display(),
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
fn bytes_written_by(processes: &[u32]) -> u64 {
    let written = |process: &u32| {
        let text = fs::read_to_string(format!("/proc/{process}/io")).ok()?;
        let bytes = text.lines().find_map(|line| line.strip_prefix("write_bytes: "))?;
        bytes.parse::<u64>().ok()
    };
    processes.iter().filter_map(written).sum()
}
