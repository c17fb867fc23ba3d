//! A cable to a part of the stack, which can be cut: bytes go through it as they are.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
    task::JoinHandle,
};

/// The cable; it ends with the value.
#[derive(Debug)]
pub struct Cable {
    url: String,
    state: watch::Sender<State>,
    connections: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

/// A connection of before a cut does not live through it, however soon the cable is mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    whole: bool,
    cuts: usize,
}

/// The other end.
#[derive(Debug, Clone)]
enum End {
    Tcp(String),
    Unix(PathBuf),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Cable {
    /// Lays a cable from a loopback address to where a URL of the scheme `unix`, `tcp` or `http` points.
    pub async fn to(url: &str) -> Result<Self> {
        let (scheme, rest) = url.split_once("://").with_context(|| format!("no URL: {url}"))?;
        let (scheme, end) = match scheme {
            "unix" => ("tcp", End::Unix(Path::new(rest).to_owned())),
            _ => (scheme, End::Tcp(rest.trim_end_matches('/').to_owned())),
        };
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let url = format!("{scheme}://{}", listener.local_addr()?);
        let state = watch::Sender::new(State { whole: true, cuts: 0 });
        let connections = Arc::<AtomicUsize>::default();
        let serving = tokio::spawn(serve(listener, end, state.subscribe(), connections.clone()));
        Ok(Self {
            url,
            state,
            connections,
            serving,
        })
    }

    /// This end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Drops every connection, and every new one too.
    pub fn cut(&self) {
        self.state.send_modify(|state| {
            state.whole = false;
            state.cuts += 1;
        });
    }

    /// Lets connections through again.
    pub fn mend(&self) {
        self.state.send_modify(|state| state.whole = true);
    }

    /// How many connections go through it.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl End {
    async fn connect(&self) -> std::io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(address) => Box::new(TcpStream::connect(address).await?),
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    }
}

async fn serve(
    listener: TcpListener,
    end: End,
    state: watch::Receiver<State>,
    connections: Arc<AtomicUsize>,
) {
    while let Ok((mut near, _)) = listener.accept().await {
        let (end, mut state, connections) = (end.clone(), state.clone(), connections.clone());
        let begun = *state.borrow();
        tokio::spawn(async move {
            let through = async {
                // A part that is not there hangs up on its own.
                let Ok(mut far) = end.connect().await else { return };
                connections.fetch_add(1, Ordering::SeqCst);
                let _counted = Counted(connections);
                copy_bidirectional(&mut near, &mut far).await.ok();
            };
            tokio::select! {
                biased;
                _ = state.wait_for(|state| !state.whole || state.cuts != begun.cuts) => {}
                () = through => {}
            }
        });
    }
}

/// A connection that goes through, until it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
