//! The router between the gateway and what it calls: two builders behind one name, a deployer, and the provider.
//!
//! It stands for the Service of a function with two replicas: calls take turns between the builders that run, and a
//! builder that refuses the connection is skipped. Like the provider's proxy, it answers 500 if a function is lost
//! before its answer, and 503 if none runs, and it disconnects from the function when its caller disconnects. It runs
//! in the stack's network, because the provider listens there only.

use std::{
    net::{Ipv4Addr, TcpListener},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Result;
use axum::{
    Router as AxumRouter,
    body::Bytes,
    extract::{Request, State},
    http::{
        HeaderMap, Method, StatusCode,
        header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING},
        request::Parts,
    },
    response::{IntoResponse as _, Response},
};
use serde_json::Value;
use tokio::sync::{oneshot, watch};

use super::journal::{CallbackCallAndStatus, Delivery, DeliveryEnd, FunctionCreationOrUpdate, RoutedTraffic};
use crate::network_namespace::NetworkNamespace;

/// The path to which the queue posts results.
const CALLBACK_PATH: &str = "/soak/callback";

/// The limit on the body of a request, in bytes; calls through the queue are much smaller.
const MAX_BODY_BYTES: usize = 4 << 20;

/// The timeout of one forwarded call, longer than any build of the test.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(20 * 60);

/// A running router; it stops on drop.
#[derive(Debug)]
pub(super) struct Router {
    shared: Arc<RouterShared>,
    port: u16,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What the requests of the router share.
#[derive(Debug)]
struct RouterShared {
    provider: String,
    http: reqwest::Client,
    /// The URLs of the builders that run, without a trailing slash.
    builders: Mutex<Vec<Option<String>>>,
    /// The URL of the deployer, without a trailing slash.
    deployer: Mutex<Option<String>>,
    /// The number of the next call, which selects the builder that gets it.
    next: AtomicUsize,
    /// Whether deliveries are held back.
    is_held: watch::Sender<bool>,
    traffic: Mutex<RoutedTraffic>,
}

/// A guard that holds new deliveries back until it is dropped. Those in progress go on.
#[derive(Debug)]
pub(super) struct HeldDeliveriesGuard(Arc<RouterShared>);

impl Drop for HeldDeliveriesGuard {
    fn drop(&mut self) {
        self.0.is_held.send_replace(false);
    }
}

impl Router {
    /// Starts the router in this network, in front of this provider, with places for `builder_count` builders.
    pub(super) fn start(
        namespace: NetworkNamespace,
        provider_url: &str,
        builder_count: usize,
    ) -> Result<Self> {
        let listener = namespace.run_inside(|| Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?))?;
        let port = listener.local_addr()?.port();
        let shared = RouterShared::new(provider_url, builder_count)?;
        let (stop, stopped) = oneshot::channel();
        let serving = serve_until_stopped(listener, Arc::clone(&shared), stopped);
        let thread = namespace.spawn_inside(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(serving)
        });
        Ok(Self {
            shared,
            port,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Returns the router's URL in the stack's network, for use as the provider's.
    pub(super) fn url(&self) -> String {
        format!("http://{}:{}", Ipv4Addr::LOCALHOST, self.port)
    }

    /// Returns the URL in the stack's network to which the queue is to post results.
    pub(super) fn callback_url(&self) -> String {
        format!("{}{CALLBACK_PATH}", self.url())
    }

    /// Routes calls to the builder with this number to a URL, or to no one.
    pub(super) fn set_builder(&self, number: usize, url: Option<String>) {
        if let Some(builder) = lock(&self.shared.builders).get_mut(number) {
            *builder = url;
        }
    }

    /// Routes hand-overs to the deployer at this URL.
    pub(super) fn set_deployer(&self, url: String) {
        *lock(&self.shared.deployer) = Some(url);
    }

    /// Holds new deliveries back until the returned guard is dropped.
    pub(super) fn hold_deliveries(&self) -> HeldDeliveriesGuard {
        self.shared.is_held.send_replace(true);
        HeldDeliveriesGuard(Arc::clone(&self.shared))
    }

    /// Locks the record of what has passed, and returns it.
    pub(super) fn traffic(&self) -> MutexGuard<'_, RoutedTraffic> {
        lock(&self.shared.traffic)
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The router's failure shows in the calls that it did not forward.
            drop(thread.join());
        }
    }
}

