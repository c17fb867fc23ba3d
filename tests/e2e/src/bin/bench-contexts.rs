//! Measures how long builder-fn takes from context to pushed image, against `buildctl`; see
//! [`slipway_e2e::compare`].
#![expect(clippy::print_stdout, reason = "the measurements are the output")]

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use slipway_e2e::compare::{DisplayedMedians, MEASURED_SHAPES, SpeedComparison};

#[derive(Parser)]
struct BenchmarkOptions {
    /// Rounds of each shape
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// A local folder, such as a toolchain, to build with each client's default compression
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Measure only shapes whose name contains this
    #[arg(long, default_value = "")]
    only: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = BenchmarkOptions::parse();
    let comparison = SpeedComparison::start().await?;
    println!("builder-fn / buildctl, medians of {} rounds", options.rounds);
    for shape in MEASURED_SHAPES
        .into_iter()
        .filter(|shape| shape.name.contains(&options.only))
    {
        println!("{}", shape.name);
        println!("{}", comparison.measure_shape(shape, options.rounds).await?);
    }
    if "16 at once".contains(&options.only) {
        let (pairs, peak) = comparison
            .measure_concurrent_builds_and_peak_memory(MEASURED_SHAPES[0], 16, options.rounds)
            .await?;
        println!(
            "16 at once\n  cold     {}\n  peak     {} KiB",
            DisplayedMedians(&pairs),
            peak >> 10
        );
    }
    if let Some(folder) = &options.folder {
        let (pairs, peak) = comparison
            .measure_folder_and_peak_memory(folder, options.rounds)
            .await?;
        println!(
            "{}, at the defaults\n  cold     {}\n  peak     {} KiB",
            folder.display(),
            DisplayedMedians(&pairs),
            peak >> 10
        );
    }
    Ok(())
}
