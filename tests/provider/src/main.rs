//! The provider's program: serves the API of one of the two backends, removes all functions, or collects a function's
//! log.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};
use slipway_dev_provider::{
    KubernetesSettings, ProviderSettings, collect_output, kill_and_remove_all_functions_and_logs,
    restore_functions_and_serve_api_until_stopped, serve_kubernetes_until_stopped,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// A development provider: the faas-provider REST API over containerd and CNI, or over Kubernetes.
#[derive(Parser)]
#[command(version)]
struct ProviderArguments {
    #[command(subcommand)]
    task: ProviderTask,
}

#[derive(Subcommand)]
enum ProviderTask {
    /// Serve the REST API and the function proxy until SIGTERM; functions continue to run afterwards.
    Serve(Box<ProviderSettings>),
    /// Serve the REST API and the function proxy of a Kubernetes cluster until SIGTERM, as faas-netes does.
    ServeKubernetes(Box<KubernetesSettings>),
    /// Remove all functions, with their logs. No provider may be running.
    Cleanup(Box<ProviderSettings>),
    /// Collect the output of a function; containerd's shim runs this.
    #[command(hide = true)]
    Collect {
        /// The directory of the function's logs.
        directory: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = ProviderArguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .init();
    match run_task(arguments.task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the provider failed");
            ExitCode::FAILURE
        }
    }
}

/// Runs the task on an async runtime of its own until it is done; `serve` until SIGTERM or SIGINT.
fn run_task(task: ProviderTask) -> anyhow::Result<()> {
    // Every function has a collector process, for which one thread is enough.
    let mut builder = match task {
        ProviderTask::Collect { .. } => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    runtime.block_on(async {
        match task {
            ProviderTask::Serve(settings) => {
                restore_functions_and_serve_api_until_stopped(*settings, stop_signal()?).await?
            }
            ProviderTask::ServeKubernetes(settings) => {
                serve_kubernetes_until_stopped(*settings, stop_signal()?).await?;
            }
            ProviderTask::Cleanup(settings) => kill_and_remove_all_functions_and_logs(*settings).await?,
            ProviderTask::Collect { directory } => collect_output(&directory).await?,
        }
        Ok(())
    })
}

/// Returns a future that resolves at SIGTERM or SIGINT. Both are handled from now on.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
