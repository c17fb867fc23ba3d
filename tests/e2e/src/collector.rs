//! A trace collector inside the test: [OTLP](https://opentelemetry.io/docs/specs/otlp/) over HTTP.

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

/// A collector that keeps all spans it receives; it stops on drop.
#[derive(Debug)]
pub struct TraceCollector {
    address: SocketAddr,
    inner: Arc<ReceivedExports>,
    serving: JoinHandle<()>,
}

/// What the collector has received: the spans and headers of all export requests.
#[derive(Debug, Default)]
struct ReceivedExports {
    received: Mutex<(Vec<ReceivedSpan>, Vec<HeaderMap>)>,
    changed: Notify,
}

/// A span that the collector received.
#[derive(Debug, Clone)]
pub struct ReceivedSpan {
    /// The attribute `service.name` of the sender.
    pub service: String,
    /// The trace id in hexadecimal.
    pub trace: String,
    /// The span id in hexadecimal.
    pub id: String,
    /// The parent's span id in hexadecimal; empty for a root span.
    pub parent: String,
    /// The span's name.
    pub name: String,
    /// The span's duration in nanoseconds.
    pub duration_ns: u64,
    /// The status message of a failed span.
    pub error: Option<String>,
    attributes: Vec<KeyValue>,
}

impl ReceivedSpan {
    fn of(service: &str, span: otlp::Span) -> Self {
        let status = span.status.unwrap_or_default();
        Self {
            service: service.to_owned(),
            trace: hex::encode(&span.trace_id),
            id: hex::encode(&span.span_id),
            parent: hex::encode(&span.parent_span_id),
            name: span.name,
            duration_ns: span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano),
            error: (status.code == Code::Error as i32).then_some(status.message),
            attributes: span.attributes,
        }
    }

    /// Returns an attribute of the span as text.
    pub fn attribute(&self, key: &str) -> Option<String> {
        attribute_text(&self.attributes, key)
    }
}

fn attribute_text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    Some(match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(truth) => truth.to_string(),
        other => format!("{other:?}"),
    })
}

impl TraceCollector {
    /// Starts a collector on a free port.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let inner = Arc::new(ReceivedExports::default());
        let app = Router::new()
            .route("/v1/traces", post(receive_export))
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

    /// Returns the collector's URL for `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the headers of all export requests so far.
    pub fn export_headers(&self) -> Vec<HeaderMap> {
        self.inner
            .received
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .1
            .clone()
    }

    /// Returns all spans received so far.
    pub fn received_spans(&self) -> Vec<ReceivedSpan> {
        self.inner
            .received
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .clone()
    }

    /// Waits for a span of this service and name for which `matches` holds; returns all spans of its trace received
    /// so far. Fails after 30 s.
    pub async fn wait_for_span_and_get_trace_received_so_far(
        &self,
        service: &str,
        span_name: &str,
        matches: impl Fn(&ReceivedSpan) -> bool,
    ) -> Result<Vec<ReceivedSpan>> {
        let arrives = async {
            loop {
                let changed = self.inner.changed.notified();
                let spans = self.received_spans();
                let found = spans
                    .iter()
                    .find(|span| span.service == service && span.name == span_name && matches(span));
                if let Some(found) = found {
                    return spans
                        .iter()
                        .filter(|span| span.trace == found.trace)
                        .cloned()
                        .collect();
                }
                changed.await;
            }
        };
        let arrived = tokio::time::timeout(Duration::from_secs(30), arrives).await;
        arrived.with_context(|| {
            format!(
                "no matching span {span_name:?} of {service} arrived; received {:#?}",
                self.received_spans()
            )
        })
    }
}

/// Keeps the spans and the headers of an export request; a body that is not OTLP gets 400.
async fn receive_export(
    State(inner): State<Arc<ReceivedExports>>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return StatusCode::BAD_REQUEST;
    };
    let mut spans = Vec::new();
    for resource in request.resource_spans {
        let attributes = resource.resource.unwrap_or_default().attributes;
        let service = attribute_text(&attributes, "service.name").unwrap_or_default();
        let received = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        spans.extend(received.map(|span| ReceivedSpan::of(&service, span)));
    }
    let mut received = inner.received.lock().unwrap_or_else(PoisonError::into_inner);
    received.0.extend(spans);
    received.1.push(headers);
    inner.changed.notify_waiters();
    StatusCode::OK
}

impl Drop for TraceCollector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
