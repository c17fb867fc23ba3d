//! A BuildKit daemon, and one gRPC connection to it.

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::InfoRequest;
use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_client::LlbBridgeClient;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use super::{
    BuildkitVersion, DaemonAddress, Dialer, HTTP2_CONNECTION_WINDOW_BYTES, HTTP2_STREAM_WINDOW_BYTES,
    MAX_GRPC_MESSAGE_BYTES, Platform, TlsError,
};

/// The longest wait for a connection to a daemon, and again for the answer to a check on it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest wait until the host of one of several daemons accepts a connection. Its kernel does that, so that a busy
/// daemon is not taken for a lost one.
const QUICK_REACH_TIMEOUT: Duration = Duration::from_millis(300);

/// How long a build waits for a daemon that restarts, as it does to load a renewed certificate.
pub(super) const DAEMON_RESTART_GRACE: Duration = Duration::from_secs(15);

/// The pause between two attempts to connect to a daemon that restarts.
pub(super) const PAUSE_BETWEEN_RECONNECTS: Duration = Duration::from_millis(500);

/// The limit on the headers and trailers of a daemon's answer, in bytes. A failed solve's trailers contain the
/// Dockerfile, several times. A daemon that may not send so much, 16 KiB in hyper's default, resets the call, which
/// looks like a lost daemon.
const MAX_HEADER_LIST_BYTES: u32 = 16 << 20;

/// A BuildKit daemon: its address, and the transport that reaches it.
#[derive(Clone)]
pub struct Daemon {
    name: Arc<str>,
    dial: Arc<dyn Dialer>,
    /// The platforms that the daemon builds for, sorted; empty for every platform that no other daemon is bound to.
    platforms: Arc<[Platform]>,
}

/// The reason why the daemon cannot be connected to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The daemon did not answer, or the peer is not a BuildKit daemon.
    #[error("BuildKit at {daemon} does not answer")]
    Unreachable {
        /// The address of the daemon, for messages.
        daemon: Arc<str>,
        /// The error of the transport or of the gRPC call.
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The daemon or the builder does not trust the other's certificate.
    #[error("the connection to BuildKit at {daemon} is not secure: {reason}")]
    NotSecure {
        /// The address of the daemon, for messages.
        daemon: Arc<str>,
        /// The reason why one side does not trust the other. It is part of the error's text, because a caller sees
        /// nothing else.
        reason: Box<TlsError>,
    },
}

impl ConnectError {
    /// Returns whether the daemon did not answer, and may answer later; `false` if a certificate is not trusted.
    pub(crate) fn may_answer_later(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// Returns whether the daemon's host refused the connection, as it does while the daemon restarts.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Unreachable { source, .. }
            if source.downcast_ref().is_some_and(|error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused))
    }
}

/// A gRPC connection to a daemon. It is never re-established: Session, Solve and Status must reach the same daemon.
#[derive(Clone)]
pub struct Connection {
    channel: Channel,
    daemon: Daemon,
}

impl Daemon {
    /// Returns a handle of the daemon at `address`, without connecting.
    pub fn at(address: DaemonAddress) -> Self {
        Self::with_dialer(address.to_string(), address)
    }

    /// Returns a handle of the daemon that `dial` connects to, without connecting; `name` is its address in messages.
    pub fn with_dialer(name: impl Into<Arc<str>>, dial: impl Dialer) -> Self {
        Self {
            name: name.into(),
            dial: Arc::new(dial),
            platforms: Arc::default(),
        }
    }

    /// Binds the daemon to these platforms: it builds for no other. Without any, it is bound to none.
    #[must_use]
    pub fn bound_to(self, platforms: impl IntoIterator<Item = Platform>) -> Self {
        let platforms: BTreeSet<_> = platforms.into_iter().collect();
        Self {
            platforms: platforms.into_iter().collect(),
            ..self
        }
    }

