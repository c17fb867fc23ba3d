//! A fake gateway that expects a script of calls in order, answers each as scripted, and fails the test if a call is
//! missing or not expected. Reads of secrets, of the provider's name and of logs need no entry in the script.
//!
//! It is called either in memory, where time may be paused, or over HTTP on a loopback port.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use deployer_fn::GatewayRequestSender;
use function_host::gateway::GatewayError;
use function_host::http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// A call that the scripted gateway expects, and its answer.
pub(crate) struct ExpectedCall {
    line: String,
    times: usize,
    check: Option<RequestCheck>,
    gate: Option<Arc<Notify>>,
    answer: ScriptedAnswer,
}

/// A function that panics if a request is not as expected.
type RequestCheck = Box<dyn Fn(&Request<Bytes>) + Send>;

/// The answer to an expected call.
#[derive(Clone)]
enum ScriptedAnswer {
    Reply(u16, String),
    /// The gateway takes the request, and the connection ends before the answer.
    Lost,
    /// The gateway cannot be reached; only in memory.
    Unreachable,
    /// The gateway never answers.
    Silence,
}

/// Returns the expectation of one request with this line, such as `GET /system/function/hello`; the answer is status
/// 200 and an empty body, unless it is set.
pub(crate) fn expect_request(method_and_path: impl Into<String>) -> ExpectedCall {
    ExpectedCall {
        line: method_and_path.into(),
        times: 1,
        check: None,
        gate: None,
        answer: ScriptedAnswer::Reply(200, String::new()),
    }
}

/// A number of times for a call that is expected any number of times; only for the end of a script.
pub(crate) const ANY_NUMBER_OF_TIMES: usize = usize::MAX;

impl ExpectedCall {
    pub(crate) fn expected_times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    pub(crate) fn with_request_check(mut self, check: impl Fn(&Request<Bytes>) + Send + 'static) -> Self {
        self.check = Some(Box::new(check));
        self
    }

    /// Delays the answer until `gate` is notified.
    pub(crate) fn answered_after(mut self, gate: &Arc<Notify>) -> Self {
        self.gate = Some(Arc::clone(gate));
        self
    }

    pub(crate) fn answered_with(mut self, status: u16, body: impl Into<String>) -> Self {
        self.answer = ScriptedAnswer::Reply(status, body.into());
        self
    }

    pub(crate) fn with_lost_answer(mut self) -> Self {
        self.answer = ScriptedAnswer::Lost;
        self
    }

    /// Makes the gateway unreachable for the call. Not for a script that is served over HTTP, whose gateway takes every
    /// connection.
    pub(crate) fn failing_to_connect(mut self) -> Self {
        self.answer = ScriptedAnswer::Unreachable;
        self
    }

    pub(crate) fn never_answered(mut self) -> Self {
        self.answer = ScriptedAnswer::Silence;
        self
    }
}

/// The fake gateway with its script of expected calls. Clones share the script.
#[derive(Clone)]
pub(crate) struct ScriptedGateway(Arc<Mutex<ScriptState>>);

struct ScriptState {
    expected: VecDeque<ExpectedCall>,
    problems: Vec<String>,
}

impl ScriptedGateway {
    pub(crate) fn new(calls: impl IntoIterator<Item = ExpectedCall>) -> Self {
        let expected = calls.into_iter().collect();
        Self(Arc::new(Mutex::new(ScriptState {
            expected,
            problems: Vec::new(),
        })))
    }

    /// Fails the test if a call was missing or not expected.
    pub(crate) fn assert_no_missing_or_unexpected_calls(self) {
        let state = self.0.lock().unwrap();
        assert!(state.problems.is_empty(), "{:#?}", state.problems);
        let left: Vec<_> = state
            .expected
            .iter()
            .filter(|call| call.times != ANY_NUMBER_OF_TIMES)
            .map(|call| &call.line)
            .collect();
        assert!(left.is_empty(), "missing calls: {left:#?}");
    }

