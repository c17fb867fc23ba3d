//! The `/tmp` of functions with a read-only root: a folder on disk for each instance, like Kubernetes'
//! `emptyDir`.
//!
//! It is not in memory, because files there would count against the function's memory limit.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::error::Error;

/// Every user may create files, and remove their own.
const MODE: u32 = 0o1777;

/// The parent of the instances' folders.
#[derive(Debug)]
pub(crate) struct ScratchFolders(PathBuf);

impl ScratchFolders {
    /// Opens the parent folder; creates it if it does not exist.
    pub(crate) fn open(folder: PathBuf) -> Result<Self, Error> {
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        Ok(Self(folder))
    }

    /// Creates the folder of an instance.
    pub(crate) fn create(&self, id: &str) -> Result<PathBuf, Error> {
        let folder = self.0.join(id);
        fs::create_dir(&folder).map_err(Error::io("create", &folder))?;
        // Set after creation, because the umask would remove bits.
        fs::set_permissions(&folder, fs::Permissions::from_mode(MODE))
            .map_err(Error::io("set the mode of", &folder))?;
        Ok(folder)
    }

    /// Removes the folder of an instance, if it has one.
    pub(crate) fn remove(&self, id: &str) {
        remove(&self.0.join(id));
    }

    /// Removes the folders of all other instances.
    pub(crate) fn keep_only(&self, keep: impl Fn(&str) -> bool) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if !entry.file_name().to_str().is_some_and(&keep) {
                remove(&entry.path());
            }
        }
    }
}

fn remove(folder: &Path) {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(folder = %folder.display(), %error, "cannot remove a folder");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_writable_by_every_user_and_removed_with_its_instance() {
        let state = tempfile::tempdir().unwrap();
        let scratch = ScratchFolders::open(state.path().join("tmp")).unwrap();
        let folder = scratch.create("a.1").unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o7777, MODE);
        fs::write(folder.join("file"), "x").unwrap();
        let other = scratch.create("b.2").unwrap();

        scratch.remove("a.1");
        scratch.remove("a.1");
        assert!(!folder.exists());
        scratch.create("c.3").unwrap();
        scratch.keep_only(|id| id == "b.2");
        assert!(other.exists());
        assert_eq!(fs::read_dir(state.path().join("tmp")).unwrap().count(), 1);
    }
}
