//! A running stack, for tests and commands.

pub(crate) mod external;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    address::{BRIDGE_ADDRESS, NATS_MONITOR_PORT, NATS_PORT, PROVIDER_PORT},
    command::{last_lines_each_cut, new_command, run_program_with_input},
    control::{self, CommandAnswerEvent, ControlClient, PartStateAndDuration, SupervisorCommand},
    credentials::GatewayAndRegistryLogins,
    directories::{LauncherDirectories, StackDir},
    error::{LauncherError, Result},
    image,
    part::{StackPart, SupervisedPart},
    plan::{ProviderChoice, RunningStackState, StackPlan},
    supervisor::{self, StackDirAndPlan},
    tools::ToolPaths,
};

/// The number of log lines in the error about a part.
const PART_LOG_TAIL_LINES: usize = 30;

/// A running stack, with the addresses of its parts and its credentials.
#[derive(Debug, Clone)]
pub struct Stack {
    /// The stack's name and the path of its directory.
    pub dir: StackDir,
    /// The address of the stack's OpenFaaS gateway, with the administrator's user name and password.
    pub gateway: GatewayAccess,
    /// The URL of builder-fn, without a trailing slash: at its own port, or, if an external stack names no such URL, at
    /// the gateway.
    pub builder_url: String,
    /// The address of the stack's image registry, with a user name and password.
    pub registry: RegistryAccess,
    /// The address of the stack's BuildKit daemon, in the notation of `buildctl` and builder-fn.
    pub buildkit_host: String,
    /// The file with the key that signs build requests.
    pub payload_secret: PathBuf,
    /// The file with the key that signs hand-overs.
    pub deploy_secret: PathBuf,
    /// The paths of the stack's programs.
    pub tools: ToolPaths,
    /// The reference of the base image that compiles Rust.
    pub(crate) rust_image: String,
    /// The plan of the stack; `None` for an external stack.
    pub(crate) plan: Option<StackPlan>,
}

/// The address and credentials of a stack's OpenFaaS gateway.
#[derive(Clone)]
pub struct GatewayAccess {
    /// The URL of the gateway, without a trailing slash.
    pub url: String,
    /// The user name of the gateway's administrator.
    pub user: String,
    /// The password of the gateway's administrator.
    pub password: String,
}

impl GatewayAccess {
    /// Returns whether a `config.yml` of faas-cli contains this URL and the token of this user and password.
    fn url_and_token_occur_in_faas_cli_config(&self, config: &str) -> bool {
        let token = STANDARD.encode(format!("{}:{}", self.user, self.password));
        config.contains(&self.url) && config.contains(&token)
    }
}

/// The address and credentials of a stack's registry, over plain HTTP.
#[derive(Clone)]
pub struct RegistryAccess {
    /// The host and port of the registry, as in image references.
    pub host: String,
    /// The user name for the registry; empty if no password is required.
    pub user: String,
    /// The password for the registry; empty if none is required.
    pub password: String,
}

impl Stack {
    /// Loads the running stack with this name; returns `None` if the stack does not run.
    ///
    /// The name `external` stands for an OpenFaaS that was not started by this launcher; the environment
    /// describes it.
    pub fn load_running(name: &str) -> Result<Option<Self>> {
        if name == external::EXTERNAL_STACK_NAME {
            return external::external_stack_from_env().map(Some);
        }
        let dir = LauncherDirectories::from_env()?.stack_directory(name)?;
        let (Some(plan), Some(running)) = (
            StackPlan::read_plan(&dir)?,
            RunningStackState::read_state_if_running_or_killed(&dir)?,
        ) else {
            return Ok(None);
        };
        if !running.holder_is_alive() {
            return Ok(None);
        }
        Self::from_plan(dir, plan).map(Some)
    }

    /// Returns the command that runs the stack's gateway with the provider at this URL; it belongs into the stack's
    /// network. The stack's own gateway has to be stopped. Fails for an external stack.
    pub fn gateway_command_in_place_of_stacks_own(&self, provider_url: &str) -> Result<Command> {
        Ok(self.part_spec_source()?.gateway_command(provider_url))
    }

