//! Control groups of a stack. Everything in a stack is below one group in each hierarchy: stacks with
//! functions of the same names do not collide, and all groups can be removed.
//!
//! The holder enters the group before it makes its namespaces; inside them, that group is the root.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::mount::{MountFlags, UnmountFlags};

use crate::{
    error::{IoResultExt as _, Result},
    limits::StepResourceLimits,
};

/// The directory where cgroup hierarchies are mounted.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// The control group of all build steps, below which BuildKit makes one group for each step.
pub(crate) const STEPS_GROUP: &str = "slipway-steps";

/// The CPU weight of all build steps together, by the name of its file in versions 1 and 2: half of the weight of other
/// groups, which have 1024 and 100.
const STEPS_CPU_WEIGHT_BY_FILE: [(&str, u64); 2] = [("cpu.shares", 512), ("cpu.weight", 50)];

/// The longest time for the kernel to empty a control group whose processes were killed.
const CGROUP_EMPTY_TIMEOUT: Duration = Duration::from_secs(10);

/// A mounted cgroup hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct CgroupHierarchy {
    /// The directory at which the cgroup hierarchy is mounted.
    mount: PathBuf,
    /// The path of the mounted control group within the hierarchy.
    root: PathBuf,
    /// Whether this is the unified cgroup hierarchy of version 2.
    unified: bool,
    /// The controllers of the cgroup hierarchy, such as `cpu,cpuacct` or `name=systemd`; empty for version 2.
    controllers: String,
}

impl CgroupHierarchy {
    /// Parses the mounted cgroup hierarchies from `/proc/self/mountinfo` (proc(5)).
    fn parse_mountinfo(mountinfo: &str) -> Vec<Self> {
        let mut found = mountinfo
            .lines()
            .filter_map(Self::parse_cgroup_mount_below_cgroup_root)
            .collect::<Vec<_>>();
        found.dedup_by(|a, b| a.mount == b.mount);
        found
    }

    /// Parses one line; returns `None` unless it mounts a cgroup hierarchy below [`CGROUP_ROOT`].
    fn parse_cgroup_mount_below_cgroup_root(line: &str) -> Option<Self> {
        let (location, kind) = line.split_once(" - ")?;
        let mut location = location.split(' ').skip(3);
        let (root, mount) = (location.next()?, location.next()?);
        let mut kind = kind.split(' ');
        let (kind, options) = (kind.next()?, kind.nth(1)?);
        let flags = ["rw", "ro", "xattr", "nsdelegate", "memory_recursiveprot"];
        let controllers = options
            .split(',')
            .filter(|option| !flags.contains(option) && !option.contains('/'));
        mount
            .starts_with(CGROUP_ROOT)
            .then(|| Self {
                mount: mount.into(),
                root: root.into(),
                unified: kind == "cgroup2",
                controllers: if kind == "cgroup2" {
                    String::new()
                } else {
                    controllers.collect::<Vec<_>>().join(",")
                },
            })
            .filter(|_| kind == "cgroup" || kind == "cgroup2")
    }

    /// Returns the directory of the control group below which the stack's group is created; `proc_self_cgroup` is the
    /// content of `/proc/self/cgroup`.
    ///
    /// In version 2 a group that has processes cannot delegate controllers, so this is the root. In version 1
    /// it is this process's own group, whose limits then apply.
    fn mount_point_or_own_group_directory(&self, proc_self_cgroup: &str) -> PathBuf {
        if self.unified {
            return self.mount.clone();
        }
        let line = proc_self_cgroup
            .lines()
            .filter_map(|line| line.split(':').nth(1).zip(line.splitn(3, ':').nth(2)));
        let path = line
            .filter(|(controllers, _)| *controllers == self.controllers)
            .map(|(_, path)| path)
            .next();
        let below = Path::new(path.unwrap_or("/"))
            .strip_prefix(&self.root)
            .unwrap_or(Path::new(""));
        self.mount.join(below)
    }
}

/// The control groups of one stack.
#[derive(Debug)]
pub(crate) struct StackControlGroups {
    /// The directory of the stack's control group in each hierarchy.
    dirs: Vec<PathBuf>,
}

impl StackControlGroups {
    /// Returns the handle of the named stack's control groups, which may not exist yet, as seen from outside its
    /// namespaces.
    pub(crate) fn of_stack(stack: &str) -> Result<Self> {
        let own = read_file("/proc/self/cgroup")?;
        let hierarchies = CgroupHierarchy::parse_mountinfo(&read_file("/proc/self/mountinfo")?);
        let dir = |hierarchy: &CgroupHierarchy| {
            hierarchy
                .mount_point_or_own_group_directory(&own)
                .join(format!("slipway-{stack}"))
        };
        Ok(Self {
            dirs: hierarchies.iter().map(dir).collect(),
        })
    }

