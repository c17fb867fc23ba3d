//! The process of a measured server, on processors of its own.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use function_host::{Context, Error, Request, Response, reply};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

/// The limit on the request body in both servers, in bytes.
pub(crate) const BODY_LIMIT_BYTES: usize = 1024 * 1024;

/// The longest time for a measured server to start or to stop.
const START_OR_STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The kind of a measured server: the function host, or hyper alone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerKind {
    Host,
    Plain,
}

impl fmt::Display for ServerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Plain => "plain",
        })
    }
}

/// The handler of the measured function on the host.
async fn greet_by_name_in_body(request: Request, _context: Context) -> Result<Response, Error> {
    let name = request.into_body().text(BODY_LIMIT_BYTES).await?;
    Ok(reply::text(format!("Hello, {name}!\n")))
}

/// Serves the measured handler on the function host, until SIGTERM.
pub(crate) fn serve_host() -> ExitCode {
    function_host::run(greet_by_name_in_body)
}

/// The processors on which the measured server and the load run.
pub(crate) struct ProcessorPlacement {
    server: CpuSet,
    load: CpuSet,
}

impl ProcessorPlacement {
    /// Assigns the last `server_processor_count` of this process's processors to the server, and the others to the
    /// load, or the same ones if there are no others.
    pub(crate) fn choose_processors_shared_if_none_left(
        server_processor_count: usize,
    ) -> anyhow::Result<Self> {
        let all = sched_getaffinity(None).context("could not read the processors of this process")?;
        let usable: Vec<_> = (0..CpuSet::MAX_CPU)
            .filter(|number| all.is_set(*number))
            .collect();
        ensure!(
            (1..=usable.len()).contains(&server_processor_count),
            "--processors should be 1 to {}",
            usable.len()
        );
        let (load, server) = usable.split_at(usable.len() - server_processor_count);
        let load = if load.is_empty() { server } else { load };
        Ok(Self {
            server: cpu_set_of(server),
            load: cpu_set_of(load),
        })
    }

    /// Moves this thread, which sends the load, to the processors of the load.
    pub(crate) fn move_this_thread_to_load_processors(&self) -> anyhow::Result<()> {
        sched_setaffinity(None, &self.load).context("could not change the processors of this process")
    }
}

fn cpu_set_of(numbers: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    for number in numbers {
        set.set(*number);
    }
    set
}

/// A measured server that runs in a process. Dropping it kills the process.
pub(crate) struct MeasuredServer {
    kind: ServerKind,
    process: Child,
    pid: Pid,
    address: SocketAddr,
    // Kept open, because the server logs to it.
    _output: BufReader<ChildStdout>,
}

impl MeasuredServer {
    /// Starts a measured server and waits until it listens.
    pub(crate) async fn start_and_wait(
        kind: ServerKind,
        placement: &ProcessorPlacement,
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("could not find this program")?;
        // A child inherits its parent's processors, and starts a thread for each. So this process moves to the server's
        // processors, starts the child, and moves back.
        sched_setaffinity(None, &placement.server)
            .context("could not change the processors of this process")?;
        let process = Command::new(program)
            .arg(format!("serve-{kind}"))
            .envs([
                ("port", "0"),
                ("metrics_port", "0"),
                ("healthcheck_interval", "0s"),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        placement.move_this_thread_to_load_processors()?;
        let mut process = process.context("could not start the server")?;
        let pid = process
            .id()
            .and_then(|pid| Pid::from_raw(pid.cast_signed()))
            .context("the server has exited")?;
        let mut output = BufReader::new(process.stdout.take().context("the server has no output")?);
        let port = tokio::time::timeout(START_OR_STOP_TIMEOUT, read_port_from_log(&mut output))
            .await
            .context("the server does not listen in time")??;
        Ok(Self {
            kind,
            process,
            pid,
            address: (Ipv4Addr::LOCALHOST, port).into(),
            _output: output,
        })
    }

    pub(crate) fn kind(&self) -> ServerKind {
        self.kind
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the processor time that the server has used, in user and kernel mode.
    pub(crate) fn processor_time_used(&self) -> anyhow::Result<Duration> {
        let path = format!("/proc/{}/stat", self.pid.as_raw_nonzero());
        let text = std::fs::read_to_string(path)?;
        // Fields 14 and 15 of proc_pid_stat(5), counted from the end of field 2, a name that may contain spaces.
        let fields: Vec<_> = text.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        let (user, system) = ticks(11)
            .zip(ticks(12))
            .context("could not read /proc/PID/stat")?;
        Ok(Duration::from_secs_f64(
            (user + system) as f64 / rustix::param::clock_ticks_per_second() as f64,
        ))
    }

    /// Returns the peak of the server's resident memory, in KiB.
    pub(crate) fn peak_memory_kib(&self) -> anyhow::Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid.as_raw_nonzero()))?;
        let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        peak.context("could not read /proc/PID/status")
    }

    /// Stops the server with SIGTERM, as a provider does.
    pub(crate) async fn stop_with_sigterm(mut self) -> anyhow::Result<()> {
        kill_process(self.pid, Signal::TERM)?;
        let status = tokio::time::timeout(START_OR_STOP_TIMEOUT, self.process.wait())
            .await
            .context("the server does not exit in time")??;
        ensure!(status.success(), "the server exited with {status}");
        Ok(())
    }
}

/// Reads the server's log up to the line with its port, and returns the port.
async fn read_port_from_log(output: &mut BufReader<ChildStdout>) -> anyhow::Result<u16> {
    let mut line = String::new();
    while output.read_line(&mut line).await? > 0 {
        let value: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        if value["message"] == "listening" {
            let port = value["port"].as_u64().and_then(|port| u16::try_from(port).ok());
            return port.context("the log line of the server has no port");
        }
        line.clear();
    }
    bail!("the server exited")
}