    /// Returns the command that runs one more queue-worker, whose calls are delivered again after `ack_wait`; it
    /// belongs into the stack's network. Each queue-worker needs a hostname of its own. Fails for an external stack.
    pub fn queue_worker_command(&self, ack_wait: Duration) -> Result<Command> {
        Ok(self.part_spec_source()?.queue_worker_command(ack_wait.as_secs()))
    }

    /// Returns the URL of the stack's provider within the stack's network, without a trailing slash.
    pub fn provider_url_in_stack_network(&self) -> String {
        format!("http://{BRIDGE_ADDRESS}:{PROVIDER_PORT}")
    }

    /// Returns the address of the monitoring of NATS Streaming within the stack's network.
    pub fn nats_monitor_address_in_stack_network(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, NATS_MONITOR_PORT).into()
    }

    /// Returns the address of NATS Streaming within the stack's network, for clients of NATS.
    pub fn nats_address_in_stack_network(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, NATS_PORT).into()
    }

    /// Returns the name of the stack's NATS Streaming cluster, which clients have to know.
    pub fn nats_cluster_name(&self) -> &'static str {
        supervisor::NATS_CLUSTER_NAME
    }

    /// Returns the address of this machine for processes in the stack's network. Fails for an external stack.
    pub fn machine_address(&self) -> Result<Ipv4Addr> {
        Ok(self.plan()?.number.machines_end_address())
    }

    fn part_spec_source(&self) -> Result<StackDirAndPlan> {
        Ok(StackDirAndPlan {
            dir: self.dir.clone(),
            plan: self.plan()?.clone(),
        })
    }

    /// Returns the path of the registry's program, for tests that start a registry of their own; for an external stack,
    /// its name in `PATH`.
    pub fn registry_program_path_or_name(&self) -> PathBuf {
        match &self.plan {
            Some(plan) => plan.registry.clone(),
            None => PathBuf::from("docker-registry"),
        }
    }

    /// Creates the handle of the stack with this plan, and reads the stack's credentials.
    pub(crate) fn from_plan(dir: StackDir, plan: StackPlan) -> Result<Self> {
        let credentials =
            GatewayAndRegistryLogins::read_existing(&dir, plan.provider.registry_requires_password())?;
        let (user, password) = credentials
            .registry
            .map(|login| (login.user, login.password))
            .unwrap_or_default();
        let number = plan.number;
        Ok(Self {
            gateway: GatewayAccess {
                url: number.gateway_url(),
                user: credentials.gateway.user,
                password: credentials.gateway.password,
            },
            builder_url: number.direct_builder_url(),
            registry: RegistryAccess {
                host: plan.registry_host_and_port(),
                user,
                password,
            },
            buildkit_host: format!(
                "unix://{}",
                dir.sockets_directory().join("buildkitd.sock").display()
            ),
            payload_secret: dir.secrets_directory().join("payload-secret"),
            deploy_secret: dir.secrets_directory().join("deploy-secret"),
            tools: plan.tools.clone(),
            rust_image: image::rust_image_reference(&plan.registry_host_and_port()),
            dir,
            plan: Some(plan),
        })
    }

    /// Returns the stack's name.
    pub fn name(&self) -> &str {
        &self.dir.name
    }

    /// Returns whether the stack's parts can be stopped and started; `false` for an external stack.
    pub fn can_stop_parts(&self) -> bool {
        self.plan.is_some()
    }

    /// Returns whether the stack's registry requires a password. With faasd it does not, because faasd pulls
    /// without credentials.
    pub fn registry_requires_password(&self) -> bool {
        !self.registry.user.is_empty()
    }

    /// Returns whether the provider is known to keep the old version of a function answering until the new version
    /// answers: `true` for the embedded provider only.
    pub fn is_known_to_have_rolling_updates(&self) -> bool {
        matches!(
            self.plan,
            Some(StackPlan {
                provider: ProviderChoice::Embedded(_),
                ..
            })
        )
    }

    /// Returns the reference of the base image that compiles Rust.
    pub fn rust_image(&self) -> String {
        self.rust_image.clone()
    }

    /// Returns the directory of the secrets that Slipway's functions mount, one file each, by name.
    pub(crate) fn secrets_directory(&self) -> PathBuf {
        self.dir.secrets_directory()
    }

    /// Returns the directory of the stack's programs for users, to be put in front of `PATH`.
    pub fn programs_directory(&self) -> PathBuf {
        self.dir.programs_directory()
    }

    /// Returns the environment variables for using the stack with ordinary tools. `PATH` is not among them:
    /// [`Stack::programs_directory`] is to be added to it.
    pub fn environment_variables(&self) -> Vec<(&'static str, String)> {
        let Self {
            gateway, registry, ..
        } = self;
        vec![
            ("OPENFAAS_URL", gateway.url.clone()),
            ("OPENFAAS_USER", gateway.user.clone()),
            ("OPENFAAS_PASSWORD", gateway.password.clone()),
            ("BUILDER_URL", self.builder_url.clone()),
            ("PAYLOAD_SECRET", self.payload_secret.display().to_string()),
            ("DEPLOY_SECRET", self.deploy_secret.display().to_string()),
            ("REGISTRY", registry.host.clone()),
            ("SLIPWAY_BUILDER_URL", self.builder_url.clone()),
            (
                "SLIPWAY_PAYLOAD_SECRET_FILE",
                self.payload_secret.display().to_string(),
            ),
            ("SLIPWAY_REGISTRY", registry.host.clone()),
            ("SLIPWAY_BUILD_ARGS", format!("RUST_IMAGE={}", self.rust_image())),
            ("REGISTRY_USER", registry.user.clone()),
            ("REGISTRY_PASSWORD", registry.password.clone()),
            ("BUILDKIT_HOST", self.buildkit_host.clone()),
        ]
    }

    /// Returns the URL of the builder-fn that runs as a plain process.
    pub(crate) fn builder_process_url(&self) -> Result<String> {
        Ok(self.plan()?.number.builder_process_url())
    }

    /// Logs in to the gateway with faas-cli, unless this login is stored already, and returns the directory for
    /// faas-cli's `OPENFAAS_CONFIG`.
    pub async fn login_with_faas_cli_and_return_config_dir(&self) -> Result<PathBuf> {
        let config_dir = self.dir.home_of_parts().join("openfaas");
        let config = fs::read_to_string(config_dir.join("config.yml"));
        if config.is_ok_and(|config| self.gateway.url_and_token_occur_in_faas_cli_config(&config)) {
            return Ok(config_dir);
        }
        let mut faas_cli = new_command(&self.tools.faas_cli);
        faas_cli.args([
            "login",
            "--gateway",
            &self.gateway.url,
            "--username",
            &self.gateway.user,
            "--password-stdin",
        ]);
        run_program_with_input(
            faas_cli.env("OPENFAAS_CONFIG", &config_dir),
            self.gateway.password.as_bytes(),
        )
        .await?;
        Ok(config_dir)
    }

    /// Returns the process id of the stack's supervisor on this machine. `/proc/PID/net` is the stack's
    /// network, `/proc/PID/root` the stack's file system.
    pub fn supervisor_pid(&self) -> Result<u32> {
        control::supervisor_pid(&self.dir.control_socket())
    }

    /// Returns the process id of the stack's holder, whose end ends the stack.
    pub fn recorded_holder_pid(&self) -> Result<u32> {
        let running = RunningStackState::read_state_if_running_or_killed(&self.dir)?;
        running
            .map(|running| running.holder)
            .ok_or_else(|| LauncherError::Environment(format!("stack {:?} is not running", self.name())))
    }

    /// Asks the supervisor for the state of each part of the stack that was started at least once.
    pub async fn statuses_of_parts_ever_started(&self) -> Result<Vec<PartStateAndDuration>> {
        match self
            .send_command_or_fail_if_part_failed(SupervisorCommand::Status)
            .await?
        {
            CommandAnswerEvent::Status { parts } => Ok(parts),
            other => Err(LauncherError::UnexpectedAnswer(format!("{other:?}"))),
        }
    }

    /// Stops a part of the stack, which stays stopped until it is started.
    pub async fn stop_part(&self, part: StackPart) -> Result<()> {
        self.send_command_or_fail_if_part_failed(SupervisorCommand::Stop { part })
            .await
            .map(drop)
    }

    /// Starts a part of the stack and waits until it is ready.
    pub async fn start_part(&self, part: StackPart) -> Result<()> {
        self.send_command_or_fail_if_part_failed(SupervisorCommand::Start { part })
            .await
            .map(drop)
    }

    /// Returns the last lines of a part's current log file, without the rotated file before it.
    pub fn current_part_log_tail_or_empty(&self, part: StackPart, lines: usize) -> String {
        current_log_file_tail_or_empty(&self.dir.part_log_file(part.name()), lines)
    }

    /// Sends a command to the stack's supervisor, and returns the final event of its answer; fails for an external
    /// stack and for a part that did not become ready.
    async fn send_command_or_fail_if_part_failed(
        &self,
        command: SupervisorCommand,
    ) -> Result<CommandAnswerEvent> {
        self.plan()?;
        let answer = ControlClient::connect_to_supervisor(&self.dir.control_socket())
            .await?
            .send_command_and_return_done_failed_or_status(command, |_| ())
            .await?;
        part_failure_as_error(&self.dir, answer)
    }

    /// Reads the credentials of the stack from its directory.
    pub(crate) fn credentials(&self) -> Result<GatewayAndRegistryLogins> {
        GatewayAndRegistryLogins::read_existing(&self.dir, self.plan()?.provider.registry_requires_password())
    }

    /// Returns the stack's plan; fails for an external stack.
    pub(crate) fn plan(&self) -> Result<&StackPlan> {
        self.plan.as_ref().ok_or(LauncherError::ExternalStack)
    }
}

