//! Serving: connections in, requests to the handler, answers out.

mod answer;
mod call_id;
mod connection;
mod inflight;
mod metrics;
mod outgoing;
mod patience;
mod record;
mod service;
mod stage;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use prometheus::{Registry, TEXT_FORMAT, TextEncoder};
use tokio::net::TcpListener;

use crate::boot::App;
use crate::context::Platform;
use crate::handler::Handler;
use crate::settings::Settings;
use crate::trace::Traces;
use answer::Answer;
use connection::{Answers, Serving};
use inflight::InFlight;
use metrics::{InFlightGauge, Metrics};
use outgoing::Outgoing;
use patience::Limits;
use record::Ledger;
use service::Service;
use stage::Stage;

pub(crate) use stage::BodyTurn;

/// What the host serves with.
pub(crate) struct Server<H> {
    limits: Limits,
    ledger: Arc<Ledger>,
    service: Arc<Service<H>>,
    registry: Registry,
}

impl<H: Handler> Server<H> {
    /// A server of `app` that counts in `registry`.
    pub(crate) fn new(
        settings: &Settings,
        app: App<H>,
        platform: Arc<Platform>,
        registry: Registry,
        traces: Traces,
    ) -> Result<Self, prometheus::Error> {
        let inflight = InFlight::new(settings.max_inflight.filter(|_| !app.limits_itself));
        let ledger = Arc::new(Ledger {
            inflight,
            metrics: Metrics::new(&registry)?,
        });
        registry.register(Box::new(InFlightGauge::new(&ledger)?))?;
        let service = Arc::new(Service::new(settings, app, platform, ledger.clone(), traces));
        Ok(Self {
            limits: limits(settings),
            ledger,
            service,
            registry,
        })
    }

    /// Serves the function's callers.
    pub(crate) fn serve(&self, listener: TcpListener) -> Serving {
        Serving::spawn(listener, self.limits, self.service.clone())
    }

    /// Serves the metrics, on a port of their own.
    pub(crate) fn serve_metrics(&self, listener: TcpListener) -> Serving {
        Serving::spawn(listener, self.limits, MetricsPage(self.registry.clone()))
    }

    /// How many requests are being answered.
    pub(crate) fn running(&self) -> usize {
        self.ledger.inflight.running()
    }
}

/// How long a connection may have no request, unless `read_timeout` is longer. Clients keep connections for a while, and
/// one that is closed just as it is used again is an error they may not retry.
const IDLE: Duration = Duration::from_secs(120);

fn limits(settings: &Settings) -> Limits {
    let (read, write) = (settings.read_timeout, settings.write_timeout);
    Limits {
        read,
        write,
        idle: IDLE.max(read),
    }
}

impl<H: Handler> Answers for Arc<Service<H>> {
    type Body = Outgoing;
    type Answer = Answer;

    fn answer(&self, request: Request<Incoming>, connection: &Arc<Stage>) -> Answer {
        Service::answer(self, request, connection)
    }
}

/// Answers `/metrics`.
#[derive(Clone)]
struct MetricsPage(Registry);

impl MetricsPage {
    fn response(&self, path: &str) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        if path != "/metrics" {
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        }
        match TextEncoder::new().encode_to_string(&self.0.gather()) {
            Ok(text) => {
                response
                    .headers_mut()
                    .insert(CONTENT_TYPE, HeaderValue::from_static(TEXT_FORMAT));
                *response.body_mut() = Full::from(text);
            }
            Err(error) => {
                tracing::error!(%error, "could not write the metrics");
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            }
        }
        response
    }
}

impl Answers for MetricsPage {
    type Body = Full<Bytes>;
    type Answer = Ready<Result<Response<Full<Bytes>>, Infallible>>;

    fn answer(&self, request: Request<Incoming>, _connection: &Arc<Stage>) -> Self::Answer {
        ready(Ok(self.response(request.uri().path())))
    }
}
