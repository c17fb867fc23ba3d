//! Checks whether a part is ready.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use crate::supervisor::reaper::Reaper;

/// The timeout of one check.
const LOOK: Duration = Duration::from_secs(10);

/// The interval between checks.
const BETWEEN: Duration = Duration::from_millis(50);

/// A condition that is true once a part is ready.
#[derive(Debug)]
pub(crate) enum Ready {
    /// The default route uses this interface.
    Route(&'static str),
    /// A GET of this URL is answered with this status.
    Http { url: String, status: u16 },
    /// A program exits successfully.
    Command(Command),
    /// The part's log contains this text.
    Says(&'static str),
}

/// The lines of a log since the part's start.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    /// The path of the log.
    pub(crate) path: PathBuf,
    /// The length of the log when the part started, in bytes.
    pub(crate) from: u64,
}

impl Ready {
    /// Checks until the condition is true; `reason` always has the last failure.
    pub(crate) async fn wait(mut self, reaper: &Reaper, written: &Written, reason: &mut String) {
        while let Err(seen) = self.look(reaper, written).await {
            *reason = seen;
            tokio::time::sleep(BETWEEN).await;
        }
    }

    async fn look(&mut self, reaper: &Reaper, written: &Written) -> Result<(), String> {
        match self {
            Ready::Route(interface) => {
                let routes =
                    fs::read_to_string("/proc/thread-self/net/route").map_err(|error| error.to_string())?;
                let found = routes
                    .lines()
                    .any(|route| default_route(route) == Some(interface));
                found
                    .then_some(())
                    .ok_or_else(|| format!("no default route by {interface}"))
            }
            Ready::Http { url, status } => {
                let client = reqwest::Client::builder().no_proxy().timeout(LOOK).build();
                let client = client.map_err(|error| error.to_string())?;
                let answer = client
                    .get(&*url)
                    .send()
                    .await
                    .map_err(|error| crate::error::chain(&error))?;
                let got = answer.status().as_u16();
                (got == *status)
                    .then_some(())
                    .ok_or_else(|| format!("{url} answers {got}"))
            }
            Ready::Command(command) => {
                command
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null());
                let name = command.get_program().to_string_lossy().into_owned();
                match tokio::time::timeout(LOOK, reaper.run(command)).await {
                    Ok(Ok(None)) => Ok(()),
                    Ok(Ok(Some(how))) => Err(format!("{name}: {how}")),
                    Ok(Err(error)) => Err(format!("{name}: {error}")),
                    Err(_) => Err(format!("{name} does not end")),
                }
            }
            Ready::Says(words) => {
                let said = written.read().map_err(|error| error.to_string())?;
                said.contains(*words)
                    .then_some(())
                    .ok_or_else(|| format!("it has not said {words:?}"))
            }
        }
    }
}

impl Written {
    fn read(&self) -> std::io::Result<String> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.from))?;
        let mut text = Vec::new();
        file.take(1 << 20).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// Returns the interface of a line of the routing table if the line is a default route.
fn default_route(line: &str) -> Option<&str> {
    let mut fields = line.split_whitespace();
    let interface = fields.next()?;
    (fields.next()? == "00000000").then_some(interface)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_route_to_everywhere_is_a_default_route() {
        assert_eq!(default_route("tap0\t00000000\t0202000A\t0003"), Some("tap0"));
        assert_eq!(default_route("tap0\t0002000A\t00000000\t0001"), None);
        assert_eq!(default_route("Iface\tDestination\tGateway"), None);
    }

    #[tokio::test]
    async fn what_a_part_said_before_its_start_does_not_make_it_ready() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "Listening on [").unwrap();
        let written = Written {
            path: path.clone(),
            from: 14,
        };
        let reaper = Reaper::default();
        assert!(Ready::Says("Listening").look(&reaper, &written).await.is_err());
        fs::write(&path, "Listening on [Listening").unwrap();
        assert_eq!(Ready::Says("Listening").look(&reaper, &written).await, Ok(()));
    }
}
