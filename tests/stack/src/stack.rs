//! A running stack, as tests and commands use it.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use crate::{
    command::{command, run_with_input, tail},
    control::{Command, Conversation, Event, PartStatus},
    credentials::Credentials,
    error::{At as _, Error, Result},
    external, image,
    part::Part,
    places::{Places, StackDir},
    plan::{Plan, Provider, Running},
    supervisor,
    tools::Tools,
};

/// How much of a log an error carries, in lines.
const TAIL: usize = 30;

/// A running stack: where its parts are, and how to get in.
#[derive(Debug, Clone)]
pub struct Stack {
    /// Its directory.
    pub dir: PathBuf,
    /// The OpenFaaS gateway.
    pub gateway: Gateway,
    /// builder-fn without the gateway; no slash at the end.
    pub builder_url: String,
    /// The registry.
    pub registry: Registry,
    /// BuildKit, as `buildctl` and builder-fn take it.
    pub buildkit_host: String,
    /// The file with the key that build requests are signed with.
    pub payload_secret: PathBuf,
    /// The file with the key that hand-overs are signed with.
    pub deploy_secret: PathBuf,
    /// The stack's programs.
    pub tools: Tools,
    /// The base image that compiles Rust.
    pub(crate) rust_image: String,
    pub(crate) place: StackDir,
    /// What the launcher decided; nothing for a stack that somebody else runs.
    pub(crate) plan: Option<Plan>,
}

/// The OpenFaaS gateway.
#[derive(Clone)]
pub struct Gateway {
    /// Its address; no slash at the end.
    pub url: String,
    /// The administrator.
    pub user: String,
    /// The administrator's password.
    pub password: String,
}

/// The registry, over plain HTTP.
#[derive(Clone)]
pub struct Registry {
    /// Host and port, as in image references.
    pub host: String,
    /// The user; empty where no password is asked for.
    pub user: String,
    /// The password; empty where none is asked for.
    pub password: String,
}

impl Stack {
    /// The running stack of a name; nothing where none runs.
    ///
    /// The name `external` stands for an OpenFaaS that somebody else runs, described by the environment.
    pub fn load(name: &str) -> Result<Option<Self>> {
        if name == external::NAME {
            return external::from_env().map(Some);
        }
        let place = Places::from_env()?.stack(name)?;
        let (Some(plan), Some(running)) = (Plan::read(&place)?, Running::read(&place)?) else {
            return Ok(None);
        };
        if !running.alive() {
            return Ok(None);
        }
        Self::of(place, plan).map(Some)
    }

    /// The registry's program, for a registry of a test's own.
    pub fn registry_program(&self) -> PathBuf {
        match &self.plan {
            Some(plan) => plan.registry.clone(),
            None => PathBuf::from("docker-registry"),
        }
    }