impl RouterShared {
    fn new(provider_url: &str, builder_count: usize) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            provider: provider_url.to_owned(),
            http: reqwest::Client::builder()
                .no_proxy()
                .timeout(FORWARD_TIMEOUT)
                // A connection that a killed function has left behind would look like a lost call.
                .pool_max_idle_per_host(0)
                .redirect(reqwest::redirect::Policy::none())
                .build()?,
            builders: Mutex::new(vec![None; builder_count]),
            deployer: Mutex::default(),
            next: AtomicUsize::new(0),
            is_held: watch::Sender::new(false),
            traffic: Mutex::default(),
        }))
    }

    /// Returns the URLs of the builders that run, in the order in which this call tries them.
    fn take_turn_and_get_running_builder_urls(&self) -> Vec<String> {
        let mut builders = lock(&self.builders).clone();
        let first = self.next.fetch_add(1, Ordering::Relaxed) % builders.len().max(1);
        builders.rotate_left(first);
        builders.into_iter().flatten().collect()
    }

    /// Forwards a call to a builder, and records the delivery.
    async fn forward_to_builder_and_record_delivery(
        self: &Arc<Self>,
        head: &Parts,
        path: &str,
        body: Bytes,
    ) -> Response {
        let delivery = self.begin_delivery(call_id_or_empty(&head.headers)).await;
        for builder in self.take_turn_and_get_running_builder_urls() {
            match self
                .forward(head, &format!("{builder}{path}"), body.clone())
                .await
            {
                Ok(response) => {
                    delivery.end(DeliveryEnd::Answered(response.status().as_u16()));
                    return response;
                }
                // Nobody has received the call.
                Err(error) if error.is_connect() => {}
                Err(_) => {
                    delivery.end(DeliveryEnd::BuilderLost);
                    return StatusCode::INTERNAL_SERVER_ERROR.into_response();
                }
            }
        }
        delivery.end(DeliveryEnd::NoBuilder);
        StatusCode::SERVICE_UNAVAILABLE.into_response()
    }

    /// Waits until deliveries are not held back, and begins one.
    async fn begin_delivery(self: &Arc<Self>, call_id: String) -> DeliveryInProgress {
        let mut is_held = self.is_held.subscribe();
        loop {
            drop(is_held.wait_for(|is_held| !is_held).await);
            // While the traffic is locked, nobody begins to hold deliveries and looks for those in progress.
            let mut traffic = lock(&self.traffic);
            if !*self.is_held.borrow() {
                return DeliveryInProgress::begin(self, &mut traffic, call_id);
            }
        }
    }

    /// Forwards a call to the deployer.
    async fn forward_to_deployer(&self, head: &Parts, path: &str, body: Bytes) -> Response {
        let Some(deployer) = lock(&self.deployer).clone() else {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        };
        let answer = self.forward(head, &format!("{deployer}{path}"), body).await;
        answer.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
    }

    /// Forwards a request to the provider, and records it if it creates or updates a function.
    async fn forward_to_provider_and_record_creation_or_update(&self, head: &Parts, body: Bytes) -> Response {
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let change = image_in_function_creation_or_update(head, &body).map(|image| {
            let mut traffic = lock(&self.traffic);
            traffic.changes.push(FunctionCreationOrUpdate {
                image,
                at: Instant::now(),
                status: None,
            });
            traffic.changes.len() - 1
        });
        let answer = self
            .forward(head, &format!("{}{path}", self.provider), body)
            .await;
        let response = answer.unwrap_or_else(|_| StatusCode::BAD_GATEWAY.into_response());
        if let Some(change) = change
            && let Some(change) = lock(&self.traffic).changes.get_mut(change)
        {
            (change.status, change.at) = (Some(response.status().as_u16()), Instant::now());
        }
        response
    }

    async fn forward(&self, head: &Parts, url: &str, body: Bytes) -> reqwest::Result<Response> {
        let request = self.http.request(head.method.clone(), url);
        let request = request.headers(without_host_length_and_connection_headers(head.headers.clone()));
        let answer = request.body(body).send().await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.bytes().await?;
        Ok((status, without_host_length_and_connection_headers(headers), body).into_response())
    }
}

