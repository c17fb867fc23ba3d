//! Measures signed builds beside a flood of unsigned senders, and without it.
//!
//! One signed build of 30 KB begins each second; those that end later than the next one begins run beside it. The peak
//! memory of both functions is reset before each phase.

use std::{
    fmt, fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::{
    build_context::BuildContext,
    builder_process::BuilderProcess,
    client::SigningClient,
    deployer_process::DeployerProcess,
    flood::{Flood, FloodTarget, UnsignedSender},
    network_namespace::{NetworkNamespace, find_process},
    testbed::Testbed,
};

/// The functions that receive the flood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloodedFunctions {
    /// The stack's own functions, in their containers.
    Stack,
    /// Processes that the benchmark starts beside the stack.
    Processes,
}

/// A benchmark of builder-fn and deployer-fn under a flood, ready to be measured.
pub struct FloodBenchmark {
    testbed: Testbed,
    client: SigningClient,
    builder: FloodedFunction,
    deployer: FloodedFunction,
    _processes: Option<(BuilderProcess, DeployerProcess)>,
}

/// One function that receives a part of the flood.
struct FloodedFunction {
    pid: u32,
    target: FloodTarget,
}

/// The measurements of one phase: with the flood, or without it.
#[derive(Debug, Default)]
pub struct FloodPhase {
    /// The durations of the builds that succeeded, sorted.
    pub durations: Vec<Duration>,
    /// The failures of the other builds.
    pub failures: Vec<String>,
    /// The peak memory of builder-fn, in bytes.
    pub builder: u64,
    /// The peak memory of deployer-fn, in bytes.
    pub deployer: u64,
}

/// The measurements without the flood and with it.
#[derive(Debug)]
pub struct FloodResult {
    /// The number of senders.
    pub senders: usize,
    /// The phase without the flood.
    pub alone: FloodPhase,
    /// The phase with the flood.
    pub beside: FloodPhase,
    /// The number of times that the senders got each answer, as text.
    pub answers: Vec<String>,
}

impl FloodBenchmark {
    /// Finds or starts the two functions, and builds once so that they are warm.
    pub async fn start(receivers: FloodedFunctions) -> Result<Self> {
        let testbed = Testbed::find_running_stack()?;
        let benchmark = match receivers {
            FloodedFunctions::Stack => {
                let builder = FloodedFunction::of_function("builder-fn", builder_target)?;
                let deployer = FloodedFunction::of_function("deployer-fn", deployer_target)?;
                Self {
                    client: testbed.builder.clone(),
                    builder,
                    deployer,
                    testbed,
                    _processes: None,
                }
            }
            FloodedFunctions::Processes => {
                let builder = BuilderProcess::start_with_settings(&testbed, &[]).await?;
                let deployer = DeployerProcess::start(&testbed, &testbed.stack.gateway.url, &[]).await?;
                Self {
                    client: builder.client()?,
                    builder: FloodedFunction {
                        pid: builder.process_id(),
                        target: builder_target(socket_address(builder.url())?),
                    },
                    deployer: FloodedFunction {
                        pid: deployer.process_id(),
                        target: deployer_target(socket_address(deployer.url())?),
                    },
                    testbed,
                    _processes: Some((builder, deployer)),
                }
            }
        };
        benchmark.send_build().await?;
        Ok(benchmark)
    }

    /// Measures for this long without the flood, and for as long with it.
    pub async fn measure_with_and_without_flood(
        &self,
        senders: usize,
        length: Duration,
    ) -> Result<FloodResult> {
        let alone = self.measure_phase(length).await?;
        let flood = |receiver: &FloodedFunction, count: usize| {
            let namespace = NetworkNamespace::of_process(receiver.pid)?;
            Flood::start(
                receiver.target.clone(),
                &UnsignedSender::ALL,
                count,
                Some(namespace),
            )
        };
        let builders = flood(&self.builder, senders * 3 / 4)?;
        let deployers = flood(&self.deployer, senders / 4)?;
        let beside = self.measure_phase(length).await?;
        let answers = [("builder-fn", &builders), ("deployer-fn", &deployers)]
            .into_iter()
            .flat_map(|(function, flood)| {
                let outcomes = flood.outcome_counts().into_iter();
                outcomes.map(move |((kind, answer), count)| format!("{function} {kind:?} {answer}: {count}"))
            })
            .collect();
        Ok(FloodResult {
            senders,
            alone,
            beside,
            answers,
        })
    }

