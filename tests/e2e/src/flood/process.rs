//! A flood from a process of its own, which uses only the processor time that nobody else wants.
//!
//! Senders and receivers share one machine here, and an attacker has processors of his own. So the kernel runs this
//! process only when no other one is ready: what remains is the work that the flood makes for its receivers.

use std::{
    fs,
    io::Read as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::{Flood, FloodTargetAndRequestForm, UnsignedSender};
use crate::network_namespace::NetworkNamespace;

/// The argument with which a benchmark's program runs as the process of a flood.
pub const SENDERS_COMMAND: &str = "senders";

/// The lowest priority of a session (`/proc/PID/autogroup`, sched(7)).
const LOWEST_AUTOGROUP_PRIORITY: &str = "19";

/// The function that receives a flood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FloodedFunction {
    /// builder-fn
    Builder,
    /// deployer-fn
    Deployer,
}

/// The arguments of the process of a flood.
#[derive(Debug, Clone, Args)]
pub struct AllKindsSenderOptions {
    /// The function that receives the flood
    #[arg(long)]
    pub function: FloodedFunction,
    /// The process id of the function, whose network namespace the senders use
    #[arg(long)]
    pub pid: u32,
    /// The port of the function
    #[arg(long)]
    pub port: u16,
    /// The number of senders
    #[arg(long)]
    pub count: usize,
}

/// A running process of a flood, killed on drop.
#[derive(Debug)]
pub struct FloodProcess {
    child: Child,
}

/// What the senders of a flood have sent, and how they were answered.
#[derive(Debug, Default)]
pub struct FloodReport {
    /// The number of connections that the senders opened.
    pub connections: u64,
    /// The number of requests whose heads were sent whole.
    pub requests: u64,
    /// The number of bytes that the senders sent, without those of [`UnsignedSender::Trickle`].
    pub bytes: u64,
    /// The answers of each kind of sender.
    pub answers: Vec<FloodAnswer>,
}

/// An answer that senders of one kind got.
#[derive(Debug)]
pub struct FloodAnswer {
    /// The name of the kind of sender that got the answer.
    pub kind: String,
    /// The answer: a status, `closed`, or an error.
    pub answer: String,
    /// The number of times that senders of this kind got the answer.
    pub count: u64,
}

impl FloodedFunction {
    /// Returns the form of requests to the function on this port of the loopback interface.
    pub fn target(self, port: u16) -> FloodTargetAndRequestForm {
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        match self {
            Self::Builder => FloodTargetAndRequestForm {
                address,
                path: "/build",
                signature: "X-Build-Signature",
                body: 1 << 20,
            },
            Self::Deployer => FloodTargetAndRequestForm {
                address,
                path: "/",
                signature: "X-Deploy-Signature",
                body: 500 << 10,
            },
        }
    }
}

impl FloodProcess {
    /// Starts senders of all kinds, in a session of its own and with the scheduling policy for idle time.
    pub fn start(options: &AllKindsSenderOptions) -> Result<Self> {
        let function = options.function.to_possible_value().context("the function")?;
        let child = Command::new("setsid")
            .args(["chrt", "--idle", "0"])
            .arg(std::env::current_exe()?)
            .args([SENDERS_COMMAND, "--function", function.get_name()])
            .args([
                "--pid",
                &options.pid.to_string(),
                "--port",
                &options.port.to_string(),
            ])
            .args(["--count", &options.count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("setsid chrt")?;
        Ok(Self { child })
    }

    /// Returns the process id of the flood's process.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Ends the flood, and returns what the senders sent and how they were answered.
    pub fn stop(mut self) -> Result<FloodReport> {
        // The end of its input ends the process.
        drop(self.child.stdin.take());
        let mut text = String::new();
        let output = self.child.stdout.as_mut().context("no output")?;
        output.read_to_string(&mut text)?;
        ensure!(self.child.wait()?.success(), "the process of the flood failed");
        FloodReport::from_json(&serde_json::from_str(&text)?)
    }
}

impl Drop for FloodProcess {
    fn drop(&mut self) {
        // The process may have exited already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl FloodReport {
    fn from_json(value: &Value) -> Result<Self> {
        let number = |name: &str| value[name].as_u64().with_context(|| name.to_owned());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let answers = value["answers"].as_array().context("answers")?;
        let answers = answers.iter().map(|answer| FloodAnswer {
            kind: text(&answer["kind"]),
            answer: text(&answer["answer"]),
            count: answer["count"].as_u64().unwrap_or_default(),
        });
        Ok(Self {
            connections: number("connections")?,
            requests: number("requests")?,
            bytes: number("bytes")?,
            answers: answers.collect(),
        })
    }
}

/// Runs senders until the standard input ends, and returns what they have sent as JSON, for
/// [`FloodProcess::stop`].
pub fn run_senders_until_stdin_ends(options: &AllKindsSenderOptions) -> Result<String> {
    // Sessions share the processors before the policies of their processes count. Without the file they do not.
    fs::write("/proc/self/autogroup", LOWEST_AUTOGROUP_PRIORITY).ok();
    let flood = Flood::start(
        options.function.target(options.port),
        &UnsignedSender::ALL,
        options.count,
        Some(NetworkNamespace::of_process(options.pid)?),
    )?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    let answers = flood.outcome_counts().into_iter();
    let answers = answers.map(
        |((kind, answer), count)| json!({ "kind": format!("{kind:?}"), "answer": answer, "count": count }),
    );
    Ok(json!({
        "connections": flood.connection_count(),
        "requests": flood.complete_head_count(),
        "bytes": flood.sent_bytes_without_trickle(),
        "answers": answers.collect::<Vec<_>>(),
    })
    .to_string())
}
