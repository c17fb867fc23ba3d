//! Credentials for registries, from a Docker `config.json`.
//!
//! The file is read again when it changes. What it may say: `docker/cli` `cli/config/configfile/file.go`. A helper that it
//! names for a registry (`credHelpers`, `credsStore`) is asked first; what it does not know may stand in `auths`.

mod file;
mod helper;

use std::collections::HashMap;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use function_host::ErrorChain;
use tokio::time::Instant;

use crate::buildkit::session::CredentialStore;
use file::Logins;
pub use helper::{HelperError, Helpers};

/// More than any such file needs, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// How long what a helper has said is taken for true. BuildKit asks several times in a build, and a helper may take long.
const REMEMBERED: Duration = Duration::from_secs(30);

/// Longest name of a registry that a helper is asked for, in bytes.
const HOST_MAX: usize = 300;

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
    /// A helper that the file names gave no answer.
    #[error(transparent)]
    Helper(#[from] HelperError),
}

/// A `config.json`, which may come, change and go while this lives.
#[derive(Debug)]
pub struct DockerConfig {
    path: PathBuf,
    helpers: Helpers,
    seen: Mutex<Option<(Stamp, Arc<Logins>)>>,
    /// What helpers have said, by their name and the registry.
    said: Mutex<HashMap<(String, String), Said>>,
}

/// What a helper has said, and when. Locked while it is asked, so that it is asked once.
type Said = Arc<tokio::sync::Mutex<Option<(Instant, Option<Credentials>)>>>;

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
            helpers: Helpers::default(),
            seen: Mutex::default(),
            said: Mutex::default(),
        }
    }

    /// Takes the helpers that it names from where `helpers` says.
    #[must_use]
    pub fn with_helpers(self, helpers: Helpers) -> Self {
        Self { helpers, ..self }
    }

    /// The credentials for a registry, which is a host name with a port where it has one. Empty ones where the file
    /// has none, or is missing.
    ///
    /// # Errors
    /// When the file cannot be read or understood, or the helper that it names fails.
    pub async fn lookup(&self, host: &str) -> Result<Credentials, DockerConfigError> {
        let Some(logins) = self.logins()? else {
            return Ok(Credentials::default());
        };
        if let Some((name, server)) = logins.helper(host).filter(|_| is_host(host))
            && let Some(credentials) = self.ask(name, server).await?
        {
            return Ok(credentials);
        }
        Ok(logins.find(host))
    }

    async fn ask(&self, name: &str, server: &str) -> Result<Option<Credentials>, HelperError> {
        let said: Said = {
            let mut all = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that are being asked, or were lately.
            all.retain(|_, said| {
                Arc::strong_count(said) > 1 || said.try_lock().is_ok_and(|said| is_fresh(said.as_ref()))
            });
            all.entry((name.to_owned(), server.to_owned()))
                .or_default()
                .clone()
        };
        let mut said = said.lock().await;
        if is_fresh(said.as_ref())
            && let Some((_, credentials)) = &*said
        {
            return Ok(credentials.clone());
        }
        let credentials = self.helpers.ask(name, server).await?;
        *said = Some((Instant::now(), credentials.clone()));
        Ok(credentials)
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
        self.lookup(host).await.unwrap_or_else(|error| {
            // The registry will refuse, and say so; this line is the reason.
            tracing::error!(host, error = %ErrorChain(&error), "no credentials");
            Credentials::default()
        })
    }
}

/// Hosts are from Dockerfiles: what is none is not handed to a program.
fn is_host(host: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    host.len() <= HOST_MAX && host.bytes().all(allowed)
}

fn is_fresh(said: Option<&(Instant, Option<Credentials>)>) -> bool {
    said.is_some_and(|(at, _)| at.elapsed() < REMEMBERED)
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

    #[tokio::test]
    async fn a_missing_file_has_no_credentials() {
        let config = DockerConfig::at("/nowhere/at/all/config.json");
        assert!(config.check().is_ok());
        assert_eq!(
            config.lookup("example.com").await.unwrap(),
            Credentials::default()
        );
    }

    #[tokio::test]
    async fn a_changed_file_is_read_again() {
        let (dir, config) = config(r#"{"auths": {"example.com": {"username": "a", "password": "1"}}}"#);
        assert_eq!(config.lookup("example.com").await.unwrap().secret, "1");
        // As Kubernetes does it: another file takes the name.
        let next = dir.path().join("next");
        fs::write(
            &next,
            r#"{"auths": {"example.com": {"username": "a", "password": "2"}}}"#,
        )
        .unwrap();
        fs::rename(next, &config.path).unwrap();
        assert_eq!(config.lookup("example.com").await.unwrap().secret, "2");
        fs::remove_file(&config.path).unwrap();
        assert_eq!(
            config.lookup("example.com").await.unwrap(),
            Credentials::default()
        );
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

    /// A helper that knows r.example, and counts how often it was asked.
    const COUNTING: &str = "#!/bin/sh
read -r server; echo asked >> \"$(dirname \"$0\")/count\"
case $server in
r.example) echo '{\"Username\": \"h\", \"Secret\": \"of the helper\"}' ;;
*) echo 'credentials not found in native keychain'; exit 1 ;;
esac
";

    #[tokio::test]
    async fn a_helper_goes_before_what_stands_in_the_file_and_is_not_asked_each_time() {
        let (dir, config) = config(
            r#"{"credsStore": "test", "auths": {"other.example": {"username": "a", "password": "of the file"}}}"#,
        );
        helper::tests::install(&dir.path().join("docker-credential-test"), COUNTING);
        let config = config.with_helpers(Helpers {
            folder: Some(dir.path().to_owned()),
            ..Helpers::default()
        });

        for _ in 0..3 {
            let (first, second) = tokio::join!(config.lookup("r.example"), config.lookup("r.example"));
            assert_eq!(first.unwrap().secret, "of the helper");
            assert_eq!(second.unwrap().secret, "of the helper");
            assert_eq!(
                config.lookup("other.example").await.unwrap().secret,
                "of the file"
            );
        }
        assert_eq!(config.lookup("a b\n").await.unwrap(), Credentials::default());
        let count = fs::read_to_string(dir.path().join("count")).unwrap();
        assert_eq!(count.lines().count(), 2, "once for each registry");
    }

    #[tokio::test]
    async fn debug_shows_no_secret() {
        let (_dir, config) =
            config(r#"{"auths": {"example.com": {"username": "a", "password": "hunter2"}}}"#);
        let credentials = config.lookup("example.com").await.unwrap();
        assert!(!format!("{config:?} {credentials:?}").contains("hunter2"));
    }
}
