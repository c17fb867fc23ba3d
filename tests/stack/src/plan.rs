//! The plan of a stack and the state of a running stack, stored for the supervisor and for later commands.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    address::StackNumber,
    directories::{StackDir, write_private_file},
    egress::{BuildkitAndStepsPublicAccess, Ipv4Network, ResolvedTenantStepRule, TenantStepNetworkRule},
    error::{IoResultExt as _, LauncherError, Result},
    limits::StepResourceLimits,
    tools::ToolPaths,
};

/// Options for starting a stack.
#[derive(Debug, Clone)]
pub struct StackOptions {
    /// The name of the stack; several stacks can run side by side.
    pub name: String,
    /// A `faasd` binary to use as the provider in place of the embedded one.
    pub faasd: Option<PathBuf>,
    /// A `gateway` binary to use in place of the one built from the pinned module.
    pub gateway: Option<PathBuf>,
    /// A `faas-cli` binary to use in place of the one built from the pinned module.
    pub faas_cli: Option<PathBuf>,
    /// The time after which the gateway's queue redelivers a call that was not acknowledged.
    pub ack_wait: Duration,
    /// What BuildKit and build steps may reach besides public addresses: addresses, networks such as `10.1.0.0/16`,
    /// and names, which are resolved when the stack is started.
    pub allowed: Vec<String>,
    /// Whether BuildKit and build steps reach public addresses: both, BuildKit alone, or neither. Functions always do,
    /// and tenants in `tenant_networks` have their own rules.
    pub public: BuildkitAndStepsPublicAccess,
    /// The tenants whose build steps have rules of their own instead of `allowed` and `public`.
    pub tenant_networks: Vec<TenantStepNetworkRule>,
    /// The limits of build steps; `None` for those of this machine.
    pub limits: Option<StepResourceLimits>,
    /// Whether to push the base images that compile Rust to the stack's registry.
    pub images: bool,
    /// Whether to deploy Slipway on the stack, which needs the base images.
    pub deploy: bool,
}

impl StackOptions {
    /// Returns the default options for a stack with this name: with base images and Slipway.
    pub fn with_stack_name(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            faasd: None,
            gateway: None,
            faas_cli: None,
            // Longer than the gateway's timeout for a call: a shorter time would redeliver calls that still
            // run (docs/pitfalls.md#redelivery).
            ack_wait: Duration::from_secs(36 * 60),
            allowed: Vec::new(),
            public: BuildkitAndStepsPublicAccess::All,
            tenant_networks: Vec::new(),
            limits: None,
            images: true,
            deploy: true,
        }
    }
}

/// The provider of a stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ProviderChoice {
    /// The development provider of this repository.
    Embedded(ProgramFileStamp),
    /// faasd, run as `faasd provider`.
    Faasd(ProgramFileStamp),
}

/// A program's file, with a stamp that changes when a newer program replaces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProgramFileStamp {
    /// The path of the program, of which the stamp was taken.
    pub(crate) program: PathBuf,
    /// The size in bytes and the modification time of the program's file.
    stamp: (u64, SystemTime),
}

impl ProgramFileStamp {
    /// Reads the current stamp of a program's file.
    pub(crate) fn read_stamp(program: &Path) -> Result<Self> {
        let stamp = fs::metadata(program).and_then(|metadata| Ok((metadata.len(), metadata.modified()?)));
        Ok(Self {
            program: program.to_owned(),
            stamp: stamp.with_operation("read", program)?,
        })
    }
}

impl ProviderChoice {
    /// Returns whether the stack's registry requires a password. With faasd it cannot, because faasd pulls
    /// without credentials.
    pub(crate) fn registry_requires_password(&self) -> bool {
        matches!(self, Self::Embedded(_))
    }
}

/// The plan of a stack, which is the supervisor's input; it contains no secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StackPlan {
    pub(crate) number: StackNumber,
    /// The launcher that starts the supervisor. A supervisor of another build may not understand its
    /// commands.
    pub(crate) launcher: ProgramFileStamp,
    pub(crate) tools: ToolPaths,
    /// The path of the docker-registry program.
    pub(crate) registry: PathBuf,
    pub(crate) provider: ProviderChoice,
    /// The path of the builder-fn program that runs as a plain process.
    pub(crate) builder: PathBuf,
    /// The time in seconds after which the gateway's queue redelivers a call that was not acknowledged.
    pub(crate) ack_wait_seconds: u64,
    /// The networks that BuildKit and build steps may reach besides public ones.
    #[serde(default)]
    pub(crate) allowed: Vec<Ipv4Network>,
    /// Whether BuildKit and build steps reach public addresses: both, BuildKit alone, or neither. Functions always do,
    /// and `tenants` have their own rules.
    #[serde(default)]
    pub(crate) public: BuildkitAndStepsPublicAccess,
    /// The tenants whose build steps have rules of their own.
    #[serde(default)]
    pub(crate) tenants: Vec<ResolvedTenantStepRule>,
    /// The limits of build steps; `None` in the plan of a stack that an earlier launcher started.
    #[serde(default)]
    pub(crate) limits: Option<StepResourceLimits>,
    /// The time at which BuildKit's certificates expire, in seconds since 1970; 0 before they are made.
    #[serde(default)]
    pub(crate) certificates_expire: u64,
}

