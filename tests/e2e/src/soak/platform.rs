//! The platform of a soak test: a stack of its own, two builders and a deployer behind a router, and queue-workers.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::Value;
use slipway_stack::{ProgressSink, Stack, StackOptions, StackPart, stop_named_stack};

use super::{
    SoakOptions,
    router::Router,
    workers::{QueueWorkers, spawn_in_network_of},
};
use crate::{
    builder_process::BuilderProcess,
    deployer_process::DeployerProcess,
    logged_process::LoggedProcess,
    network_namespace::NetworkNamespace,
    process::wait_for_success,
    testbed::{Testbed, build_busybox_image},
};

/// The number of builders.
pub(super) const BUILDER_COUNT: usize = 2;

/// The repository of the builders' records, without the registry's host.
const RECORDS_REPOSITORY: &str = "soak-records";

/// The settings of a builder besides those that depend on the stack. A build waits for a slot in place of a rejection,
/// because the queue does not try again.
const BUILDER_SETTINGS: [(&str, &str); 3] = [
    ("max_inflight", "4"),
    ("queue_wait", "9m"),
    ("deploy_timeout", "6m10s"),
];

/// The settings of the deployer: a new version may take long on a busy machine.
const DEPLOYER_SETTINGS: [(&str, &str); 2] = [("ready_timeout", "2m"), ("rollback_timeout", "40s")];

/// The longest time until a builder has accepted the calls that it has received.
const ACCEPTANCE_TIMEOUT: Duration = Duration::from_secs(60);

/// The number of functions that are removed at the same time.
const CONCURRENT_REMOVALS: usize = 8;

/// A running platform: a stack, two builders, a deployer, a router and queue-workers.
pub(super) struct SoakPlatform {
    pub(super) testbed: Testbed,
    pub(super) workers: QueueWorkers,
    pub(super) router: Router,
    gateway: Option<LoggedProcess>,
    builders: [Option<BuilderProcess>; BUILDER_COUNT],
    deployer: DeployerProcess,
    /// Whether a builder is killed only once every call is accepted.
    kill_between_acceptances: bool,
    /// The logs of builders that were killed.
    logs_of_killed: Vec<String>,
    /// The name of the image that all functions are based on.
    pub(super) base_image: String,
}

impl SoakPlatform {
    /// Removes the stack of an earlier run, and starts the platform.
    pub(super) async fn remove_earlier_stack_and_start(options: &SoakOptions) -> Result<Self> {
        let progress = ProgressSink::to_stderr();
        stop_named_stack(&options.stack, true, &progress).await?;
        let mut stack_options = StackOptions::with_stack_name(&options.stack);
        (stack_options.images, stack_options.deploy) = (false, false);
        let stack = Stack::start_stack(&stack_options, &progress).await?;
        let started = Self::start_on_stack(stack, options).await;
        if started.is_err() {
            stop_named_stack(&options.stack, true, &progress).await.ok();
        }
        started
    }

    async fn start_on_stack(stack: Stack, options: &SoakOptions) -> Result<Self> {
        // The test has a gateway that calls the router, and queue-workers of its own.
        stack.stop_part(StackPart::QueueWorker).await?;
        stack.stop_part(StackPart::Gateway).await?;
        let testbed = Testbed::for_stack(stack)?;
        let stack = &testbed.stack;
        let namespace = NetworkNamespace::of_process(stack.supervisor_pid()?)?;
        let router = Router::start(namespace, &stack.provider_url_in_stack_network(), BUILDER_COUNT)?;
        let gateway = start_gateway(stack, &router).await?;
        let deployer = DeployerProcess::start(&testbed, &stack.gateway.url, &DEPLOYER_SETTINGS).await?;
        router.set_deployer(url_reachable_from_stack(stack, deployer.url())?);
        let workers = QueueWorkers::start(stack, options.workers, options.ack_wait).await?;
        let base_image = testbed.image_name("soak/busybox", "1");
        let mut platform = Self {
            testbed,
            workers,
            router,
            gateway: Some(gateway),
            builders: [None, None],
            deployer,
            kill_between_acceptances: options.kill_between_acceptances,
            logs_of_killed: Vec::new(),
            base_image,
        };
        for number in 0..BUILDER_COUNT {
            platform.start_builder(number).await?;
        }
        build_busybox_image(
            &platform.first_running_builder()?.build_client_with_own_key()?,
            &platform.base_image,
        )
        .await?;
        Ok(platform)
    }

    /// Returns the stack that the platform runs on.
    pub(super) fn stack(&self) -> &Stack {
        &self.testbed.stack
    }

    /// Kills the gateway, as a crash does.
    pub(super) fn kill_gateway(&mut self) -> Result<()> {
        self.gateway.take().context("the gateway does not run")?.kill()
    }

    /// Starts the gateway again.
    pub(super) async fn start_gateway(&mut self) -> Result<()> {
        self.gateway = Some(start_gateway(&self.testbed.stack, &self.router).await?);
        Ok(())
    }

