//! An HTTP proxy to the stack's gateway that records all requests and can pause at one of them.
//!
//! The steps of a rollout are requests to the gateway, so a test can use the pause to stop a deployer, or a part of the
//! stack, exactly between two steps. The proxy forwards everything unchanged, except what a test gives a
//! [route](PausingProxy::add_route_for_exact_path): another function process, or an answer of a provider that this
//! stack does not have.

use std::{
    collections::BTreeMap,
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
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::watch,
    task::JoinHandle,
};

/// The timeout of one forwarded request, longer than any rollout of a test.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(180);

/// Selects the request at which the proxy pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestSelector {
    /// Selects the request with this number; the next one is number 0.
    Number(usize),
    /// Selects the next request with this method.
    NextWithMethod(&'static str),
}

/// The moment at which a request is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PausePoint {
    /// A pause before the request is sent to the gateway.
    BeforeForwarding,
    /// A pause after the gateway has answered, and before the caller gets the answer.
    AfterResponse,
}

/// A route for requests of one path, other than to the gateway.
#[derive(Debug, Clone)]
pub enum ExtraRoute {
    /// Forwards requests to the path `/` of this URL, which has no trailing slash.
    Server(String),
    /// Answers requests with 200 and this JSON.
    Answer(Value),
}

/// A running proxy. It forwards all requests until
/// [`reset_and_release_and_pause_at`](Self::reset_and_release_and_pause_at); it stops on drop.
#[derive(Debug)]
pub struct PausingProxy {
    url: String,
    inner: Arc<ProxyShared>,
    serving: JoinHandle<()>,
}

/// What the connections of the proxy share.
#[derive(Debug)]
struct ProxyShared {
    gateway: String,
    http: reqwest::Client,
    state: Mutex<ProxyState>,
    routes: Mutex<Routes>,
    /// Whether a request is paused.
    is_paused: watch::Sender<bool>,
}

/// The requests since the last reset, and where to pause.
#[derive(Debug, Default)]
struct ProxyState {
    requests: Vec<String>,
    pause: Option<(RequestSelector, PausePoint)>,
    /// The number of the selected request, once it has arrived.
    selected: Option<usize>,
}

/// The routes by the path of their requests.
type Routes = BTreeMap<String, ExtraRoute>;

impl PausingProxy {
    /// Starts a proxy to this gateway on a free port.
    pub async fn start_to_gateway(gateway: &str) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let inner = ProxyShared::for_gateway(gateway)?;
        let serving = tokio::spawn({
            let inner = Arc::clone(&inner);
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(Arc::clone(&inner).serve_connection(stream));
                }
            }
        });
        Ok(Self { url, inner, serving })
    }

    /// Returns the proxy's URL, for use as the gateway's.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Gives requests for this path, without their query, a route other than the gateway.
    pub fn add_route_for_exact_path(&self, path: &str, route: ExtraRoute) {
        self.inner.routes().insert(path.to_owned(), route);
    }

    /// Forgets all requests so far, forwards the one that is paused, and pauses at one of the following.
    pub fn reset_and_release_and_pause_at(&self, request: RequestSelector, point: PausePoint) {
        self.reset_and_set_pause(Some((request, point)));
    }

    /// Forgets all requests so far, and forwards the paused request and all following ones.
    pub fn reset_and_forward_again(&self) {
        self.reset_and_set_pause(None);
    }

    /// Forgets all requests so far; the next one is number 0.
    pub fn clear_requests(&self) {
        self.inner.lock().requests.clear();
    }

    fn reset_and_set_pause(&self, pause: Option<(RequestSelector, PausePoint)>) {
        *self.inner.lock() = ProxyState {
            pause,
            ..ProxyState::default()
        };
        self.inner.is_paused.send_replace(false);
    }

    /// Waits until a request is paused. Fails after [`FORWARD_TIMEOUT`].
    pub async fn wait_until_paused(&self) -> Result<()> {
        let mut is_paused = self.inner.is_paused.subscribe();
        let paused = is_paused.wait_for(|is_paused| *is_paused);
        tokio::time::timeout(FORWARD_TIMEOUT, paused)
            .await
            .with_context(|| format!("the selected request did not arrive, only {:?}", self.requests()))?
            .context("the proxy has stopped")?;
        Ok(())
    }

    /// Returns the requests since the last reset: method and path.
    pub fn requests(&self) -> Vec<String> {
        self.inner.lock().requests.clone()
    }

    /// Returns the requests since the last reset to paths below `/system/`, other than with GET.
    pub fn changing_system_requests(&self) -> Vec<String> {
        let is_write = |line: &String| !line.starts_with("GET ") && line.contains(" /system/");
        self.requests().into_iter().filter(is_write).collect()
    }
}

