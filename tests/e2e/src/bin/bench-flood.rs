//! Measures signed builds beside a flood of unsigned senders: latency with and without the flood, failures, processor
//! time, and the peak memory of builder-fn and deployer-fn; see [`slipway_e2e::flood_benchmark`].
#![expect(clippy::print_stdout, reason = "the measurements are the output")]

use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use slipway_e2e::{
    flood::process::{AllKindsSenderOptions, SENDERS_COMMAND, run_senders_until_stdin_ends},
    flood_benchmark::{FloodBenchmark, FloodReceiverPlacement},
};

#[derive(Parser)]
struct FloodBenchmarkOptions {
    /// Senders at a time, three quarters of them at builder-fn
    #[arg(long, default_value_t = 2000)]
    senders: usize,
    /// Seconds with the flood, and as many without it
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Seconds of the flood before the measurement beside it
    #[arg(long, default_value_t = 5)]
    warm_up: u64,
    /// Measure processes beside the stack instead of the stack's functions
    #[arg(long)]
    processes: bool,
    #[command(subcommand)]
    command: Option<HiddenCommand>,
}

#[derive(Subcommand)]
enum HiddenCommand {
    /// Run as the process of a flood, which the benchmark starts
    #[command(name = SENDERS_COMMAND, hide = true)]
    Senders(AllKindsSenderOptions),
}

fn main() -> Result<()> {
    let options = FloodBenchmarkOptions::parse();
    if let Some(HiddenCommand::Senders(senders)) = &options.command {
        println!("{}", run_senders_until_stdin_ends(senders)?);
        return Ok(());
    }
    let receivers = match options.processes {
        true => FloodReceiverPlacement::Processes,
        false => FloodReceiverPlacement::Stack,
    };
    let runtime = tokio::runtime::Runtime::new()?;
    let benchmark = runtime.block_on(FloodBenchmark::find_or_start_functions(receivers))?;
    let [warm_up, length] = [options.warm_up, options.seconds].map(Duration::from_secs);
    println!(
        "{}",
        benchmark.measure_with_and_without_flood(options.senders, warm_up, length)?
    );
    Ok(())
}
