//! The transport of a connection to a daemon: a socket, TLS, or a pipe in memory.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::DaemonAddress;

/// The idle time after which the kernel sends the first keepalive probe.
///
/// After idle + 4 × interval the kernel notices that a daemon has vanished without closing the connection. HTTP/2 pings
/// would do the same, but buildkitd closes connections that ping more often than every 5 minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);

/// The time between two keepalive probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// The number of unanswered keepalive probes after which the kernel closes the connection.
const UNANSWERED_KEEPALIVE_PROBES_MAX: u32 = 4;

/// A stream of bytes in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> ByteStream for T {}

/// A future that establishes a transport to a daemon.
pub type DialFuture = Pin<Box<dyn Future<Output = io::Result<Box<dyn ByteStream>>> + Send>>;

/// A transport that can be established to a daemon: a socket, TLS, or, in tests, a pipe in memory.
pub trait Dialer: Send + Sync + 'static {
    /// Establishes a new transport to the daemon. The kernel of the daemon's host accepts it, however busy the daemon is.
    fn open_transport(&self) -> DialFuture;

    /// Performs the handshake over a new transport, which the daemon itself has to answer. Without one, the transport
    /// stays as it is.
    fn secure_transport(&self, transport: Box<dyn ByteStream>) -> DialFuture {
        Box::pin(std::future::ready(Ok(transport)))
    }
}

impl Dialer for DaemonAddress {
    fn open_transport(&self) -> DialFuture {
        match self.clone() {
            DaemonAddress::Unix(path) => {
                Box::pin(async move { Ok(Box::new(UnixStream::connect(path).await?) as _) })
            }
            DaemonAddress::Tcp { host, port } => {
                Box::pin(async move { Ok(Box::new(dial_tcp(&host, port).await?) as _) })
            }
        }
    }
}

/// Connects over TCP, with `TCP_NODELAY` and keepalive.
pub(super) async fn dial_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(UNANSWERED_KEEPALIVE_PROBES_MAX);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tcp_keepalive_is_enabled_on_connections_to_a_daemon() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();

        let stream = dial_tcp("127.0.0.1", port).await.expect("dial");

        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().expect("keepalive"));
        assert_eq!(socket.tcp_keepalive_time().expect("time"), KEEPALIVE_IDLE);
    }
}
