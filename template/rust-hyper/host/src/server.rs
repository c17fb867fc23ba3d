//! Serving: connections in, requests to the handler, answers out.

mod body;
mod connection;
mod inflight;
mod metrics;
mod service;

use std::sync::Arc;

use http::Response;
use http_body_util::Full;
use hyper::body::Incoming;
use prometheus::TextEncoder;
use tokio::net::TcpListener;

use crate::boot::App;
use crate::context::Platform;
use crate::handler::Handler;
use crate::settings::Settings;
use connection::{Limits, Serving};
use inflight::InFlight;
use metrics::Metrics;
use service::Service;

/// What the host serves with.
pub(crate) struct Server {
    limits: Limits,
    inflight: Arc<InFlight>,
}

impl Server {
    /// A server of `app`, and the service to be given to [`Server::spawn`].
    pub(crate) fn new<H: Handler>(
        settings: &Settings,
        app: App<H>,
        platform: Arc<Platform>,
        registry: &prometheus::Registry,
    ) -> Result<(Self, Arc<Service<H>>), prometheus::Error> {
        let inflight = Arc::new(InFlight::new(settings.max_inflight));
        let metrics = Metrics::new(registry, &inflight)?;
        let service = Arc::new(Service::new(settings, app, platform, inflight.clone(), metrics));
        Ok((
            Self {
                limits: Limits::of(settings),
                inflight,
            },
            service,
        ))
    }

    /// Serves connections of `listener`.
    pub(crate) fn spawn<H: Handler>(&self, listener: TcpListener, service: Arc<Service<H>>) -> Serving {
        Serving::spawn(listener, self.limits, move |request| {
            let service = service.clone();
            async move { service.answer(request).await }
        })
    }

    /// Serves the metrics on a port of their own.
    pub(crate) fn spawn_metrics(&self, listener: TcpListener, registry: prometheus::Registry) -> Serving {
        Serving::spawn(listener, self.limits, move |request| {
            let response = metrics_response(&request, &registry);
            async move { response }
        })
    }

    /// How many requests are being answered.
    pub(crate) fn running(&self) -> usize {
        self.inflight.running()
    }
}

fn metrics_response(
    request: &http::Request<Incoming>,
    registry: &prometheus::Registry,
) -> Response<Full<bytes::Bytes>> {
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
