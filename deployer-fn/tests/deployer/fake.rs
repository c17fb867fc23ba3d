//! A fake gateway whose provider keeps state and behaves as a real one, for sequences of deployments. Status codes
//! and bodies are those of faas-netes (`pkg/handlers`) and faasd 0.19 (`pkg/provider/handlers`); the third provider
//! starts a new version before it removes the old one.
//!
//! The behaviour of an image follows from its name: `hello-good`, `hello-missing` (cannot be pulled), `hello-silent`
//! (never listens), `hello-crash` (does not stay up), `hello-bad` (answers 500).

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use deployer_fn::GatewayRequestSender;
use function_host::gateway::GatewayError;
use function_host::http::{Method, Request, Response};
use serde_json::{Value, json};
use tokio::sync::Notify;

/// The kind of provider behind the fake gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProviderKind {
    /// Keeps the old version until the new one is up, as faas-netes does on Kubernetes.
    Kubernetes,
    /// Removes the old version before it starts a new one.
    Faasd,
    /// Starts a new version before it removes the old one.
    Rolling,
}

/// A disruption in the handling of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DisruptionOrNone {
    /// The request is handled without a disruption.
    None,
    /// The gateway cannot be reached.
    Unreachable,
    /// The connection is lost before the request takes effect.
    LostBefore,
    /// The request takes effect, and the connection is lost before the answer.
    LostAfter,
    /// A server other than the gateway answers with this status; the request has no effect.
    Status(u16),
    /// A server other than the gateway answers with a web page; the request has no effect.
    Html,
    /// The request takes effect, and is not answered.
    Unanswered,
}

/// The fake gateway with its provider. Clones share its state.
#[derive(Clone)]
pub(crate) struct FakeGateway(Arc<SharedGatewayState>);

/// The state of the fake gateway, and the notice that the deployer has to be killed.
struct SharedGatewayState {
    state: Mutex<GatewayState>,
    killed: Notify,
}

/// The functions and secrets of the provider, and what happens to the next requests.
struct GatewayState {
    provider: ProviderKind,
    functions: BTreeMap<String, FakeFunction>,
    secrets: Vec<String>,
    disruptions: VecDeque<DisruptionOrNone>,
    /// The number of requests before the one at which the deployer is killed, and whether that one takes effect.
    kill: Option<(usize, bool)>,
    /// The number of requests until the deployer panics.
    panic: Option<usize>,
    requests: Vec<String>,
    /// Whether the old version answers until the new one is up. Only on Kubernetes.
    overlap: bool,
    /// Whether functions repeat their version in their answers, as those that are made from the template do.
    versions: bool,
    logs: FakeLogsAnswer,
}

/// The answer to a request for a function's log.
#[derive(Clone, Debug, Default)]
pub(crate) enum FakeLogsAnswer {
    /// The provider keeps no logs.
    #[default]
    Missing,
    /// Never an answer.
    Silent,
    /// These lines, in NDJSON.
    Lines(String),
    /// More than the deployer reads.
    TooLarge,
}

/// The time at which the fake provider says it has created every function.
pub(crate) const CREATED_AT: &str = "2026-01-01T00:00:10.5Z";

/// A function of the fake provider.
#[derive(Clone)]
struct FakeFunction {
    deployment: Value,
    /// The old deployment that answers while the new one comes up. Only on Kubernetes.
    old: Option<Value>,
    /// The number of status reads until the new deployment is up.
    reads_left: usize,
    service: bool,
}

impl FakeGateway {
    pub(crate) fn new(provider: ProviderKind) -> Self {
        let state = GatewayState {
            provider,
            functions: BTreeMap::new(),
            secrets: vec!["api-key".to_owned()],
            disruptions: VecDeque::new(),
            kill: None,
            panic: None,
            requests: Vec::new(),
            overlap: true,
            versions: true,
            logs: FakeLogsAnswer::default(),
        };
        Self(Arc::new(SharedGatewayState {
            state: Mutex::new(state),
            killed: Notify::new(),
        }))
    }

