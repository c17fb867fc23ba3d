//! Credentials for registries, from a Docker `config.json` and credential helpers.
//!
//! The file is read again when it changes, and parsed by [`function_host::registry`]. A helper that it names for a
//! registry (`credHelpers`, `credsStore`) is asked first, and `auths` is read for what the helper does not know.

mod helper;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use function_host::ErrorChain;
use function_host::registry::{
    LoginsCache, MalformedDockerConfig, RegistryCredentials, RegistryLogins, UnusableDockerConfigEntry,
};
use tokio::time::Instant;

use crate::buildkit::CredentialStore;
pub use helper::{CredentialHelpers, HelperError};

/// The limit on the size of a `config.json`, in bytes: more than any needs.
const CONFIG_FILE_MAX_BYTES: u64 = 1 << 20;

/// The time for which the answer of a credential helper is cached. BuildKit asks several times in a build, and a helper
/// may be slow.
const HELPER_ANSWER_CACHE_TIME: Duration = Duration::from_secs(30);

/// The limit on the registry name that is passed to a credential helper, in bytes.
const HELPER_HOST_MAX_BYTES: usize = 300;

/// The reason why a `config.json` gives no credentials. The texts quote nothing of its content.
#[derive(Debug, thiserror::Error)]
pub enum DockerConfigError {
    /// The `config.json` exists and cannot be read.
    #[error("could not read the registry credentials in {}", path.display())]
    Read {
        /// The path of the `config.json`.
        path: PathBuf,
        /// The I/O error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The file is not a valid Docker `config.json`.
    #[error("the registry credentials in {} should be a Docker config.json", path.display())]
    Malformed {
        /// The path of the `config.json`.
        path: PathBuf,
        /// The syntax error, and its place in the file.
        #[source]
        source: MalformedDockerConfig,
    },
    /// The `config.json` is larger than the limit.
    #[error("the registry credentials in {} are larger than {CONFIG_FILE_MAX_BYTES} bytes", path.display())]
    TooLarge {
        /// The path of the `config.json`.
        path: PathBuf,
    },
    /// The `config.json` entry for the registry cannot be used.
    #[error(transparent)]
    Unusable(#[from] UnusableDockerConfigEntry),
    /// The credential helper that the `config.json` names failed.
    #[error(transparent)]
    Helper(#[from] HelperError),
}

/// A handle of a Docker `config.json` that may be created, changed and removed at any time.
#[derive(Debug)]
pub struct DockerConfig {
    path: PathBuf,
    helpers: CredentialHelpers,
    logins: LoginsCache,
    /// The cached answers of credential helpers, by the helper's name and the registry.
    answers: Mutex<HashMap<(String, String), CachedHelperAnswer>>,
}

/// The cached answer of a credential helper, with its time. It is locked while the helper runs, so that concurrent
/// requests wait for one run.
type CachedHelperAnswer = Arc<tokio::sync::Mutex<Option<(Instant, Option<RegistryCredentials>)>>>;

impl DockerConfig {
    /// Returns a handle of the `config.json` at `path`, without reading it.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self {
            logins: LoginsCache::new(path.display().to_string()),
            path,
            helpers: CredentialHelpers::default(),
            answers: Mutex::default(),
        }
    }

    /// Sets the folder and the time limit of the credential helpers.
    #[must_use]
    pub fn with_helpers(self, helpers: CredentialHelpers) -> Self {
        Self { helpers, ..self }
    }

    /// Returns the folder and the time limit of the credential helpers.
    pub fn helpers(&self) -> &CredentialHelpers {
        &self.helpers
    }

    /// Reads the credentials for the registry `host` from the file or a credential helper. They are empty if there are
    /// none.
    ///
    /// # Errors
    /// Fails if the file cannot be read or parsed, if its entry for `host` cannot be used, or if the helper that it
    /// names fails.
    pub async fn find_credentials_or_anonymous(
        &self,
        host: &str,
    ) -> Result<RegistryCredentials, DockerConfigError> {
        let Some(logins) = self.read_logins()? else {
            return Ok(RegistryCredentials::default());
        };
        if let Some((name, server)) = logins
            .helper_and_server_name_for(host)?
            .filter(|_| is_safe_host(host))
            && let Some(credentials) = self.ask_helper_or_cache(name, server).await?
        {
            return Ok(credentials);
        }
        Ok(logins.credentials_or_anonymous_for(host)?)
    }

    /// Runs the credential helper `name` for `server`, unless the cache has a fresh answer, and returns the answer.
    async fn ask_helper_or_cache(
        &self,
        name: &str,
        server: &str,
    ) -> Result<Option<RegistryCredentials>, HelperError> {
        let answer: CachedHelperAnswer = {
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            // Keeps the answers that are being fetched, and the fresh ones.
            answers.retain(|_, answer| {
                Arc::strong_count(answer) > 1
                    || answer.try_lock().is_ok_and(|answer| is_fresh(answer.as_ref()))
            });
            answers
                .entry((name.to_owned(), server.to_owned()))
                .or_default()
                .clone()
        };
        let mut answer = answer.lock().await;
        if is_fresh(answer.as_ref())
            && let Some((_, credentials)) = &*answer
        {
            return Ok(credentials.clone());
        }
        let credentials = self.helpers.ask(name, server).await?;
        *answer = Some((Instant::now(), credentials.clone()));
        Ok(credentials)
    }

    /// Checks that the `config.json` can be read and parsed. A missing file is valid.
    ///
    /// # Errors
    /// Fails if the file cannot be read or parsed.
    pub fn check_readable_if_present(&self) -> Result<(), DockerConfigError> {
        self.read_logins().map(|_| ())
    }

    /// Reads and parses the `config.json`; returns `None` if it is missing.
    fn read_logins(&self) -> Result<Option<Arc<RegistryLogins>>, DockerConfigError> {
        let path = || self.path.clone();
        let content = match read_unless_too_large(&self.path) {
            Ok(content) => content.ok_or_else(|| DockerConfigError::TooLarge { path: path() })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(DockerConfigError::Read { path: path(), source }),
        };
        let logins = self.logins.parse_if_changed(&content);
        logins
            .map(Some)
            .map_err(|source| DockerConfigError::Malformed { path: path(), source })
    }
}

#[tonic::async_trait]
impl CredentialStore for DockerConfig {
    async fn credentials_or_empty(&self, host: &str) -> RegistryCredentials {
        self.find_credentials_or_anonymous(host)
            .await
            .unwrap_or_else(|error| {
                // The registry will reject the anonymous request; this line names the cause. That of an unusable entry
                // was logged when the file was parsed.
                if !matches!(error, DockerConfigError::Unusable(_)) {
                    tracing::error!(
                        host,
                        error = %ErrorChain(&error),
                        "could not get credentials for a registry; it is used anonymously"
                    );
                }
                RegistryCredentials::default()
            })
    }

