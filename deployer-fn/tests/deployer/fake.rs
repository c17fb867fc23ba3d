//! A gateway with a provider behind it that keeps state and behaves as real ones do, for whole stories rather than
//! single calls. Status codes and bodies are those of faas-netes (`pkg/handlers`) and faasd 0.19
//! (`pkg/provider/handlers`); the third is a provider that does no harm.
//!
//! What an image does follows from its name: `hello-good`, `hello-missing` (cannot be pulled), `hello-silent` (never
//! listens), `hello-crash` (does not stay up), `hello-bad` (answers 500).

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use deployer_fn::gateway::Transport;
use function_host::gateway::GatewayError;
use function_host::http::{Method, Request, Response};
use serde_json::{Value, json};
use tokio::sync::Notify;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manners {
    Kubernetes,
    Faasd,
    Good,
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mishap {
    /// Nothing.
    None,
    /// There is no connection.
    Refused,
    /// The connection ends before the request was acted on.
    LostBefore,
    /// It is acted on, and the connection ends before the answer.
    LostAfter,
    /// Another server answers.
    Status(u16),
    /// Another server answers with a web page.
    Html,
    /// It is acted on, and not answered.
    Slow,
}

#[derive(Clone)]
pub(crate) struct Fake(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    killed: Notify,
}

struct State {
    manners: Manners,
    functions: BTreeMap<String, Function>,
    secrets: Vec<String>,
    mishaps: VecDeque<Mishap>,
    /// How many requests are left until the deployer is killed, and whether the last one is acted on.
    kill: Option<(usize, bool)>,
    requests: Vec<String>,
    /// Whether the old version answers until the new one is up, on Kubernetes.
    overlap: bool,
}

#[derive(Clone)]
struct Function {
    deployment: Value,
    /// What still answers while the new one comes up, on Kubernetes.
    old: Option<Value>,
    /// How often it is looked at until it is up.
    looks_left: usize,
    service: bool,
}

impl Fake {
    pub(crate) fn new(manners: Manners) -> Self {
        let state = State {
            manners,
            functions: BTreeMap::new(),
            secrets: vec!["api-key".to_owned()],
            mishaps: VecDeque::new(),
            kill: None,
            requests: Vec::new(),
            overlap: true,
        };
        Self(Arc::new(Inner {
            state: Mutex::new(state),
            killed: Notify::new(),
        }))
    }

    /// The old version does not answer until the new one is up: its node went away.
    pub(crate) fn without_overlap(&self) {
        self.0.state.lock().unwrap().overlap = false;
    }

    /// What befalls the next requests, one each.
    pub(crate) fn mishaps(&self, mishaps: impl IntoIterator<Item = Mishap>) {
        self.0.state.lock().unwrap().mishaps = mishaps.into_iter().collect();
    }

    /// The deployer is killed at this request from now, before or after it is acted on; `None` for never.
    pub(crate) fn kill_at(&self, kill: Option<(usize, bool)>) {
        self.0.state.lock().unwrap().kill = kill;
    }

    /// Ends when the deployer is to be killed.
    pub(crate) async fn killed(&self) {
        self.0.killed.notified().await;
    }

    /// The deployment that calls of the function reach, if they reach one that answers well.
    pub(crate) fn answers(&self, name: &str) -> Option<Value> {
        let state = self.0.state.lock().unwrap();
        let function = state.functions.get(name)?;
        let serving = state.serving(function)?;
        (behaviour(&serving) == "good").then_some(serving)
    }

    /// What the provider has been asked for last.
    pub(crate) fn deployment(&self, name: &str) -> Option<Value> {
        let state = self.0.state.lock().unwrap();
        state
            .functions
            .get(name)
            .map(|function| function.deployment.clone())
    }

    /// Deploys past the deployer, as faas-cli would.
    pub(crate) fn put(&self, deployment: Value) {
        let name = deployment["service"].as_str().unwrap().to_owned();
        self.0
            .state
            .lock()
            .unwrap()
            .functions
            .insert(name, Function::up(deployment));
    }

    /// Takes the Service away, as a half-done creation leaves it.
    pub(crate) fn lose_service(&self, name: &str) {
        self.0
            .state
            .lock()
            .unwrap()
            .functions
            .get_mut(name)
            .unwrap()
            .service = false;
    }

    /// How often the provider was asked to change something.
    pub(crate) fn changes(&self) -> usize {
        let state = self.0.state.lock().unwrap();
        state
            .requests
            .iter()
            .filter(|line| !line.starts_with("GET"))
            .count()
    }
}

impl Function {
    fn up(deployment: Value) -> Self {
        Self {
            deployment,
            old: None,
            looks_left: 0,
            service: true,
        }
    }
}

/// What the image does.
fn behaviour(deployment: &Value) -> String {
    let image = deployment["image"].as_str().unwrap();
    let (name, _) = image.split_once(['@', ':']).unwrap();
    name.rsplit_once('-').map_or("good", |(_, word)| word).to_owned()
}

impl State {
    /// The deployment whose process gets the calls.
    fn serving(&self, function: &Function) -> Option<Value> {
        let listens = matches!(behaviour(&function.deployment).as_str(), "good" | "bad");
        if !function.service {
            return None;
        }
        if listens && function.looks_left == 0 {
            return Some(function.deployment.clone());
        }
        function.old.clone()
    }

    fn answer(&mut self, request: &Request<Bytes>) -> (u16, String, Option<String>) {
        let path = request.uri().path().to_owned();
        let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
        let (status, text) = match (request.method(), path.as_str()) {
            (&Method::PUT, "/system/functions") => self.update(&body),
            (&Method::POST, "/system/functions") => self.create(&body),
            (&Method::DELETE, "/system/functions") => {
                let name = body["functionName"].as_str().unwrap();
                match self.functions.remove(name) {
                    Some(_) => (202, String::new()),
                    None => (404, "not found\n".to_owned()),
                }
            }
            (&Method::GET, "/system/namespaces") => (200, json!(["openfaas-fn"]).to_string()),
            (&Method::GET, "/system/secrets") => {
                let names: Vec<Value> = self.secrets.iter().map(|name| json!({"name": name})).collect();
                (200, Value::from(names).to_string())
            }
            (_, path) => match path
                .strip_prefix("/system/function/")
                .map(|name| self.status(name))
            {
                Some(answer) => answer,
                None => return self.ask(path),
            },
        };
        (status, text, None)
    }

    fn ask(&mut self, path: &str) -> (u16, String, Option<String>) {
        let name = path.split('/').nth(2).unwrap();
        let Some(function) = self.functions.get(name) else {
            return (404, String::new(), None);
        };
        match self.serving(function) {
            None if self.manners == Manners::Kubernetes => {
                (503, "No endpoints available for: hello.".to_owned(), None)
            }
            None => (500, "Can't reach service for: hello.".to_owned(), None),
            Some(serving) => {
                // As a function says it that is made with the template.
                let told = serving["envVars"]["slipway_version"].as_str().map(str::to_owned);
                let status = if behaviour(&serving) == "good" { 200 } else { 500 };
                (status, String::new(), told)
            }
        }
    }

    fn status(&mut self, name: &str) -> (u16, String) {
        let manners = self.manners;
        let Some(function) = self.functions.get_mut(name) else {
            return (404, String::new());
        };
        function.looks_left = function.looks_left.saturating_sub(1);
        if function.looks_left == 0 && matches!(behaviour(&function.deployment).as_str(), "good" | "bad") {
            function.old = None;
        }
        let function = self.functions.get(name).unwrap();
        let up = match behaviour(&function.deployment).as_str() {
            "good" | "bad" => function.looks_left == 0,
            "silent" => manners != Manners::Kubernetes,
            _ => false,
        };
        let deployment = &function.deployment;
        let mut status = json!({"name": name, "image": deployment["image"], "namespace": "openfaas-fn", "replicas": 1,
            "availableReplicas": u8::from(up || function.old.is_some()), "labels": {"faas_function": name},
            "annotations": deployment["annotations"], "secrets": deployment["secrets"]});
        if manners == Manners::Kubernetes {
            status["annotations"]["prometheus.io.scrape"] = "false".into();
        } else {
            status["envVars"] = deployment["envVars"].clone();
        }
        (200, status.to_string())
    }

    fn missing_secret(&self, deployment: &Value) -> Option<String> {
        let mut wanted = deployment["secrets"].as_array().into_iter().flatten();
        let missing = wanted.find(|name| {
            !self
                .secrets
                .iter()
                .any(|there| Some(there.as_str()) == name.as_str())
        });
        missing.map(|name| name.as_str().unwrap().to_owned())
    }

    fn update(&mut self, deployment: &Value) -> (u16, String) {
        let name = deployment["service"].as_str().unwrap();
        let secret = self.missing_secret(deployment);
        let missing = behaviour(deployment) == "missing";
        let pull = format!("unable to pull image {}: not found\n", deployment["image"]);
        let Some(before) = self.functions.get(name).cloned() else {
            let text =
                format!("unable update Deployment: {name}, error: deployments.apps \"{name}\" not found\n");
            return (404, text);
        };
        match self.manners {
            Manners::Kubernetes => {
                if let Some(secret) = secret {
                    return (400, format!("error: secrets \"{secret}\" not found\n"));
                }
                if deployment["constraints"][0] == "impossible" {
                    // Pitfall 22.
                    return (200, String::new());
                }
                let old = self.serving(&Function {
                    service: true,
                    ..before.clone()
                });
                let function = Function {
                    deployment: deployment.clone(),
                    old: old.filter(|_| self.overlap),
                    looks_left: 3,
                    service: before.service,
                };
                self.functions.insert(name.to_owned(), function);
                if !before.service {
                    // Pitfall 24.
                    let text =
                        format!("unable update Service: {name}., error: services \"{name}\" not found\n");
                    return (404, text);
                }
                (202, String::new())
            }
            // Pitfall 23.
            Manners::Faasd => {
                self.functions.remove(name);
                match (secret, missing) {
                    (Some(secret), _) => (400, format!("unable to find secret: {secret}\n")),
                    (_, true) => (500, pull),
                    _ => {
                        self.functions
                            .insert(name.to_owned(), Function::up(deployment.clone()));
                        (200, String::new())
                    }
                }
            }
            Manners::Good => match (secret, missing) {
                (Some(secret), _) => (400, format!("unable to find secret: {secret}\n")),
                (_, true) => (500, pull),
                _ if behaviour(deployment) == "silent" => (400, "does not listen\n".to_owned()),
                _ => {
                    self.functions
                        .insert(name.to_owned(), Function::up(deployment.clone()));
                    (200, String::new())
                }
            },
        }
    }

    fn create(&mut self, deployment: &Value) -> (u16, String) {
        let name = deployment["service"].as_str().unwrap().to_owned();
        if self.functions.contains_key(&name) {
            return match self.manners {
                Manners::Kubernetes => (
                    500,
                    format!("unable create Deployment: deployments.apps \"{name}\" already exists\n"),
                ),
                _ => (400, "exists\n".to_owned()),
            };
        }
        if let Some(secret) = self.missing_secret(deployment) {
            return (400, format!("unable to find secret: {secret}\n"));
        }
        if self.manners != Manners::Kubernetes && behaviour(deployment) == "missing" {
            return (400, "unable to pull image: not found\n".to_owned());
        }
        let mut function = Function::up(deployment.clone());
        if self.manners == Manners::Kubernetes {
            function.looks_left = 3;
        }
        self.functions.insert(name, function);
        (202, String::new())
    }
}

impl Transport for Fake {
    async fn send(&self, request: Request<Bytes>, limit: Duration) -> Result<Response<Bytes>, GatewayError> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        tokio::time::sleep(Duration::from_millis(1)).await;
        let (answer, mishap, dead) = {
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
            let mishap = state.mishaps.pop_front().unwrap_or(Mishap::None);
            let acted =
                kill != Some(false) && matches!(mishap, Mishap::None | Mishap::LostAfter | Mishap::Slow);
            (acted.then(|| state.answer(&request)), mishap, kill.is_some())
        };
        if dead {
            self.0.killed.notify_one();
            pending::<()>().await;
        }
        let reply = |status, body: String| Ok(Response::builder().status(status).body(body.into()).unwrap());
        match (mishap, answer) {
            (Mishap::Refused, _) => Err(GatewayError::Connect {
                method,
                path,
                source: "connection refused".into(),
            }),
            (Mishap::LostBefore | Mishap::LostAfter, _) => Err(GatewayError::Lost {
                method,
                path,
                source: "connection closed".into(),
            }),
            (Mishap::Slow, _) => {
                tokio::time::sleep(limit).await;
                Err(GatewayError::Timeout { method, path, limit })
            }
            (Mishap::Status(status), _) => reply(status, String::new()),
            (Mishap::Html, _) => reply(200, "<html>Welcome</html>".to_owned()),
            (Mishap::None, Some((status, body, told))) => {
                let mut response = reply(status, body)?;
                if let Some(told) = told {
                    response
                        .headers_mut()
                        .insert("x-slipway-version", told.parse().unwrap());
                }
                Ok(response)
            }
            (Mishap::None, None) => pending().await,
        }
    }
}
