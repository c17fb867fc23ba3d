//! What the function host costs: requests per second, processor time and memory of the hello handler, served by the host
//! and by a plain hyper server, in one run.
//!
//! Each server is a process of its own. Both run all the time and get load in turns of a fraction of a second, so that
//! whatever else the machine does meets both alike. The figures are medians of turns and of the ratios of neighbours.

mod child;
mod load;
mod plain;
mod report;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};

use child::{Kind, Placement, Server};
use report::{Pair, Turn};

/// Compares the function host with a plain hyper server.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    serve: Option<Serve>,
    /// Turns of each server.
    #[arg(long, default_value_t = 60)]
    turns: usize,
    /// Milliseconds of a turn.
    #[arg(long, default_value_t = 250)]
    milliseconds: u64,
    /// Connections, each with one request at a time.
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Processors the server may use; the load has the others, or shares where there is no other.
    #[arg(long, default_value_t = 1)]
    processors: usize,
    /// Only see that it works: a few short turns. The figures then mean nothing.
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
    let (turns, time) = match arguments.quick {
        true => (2, Duration::from_millis(100)),
        false => (arguments.turns, Duration::from_millis(arguments.milliseconds)),
    };
    ensure!(
        turns > 0 && !time.is_zero() && arguments.connections > 0,
        "nothing to be measured"
    );
    let placement = Placement::choose(arguments.processors)?;
    placement.move_load()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let plain = Server::start(Kind::Plain, &placement).await?;
        let host = Server::start(Kind::Host, &placement).await?;
        let turn = async |server: &Server| {
            let before = server.processor_time()?;
            let load = load::run(server.address(), arguments.connections, time).await;
            let answered = load.with_context(|| format!("the {} server failed", server.kind()))?;
            ensure!(
                answered.requests > 0,
                "the {} server answered nothing",
                server.kind()
            );
            Ok(Turn {
                answered,
                processor_time: server.processor_time()? - before,
            })
        };
        // Memory and branches are warmed up.
        turn(&plain).await?;
        turn(&host).await?;
        let mut pairs = Vec::new();
        for number in 0..turns {
            // Who goes first takes turns as well.
            pairs.push(if number % 2 == 0 {
                let plain = turn(&plain).await?;
                Pair {
                    plain,
                    host: turn(&host).await?,
                }
            } else {
                let host = turn(&host).await?;
                Pair {
                    plain: turn(&plain).await?,
                    host,
                }
            });
        }
        report::summary(&pairs, plain.peak_memory()?, host.peak_memory()?);
        plain.stop().await?;
        host.stop().await
    })
}
