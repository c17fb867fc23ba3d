//! A gateway for builder-fn that routes calls of deployer-fn to a process beside the stack, and that can fail.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Result;
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
    routing::post,
};
use serde_json::Value;

/// The timeout of a forwarded call, longer than any rollout of a test.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(180);

/// A running server with the one route `/function/deployer-fn`; it stops on drop.
pub struct DeployerRoute {
    url: String,
    inner: Arc<RouteState>,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
}

/// The deployer that the server forwards to, and the hand-overs that it has recorded.
struct RouteState {
    deployer: String,
    http: reqwest::Client,
    state: Mutex<HandOversAndFaults>,
}

/// The hand-overs so far, and the faults that are still to be answered.
#[derive(Default)]
struct HandOversAndFaults {
    hand_overs: Vec<Value>,
    /// The statuses with which the next hand-overs are answered.
    faults: VecDeque<StatusCode>,
}

impl DeployerRoute {
    /// Starts a server that forwards calls to the deployer at this URL.
    pub async fn start_forwarding_to(deployer_url: &str) -> Result<Self> {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let inner = Arc::new(RouteState {
            deployer: format!("{deployer_url}/"),
            http: reqwest::Client::builder()
                .no_proxy()
                .timeout(FORWARD_TIMEOUT)
                .build()?,
            state: Mutex::default(),
        });
        let app = Router::new()
            .route(
                "/function/deployer-fn",
                post(record_and_forward_or_fail_hand_over),
            )
            .with_state(Arc::clone(&inner));
        let serving = tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { url, inner, serving })
    }

    /// Returns the server's URL, for use as the gateway's.
    pub fn gateway_url(&self) -> &str {
        &self.url
    }

    /// Answers the next hand-overs with these statuses, without a deployer's JSON; dry runs are forwarded.
    pub fn fail_next_hand_overs_except_dry_runs(&self, statuses: &[StatusCode]) {
        self.inner.lock().faults.extend(statuses);
    }

    /// Returns all hand-overs so far, failed ones and dry runs included.
    pub fn recorded_hand_overs(&self) -> Vec<Value> {
        self.inner.lock().hand_overs.clone()
    }
}

impl Drop for DeployerRoute {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl RouteState {
    fn lock(&self) -> MutexGuard<'_, HandOversAndFaults> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Records a hand-over, and answers with the next fault or with the deployer's answer.
async fn record_and_forward_or_fail_hand_over(
    State(inner): State<Arc<RouteState>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let hand_over: Value = serde_json::from_slice(&body).unwrap_or_default();
    let fault = {
        let mut state = inner.lock();
        let fault = match hand_over["dryRun"] == true {
            true => None,
            false => state.faults.pop_front(),
        };
        state.hand_overs.push(hand_over);
        fault
    };
    if let Some(status) = fault {
        return (status, "a fault of the test").into_response();
    }
    let signature = headers.get("x-deploy-signature").cloned();
    let mut request = inner.http.post(&inner.deployer).body(body);
    if let Some(signature) = signature {
        request = request.header("X-Deploy-Signature", signature);
    }
    let answer = async {
        let answer = request.send().await?;
        Ok::<_, reqwest::Error>((answer.status(), answer.bytes().await?))
    };
    match answer.await {
        Ok(answer) => answer.into_response(),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}
