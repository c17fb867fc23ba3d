//! Measures signed builds beside a flood of unsigned senders: latency with and without the flood, failures, and the
//! peak memory of builder-fn and deployer-fn; see [`slipway_e2e::flood_benchmark`].
#![expect(clippy::print_stdout, reason = "the measurements are the output")]

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use slipway_e2e::flood_benchmark::{FloodBenchmark, FloodedFunctions};

#[derive(Parser)]
struct FloodBenchmarkOptions {
    /// Senders at a time, three quarters of them at builder-fn
    #[arg(long, default_value_t = 2000)]
    senders: usize,
    /// Seconds with the flood, and as many without it
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Measure processes beside the stack instead of the stack's functions
    #[arg(long)]
    processes: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = FloodBenchmarkOptions::parse();
    let receivers = match options.processes {
        true => FloodedFunctions::Processes,
        false => FloodedFunctions::Stack,
    };
    let benchmark = FloodBenchmark::start(receivers).await?;
    let result = benchmark
        .measure_with_and_without_flood(options.senders, Duration::from_secs(options.seconds))
        .await?;
    println!("{result}");
    Ok(())
}