    /// Returns the scripted answer to a request, and its gate if it has one. Records a problem if the request is not
    /// expected now.
    fn take_answer_or_record_problem(
        &self,
        request: &Request<Bytes>,
    ) -> (ScriptedAnswer, Option<Arc<Notify>>) {
        let state = &mut *self.0.lock().unwrap();
        let path = request.uri().path_and_query().map_or("", |path| path.as_str());
        let line = format!("{} {path}", request.method());
        // Calls that may come any number of times may come in any order.
        let position = match state.expected.front() {
            Some(front) if front.times == ANY_NUMBER_OF_TIMES => {
                state.expected.iter().position(|call| call.line == line)
            }
            front => front.is_some_and(|call| call.line == line).then_some(0),
        };
        // Most rollouts list the secrets, and few tests are about that.
        if position.is_none() && line.starts_with("GET /system/secrets") {
            let secrets = r#"[{"name":"api-key","namespace":"openfaas-fn"}]"#;
            return (ScriptedAnswer::Reply(200, secrets.to_owned()), None);
        }
        // Most answers in scripts do not name a version, and few tests are about that.
        if position.is_none() && line == "GET /system/info" {
            let info = r#"{"provider":{"provider":"faasd"}}"#;
            return (ScriptedAnswer::Reply(200, info.to_owned()), None);
        }
        // Most versions that fail in scripts have no log.
        if position.is_none() && line.starts_with("GET /system/logs") {
            return (ScriptedAnswer::Reply(501, String::new()), None);
        }
        let Some(call) = position.and_then(|position| state.expected.get_mut(position)) else {
            let next = state.expected.front().map_or("nothing", |call| &call.line);
            state.problems.push(format!("got {line}, expected {next}"));
            return (ScriptedAnswer::Reply(500, "not in the script".to_owned()), None);
        };
        if let Some(check) = &call.check {
            check(request);
        }
        let answer = (call.answer.clone(), call.gate.clone());
        if call.times != ANY_NUMBER_OF_TIMES {
            call.times -= 1;
            if call.times == 0 {
                state.expected.pop_front();
            }
        }
        answer
    }

    /// Serves the script over HTTP until the test's runtime ends, and returns its URL. Fails the test if the script
    /// has a call that the gateway is unreachable for.
    pub(crate) async fn serve_over_http(&self) -> String {
        let unreachable = |call: &ExpectedCall| matches!(call.answer, ScriptedAnswer::Unreachable);
        assert!(
            !self.0.lock().unwrap().expected.iter().any(unreachable),
            "a gateway over HTTP cannot be unreachable for a single call"
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let gateway = self.clone();
        tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let gateway = gateway.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let gateway = gateway.clone();
                    async move { gateway.answer_over_http(request).await }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(connection), service),
                );
            }
        });
        format!("http://{address}")
    }

    /// Answers a request. An error ends the connection without an answer.
    async fn answer_over_http(&self, request: Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let (answer, gate) = self.take_answer_or_record_problem(&Request::from_parts(head, body));
        if let Some(gate) = gate {
            gate.notified().await;
        }
        match answer {
            ScriptedAnswer::Reply(status, body) => {
                Ok(Response::builder().status(status).body(Full::from(body)).unwrap())
            }
            ScriptedAnswer::Lost => Err(io::ErrorKind::ConnectionAborted.into()),
            ScriptedAnswer::Unreachable => unreachable!("checked before the script is served"),
            ScriptedAnswer::Silence => std::future::pending().await,
        }
    }
}

impl GatewayRequestSender for ScriptedGateway {
    async fn send(&self, request: Request<Bytes>, limit: Duration) -> Result<Response<Bytes>, GatewayError> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        // Every call takes some time, so that paused time advances.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let (answer, gate) = self.take_answer_or_record_problem(&request);
        if let Some(gate) = gate {
            gate.notified().await;
        }
        match answer {
            ScriptedAnswer::Reply(status, body) => {
                Ok(Response::builder().status(status).body(body.into()).unwrap())
            }
            ScriptedAnswer::Lost => Err(GatewayError::Lost {
                method,
                path,
                source: "connection closed".into(),
            }),
            ScriptedAnswer::Unreachable => Err(GatewayError::Connect {
                method,
                path,
                source: "connection refused".into(),
            }),
            ScriptedAnswer::Silence => {
                tokio::time::sleep(limit).await;
                Err(GatewayError::Timeout { method, path, limit })
            }
        }
    }
}
