//! Credentials for registries, from a Docker `config.json`.
//!
//! The file is read again when it changes. What it may say: `docker/cli` `cli/config/configfile/file.go`. Programs that
//! it names (`credsStore`, `credHelpers`) are not run yet; there is a warning about them.

mod file;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::buildkit::session::CredentialStore;
use file::Logins;

/// More than any such file needs, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// What to log in with. Both empty: anonymously.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Empty with an identity token.
    pub username: String,
    /// A password, or an identity token.
    pub secret: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Why a `config.json` cannot be used. Says nothing of its content.
#[derive(Debug, thiserror::Error)]
pub enum DockerConfigError {
    /// It is there and cannot be read.
    #[error("could not read the registry credentials in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is not what Docker writes.
    #[error("the registry credentials in {} should be a Docker config.json: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        reason: String,
    },
}

/// A `config.json`, which may come, change and go while this lives.
#[derive(Debug)]
pub struct DockerConfig {
    path: PathBuf,
    seen: Mutex<Option<(Stamp, Arc<Logins>)>>,
}

/// What changes when a file is written or replaced. Kubernetes swaps a symbolic link: then the inode changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl DockerConfig {
    /// The file at `path`. Nothing is read yet.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            seen: Mutex::default(),
        }
    }

    /// The credentials for a registry, which is a host name with a port where it has one. Empty ones where the file
    /// has none, or is missing.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub fn lookup(&self, host: &str) -> Result<Credentials, DockerConfigError> {
        Ok(self.logins()?.map(|logins| logins.find(host)).unwrap_or_default())
    }

    /// Reads the file, so that it is known early when it cannot be used. A missing one is good.
    ///
    /// # Errors
    /// As [`lookup`](Self::lookup).
    pub fn check(&self) -> Result<(), DockerConfigError> {
        self.logins().map(|_| ())
    }

    fn logins(&self) -> Result<Option<Arc<Logins>>, DockerConfigError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |source| DockerConfigError::Read {
            path: self.path.clone(),
            source,
        };
        let stamp = match fs::metadata(&self.path) {
            Ok(metadata) => Stamp::of(&metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        if let Some((known, logins)) = &*seen
            && *known == stamp
        {
            return Ok(Some(Arc::clone(logins)));
        }
        let malformed = |reason| DockerConfigError::Malformed {
            path: self.path.clone(),
            reason,
        };
        // The stamp that is kept belongs to what is read, not to what had the name before.
        let (stamp, content) = read(&self.path).map_err(failed)?;
        let content = content.ok_or_else(|| malformed(format!("it has more than {FILE_MAX} bytes")))?;
        let (logins, ignored) = Logins::parse(&content).map_err(malformed)?;
        for what in ignored {
            tracing::warn!(file = %self.path.display(), "registry credentials: {what} is not supported yet, and ignored");
        }
        let logins = Arc::new(logins);
        *seen = Some((stamp, Arc::clone(&logins)));
        Ok(Some(logins))
    }
}

#[tonic::async_trait]
impl CredentialStore for DockerConfig {
    async fn credentials(&self, host: &str) -> Credentials {
        self.lookup(host).unwrap_or_else(|error| {
            // The registry will refuse, and say so; this line is the reason.
            let cause = std::error::Error::source(&error);
            tracing::error!(host, cause, "{error}");
            Credentials::default()
        })
    }
}

fn read(path: &Path) -> io::Result<(Stamp, Option<Vec<u8>>)> {
    use io::Read;
    let file = fs::File::open(path)?;
    let stamp = Stamp::of(&file.metadata()?);
    let mut content = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut content)?;
    Ok((
        stamp,
        Some(content).filter(|content| content.len() as u64 <= FILE_MAX),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(content: &str) -> (tempfile::TempDir, DockerConfig) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".dockerconfigjson");
        fs::write(&path, content).unwrap();
        (dir, DockerConfig::at(path))
    }

    #[test]
    fn a_missing_file_has_no_credentials() {
        let config = DockerConfig::at("/nowhere/at/all/config.json");
        assert!(config.check().is_ok());
        assert_eq!(config.lookup("example.com").unwrap(), Credentials::default());
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let (dir, config) = config(r#"{"auths": {"example.com": {"username": "a", "password": "1"}}}"#);
        assert_eq!(config.lookup("example.com").unwrap().secret, "1");
        // As Kubernetes does it: another file takes the name.
        let next = dir.path().join("next");
        fs::write(
            &next,
            r#"{"auths": {"example.com": {"username": "a", "password": "2"}}}"#,
        )
        .unwrap();
        fs::rename(next, &config.path).unwrap();
        assert_eq!(config.lookup("example.com").unwrap().secret, "2");
        fs::remove_file(&config.path).unwrap();
        assert_eq!(config.lookup("example.com").unwrap(), Credentials::default());
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_used_is_an_error_that_names_it_and_nothing_in_it() {
        let (_dir, config) = config(r#"{"auths": {"example.com": {"auth": hunter2}}}"#);
        let error = config.check().unwrap_err().to_string();
        assert!(
            error.contains(".dockerconfigjson") && error.contains("line 1"),
            "{error}"
        );
        assert!(!error.contains("hunter2"), "{error}");
        assert_eq!(config.credentials("example.com").await, Credentials::default());

        let folder = DockerConfig::at(std::env::temp_dir());
        assert!(matches!(folder.check(), Err(DockerConfigError::Read { .. })));
        let (_dir, large) = self::config(&" ".repeat(2 << 20));
        assert!(large.check().unwrap_err().to_string().contains("bytes"));
    }

    #[test]
    fn debug_shows_no_secret() {
        let (_dir, config) =
            config(r#"{"auths": {"example.com": {"username": "a", "password": "hunter2"}}}"#);
        let credentials = config.lookup("example.com").unwrap();
        assert!(!format!("{config:?} {credentials:?}").contains("hunter2"));
    }
}
