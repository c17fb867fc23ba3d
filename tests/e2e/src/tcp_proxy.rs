//! A TCP proxy to a part of the stack, which a test can disconnect and reconnect.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy, split},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::JoinHandle,
};

/// A running TCP proxy; it stops on drop.
#[derive(Debug)]
pub struct TcpProxy {
    url: String,
    state: watch::Sender<OpenStateAndDisconnectCount>,
    connections: Arc<AtomicUsize>,
    answered: Arc<AtomicU64>,
    serving: JoinHandle<()>,
}

/// The state of the proxy. Connections from before a disconnect are dropped even if the proxy reconnects at once:
/// `disconnects` counts up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OpenStateAndDisconnectCount {
    is_open: bool,
    disconnects: usize,
}

/// The address to which connections are forwarded.
#[derive(Debug, Clone)]
enum ProxyTarget {
    Tcp(String),
    Unix(PathBuf),
}

/// A connection of either kind that bytes are forwarded to.
trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

impl TcpProxy {
    /// Starts a proxy on a loopback address to a URL with the scheme `unix`, `tcp` or `http`.
    pub async fn start_to(target_url: &str) -> Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), target_url).await
    }

    /// Starts a proxy at this address of the machine to a URL with the scheme `unix`, `tcp` or `http`.
    pub async fn start_at(address: IpAddr, target_url: &str) -> Result<Self> {
        let (scheme, rest) = target_url
            .split_once("://")
            .with_context(|| format!("not a URL: {target_url}"))?;
        let (scheme, target) = match scheme {
            "unix" => ("tcp", ProxyTarget::Unix(Path::new(rest).to_owned())),
            _ => (scheme, ProxyTarget::Tcp(rest.trim_end_matches('/').to_owned())),
        };
        let listener = TcpListener::bind((address, 0)).await?;
        let url = format!("{scheme}://{}", listener.local_addr()?);
        let state = watch::Sender::new(OpenStateAndDisconnectCount {
            is_open: true,
            disconnects: 0,
        });
        let connections = Arc::<AtomicUsize>::default();
        let answered = Arc::<AtomicU64>::default();
        let serving = tokio::spawn(accept_and_forward(
            listener,
            target,
            state.subscribe(),
            connections.clone(),
            answered.clone(),
        ));
        Ok(Self {
            url,
            state,
            connections,
            answered,
            serving,
        })
    }

    /// Returns the URL of the TCP proxy.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Drops all connections of the proxy, and new ones until
    /// [`accept_connections_again`](Self::accept_connections_again).
    pub fn drop_connections_until_accepted_again(&self) {
        self.state.send_modify(|state| {
            state.is_open = false;
            state.disconnects += 1;
        });
    }

    /// Lets the proxy forward new connections again.
    pub fn accept_connections_again(&self) {
        self.state.send_modify(|state| state.is_open = true);
    }

    /// Returns the number of bytes that the part has sent through the proxy.
    pub fn answered_bytes(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Returns the number of connections that are open through the proxy.
    pub fn open_connection_count(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl ProxyTarget {
    async fn connect_to_target(&self) -> std::io::Result<Box<dyn ByteStream>> {
        Ok(match self {
            Self::Tcp(address) => Box::new(TcpStream::connect(address).await?),
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    }
}

/// Forwards each connection to the target until the proxy is disconnected; drops new ones while it is.
async fn accept_and_forward(
    listener: TcpListener,
    target: ProxyTarget,
    state: watch::Receiver<OpenStateAndDisconnectCount>,
    connections: Arc<AtomicUsize>,
    answered: Arc<AtomicU64>,
) {
    while let Ok((near, _)) = listener.accept().await {
        let (target, mut state, connections) = (target.clone(), state.clone(), connections.clone());
        let answered = answered.clone();
        let initial = *state.borrow();
        tokio::spawn(async move {
            let forward = async {
                // If the part is down, the client's connection is closed.
                let Ok(far) = target.connect_to_target().await else {
                    return;
                };
                connections.fetch_add(1, Ordering::SeqCst);
                let _connection = OpenConnectionGuard(connections);
                forward_until_both_sides_end(near, far, &answered).await;
            };
            tokio::select! {
                biased;
                _ = state.wait_for(|state| !state.is_open || state.disconnects != initial.disconnects) => {}
                () = forward => {}
            }
        });
    }
}

/// Forwards the bytes of a connection in both directions, and counts those of the part, until both sides have ended.
async fn forward_until_both_sides_end(near: impl ByteStream, far: impl ByteStream, answered: &AtomicU64) {
    let ((mut from_client, mut to_client), (mut from_part, mut to_part)) = (split(near), split(far));
    let requests = async {
        copy(&mut from_client, &mut to_part).await?;
        to_part.shutdown().await
    };
    let answers = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = from_part.read(&mut buffer).await?;
            if count == 0 {
                return to_client.shutdown().await;
            }
            answered.fetch_add(count as u64, Ordering::Relaxed);
            to_client.write_all(&buffer[..count]).await?;
        }
    };
    // If one direction fails, so does the other.
    tokio::try_join!(requests, answers).ok();
}

/// A guard that counts a connection as open until it is dropped.
struct OpenConnectionGuard(Arc<AtomicUsize>);

impl Drop for OpenConnectionGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
