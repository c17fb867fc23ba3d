//! Credential helpers: programs called `docker-credential-NAME`.
//!
//! `docker-credential-NAME get` reads the name of a registry from standard input and writes JSON to standard output:
//! `github.com/docker/docker-credential-helpers`.

use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use function_host::registry::RegistryCredentials;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// The limit on the output of a credential helper, in bytes: more than any token needs.
const HELPER_OUTPUT_MAX_BYTES: u64 = 64 << 10;

/// The output of a credential helper, with exit code 1, for a registry that it has no credentials for.
const CREDENTIALS_NOT_FOUND_OUTPUT: &str = "credentials not found in native keychain";

/// The user name that marks a helper's secret as an identity token.
const TOKEN_USER: &str = "<token>";

/// The folder of the credential helpers, and their time limit.
#[derive(Clone, Debug)]
pub struct CredentialHelpers {
    /// The folder with the credential helpers; `None` for those in `PATH`.
    pub folder: Option<PathBuf>,
    /// The longest time that a credential helper may run.
    pub timeout: Duration,
}

impl Default for CredentialHelpers {
    /// Returns the credential helpers in `PATH`, with a timeout of 20 s.
    fn default() -> Self {
        Self {
            folder: None,
            timeout: Duration::from_secs(20),
        }
    }
}

/// The reason why a credential helper gave no credentials. The texts quote nothing of its output, which may contain
/// secrets.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// The name of the credential helper is invalid.
    #[error(
        "{name:?} is not the name of a credential helper: allowed are letters, digits, \"-\", \"_\" and \".\""
    )]
    Name {
        /// The helper's name in the `config.json`.
        name: String,
    },
    /// The credential helper cannot be run.
    #[error("could not run {program}")]
    Run {
        /// The file name of the helper's program.
        program: String,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The credential helper took too long and was killed.
    #[error("{program} did not answer within {}", function_host::duration::format_duration(*timeout))]
    Timeout {
        /// The file name of the helper's program.
        program: String,
        /// The time limit that the helper exceeded.
        timeout: Duration,
    },
    /// The credential helper exited with an error.
    #[error("{program} failed ({status}); run it by hand to see why")]
    Failed {
        /// The file name of the helper's program.
        program: String,
        /// The exit status: a code other than 0, or the signal that ended the helper.
        status: ExitStatus,
    },
    /// The output of the credential helper is not JSON with credentials, or is too large.
    #[error("{program} did not answer with credentials in JSON")]
    Malformed {
        /// The file name of the helper's program.
        program: String,
    },
}

/// The JSON that a credential helper prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperUsernameAndSecret {
    username: String,
    secret: String,
}

impl CredentialHelpers {
    /// Runs the credential helper `name` to get the credentials for `server`. Returns `None` if the helper has none.
    ///
    /// Dropping the future kills the program.
    ///
    /// # Errors
    /// Fails if the program cannot be run, fails, takes too long or answers with something else.
    pub(super) async fn ask(
        &self,
        name: &str,
        server: &str,
    ) -> Result<Option<RegistryCredentials>, HelperError> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if name.is_empty() || !name.bytes().all(is_allowed) {
            return Err(HelperError::Name {
                name: name.to_owned(),
            });
        }
        let program = format!("docker-credential-{name}");
        let run = |source| HelperError::Run {
            program: program.clone(),
            source,
        };
        let path = match &self.folder {
            Some(folder) => folder.join(&program),
            None => PathBuf::from(&program),
        };
        let run_program = async {
            let mut child = Command::new(path)
                .arg("get")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()?;
            if let Some(mut input) = child.stdin.take() {
                match input.write_all(server.as_bytes()).await {
                    // A helper may answer without reading its input.
                    Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
                    _ => {}
                }
            }
            let mut output = Vec::new();
            if let Some(stdout) = child.stdout.take() {
                stdout
                    .take(HELPER_OUTPUT_MAX_BYTES + 1)
                    .read_to_end(&mut output)
                    .await?;
            }
            if output.len() as u64 > HELPER_OUTPUT_MAX_BYTES {
                return Ok((None, output));
            }
            Ok((Some(child.wait().await?), output))
        };
        let (status, output) = match tokio::time::timeout(self.timeout, run_program).await {
            Ok(outcome) => outcome.map_err(run)?,
            Err(_) => {
                return Err(HelperError::Timeout {
                    program,
                    timeout: self.timeout,
                });
            }
        };
        let Some(status) = status else {
            return Err(HelperError::Malformed { program });
        };
        if !status.success() {
            return match output.trim_ascii() == CREDENTIALS_NOT_FOUND_OUTPUT.as_bytes() {
                true => Ok(None),
                false => Err(HelperError::Failed { program, status }),
            };
        }
        let Ok(HelperUsernameAndSecret { username, secret }) = serde_json::from_slice(&output) else {
            return Err(HelperError::Malformed { program });
        };
        Ok(Some(RegistryCredentials {
            username: if username == TOKEN_USER {
                String::new()
            } else {
                username
            },
            secret,
        }))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs::File;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::path::Path;