/// Converts a supervisor's answer that a part failed to an error with the end of the part's log.
pub(crate) fn part_failure_as_error<P: SupervisedPart>(
    dir: &StackDir,
    answer: CommandAnswerEvent<P>,
) -> Result<CommandAnswerEvent<P>> {
    match answer {
        CommandAnswerEvent::Failed { part, reason } => {
            let part = part.to_string();
            let log = dir.part_log_file(&part);
            Err(LauncherError::NotReady {
                part,
                reason,
                tail: current_log_file_tail_or_empty(&log, PART_LOG_TAIL_LINES),
                log,
            })
        }
        other => Ok(other),
    }
}

/// Returns the last lines of the log of a part of the named stack, whether it runs or not; empty if there is no log.
pub fn part_log_tail_with_rotated_or_empty(
    stack_name: &str,
    part: StackPart,
    lines: usize,
) -> Result<String> {
    let log = LauncherDirectories::from_env()?
        .stack_directory(stack_name)?
        .part_log_file(part.name());
    let mut text = String::new();
    // A rotated log may be short; the older lines precede it.
    for path in [supervisor::rotated_log_path(&log), log] {
        text.push_str(&String::from_utf8_lossy(&fs::read(path).unwrap_or_default()));
    }
    Ok(last_lines_each_cut(&text, lines))
}

/// Returns the last lines of a log file; empty if it cannot be read.
pub(crate) fn current_log_file_tail_or_empty(log: &Path, lines: usize) -> String {
    last_lines_each_cut(
        &String::from_utf8_lossy(&fs::read(log).unwrap_or_default()),
        lines,
    )
}

impl std::fmt::Debug for GatewayAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway")
            .field("url", &self.url)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for RegistryAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("host", &self.host)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_login_with_another_address_or_password_is_not_used() {
        let access = |url: &str, password: &str| GatewayAccess {
            url: url.into(),
            user: "admin".into(),
            password: password.into(),
        };
        // The format of faas-cli's `config.yml`; the token is `admin:first` in base64.
        let config = "auths:\n- gateway: http://10.63.1.2:8080\n  auth: basic\n  token: YWRtaW46Zmlyc3Q=\n";
        assert!(access("http://10.63.1.2:8080", "first").url_and_token_occur_in_faas_cli_config(config));
        assert!(!access("http://10.63.1.2:8080", "second").url_and_token_occur_in_faas_cli_config(config));
        assert!(!access("http://10.63.2.2:8080", "first").url_and_token_occur_in_faas_cli_config(config));
    }
}
