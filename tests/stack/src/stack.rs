//! A running stack, for tests and commands.

pub(crate) mod external;

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use crate::{
    command::{command, run_with_input, tail},
    control::{Command, ControlClient, Event, PartStatus},
    credentials::Credentials,
    directories::{Directories, StackDir},
    error::{Error, IoResultExt as _, Result},
    image,
    part::Part,
    plan::{Plan, Provider, RunningStack},
    supervisor,
    tools::Tools,
};

/// The number of log lines in the error about a part.
const TAIL_LINES: usize = 30;

/// A running stack, with the addresses of its parts and its credentials.
#[derive(Debug, Clone)]
pub struct Stack {
    /// The directory of the stack.
    pub dir: StackDir,
    /// The stack's OpenFaaS gateway.
    pub gateway: Gateway,
    /// The URL of builder-fn without the gateway, without a trailing slash.
    pub builder_url: String,
    /// The stack's image registry.
    pub registry: Registry,
    /// The address of the stack's BuildKit daemon, in the notation of `buildctl` and builder-fn.
    pub buildkit_host: String,
    /// The file with the key that signs build requests.
    pub payload_secret: PathBuf,
    /// The file with the key that signs hand-overs.
    pub deploy_secret: PathBuf,
    /// The paths of the stack's programs.
    pub tools: Tools,
    /// The reference of the base image that compiles Rust.
    pub(crate) rust_image: String,
    /// The plan of the stack; `None` for an external stack.
    pub(crate) plan: Option<Plan>,
}

/// The address and credentials of a stack's OpenFaaS gateway.
#[derive(Clone)]
pub struct Gateway {
    /// The URL of the gateway, without a trailing slash.
    pub url: String,
    /// The user name of the gateway's administrator.
    pub user: String,
    /// The password of the gateway's administrator.
    pub password: String,
}

/// The address and credentials of a stack's registry, over plain HTTP.
#[derive(Clone)]
pub struct Registry {
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
    pub fn load(name: &str) -> Result<Option<Self>> {
        if name == external::NAME {
            return external::from_env().map(Some);
        }
        let dir = Directories::from_env()?.stack(name)?;
        let (Some(plan), Some(running)) = (Plan::read(&dir)?, RunningStack::read(&dir)?) else {
            return Ok(None);
        };
        if !running.is_alive() {
            return Ok(None);
        }
        Self::from_plan(dir, plan).map(Some)
    }

    /// Returns the path of the registry's program, for tests that start a registry of their own.
    pub fn registry_program(&self) -> PathBuf {
        match &self.plan {
            Some(plan) => plan.registry.clone(),
            None => PathBuf::from("docker-registry"),
        }
    }

    /// Creates the handle of the stack with this plan, and reads the stack's credentials.
    pub(crate) fn from_plan(dir: StackDir, plan: Plan) -> Result<Self> {
        let credentials = Credentials::read(&dir, plan.provider.registry_requires_password())?;
        let (user, password) = credentials
            .registry
            .map(|login| (login.user, login.password))
            .unwrap_or_default();
        let number = plan.number;
        Ok(Self {
            gateway: Gateway {
                url: number.gateway_url(),
                user: credentials.gateway.user,
                password: credentials.gateway.password,
            },
            builder_url: number.builder_url(),
            registry: Registry {
                host: plan.registry_host(),
                user,
                password,
            },
            buildkit_host: format!("unix://{}", dir.sockets().join("buildkitd.sock").display()),
            payload_secret: dir.secrets().join("payload-secret"),
            deploy_secret: dir.secrets().join("deploy-secret"),
            tools: plan.tools.clone(),
            rust_image: image::rust(&plan.registry_host()),
            dir,
            plan: Some(plan),
        })
    }

    /// Returns the stack's name.
    pub fn name(&self) -> &str {
        &self.dir.name
    }

    /// Returns whether the stack's parts can be stopped and started; `false` for an external stack.
    pub fn has_parts(&self) -> bool {
        self.plan.is_some()
    }

    /// Returns whether the stack's registry requires a password. With faasd it does not, because faasd pulls
    /// without credentials.
    pub fn registry_requires_password(&self) -> bool {
        !self.registry.user.is_empty()
    }

    /// Returns whether the provider keeps the old version of a function answering until the new version
    /// answers.
    pub fn has_rolling_updates(&self) -> bool {
        matches!(
            self.plan,
            Some(Plan {
                provider: Provider::Embedded(_),
                ..
            })
        )
    }

    /// Returns the reference of the base image that compiles Rust.
    pub fn rust_image(&self) -> String {
        self.rust_image.clone()
    }

    /// Returns the directory of the secrets that Slipway's functions mount, one file each, by name.
    pub(crate) fn secrets(&self) -> PathBuf {
        self.dir.secrets()
    }

    /// Returns the directory of the stack's programs for users, to be put in front of `PATH`.
    pub fn bin(&self) -> PathBuf {
        self.dir.bin()
    }

