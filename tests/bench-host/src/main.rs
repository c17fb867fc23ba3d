//! What the function host costs: requests per second, processor time and memory of the hello handler, served by the host
//! and by a plain hyper server, in one run.
//!
//! Each server is a process of its own; pairs of runs take turns, so that whatever else the machine does meets both. The
//! ratios are of pairs, the figures shown are medians.

mod child;
mod load;
mod plain;
mod report;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};

use child::Kind;
use report::{Pair, Run};

/// Compares the function host with a plain hyper server.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    serve: Option<Serve>,
    /// Pairs of runs.
    #[arg(long, default_value_t = 9)]
    pairs: usize,
    /// Seconds of each run, after a warm-up of a fifth of it.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Connections, each with one request at a time.
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Processors the server may use; the load has the others, or shares where there is no other.
    #[arg(long, default_value_t = 1)]
    processors: usize,
    /// Only see that it works: one pair of short runs. The figures then mean nothing.
    #[arg(long)]
    quick: bool,
}

/// What the processes that are measured do.
#[derive(Subcommand)]
enum Serve {
    /// Serve with the host.
    #[command(hide = true)]
    ServeHost,
    /// Serve with hyper alone.
    #[command(hide = true)]
    ServePlain,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.serve {
        Some(Serve::ServeHost) => return child::serve_host(),
        Some(Serve::ServePlain) => return plain::serve(),
        None => {}
    }
    match compare(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn compare(arguments: &Arguments) -> anyhow::Result<()> {
    let (pairs, seconds) = match arguments.quick {
        true => (1, 0.3),
        false => (arguments.pairs, arguments.seconds),
    };
    ensure!(pairs > 0 && seconds > 0.0 && arguments.connections > 0, "nothing to be measured");
    let placement = child::Placement::choose(arguments.processors)?;
    placement.move_load()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let run = |kind: Kind| -> anyhow::Result<Run> {
        runtime
            .block_on(measure(kind, &placement, arguments.connections, Duration::from_secs_f64(seconds)))
            .with_context(|| format!("could not measure {kind}"))
    };
    let mut measured = Vec::new();
    for number in 0..pairs {
        // Who goes first takes turns as well.
        let pair = if number % 2 == 0 {
            let plain = run(Kind::Plain)?;
            Pair { plain, host: run(Kind::Host)? }
        } else {
            let host = run(Kind::Host)?;
            Pair { plain: run(Kind::Plain)?, host }
        };
        report::pair(number + 1, &pair);
        measured.push(pair);
    }
    report::summary(&measured);
    Ok(())
}

async fn measure(
    kind: Kind,
    placement: &child::Placement,
    connections: usize,
    time: Duration,
) -> anyhow::Result<Run> {
    let server = child::Server::start(kind, placement).await?;
    load::run(server.address(), connections, time / 5).await?;
    let before = server.processor_time()?;
    let answered = load::run(server.address(), connections, time).await?;
    let spent = server.processor_time()? - before;
    ensure!(answered.requests > 0, "no request was answered");
    let run = Run {
        per_second: answered.requests as f64 / answered.took.as_secs_f64(),
        microseconds_each: spent.as_secs_f64() * 1e6 / answered.requests as f64,
        peak_kib: server.peak_memory()?,
    };
    server.stop().await?;
    Ok(run)
}
