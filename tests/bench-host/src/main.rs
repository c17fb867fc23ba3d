//! Measures the overhead of the function host over a plain hyper server.
//!
//! The figures are requests per second, processor time and memory of the same handler on both servers, in one run. Each
//! server is a process of its own. Both run all the time, and receive load in alternating rounds of a fraction of a
//! second, so that other load on the machine affects both alike. Requests per second are medians over the rounds, and
//! their ratio is the median of the ratios of neighboring rounds; processor time is a mean over all rounds, and memory
//! a peak.

mod child;
mod load;
mod plain;
mod report;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};

use child::{MeasuredServer, ProcessorPlacement, ServerKind};
use report::{LoadRound, RoundPair};

/// Compares the function host with a plain hyper server.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    serve: Option<ServeCommand>,
    /// Number of rounds of load on each server.
    #[arg(long, default_value_t = 60)]
    rounds: usize,
    /// Duration of a round of load, in milliseconds.
    #[arg(long, default_value_t = 250)]
    milliseconds: u64,
    /// Number of connections, each with one request at a time.
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Number of processors for the server. The load uses the others, or the same ones if there are no others.
    #[arg(long, default_value_t = 1)]
    processors: usize,
    /// Run only a few short rounds, to check that the benchmark works. The figures then mean nothing.
    #[arg(long)]
    quick: bool,
}

/// The hidden commands by which the benchmark starts its measured servers.
#[derive(Subcommand)]
enum ServeCommand {
    /// Serve the handler on the host.
    #[command(hide = true)]
    ServeHost,
    /// Serve the handler on hyper alone.
    #[command(hide = true)]
    ServePlain,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.serve {
        Some(ServeCommand::ServeHost) => return child::serve_host(),
        Some(ServeCommand::ServePlain) => return plain::serve_on_hyper(),
        None => {}
    }
    match run_comparison(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::print_error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Starts both servers, sends load to them in turns, prints the figures, and stops the servers.
fn run_comparison(arguments: &Arguments) -> anyhow::Result<()> {
    let (rounds, duration) = match arguments.quick {
        true => (2, Duration::from_millis(100)),
        false => (arguments.rounds, Duration::from_millis(arguments.milliseconds)),
    };
    ensure!(
        rounds > 0 && !duration.is_zero() && arguments.connections > 0,
        "--rounds, --milliseconds and --connections should be at least 1"
    );
    let placement = ProcessorPlacement::choose_processors_shared_if_none_left(arguments.processors)?;
    placement.move_this_thread_to_load_processors()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let plain = MeasuredServer::start_and_wait(ServerKind::Plain, &placement).await?;
        let host = MeasuredServer::start_and_wait(ServerKind::Host, &placement).await?;
        let round = async |server: &MeasuredServer| {
            let before = server.processor_time_used()?;
            let load = load::run_load(server.address(), arguments.connections, duration).await;
            let load = load.with_context(|| format!("the {} server failed", server.kind()))?;
            ensure!(
                load.requests > 0,
                "the {} server answered no request",
                server.kind()
            );
            Ok(LoadRound {
                load,
                processor_time: server.processor_time_used()? - before,
            })
        };
        // Warms up caches and branch predictors.
        round(&plain).await?;
        round(&host).await?;
        let mut pairs = Vec::new();
        for number in 0..rounds {
            // The servers take turns at going first.
            pairs.push(if number % 2 == 0 {
                let plain = round(&plain).await?;
                RoundPair {
                    plain,
                    host: round(&host).await?,
                }
            } else {
                let host = round(&host).await?;
                RoundPair {
                    plain: round(&plain).await?,
                    host,
                }
            });
        }
        report::print_summary(&pairs, plain.peak_memory_kib()?, host.peak_memory_kib()?);
        plain.stop_with_sigterm().await?;
        host.stop_with_sigterm().await
    })
}
