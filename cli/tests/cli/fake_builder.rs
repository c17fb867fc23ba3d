//! A server that stands in for the gateway, the queue and the builder, and answers as a test says.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, Method, Response, Uri};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// The longest wait for a request of the command.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// An answer of the fake server: its status, the pieces of its body, and how the body ends.
pub(crate) struct ScriptedAnswer {
    pub(crate) status: u16,
    pub(crate) chunks: Vec<String>,
    pub(crate) end: BodyEnd,
}

/// The end of an answer's body.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum BodyEnd {
    /// The body is complete.
    Complete,
    /// The connection is cut.
    Cut,
    /// The body stays open.
    Open,
    /// The request is not answered at all.
    NeverBegun,
}

/// A request that the server received.
#[derive(Clone, Debug)]
pub(crate) struct ReceivedHeadersAndBody {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

type Script = Arc<Mutex<VecDeque<(String, ScriptedAnswer)>>>;

/// A running server that gives scripted answers, and keeps the requests that it received.
pub(crate) struct FakeBuilder {
    pub(crate) url: String,
    script: Script,
    received: mpsc::UnboundedReceiver<ReceivedHeadersAndBody>,
}

impl ScriptedAnswer {
    /// An answer with one JSON body.
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self {
            status,
            chunks: vec![body.to_string()],
            end: BodyEnd::Complete,
        }
    }

    /// A stream of records, one on each line.
    pub(crate) fn records(records: &[Value], end: BodyEnd) -> Self {
        Self {
            status: 200,
            chunks: records.iter().map(|record| format!("{record}\n")).collect(),
            end,
        }
    }

    /// A request that is received, and not answered.
    pub(crate) fn never() -> Self {
        Self {
            status: 200,
            chunks: Vec::new(),
            end: BodyEnd::NeverBegun,
        }
    }

    /// The queue's answer to a call that it takes.
    pub(crate) fn queued() -> Self {
        Self {
            status: 202,
            chunks: Vec::new(),
            end: BodyEnd::Complete,
        }
    }

    /// A stream of records as server-sent events.
    pub(crate) fn events(records: &[Value], end: BodyEnd) -> Self {
        Self {
            status: 200,
            chunks: records
                .iter()
                .map(|record| format!("data: {record}\n\n"))
                .collect(),
            end,
        }
    }
}

impl FakeBuilder {
    /// Starts a server, which answers each request with the first answer that is left for its method and path, such as
    /// `POST /build`, and with 404 if there is none. Probes are answered with 200.
    pub(crate) async fn start(script: Vec<(&str, ScriptedAnswer)>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (sender, received) = mpsc::unbounded_channel();
        let script = script
            .into_iter()
            .map(|(request, answer)| (request.to_owned(), answer));
        let script: Script = Arc::new(Mutex::new(script.collect()));
        let app = Router::new()
            .fallback(give_scripted_answer)
            .layer(DefaultBodyLimit::disable())
            .with_state((script.clone(), sender));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self {
            url,
            script,
            received,
        }
    }

    /// Adds an answer to a request such as `POST /build`.
    pub(crate) fn add_answer(&self, request: &str, answer: ScriptedAnswer) {
        self.script
            .lock()
            .expect("the lock")
            .push_back((request.to_owned(), answer));
    }

    /// Waits for the next request that is no probe; panics if none comes within a minute.
    pub(crate) async fn next_request_except_probes(&mut self) -> ReceivedHeadersAndBody {
        let request = tokio::time::timeout(REQUEST_TIMEOUT, self.received.recv()).await;
        request.expect("a request in time").expect("the server runs")
    }

    /// Waits for the next build request, and returns the ID of its call.
    pub(crate) async fn next_call_id(&mut self) -> String {
        let request = self.next_request_except_probes().await;
        request.headers["x-call-id"].to_str().expect("text").to_owned()
    }

    /// Returns how many of the scripted answers were not given.
    pub(crate) fn answers_left(&self) -> usize {
        self.script.lock().expect("the lock").len()
    }
}

async fn give_scripted_answer(
    State((script, received)): State<(Script, mpsc::UnboundedSender<ReceivedHeadersAndBody>)>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    if path.ends_with("/_/health") {
        return respond(ScriptedAnswer::json(200, &json!({})));
    }
    let request = format!("{method} {path}");
    let found = {
        let mut script = script.lock().expect("the lock");
        let at = script.iter().position(|(expected, _)| *expected == request);
        at.and_then(|at| script.remove(at))
    };
    let _ = received.send(ReceivedHeadersAndBody { headers, body });
    if matches!(&found, Some((_, answer)) if answer.end == BodyEnd::NeverBegun) {
        std::future::pending::<()>().await;
    }
    let missing = || ScriptedAnswer::json(404, &json!({"status": "failed", "error": "no such build"}));
    respond(found.map_or_else(missing, |(_, answer)| answer))
}

fn respond(answer: ScriptedAnswer) -> Response<Body> {
    let (sender, chunks) = mpsc::unbounded_channel::<Result<Bytes, std::io::Error>>();
    for chunk in answer.chunks {
        let _ = sender.send(Ok(chunk.into()));
    }
    match answer.end {
        BodyEnd::Complete => drop(sender),
        BodyEnd::Cut => {
            let _ = sender.send(Err(std::io::Error::other("cut by the test")));
        }
        BodyEnd::Open | BodyEnd::NeverBegun => {
            tokio::spawn(async move {
                sender.closed().await;
            });
        }
    }
    let stream = futures_util::stream::unfold(chunks, |mut chunks| async move {
        let chunk = chunks.recv().await?;
        // The server flushes what it has while it waits for more: a cut loses nothing that came before it.
        tokio::task::yield_now().await;
        Some((chunk, chunks))
    });
    let response = Response::builder()
        .status(answer.status)
        .body(Body::from_stream(stream));
    response.unwrap_or_else(|_: axum::http::Error| Response::new(Body::empty()))
}

/// Returns a record of a streamed answer, with one line of the build's log.
pub(crate) fn record_with_line(seq: u64, text: &str) -> Value {
    json!({"seq": seq, "log": [text], "status": "in_progress", "duration": 0.1})
}

/// The outcome of a build whose function runs.
pub(crate) fn outcome_of_running_function() -> Value {
    json!({"image": "r.example/shop:1", "digest": "sha256:ab", "status": "success", "duration": 1.0,
           "deployment": {"status": "ready", "durations": {"total": 0.5}}})
}