    /// Returns the environment variables for using the stack with ordinary tools. `PATH` is not among them:
    /// [`Stack::bin`] is to be added to it.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let Self {
            gateway, registry, ..
        } = self;
        vec![
            ("OPENFAAS_URL", gateway.url.clone()),
            ("OPENFAAS_USER", gateway.user.clone()),
            ("OPENFAAS_PASSWORD", gateway.password.clone()),
            ("BUILDER_URL", self.builder_url.clone()),
            ("PAYLOAD_SECRET", self.payload_secret.display().to_string()),
            ("REGISTRY", registry.host.clone()),
            ("REGISTRY_USER", registry.user.clone()),
            ("REGISTRY_PASSWORD", registry.password.clone()),
            ("BUILDKIT_HOST", self.buildkit_host.clone()),
        ]
    }

    /// Returns the URL of the builder-fn that runs as a plain process.
    pub(crate) fn plain_builder_url(&self) -> Result<String> {
        Ok(self.plan()?.number.plain_builder_url())
    }

    /// Logs in to the gateway with faas-cli, and returns the directory for faas-cli's `OPENFAAS_CONFIG`.
    pub async fn login(&self) -> Result<PathBuf> {
        let config_dir = self.dir.home().join("openfaas");
        // A stack that is started again may have another address, so an older login is replaced.
        let config = fs::read_to_string(config_dir.join("config.yml"));
        if config.is_ok_and(|config| config.contains(&self.gateway.url)) {
            return Ok(config_dir);
        }
        let mut faas_cli = command(&self.tools.faas_cli);
        faas_cli.args([
            "login",
            "--gateway",
            &self.gateway.url,
            "--username",
            &self.gateway.user,
            "--password-stdin",
        ]);
        run_with_input(
            faas_cli.env("OPENFAAS_CONFIG", &config_dir),
            self.gateway.password.as_bytes(),
        )
        .await?;
        Ok(config_dir)
    }

    /// Returns the process id of the stack's supervisor on this machine. `/proc/PID/net` is the stack's
    /// network, `/proc/PID/root` the stack's file system.
    pub fn supervisor_pid(&self) -> Result<u32> {
        let socket = self.dir.control();
        let stream = UnixStream::connect(&socket).at("connect to", &socket)?;
        let peer = rustix::net::sockopt::socket_peercred(&stream)
            .at("read the process id of the listener on", &socket)?;
        Ok(peer.pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// Returns the process id of the stack's holder, whose end ends the stack.
    pub fn holder_pid(&self) -> Result<u32> {
        let running = RunningStack::read(&self.dir)?;
        running
            .map(|running| running.holder)
            .ok_or_else(|| Error::Environment(format!("stack {:?} is not running", self.name())))
    }

    /// Asks the supervisor for the state of each part of the stack.
    pub async fn status(&self) -> Result<Vec<PartStatus>> {
        match self.send(Command::Status).await? {
            Event::Status { parts } => Ok(parts),
            other => Err(Error::UnexpectedAnswer(format!("{other:?}"))),
        }
    }

    /// Stops a part of the stack, which stays stopped until it is started.
    pub async fn stop(&self, part: Part) -> Result<()> {
        self.send(Command::Stop { part }).await.map(drop)
    }

    /// Starts a part of the stack and waits until it is ready.
    pub async fn start(&self, part: Part) -> Result<()> {
        self.send(Command::Start { part }).await.map(drop)
    }

    /// Returns the last lines of a part's log.
    pub fn log_tail(&self, part: Part, lines: usize) -> String {
        log_tail(&self.dir.log(part.name()), lines)
    }

    async fn send(&self, command: Command) -> Result<Event> {
        self.plan()?;
        let answer = ControlClient::connect(&self.dir.control())
            .await?
            .send(command, |_| ())
            .await?;
        check_answer(&self.dir, answer)
    }

    /// Reads the credentials of the stack from its directory.
    pub(crate) fn credentials(&self) -> Result<Credentials> {
        Credentials::read(&self.dir, self.plan()?.provider.registry_requires_password())
    }

    /// Returns the stack's plan; fails for an external stack.
    pub(crate) fn plan(&self) -> Result<&Plan> {
        self.plan.as_ref().ok_or(Error::ExternalStack)
    }
}

/// Converts a supervisor's answer that a part failed to an error with the end of the part's log.
pub(crate) fn check_answer(dir: &StackDir, answer: Event) -> Result<Event> {
    match answer {
        Event::Failed { part, reason } => {
            let log = dir.log(part.name());
            Err(Error::NotReady {
                part,
                reason,
                tail: log_tail(&log, TAIL_LINES),
                log,
            })
        }
        other => Ok(other),
    }
}

/// Returns the last lines of a part's log, whether the stack runs or not.
pub fn part_log_tail(name: &str, part: Part, lines: usize) -> Result<String> {
    let log = Directories::from_env()?.stack(name)?.log(part.name());
    let mut text = String::new();
    // A rotated log may be short; the older lines precede it.
    for path in [supervisor::rotated_log_path(&log), log] {
        text.push_str(&String::from_utf8_lossy(&fs::read(path).unwrap_or_default()));
    }
    Ok(tail(&text, lines))
}

/// Returns the last lines of a log file.
pub(crate) fn log_tail(log: &Path, lines: usize) -> String {
    tail(
        &String::from_utf8_lossy(&fs::read(log).unwrap_or_default()),
        lines,
    )
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway")
            .field("url", &self.url)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("host", &self.host)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}
