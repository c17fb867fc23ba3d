//! The preparation of the file system for faasd as the provider. faasd's paths are fixed, so the stack mounts
//! writable overlays of its own over the machine's directories, in its own mount namespace, and puts the files
//! there that faasd expects.

use std::{fs, os::unix::fs::symlink, path::Path};

use rustix::mount::{MountFlags, mount, mount_bind};

use crate::{
    directories::StackDir,
    error::{IoResultExt as _, Result},
};

/// The path of the faasd program inside the stack.
pub(crate) const FAASD_PATH: &str = "/usr/local/bin/faasd";

/// The directories that overlays cover for faasd: `/etc` for the CNI configuration that faasd writes, `/opt`
/// for the plugins, `/usr/local/bin` for the program with which containerd collects a function's output. The second
/// text is the name of the directory with the changes, in faasd's data.
const OVERLAY_DIRECTORIES: [(&str, &str); 3] = [("/etc", "etc"), ("/opt", "opt"), ("/usr/local/bin", "bin")];

/// Mounts the overlays for faasd and puts the plugins, the program and containerd's socket where faasd
/// expects them.
pub(crate) fn prepare_mounts_for_faasd(
    dir: &StackDir,
    faasd_program: &Path,
    containerd_socket: &Path,
) -> Result<()> {
    let data = dir.part_data_directory("faasd");
    for (target, name) in OVERLAY_DIRECTORIES {
        let (upper, work) = (data.join(name), data.join(format!("{name}-work")));
        for dir in [Path::new(target), &upper, &work] {
            fs::create_dir_all(dir).with_operation("create", dir)?;
        }
        let options = format!(
            "lowerdir={target},upperdir={},workdir={}",
            upper.display(),
            work.display()
        );
        let options = std::ffi::CString::new(options).unwrap_or_default();
        mount(
            "overlay",
            target,
            "overlay",
            MountFlags::empty(),
            Some(options.as_c_str()),
        )
        .with_operation("mount", target)?;
    }
    let plugins = "/opt/cni/bin";
    fs::create_dir_all(plugins).with_operation("create", plugins)?;
    mount_bind("/usr/lib/cni", plugins).with_operation("mount", plugins)?;
    fs::copy(faasd_program, FAASD_PATH).with_operation("write", FAASD_PATH)?;
    let socket = "/run/containerd/containerd.sock";
    fs::create_dir_all("/run/containerd").with_operation("create", "/run/containerd")?;
    symlink(containerd_socket, socket).with_operation("create", socket)
}