    /// Returns the directories of the stack's control groups, which are stored for the clean-up.
    pub(crate) fn directories(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// Creates the handle of control groups with these directories.
    pub(crate) fn from_directories(dirs: Vec<PathBuf>) -> Self {
        Self { dirs }
    }

    /// Creates the stack's control groups and moves this process into them.
    pub(crate) fn create_and_enter(&self) -> Result<()> {
        for dir in &self.dirs {
            fs::create_dir_all(dir).with_operation("create", dir)?;
            inherit_cpuset(dir)?;
            let procs = dir.join("cgroup.procs");
            fs::write(&procs, "0").with_operation("write", procs)?;
        }
        Ok(())
    }

    /// Moves the holder of the stack into a subgroup: in version 2 a group that delegates controllers may not
    /// have processes.
    pub(crate) fn move_holder_to_subgroup_in_version_2(&self, holder_pid: u32) -> Result<()> {
        for dir in self
            .dirs
            .iter()
            .filter(|dir| dir.join("cgroup.controllers").exists())
        {
            let subgroup = dir.join("holder");
            fs::create_dir_all(&subgroup).with_operation("create", &subgroup)?;
            let procs = subgroup.join("cgroup.procs");
            fs::write(&procs, holder_pid.to_string()).with_operation("write", procs)?;
        }
        Ok(())
    }

    /// Removes the stack's control groups and their subgroups; waits up to [`CGROUP_EMPTY_TIMEOUT`] in all until their
    /// processes have ended.
    pub(crate) fn wait_until_empty_and_remove(&self) -> Result<()> {
        let end = Instant::now() + CGROUP_EMPTY_TIMEOUT;
        for dir in &self.dirs {
            while let Err(error) = remove_group_tree(dir) {
                if Instant::now() > end {
                    return Err(error).with_operation("remove", dir);
                }
                // No event for "the last process has ended" exists in both versions.
                thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }
}

fn read_file(path: &str) -> Result<String> {
    fs::read_to_string(path).with_operation("read", path)
}

/// Gives a new control group the CPUs and memory nodes of its parent: a new cpuset is empty, and nothing can run in
/// it.
fn inherit_cpuset(dir: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let parent = dir.parent().unwrap_or(dir).join(name);
        if let Ok(value) = fs::read_to_string(&parent)
            && !value.trim().is_empty()
        {
            let path = dir.join(name);
            fs::write(&path, value).with_operation("write", path)?;
        }
    }
    Ok(())
}

/// Creates the control group of build steps, inside the namespaces, and sets the limits of all steps together.
pub(crate) fn create_steps_group_with_limits(limits: &StepResourceLimits) -> Result<()> {
    let values = [
        ("memory.limit_in_bytes", limits.total_memory),
        ("memory.max", limits.total_memory),
        ("pids.max", limits.total_processes()),
    ];
    for hierarchy in CgroupHierarchy::parse_mountinfo(&read_file("/proc/self/mountinfo")?) {
        let dir = hierarchy.mount.join(STEPS_GROUP);
        fs::create_dir_all(&dir).with_operation("create", &dir)?;
        inherit_cpuset(&dir)?;
        for (name, value) in values.into_iter().chain(STEPS_CPU_WEIGHT_BY_FILE) {
            let path = dir.join(name);
            if path.exists() {
                fs::write(&path, value.to_string()).with_operation("write", path)?;
            }
        }
    }
    Ok(())
}

/// A running build step.
#[derive(Debug)]
pub(crate) struct StepGroupAndProcesses {
    /// The name of the step's control groups.
    pub(crate) id: String,
    /// The process ids of the step, as the supervisor sees them.
    pub(crate) processes: Vec<u32>,
}

impl StepGroupAndProcesses {
    /// Returns the memory that the kernel uses for the step, in bytes, or 0 if that is unknown; most of it is for files
    /// that the step opened or made.
    pub(crate) fn kernel_memory_bytes_or_zero(&self) -> u64 {
        let read =
            |name: &str| fs::read_to_string(group_of_steps_with_file(name)?.join(&self.id).join(name)).ok();
        let version_1 = read("memory.kmem.usage_in_bytes").and_then(|text| text.trim().parse().ok());
        let version_2 = || {
            let text = read("memory.stat")?;
            let slab = text.lines().find_map(|line| line.strip_prefix("slab "))?;
            slab.parse().ok()
        };
        version_1.or_else(version_2).unwrap_or_default()
    }
}

/// Returns the group below which BuildKit makes the groups of steps, in the hierarchy that has files of this name.
fn group_of_steps_with_file(file: &str) -> Option<PathBuf> {
    let hierarchies = CgroupHierarchy::parse_mountinfo(&read_file("/proc/self/mountinfo").ok()?);
    // BuildKit makes a group with its own name.
    let groups = hierarchies
        .iter()
        .map(|hierarchy| hierarchy.mount.join(STEPS_GROUP).join("buildkit"));
    groups.into_iter().find(|group| group.join(file).exists())
}

/// Returns the running build steps.
pub(crate) fn running_steps_or_empty_if_unreadable() -> Vec<StepGroupAndProcesses> {
    let Some(group) = group_of_steps_with_file("pids.max") else {
        return Vec::new();
    };
    let steps = fs::read_dir(group).into_iter().flatten().flatten();
    steps
        .filter_map(|step| {
            let processes = fs::read_to_string(step.path().join("cgroup.procs")).ok()?;
            let processes = processes.lines().filter_map(|process| process.parse().ok());
            Some(StepGroupAndProcesses {
                id: step.file_name().into_string().ok()?,
                processes: processes.collect(),
            })
        })
        .collect()
}

/// Removes a control group and its subgroups. The files in a group are the kernel's and disappear with it.
fn remove_group_tree(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_group_tree(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

/// Mounts the cgroup hierarchies again inside the namespaces, so that the stack's groups are the roots.
pub(crate) fn remount_hierarchies_in_namespaces() -> Result<()> {
    let hierarchies = CgroupHierarchy::parse_mountinfo(&read_file("/proc/self/mountinfo")?);
    let links = controller_links_or_empty_if_unreadable(Path::new(CGROUP_ROOT));
    rustix::mount::unmount(CGROUP_ROOT, UnmountFlags::DETACH).with_operation("unmount", CGROUP_ROOT)?;
    let unified_only =
        matches!(hierarchies.as_slice(), [only] if only.unified && only.mount == Path::new(CGROUP_ROOT));
    if !unified_only {
        rustix::mount::mount(
            "tmpfs",
            CGROUP_ROOT,
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            Some(c"mode=755"),
        )
        .with_operation("mount", CGROUP_ROOT)?;
    }
    for hierarchy in &hierarchies {
        let at = &hierarchy.mount;
        if !unified_only {
            fs::create_dir_all(at).with_operation("create", at)?;
        }
        let kind = if hierarchy.unified { "cgroup2" } else { "cgroup" };
        let options = std::ffi::CString::new(hierarchy.controllers.as_str()).unwrap_or_default();
        rustix::mount::mount(kind, at, kind, MountFlags::empty(), Some(options.as_c_str()))
            .with_operation("mount", at)?;
    }
    for (name, target) in links {
        let at = Path::new(CGROUP_ROOT).join(name);
        std::os::unix::fs::symlink(target, &at).with_operation("create", at)?;
    }
    Ok(())
}

/// Reads the symbolic links for cgroup hierarchies with several controllers, such as `cpu` → `cpu,cpuacct`.
fn controller_links_or_empty_if_unreadable(root: &Path) -> Vec<(std::ffi::OsString, PathBuf)> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.file_name(), fs::read_link(entry.path()).ok()?)))
        .collect()
}

