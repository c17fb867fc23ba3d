//! The holder and the supervisor of a cluster: the namespaces in which its parts run, which hide from them what they
//! would change of the machine.

use std::{convert::Infallible, fs, path::Path};

use rustix::mount::{MountFlags, MountPropagationFlags};

use super::{address::PODS_SUBNET, plan::ClusterPlan, spec::ClusterPartSource};
use crate::{
    cgroup::StackControlGroups,
    directories::StackDir,
    error::{IoResultExt as _, LauncherError, Result},
    hold::hold_and_supervise,
    supervisor::{self, ProcessReaper, mounts, network},
};

/// The directory of etcd's data. `/var/lib` is the cluster's own.
pub(crate) const ETCD_DATA: &str = "/var/lib/etcd";
/// The directory of containerd's images and snapshots.
pub(crate) const CONTAINERD_DATA: &str = "/var/lib/containerd";
/// The directory of the kubelet's volumes. Some of its paths cannot be configured and are below this one.
pub(crate) const KUBELET_DATA: &str = "/var/lib/kubelet";
/// The directory of the cluster's persistent volumes.
pub(crate) const VOLUMES_DATA: &str = "/var/lib/volumes";
/// The directory of the logs of containers, whose path the kubelet does not let us choose in whole.
const LOGS: &str = "/var/log";

/// The directory with files that the kubelet sees in place of settings of the kernel, at the same paths as below
/// `/proc/sys`.
pub(crate) const KERNEL_SETTINGS_FOR_KUBELET: &str = "/run/slipway/kernel";

/// The paths that are directories of the cluster's own, with the names of these directories among its data.
pub(crate) const DATA_DIRECTORIES: [(&str, &str); 5] = [
    (ETCD_DATA, "etcd"),
    (CONTAINERD_DATA, "containerd"),
    (KUBELET_DATA, "kubelet"),
    (VOLUMES_DATA, "volumes"),
    (LOGS, "log"),
];

/// The settings of the kernel that the kubelet would change for the whole machine, with the values that it wants
/// (`setupKernelTunables` in Kubernetes' `pkg/kubelet/cm/container_manager_linux.go`).
const KUBELETS_KERNEL_SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Makes this process the holder of a cluster by executing `unshare`; returns only an error.
pub fn exec_as_cluster_holder(name: &str) -> Result<Infallible> {
    let (dir, plan) = directory_and_plan(name)?;
    // No stack's name has an underscore.
    let groups = StackControlGroups::of_stack(&format!("cluster_{name}"))?;
    hold_and_supervise(&dir, plan.number, groups, &["cluster", "supervise"])
}

/// Supervises a cluster until a command or SIGTERM ends it. This process must be PID 1 of new mount, PID and cgroup
/// namespaces.
pub fn supervise_cluster(name: &str) -> Result<()> {
    let (dir, plan) = directory_and_plan(name)?;
    let resolver = mounts::mount_all_but_resolv_conf()?;
    resolver.mount_stack_resolv_conf()?;
    mount_own_directories(&dir)?;
    write_fake_kernel_setting_files_for_kubelet()?;
    create_and_enter_network_namespace(&plan)?;
    let (source, reaper) = (
        ClusterPartSource {
            dir: dir.clone(),
            plan,
        },
        ProcessReaper::default(),
    );
    supervisor::run_on_this_thread(
        &dir,
        supervisor::supervise_parts_until_shutdown_or_failure(&dir, source, &reaper, std::future::pending()),
    )
}

fn directory_and_plan(name: &str) -> Result<(StackDir, ClusterPlan)> {
    let dir = crate::LauncherDirectories::from_env()?.cluster_directory(name)?;
    let plan = ClusterPlan::read_plan(&dir)?.ok_or_else(|| {
        LauncherError::Environment(format!(
            "cluster {name:?} has no plan; `slipway-stack cluster up` makes one"
        ))
    })?;
    Ok((dir, plan))
}

/// Mounts the cluster's own directories over the machine's.
fn mount_own_directories(dir: &StackDir) -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("tmpfs", "/var/lib", "tmpfs", flags, Some(c"mode=755"))
        .with_operation("mount", "/var/lib")?;
    fs::create_dir("/var/lib/cni").with_operation("create", "/var/lib/cni")?;
    for (path, data) in DATA_DIRECTORIES {
        let data = dir.part_data_directory(data);
        fs::create_dir_all(path).with_operation("create", path)?;
        rustix::mount::mount_bind(&data, path).with_operation("mount", path)?;
        // Containers with mounts that are shared with the node need this.
        rustix::mount::mount_change(path, MountPropagationFlags::SHARED).with_operation("share", path)?;
    }
    Ok(())
}

/// Writes files with the values that the kubelet wants for those settings of the kernel that have other ones; they are
/// mounted for the kubelet alone.
fn write_fake_kernel_setting_files_for_kubelet() -> Result<()> {
    let directory = Path::new(KERNEL_SETTINGS_FOR_KUBELET);
    fs::create_dir_all(directory).with_operation("create", directory)?;
    for (name, wanted) in KUBELETS_KERNEL_SETTINGS {
        let setting = Path::new("/proc/sys").join(name);
        if fs::read_to_string(&setting).is_ok_and(|value| value.trim() != wanted) {
            mounts::write_file_and_create_directory(&directory.join(name), wanted)?;
        }
    }
    Ok(())
}

/// Creates the cluster's network namespace, and moves this thread into it.
fn create_and_enter_network_namespace(plan: &ClusterPlan) -> Result<()> {
    network::create_namespace_with_link_to_machine(plan.number)?;
    network::enter_namespace_and_set_up_link_without_route(plan.number)?;
    for scope in ["all", "default"] {
        // The rules are for IPv4, and nothing in a cluster needs IPv6.
        network::set_sysctl_if_present(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "1")?;
    }
    network::set_sysctl_if_present("net/ipv4/ip_forward", "1")?;
    network::add_iptables_rules("cluster", &masquerading_rules())
}

/// Returns the rules, in the format of `iptables-restore`, that let pods reach other machines with the node's address.
fn masquerading_rules() -> String {
    format!("*nat\n-A POSTROUTING -s {PODS_SUBNET} ! -d {PODS_SUBNET} -j MASQUERADE\nCOMMIT\n")
}