    async fn measure_phase(&self, length: Duration) -> Result<FloodPhase> {
        for receiver in [&self.builder, &self.deployer] {
            // 5 resets the peak (proc_pid_clear_refs(5)).
            fs::write(format!("/proc/{}/clear_refs", receiver.pid), "5")?;
        }
        let mut builds = tokio::task::JoinSet::new();
        let mut second = tokio::time::interval(Duration::from_secs(1));
        let started = Instant::now();
        while started.elapsed() < length {
            second.tick().await;
            let (client, tar) = (self.client.clone(), self.build_request_tar()?);
            builds.spawn(async move {
                let begun = Instant::now();
                let reply = client.post_signed(tar).await?;
                ensure!(
                    reply.status == 200,
                    "{} {}",
                    reply.status,
                    reply.text_field("error")
                );
                Ok(begun.elapsed())
            });
        }
        let mut phase = FloodPhase::default();
        for result in builds.join_all().await {
            match result {
                Ok(duration) => phase.durations.push(duration),
                Err(error) => phase.failures.push(format!("{error:#}")),
            }
        }
        phase.durations.sort_unstable();
        phase.builder = peak_memory_bytes(self.builder.pid)?;
        phase.deployer = peak_memory_bytes(self.deployer.pid)?;
        Ok(phase)
    }

    fn build_request_tar(&self) -> Result<Vec<u8>> {
        let source = BuildContext::dockerfile("FROM scratch\nCOPY page more /\n");
        let source = source.with_file("page", format!("{:?}", Instant::now()));
        let config = json!({ "image": self.testbed.image_name("hostile/bench-flood", "1") });
        source
            .with_file("more", vec![7; 30 << 10])
            .tar_with_config(&config)
    }

    async fn send_build(&self) -> Result<()> {
        let reply = self.client.post_signed(self.build_request_tar()?).await?;
        ensure!(reply.status == 200, "{} {}", reply.status, reply.text);
        Ok(())
    }
}

impl FloodedFunction {
    /// Finds the process of a function of the stack, and its address within its own network.
    fn of_function(name: &str, target: impl Fn(SocketAddr) -> FloodTarget) -> Result<Self> {
        let shim = find_process("containerd-shim-runc-v2", &format!("{name}."))?;
        let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children"))?;
        let pid = children
            .split_whitespace()
            .next()
            .with_context(|| format!("{name} does not run"))?;
        Ok(Self {
            pid: pid.parse()?,
            target: target(SocketAddr::from(([127, 0, 0, 1], 8080))),
        })
    }
}

fn builder_target(address: SocketAddr) -> FloodTarget {
    FloodTarget {
        address,
        path: "/build",
        signature: "X-Build-Signature",
        body: 1 << 20,
    }
}

fn deployer_target(address: SocketAddr) -> FloodTarget {
    FloodTarget {
        address,
        path: "/",
        signature: "X-Deploy-Signature",
        body: 500 << 10,
    }
}

fn socket_address(url: &str) -> Result<SocketAddr> {
    Ok(url.trim_start_matches("http://").parse()?)
}

/// Returns the peak of a process's resident memory since its last reset, in bytes.
pub fn peak_memory_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

impl FloodPhase {
    /// Returns this quantile of the durations, or zero if no build succeeded.
    pub fn build_time_quantile(&self, part: f64) -> Duration {
        let last = self.durations.len().saturating_sub(1);
        let at = (last as f64 * part).round() as usize;
        self.durations.get(at).copied().unwrap_or_default()
    }
}

impl fmt::Display for FloodPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} built, {} failed; p50 {:.3?}, p95 {:.3?}, longest {:.3?}; peaks: builder-fn {:.1} MiB, deployer-fn {:.1} MiB",
            self.durations.len(),
            self.failures.len(),
            self.build_time_quantile(0.5),
            self.build_time_quantile(0.95),
            self.build_time_quantile(1.0),
            self.builder as f64 / f64::from(1 << 20),
            self.deployer as f64 / f64::from(1 << 20),
        )
    }
}

impl fmt::Display for FloodResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = |part| {
            self.beside.build_time_quantile(part).as_secs_f64()
                / self.alone.build_time_quantile(part).as_secs_f64()
        };
        writeln!(f, "alone   {}", self.alone)?;
        writeln!(f, "beside {} senders   {}", self.senders, self.beside)?;
        writeln!(f, "ratio   p50 {:.2}, p95 {:.2}", ratio(0.5), ratio(0.95))?;
        for failure in self.beside.failures.iter().chain(&self.alone.failures).take(5) {
            writeln!(f, "failure {failure}")?;
        }
        for answer in &self.answers {
            writeln!(f, "answer  {answer}")?;
        }
        Ok(())
    }
}
