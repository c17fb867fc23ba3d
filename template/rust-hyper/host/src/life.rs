//! From listening to the end: what SIGTERM sets off, in which order, and by when it is over.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until, timeout};

use crate::duration;
use crate::handler::Handler;
use crate::server::Server;
use crate::settings::Settings;
use crate::shutdown::Trigger;

/// How long handlers that are dropped may take for that. They should take no time at all.
const DROPPING: Duration = Duration::from_secs(1);

/// How a function came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Asked once.
    InOrder,
    /// Asked again.
    AtOnce,
}

/// Serves until a signal, and then to the end.
pub(crate) async fn serve<H: Handler>(
    server: &Server<H>,
    settings: &Settings,
    trigger: &Trigger,
    signals: &mut Signals,
) -> std::io::Result<End> {
    let listener = listen(settings.port).await?;
    let metrics_listener = listen(settings.metrics_port).await?;
    // Of the listeners, not of the settings: 0 asks for any port.
    let (port, metrics_port) = (
        listener.local_addr()?.port(),
        metrics_listener.local_addr()?.port(),
    );
    let metrics = server.serve_metrics(metrics_listener);
    let mut serving = server.serve(listener);
    tracing::info!(port, metrics_port, "listening");

    signals.next().await;
    let closing = Instant::now() + settings.healthcheck_interval;
    let finishing = settings
        .write_timeout
        .max(settings.exec_timeout.unwrap_or_default());
    let deadline = closing + finishing;
    trigger.begin(deadline);
    let grace = duration::format(settings.healthcheck_interval);
    tracing::info!(
        grace,
        running = server.running(),
        "asked to end, not ready any more"
    );
    tokio::select! {
        () = sleep_until(closing) => {}
        () = signals.next() => return Ok(End::AtOnce),
    }

    let limit = duration::format(finishing);
    tracing::info!(limit, running = server.running(), "not listening any more");
    serving.close();
    let finished = tokio::select! {
        () = serving.ended() => true,
        () = sleep_until(deadline) => false,
        () = signals.next() => return Ok(End::AtOnce),
    };
    if !finished {
        tracing::warn!(
            running = server.running(),
            "out of time, what still runs is dropped"
        );
        serving.cut();
        if timeout(DROPPING, serving.ended()).await.is_err() {
            tracing::error!(running = server.running(), "handlers block, and are left behind");
        }
    }
    drop(metrics);
    tracing::info!("ended");
    Ok(End::InOrder)
}

/// Listens on every address, as Go's servers do: of both families where there are both.
async fn listen(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
    }
}

/// SIGTERM, which providers send, and SIGINT, which a terminal sends.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
