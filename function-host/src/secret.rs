//! Secrets of the function, which the provider mounts as files, one for each secret.
//!
//! A [`Secret`] is read when it is needed, and read again when its file changes, so that a rotated secret is used
//! without a restart. Its bytes never appear in logs or errors.

use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use zeroize::Zeroizing;

use crate::env::Environment;

/// The directory in which OpenFaaS mounts the secrets of a function.
pub const DEFAULT_SECRETS_DIRECTORY: &str = "/var/openfaas/secrets";

/// The size of the largest secret, in bytes: more than any key, token or certificate bundle needs.
const MAX_SECRET_BYTES: u64 = 1024 * 1024;

/// The bytes of a secret. `Debug` does not show them; they are overwritten when the last clone is dropped.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<Vec<u8>>>);

impl Secret {
    /// Creates a secret from bytes, without trimming them.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Arc::new(Zeroizing::new(bytes.into())))
    }

    /// Returns the bytes of the secret, which must not be logged.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Returns the secret as text, or `None` if it is not UTF-8.
    pub fn expose_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// An error while reading a secret. It contains the name of the secret, never its content.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The secret's file does not exist: the function was deployed without the secret.
    #[error("secret {name} is missing from {}", directory.display())]
    Missing {
        /// The name of the missing secret.
        name: String,
        /// The directory in which the secret's file should be.
        directory: PathBuf,
    },
    /// The secret's file is empty, or has only white space.
    #[error("secret {name} is empty")]
    Empty {
        /// The name of the secret.
        name: String,
    },
    /// The secret's file is larger than a secret may be.
    #[error("secret {name} is larger than {MAX_SECRET_BYTES} bytes")]
    TooLarge {
        /// The name of the secret.
        name: String,
    },
    /// The secret's name could refer to a file outside the directory of secrets.
    #[error("{name:?} cannot be the name of a secret: it should not be empty, begin with '.' or contain '/'")]
    Name {
        /// The name that was rejected.
        name: String,
    },
    /// The secret's file exists and cannot be read.
    #[error("could not read secret {name}")]
    Read {
        /// The name of the secret.
        name: String,
        /// The operating system's error of reading the file.
        #[source]
        source: std::io::Error,
    },
}

/// A reader of the function's secrets. Clones share a cache of the secrets that were read.
#[derive(Clone)]
pub struct Secrets {
    directory: Arc<Path>,
    cache: Arc<Mutex<HashMap<String, (FileVersion, Secret)>>>,
}

/// File metadata that changes when a file is written or replaced.
///
/// Kubernetes replaces a symbolic link in the path to the file, which changes the inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileVersion {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    length: u64,
}

impl FileVersion {
    pub(crate) fn from_metadata(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            length: metadata.len(),
        }
    }
}

