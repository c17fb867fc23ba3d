//! Measures signed builds beside a flood of unsigned senders, and without it.
//!
//! One signed build of 30 KB begins each second; those that end later than the next one begins run beside it. Builds
//! and senders use the functions' own addresses, in their network namespaces: what forwards requests to a function in a
//! stack has limits of its own. The senders are processes that only use idle processor time ([`FloodProcess`]). The
//! peak memory of both functions is reset before each phase.

mod metrics;
mod phase;
mod processors;

use std::{
    fmt, fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::{
    build_context::BuildContext,
    builder_process::BuilderProcess,
    client::SigningClient,
    deployer_process::DeployerProcess,
    flood::process::{AllKindsSenderOptions, FloodProcess, FloodReport, FloodedFunction},
    network_namespace::{NetworkNamespace, find_first_process},
    testbed::Testbed,
};
use metrics::BudgetSamples;
pub use phase::{FloodPhase, peak_memory_bytes};
use processors::{MeasuredProcess, ProcessorTimesByPart};

/// The functions that receive the flood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloodReceiverPlacement {
    /// The stack's own functions, in their containers.
    Stack,
    /// Processes that the benchmark starts beside the stack.
    Processes,
}

/// A benchmark of builder-fn and deployer-fn under a flood, ready to be measured.
pub struct FloodBenchmark {
    testbed: Testbed,
    builder: ReceivingFunction,
    deployer: ReceivingFunction,
    processes: Vec<MeasuredProcess>,
    _started: Option<(BuilderProcess, DeployerProcess)>,
}

/// One function that receives a part of the flood.
struct ReceivingFunction {
    pid: u32,
    port: u16,
    metrics: String,
}

/// The measurements without the flood and with it.
#[derive(Debug)]
pub struct FloodResult {
    /// The number of senders.
    pub senders: usize,
    /// The time for which the senders ran: the warm-up and the phase beside them.
    pub length: Duration,
    /// The phase without the flood.
    pub alone: FloodPhase,
    /// The phase with the flood.
    pub beside: FloodPhase,
    /// The requests to builder-fn, and its answers.
    pub to_builder: FloodReport,
    /// The requests to deployer-fn, and its answers.
    pub to_deployer: FloodReport,
}

/// The port of a function in its container, and that of its metrics.
const FUNCTION_AND_METRICS_PORTS: (u16, u16) = (8080, 8081);

impl FloodBenchmark {
    /// Finds or starts the two functions, and builds once so that they are warm.
    pub async fn find_or_start_functions(receivers: FloodReceiverPlacement) -> Result<Self> {
        let testbed = Testbed::find_running_stack()?;
        let (builder, deployer, started) = match receivers {
            FloodReceiverPlacement::Stack => {
                let builder = ReceivingFunction::find_in_container("builder-fn")?;
                (
                    builder,
                    ReceivingFunction::find_in_container("deployer-fn")?,
                    None,
                )
            }
            FloodReceiverPlacement::Processes => {
                let builder = BuilderProcess::start_with_settings(&testbed, &[]).await?;
                let deployer = DeployerProcess::start(&testbed, &testbed.stack.gateway.url, &[]).await?;
                (
                    ReceivingFunction::new(builder.process_id(), builder.url(), builder.metrics_url())?,
                    ReceivingFunction::new(deployer.process_id(), deployer.url(), deployer.metrics_url())?,
                    Some((builder, deployer)),
                )
            }
        };
        let mut processes = vec![
            MeasuredProcess::new("builder-fn", builder.pid),
            MeasuredProcess::new("deployer-fn", deployer.pid),
        ];
        for (name, program) in [
            ("BuildKit", "buildkitd"),
            ("registry", "docker-registry"),
            ("gateway", "gateway"),
            ("forwarder", "slipway-stack"),
        ] {
            // Those of another stack, or of none, are idle.
            let running = processors::find_processes(program)?;
            processes.extend(running.into_iter().map(|pid| MeasuredProcess::new(name, pid)));
        }
        processes.push(MeasuredProcess::new("client", std::process::id()));
        let benchmark = Self {
            testbed,
            builder,
            deployer,
            processes,
            _started: started,
        };
        benchmark.run_with_client_in_builder_namespace(async |client| {
            benchmark.build_once(&client).await.map(drop)
        })?;
        Ok(benchmark)
    }

    /// Measures for `length` without the flood, starts the flood, waits for `warm_up`, and measures for `length` again.
    pub fn measure_with_and_without_flood(
        &self,
        senders: usize,
        warm_up: Duration,
        length: Duration,
    ) -> Result<FloodResult> {
        let measure = |flood: &[&FloodProcess]| {
            self.run_with_client_in_builder_namespace(async |client| {
                self.measure_phase_with_build_each_second(&client, flood, length)
                    .await
            })
        };
        let alone = measure(&[])?;
        let flood = |function: FloodedFunction, receiver: &ReceivingFunction, count: usize| {
            let (pid, port) = (receiver.pid, receiver.port);
            let options = AllKindsSenderOptions {
                function,
                pid,
                port,
                count,
            };
            FloodProcess::start(&options)
        };
        let builders = flood(FloodedFunction::Builder, &self.builder, senders * 3 / 4)?;
        let deployers = flood(FloodedFunction::Deployer, &self.deployer, senders / 4)?;
        std::thread::sleep(warm_up);
        let beside = measure(&[&builders, &deployers])?;
        Ok(FloodResult {
            senders,
            length: warm_up + length,
            alone,
            beside,
            to_builder: builders.stop()?,
            to_deployer: deployers.stop()?,
        })
    }

