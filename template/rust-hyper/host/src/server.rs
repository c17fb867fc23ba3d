//! Serving: connections in, requests to the handler, answers out.

mod answer;
mod connection;
mod inflight;
mod metrics;
mod outgoing;
mod record;
mod service;

use std::sync::Arc;

use http::Response;
use http_body_util::Full;
use hyper::body::Incoming;
use prometheus::{Registry, TextEncoder};
use tokio::net::TcpListener;

use crate::boot::App;
use crate::context::Platform;
use crate::handler::Handler;
use crate::settings::Settings;
use connection::{Limits, Serving};
use inflight::InFlight;
use metrics::{InFlightGauge, Metrics};
use record::Ledger;
use service::Service;

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
    ) -> Result<Self, prometheus::Error> {
        let inflight = InFlight::new(settings.max_inflight);
        let ledger = Arc::new(Ledger {
            inflight,
            metrics: Metrics::new(&registry)?,
        });
        registry.register(Box::new(InFlightGauge::new(&ledger)?))?;
        let service = Arc::new(Service::new(settings, app, platform, ledger.clone()));
        Ok(Self {
            limits: Limits::of(settings),
            ledger,
            service,
            registry,
        })
    }

    /// Serves the function's callers.
    pub(crate) fn serve(&self, listener: TcpListener) -> Serving {
        let service = self.service.clone();
        Serving::spawn(listener, self.limits, move |request| service.answer(request))
    }

    /// Serves the metrics, on a port of their own.
    pub(crate) fn serve_metrics(&self, listener: TcpListener) -> Serving {
        let registry = self.registry.clone();
        let answer = move |request| std::future::ready(Ok(metrics_response(&request, &registry)));
        Serving::spawn(listener, self.limits, answer)
    }

    /// How many requests are being answered.
    pub(crate) fn running(&self) -> usize {
        self.ledger.inflight.running()
    }
}

fn metrics_response(request: &http::Request<Incoming>, registry: &Registry) -> Response<Full<bytes::Bytes>> {
    let mut response = Response::new(Full::default());
    if request.uri().path() != "/metrics" {
        *response.status_mut() = http::StatusCode::NOT_FOUND;
        return response;
    }
    match TextEncoder::new().encode_to_string(&registry.gather()) {
        Ok(text) => {
            let text_format = http::HeaderValue::from_static(prometheus::TEXT_FORMAT);
            response
                .headers_mut()
                .insert(http::header::CONTENT_TYPE, text_format);
            *response.body_mut() = Full::from(text);
        }
        Err(error) => {
            tracing::error!(%error, "could not write the metrics");
            *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
        }
    }
    response
}
