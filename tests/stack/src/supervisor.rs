//! The supervisor of a stack or cluster: PID 1 of its namespaces. It makes the mounts and the network, starts and stops
//! the parts, writes their logs, and takes commands over a socket. When it ends, the whole stack ends.
//!
//! A part that ends by itself is started again after a delay; until then, the status reports that it has ended.

mod buildkit;
mod disk;
mod faasd;
mod firewall;
mod forward;
mod logs;
pub(crate) mod mounts;
pub(crate) mod network;
mod part_spec;
mod parts;
mod ready;
mod reaper;
mod serve;

use std::fs;

use futures_util::future::try_join_all;
use tokio::signal::unix::{SignalKind, signal};

use self::{forward::Forwarder, parts::PartsHandle};
pub(crate) use self::{
    logs::rotated_log_path,
    part_spec::{
        NATS_CLUSTER_NAME, PartStartSpec, StackDirAndPlan, command_with_clean_environment, egress_spec,
    },
    parts::PartSource,
    ready::HttpCommandLogOrRouteCheck,
    reaper::ProcessReaper,
};
use crate::{
    directories::StackDir,
    error::{IoResultExt as _, LauncherError, Result},
    plan::{ProviderChoice, StackPlan},
};

/// Supervises the stack until a command or SIGTERM ends it. This process must be PID 1 of new mount, PID and
/// cgroup namespaces.
pub fn run_supervisor(dir: StackDir) -> Result<()> {
    let plan = StackPlan::read_plan(&dir)?.ok_or_else(|| {
        LauncherError::Environment(format!(
            "stack {:?} has no plan; `slipway-stack up` makes one",
            dir.name
        ))
    })?;
    let config = StackDirAndPlan { dir, plan };
    let resolver = mounts::mount_all_but_resolv_conf()?;
    if let ProviderChoice::Faasd(faasd) = &config.plan.provider {
        faasd::prepare_mounts_for_faasd(&config.dir, &faasd.program, &config.containerd_socket_path())?;
    }
    resolver.mount_stack_resolv_conf()?;
    disk::mount_buildkit_disk(&config.dir)?;
    // Before `create_and_enter_stack_networks`, while this process is still in the machine's network namespace.
    let loopback = forward::listen_for_loopback_registry_if_faasd(&config)?;
    network::create_and_enter_stack_networks(&config.plan)?;
    run_on_this_thread(
        &config.dir.clone(),
        supervise_stack_with_forwarders_and_disk_guard(config, loopback),
    )
}

/// Runs a future to its end on this thread, whose network namespace every socket and child process then has.
pub(crate) fn run_on_this_thread(dir: &StackDir, future: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime
        .with_operation("start the runtime of", &dir.root)?
        .block_on(future)
}

/// Starts the forwarders and the guard of the disk, and supervises the parts of the stack.
async fn supervise_stack_with_forwarders_and_disk_guard(
    config: StackDirAndPlan,
    loopback: Option<std::net::TcpListener>,
) -> Result<()> {
    let reaper = ProcessReaper::default();
    let forwarders = forward::open_forwarders(&config, loopback).await?;
    let beside = async {
        tokio::select! {
            ended = try_join_all(forwarders.iter().map(Forwarder::accept_and_forward_until_error)) => ended.map(drop),
            ended = disk::end_steps_that_fill_disk_until_error(&config, &reaper) => ended,
        }
    };
    supervise_parts_until_shutdown_or_failure(&config.dir, config.clone(), &reaper, beside).await
}

/// Starts the control socket, and serves commands until a shutdown command, SIGTERM or a failure of this or of
/// `beside`. No part is started before a command starts it.
pub(crate) async fn supervise_parts_until_shutdown_or_failure<S: PartSource>(
    dir: &StackDir,
    source: S,
    reaper: &ProcessReaper,
    beside: impl Future<Output = Result<()>>,
) -> Result<()> {
    let socket = dir.control_socket();
    // An earlier supervisor may have left its socket.
    let _ = fs::remove_file(&socket);
    let listener = tokio::net::UnixListener::bind(&socket).with_operation("listen on", &socket)?;
    let mut terminate = signal(SignalKind::terminate()).with_operation("handle signals for", &socket)?;
    let parts = PartsHandle::new(source, reaper.clone());
    tokio::select! {
        ended = reaper.reap_until_dropped() => ended.with_operation("reap children of", &socket),
        ended = beside => ended,
        ended = serve::serve_control_socket(&listener, &parts) => ended,
        _ = terminate.recv() => {
            parts.stop_all(&|_| ()).await;
            Ok(())
        }
    }
}