    /// Returns the platforms that the daemon is bound to, sorted; empty if it is bound to none.
    pub(super) fn bound_platforms(&self) -> &[Platform] {
        &self.platforms
    }

    /// Returns the daemon's address, for messages.
    pub fn address_for_messages(&self) -> &str {
        &self.name
    }

    /// Connects to the daemon; fails after 10 s at the latest.
    ///
    /// # Errors
    /// Fails if nothing listens at the address, or does not answer in time, or one side does not trust the other.
    pub async fn connect(&self) -> Result<Connection, ConnectError> {
        self.connect_reaching_within(CONNECT_TIMEOUT).await
    }

    /// Connects to one of several daemons: fails after 300 ms if its host does not accept the connection, and otherwise
    /// as [`connect`](Self::connect) does.
    ///
    /// # Errors
    /// Fails as [`connect`](Self::connect) does.
    pub(crate) async fn connect_if_host_accepts_quickly(&self) -> Result<Connection, ConnectError> {
        self.connect_reaching_within(QUICK_REACH_TIMEOUT).await
    }

    /// Connects to the daemon, whose host has to accept the connection within `limit`.
    async fn connect_reaching_within(&self, limit: Duration) -> Result<Connection, ConnectError> {
        let connecting = async {
            let transport = match tokio::time::timeout(limit, self.dial.open_transport()).await {
                Ok(transport) => transport.map_err(|error| self.to_not_secure_or_unreachable_error(error))?,
                Err(elapsed) => return Err(self.unreachable_error(elapsed)),
            };
            let io = self
                .dial
                .secure_transport(transport)
                .await
                .map_err(|error| self.to_not_secure_or_unreachable_error(error))?;
            let mut io = Some(TokioIo::new(io));
            let connect_once = tower::service_fn(move |_| {
                let io = io.take();
                async move {
                    io.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection was lost"))
                }
            });
            // The host is only the authority of the requests.
            let endpoint = Endpoint::from_static("http://buildkit")
                .http2_max_header_list_size(MAX_HEADER_LIST_BYTES)
                .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
                .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES);
            let channel = endpoint.connect_with_connector(connect_once).await;
            channel.map_err(|error| self.unreachable_error(error))
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(channel) => Ok(Connection {
                channel: channel?,
                daemon: self.clone(),
            }),
            Err(elapsed) => Err(self.unreachable_error(elapsed)),
        }
    }

    /// Connects to the daemon; while its host refuses connections, tries again for 15 s, so that a restart of the
    /// daemon loses no build.
    ///
    /// # Errors
    /// Fails as [`connect`](Self::connect) does, at once unless the connection was refused.
    pub async fn connect_despite_restart(&self) -> Result<Connection, ConnectError> {
        let deadline = Instant::now() + DAEMON_RESTART_GRACE;
        loop {
            match self.connect().await {
                Err(error) if error.is_refusal() && Instant::now() < deadline => {
                    tokio::time::sleep(PAUSE_BETWEEN_RECONNECTS).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Connects to the daemon, checks that it answers a request, and returns the version that it reports.
    ///
    /// # Errors
    /// Fails if the daemon cannot be reached or answers with an error.
    pub async fn check_that_it_answers(&self) -> Result<BuildkitVersion, ConnectError> {
        self.connect().await?.ask_version().await
    }

    /// Returns [`Unreachable`](ConnectError::Unreachable) with this daemon's address and `source`.
    pub(super) fn unreachable_error(
        &self,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> ConnectError {
        ConnectError::Unreachable {
            daemon: self.name.clone(),
            source: source.into(),
        }
    }

    /// Converts an error of the transport: a broken TLS handshake and errors that are not about TLS are
    /// [`Unreachable`](ConnectError::Unreachable), and the others [`NotSecure`](ConnectError::NotSecure).
    fn to_not_secure_or_unreachable_error(&self, error: io::Error) -> ConnectError {
        match error.downcast::<TlsError>() {
            Ok(TlsError::Broken(source)) | Err(source) => self.unreachable_error(source),
            Ok(reason) => ConnectError::NotSecure {
                daemon: self.name.clone(),
                reason: Box::new(reason),
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
    /// Returns the daemon at the other end.
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// Asks the daemon for the version that it reports of itself.
    ///
    /// # Errors
    /// Fails if the daemon does not answer, or answers with an error.
    pub(crate) async fn ask_version(&self) -> Result<BuildkitVersion, ConnectError> {
        let answer = async { self.control_client().info(InfoRequest {}).await };
        match tokio::time::timeout(CONNECT_TIMEOUT, answer).await {
            Ok(Ok(answer)) => {
                let version = answer.into_inner().buildkit_version.unwrap_or_default();
                Ok(BuildkitVersion::new(version.version))
            }
            Ok(Err(status)) => Err(self.daemon.unreachable_error(status)),
            Err(elapsed) => Err(self.daemon.unreachable_error(elapsed)),
        }
    }

    /// Returns a client for the daemon's gRPC service `LLBBridge`, the gateway API.
    pub(super) fn bridge_client(&self) -> LlbBridgeClient<Channel> {
        LlbBridgeClient::new(self.channel.clone()).max_decoding_message_size(MAX_GRPC_MESSAGE_BYTES)
    }

    /// Returns a client for the daemon's gRPC service `Control`.
    pub(super) fn control_client(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone()).max_decoding_message_size(MAX_GRPC_MESSAGE_BYTES)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::buildkit::DialFuture;

    #[tokio::test]
    async fn a_connect_error_names_the_address_of_the_daemon_that_does_not_answer() {
        let daemon = Daemon::at("unix:///nowhere/buildkitd.sock".parse().expect("address"));

        let error = daemon.connect().await.expect_err("nothing listens there");

        assert_eq!(
            error.to_string(),
            "BuildKit at unix:///nowhere/buildkitd.sock does not answer"
        );
        assert!(error.source().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn connecting_to_a_daemon_that_never_accepts_times_out() {
        struct NeverAcceptingDialer;
        impl Dialer for NeverAcceptingDialer {
            fn open_transport(&self) -> DialFuture {
                Box::pin(std::future::pending())
            }
        }

        Daemon::with_dialer("silent", NeverAcceptingDialer)
            .connect()
            .await
            .expect_err("it never answers");
    }

    /// A dialer that counts connection attempts, refuses the first `refusals` of them, and fails the others with
    /// `NotFound`.
    #[derive(Clone)]
    struct RefusingThenNotFoundDialer {
        attempts: Arc<AtomicUsize>,
        refusals: usize,
    }

    impl Dialer for RefusingThenNotFoundDialer {
        fn open_transport(&self) -> DialFuture {
            let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
            let kind = if attempt < self.refusals {
                io::ErrorKind::ConnectionRefused
            } else {
                io::ErrorKind::NotFound
            };
            Box::pin(async move { Err(kind.into()) })
        }
    }

    /// Returns the number of connection attempts to a daemon whose host refuses the first `refusals`.
    async fn count_connection_attempts(refusals: usize) -> usize {
        let dialer = RefusingThenNotFoundDialer {
            attempts: Arc::default(),
            refusals,
        };
        Daemon::with_dialer("restarting", dialer.clone())
            .connect_despite_restart()
            .await
            .expect_err("it never accepts");
        dialer.attempts.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_connection_is_tried_again_until_it_is_no_longer_refused() {
        assert_eq!(count_connection_attempts(3).await, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_connection_is_given_up_after_the_restart_grace() {
        let began = Instant::now();

        count_connection_attempts(usize::MAX).await;

        assert_eq!(began.elapsed(), DAEMON_RESTART_GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_fails_with_not_found_is_not_tried_again() {
        assert_eq!(count_connection_attempts(0).await, 1);
    }
}