    /// Stops the old version from answering until the new one is up, as if its node was lost.
    pub(crate) fn stop_old_version_before_new_is_up(&self) {
        self.0.state.lock().unwrap().overlap = false;
    }

    /// Makes all functions leave out their version in their answers.
    pub(crate) fn omit_versions_in_answers(self) -> Self {
        self.0.state.lock().unwrap().versions = false;
        self
    }

    /// Sets the answer to requests for logs.
    pub(crate) fn set_logs(&self, logs: FakeLogsAnswer) {
        self.0.state.lock().unwrap().logs = logs;
    }

    /// Returns the paths and queries of the requests for logs so far.
    pub(crate) fn log_requests(&self) -> Vec<String> {
        let state = self.0.state.lock().unwrap();
        let lines = state.requests.iter();
        lines
            .filter(|line| line.starts_with("GET /system/logs"))
            .cloned()
            .collect()
    }

    /// Sets the disruptions of the next requests, one each.
    pub(crate) fn replace_disruptions_of_next_requests(
        &self,
        disruptions: impl IntoIterator<Item = DisruptionOrNone>,
    ) {
        self.0.state.lock().unwrap().disruptions = disruptions.into_iter().collect();
    }

    /// Kills the deployer at the request with this number from now (0 is the next one), and before or after the request
    /// takes effect (`false` or `true`); `None` for never.
    pub(crate) fn kill_deployer_at_request(&self, zero_based_number_and_takes_effect: Option<(usize, bool)>) {
        self.0.state.lock().unwrap().kill = zero_based_number_and_takes_effect;
    }

    /// Makes the deployer panic at the request with this number from now (1 is the next one), before the request takes
    /// effect; `None` for never.
    pub(crate) fn panic_deployer_at_request(&self, number_from_one: Option<usize>) {
        self.0.state.lock().unwrap().panic = number_from_one;
    }

    /// Waits until the deployer has to be killed.
    pub(crate) async fn wait_until_kill_is_due(&self) {
        self.0.killed.notified().await;
    }

    /// Returns the deployment that answers calls of the function, if it answers with 200.
    pub(crate) fn deployment_answering_with_200(&self, name: &str) -> Option<Value> {
        let state = self.0.state.lock().unwrap();
        let function = state.functions.get(name)?;
        let serving = state.serving_deployment(function)?;
        (behaviour_named_by_image_or_good(&serving) == "good").then_some(serving)
    }

    /// Returns the deployment that was last set for the function, whether or not it answers yet.
    pub(crate) fn last_set_deployment(&self, name: &str) -> Option<Value> {
        let state = self.0.state.lock().unwrap();
        state
            .functions
            .get(name)
            .map(|function| function.deployment.clone())
    }

    /// Returns the function's last deployment, whether its process listens, and whether the old one still runs beside
    /// it.
    pub(crate) fn deployment_is_up_and_old_one_runs(&self, name: &str) -> Option<(Value, bool, bool)> {
        let state = self.0.state.lock().unwrap();
        let function = state.functions.get(name)?;
        let listens = matches!(
            behaviour_named_by_image_or_good(&function.deployment).as_str(),
            "good" | "bad"
        );
        let is_up = listens && function.reads_left == 0;
        Some((function.deployment.clone(), is_up, function.old.is_some()))
    }

    /// Deploys a function without the deployer, as faas-cli does.
    pub(crate) fn deploy_without_deployer(&self, deployment: Value) {
        let name = deployment["service"].as_str().unwrap().to_owned();
        self.0
            .state
            .lock()
            .unwrap()
            .functions
            .insert(name, FakeFunction::already_up(deployment));
    }

    /// Removes the function's Service, as an incomplete creation leaves it.
    pub(crate) fn remove_kubernetes_service(&self, name: &str) {
        self.0
            .state
            .lock()
            .unwrap()
            .functions
            .get_mut(name)
            .unwrap()
            .service = false;
    }

