//! Secrets: files that the provider mounts, one a secret.
//!
//! A [`Secret`] is read when it is needed and read again when its file changes, so that a rotated secret is used
//! without a restart. Its bytes appear in no log and no error.

use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use zeroize::Zeroizing;

use crate::env::Environment;

/// Where OpenFaaS mounts the secrets of a function.
pub const DEFAULT_DIRECTORY: &str = "/var/openfaas/secrets";

/// More than any key, token or certificate bundle needs.
const MAX_BYTES: u64 = 1024 * 1024;

/// The bytes of a secret. `Debug` does not show them; they are overwritten when the last clone goes.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<Vec<u8>>>);

impl Secret {
    /// A secret from bytes that were obtained elsewhere, as they are.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Arc::new(Zeroizing::new(bytes.into())))
    }

    /// The bytes, for the place that needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text, or `None` where they are not UTF-8.
    pub fn expose_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// Why a secret could not be read. Names the secret, never its content.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// No such file: the function was deployed without it.
    #[error("secret {name} is missing from {}", directory.display())]
    Missing {
        /// The secret's name.
        name: String,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// The file has nothing in it, or white space alone.
    #[error("secret {name} is empty")]
    Empty {
        /// The secret's name.
        name: String,
    },
    /// The file is larger than any secret should be.
    #[error("secret {name} is larger than {MAX_BYTES} bytes")]
    TooLarge {
        /// The secret's name.
        name: String,
    },
    /// A name that could leave the directory.
    #[error("{name:?} cannot be the name of a secret")]
    Name {
        /// The name asked for.
        name: String,
    },
    /// The file is there and cannot be read.
    #[error("could not read secret {name}")]
    Read {
        /// The secret's name.
        name: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// The directory of secrets. Clones share what was read.
#[derive(Clone)]
pub struct Secrets {
    directory: Arc<Path>,
    seen: Arc<Mutex<HashMap<String, (Stamp, Secret)>>>,
}

/// What changes when a file is written or replaced. Kubernetes swaps a symbolic link: then the inode changes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    length: u64,
}

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Self {
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
    /// The secrets in `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into().into(),
            seen: Arc::default(),
        }
    }

    /// The directory named by `secret_mount_path`, or [`DEFAULT_DIRECTORY`].
    pub fn from_env(strings: &dyn Environment) -> Self {
        let directory = strings
            .get("secret_mount_path")
            .filter(|path| !path.trim().is_empty());
        Self::new(directory.unwrap_or_else(|| DEFAULT_DIRECTORY.to_owned()))
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether the function was given a secret of this name.
    pub fn exists(&self, name: &str) -> bool {
        self.path(name).is_ok_and(|path| path.exists())
    }

    /// The path of a secret's file, for libraries that read it themselves.
    pub fn path(&self, name: &str) -> Result<PathBuf, SecretError> {
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
            return Err(SecretError::Name {
                name: name.to_owned(),
            });
        }
        Ok(self.directory.join(name))
    }

    /// The secret's content without white space around it. Cheap when the file has not changed: one `stat`.
    pub fn read(&self, name: &str) -> Result<Secret, SecretError> {
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
        let stamp = Stamp::of(&std::fs::metadata(&path).map_err(failed)?);
        if let Some((seen, secret)) = self.lock().get(name)
            && *seen == stamp
        {
            return Ok(secret.clone());
        }

        // The stamp that is kept belongs to the file that was read, not to the one seen by name above.
        let file = std::fs::File::open(&path).map_err(failed)?;
        let stamp = Stamp::of(&file.metadata().map_err(failed)?);
        if stamp.length > MAX_BYTES {
            return Err(SecretError::TooLarge {
                name: name.to_owned(),
            });
        }
        // Room for all of it, so that growing leaves no copy behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(stamp.length as usize + 1));
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(failed)?;
        let trimmed = bytes.trim_ascii();
        if trimmed.is_empty() {
            return Err(SecretError::Empty {
                name: name.to_owned(),
            });
        }
        let secret = Secret::new(trimmed);
        self.lock().insert(name.to_owned(), (stamp, secret.clone()));
        Ok(secret)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Stamp, Secret)>> {
        // The map is whole between its operations, whatever panicked elsewhere.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn directory_with(name: &str, content: &str) -> (tempfile::TempDir, Secrets) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(name), content).unwrap();
        let secrets = Secrets::new(directory.path());
        (directory, secrets)
    }

    #[test]
    fn white_space_around_a_secret_is_dropped() {
        let (_directory, secrets) = directory_with("payload-secret", "  key\n");
        assert_eq!(secrets.read("payload-secret").unwrap().expose(), b"key");
    }

    #[test]
    fn an_empty_secret_is_refused() {
        let (_directory, secrets) = directory_with("payload-secret", " \n");
        assert!(matches!(
            secrets.read("payload-secret"),
            Err(SecretError::Empty { .. })
        ));
    }

    #[test]
    fn a_missing_secret_is_told_with_its_directory() {
        let (directory, secrets) = directory_with("other", "x");
        let error = secrets.read("payload-secret").unwrap_err();
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
    fn a_rotated_secret_is_read_again() {
        let (directory, secrets) = directory_with("token", "first");
        assert_eq!(secrets.read("token").unwrap().expose(), b"first");

        // As Kubernetes does it: a new file takes the name.
        let next = directory.path().join("next");
        std::fs::write(&next, "again").unwrap();
        std::fs::rename(&next, directory.path().join("token")).unwrap();

        assert_eq!(secrets.clone().read("token").unwrap().expose(), b"again");
    }

    #[test]
    fn a_name_cannot_leave_the_directory() {
        let (_directory, secrets) = directory_with("token", "x");
        for name in ["", ".", "..", "../token", "a/b", ".hidden", "a\0b"] {
            assert!(
                matches!(secrets.read(name), Err(SecretError::Name { .. })),
                "{name:?}"
            );
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let (_directory, secrets) = directory_with("token", "hunter2");
        let secret = secrets.read("token").unwrap();
        assert!(!format!("{secret:?} {secrets:?}").contains("hunter2"));
    }
}
