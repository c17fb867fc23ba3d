//! The life of a function's process: listening, serving, draining, exiting.
//!
//! Two threads take part. One serves; the other only waits for signals and for the deadline of the shutdown. A
//! handler that blocks can stop everything on the serving thread, including its timers and signals, so the exit must
//! not depend on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::duration;
use crate::server::Server;
use crate::settings::Settings;
use crate::shutdown::ShutdownTrigger;

/// The time limit for dropping the remaining handlers at the drain deadline. The drop should take no time at
/// all.
const HANDLER_DROP_TIMEOUT: Duration = Duration::from_secs(1);

/// The reason for which the function's process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitReason {
    /// The shutdown after a signal is complete.
    Clean,
    /// A setting of the function is wrong.
    WrongSettings,
    /// The function could not start, for another reason than a wrong setting.
    Failed,
    /// The serving thread panicked. That happens in the setup only, because the panics of handlers are caught.
    Panicked,
    /// A handler blocks the serving thread beyond the deadline of the shutdown.
    Blocked,
    /// A second signal ends the process before the shutdown is complete.
    Forced,
}

/// Forwards the first stop signal to the serving thread, and returns the reason for the exit within the time
/// limit.
///
/// `serving` receives how the serving thread ended.
pub(crate) async fn forward_stop_and_wait_for_exit(
    mut signals: StopSignals,
    stop: watch::Sender<bool>,
    mut serving: oneshot::Receiver<ExitReason>,
    settings: &Settings,
    flush_timeout: Duration,
) -> ExitReason {
    tokio::select! {
        exit = &mut serving => return exit.unwrap_or(ExitReason::Panicked),
        () = signals.wait_for_stop_signal() => {}
    }
    stop.send_replace(true);
    let timeout = settings.healthcheck_interval
        + request_drain_timeout(settings)
        + HANDLER_DROP_TIMEOUT
        + flush_timeout;
    tokio::select! {
        exit = serving => exit.unwrap_or(ExitReason::Panicked),
        () = signals.wait_for_stop_signal() => ExitReason::Forced,
        () = tokio::time::sleep(timeout) => {
            tracing::error!("a handler blocks its thread, exiting without waiting for it");
            ExitReason::Blocked
        }
    }
}

/// Returns the time for which requests may still run after the port is closed.
fn request_drain_timeout(settings: &Settings) -> Duration {
    settings
        .write_timeout
        .max(settings.exec_timeout.unwrap_or_default())
}

/// Waits until the function is asked to stop: `stop` becomes true.
pub(crate) async fn wait_for_stop_request(stop: &mut watch::Receiver<bool>) {
    // Fails if the sender was dropped, when the process exits.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Listens on the ports, serves the function until it is asked to stop, and then drains its requests. Fails if it
/// cannot listen.
pub(crate) async fn serve_until_stopped(
    server: &Server,
    settings: &Settings,
    trigger: &ShutdownTrigger,
    stop: &mut watch::Receiver<bool>,
) -> std::io::Result<()> {
    let listener = listen_on_all_addresses(settings.port)?;
    let metrics_listener = listen_on_all_addresses(settings.metrics_port)?;
    // From the listeners, because the setting 0 selects any free port.
    let (port, metrics_port) = (
        listener.local_addr()?.port(),
        metrics_listener.local_addr()?.port(),
    );
    let _metrics = server.serve_metrics(metrics_listener);
    let mut served = server.serve_function(listener);
    tracing::info!(port, metrics_port, "listening");

    wait_for_stop_request(stop).await;
    let drain_start = Instant::now() + settings.healthcheck_interval;
    let deadline = drain_start + request_drain_timeout(settings);
    trigger.begin(deadline);
    tracing::info!(
        grace = duration::format_duration(settings.healthcheck_interval),
        running = server.requests_in_flight(),
        "shutting down: not ready, still accepting requests"
    );
    sleep_until(drain_start).await;

    tracing::info!(
        limit = duration::format_duration(request_drain_timeout(settings)),
        running = server.requests_in_flight(),
        "port closed, draining requests"
    );
    served.start_draining();
    let mut connections_ended = false;
    let draining = async {
        served.wait_until_drained_or_dropped().await;
        connections_ended = true;
        trigger.wait_until_background_work_ended().await;
    };
    let drained = tokio::select! {
        () = draining => true,
        () = sleep_until(deadline) => false,
    };
    if !drained {
        tracing::warn!(
            running = server.requests_in_flight(),
            "drain deadline reached, dropping the remaining requests"
        );
        if !connections_ended {
            served.drop_all_connections();
            served.wait_until_drained_or_dropped().await;
        }
    }
    tracing::info!("stopped");
    Ok(())
}

/// The number of connections that the kernel keeps until they are accepted; the kernel has a limit of its own, usually
/// the same. Beyond it, a client's connection is delayed by a second or more, so a burst of connections should fit.
const LISTEN_BACKLOG_CONNECTIONS: u32 = 4096;

/// Listens at a port on all IPv6 and IPv4 addresses, as servers in Go do; on IPv4 alone if that fails, as without IPv6.
fn listen_on_all_addresses(port: u16) -> std::io::Result<TcpListener> {
    let listen = |socket: TcpSocket, address: IpAddr| {
        // As every server on Unix: the port may be used again at once, after a restart.
        socket.set_reuseaddr(true)?;
        socket.bind((address, port).into())?;
        socket.listen(LISTEN_BACKLOG_CONNECTIONS)
    };
    TcpSocket::new_v6()
        .and_then(|socket| listen(socket, Ipv6Addr::UNSPECIFIED.into()))
        .or_else(|_| listen(TcpSocket::new_v4()?, Ipv4Addr::UNSPECIFIED.into()))
}

/// The signals that stop a function: SIGTERM, which providers send, and SIGINT, which terminals send.
pub(crate) struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Registers for the stop signals, which no longer end the process by themselves from then on.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal that stops the function.
    pub(crate) async fn wait_for_stop_signal(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
