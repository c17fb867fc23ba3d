//! Mounts of a stack, in a mount namespace of its own: a `/proc` for its processes, an empty `/run` and
//! `/var/lib/cni`, a `resolv.conf` that works inside, and its control groups as roots. The machine's mounts are not
//! changed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::mount::MountFlags;

use crate::{
    address::EGRESS_RESOLVER_ADDRESS,
    cgroup,
    error::{IoResultExt as _, Result},
};

/// The path of a copy of the machine's `resolv.conf` for slirp4netns, which forwards queries to the machine's resolver.
pub(crate) const MACHINE_RESOLV_CONF_PATH: &str = "/run/slipway/resolv.conf";

/// The directory of the supervisor's own files; `/run` is the stack's own.
const SUPERVISOR_DIRECTORY: &str = "/run/slipway";

/// The directory in which CNI clients keep the results of plugins.
const CNI_RESULTS_DIRECTORY: &str = "/var/lib/cni";

const RESOLV_CONF_PATH: &str = "/etc/resolv.conf";

/// Mounts everything except `resolv.conf`: [`MachineResolvConf::mount_stack_resolv_conf`] must follow any other mount
/// over `/etc`.
pub(crate) fn mount_all_but_resolv_conf() -> Result<MachineResolvConf> {
    let machine = fs::read_to_string(RESOLV_CONF_PATH).with_operation("read", RESOLV_CONF_PATH)?;
    let target = fs::canonicalize(RESOLV_CONF_PATH).with_operation("read", RESOLV_CONF_PATH)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("proc", "/proc", "proc", flags | MountFlags::NOEXEC, None)
        .with_operation("mount", "/proc")?;
    rustix::mount::mount("tmpfs", "/run", "tmpfs", flags, Some(c"mode=755"))
        .with_operation("mount", "/run")?;
    // BuildKit's CNI client keeps its results there, for the networks of steps.
    fs::create_dir_all(CNI_RESULTS_DIRECTORY).with_operation("create", CNI_RESULTS_DIRECTORY)?;
    rustix::mount::mount("tmpfs", CNI_RESULTS_DIRECTORY, "tmpfs", flags, Some(c"mode=700"))
        .with_operation("mount", CNI_RESULTS_DIRECTORY)?;
    fs::create_dir_all(SUPERVISOR_DIRECTORY).with_operation("create", SUPERVISOR_DIRECTORY)?;
    cgroup::remount_hierarchies_in_namespaces()?;
    Ok(MachineResolvConf { machine, target })
}

/// The machine's `resolv.conf`, read before `/run` was covered.
#[derive(Debug)]
pub(crate) struct MachineResolvConf {
    machine: String,
    target: PathBuf,
}

impl MachineResolvConf {
    /// Mounts a `resolv.conf` that works inside the stack over the machine's.
    pub(crate) fn mount_stack_resolv_conf(&self) -> Result<()> {
        write_file_and_create_directory(Path::new(MACHINE_RESOLV_CONF_PATH), &self.machine)?;
        let own = Path::new("/run/slipway/stack-resolv.conf");
        write_file_and_create_directory(own, &resolv_conf_with_machines_search_and_options(&self.machine))?;
        // If it was a link into /run, its target is hidden now.
        if !self.target.exists() {
            write_file_and_create_directory(&self.target, "")?;
        }
        rustix::mount::mount_bind(own, &self.target).with_operation("mount", &self.target)
    }
}

/// Returns the text of the stack's `resolv.conf`: the machine's search list and options, with the stack's
/// resolver.
fn resolv_conf_with_machines_search_and_options(machine_resolv_conf: &str) -> String {
    let kept = machine_resolv_conf
        .lines()
        .filter(|line| line.starts_with("search") || line.starts_with("options"));
    kept.map(str::to_owned)
        .chain([format!("nameserver {EGRESS_RESOLVER_ADDRESS}")])
        .map(|line| line + "\n")
        .collect()
}

/// Writes a file, and creates its directory if it is missing.
pub(crate) fn write_file_and_create_directory(path: &Path, content: &str) -> Result<()> {
    let dir = path.parent().unwrap_or(path);
    fs::create_dir_all(dir).with_operation("create", dir)?;
    fs::write(path, content).with_operation("write", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_the_stacks_resolv_conf_the_resolver_is_replaced_and_the_search_list_is_kept() {
        let machine = "# by a program\nnameserver 127.0.0.53\nsearch example.org\noptions edns0\n";
        assert_eq!(
            resolv_conf_with_machines_search_and_options(machine),
            "search example.org\noptions edns0\nnameserver 10.0.2.3\n"
        );
    }
}
