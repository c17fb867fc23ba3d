//! From listening to the end: what SIGTERM sets off, in which order, and by when it is over.
//!
//! Two threads have part in it. One serves; the other only waits for signals and for the deadline. A handler that blocks
//! can stop everything on the first one, its clock and its signals too: the end does not depend on it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::duration;
use crate::handler::Handler;
use crate::server::Server;
use crate::settings::Settings;
use crate::shutdown::ShutdownTrigger;

/// How long handlers that are dropped may take for that. They should take no time at all.
const DROPPING: Duration = Duration::from_secs(1);

/// How a function came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As the serving thread says.
    Told(Told),
    /// The serving thread panicked: in the setup, since all else is caught.
    Panicked,
    /// It was asked, and handlers did not let it end.
    Blocked,
    /// It was asked again.
    AtOnce,
}

/// How the serving thread came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// It was asked to.
    InOrder,
    /// A setting is wrong.
    WrongSettings,
    /// It could not start, for any other reason.
    Failed,
}

/// Passes the first signal on to the serving thread and sees to it that the process ends in time.
pub(crate) async fn watch_over(
    mut signals: Signals,
    ask: watch::Sender<bool>,
    mut told: oneshot::Receiver<Told>,
    settings: &Settings,
    flushing: Duration,
) -> End {
    let ended = |told: Result<Told, _>| told.map_or(End::Panicked, End::Told);
    tokio::select! {
        told = &mut told => return ended(told),
        () = signals.next() => {}
    }
    ask.send_replace(true);
    let latest = settings.healthcheck_interval + finishing(settings) + DROPPING + flushing;
    tokio::select! {
        told = told => ended(told),
        () = signals.next() => End::AtOnce,
        () = tokio::time::sleep(latest) => {
            tracing::error!("handlers block, and are left behind");
            End::Blocked
        }
    }
}

/// How long requests may run on after the port is closed.
fn finishing(settings: &Settings) -> Duration {
    settings
        .write_timeout
        .max(settings.exec_timeout.unwrap_or_default())
}

/// Waits until the function is asked to end.
pub(crate) async fn asked(ask: &mut watch::Receiver<bool>) {
    // Where the sender is gone the process ends.
    let _ = ask.wait_for(|asked| *asked).await;
}

/// Serves until asked to end, and then to the end.
pub(crate) async fn serve<H: Handler>(
    server: &Server<H>,
    settings: &Settings,
    trigger: &ShutdownTrigger,
    ask: &mut watch::Receiver<bool>,
) -> std::io::Result<()> {
    let listener = listen(settings.port).await?;
    let metrics_listener = listen(settings.metrics_port).await?;
    // Of the listeners, not of the settings: 0 asks for any port.
    let (port, metrics_port) = (
        listener.local_addr()?.port(),
        metrics_listener.local_addr()?.port(),
    );
    let _metrics = server.serve_metrics(metrics_listener);
    let mut serving = server.serve(listener);
    tracing::info!(port, metrics_port, "listening");

    asked(ask).await;
    let closing = Instant::now() + settings.healthcheck_interval;
    let deadline = closing + finishing(settings);
    trigger.begin(deadline);
    let grace = duration::format(settings.healthcheck_interval);
    tracing::info!(
        grace,
        running = server.running(),
        "asked to end, not ready any more"
    );
    sleep_until(closing).await;

    let limit = duration::format(finishing(settings));
    tracing::info!(limit, running = server.running(), "not listening any more");
    serving.close();
    let finished = tokio::select! {
        () = serving.ended() => true,
        () = sleep_until(deadline) => false,
    };
    if !finished {
        tracing::warn!(
            running = server.running(),
            "out of time, what still runs is dropped"
        );
        serving.cut();
        serving.ended().await;
    }
    tracing::info!("ended");
    Ok(())
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