/// Enables every cgroup controller for subgroups, inside the namespaces; does nothing unless only version 2 is mounted.
///
/// The root's own process, which is this one, moves to a subgroup first, as version 2 requires.
pub(crate) fn enter_subgroup_and_delegate_controllers_if_version_2_only() -> Result<()> {
    let root = Path::new(CGROUP_ROOT);
    let Ok(controllers) = fs::read_to_string(root.join("cgroup.controllers")) else {
        return Ok(());
    };
    let supervisor = root.join("supervisor");
    fs::create_dir_all(&supervisor).with_operation("create", &supervisor)?;
    let procs = supervisor.join("cgroup.procs");
    fs::write(&procs, "0").with_operation("write", procs)?;
    let control = root.join("cgroup.subtree_control");
    let all = controllers
        .split_whitespace()
        .map(|name| format!("+{name}"))
        .collect::<Vec<_>>()
        .join(" ");
    fs::write(&control, all).with_operation("write", control)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION_1_MOUNTINFO: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /a /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
50 31 0:39 / /mnt rw,relatime - ext4 /dev/vda rw
";

    #[test]
    fn the_stacks_group_is_below_the_launchers_own_in_version_1() {
        let found = CgroupHierarchy::parse_mountinfo(VERSION_1_MOUNTINFO);
        let own = "4:memory:/a/b\n3:cpu,cpuacct:/\n2:name=systemd:/s\n0::/\n";
        let parents = found
            .iter()
            .map(|hierarchy| hierarchy.mount_point_or_own_group_directory(own))
            .collect::<Vec<_>>();
        let below = |path| Path::new(CGROUP_ROOT).join(path);
        assert_eq!(
            parents,
            ["cpu,cpuacct", "memory/b", "systemd/s", "unified"].map(below)
        );
        assert_eq!(
            found.iter().map(|h| h.controllers.as_str()).collect::<Vec<_>>(),
            ["cpu,cpuacct", "memory", "name=systemd", ""]
        );
    }

    #[test]
    fn the_stacks_group_is_directly_below_the_root_in_version_2() {
        let line =
            "24 22 0:21 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
        let found = CgroupHierarchy::parse_mountinfo(line);
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].mount_point_or_own_group_directory("0::/user.slice/session-1.scope\n"),
            Path::new(CGROUP_ROOT)
        );
    }
}