    /// Returns the number of requests so far that were not reads.
    pub(crate) fn change_request_count(&self) -> usize {
        let state = self.0.state.lock().unwrap();
        state
            .requests
            .iter()
            .filter(|line| !line.starts_with("GET"))
            .count()
    }
}

impl FakeFunction {
    /// Returns a function with this deployment that is up at once, without an older one beside it.
    fn already_up(deployment: Value) -> Self {
        Self {
            deployment,
            old: None,
            reads_left: 0,
            service: true,
        }
    }
}

/// Returns the behaviour that the image's name in a deployment ends with, such as `silent` for `fn-silent:1`; `good` if
/// the name has no such end.
pub(crate) fn behaviour_named_by_image_or_good(deployment: &Value) -> String {
    let image = deployment["image"].as_str().unwrap();
    let (name, _) = image.split_once(['@', ':']).unwrap();
    name.rsplit_once('-').map_or("good", |(_, word)| word).to_owned()
}

impl GatewayState {
    /// Returns the deployment whose process receives the function's calls.
    fn serving_deployment(&self, function: &FakeFunction) -> Option<Value> {
        let listens = matches!(
            behaviour_named_by_image_or_good(&function.deployment).as_str(),
            "good" | "bad"
        );
        if !function.service {
            return None;
        }
        if listens && function.reads_left == 0 {
            return Some(function.deployment.clone());
        }
        function.old.clone()
    }

    /// Handles a request, and returns the status, the body and the header `X-Slipway-Version` of the response.
    fn answer_request(&mut self, request: &Request<Bytes>) -> (u16, String, Option<String>) {
        let path = request.uri().path().to_owned();
        let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
        let (status, text) = match (request.method(), path.as_str()) {
            (&Method::PUT, "/system/functions") => self.answer_update(&body),
            (&Method::POST, "/system/functions") => self.answer_create(&body),
            (&Method::DELETE, "/system/functions") => {
                let name = body["functionName"].as_str().unwrap();
                match self.functions.remove(name) {
                    Some(_) => (202, String::new()),
                    None => (404, "not found\n".to_owned()),
                }
            }
            (&Method::GET, "/system/info") => {
                let name = match self.provider {
                    ProviderKind::Kubernetes => "faas-netes",
                    ProviderKind::Faasd => "faasd",
                    ProviderKind::Rolling => "slipway-dev",
                };
                (200, json!({"provider": {"provider": name}}).to_string())
            }
            (&Method::GET, "/system/namespaces") => (200, json!(["openfaas-fn"]).to_string()),
            (&Method::GET, "/system/secrets") => {
                let names: Vec<Value> = self.secrets.iter().map(|name| json!({"name": name})).collect();
                (200, Value::from(names).to_string())
            }
            (_, path) => match path
                .strip_prefix("/system/function/")
                .map(|name| self.answer_status_and_advance_start(name))
            {
                Some(answer) => answer,
                None => return self.answer_function_call(path),
            },
        };
        (status, text, None)
    }

    fn answer_function_call(&mut self, path: &str) -> (u16, String, Option<String>) {
        let name = path.split('/').nth(2).unwrap();
        let Some(function) = self.functions.get(name) else {
            return (404, String::new(), None);
        };
        match self.serving_deployment(function) {
            None if self.provider == ProviderKind::Kubernetes => {
                (503, "No endpoints available for: hello.".to_owned(), None)
            }
            None => (500, "Can't reach service for: hello.".to_owned(), None),
            Some(serving) => {
                let version = serving["envVars"]["slipway_version"].as_str();
                let version = version.filter(|_| self.versions).map(str::to_owned);
                let status = if behaviour_named_by_image_or_good(&serving) == "good" {
                    200
                } else {
                    500
                };
                (status, String::new(), version)
            }
        }
    }