    async fn look_up_credentials_or_reason(&self, host: &str) -> Result<RegistryCredentials, String> {
        self.find_credentials_or_anonymous(host)
            .await
            .map_err(|error| match error {
                DockerConfigError::Helper(error) => ErrorChain(&error).to_string(),
                // The others name files of the operator, and what is in them.
                _ => "the config.json of the builder cannot be used".to_owned(),
            })
    }
}

/// Returns whether the registry name `host`, which a Dockerfile chooses, may be passed to a credential helper.
fn is_safe_host(host: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    host.len() <= HELPER_HOST_MAX_BYTES && host.bytes().all(allowed)
}

/// Returns whether there is a cached answer, and it is younger than [`HELPER_ANSWER_CACHE_TIME`].
fn is_fresh(answer: Option<&(Instant, Option<RegistryCredentials>)>) -> bool {
    answer.is_some_and(|(at, _)| at.elapsed() < HELPER_ANSWER_CACHE_TIME)
}

/// Reads a file of at most [`CONFIG_FILE_MAX_BYTES`] bytes; returns `None` for a larger one.
fn read_unless_too_large(path: &Path) -> io::Result<Option<Vec<u8>>> {
    use io::Read;
    let mut content = Vec::new();
    fs::File::open(path)?
        .take(CONFIG_FILE_MAX_BYTES + 1)
        .read_to_end(&mut content)?;
    Ok(Some(content).filter(|content| content.len() as u64 <= CONFIG_FILE_MAX_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_file_with(content: &str) -> (tempfile::TempDir, DockerConfig) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".dockerconfigjson");
        fs::write(&path, content).unwrap();
        (dir, DockerConfig::at(path))
    }

    #[tokio::test]
    async fn a_missing_docker_config_gives_empty_credentials() {
        let config = DockerConfig::at("/nowhere/at/all/config.json");
        assert!(config.check_readable_if_present().is_ok());
        assert_eq!(
            config.find_credentials_or_anonymous("example.com").await.unwrap(),
            RegistryCredentials::default()
        );
    }

    #[tokio::test]
    async fn a_changed_docker_config_is_read_again() {
        let (dir, config) =
            config_file_with(r#"{"auths": {"example.com": {"username": "a", "password": "1"}}}"#);
        assert_eq!(
            config
                .find_credentials_or_anonymous("example.com")
                .await
                .unwrap()
                .secret,
            "1"
        );
        // Replaces the file by a rename, as Kubernetes does.
        let next = dir.path().join("next");
        fs::write(
            &next,
            r#"{"auths": {"example.com": {"username": "a", "password": "2"}}}"#,
        )
        .unwrap();
        fs::rename(next, &config.path).unwrap();
        assert_eq!(
            config
                .find_credentials_or_anonymous("example.com")
                .await
                .unwrap()
                .secret,
            "2"
        );
        fs::remove_file(&config.path).unwrap();
        assert_eq!(
            config.find_credentials_or_anonymous("example.com").await.unwrap(),
            RegistryCredentials::default()
        );
    }

    #[tokio::test]
    async fn the_error_of_an_unusable_file_names_the_file_and_quotes_nothing_of_it() {
        let (_dir, config) = config_file_with(r#"{"auths": {"example.com": {"auth": hunter2}}}"#);
        let error = ErrorChain(&config.check_readable_if_present().unwrap_err()).to_string();
        assert!(
            error.contains(".dockerconfigjson") && error.contains("line 1"),
            "{error}"
        );
        assert!(!error.contains("hunter2"), "{error}");
        assert_eq!(
            config.credentials_or_empty("example.com").await,
            RegistryCredentials::default()
        );

        let folder = DockerConfig::at(std::env::temp_dir());
        assert!(matches!(
            folder.check_readable_if_present(),
            Err(DockerConfigError::Read { .. })
        ));
        let (_dir, large) = config_file_with(&" ".repeat(2 << 20));
        assert!(
            large
                .check_readable_if_present()
                .unwrap_err()
                .to_string()
                .contains("bytes")
        );
    }

    #[tokio::test]
    async fn an_unusable_docker_config_entry_affects_only_its_own_registry() {
        let (_dir, config) = config_file_with(
            r#"{"credHelpers": {"helper.example": 1, "none.example": null},
            "auths": {"bad.example": {"auth": "hunter2!"}, "good.example": {"auth": "dXNl\ncjpwYXNz"}}}"#,
        );
        assert!(config.check_readable_if_present().is_ok());
        assert_eq!(config.credentials_or_empty("good.example").await.secret, "pass");
        for host in ["bad.example", "helper.example"] {
            let error = config.find_credentials_or_anonymous(host).await.unwrap_err();
            assert!(matches!(error, DockerConfigError::Unusable(_)), "{error:?}");
            assert_eq!(
                config.credentials_or_empty(host).await,
                RegistryCredentials::default()
            );
        }
    }

    /// The script of a credential helper that has credentials for `r.example` and counts its runs.
    const COUNTING_HELPER_SCRIPT: &str = "#!/bin/sh
read -r server; echo asked >> \"$(dirname \"$0\")/count\"
case $server in
r.example) echo '{\"Username\": \"h\", \"Secret\": \"from the helper\"}' ;;
*) echo 'credentials not found in native keychain'; exit 1 ;;
esac
";

