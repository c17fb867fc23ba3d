//! The reading of user names from a container's root file system before the container runs.
//!
//! Files are opened relative to the root, and links are resolved inside it, so that an image cannot refer to
//! files outside.

use std::{
    ffi::CString,
    io::Read,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use containerd_client::types::Mount;
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

use crate::{containerd::SnapshotMounts, error::ProviderError, spec::user::UserFiles};

/// The number of bytes that are read of an image's `/etc/passwd` and of its `/etc/group`. Anything beyond is
/// ignored.
const USER_FILE_MAX_BYTES: u64 = 1 << 20;

/// Mounts an image's root file system and reads its user and group files. A missing file counts as empty.
pub(crate) async fn read_user_files(mounts: SnapshotMounts) -> Result<UserFiles, ProviderError> {
    let read = tokio::task::spawn_blocking(move || mount_and_read_user_files(&mounts)).await;
    read.unwrap_or(Err(ProviderError::Stopping))
}

/// Mounts a root file system for as long as its user and group files are read.
fn mount_and_read_user_files(mounts: &[Mount]) -> Result<UserFiles, ProviderError> {
    let directory =
        tempfile::tempdir().map_err(ProviderError::io_error("create", "a temporary directory"))?;
    let mounted = MountedRoot::mount(mounts, directory.path())?;
    let root = openat2(
        CWD,
        &mounted.0,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::empty(),
    )
    .map_err(|errno| ProviderError::io_error("open", &mounted.0)(errno.into()))?;
    Ok(UserFiles {
        passwd: read_text_within_root_or_empty(&root, "etc/passwd"),
        group: read_text_within_root_or_empty(&root, "etc/group"),
    })
}

/// Returns the text of a file below the root; empty if it is missing, unreadable or not UTF-8.
fn read_text_within_root_or_empty(root: &OwnedFd, path: &str) -> String {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut text = String::new();
    if let Ok(file) = openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        let file = std::fs::File::from(file);
        // An unreadable file has no names; the lookup then reports the missing one.
        let _ = file.take(USER_FILE_MAX_BYTES).read_to_string(&mut text);
    }
    text
}

/// A mounted root file system, which is unmounted when dropped.
struct MountedRoot(PathBuf);

impl MountedRoot {
    /// Mounts each of the mounts on `target`, one over the other.
    fn mount(mounts: &[Mount], target: &Path) -> Result<Self, ProviderError> {
        for one in mounts {
            let (flags, data) = parse_mount_options(&one.options);
            let data = CString::new(data).unwrap_or_default();
            mount(
                one.source.as_str(),
                target,
                one.r#type.as_str(),
                flags,
                data.as_c_str(),
            )
            .map_err(|errno| ProviderError::io_error("mount a snapshot on", target)(errno.into()))?;
        }
        Ok(Self(target.to_owned()))
    }
}

impl Drop for MountedRoot {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            tracing::warn!(%error, path = %self.0.display(), "cannot unmount a snapshot");
        }
    }
}

/// Splits mount options into flags and the data for the file system.
fn parse_mount_options(options: &[String]) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match option.as_str() {
            "bind" => flags |= MountFlags::BIND,
            "rbind" => flags |= MountFlags::BIND | MountFlags::REC,
            "ro" => flags |= MountFlags::RDONLY,
            "rw" => {}
            other => data.push(other),
        }
    }
    (flags, data.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_options_become_mount_flags_or_data() {
        let given = ["workdir=/w", "rw", "upperdir=/u", "lowerdir=/l"].map(str::to_owned);
        assert_eq!(
            parse_mount_options(&given),
            (MountFlags::empty(), "workdir=/w,upperdir=/u,lowerdir=/l".into())
        );
        assert_eq!(
            parse_mount_options(&["rbind".to_owned()]),
            (MountFlags::BIND | MountFlags::REC, String::new())
        );
    }

    #[test]
    fn symbolic_links_cannot_lead_out_of_the_root_file_system() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/proc/self/status", root.path().join("etc/passwd")).unwrap();
        std::fs::write(root.path().join("etc/group"), "app:x:1:\n").unwrap();
        let fd = openat2(
            CWD,
            root.path(),
            OFlags::PATH,
            Mode::empty(),
            ResolveFlags::empty(),
        )
        .unwrap();
        assert_eq!(read_text_within_root_or_empty(&fd, "etc/passwd"), "");
        assert_eq!(read_text_within_root_or_empty(&fd, "etc/group"), "app:x:1:\n");
    }
}