    /// Kills the builder with this number, at a moment at which every call that any builder has received is accepted:
    /// the other builder knows it, too.
    async fn kill_builder_between_acceptances(&mut self, number: usize) -> Result<()> {
        let _held = self.router.hold_deliveries();
        let other = self
            .builders
            .get((number + 1) % BUILDER_COUNT)
            .and_then(Option::as_ref);
        let other = other.context("the other builder does not run")?;
        let delivered = self.router.traffic().calls_in_progress();
        let acceptances = async {
            for id in delivered {
                // 404 and 502 mean that it is not known or not readable yet.
                while other.ask(&format!("/builds/{id}")).await?.0 != 200 {
                    // The builders send no events to this process.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            Ok::<_, anyhow::Error>(())
        };
        let accepted = tokio::time::timeout(ACCEPTANCE_TIMEOUT, acceptances).await;
        accepted.context("a call that was delivered is still unknown")??;
        self.kill_builder_now(number)
    }

    /// Kills the builder with this number, as a crash does: at once, or, if the options say so, once every delivered
    /// call is accepted.
    pub(super) async fn kill_builder(&mut self, number: usize) -> Result<()> {
        match self.kill_between_acceptances {
            true => self.kill_builder_between_acceptances(number).await,
            false => self.kill_builder_now(number),
        }
    }

    fn kill_builder_now(&mut self, number: usize) -> Result<()> {
        let builder = self.builders.get_mut(number).and_then(Option::take);
        let builder = builder.context("the builder does not run")?;
        self.logs_of_killed.push(builder.log_text());
        builder.kill()?;
        self.router.set_builder(number, None);
        Ok(())
    }

    /// Starts the builder with this number, and routes calls to it once it is ready.
    pub(super) async fn start_builder(&mut self, number: usize) -> Result<()> {
        let records = self.testbed.image_name(RECORDS_REPOSITORY, "");
        let records = records.trim_end_matches(':');
        let mut settings = vec![("records_repository", records)];
        settings.extend(BUILDER_SETTINGS);
        let builder = BuilderProcess::start_with_settings(&self.testbed, &settings).await?;
        builder.wait_until_ready().await?;
        let url = url_reachable_from_stack(&self.testbed.stack, builder.url())?;
        self.router.set_builder(number, Some(url));
        if let Some(place) = self.builders.get_mut(number) {
            *place = Some(builder);
        }
        Ok(())
    }

    /// Asks the first builder that runs about a build; returns the status and the answer.
    pub(super) async fn ask_about_build(&self, id: &str) -> Result<(u16, Value)> {
        self.first_running_builder()?.ask(&format!("/builds/{id}")).await
    }

    fn first_running_builder(&self) -> Result<&BuilderProcess> {
        self.builders.iter().flatten().next().context("no builder runs")
    }

    /// Removes the functions with these names, several at a time.
    pub(super) async fn remove_functions(&self, names: impl Iterator<Item = &str>) -> Result<()> {
        stream::iter(names)
            .map(|name| self.testbed.functions.remove_function(name))
            .buffer_unordered(CONCURRENT_REMOVALS)
            .try_collect()
            .await
    }

    /// Writes the logs of the builders and of the deployer to this folder.
    pub(super) fn write_builder_and_deployer_logs(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        for (number, log) in self.logs_of_killed.iter().enumerate() {
            fs::write(folder.join(format!("killed-builder-{number}.log")), log)?;
        }
        for (number, builder) in self.builders.iter().enumerate() {
            if let Some(builder) = builder {
                fs::write(folder.join(format!("builder-{number}.log")), builder.log_text())?;
            }
        }
        fs::write(folder.join("deployer.log"), self.deployer.log_text())?;
        Ok(())
    }

    /// Stops everything and removes the stack.
    pub(super) async fn stop_all_and_remove_stack(self) -> Result<()> {
        let name = self.testbed.stack.name().to_owned();
        // The processes in the stack's network first: they keep its namespace.
        drop(self);
        stop_named_stack(&name, true, &ProgressSink::discarding()).await?;
        Ok(())
    }
}

/// Starts a gateway that calls the router, and waits until it answers.
async fn start_gateway(stack: &Stack, router: &Router) -> Result<LoggedProcess> {
    let command = stack.gateway_command_in_place_of_stacks_own(&format!("{}/", router.url()))?;
    let gateway = spawn_in_network_of(stack, command)?;
    wait_for_success(&format!("{}/healthz", stack.gateway.url)).await?;
    Ok(gateway)
}

/// Returns the URL, for processes in the stack's network, of a process of this machine that listens on every address.
fn url_reachable_from_stack(stack: &Stack, url: &str) -> Result<String> {
    let (_, port) = url.rsplit_once(':').context("a URL without a port")?;
    Ok(format!("http://{}:{port}", stack.machine_address()?))
}
