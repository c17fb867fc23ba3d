//! How long builder-fn takes from source to pushed image, against `buildctl`; see `slipway_e2e::compare`.
#![expect(clippy::print_stdout, reason = "what it measures is what it prints")]

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use slipway_e2e::compare::{Comparison, Medians, SHAPES};

#[derive(Parser)]
struct Options {
    /// Rounds of each shape.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// A folder of this machine, such as a toolchain, to be built with each side's own default compression.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Only shapes whose name has this in it.
    #[arg(long, default_value = "")]
    only: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let comparison = Comparison::start().await?;
    println!("builder-fn / buildctl, medians of {} rounds", options.rounds);
    for shape in SHAPES
        .into_iter()
        .filter(|shape| shape.name.contains(&options.only))
    {
        println!("{}", shape.name);
        println!("{}", comparison.rounds(shape, options.rounds).await?);
    }
    if "16 at once".contains(&options.only) {
        let (pairs, peak) = comparison.at_once(SHAPES[0], 16, options.rounds).await?;
        println!(
            "16 at once\n  cold     {}\n  peak     {} KiB",
            Medians(&pairs),
            peak >> 10
        );
    }
    if let Some(folder) = &options.folder {
        let (pairs, peak) = comparison.folder(folder, options.rounds).await?;
        println!(
            "{}, at the defaults\n  cold     {}\n  peak     {} KiB",
            folder.display(),
            Medians(&pairs),
            peak >> 10
        );
    }
    Ok(())
}