impl StackPlan {
    /// Reads the stored plan of a stack; returns `None` if the stack was never started or its data is removed.
    pub(crate) fn read_plan(dir: &StackDir) -> Result<Option<Self>> {
        read_json_file(dir.plan_file())
    }

    /// Returns the registry's host and port in image references: the same on the machine, in BuildKit and in
    /// the provider (docs/pitfalls.md#names-of-the-registry).
    pub(crate) fn registry_host_and_port(&self) -> String {
        match self.provider {
            ProviderChoice::Embedded(_) => self.number.registry_address().to_string(),
            ProviderChoice::Faasd(_) => self.number.loopback_registry_address_for_faasd().to_string(),
        }
    }

    /// Reads the plan that an earlier start of the stack has stored; returns `None` if no plan is stored, or if this
    /// version of the launcher cannot parse it.
    pub(crate) fn read_earlier_plan_if_parsable(dir: &StackDir) -> Option<Self> {
        Self::read_plan(dir).ok().flatten()
    }

    /// Returns the limits of build steps: the plan's, or those of this machine if the plan has none.
    pub(crate) fn step_limits_or_this_machines(&self) -> Result<StepResourceLimits> {
        self.limits.map_or_else(StepResourceLimits::for_this_machine, Ok)
    }

    /// Writes the plan to the stack's directory.
    pub(crate) fn write_plan(&self, dir: &StackDir) -> Result<()> {
        write_json_file(dir.plan_file(), self)
    }
}

/// The state of a running stack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunningStackState {
    /// The process id of the stack's holder, whose end ends the stack.
    pub(crate) holder: u32,
    /// The start time of the stack's holder in kernel ticks, because process ids are reused.
    pub(crate) started: u64,
    /// The number of the stack, which is also in the name of its interface.
    pub(crate) number: StackNumber,
    /// The directories of the stack's control groups.
    pub(crate) groups: Vec<PathBuf>,
}

impl RunningStackState {
    /// Reads the state of a stack that runs or was killed; returns `None` if the stack was stopped or never started.
    pub(crate) fn read_state_if_running_or_killed(dir: &StackDir) -> Result<Option<Self>> {
        read_json_file(dir.running_state_file())
    }

    /// Writes the state of the running stack to its directory.
    pub(crate) fn write_running_state(&self, dir: &StackDir) -> Result<()> {
        write_json_file(dir.running_state_file(), self)
    }

    /// Returns whether the stack's holder still runs.
    pub(crate) fn holder_is_alive(&self) -> bool {
        process_start_ticks(self.holder) == Some(self.started)
    }
}

/// Returns the start time of a process in kernel ticks since boot, or `None` if it has ended (proc(5),
/// `/proc/PID/stat`, fields 3 and 22).
pub(crate) fn process_start_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain any character, including `)`.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    fields.nth(18)?.parse().ok().filter(|_| state != "Z")
}

/// Reads and parses a file; returns `None` if it does not exist.
pub(crate) fn read_json_file<T: DeserializeOwned>(path: PathBuf) -> Result<Option<T>> {
    let text = match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.with_operation("read", &path)?,
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|source| LauncherError::InvalidFile { path, source })
}

pub(crate) fn write_json_file(path: PathBuf, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).map_err(|source| LauncherError::InvalidFile {
        path: path.clone(),
        source,
    })?;
    write_private_file(&path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_running_process_has_start_ticks() {
        assert!(process_start_ticks(std::process::id()).is_some());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert_eq!(process_start_ticks(child.id()), None);
    }

    #[test]
    fn another_process_that_reuses_the_holders_id_is_not_the_holder() {
        let started = process_start_ticks(std::process::id()).unwrap();
        let mut running = RunningStackState {
            holder: std::process::id(),
            started,
            number: StackNumber::FIRST_STACK_NUMBER,
            groups: Vec::new(),
        };
        assert!(running.holder_is_alive());
        running.started += 1;
        assert!(!running.holder_is_alive());
    }
}
