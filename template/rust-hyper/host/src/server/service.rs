//! One request: probes, the call id, the limit, the handler.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use hyper::body::Incoming;
use tracing::Instrument;

use super::answer::{Answer, CALL_ID, Handling};
use super::record::{Ledger, Record};
use crate::body::Body;
use crate::boot::{App, ReadyCheck};
use crate::context::{Context, Platform};
use crate::handler::Handler;
use crate::reply;
use crate::settings::Settings;

/// A call id of the caller's is taken up to this length; every line of the log carries it.
const MAX_CALL_ID: usize = 128;

/// What answers requests.
pub(crate) struct Service<H> {
    handler: H,
    ready: Vec<ReadyCheck>,
    health_paths: Vec<String>,
    ready_paths: Vec<String>,
    platform: Arc<Platform>,
    ledger: Arc<Ledger>,
    read_timeout: Duration,
    exec_timeout: Option<Duration>,
}

impl<H: Handler> Service<H> {
    pub(crate) fn new(
        settings: &Settings,
        app: App<H>,
        platform: Arc<Platform>,
        ledger: Arc<Ledger>,
    ) -> Self {
        Self {
            handler: app.handler,
            ready: app.ready,
            health_paths: app.health_paths,
            ready_paths: app.ready_paths,
            platform,
            ledger,
            read_timeout: settings.read_timeout,
            exec_timeout: settings.exec_timeout,
        }
    }

    /// Begins to answer.
    pub(crate) fn answer(self: &Arc<Self>, request: http::Request<Incoming>) -> Answer {
        let id = call_id(&request);
        if let Some(response) = self.probe(request.uri().path()) {
            return Answer::ready(response, &id, None);
        }
        let (record, entered) = Record::open(&self.ledger, &request, &id);
        if let Err(limit) = entered {
            return Answer::ready(reply::busy(limit), &id, Some(record));
        }
        // Of the highest level, so that no filter takes the call id away.
        let span = tracing::error_span!("request", call_id = &*id);
        let deadline = self.exec_timeout.map(|limit| record.begun() + limit);
        let context = Context::of_request(id.clone(), deadline, self.platform.clone());
        let request = request.map(|body| Body::incoming(body, Some(self.read_timeout)));
        let service = self.clone();
        let handling: Handling = Box::pin(async move { service.handler.call(request, context).await });
        Answer::running(handling.instrument(span), deadline, id, record)
    }

    fn probe(&self, path: &str) -> Option<crate::Response> {
        if path == "/_/health" || self.health_paths.iter().any(|health| health == path) {
            return Some(reply::text("OK\n"));
        }
        if path != "/_/ready" && self.ready_paths.iter().all(|ready| ready != path) {
            return None;
        }
        let hindrance = if self.platform.shutdown.begun() {
            "ending\n"
        } else if self.ledger.inflight.full() {
            "as many requests as max_inflight allows\n"
        } else if !self.ready.iter().all(|check| check()) {
            "not ready\n"
        } else {
            return Some(reply::text("OK\n"));
        };
        Some(reply::message(StatusCode::SERVICE_UNAVAILABLE, hindrance))
    }
}

/// The caller's id where it has one that can be logged, else a new one.
fn call_id(request: &http::Request<Incoming>) -> Arc<str> {
    let given = request
        .headers()
        .get(CALL_ID)
        .and_then(|given| given.to_str().ok());
    match given {
        Some(given) if !given.is_empty() && given.len() <= MAX_CALL_ID => given.into(),
        _ => {
            let mut buffer = uuid::Uuid::encode_buffer();
            let new: &str = uuid::Uuid::new_v4().hyphenated().encode_lower(&mut buffer);
            new.into()
        }
    }
}
