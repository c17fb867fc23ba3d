//! The inspection of this machine for what a stack uses and could leave behind.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use slipway_stack::Stack;

/// The processes, namespaces and interface of a running stack.
#[derive(Debug)]
pub(crate) struct StackFootprint {
    name: String,
    dir: PathBuf,
    /// The process id and start time (`PID START`) of every process of the stack, except the plugins that BuildKit runs
    /// for a moment to prepare networks for steps.
    processes: BTreeSet<String>,
    /// The `PID START` of every process of the machine at the time of the inspection. Namespace numbers are
    /// reused at once, so only these processes can hold the stack's namespaces.
    all_processes: BTreeSet<String>,
    /// The namespaces of the stack's processes, except those that this process is in too.
    namespaces: BTreeSet<String>,
    interface: String,
}

/// The state of the machine that the stack's programs would change without isolation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HostFirewallSettingsAndFiles {
    firewall: String,
    kernel_settings: Vec<(&'static str, String)>,
    directories: Vec<(&'static str, Vec<String>)>,
}

/// The directories of the machine in which the stack's programs would make files without isolation.
const LEFTOVER_DIRECTORIES: [&str; 13] = [
    "/run",
    "/run/netns",
    "/run/containerd",
    "/run/buildkit",
    "/run/cni",
    "/var/lib",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/etc/cni",
    "/var/log",
    "/usr/libexec",
    "/opt",
    "/opt/cni",
];

/// The settings of the kernel that the programs of a stack or cluster would change without isolation.
const KERNEL_SETTINGS: [&str; 5] = [
    "net/ipv4/ip_forward",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
];

impl HostFirewallSettingsAndFiles {
    /// Reads the current state of the machine.
    pub(crate) fn current_host_state() -> Self {
        let firewall = Command::new("iptables-save").output().unwrap();
        let mut firewall = String::from_utf8(firewall.stdout).unwrap();
        // The program is there if a cluster was ever started.
        if let Ok(sets) = Command::new("ipset").args(["list", "-name"]).output() {
            firewall.push_str(&String::from_utf8(sets.stdout).unwrap());
        }
        // Comments contain the time. Chains have counters of packets, such as `[12:3456]`, which change all the time.
        let lines = firewall.lines().filter(|line| !line.starts_with('#'));
        let without_counters = lines.map(|line| line.split(" [").next().unwrap_or(line));
        Self {
            firewall: without_counters.collect(),
            kernel_settings: KERNEL_SETTINGS
                .map(|name| {
                    (
                        name,
                        fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap(),
                    )
                })
                .to_vec(),
            directories: LEFTOVER_DIRECTORIES
                .map(|dir| (dir, entry_names(Path::new(dir))))
                .to_vec(),
        }
    }
}

impl StackFootprint {
    /// Inspects the machine for the footprint of a running stack.
    pub(crate) fn footprint_of_stack(stack: &Stack) -> Self {
        let address = stack.gateway.url.trim_start_matches("http://");
        Self::footprint(stack.name(), &stack.dir.root, address)
    }

    /// Inspects the machine for the footprint of what runs in the control groups `slipway-NAME`, has a directory, and
    /// is reached at an address of this machine's pair of interfaces to it.
    pub(crate) fn footprint(name: &str, dir: &Path, address: &str) -> Self {
        let own = process_ids()
            .into_iter()
            .filter(|pid| is_in_control_group_of_stack(pid, name) && !is_network_plugin(pid))
            .collect::<Vec<_>>();
        let here = namespaces_of("self");
        let number = address.split('.').nth(2).unwrap();
        Self {
            name: name.to_owned(),
            dir: dir.to_owned(),
            processes: own.iter().filter_map(|pid| pid_and_start_ticks(pid)).collect(),
            all_processes: process_ids()
                .iter()
                .filter_map(|pid| pid_and_start_ticks(pid))
                .collect(),
            namespaces: own
                .iter()
                .flat_map(|pid| namespaces_of(pid))
                .filter(|ns| !here.contains(ns))
                .collect(),
            interface: format!("slipway{number}"),
        }
    }

    /// Returns the number of the stack's processes.
    pub(crate) fn process_count(&self) -> usize {
        self.processes.len()
    }

    /// Returns the kinds of namespaces that the stack has of its own.
    pub(crate) fn namespace_kinds(&self) -> BTreeSet<&str> {
        self.namespaces
            .iter()
            .filter_map(|namespace| namespace.split(':').next())
            .collect()
    }

    /// Returns the stack's processes, namespaces, mounts and interface that are still on the machine; control groups
    /// are not among them.
    pub(crate) fn remaining_traces_except_control_groups(&self) -> Vec<String> {
        let mut remaining = Vec::new();
        for pid in process_ids() {
            let Some(identity) = pid_and_start_ticks(&pid) else {
                continue;
            };
            if self.processes.contains(&identity) || is_in_control_group_of_stack(&pid, &self.name) {
                remaining.push(format!("process {pid} {}", command_line(&pid)));
            }
            if self.all_processes.contains(&identity) {
                remaining.extend(
                    namespaces_of(&pid)
                        .into_iter()
                        .filter(|namespace| self.namespaces.contains(namespace)),
                );
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        remaining.extend(
            mounts
                .lines()
                .filter(|line| line.contains(self.dir.to_str().unwrap()))
                .map(str::to_owned),
        );
        if Path::new("/sys/class/net").join(&self.interface).exists() {
            remaining.push(format!("interface {}", self.interface));
        }
        remaining
    }

    /// Returns the stack's control groups that still exist.
    pub(crate) fn existing_control_groups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        find_topmost_directories_with_name(
            Path::new("/sys/fs/cgroup"),
            &format!("slipway-{}", self.name),
            &mut found,
        );
        found
    }
}

/// Returns the sockets on which a stack's processes listen in this machine's network namespace, as `PROGRAM
/// INODE`.
pub(crate) fn stacks_listening_sockets_in_machines_network(stack: &Stack) -> Vec<String> {
    let here = fs::metadata("/proc/self/ns/net").unwrap().ino();
    let mut sockets = BTreeSet::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let table = fs::read_to_string(format!("/proc/self/net/{table}")).unwrap();
        // 0A is a listening TCP socket, 07 a bound and unconnected UDP socket.
        let open = table
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        sockets.extend(
            open.filter(|line| ["0A", "07"].contains(&line[3]))
                .map(|line| line[9].to_owned()),
        );
    }
    let mut found = Vec::new();
    for pid in process_ids()
        .into_iter()
        .filter(|pid| is_in_control_group_of_stack(pid, stack.name()))
    {
        if fs::metadata(format!("/proc/{pid}/ns/net"))
            .map(|ns| ns.ino())
            .ok()
            != Some(here)
        {
            continue;
        }
        for file in fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let target = fs::read_link(file.path())
                .unwrap_or_default()
                .display()
                .to_string();
            let inode = target
                .strip_prefix("socket:[")
                .and_then(|rest| rest.strip_suffix(']'));
            found.extend(
                inode
                    .filter(|inode| sockets.contains(*inode))
                    .map(|inode| format!("{} {inode}", command_line(&pid))),
            );
        }
    }
    found
}

