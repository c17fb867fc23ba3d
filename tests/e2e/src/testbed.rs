//! The stack that all tests of a run share, and the lock on its parts.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use slipway_stack::Stack;
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::{
    build_context::BuildContext, client::SigningClient, functions::FunctionsClient, registry::RegistryClient,
};

/// The lock of this process on the stack's parts: shared for tests that need all parts, exclusive for tests that stop
/// parts or measure.
static PARTS_LOCK: RwLock<()> = RwLock::const_new(());

/// The longest time until a polled condition holds; a test that passes does not wait this long.
const POLL_TIMEOUT: Duration = Duration::from_secs(120);

/// The name of the stack's busybox image, once this process has built it.
static BUSYBOX_IMAGE_NAME: OnceCell<String> = OnceCell::const_new();

/// The running stack and clients for it.
pub struct Testbed {
    /// The launcher's handle of the stack.
    pub stack: Stack,
    /// A client that calls builder-fn directly.
    pub builder: SigningClient,
    /// A client of builder-fn through the gateway; it waits for the answer.
    pub through_gateway: SigningClient,
    /// A client of builder-fn through the queue.
    pub queued: SigningClient,
    /// A client of the stack's registry.
    pub registry: RegistryClient,
    /// A client of the stack's functions.
    pub functions: FunctionsClient,
}

impl Testbed {
    /// Finds the stack named by `SLIPWAY_STACK` (default: `default`). Fails if it does not run, and names the
    /// command that starts it.
    pub fn find_running_stack() -> Result<Self> {
        let name = env::var("SLIPWAY_STACK").unwrap_or_else(|_| "default".to_owned());
        let mut stack = Stack::load_running(&name)
            .with_context(|| format!("reading the state of stack {name:?}"))?
            .with_context(|| {
                format!("no stack {name:?} is running: `make test` starts one, `make up` the default one")
            })?;
        // Also for a stack that was started without this variable, or not by the launcher.
        if let Some(faas_cli) = env::var_os("SLIPWAY_FAAS_CLI") {
            stack.tools.faas_cli = fs::canonicalize(&faas_cli).with_context(|| format!("{faas_cli:?}"))?;
        }
        Self::for_stack(stack)
    }

    /// Returns clients for this stack.
    pub fn for_stack(stack: Stack) -> Result<Self> {
        let key = fs::read(&stack.payload_secret).context("reading the payload secret")?;
        let functions = FunctionsClient::for_stack(&stack)?;
        Ok(Self {
            builder: SigningClient::new(format!("{}/build", stack.builder_url), &key)?,
            through_gateway: SigningClient::new(functions.function_url("builder-fn"), &key)?,
            queued: SigningClient::new(functions.queued_call_url("builder-fn"), &key)?,
            registry: RegistryClient::for_stack(&stack)?,
            functions,
            stack,
        })
    }

