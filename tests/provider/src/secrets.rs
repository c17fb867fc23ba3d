//! The secrets of functions: one file each, in one directory for each namespace.
//!
//! The files are readable by every user, because functions with any user have them mounted; the directories
//! around them are not accessible. A value is changed in place, because functions have the file itself
//! mounted and would not see a new one; it is never empty in between.

use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::error::ProviderError;

/// The store of the secrets of all namespaces.
#[derive(Clone, Debug)]
pub(crate) struct SecretStore {
    root: PathBuf,
}

impl SecretStore {
    /// Opens the directory of all secrets; creates it if it does not exist.
    pub(crate) fn open(root: PathBuf) -> Result<Self, ProviderError> {
        create_private_directory(&root)?;
        Ok(Self { root })
    }

    /// Returns the directory with a namespace's secrets.
    pub(crate) fn directory(&self, namespace: &str) -> PathBuf {
        self.root.join(namespace)
    }

    /// Returns the names of a namespace's secrets, sorted.
    pub(crate) fn names_or_empty_if_no_namespace(
        &self,
        namespace: &str,
    ) -> Result<Vec<String>, ProviderError> {
        let directory = self.directory(namespace);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(ProviderError::io_error("list", &directory)(error)),
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Stores a secret, or changes its value.
    pub(crate) fn set(&self, namespace: &str, name: &str, value: &[u8]) -> Result<(), ProviderError> {
        let directory = self.directory(namespace);
        let path = directory.join(check_secret_name(name)?);
        create_private_directory(&directory)?;
        let opened = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(&path);
        let mut file = opened.map_err(ProviderError::io_error("open", &path))?;
        // Independent of the umask.
        file.set_permissions(Permissions::from_mode(0o644))
            .map_err(ProviderError::io_error("set the mode of", &path))?;
        file.write_all(value)
            .map_err(ProviderError::io_error("write", &path))?;
        file.set_len(value.len() as u64)
            .map_err(ProviderError::io_error("write", &path))
    }

    /// Deletes a secret from the store; fails if the secret does not exist.
    pub(crate) fn delete(&self, namespace: &str, name: &str) -> Result<(), ProviderError> {
        let path = self.directory(namespace).join(check_secret_name(name)?);
        fs::remove_file(&path).map_err(ProviderError::io_error("delete", &path))
    }

    /// Fails if one of the named secrets does not exist.
    pub(crate) fn check_all_exist(&self, namespace: &str, names: &[String]) -> Result<(), ProviderError> {
        let directory = self.directory(namespace);
        for name in names {
            if check_secret_name(name).is_err() || !directory.join(name).is_file() {
                return Err(ProviderError::SecretMissing(name.clone()));
            }
        }
        Ok(())
    }
}

/// Returns the name if it is not empty and cannot lead out of the directory.
fn check_secret_name(name: &str) -> Result<&str, ProviderError> {
    if name.trim().is_empty() {
        return Err(ProviderError::Invalid("non-empty name is required".to_owned()));
    }
    if name.contains(['/', '\0']) || name.contains("..") || name == "." {
        return Err(ProviderError::Invalid(
            "directory traversal found in name".to_owned(),
        ));
    }
    Ok(name)
}

/// Creates a directory if it is missing, and limits access to its owner.
fn create_private_directory(path: &Path) -> Result<(), ProviderError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(ProviderError::io_error("create", path))?;
    fs::set_permissions(path, Permissions::from_mode(0o700))
        .map_err(ProviderError::io_error("set the mode of", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// Creates an empty store, which is removed when the directory is dropped.
    fn empty_secret_store() -> (tempfile::TempDir, SecretStore) {
        let directory = tempfile::tempdir().unwrap();
        let secrets = SecretStore::open(directory.path().join("secrets")).unwrap();
        (directory, secrets)
    }

    #[test]
    fn changing_a_secret_keeps_its_inode() {
        let (_directory, secrets) = empty_secret_store();
        let path = secrets.directory("fn").join("key");
        secrets.set("fn", "key", b"a longer value").unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        secrets.set("fn", "key", b"short").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    }

    #[test]
    fn a_secret_is_readable_by_every_user_in_a_directory_that_only_its_owner_can_enter() {
        let (_directory, secrets) = empty_secret_store();
        secrets.set("fn", "key", b"v").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&secrets.directory("fn").join("key")), 0o644);
        assert_eq!(mode(&secrets.root), 0o700);
    }

    #[test]
    fn a_secret_exists_only_in_its_namespace_and_is_deleted_only_once() {
        let (_directory, secrets) = empty_secret_store();
        secrets.set("a", "two", b"v").unwrap();
        secrets.set("a", "one", b"v").unwrap();
        assert_eq!(
            secrets.names_or_empty_if_no_namespace("a").unwrap(),
            ["one", "two"]
        );
        assert!(secrets.names_or_empty_if_no_namespace("b").unwrap().is_empty());
        secrets.check_all_exist("a", &["one".into()]).unwrap();
        let error = secrets.check_all_exist("b", &["one".into()]).unwrap_err();
        assert_eq!(error.to_string(), "unable to find secret: one");
        secrets.delete("a", "one").unwrap();
        assert!(secrets.delete("a", "one").is_err());
    }

    #[test]
    fn empty_secret_names_and_those_that_lead_out_of_the_directory_are_rejected() {
        let (_directory, secrets) = empty_secret_store();
        for name in ["", " ", "../key", "a/b", "..", "."] {
            assert!(secrets.set("fn", name, b"v").is_err(), "{name}");
            assert!(
                secrets.check_all_exist("fn", &[name.to_owned()]).is_err(),
                "{name}"
            );
        }
    }
}