    fn answer_status_and_advance_start(&mut self, name: &str) -> (u16, String) {
        let provider = self.provider;
        let Some(function) = self.functions.get_mut(name) else {
            return (404, String::new());
        };
        function.reads_left = function.reads_left.saturating_sub(1);
        if function.reads_left == 0
            && matches!(
                behaviour_named_by_image_or_good(&function.deployment).as_str(),
                "good" | "bad"
            )
        {
            function.old = None;
        }
        let function = self.functions.get(name).unwrap();
        let up = match behaviour_named_by_image_or_good(&function.deployment).as_str() {
            "good" | "bad" => function.reads_left == 0,
            "silent" => provider != ProviderKind::Kubernetes,
            _ => false,
        };
        let deployment = &function.deployment;
        let mut status = json!({"name": name, "image": deployment["image"], "namespace": "openfaas-fn", "replicas": 1,
            "availableReplicas": u8::from(up || function.old.is_some()), "labels": {"faas_function": name},
            "annotations": deployment["annotations"], "secrets": deployment["secrets"], "createdAt": CREATED_AT});
        if provider == ProviderKind::Kubernetes {
            status["annotations"]["prometheus.io.scrape"] = "false".into();
        } else {
            status["envVars"] = deployment["envVars"].clone();
        }
        (200, status.to_string())
    }

    fn first_missing_secret(&self, deployment: &Value) -> Option<String> {
        let mut wanted = deployment["secrets"].as_array().into_iter().flatten();
        let missing = wanted.find(|name| {
            !self
                .secrets
                .iter()
                .any(|there| Some(there.as_str()) == name.as_str())
        });
        missing.map(|name| name.as_str().unwrap().to_owned())
    }

    fn answer_update(&mut self, deployment: &Value) -> (u16, String) {
        let name = deployment["service"].as_str().unwrap();
        let secret = self.first_missing_secret(deployment);
        let missing = behaviour_named_by_image_or_good(deployment) == "missing";
        let pull = format!("unable to pull image {}: not found\n", deployment["image"]);
        let Some(before) = self.functions.get(name).cloned() else {
            let text =
                format!("unable update Deployment: {name}, error: deployments.apps \"{name}\" not found\n");
            return (404, text);
        };
        match self.provider {
            ProviderKind::Kubernetes => {
                if let Some(secret) = secret {
                    return (400, format!("error: secrets \"{secret}\" not found\n"));
                }
                if deployment["constraints"][0] == "impossible" {
                    // docs/pitfalls.md#a-failed-update-answers-200
                    return (200, String::new());
                }
                let old = self.serving_deployment(&FakeFunction {
                    service: true,
                    ..before.clone()
                });
                let function = FakeFunction {
                    deployment: deployment.clone(),
                    old: old.filter(|_| self.overlap),
                    reads_left: 3,
                    service: before.service,
                };
                self.functions.insert(name.to_owned(), function);
                if !before.service {
                    // docs/pitfalls.md#no-conflict-status
                    let text =
                        format!("unable update Service: {name}., error: services \"{name}\" not found\n");
                    return (404, text);
                }
                (202, String::new())
            }
            // docs/pitfalls.md#a-failed-update-removes-the-function
            ProviderKind::Faasd => {
                self.functions.remove(name);
                match (secret, missing) {
                    (Some(secret), _) => (400, format!("unable to find secret: {secret}\n")),
                    (_, true) => (500, pull),
                    _ => {
                        self.functions
                            .insert(name.to_owned(), FakeFunction::already_up(deployment.clone()));
                        (200, String::new())
                    }
                }
            }
            ProviderKind::Rolling => match (secret, missing) {
                (Some(secret), _) => (400, format!("unable to find secret: {secret}\n")),
                (_, true) => (500, pull),
                _ if behaviour_named_by_image_or_good(deployment) == "silent" => {
                    (400, "does not listen\n".to_owned())
                }
                _ => {
                    self.functions
                        .insert(name.to_owned(), FakeFunction::already_up(deployment.clone()));
                    (200, String::new())
                }
            },
        }
    }