    #[tokio::test]
    async fn a_helper_is_run_once_per_registry_and_the_file_counts_if_the_helper_has_no_credentials() {
        let (dir, config) = config_file_with(
            r#"{"credsStore": "test", "auths": {"other.example": {"username": "a", "password": "from the file"}}}"#,
        );
        helper::tests::write_executable(&dir.path().join("docker-credential-test"), COUNTING_HELPER_SCRIPT);
        let config = config.with_helpers(CredentialHelpers {
            folder: Some(dir.path().to_owned()),
            ..CredentialHelpers::default()
        });

        for _ in 0..3 {
            let (first, second) = tokio::join!(
                config.find_credentials_or_anonymous("r.example"),
                config.find_credentials_or_anonymous("r.example")
            );
            assert_eq!(first.unwrap().secret, "from the helper");
            assert_eq!(second.unwrap().secret, "from the helper");
            assert_eq!(
                config
                    .find_credentials_or_anonymous("other.example")
                    .await
                    .unwrap()
                    .secret,
                "from the file"
            );
        }
        assert_eq!(
            config.find_credentials_or_anonymous("a b\n").await.unwrap(),
            RegistryCredentials::default()
        );
        let count = fs::read_to_string(dir.path().join("count")).unwrap();
        assert_eq!(count.lines().count(), 2, "one run for each registry");
    }

    #[tokio::test]
    async fn the_debug_output_of_a_docker_config_contains_no_secret() {
        let (_dir, config) =
            config_file_with(r#"{"auths": {"example.com": {"username": "a", "password": "hunter2"}}}"#);
        let credentials = config.find_credentials_or_anonymous("example.com").await.unwrap();
        assert!(!format!("{config:?} {credentials:?}").contains("hunter2"));
    }
}
