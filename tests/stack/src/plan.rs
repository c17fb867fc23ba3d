//! What the launcher decided about a stack, for the supervisor, and for whoever uses the stack later.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    address::Number,
    error::{At as _, Error, Result},
    places::{StackDir, write_private},
    tools::Tools,
};

/// How a stack is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name; several stacks run side by side.
    pub name: String,
    /// A `faasd` binary, to be the provider in place of the embedded one.
    pub faasd: Option<PathBuf>,
    /// A `gateway` binary in place of the one built from the pinned module.
    pub gateway: Option<PathBuf>,
    /// A `faas-cli` binary in place of the one built from the pinned module.
    pub faas_cli: Option<PathBuf>,
    /// After this time the queue delivers a call again that has not been answered.
    pub ack_wait: Duration,
    /// Whether the registry gets the base images that compile Rust.
    pub images: bool,
    /// Whether Slipway is deployed on it, which needs the images.
    pub deploy: bool,
}

impl Options {
    /// The ordinary stack, with Slipway on it, under this name.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            faasd: None,
            gateway: None,
            faas_cli: None,
            // Longer than the gateway lets any call be.
            ack_wait: Duration::from_secs(36 * 60),
            images: true,
            deploy: true,
        }
    }
}

/// What is the provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Provider {
    /// The embedded one.
    Embedded(Stamped),
    /// `faasd provider`.
    Faasd(Stamped),
}

/// A program whose file may be replaced by a newer one of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamped {
    /// Where it is.
    pub(crate) program: PathBuf,
    /// Its size, and when it was written.
    stamp: (u64, SystemTime),
}

impl Stamped {
    /// The program as it is now.
    pub(crate) fn of(program: &Path) -> Result<Self> {
        let stamp = fs::metadata(program).and_then(|metadata| Ok((metadata.len(), metadata.modified()?)));
        Ok(Self {
            program: program.to_owned(),
            stamp: stamp.at("read", program)?,
        })
    }
}

impl Provider {
    /// Whether the registry asks for a password: faasd pulls without credentials.
    pub(crate) fn closed_registry(&self) -> bool {
        matches!(self, Self::Embedded(_))
    }
}

/// Everything that the supervisor needs to know; no secret is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) number: Number,
    /// The launcher whose supervisor it is: another one may not understand it.
    pub(crate) launcher: Stamped,
    pub(crate) tools: Tools,
    /// docker-registry.
    pub(crate) registry: PathBuf,
    pub(crate) provider: Provider,
    /// builder-fn, to be run as a plain process.
    pub(crate) builder: PathBuf,
    pub(crate) ack_wait_seconds: u64,
}

impl Plan {
    /// Reads the plan of a stack; nothing where there is no such stack.
    pub(crate) fn read(dir: &StackDir) -> Result<Option<Self>> {
        read(dir.plan())
    }

    /// The registry, as it stands in image references: one name on the machine, in BuildKit and in the provider.
    pub(crate) fn registry_host(&self) -> String {
        match self.provider {
            Provider::Embedded(_) => self.number.registry().to_string(),
            Provider::Faasd(_) => self.number.loopback_registry().to_string(),
        }
    }

    /// Reads the plan that a stack had; nothing too where a launcher of another version made it.
    pub(crate) fn earlier(dir: &StackDir) -> Option<Self> {
        Self::read(dir).ok().flatten()
    }

    /// Writes the plan.
    pub(crate) fn write(&self, dir: &StackDir) -> Result<()> {
        write(dir.plan(), self)
    }
}

/// Which processes are a running stack's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    /// The process whose end is the end of all of it.
    pub(crate) holder: u32,
    /// When that process was started, in the kernel's ticks: process ids are used again.
    pub(crate) started: u64,
    /// The stack's number, which is its interface's.
    pub(crate) number: Number,
    /// The stack's control groups.
    pub(crate) groups: Vec<PathBuf>,
}

impl Running {
    /// Reads what is known of the running stack.
    pub(crate) fn read(dir: &StackDir) -> Result<Option<Self>> {
        read(dir.running())
    }

    /// Writes it.
    pub(crate) fn write(&self, dir: &StackDir) -> Result<()> {
        write(dir.running(), self)
    }

    /// Whether the holder is still there.
    pub(crate) fn alive(&self) -> bool {
        started(self.holder) == Some(self.started)
    }
}

/// When a process was started, or nothing where it has ended (proc(5), `/proc/PID/stat`, fields 3 and 22).
pub(crate) fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    fields.nth(18)?.parse().ok().filter(|_| state != "Z")
}

fn read<T: DeserializeOwned>(path: PathBuf) -> Result<Option<T>> {
    let text = match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.at("read", &path)?,
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|source| Error::Damaged { path, source })
}

fn write(path: PathBuf, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).map_err(|source| Error::Damaged {
        path: path.clone(),
        source,
    })?;
    write_private(&path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_runs_has_a_start_and_one_that_ended_has_none() {
        assert!(started(std::process::id()).is_some());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert_eq!(started(child.id()), None);
    }

    #[test]
    fn another_process_with_the_holders_id_is_not_the_holder() {
        let started = started(std::process::id()).unwrap();
        let mut running = Running {
            holder: std::process::id(),
            started,
            number: Number::FIRST,
            groups: Vec::new(),
        };
        assert!(running.alive());
        running.started += 1;
        assert!(!running.alive());
    }
}