    /// Runs `work` in builder-fn's network namespace, with a client that calls builder-fn at its own address.
    fn run_with_client_in_builder_namespace<T: Send>(
        &self,
        work: impl AsyncFnOnce(SigningClient) -> Result<T> + Send,
    ) -> Result<T> {
        let key = fs::read(&self.testbed.stack.payload_secret)?;
        NetworkNamespace::of_process(self.builder.pid)?.run_inside(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let url = format!("http://127.0.0.1:{}/build", self.builder.port);
            runtime.block_on(work(SigningClient::new(url, &key)?))
        })
    }

    /// Begins a build each second for `length`, and returns the measurements once all have ended.
    async fn measure_phase_with_build_each_second(
        &self,
        client: &SigningClient,
        flood: &[&FloodProcess],
        length: Duration,
    ) -> Result<FloodPhase> {
        for receiver in [&self.builder, &self.deployer] {
            // 5 resets the peak (proc_pid_clear_refs(5)).
            fs::write(format!("/proc/{}/clear_refs", receiver.pid), "5")?;
        }
        let senders = flood
            .iter()
            .map(|flood| MeasuredProcess::new("senders", flood.process_id()));
        let processes: Vec<_> = self.processes.iter().cloned().chain(senders).collect();
        let (begun, before) = (
            Instant::now(),
            ProcessorTimesByPart::read_or_zero_if_ended(&processes)?,
        );
        let mut budget = BudgetSamples::begin(&self.builder.metrics).await?;
        let mut builds = tokio::task::JoinSet::new();
        let mut second = tokio::time::interval(Duration::from_secs(1));
        while begun.elapsed() < length {
            second.tick().await;
            let (client, tar) = (client.clone(), self.unique_build_request_tar()?);
            builds.spawn(async move {
                let begun = Instant::now();
                build_tar(&client, tar).await?;
                Ok::<_, anyhow::Error>(begun.elapsed())
            });
            budget.add_body_count_sample().await?;
        }
        let mut phase = FloodPhase::default();
        for result in builds.join_all().await {
            match result {
                Ok(duration) => phase.durations.push(duration),
                Err(error) => phase.failures.push(format!("{error:#}")),
            }
        }
        phase.durations.sort_unstable();
        phase.processors =
            ProcessorTimesByPart::read_or_zero_if_ended(&processes)?.since(&before, begun.elapsed());
        phase.budget = budget.end().await?;
        phase.builder = peak_memory_bytes(self.builder.pid)?;
        phase.deployer = peak_memory_bytes(self.deployer.pid)?;
        Ok(phase)
    }

    /// Returns the tar of a build of 30 KB whose content no earlier build had.
    fn unique_build_request_tar(&self) -> Result<Vec<u8>> {
        let source = BuildContext::dockerfile("FROM scratch\nCOPY page more /\n");
        let source = source.with_file("page", format!("{:?}", Instant::now()));
        let config = json!({ "image": self.testbed.image_name("hostile/bench-flood", "1") });
        source
            .with_file("more", vec![7; 30 << 10])
            .tar_with_config_last(&config)
    }

    async fn build_once(&self, client: &SigningClient) -> Result<()> {
        build_tar(client, self.unique_build_request_tar()?).await
    }
}

/// Builds a tar, and fails unless the answer's status is 200.
async fn build_tar(client: &SigningClient, tar: Vec<u8>) -> Result<()> {
    let reply = client.post_signed(tar).await?;
    let (status, error) = (reply.status, reply.text_field("error"));
    ensure!(status == 200, "{status} {error}");
    Ok(())
}

impl ReceivingFunction {
    /// Finds the process of a function of the stack.
    fn find_in_container(name: &str) -> Result<Self> {
        let shim = find_first_process("containerd-shim-runc-v2", &format!("{name}."))?;
        let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children"))?;
        let pid = children
            .split_whitespace()
            .next()
            .with_context(|| format!("{name} does not run"))?;
        Ok(Self {
            pid: pid.parse()?,
            port: FUNCTION_AND_METRICS_PORTS.0,
            metrics: format!("http://127.0.0.1:{}/metrics", FUNCTION_AND_METRICS_PORTS.1),
        })
    }

    /// Returns the function that runs as a process with this id, URL and URL of metrics.
    fn new(pid: u32, url: &str, metrics: &str) -> Result<Self> {
        let port = url.rsplit(':').next().context("no port")?;
        Ok(Self {
            pid,
            port: port.parse()?,
            metrics: metrics.to_owned(),
        })
    }
}

impl fmt::Display for FloodResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = |part| {
            self.beside.quantile_or_zero(part).as_secs_f64() / self.alone.quantile_or_zero(part).as_secs_f64()
        };
        writeln!(f, "alone\n{}", self.alone)?;
        writeln!(f, "beside {} senders\n{}", self.senders, self.beside)?;
        writeln!(f, "ratio p50 {:.2}, p95 {:.2}", ratio(0.5), ratio(0.95))?;
        for failure in self.beside.failures.iter().chain(&self.alone.failures).take(5) {
            writeln!(f, "failure {failure}")?;
        }
        for (function, report) in [
            ("builder-fn", &self.to_builder),
            ("deployer-fn", &self.to_deployer),
        ] {
            let seconds = self.length.as_secs_f64();
            writeln!(
                f,
                "sent to {function}, a second: {:.0} connections, {:.0} requests, {:.1} MiB",
                report.connections as f64 / seconds,
                report.requests as f64 / seconds,
                report.bytes as f64 / seconds / f64::from(1 << 20),
            )?;
            for answer in &report.answers {
                writeln!(f, "  {} {}: {}", answer.kind, answer.answer, answer.count)?;
            }
        }
        Ok(())
    }
}