/// A delivery in progress. If it is dropped, its caller has disconnected.
struct DeliveryInProgress {
    shared: Arc<RouterShared>,
    number: usize,
    has_ended: bool,
}

impl DeliveryInProgress {
    fn begin(shared: &Arc<RouterShared>, traffic: &mut RoutedTraffic, call_id: String) -> Self {
        traffic.deliveries.push(Delivery {
            call_id,
            began: Instant::now(),
            end: None,
        });
        Self {
            shared: Arc::clone(shared),
            number: traffic.deliveries.len() - 1,
            has_ended: false,
        }
    }

    fn end(mut self, end: DeliveryEnd) {
        self.record_end(end);
        self.has_ended = true;
    }

    fn record_end(&self, end: DeliveryEnd) {
        if let Some(delivery) = lock(&self.shared.traffic).deliveries.get_mut(self.number) {
            delivery.end = Some((end, Instant::now()));
        }
    }
}

impl Drop for DeliveryInProgress {
    fn drop(&mut self) {
        if !self.has_ended {
            self.record_end(DeliveryEnd::CallerLost);
        }
    }
}

/// Serves requests until the sender of `stopped` is dropped.
async fn serve_until_stopped(
    listener: TcpListener,
    shared: Arc<RouterShared>,
    stopped: oneshot::Receiver<()>,
) -> Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let app = AxumRouter::new().fallback(route_request).with_state(shared);
    tokio::select! {
        served = async { axum::serve(listener, app).await } => Ok(served?),
        _ = stopped => Ok(()),
    }
}

async fn route_request(State(shared): State<Arc<RouterShared>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY_BYTES).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let path = head.uri.path().to_owned();
    if path == CALLBACK_PATH {
        lock(&shared.traffic).callbacks.push(CallbackCallAndStatus {
            call_id: call_id_or_empty(&head.headers),
            status: header_text_or_empty(&head.headers, "x-function-status")
                .parse()
                .unwrap_or_default(),
        });
        return StatusCode::OK.into_response();
    }
    if let Some(path) = path_within_function(&path, "builder-fn") {
        return shared
            .forward_to_builder_and_record_delivery(&head, path, body)
            .await;
    }
    if let Some(path) = path_within_function(&path, "deployer-fn") {
        return shared.forward_to_deployer(&head, path, body).await;
    }
    // A task of its own: the provider completes a change whose caller has disconnected, and its status counts.
    let forwarding = tokio::spawn(async move {
        shared
            .forward_to_provider_and_record_creation_or_update(&head, body)
            .await
    });
    forwarding
        .await
        .unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

/// Returns the path of a call within the function with this name, if the call is for that function.
fn path_within_function<'a>(path: &'a str, function: &str) -> Option<&'a str> {
    match path.strip_prefix("/function/")?.strip_prefix(function)? {
        "" => Some("/"),
        rest => rest.starts_with('/').then_some(rest),
    }
}

/// Returns the image that a request creates a function with, or updates a function to.
fn image_in_function_creation_or_update(head: &Parts, body: &[u8]) -> Option<String> {
    let is_change =
        matches!(head.method, Method::POST | Method::PUT) && head.uri.path() == "/system/functions";
    let body: Value = serde_json::from_slice(body).ok().filter(|_| is_change)?;
    Some(body["image"].as_str()?.to_owned())
}

fn call_id_or_empty(headers: &HeaderMap) -> String {
    header_text_or_empty(headers, "x-call-id")
}

fn header_text_or_empty(headers: &HeaderMap, name: &str) -> String {
    let value = headers.get(name).map(|value| value.as_bytes());
    String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
}

