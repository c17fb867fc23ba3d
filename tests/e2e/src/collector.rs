//! A collector of traces inside the test: OTLP over HTTP, as <https://opentelemetry.io/docs/specs/otlp/> has it.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::{Router, body::Bytes, extract::State, http::HeaderMap, http::StatusCode, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{self as otlp, status::StatusCode as Code},
};
use prost::Message as _;
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle};

/// Takes what it is sent, and keeps it. It ends with the value.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    inner: Arc<Inner>,
    serving: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Inner {
    received: Mutex<(Vec<Span>, Vec<HeaderMap>)>,
    news: Notify,
}

/// A span as it was told.
#[derive(Debug, Clone)]
pub struct Span {
    /// The attribute `service.name` of what told it.
    pub service: String,
    /// In hexadecimal.
    pub trace: String,
    /// In hexadecimal.
    pub id: String,
    /// In hexadecimal; empty where there is none.
    pub parent: String,
    /// What was done.
    pub name: String,
    /// How many nanoseconds it took.
    pub took: u64,
    /// Why it failed, where it did.
    pub error: Option<String>,
    attributes: Vec<KeyValue>,
}

impl Span {
    fn of(service: &str, span: otlp::Span) -> Self {
        let status = span.status.unwrap_or_default();
        Self {
            service: service.to_owned(),
            trace: hex::encode(&span.trace_id),
            id: hex::encode(&span.span_id),
            parent: hex::encode(&span.parent_span_id),
            name: span.name,
            took: span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano),
            error: (status.code == Code::Error as i32).then_some(status.message),
            attributes: span.attributes,
        }
    }

    /// An attribute, as text.
    pub fn attribute(&self, key: &str) -> Option<String> {
        attribute(&self.attributes, key)
    }
}

fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    Some(match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(truth) => truth.to_string(),
        other => format!("{other:?}"),
    })
}

impl Collector {
    /// One on a port of its own.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let inner = Arc::new(Inner::default());
        let app = Router::new()
            .route("/v1/traces", post(take))
            .with_state(Arc::clone(&inner));
        let serving = tokio::spawn(async move {
            axum::serve(listener, app).await.ok();
        });
        Ok(Self {
            address,
            inner,
            serving,
        })
    }

    /// Its address, for `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The headers of all deliveries so far.
    pub fn headers(&self) -> Vec<HeaderMap> {
        self.inner
            .received
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .1
            .clone()
    }

    /// Everything that was delivered so far.
    pub fn spans(&self) -> Vec<Span> {
        self.inner
            .received
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .clone()
    }

    /// Waits until a span of this service and name is there which `is_it`; gives its trace, as far as it is there.
    pub async fn trace_with(
        &self,
        service: &str,
        name: &str,
        is_it: impl Fn(&Span) -> bool,
    ) -> Result<Vec<Span>> {
        let arrives = async {
            loop {
                let news = self.inner.news.notified();
                let spans = self.spans();
                let found = spans
                    .iter()
                    .find(|span| span.service == service && span.name == name && is_it(span));
                if let Some(found) = found {
                    return spans
                        .iter()
                        .filter(|span| span.trace == found.trace)
                        .cloned()
                        .collect();
                }
                news.await;
            }
        };
        let arrived = tokio::time::timeout(Duration::from_secs(30), arrives).await;
        arrived.with_context(|| format!("no span {name:?} of {service} came, among {:#?}", self.spans()))
    }
}

async fn take(State(inner): State<Arc<Inner>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return StatusCode::BAD_REQUEST;
    };
    let mut spans = Vec::new();
    for resource in request.resource_spans {
        let attributes = resource.resource.unwrap_or_default().attributes;
        let service = attribute(&attributes, "service.name").unwrap_or_default();
        let told = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        spans.extend(told.map(|span| Span::of(&service, span)));
    }
    let mut received = inner.received.lock().unwrap_or_else(PoisonError::into_inner);
    received.0.extend(spans);
    received.1.push(headers);
    inner.news.notify_waiters();
    StatusCode::OK
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