    /// The stack of a plan, which has its credentials.
    pub(crate) fn of(place: StackDir, plan: Plan) -> Result<Self> {
        let credentials = Credentials::read(&place, plan.provider.closed_registry())?;
        let (user, password) = credentials
            .registry
            .map(|login| (login.user, login.password))
            .unwrap_or_default();
        let number = plan.number;
        Ok(Self {
            dir: place.root.clone(),
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
            buildkit_host: format!("unix://{}", place.sockets().join("buildkitd.sock").display()),
            payload_secret: place.secrets().join("payload-secret"),
            deploy_secret: place.secrets().join("deploy-secret"),
            tools: plan.tools.clone(),
            rust_image: image::rust(&plan.registry_host()),
            place,
            plan: Some(plan),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.place.name
    }

    /// Whether its parts can be stopped and started: not those of an OpenFaaS that somebody else runs.
    pub fn has_parts(&self) -> bool {
        self.plan.is_some()
    }

    /// Whether the registry asks for a password. With faasd it cannot: faasd pulls without one.
    pub fn registry_asks_for_a_password(&self) -> bool {
        !self.registry.user.is_empty()
    }

    /// Whether the provider keeps the old version of a function answering until the new one does.
    pub fn replaces_without_a_gap(&self) -> bool {
        matches!(
            self.plan,
            Some(Plan {
                provider: Provider::Embedded(_),
                ..
            })
        )
    }

    /// The base image that compiles Rust.
    pub fn rust_image(&self) -> String {
        self.rust_image.clone()
    }

    /// The base image with a small Debian.
    pub fn debian_image(&self) -> String {
        image::debian(&self.registry.host)
    }

    /// The secrets that Slipway's functions mount: a file each, by the name that they have there.
    pub fn secrets(&self) -> PathBuf {
        self.place.secrets()
    }

    /// A directory with the stack's programs for users, to be put in front of `PATH`.
    pub fn bin(&self) -> PathBuf {
        self.place.bin()
    }

    /// What a shell needs to use the stack with ordinary tools, but for its `PATH`, to which [`Stack::bin`] is added.
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

    /// builder-fn as a plain process, while it runs as one.
    pub(crate) fn plain_builder_url(&self) -> Result<String> {
        Ok(self.plan()?.number.plain_builder_url())
    }

    /// Logs faas-cli in and gives the directory for its `OPENFAAS_CONFIG`.
    pub async fn login(&self) -> Result<PathBuf> {
        let dir = self.place.home().join("openfaas");
        // A stack that is started again may have another address.
        let known = fs::read_to_string(dir.join("config.yml"));
        if known.is_ok_and(|known| known.contains(&self.gateway.url)) {
            return Ok(dir);
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
            faas_cli.env("OPENFAAS_CONFIG", &dir),
            self.gateway.password.as_bytes(),
        )
        .await?;
        Ok(dir)
    }

    /// The process id, on this machine, of the supervisor: its `/proc/PID/net` is the stack's network, its
    /// `/proc/PID/root` the stack's file system.
    pub fn supervisor_pid(&self) -> Result<u32> {
        let socket = self.place.control();
        let stream = UnixStream::connect(&socket).at("connect to", &socket)?;
        let peer = rustix::net::sockopt::socket_peercred(&stream).at("ask who listens on", &socket)?;
        Ok(peer.pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// The process id of the holder, whose end is the end of all of it.
    pub fn holder_pid(&self) -> Result<u32> {
        let running = Running::read(&self.place)?;
        running
            .map(|running| running.holder)
            .ok_or_else(|| Error::Machine(format!("{} does not run", self.name())))
    }

    /// How its parts are.
    pub async fn status(&self) -> Result<Vec<PartStatus>> {
        match self.ask(Command::Status).await? {
            Event::Status { parts } => Ok(parts),
            other => Err(Error::Refused(format!("unexpected answer: {other:?}"))),
        }
    }

    /// Stops a part; it stays stopped until it is started.
    pub async fn stop(&self, part: Part) -> Result<()> {
        self.ask(Command::Stop { part }).await.map(drop)
    }

    /// Starts a part and waits until it is ready.
    pub async fn start(&self, part: Part) -> Result<()> {
        self.ask(Command::Start { part }).await.map(drop)
    }

    /// Stops a part and starts it again.
    pub async fn restart(&self, part: Part) -> Result<()> {
        self.stop(part).await?;
        self.start(part).await
    }

    /// The last lines of a part's log.
    pub fn log_tail(&self, part: Part, lines: usize) -> String {
        log_tail(&self.place.log(part.name()), lines)
    }

    async fn ask(&self, command: Command) -> Result<Event> {
        self.plan()?;
        let answer = Conversation::open(&self.place.control())
            .await?
            .ask(command, |_| ())
            .await?;
        succeeded(&self.place, answer)
    }

    /// The credentials, as the launcher uses them itself.
    pub(crate) fn credentials(&self) -> Result<Credentials> {
        Credentials::read(&self.place, self.plan()?.provider.closed_registry())
    }

    pub(crate) fn place(&self) -> &StackDir {
        &self.place
    }

    /// What the launcher decided about its own stack.
    pub(crate) fn plan(&self) -> Result<&Plan> {
        let refused =
            || Error::Refused("the parts of this stack are somebody else's to start and stop".into());
        self.plan.as_ref().ok_or_else(refused)
    }
}

/// Turns the failure of a part into an error that shows its log.
pub(crate) fn succeeded(place: &StackDir, answer: Event) -> Result<Event> {
    match answer {
        Event::Failed { part, reason } => {
            let log = place.log(part.name());
            Err(Error::NotReady {
                part,
                reason,
                tail: log_tail(&log, TAIL),
                log,
            })
        }
        other => Ok(other),
    }
}

/// The last lines of the log of a part, of a stack that runs or not.
pub fn part_log_tail(name: &str, part: Part, lines: usize) -> Result<String> {
    let log = Places::from_env()?.stack(name)?.log(part.name());
    let mut text = String::new();
    // Of a log that was just begun, the lines before count too.
    for path in [supervisor::older(&log), log] {
        text.push_str(&String::from_utf8_lossy(&fs::read(path).unwrap_or_default()));
    }
    Ok(tail(&text, lines))
}

/// The last lines of a log.
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
