//! One connection to one daemon.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::InfoRequest;
use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint};

use super::{Address, CONNECTION_WINDOW, MAX_MESSAGE, STREAM_WINDOW, TlsFault};

/// How long a daemon may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A daemon that vanished without a word is noticed by the kernel after idle + 4 × interval. HTTP/2 pings would do
/// the same, but buildkitd closes connections whose pings come more often than every 5 minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Bytes in both directions.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Io for T {}

/// A connection that is being made.
pub type Dialing = Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send>>;

/// How to reach a daemon: sockets here, TLS or something in memory elsewhere.
pub trait Dial: Send + Sync + 'static {
    /// Makes a new connection.
    fn dial(&self) -> Dialing;
}

/// A BuildKit daemon.
#[derive(Clone)]
pub struct Daemon {
    name: Arc<str>,
    dial: Arc<dyn Dial>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The daemon cannot be reached, or what answers is not one.
    #[error("BuildKit at {daemon} does not answer")]
    Unreachable {
        /// Its address.
        daemon: Arc<str>,
        /// What went wrong.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// It is there, or may be, and one side does not trust the other.
    #[error("the connection to BuildKit at {daemon} is not secure: {fault}")]
    NotSecure {
        /// Its address.
        daemon: Arc<str>,
        /// Who does not trust whom, and why. Part of the text: who reads it has no other way to know.
        fault: Box<TlsFault>,
    },
}

/// One connection. It is not made again when it breaks: Session, Solve and Status must reach the same daemon.
#[derive(Clone)]
pub struct Connection {
    channel: Channel,
}

impl Daemon {
    /// The daemon that listens at `address`.
    pub fn at(address: Address) -> Self {
        Self::dialled_by(address.to_string(), address)
    }

    /// The daemon that `dial` leads to; `name` is for messages.
    pub fn dialled_by(name: impl Into<Arc<str>>, dial: impl Dial) -> Self {
        Self {
            name: name.into(),
            dial: Arc::new(dial),
        }
    }

    /// Its address, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Connects, within 10 s.
    ///
    /// # Errors
    /// When nothing listens there, or not in time, or when it is not to be trusted.
    pub async fn connect(&self) -> Result<Connection, ConnectError> {
        let connecting = async {
            let io = self.dial.dial().await.map_err(|error| self.refused(error))?;
            let mut io = Some(TokioIo::new(io));
            let connect_once = tower::service_fn(move |_| {
                let io = io.take();
                async move {
                    io.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection was lost"))
                }
            });
            // The name is only what requests carry as their authority.
            let endpoint = Endpoint::from_static("http://buildkit")
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW);
            let channel = endpoint.connect_with_connector(connect_once).await;
            channel.map_err(|error| self.unreachable(error))
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(channel) => Ok(Connection { channel: channel? }),
            Err(elapsed) => Err(self.unreachable(elapsed)),
        }
    }

    /// Whether the daemon takes requests now.
    ///
    /// # Errors
    /// When it cannot be reached, or refuses.
    pub async fn probe(&self) -> Result<(), ConnectError> {
        let connection = self.connect().await?;
        let asked = async { connection.control().info(InfoRequest {}).await };
        match tokio::time::timeout(CONNECT_TIMEOUT, asked).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(self.unreachable(status)),
            Err(elapsed) => Err(self.unreachable(elapsed)),
        }
    }

    fn unreachable(&self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> ConnectError {
        ConnectError::Unreachable {
            daemon: self.name.clone(),
            source: source.into(),
        }
    }

    fn refused(&self, error: io::Error) -> ConnectError {
        match error.downcast::<TlsFault>() {
            Ok(TlsFault::Broken(source)) | Err(source) => self.unreachable(source),
            Ok(fault) => ConnectError::NotSecure {
                daemon: self.name.clone(),
                fault: Box::new(fault),
            },
        }
    }
}

impl fmt::Debug for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Daemon").field(&self.name).finish()
    }
}

impl Connection {
    /// The daemon's main service, over this connection.
    pub(super) fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

impl Dial for Address {
    fn dial(&self) -> Dialing {
        match self.clone() {
            Address::Unix(path) => {
                Box::pin(async move { Ok(Box::new(UnixStream::connect(path).await?) as _) })
            }
            Address::Tcp { host, port } => {
                Box::pin(async move { Ok(Box::new(dial_tcp(&host, port).await?) as _) })
            }
        }
    }
}

pub(super) async fn dial_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_daemon_that_is_not_there_is_named() {
        let daemon = Daemon::at("unix:///nowhere/buildkitd.sock".parse().expect("address"));

        let error = daemon.connect().await.expect_err("nothing is there");

        assert_eq!(
            error.to_string(),
            "BuildKit at unix:///nowhere/buildkitd.sock does not answer"
        );
        assert!(error.source().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_never_accepts_is_given_up() {
        struct Silent;
        impl Dial for Silent {
            fn dial(&self) -> Dialing {
                Box::pin(std::future::pending())
            }
        }

        Daemon::dialled_by("silent", Silent)
            .connect()
            .await
            .expect_err("it never answers");
    }

    #[tokio::test]
    async fn tcp_connections_are_kept_alive_by_the_kernel() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();

        let stream = dial_tcp("127.0.0.1", port).await.expect("dial");

        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().expect("keepalive"));
        assert_eq!(socket.tcp_keepalive_time().expect("time"), KEEPALIVE_IDLE);
    }
}
