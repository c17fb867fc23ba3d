//! One request: probes, the call id, the limit, the handler.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use hyper::body::{Body as _, Incoming};

use super::answer::{Answer, Deadline, Marks, Running};
use super::call_id::CallIds;
use super::record::{Ledger, Record};
use super::stage::Stage;
use crate::body::Body;
use crate::boot::{App, ReadyCheck};
use crate::context::{Context, Platform};
use crate::handler::Handler;
use crate::reply;
use crate::settings::Settings;
use crate::trace::Traces;

/// What answers requests.
pub(crate) struct Service<H> {
    handler: H,
    ready: Vec<ReadyCheck>,
    health_paths: Vec<String>,
    ready_paths: Vec<String>,
    version: Option<HeaderValue>,
    platform: Arc<Platform>,
    ledger: Arc<Ledger>,
    call_ids: CallIds,
    traces: Traces,
    read_timeout: Duration,
    exec_timeout: Option<Duration>,
}

impl<H: Handler> Service<H> {
    pub(crate) fn new(
        settings: &Settings,
        app: App<H>,
        platform: Arc<Platform>,
        ledger: Arc<Ledger>,
        traces: Traces,
    ) -> Self {
        Self {
            handler: app.handler,
            ready: app.ready,
            health_paths: app.health_paths,
            ready_paths: app.ready_paths,
            version: settings.version.clone(),
            platform,
            ledger,
            call_ids: CallIds::default(),
            traces,
            read_timeout: settings.read_timeout,
            exec_timeout: settings.exec_timeout,
        }
    }

    /// Begins to answer.
    pub(crate) fn answer(
        self: &Arc<Self>,
        request: http::Request<Incoming>,
        connection: &Arc<Stage>,
    ) -> Answer {
        let call_id = self.call_ids.of(request.headers());
        let text: Arc<str> = call_id.to_str().unwrap_or_default().into();
        let marks = Marks {
            call_id,
            version: self.version.clone(),
        };
        if let Some(response) = self.probe(request.uri().path()) {
            return Answer::ready(response, marks, None);
        }
        let turn = connection.begin(!request.body().is_end_stream());
        let trace = self.traces.request(&request, &text);
        let (span, scope) = (trace.log_span(&text), trace.scope());
        let (record, entered) = Record::open(&self.ledger, &request, &text, trace, turn);
        if let Err(limit) = entered {
            return Answer::ready(reply::concurrency_limit_exceeded(limit), marks, Some(record));
        }
        let request = request.map(|body| match body.is_end_stream() {
            true => Body::empty(),
            false => Body::incoming(body, connection.body(), self.read_timeout),
        });
        let deadline = self.exec_timeout.map(|limit| record.begun() + limit);
        let context = Context::of_request(text, deadline, self.platform.clone());
        let service = self.clone();
        Answer::Running(Running {
            handling: Some(Box::pin(
                async move { service.handler.call(request, context).await },
            )),
            span,
            scope,
            marks,
            deadline: deadline.map(Deadline::new),
            record: Some(record),
        })
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
