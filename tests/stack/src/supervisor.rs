//! The supervisor of a stack: PID 1 of its namespaces. It makes the mounts and the network, starts and stops
//! the parts, writes their logs, and takes commands over a socket. When it ends, the whole stack ends.
//!
//! A part that ends by itself is not restarted; the status reports it as ended.

mod faasd;
mod forward;
mod logs;
mod mounts;
mod network;
mod parts;
mod ready;
mod reaper;
mod serve;
mod spec;

use std::fs;

use futures_util::future::try_join_all;
use tokio::signal::unix::{SignalKind, signal};

pub(crate) use self::logs::older;
use self::{forward::Forward, parts::Parts, reaper::Reaper, spec::Context};
use crate::{
    error::{At as _, Error, Result},
    places::StackDir,
    plan::{Plan, Provider},
};

/// Supervises the stack until a command or SIGTERM ends it. This process must be PID 1 of new mount, PID and
/// cgroup namespaces.
pub fn run(dir: StackDir) -> Result<()> {
    let plan = Plan::read(&dir)?.ok_or_else(|| Error::Machine(format!("there is no stack {}", dir.name)))?;
    let number = plan.number;
    let context = Context { dir, plan };
    let resolver = mounts::make()?;
    if let Provider::Faasd(faasd) = &context.plan.provider {
        faasd::prepare(&context.dir, &faasd.program, &context.containerd_socket())?;
    }
    resolver.mount()?;
    // Before `enter`, while this process is still in the machine's network namespace.
    let door = forward::loopback_registry(&context)?;
    network::enter(number)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime
        .at("start the runtime of", &context.dir.root)?
        .block_on(supervise(context, door))
}

async fn supervise(context: Context, door: Option<std::net::TcpListener>) -> Result<()> {
    let socket = context.dir.control();
    // An earlier supervisor may have left its socket.
    let _ = fs::remove_file(&socket);
    let listener = tokio::net::UnixListener::bind(&socket).at("listen on", &socket)?;
    let mut terminate = signal(SignalKind::terminate()).at("take signals for", &socket)?;
    let reaper = Reaper::default();
    let forwards = forward::all(&context, door).await?;
    let parts = Parts::new(context, reaper.clone());
    tokio::select! {
        ended = reaper.collect() => ended.at("collect children of", &socket),
        ended = try_join_all(forwards.iter().map(Forward::serve)) => ended.map(drop),
        ended = serve::serve(&listener, &parts) => ended,
        _ = terminate.recv() => {
            parts.stop_all(&|_| ()).await;
            Ok(())
        }
    }
}