    fn answer_create(&mut self, deployment: &Value) -> (u16, String) {
        let name = deployment["service"].as_str().unwrap().to_owned();
        if self.functions.contains_key(&name) {
            return match self.provider {
                ProviderKind::Kubernetes => (
                    500,
                    format!("unable create Deployment: deployments.apps \"{name}\" already exists\n"),
                ),
                _ => (400, "exists\n".to_owned()),
            };
        }
        if let Some(secret) = self.first_missing_secret(deployment) {
            return (400, format!("unable to find secret: {secret}\n"));
        }
        if self.provider != ProviderKind::Kubernetes
            && behaviour_named_by_image_or_good(deployment) == "missing"
        {
            return (400, "unable to pull image: not found\n".to_owned());
        }
        let mut function = FakeFunction::already_up(deployment.clone());
        if self.provider == ProviderKind::Kubernetes {
            function.reads_left = 3;
        }
        self.functions.insert(name, function);
        (202, String::new())
    }
}

impl GatewayRequestSender for FakeGateway {
    async fn send(&self, request: Request<Bytes>, limit: Duration) -> Result<Response<Bytes>, GatewayError> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        tokio::time::sleep(Duration::from_millis(1)).await;
        if path == "/system/logs" {
            let logs = {
                let mut state = self.0.state.lock().unwrap();
                state.requests.push(format!("{method} {}", request.uri()));
                state.logs.clone()
            };
            return match logs {
                FakeLogsAnswer::Missing => Ok(Response::builder().status(501).body(Bytes::new()).unwrap()),
                FakeLogsAnswer::Silent => pending().await,
                FakeLogsAnswer::Lines(lines) => Ok(Response::new(lines.into())),
                FakeLogsAnswer::TooLarge => Err(GatewayError::TooLarge {
                    method,
                    path,
                    limit: 1,
                }),
            };
        }
        let panics = {
            let mut state = self.0.state.lock().unwrap();
            state.panic = state.panic.and_then(|left| left.checked_sub(1));
            state.panic == Some(0)
        };
        assert!(!panics, "as the test wants");
        let (answer, disruption, dead) = {
            let mut state = self.0.state.lock().unwrap();
            state.requests.push(format!("{method} {path}"));
            let kill = match &mut state.kill {
                Some((0, acted)) => Some(*acted),
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            };
            let disruption = state.disruptions.pop_front().unwrap_or(DisruptionOrNone::None);
            let acted = kill != Some(false)
                && matches!(
                    disruption,
                    DisruptionOrNone::None | DisruptionOrNone::LostAfter | DisruptionOrNone::Unanswered
                );
            (
                acted.then(|| state.answer_request(&request)),
                disruption,
                kill.is_some(),
            )
        };
        if dead {
            self.0.killed.notify_one();
            pending::<()>().await;
        }
        let reply = |status, body: String| Ok(Response::builder().status(status).body(body.into()).unwrap());
        match (disruption, answer) {
            (DisruptionOrNone::Unreachable, _) => Err(GatewayError::Connect {
                method,
                path,
                source: "connection refused".into(),
            }),
            (DisruptionOrNone::LostBefore | DisruptionOrNone::LostAfter, _) => Err(GatewayError::Lost {
                method,
                path,
                source: "connection closed".into(),
            }),
            (DisruptionOrNone::Unanswered, _) => {
                tokio::time::sleep(limit).await;
                Err(GatewayError::Timeout { method, path, limit })
            }
            (DisruptionOrNone::Status(status), _) => reply(status, String::new()),
            (DisruptionOrNone::Html, _) => reply(200, "<html>Welcome</html>".to_owned()),
            (DisruptionOrNone::None, Some((status, body, version))) => {
                let mut response = reply(status, body)?;
                if let Some(version) = version {
                    response
                        .headers_mut()
                        .insert("x-slipway-version", version.parse().unwrap());
                }
                Ok(response)
            }
            (DisruptionOrNone::None, None) => pending().await,
        }
    }
}