/// Returns whether a process is in a stack's control groups; the test itself never is.
fn is_in_control_group_of_stack(pid: &str, stack_name: &str) -> bool {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let group = format!("/slipway-{stack_name}");
    groups
        .lines()
        .any(|line| line.ends_with(&group) || line.contains(&format!("{group}/")))
}

/// Returns whether a process is a CNI plugin, by its command line.
fn is_network_plugin(pid: &str) -> bool {
    command_line(pid).contains("/cni/")
}

fn process_ids() -> Vec<String> {
    entry_names(Path::new("/proc"))
        .into_iter()
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .collect()
}

/// Returns a process id with its start time, because ids are reused; `None` if the process has ended.
fn pid_and_start_ticks(pid: &str) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields = stat.rsplit_once(") ")?.1.split(' ').collect::<Vec<_>>();
    (fields[0] != "Z").then(|| format!("{pid} {}", fields[19]))
}

fn command_line(pid: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline"))
        .unwrap_or_default()
        .replace('\0', " ")
}

/// Returns the mount, PID, network and control group namespaces of a process, each as `KIND:[NUMBER]`.
fn namespaces_of(pid: &str) -> BTreeSet<String> {
    let kinds = ["mnt", "pid", "net", "cgroup"];
    let link = |kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    kinds
        .into_iter()
        .filter_map(link)
        .map(|path| path.display().to_string())
        .collect()
}

/// Returns the sorted names of a directory's entries; none if it cannot be read.
fn entry_names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect::<Vec<_>>();
    names.sort();
    names
}

/// Adds the topmost directories with this name below `dir` to `found`.
fn find_topmost_directories_with_name(dir: &Path, name: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            match entry.file_name() == name {
                true => found.push(entry.path()),
                false => find_topmost_directories_with_name(&entry.path(), name, found),
            }
        }
    }
}
