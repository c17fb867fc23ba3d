//! Programs that know credentials: `docker-credential-NAME get`, with the registry on its standard input and JSON on its
//! standard output, as `github.com/docker/docker-credential-helpers` has it.

use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::Credentials;

/// More than any token needs, in bytes.
const OUTPUT_MAX: u64 = 64 << 10;

/// What a helper says, on its standard output and with exit code 1, of a registry that it has nothing for.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// The user name that stands for an identity token.
const TOKEN_USER: &str = "<token>";

/// Where helpers are, and how long they may take.
#[derive(Clone, Debug)]
pub struct Helpers {
    /// The folder that they are in; those in `PATH` where there is none.
    pub folder: Option<PathBuf>,
    /// How long one may take.
    pub limit: Duration,
}

impl Default for Helpers {
    /// Those in `PATH`, for 20 s.
    fn default() -> Self {
        Self {
            folder: None,
            limit: Duration::from_secs(20),
        }
    }
}

/// Why a helper gave no credentials. Nothing of what it wrote is repeated: there may be secrets in it.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// A name that is none.
    #[error("{name:?} cannot be the name of a credential helper")]
    Name {
        /// The name.
        name: String,
    },
    /// It cannot be run.
    #[error("could not run {program}")]
    Run {
        /// The program.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It took too long, and was ended.
    #[error("{program} did not answer within {}", function_host::duration::format(*limit))]
    TooSlow {
        /// The program.
        program: String,
        /// How long it may take.
        limit: Duration,
    },
    /// It failed.
    #[error("{program} failed ({status}); run it by hand to see why")]
    Failed {
        /// The program.
        program: String,
        /// How.
        status: ExitStatus,
    },
    /// It wrote something else, or too much.
    #[error("{program} did not answer with credentials in JSON")]
    Malformed {
        /// The program.
        program: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

impl Helpers {
    /// Asks the helper `name` for the credentials of `server`. Nothing, where it knows none.
    ///
    /// Dropping the future ends the program.
    ///
    /// # Errors
    /// When it cannot be run, fails, takes too long or says something else.
    pub(super) async fn ask(&self, name: &str, server: &str) -> Result<Option<Credentials>, HelperError> {
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
        let conversation = async {
            let mut child = Command::new(path)
                .arg("get")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()?;
            if let Some(mut input) = child.stdin.take() {
                match input.write_all(server.as_bytes()).await {
                    // One that does not read its input may know what to say nevertheless.
                    Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
                    _ => {}
                }
            }
            let mut output = Vec::new();
            if let Some(stdout) = child.stdout.take() {
                stdout.take(OUTPUT_MAX + 1).read_to_end(&mut output).await?;
            }
            if output.len() as u64 > OUTPUT_MAX {
                return Ok((None, output));
            }
            Ok((Some(child.wait().await?), output))
        };
        let (status, output) = match tokio::time::timeout(self.limit, conversation).await {
            Ok(outcome) => outcome.map_err(run)?,
            Err(_) => {
                return Err(HelperError::TooSlow {
                    program,
                    limit: self.limit,
                });
            }
        };
        let Some(status) = status else {
            return Err(HelperError::Malformed { program });
        };
        if !status.success() {
            return match output.trim_ascii() == NOT_FOUND.as_bytes() {
                true => Ok(None),
                false => Err(HelperError::Failed { program, status }),
            };
        }
        let Ok(Answer { username, secret }) = serde_json::from_slice(&output) else {
            return Err(HelperError::Malformed { program });
        };
        Ok(Some(Credentials {
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
    use std::io::Write;
    use std::path::Path;

    use super::*;

    /// Makes a program of `script`. By another process: while this one had the file open for writing, so had every
    /// child that another test starts meanwhile, and the system runs no file that is being written.
    pub(in crate::docker_config) fn install(path: &Path, script: &str) {
        let mut shell = std::process::Command::new("sh")
            .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
            .arg(path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(shell.wait().unwrap().success());
    }

    /// A helper that runs `script`.
    fn helper(script: &str) -> (tempfile::TempDir, Helpers) {
        let folder = tempfile::tempdir().unwrap();
        install(
            &folder.path().join("docker-credential-test"),
            &format!("#!/bin/sh\n{script}\n"),
        );
        let helpers = Helpers {
            folder: Some(folder.path().to_owned()),
            limit: Duration::from_secs(20),
        };
        (folder, helpers)
    }

    async fn ask(script: &str) -> Result<Option<Credentials>, HelperError> {
        let (_folder, helpers) = helper(script);
        helpers.ask("test", "r.example:5000").await
    }

    fn credentials(username: &str, secret: &str) -> Option<Credentials> {
        Some(Credentials {
            username: username.into(),
            secret: secret.into(),
        })
    }

    #[tokio::test]
    async fn a_helper_is_asked_for_one_registry_and_answers_for_it() {
        let script = r#"[ "$1" = get ] && read -r server; echo "{\"ServerURL\": \"$server\", \"Username\": \"user of $server\", \"Secret\": \"s\"}""#;
        assert_eq!(
            ask(script).await.unwrap(),
            credentials("user of r.example:5000", "s")
        );
        let token = r#"echo '{"Username": "<token>", "Secret": "t"}'"#;
        assert_eq!(ask(token).await.unwrap(), credentials("", "t"));
    }

    #[tokio::test]
    async fn a_registry_that_the_helper_does_not_know_is_no_error() {
        let script = format!("cat > /dev/null; echo '{NOT_FOUND}'; exit 1");
        assert_eq!(ask(&script).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_a_helper_writes_when_it_fails_is_repeated_nowhere() {
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
            let error = ask(script).await.unwrap_err();
            assert!(error.to_string().contains(reason), "{script}: {error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[tokio::test]
    async fn one_that_takes_too_long_is_ended() {
        let (folder, mut helpers) = helper("echo $$ > \"$(dirname \"$0\")/pid\"; exec sleep 1000");
        helpers.limit = Duration::from_millis(300);
        let error = helpers.ask("test", "r").await.unwrap_err();
        assert!(error.to_string().contains("within 300ms"), "{error}");
        let pid = std::fs::read_to_string(folder.path().join("pid")).unwrap();
        let process = Path::new("/proc").join(pid.trim());
        // It is killed at once, and reaped by the runtime when it notices.
        for _ in 0..200 {
            let state = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
            if state.is_empty() || state.contains(") Z ") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it still runs");
    }

    #[tokio::test]
    async fn one_that_is_not_there_or_has_no_name_is_told() {
        let (_folder, helpers) = helper("");
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
