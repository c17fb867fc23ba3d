//! Runs queued builds while parts of the platform fail, and reports what became of each; see [`slipway_e2e::soak`].
//!
//! Exit code 1: something that was accepted was lost, built twice or deployed twice, or another rule was violated.
//! On SIGINT and SIGTERM, the test removes its stack and exits with 130 and 143.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the report is the output"
)]

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use clap::Parser;
use slipway_e2e::soak::{Fault, SoakOptions, run_soak};
use slipway_stack::{ProgressSink, stop_named_stack};
use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Parser)]
struct SoakArguments {
    /// Submissions during each fault
    #[arg(long, env = "SOAK_SUBMISSIONS", default_value_t = 200)]
    submissions: usize,
    /// Functions among which the submissions are distributed
    #[arg(long, env = "SOAK_FUNCTIONS", default_value_t = 100)]
    functions: usize,
    /// Queue-workers
    #[arg(long, default_value_t = 8)]
    workers: usize,
    /// Queue-workers that are killed in the middle of a call, besides the fault
    #[arg(long, default_value_t = 3)]
    killed_workers: usize,
    /// The least time of a build, in seconds
    #[arg(long, default_value_t = 4)]
    build_seconds: u64,
    /// Seconds after which the queue delivers a call again
    #[arg(long, default_value_t = 3)]
    ack_wait: u64,
    /// Faults, one after the other; default: all
    #[arg(long, env = "SOAK_FAULTS", value_enum, value_delimiter = ',')]
    faults: Vec<Fault>,
    /// File for the report in JSON
    #[arg(long, env = "SOAK_REPORT", default_value = "target/soak/report.json")]
    report: PathBuf,
    /// Name of the stack that is started for the test, and removed
    #[arg(long, default_value = "soak")]
    stack: String,
}

/// The signals that end the test: SIGINT, which terminals send, and SIGTERM, which `kill`, make and CI send.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// Registers for the signals, which no longer end the process by themselves.
    fn register() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("handling SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("handling SIGTERM")?,
        })
    }

    /// Waits for the next of the signals, and returns the exit code of a process that it ends.
    async fn next_exit_code(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
        }
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = SoakArguments::parse();
    let mut signals = StopSignals::register()?;
    let folder = arguments.report.parent().unwrap_or(&arguments.report).to_owned();
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut options = SoakOptions {
        stack: arguments.stack,
        submissions: arguments.submissions,
        functions: arguments.functions,
        workers: arguments.workers,
        killed_workers: arguments.killed_workers,
        build_time: Duration::from_secs(arguments.build_seconds),
        ack_wait: Duration::from_secs(arguments.ack_wait),
        ..SoakOptions::default()
    };
    if !arguments.faults.is_empty() {
        options.faults = arguments.faults;
    }
    let report = tokio::select! {
        report = run_soak(&options, Some(&folder), |text| eprintln!("{text}")) => report?,
        code = signals.next_exit_code() => {
            // The processes ended when the test was dropped.
            stop_named_stack(&options.stack, true, &ProgressSink::to_stderr()).await?;
            return Ok(ExitCode::from(code));
        }
    };
    println!("{report}");
    fs::write(&arguments.report, format!("{:#}\n", report.to_json()))
        .with_context(|| format!("writing {}", arguments.report.display()))?;
    let violations = report.violations();
    for violation in &violations {
        println!("{violation}");
    }
    Ok(match violations.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[tokio::test]
    async fn sigint_and_sigterm_end_the_test_instead_of_the_process() -> Result<()> {
        let mut signals = StopSignals::register()?;
        for (name, code) in [("INT", 130), ("TERM", 143)] {
            let id = std::process::id().to_string();
            let sent = std::process::Command::new("kill")
                .args(["-s", name, &id])
                .status()?;
            assert!(sent.success());
            assert_eq!(signals.next_exit_code().await, code, "SIG{name}");
        }
        Ok(())
    }

    #[test]
    fn clap_accepts_the_definition_of_the_command_line() {
        SoakArguments::command().debug_assert();
    }
}