    /// Waits for the shared lock: no test stops a part while it is held.
    pub async fn share_parts(&self) -> RwLockReadGuard<'static, ()> {
        PARTS_LOCK.read().await
    }

    /// Waits for the exclusive lock, for tests that stop parts or measure: no test with the shared lock runs while it
    /// is held.
    pub async fn lock_parts(&self) -> RwLockWriteGuard<'static, ()> {
        PARTS_LOCK.write().await
    }

    /// Returns the name of an image in the stack's registry.
    pub fn image_name(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.stack.registry.host)
    }

    /// Builds an image that contains only this machine's static busybox, unless this process has built it before, and
    /// returns its name.
    pub async fn build_busybox_once_and_get_name(&self) -> Result<&'static str> {
        let name = BUSYBOX_IMAGE_NAME
            .get_or_try_init(|| async {
                let image = self.image_name("e2e/busybox", "1");
                build_busybox_image(&self.builder, &image).await?;
                Ok::<_, anyhow::Error>(image)
            })
            .await?;
        Ok(name)
    }

    /// Polls until a build step on this machine whose command contains `command` is running, or until none is. Fails
    /// after two minutes.
    pub async fn wait_for_step(&self, command: &str, should_run: bool) -> Result<()> {
        let what = format!(
            "a build step with {command:?} {}",
            if should_run { "is running" } else { "has ended" }
        );
        self.wait_until_condition(
            &what,
            || Ok(step_process_folder(command)?.is_some() == should_run),
        )
        .await
    }

    /// Ends a running step with a [`gated_command`](crate::build_context::gated_command) command: creates the file it
    /// waits for.
    pub fn open_gate_of_step(&self, gate: &str) -> Result<()> {
        let step =
            step_process_folder(gate)?.with_context(|| format!("no build step with {gate:?} is running"))?;
        fs::write(step.join("root").join(gate), "").with_context(|| format!("creating {gate} in {step:?}"))
    }

    /// Polls until a condition on another process holds, which sends no event to this one. Fails after two minutes.
    pub async fn wait_until_condition(&self, what: &str, holds: impl Fn() -> Result<bool>) -> Result<()> {
        self.wait_until_async_condition(what, async || holds()).await
    }

    /// Polls until what somebody answers is so. Fails after two minutes.
    pub async fn wait_until_async_condition(
        &self,
        what: &str,
        holds: impl AsyncFn() -> Result<bool>,
    ) -> Result<()> {
        let end = Instant::now() + POLL_TIMEOUT;
        while !holds().await? {
            if Instant::now() > end {
                bail!("after {POLL_TIMEOUT:?}, this is still not the case: {what}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Returns the number of established connections to BuildKit's TCP port inside the stack. builder-fn has one for
    /// each build, and opens one for each check of its readiness.
    pub fn buildkit_connection_count(&self) -> Result<usize> {
        const TCP_ESTABLISHED_STATE: &str = "01";
        const BUILDKIT_PORT_HEX: &str = ":04D2";
        // BuildKit has a network of its own; a daemon that does not run has no connections.
        let Some(daemon) = self.buildkit_process_folder()? else {
            return Ok(0);
        };
        let table = fs::read_to_string(daemon.join("net/tcp"))?;
        let columns = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        Ok(columns
            .filter(|line| {
                line.get(1)
                    .is_some_and(|local| local.ends_with(BUILDKIT_PORT_HEX))
            })
            .filter(|line| line.get(3) == Some(&TCP_ESTABLISHED_STATE))
            .count())
    }

    /// Returns the process id of the stack's BuildKit daemon on this machine; `None` if it does not run.
    pub fn buildkit_process_id(&self) -> Result<Option<u32>> {
        self.buildkit_process_folder()?
            .map(|folder| process_id(&folder))
            .transpose()
    }

    /// Returns the folder in `/proc` of the stack's BuildKit daemon; `None` if it does not run.
    fn buildkit_process_folder(&self) -> Result<Option<PathBuf>> {
        // Fails for a stack that was not started by the launcher, whose daemon is not found by its configuration.
        self.stack.supervisor_pid()?;
        let config = self.stack.dir.root.join("config/buildkitd.toml");
        let config = config.display().to_string();
        process_folder(|line| line.contains("buildkitd ") && line.contains(&config))
    }
}

/// Returns the process id of the shell that runs the build step with this command, or `None` if none does.
pub fn step_process_id(command: &str) -> Result<Option<u32>> {
    step_process_folder(command)?
        .map(|folder| process_id(&folder))
        .transpose()
}

/// Builds an image that contains only this machine's static busybox.
pub async fn build_busybox_image(builder: &SigningClient, image: &str) -> Result<()> {
    let binary = fs::read("/bin/busybox").context("/bin/busybox (Debian package busybox-static)")?;
    let tar = BuildContext::dockerfile("FROM scratch\nCOPY --chmod=755 busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n")
        .with_file_of_mode("busybox", binary, 0o755)
        .tar_with_config_last(&json!({ "image": image }))?;
    let reply = builder.post_signed(tar).await?;
    anyhow::ensure!(
        reply.status == 200,
        "building {image}: {} {}",
        reply.status,
        reply.text
    );
    Ok(())
}

/// Returns the process id in the path of a process's folder in `/proc`.
fn process_id(folder: &Path) -> Result<u32> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    Ok(name.parse()?)
}

/// Returns the folder in `/proc` of the first process whose command line, with spaces between its words, is as wanted.
fn process_folder(is_wanted_command_line: impl Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir("/proc")? {
        let folder = entry?.path();
        // Most entries are not processes, and a process may exit while the list is read.
        let Ok(line) = fs::read(folder.join("cmdline")) else {
            continue;
        };
        if is_wanted_command_line(&String::from_utf8_lossy(&line).replace('\0', " ")) {
            return Ok(Some(folder));
        }
    }
    Ok(None)
}

/// Returns the folder in `/proc` of the shell that runs the build step with this command.
fn step_process_folder(command: &str) -> Result<Option<PathBuf>> {
    process_folder(|line| line.starts_with("/bin/sh -c") && line.contains(command))
}
