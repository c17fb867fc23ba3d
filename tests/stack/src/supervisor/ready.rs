//! Checks whether a part of the stack is ready.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use crate::{error::error_with_causes, supervisor::reaper::ProcessReaper};

/// The timeout of one readiness check.
const READY_CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// The interval between readiness checks of a part.
const READY_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// A check whether a part of the stack is ready.
#[derive(Debug)]
pub(crate) enum HttpCommandLogOrRouteCheck {
    /// The part is ready if the default route uses this interface.
    DefaultRoute(&'static str),
    /// The part is ready if a GET request to this URL is answered with this status.
    Http { url: String, status: u16 },
    /// The part is ready if a program exits successfully.
    Command(Command),
    /// The part is ready if its log contains this text since its start.
    LogContains(&'static str),
}

/// The lines of a part's log since the part's start.
#[derive(Debug, Clone)]
pub(crate) struct PartLogSinceStart {
    /// The path of the log file in which new lines of the part are searched.
    pub(crate) path: PathBuf,
    /// The length of the part's log at its start, in bytes.
    pub(crate) from: u64,
}

impl HttpCommandLogOrRouteCheck {
    /// Repeats the check until the part is ready; `last_failure` always has the last failure.
    pub(crate) async fn wait_until_ready(
        mut self,
        reaper: &ProcessReaper,
        log: &PartLogSinceStart,
        last_failure: &mut String,
    ) {
        while let Err(failure) = self.check_once(reaper, log).await {
            *last_failure = failure;
            tokio::time::sleep(READY_CHECK_INTERVAL).await;
        }
    }

    /// Checks once whether the part is ready; the error is the reason for which it is not.
    async fn check_once(&mut self, reaper: &ProcessReaper, log: &PartLogSinceStart) -> Result<(), String> {
        match self {
            HttpCommandLogOrRouteCheck::DefaultRoute(interface) => {
                let routes =
                    fs::read_to_string("/proc/thread-self/net/route").map_err(|error| error.to_string())?;
                let found = routes
                    .lines()
                    .any(|route| default_route_interface(route) == Some(interface));
                found
                    .then_some(())
                    .ok_or_else(|| format!("no default route over {interface}"))
            }
            HttpCommandLogOrRouteCheck::Http { url, status } => {
                let client = reqwest::Client::builder()
                    .no_proxy()
                    .timeout(READY_CHECK_TIMEOUT)
                    .build();
                let client = client.map_err(|error| error.to_string())?;
                let answer = client.get(&*url).send().await.map_err(error_with_causes)?;
                let got = answer.status().as_u16();
                (got == *status)
                    .then_some(())
                    .ok_or_else(|| format!("{url} answers {got}"))
            }
            HttpCommandLogOrRouteCheck::Command(command) => {
                command
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null());
                let name = command.get_program().to_string_lossy().into_owned();
                match tokio::time::timeout(
                    READY_CHECK_TIMEOUT,
                    reaper.run_to_exit_and_describe_failure(command),
                )
                .await
                {
                    Ok(Ok(None)) => Ok(()),
                    Ok(Ok(Some(how))) => Err(format!("{name}: {how}")),
                    Ok(Err(error)) => Err(format!("{name}: {error}")),
                    Err(_) => Err(format!(
                        "{name} did not end within {} s",
                        READY_CHECK_TIMEOUT.as_secs()
                    )),
                }
            }
            HttpCommandLogOrRouteCheck::LogContains(text) => {
                let lines = log
                    .read_first_mebibyte_since_start()
                    .map_err(|error| error.to_string())?;
                lines
                    .contains(*text)
                    .then_some(())
                    .ok_or_else(|| format!("its log does not contain {text:?}"))
            }
        }
    }
}

impl PartLogSinceStart {
    /// Returns the first MiB that was logged since the part's start.
    fn read_first_mebibyte_since_start(&self) -> std::io::Result<String> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.from))?;
        let mut text = Vec::new();
        file.take(1 << 20).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// Returns the interface in a line of the routing table if the line is a default route.
fn default_route_interface(line: &str) -> Option<&str> {
    let mut fields = line.split_whitespace();
    let interface = fields.next()?;
    (fields.next()? == "00000000").then_some(interface)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_route_with_destination_zero_is_a_default_route() {
        assert_eq!(
            default_route_interface("tap0\t00000000\t0202000A\t0003"),
            Some("tap0")
        );
        assert_eq!(default_route_interface("tap0\t0002000A\t00000000\t0001"), None);
        assert_eq!(default_route_interface("Iface\tDestination\tGateway"), None);
    }

    #[tokio::test]
    async fn log_lines_from_before_the_start_do_not_make_a_part_ready() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "Listening on [").unwrap();
        let log = PartLogSinceStart {
            path: path.clone(),
            from: 14,
        };
        let reaper = ProcessReaper::default();
        assert!(
            HttpCommandLogOrRouteCheck::LogContains("Listening")
                .check_once(&reaper, &log)
                .await
                .is_err()
        );
        fs::write(&path, "Listening on [Listening").unwrap();
        assert_eq!(
            HttpCommandLogOrRouteCheck::LogContains("Listening")
                .check_once(&reaper, &log)
                .await,
            Ok(())
        );
    }
}
