//! A door in front of the stack's gateway: it passes everything on, counts it, and can be held shut at one request.
//!
//! It adds nothing and answers nothing itself. What it is for: to stop a deployer, or a part of the stack, exactly between two
//! steps of a rollout, which are requests to the gateway.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, TRANSFER_ENCODING},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::watch,
    task::JoinHandle,
};

/// Longer than any rollout of a test.
const LONGEST: Duration = Duration::from_secs(180);

/// Which request is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The one of this number, the next being zero.
    Number(usize),
    /// The next one with this method.
    Next(&'static str),
}

/// When a request is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Before the gateway has seen it.
    Before,
    /// When the gateway has answered it, and before its sender learns of that.
    After,
}

/// The door. It is open until [`hold`](Self::hold); it ends with the value.
#[derive(Debug)]
pub struct Turnstile {
    url: String,
    inner: Arc<Inner>,
    serving: JoinHandle<()>,
}

#[derive(Debug)]
struct Inner {
    gateway: String,
    http: reqwest::Client,
    state: Mutex<State>,
    /// Whether a request is being held.
    held: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    seen: Vec<String>,
    hold: Option<(Which, Moment)>,
    /// The number of the request that is held or to be held, once it is there.
    chosen: Option<usize>,
}

impl Turnstile {
    /// A door in front of this gateway, on a port of its own.
    pub async fn before(gateway: &str) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let inner = Inner::of(gateway)?;
        let serving = tokio::spawn({
            let inner = Arc::clone(&inner);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(Arc::clone(&inner).serve(stream));
                }
            }
        });
        Ok(Self { url, inner, serving })
    }

    /// Its address, to be taken for the gateway's.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// From here on requests are counted from zero, and one of them is held.
    pub fn hold(&self, which: Which, moment: Moment) {
        self.begin_anew(Some((which, moment)));
    }

    /// From here on requests are counted from zero, and none is held. One that is held goes on.
    pub fn open(&self) {
        self.begin_anew(None);
    }

    fn begin_anew(&self, hold: Option<(Which, Moment)>) {
        *self.inner.lock() = State {
            hold,
            ..State::default()
        };
        self.inner.held.send_replace(false);
    }

    /// Waits until a request is held.
    pub async fn held(&self) -> Result<()> {
        let mut held = self.inner.held.subscribe();
        held.wait_for(|held| *held).await.context("the door is gone")?;
        Ok(())
    }

    /// What has been asked since the count began: method and path.
    pub fn seen(&self) -> Vec<String> {
        self.inner.lock().seen.clone()
    }

    /// What of it was to change something.
    pub fn changes(&self) -> Vec<String> {
        let is_change = |line: &String| !line.starts_with("GET ") && line.contains(" /system/");
        self.seen().into_iter().filter(is_change).collect()
    }
}

impl Drop for Turnstile {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl State {
    fn count(&mut self, request: &Request<Incoming>) -> usize {
        let number = self.seen.len();
        self.seen
            .push(format!("{} {}", request.method(), request.uri().path()));
        let is_it = match self.hold {
            Some((Which::Number(held), _)) => held == number,
            Some((Which::Next(method), _)) => method == request.method().as_str(),
            None => false,
        };
        if is_it && self.chosen.is_none() {
            self.chosen = Some(number);
        }
        number
    }
}

impl Inner {
    fn of(gateway: &str) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            gateway: gateway.trim_end_matches('/').to_owned(),
            http: reqwest::Client::builder()
                .no_proxy()
                .timeout(LONGEST)
                .redirect(reqwest::redirect::Policy::none())
                .build()?,
            state: Mutex::default(),
            held: watch::Sender::new(false),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let service = service_fn(|request| {
            let inner = Arc::clone(&self);
            async move { Ok::<_, Infallible>(inner.pass(request).await) }
        });
        // A connection that breaks off is its sender's doing.
        let connection =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        drop(connection.await);
    }

    async fn pass(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let number = self.lock().count(&request);
        self.stop(number, Moment::Before).await;
        let answer = self.ask(request).await;
        self.stop(number, Moment::After).await;
        answer.unwrap_or_else(|error| {
            let mut response = Response::new(Full::from(format!("{error:#}")));
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response
        })
    }

    /// Waits while this is what is held.
    async fn stop(&self, number: usize, moment: Moment) {
        {
            let state = self.lock();
            if state.chosen != Some(number) || state.hold.is_none_or(|(_, held)| held != moment) {
                return;
            }
            self.held.send_replace(true);
        }
        drop(self.held.subscribe().wait_for(|held| !held).await);
    }

    async fn ask(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
        let (head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let answer = self
            .http
            .request(head.method, format!("{}{path}", self.gateway))
            .headers(without_hop(head.headers))
            .body(body.collect().await?.to_bytes())
            .send()
            .await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let mut response = Response::new(Full::from(answer.bytes().await?));
        *response.status_mut() = status;
        *response.headers_mut() = without_hop(headers);
        Ok(response)
    }
}

/// Without what is about one connection and not about the message.
fn without_hop(mut headers: HeaderMap) -> HeaderMap {
    for name in [HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
        headers.remove(name);
    }
    headers
}