impl Secrets {
    /// Creates a reader of the secrets in `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into().into(),
            cache: Arc::default(),
        }
    }

    /// Creates a reader of the secrets in the directory `secret_mount_path`, or in [`DEFAULT_SECRETS_DIRECTORY`].
    pub fn from_env(environment: &dyn Environment) -> Self {
        let directory = environment
            .get("secret_mount_path")
            .filter(|path| !path.trim().is_empty());
        Self::new(directory.unwrap_or_else(|| DEFAULT_SECRETS_DIRECTORY.to_owned()))
    }

    /// Returns the directory of the function's secrets.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns whether the function has a file for a secret with this name. The secret may still be empty or
    /// unreadable.
    pub fn exists(&self, name: &str) -> bool {
        self.path(name).is_ok_and(|path| path.exists())
    }

    /// Returns the path of a secret's file, for libraries that read the file themselves. The file need not exist.
    pub fn path(&self, name: &str) -> Result<PathBuf, SecretError> {
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
            return Err(SecretError::Name {
                name: name.to_owned(),
            });
        }
        Ok(self.directory.join(name))
    }

    /// Reads the secret with this name, without surrounding white space. Takes one `stat` call if its file
    /// has not changed.
    pub fn read_secret(&self, name: &str) -> Result<Secret, SecretError> {
        let path = self.path(name)?;
        let failed = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::NotFound => SecretError::Missing {
                name: name.to_owned(),
                directory: self.directory.to_path_buf(),
            },
            _ => SecretError::Read {
                name: name.to_owned(),
                source,
            },
        };
        let version = FileVersion::from_metadata(&std::fs::metadata(&path).map_err(failed)?);
        if let Some((cached, secret)) = self.lock_cache().get(name)
            && *cached == version
        {
            return Ok(secret.clone());
        }

        // The version is taken again from the opened file: the name may refer to another file by now.
        let file = std::fs::File::open(&path).map_err(failed)?;
        let version = FileVersion::from_metadata(&file.metadata().map_err(failed)?);
        if version.length > MAX_SECRET_BYTES {
            return Err(SecretError::TooLarge {
                name: name.to_owned(),
            });
        }
        // The buffer never grows, because growing would leave a copy of the secret in freed memory.
        let mut bytes = Zeroizing::new(Vec::with_capacity(version.length as usize + 1));
        file.take(MAX_SECRET_BYTES)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        let trimmed = bytes.trim_ascii();
        if trimmed.is_empty() {
            return Err(SecretError::Empty {
                name: name.to_owned(),
            });
        }
        let secret = Secret::new(trimmed);
        self.lock_cache()
            .insert(name.to_owned(), (version, secret.clone()));
        Ok(secret)
    }

    fn lock_cache(&self) -> std::sync::MutexGuard<'_, HashMap<String, (FileVersion, Secret)>> {
        // A panic while the lock was held cannot have left the map inconsistent.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets_directory_with(name: &str, content: &str) -> (tempfile::TempDir, Secrets) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(name), content).unwrap();
        let secrets = Secrets::new(directory.path());
        (directory, secrets)
    }

    #[test]
    fn white_space_around_a_secret_is_trimmed() {
        let (_directory, secrets) = secrets_directory_with("payload-secret", "  key\n");
        assert_eq!(secrets.read_secret("payload-secret").unwrap().expose(), b"key");
    }

    #[test]
    fn an_empty_secret_is_rejected() {
        let (_directory, secrets) = secrets_directory_with("payload-secret", " \n");
        assert!(matches!(
            secrets.read_secret("payload-secret"),
            Err(SecretError::Empty { .. })
        ));
    }

    #[test]
    fn the_error_of_a_missing_secret_names_the_directory() {
        let (directory, secrets) = secrets_directory_with("other", "x");
        let error = secrets.read_secret("payload-secret").unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&directory.path().display().to_string()),
            "{error}"
        );
        assert!(!secrets.exists("payload-secret"));
        assert!(secrets.exists("other"));
    }

    #[test]
    fn a_secret_is_read_again_after_its_file_is_replaced() {
        let (directory, secrets) = secrets_directory_with("token", "first");
        assert_eq!(secrets.read_secret("token").unwrap().expose(), b"first");

        // Kubernetes rotates a secret by giving its name to a new file.
        let next = directory.path().join("next");
        std::fs::write(&next, "again").unwrap();
        std::fs::rename(&next, directory.path().join("token")).unwrap();

        assert_eq!(secrets.clone().read_secret("token").unwrap().expose(), b"again");
    }

    #[test]
    fn a_secret_name_cannot_refer_to_a_file_outside_the_directory() {
        let (_directory, secrets) = secrets_directory_with("token", "x");
        for name in ["", ".", "..", "../token", "a/b", ".hidden", "a\0b"] {
            assert!(
                matches!(secrets.read_secret(name), Err(SecretError::Name { .. })),
                "{name:?}"
            );
        }
    }

    #[test]
    fn debug_output_does_not_contain_the_secret() {
        let (_directory, secrets) = secrets_directory_with("token", "hunter2");
        let secret = secrets.read_secret("token").unwrap();
        assert!(!format!("{secret:?} {secrets:?}").contains("hunter2"));
    }
}