/// Removes headers that belong to a connection rather than to the message.
fn without_host_length_and_connection_headers(mut headers: HeaderMap) -> HeaderMap {
    for name in [HOST, CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING] {
        headers.remove(name);
    }
    headers
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts a server that answers every request with this text, and returns its URL.
    async fn start_server(text: &'static str) -> Result<String> {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let app = AxumRouter::new().fallback(async move || text);
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(url)
    }

    /// Returns the URL of a server that has gone.
    async fn closed_url() -> Result<String> {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        Ok(format!("http://{}", listener.local_addr()?))
    }

    async fn call_router(router: &Router, method: Method, path: &str, body: &str) -> Result<(u16, String)> {
        let request = reqwest::Client::builder()
            .no_proxy()
            .build()?
            .request(method, format!("{}{path}", router.url()))
            .header("X-Call-Id", "call")
            .body(body.to_owned());
        let response = request.send().await?;
        Ok((response.status().as_u16(), response.text().await?))
    }

    fn start_router_for_two_builders(provider: &str) -> Result<Router> {
        Router::start(NetworkNamespace::of_process(std::process::id())?, provider, 2)
    }

    #[tokio::test]
    async fn a_builder_that_refuses_the_connection_is_skipped() -> Result<()> {
        let router = start_router_for_two_builders("http://127.0.0.1:1")?;
        router.set_builder(0, Some(closed_url().await?));
        router.set_builder(1, Some(start_server("second").await?));
        for _ in 0..4 {
            let answer = call_router(&router, Method::POST, "/function/builder-fn", "tar").await?;
            assert_eq!(answer, (200, "second".to_owned()));
        }
        router.set_builder(1, None);
        let answer = call_router(&router, Method::POST, "/function/builder-fn", "tar").await?;
        assert_eq!(answer.0, 503);
        let ends: Vec<_> = router
            .traffic()
            .deliveries
            .iter()
            .filter_map(|delivery| Some(delivery.end?.0))
            .collect();
        let answered = DeliveryEnd::Answered(200);
        assert_eq!(
            ends,
            [answered, answered, answered, answered, DeliveryEnd::NoBuilder]
        );
        Ok(())
    }

    #[tokio::test]
    async fn calls_take_turns_between_the_builders() -> Result<()> {
        let router = start_router_for_two_builders("http://127.0.0.1:1")?;
        router.set_builder(0, Some(start_server("first").await?));
        router.set_builder(1, Some(start_server("second").await?));
        let mut answers = Vec::new();
        for _ in 0..4 {
            answers.push(
                call_router(&router, Method::POST, "/function/builder-fn/build", "")
                    .await?
                    .1,
            );
        }
        assert_eq!(answers, ["first", "second", "first", "second"]);
        Ok(())
    }

    #[tokio::test]
    async fn a_delivery_that_is_held_back_goes_to_a_builder_that_runs_afterwards() -> Result<()> {
        let router = start_router_for_two_builders("http://127.0.0.1:1")?;
        router.set_builder(0, Some(closed_url().await?));
        let held = router.hold_deliveries();
        let mut call = std::pin::pin!(call_router(&router, Method::POST, "/function/builder-fn", ""));
        let early = tokio::time::timeout(Duration::from_millis(50), &mut call).await;
        assert!(early.is_err(), "{early:?}");
        assert!(!router.traffic().has_delivery_in_progress());
        router.set_builder(1, Some(start_server("second").await?));
        drop(held);
        assert_eq!(call.await?, (200, "second".to_owned()));
        Ok(())
    }

    #[tokio::test]
    async fn of_reads_updates_deletions_and_calls_only_updates_are_recorded_as_changes() -> Result<()> {
        let router = start_router_for_two_builders(&start_server("done").await?)?;
        let body = r#"{"service": "a", "image": "registry/a@sha256:12"}"#;
        for method in [Method::GET, Method::PUT, Method::DELETE] {
            let answer = call_router(&router, method, "/system/functions", body).await?;
            assert_eq!(answer, (200, "done".to_owned()));
        }
        call_router(&router, Method::POST, "/function/a", body).await?;
        let traffic = router.traffic();
        assert_eq!(traffic.possible_changes_to("registry/a@sha256:12").count(), 1);
        assert_eq!(traffic.changes.len(), 1);
        assert_eq!(traffic.deployed_image_count(), 1);
        Ok(())
    }
}