impl Drop for PausingProxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl ProxyState {
    /// Records a request, returns its number, and notes whether it is the selected one.
    fn record_request_and_get_number(&mut self, request: &Request<Incoming>) -> usize {
        let number = self.requests.len();
        self.requests
            .push(format!("{} {}", request.method(), request.uri().path()));
        let is_selected = match self.pause {
            Some((RequestSelector::Number(selected), _)) => selected == number,
            Some((RequestSelector::NextWithMethod(method), _)) => method == request.method().as_str(),
            None => false,
        };
        if is_selected && self.selected.is_none() {
            self.selected = Some(number);
        }
        number
    }
}

impl ProxyShared {
    fn for_gateway(gateway: &str) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            gateway: gateway.trim_end_matches('/').to_owned(),
            http: reqwest::Client::builder()
                .no_proxy()
                .timeout(FORWARD_TIMEOUT)
                .redirect(reqwest::redirect::Policy::none())
                .build()?,
            state: Mutex::default(),
            routes: Mutex::default(),
            is_paused: watch::Sender::new(false),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, ProxyState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve_connection(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let service = service_fn(|request| {
            let inner = Arc::clone(&self);
            async move { Ok::<_, Infallible>(inner.handle_request(request).await) }
        });
        // If a connection breaks, the caller has closed it.
        let connection =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        drop(connection.await);
    }

    /// Forwards a request, and pauses before or after that if it is the selected one.
    async fn handle_request(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let number = self.lock().record_request_and_get_number(&request);
        self.pause_if_selected(number, PausePoint::BeforeForwarding).await;
        let answer = self.forward_to_route_or_gateway(request).await;
        self.pause_if_selected(number, PausePoint::AfterResponse).await;
        answer.unwrap_or_else(|error| {
            let mut response = Response::new(Full::from(format!("{error:#}")));
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response
        })
    }

    /// Waits until the next reset of the proxy if it pauses at this point of this request.
    async fn pause_if_selected(&self, number: usize, point: PausePoint) {
        {
            let state = self.lock();
            if state.selected != Some(number) || state.pause.is_none_or(|(_, selected)| selected != point) {
                return;
            }
            self.is_paused.send_replace(true);
        }
        drop(self.is_paused.subscribe().wait_for(|is_paused| !is_paused).await);
    }

    /// Sends a request to its route or to the gateway, and returns the answer.
    async fn forward_to_route_or_gateway(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
        let (head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let route = self.routes().get(head.uri.path()).cloned();
        let url = match route {
            None => format!("{}{path}", self.gateway),
            Some(ExtraRoute::Server(url)) => format!("{url}/"),
            Some(ExtraRoute::Answer(json)) => return Ok(Response::new(Full::from(json.to_string()))),
        };
        let answer = self
            .http
            .request(head.method, url)
            .headers(without_host_length_and_connection_headers(head.headers))
            .body(body.collect().await?.to_bytes())
            .send()
            .await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let mut response = Response::new(Full::from(answer.bytes().await?));
        *response.status_mut() = status;
        *response.headers_mut() = without_host_length_and_connection_headers(headers);
        Ok(response)
    }
}

/// Removes headers that belong to a connection rather than to the message.
fn without_host_length_and_connection_headers(mut headers: HeaderMap) -> HeaderMap {
    for name in [HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
        headers.remove(name);
    }
    headers
}
