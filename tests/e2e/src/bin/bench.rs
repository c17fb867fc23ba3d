//! Measures Slipway as deployed, against `buildctl` and faas-cli; see [`slipway_e2e::deployed_benchmark`].
#![expect(clippy::print_stdout, reason = "the measurements are the output")]

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Parser;
use slipway_e2e::deployed_benchmark::{DeployedBenchmark, SCENARIOS, report_as_json};

#[derive(Parser)]
struct BenchmarkOptions {
    /// Measured rounds of each scenario
    #[arg(long, env = "BENCH_ROUNDS", default_value_t = 20)]
    rounds: usize,
    /// Measure only scenarios whose name contains this: large, small-pushed, small-deployed, many-files, handler-line,
    /// new-function
    #[arg(long, env = "BENCH_ONLY", default_value = "")]
    only: String,
    /// The file for the raw numbers
    #[arg(long, env = "BENCH_REPORT", default_value = "target/bench/report.json")]
    report: PathBuf,
}

fn main() -> Result<()> {
    let options = BenchmarkOptions::parse();
    let benchmark = DeployedBenchmark::start()?;
    println!("{} rounds; seconds\n", options.rounds);
    println!("| what | way | median | p95 | ratio |\n| --- | --- | --- | --- | --- |");
    let mut all = Vec::new();
    for scenario in SCENARIOS
        .into_iter()
        .filter(|scenario| scenario.name_part().contains(&options.only))
    {
        let measured = benchmark.measure(scenario, options.rounds)?;
        println!("{measured}");
        all.push(measured);
        // After each scenario, so that an interrupted run keeps what it has measured.
        if let Some(folder) = options.report.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&options.report, report_as_json(&all).to_string())
            .with_context(|| format!("writing {}", options.report.display()))?;
    }
    println!("\nLargest resident memory of builder-fn:");
    for measured in &all {
        let mebibytes = measured.builder_peak_bytes as f64 / f64::from(1 << 20);
        println!("  {}: {mebibytes:.1} MiB", measured.scenario.title());
    }
    Ok(())
}
