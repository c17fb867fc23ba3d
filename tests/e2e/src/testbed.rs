//! The stack that the tests of one run share, and who may disturb it.

use std::{
    env, fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use slipway_stack::Stack;
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::{client::Client, functions::Functions, registry::Registry, source::Source};

/// Tests that need every part running hold this for reading; one that stops a part holds it alone.
static PARTS: RwLock<()> = RwLock::const_new(());

static BUSYBOX: OnceCell<String> = OnceCell::const_new();

/// The running stack with the clients that a test needs.
pub struct Bench {
    /// The launcher's handle.
    pub stack: Stack,
    /// builder-fn, past the gateway.
    pub builder: Client,
    /// builder-fn, through the gateway, waiting for the answer.
    pub through_gateway: Client,
    /// builder-fn, through the queue.
    pub queued: Client,
    /// The registry.
    pub registry: Registry,
    /// The functions.
    pub functions: Functions,
}

impl Bench {
    /// Finds the stack named by `SLIPWAY_STACK` (`default` where unset). There is no test without one: a stack that is
    /// not there fails the test, with the command that starts it.
    pub fn find() -> Result<Self> {
        let name = env::var("SLIPWAY_STACK").unwrap_or_else(|_| "default".to_owned());
        let mut stack = Stack::load(&name)
            .with_context(|| format!("reading the state of stack {name:?}"))?
            .with_context(|| {
                format!("no stack {name:?} is running: `make test` starts one, `make up` the default one")
            })?;
        // One that was started without it, or by somebody else, can be tried with another faas-cli as well.
        if let Some(faas_cli) = env::var_os("SLIPWAY_FAAS_CLI") {
            stack.tools.faas_cli = fs::canonicalize(&faas_cli).with_context(|| format!("{faas_cli:?}"))?;
        }
        let key = fs::read(&stack.payload_secret).context("reading the payload secret")?;
        let functions = Functions::of(&stack)?;
        Ok(Self {
            builder: Client::new(format!("{}/build", stack.builder_url), &key)?,
            through_gateway: Client::new(functions.url("builder-fn"), &key)?,
            queued: Client::new(functions.async_url("builder-fn"), &key)?,
            registry: Registry::of(&stack)?,
            functions,
            stack,
        })
    }

    /// For tests that need every part: none is stopped by another test meanwhile.
    pub async fn undisturbed(&self) -> RwLockReadGuard<'static, ()> {
        PARTS.read().await
    }

    /// For tests that stop parts: no other test runs meanwhile.
    pub async fn alone(&self) -> RwLockWriteGuard<'static, ()> {
        PARTS.write().await
    }

    /// The name of an image in the stack's registry.
    pub fn image(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.stack.registry.host)
    }

    /// An image with nothing but busybox, built by builder-fn from this machine's static one.
    pub async fn busybox(&self) -> Result<&'static str> {
        let name = BUSYBOX
            .get_or_try_init(|| async {
                let binary = fs::read("/bin/busybox").context("/bin/busybox (Debian package busybox-static)")?;
                let image = self.image("e2e/busybox", "1");
                let tar = Source::dockerfile("FROM scratch\nCOPY --chmod=755 busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n")
                    .file_with_mode("busybox", binary, 0o755)
                    .tar(&json!({ "image": image }))?;
                let reply = self.builder.post(tar).await?;
                anyhow::ensure!(reply.status == 200, "building {image}: {} {}", reply.status, reply.text);
                Ok(image)
            })
            .await?;
        Ok(name)
    }

    /// Waits until a build step whose command line contains this runs on the stack, or until none does any more.
    pub async fn wait_for_step(&self, command: &str, running: bool) -> Result<()> {
        let what = format!(
            "a step {command:?} {}",
            if running { "runs" } else { "has ended" }
        );
        self.wait_until(Duration::from_secs(40), &what, || {
            Ok(step(command)?.is_some() == running)
        })
        .await
    }

    /// Makes an empty file in the root folder of the running build step whose command line contains its name.
    pub fn make_file_in_step(&self, name: &str) -> Result<()> {
        let step = step(name)?.with_context(|| format!("no step {name:?} runs"))?;
        fs::write(step.join("root").join(name), "").with_context(|| format!("making {name} in {step:?}"))
    }

    /// Waits until a fact about another process holds: there is no event for it on this side.
    pub async fn wait_until(
        &self,
        limit: Duration,
        what: &str,
        holds: impl Fn() -> Result<bool>,
    ) -> Result<()> {
        let end = Instant::now() + limit;
        while !holds()? {
            if Instant::now() > end {
                bail!("not within {limit:?}: {what}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// How many connections to BuildKit's TCP port are open inside the stack: builder-fn has one a build.
    pub fn sessions(&self) -> Result<usize> {
        const ESTABLISHED: &str = "01";
        const BUILDKIT_PORT: &str = ":04D2";
        let table = fs::read_to_string(format!("/proc/{}/net/tcp", self.stack.supervisor_pid()?))?;
        let columns = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        Ok(columns
            .filter(|line| line.get(1).is_some_and(|local| local.ends_with(BUILDKIT_PORT)))
            .filter(|line| line.get(3) == Some(&ESTABLISHED))
            .count())
    }
}

/// The folder in `/proc` of the shell that runs the build step with this command.
fn step(command: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir("/proc")? {
        let folder = entry?.path();
        // Most entries are no processes, and a process may end while the list is read.
        let Ok(line) = fs::read(folder.join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.starts_with("/bin/sh -c") && line.contains(command) {
            return Ok(Some(folder));
        }
    }
    Ok(None)
}
