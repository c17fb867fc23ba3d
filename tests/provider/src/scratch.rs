//! The `/tmp` of functions with a read-only root: a directory on disk for each instance, like Kubernetes'
//! `emptyDir`.
//!
//! It is not in memory, because files there would count against the function's memory limit.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::error::ProviderError;

/// The mode of an instance's `/tmp`: every user may create files, and remove their own.
const SCRATCH_DIRECTORY_MODE: u32 = 0o1777;

/// The parent directory of the instances' `/tmp` directories.
#[derive(Debug)]
pub(crate) struct ScratchDirectories(PathBuf);

impl ScratchDirectories {
    /// Opens the parent directory of the instances' `/tmp` directories; creates it if it does not exist.
    pub(crate) fn open(directory: PathBuf) -> Result<Self, ProviderError> {
        fs::create_dir_all(&directory).map_err(ProviderError::io_error("create", &directory))?;
        Ok(Self(directory))
    }

    /// Creates the `/tmp` directory of an instance.
    pub(crate) fn create(&self, id: &str) -> Result<PathBuf, ProviderError> {
        let directory = self.0.join(id);
        fs::create_dir(&directory).map_err(ProviderError::io_error("create", &directory))?;
        // Set after creation, because the umask would remove bits.
        fs::set_permissions(&directory, fs::Permissions::from_mode(SCRATCH_DIRECTORY_MODE))
            .map_err(ProviderError::io_error("set the mode of", &directory))?;
        Ok(directory)
    }

    /// Removes the `/tmp` directory of an instance, if it has one.
    pub(crate) fn remove(&self, id: &str) {
        remove_directory_tree(&self.0.join(id));
    }

    /// Removes the `/tmp` directories of all instances that are not to be kept.
    pub(crate) fn keep_only(&self, keep: impl Fn(&str) -> bool) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if !entry.file_name().to_str().is_some_and(&keep) {
                remove_directory_tree(&entry.path());
            }
        }
    }
}

fn remove_directory_tree(directory: &Path) {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(directory = %directory.display(), %error, "cannot remove a directory");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_writable_by_every_user_and_removed_with_its_instance() {
        let state = tempfile::tempdir().unwrap();
        let scratch = ScratchDirectories::open(state.path().join("tmp")).unwrap();
        let directory = scratch.create("a.1").unwrap();
        assert_eq!(
            fs::metadata(&directory).unwrap().permissions().mode() & 0o7777,
            SCRATCH_DIRECTORY_MODE
        );
        fs::write(directory.join("file"), "x").unwrap();
        let other = scratch.create("b.2").unwrap();

        scratch.remove("a.1");
        scratch.remove("a.1");
        assert!(!directory.exists());
        scratch.create("c.3").unwrap();
        scratch.keep_only(|id| id == "b.2");
        assert!(other.exists());
        assert_eq!(fs::read_dir(state.path().join("tmp")).unwrap().count(), 1);
    }
}
