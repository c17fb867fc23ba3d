//! Connections: accepted, limited in time, drained.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::error::BoxError;
use crate::settings::Settings;

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    read: Duration,
    write: Duration,
}

impl Limits {
    pub(crate) fn of(settings: &Settings) -> Self {
        Self {
            read: settings.read_timeout,
            write: settings.write_timeout,
        }
    }
}

/// A listener that is being served. Dropping it ends all its connections.
pub(crate) struct Serving {
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Serving {
    pub(crate) fn spawn<S, F, B>(listener: TcpListener, limits: Limits, service: S) -> Self
    where
        S: Fn(http::Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<http::Response<B>, Infallible>> + Send + 'static,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let (stop, stopped) = watch::channel(false);
        Self {
            stop,
            accepting: tokio::spawn(accept(listener, limits, service, stopped)),
        }
    }

    /// Closes the port; connections end with their current request.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits until the last connection has ended.
    pub(crate) async fn done(&mut self) {
        if let Err(error) = (&mut self.accepting).await {
            tracing::error!(%error, "serving ended badly");
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Waits until the port is to be closed.
async fn asked(stopped: &mut watch::Receiver<bool>) {
    // Where the sender is gone, all of this is being dropped.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

async fn accept<S, F, B>(
    listener: TcpListener,
    limits: Limits,
    service: S,
    mut stopped: watch::Receiver<bool>,
) where
    S: Fn(http::Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<http::Response<B>, Infallible>> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = asked(&mut stopped) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, limits, service.clone(), stopped.clone()));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: what is open has to end first.
                    tracing::error!(%error, "could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve<S, F, B>(stream: TcpStream, limits: Limits, service: S, mut stopped: watch::Receiver<bool>)
where
    S: Fn(http::Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<http::Response<B>, Infallible>> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.read)
        .serve_connection(TokioIo::new(stream), service_fn(service));
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        biased;
        served = connection.as_mut() => served,
        () = asked(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}