    use super::*;

    /// Writes `script` to an executable file at `path`.
    ///
    /// Another process writes it: if this one had the file open for writing, so would every child that another test
    /// starts meanwhile, and the system runs no file that is open for writing.
    pub(in crate::docker_config) fn write_executable(path: &Path, script: &str) {
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
            .arg(path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(shell.wait().unwrap().success());
    }

    /// Creates a credential helper that runs `script`, in a temporary folder.
    fn helper_with_script(script: &str) -> (tempfile::TempDir, CredentialHelpers) {
        let folder = tempfile::tempdir().unwrap();
        write_executable(
            &folder.path().join("docker-credential-test"),
            &format!("#!/bin/sh\n{script}\n"),
        );
        let helpers = CredentialHelpers {
            folder: Some(folder.path().to_owned()),
            timeout: Duration::from_secs(20),
        };
        (folder, helpers)
    }

    async fn ask_helper_with(script: &str) -> Result<Option<RegistryCredentials>, HelperError> {
        let (_folder, helpers) = helper_with_script(script);
        helpers.ask("test", "r.example:5000").await
    }

    fn some_credentials(username: &str, secret: &str) -> Option<RegistryCredentials> {
        Some(RegistryCredentials {
            username: username.into(),
            secret: secret.into(),
        })
    }

    #[tokio::test]
    async fn a_helper_gets_the_name_of_the_registry_and_answers_with_credentials() {
        let script = r#"[ "$1" = get ] && read -r server; echo "{\"ServerURL\": \"$server\", \"Username\": \"user of $server\", \"Secret\": \"s\"}""#;
        assert_eq!(
            ask_helper_with(script).await.unwrap(),
            some_credentials("user of r.example:5000", "s")
        );
        let token = r#"echo '{"Username": "<token>", "Secret": "t"}'"#;
        assert_eq!(ask_helper_with(token).await.unwrap(), some_credentials("", "t"));
    }

    #[tokio::test]
    async fn a_helper_without_credentials_for_a_registry_gives_none_and_no_error() {
        let script = format!("cat > /dev/null; echo '{CREDENTIALS_NOT_FOUND_OUTPUT}'; exit 1");
        assert_eq!(ask_helper_with(&script).await.unwrap(), None);
    }

    #[tokio::test]
    async fn the_output_of_a_failing_helper_is_never_quoted() {
        for (script, reason) in [
            (
                "echo hunter2; echo hunter2 >&2; exit 1",
                "failed (exit status: 1)",
            ),
            ("echo hunter2", "did not answer with credentials"),
            (
                "echo '{\"Username\": \"hunter2\"}'",
                "did not answer with credentials",
            ),
            (
                "head -c 100000 /dev/zero; sleep 1000",
                "did not answer with credentials",
            ),
        ] {
            let error = ask_helper_with(script).await.unwrap_err();
            assert!(error.to_string().contains(reason), "{script}: {error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_helper_that_exceeds_its_timeout_is_killed() {
        let script = "exec 3> \"$(dirname \"$0\")/alive\"; echo started >&3; exec sleep 1000";
        let (folder, helpers) = helper_with_script(script);
        let fifo = folder.path().join("alive");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        let timeout = helpers.timeout;
        let asking = tokio::spawn(async move { helpers.ask("test", "r").await });
        let started = tokio::task::spawn_blocking(move || {
            let mut alive = BufReader::new(File::open(fifo).unwrap());
            let mut line = String::new();
            alive.read_line(&mut line).unwrap();
            assert_eq!(line, "started\n");
            alive
        });
        let mut alive = started.await.unwrap();

        tokio::time::pause();
        tokio::time::advance(timeout).await;

        let error = asking.await.unwrap().unwrap_err();
        assert!(error.to_string().contains("within 20s"), "{error}");
        // The pipe ends when the last process that has it open is dead.
        let ended = tokio::task::spawn_blocking(move || alive.read_to_end(&mut Vec::new()));
        assert_eq!(ended.await.unwrap().unwrap(), 0);
    }

    #[tokio::test]
    async fn a_missing_helper_and_an_invalid_name_are_reported() {
        let (_folder, helpers) = helper_with_script("");
        let error = helpers.ask("nowhere", "r").await.unwrap_err();
        assert_eq!(error.to_string(), "could not run docker-credential-nowhere");
        for name in ["", "../test", "a b"] {
            assert!(matches!(
                helpers.ask(name, "r").await,
                Err(HelperError::Name { .. })
            ));
        }
    }
}
