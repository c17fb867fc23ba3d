//! Traces: spans of requests and of the work that they cause, exported to an OpenTelemetry collector.
//!
//! Nothing is traced unless the environment names a collector. With one, each request has a span, in the trace that its
//! caller names in the header `traceparent` or in a new trace, and handlers may open child spans:
//!
//! ```no_run
//! # async fn ask() -> Result<(), std::io::Error> { Ok(()) }
//! # async fn handle() -> Result<(), std::io::Error> {
//! let span = function_host::trace::span("ask");
//! let answer = span.run(ask()).await;
//! if let Err(error) = &answer {
//!     span.mark_failed(error);
//! }
//! # answer
//! # }
//! ```
//!
//! Requests that are sent by [`Gateway`](crate::Gateway) have a span of their own, and pass the trace on.
//!
//! # Settings
//!
//! They are the variables that OpenTelemetry defines. Durations are in milliseconds.
//!
//! | variable | default | meaning |
//! | --- | --- | --- |
//! | `OTEL_EXPORTER_OTLP_ENDPOINT` | | the collector, `http://HOST:PORT` or `https://…`; spans are posted to
//! `/v1/traces` there |
//! | `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` | | the complete URL instead |
//! | `OTEL_EXPORTER_OTLP_HEADERS` | | further headers, `NAME=VALUE,…`, values percent-encoded; secret ones belong in
//! the secret `otel-headers` |
//! | `OTEL_EXPORTER_OTLP_CERTIFICATE` | | a file with certificates (PEM) that authenticate the collector, besides the
//! system's |
//! | `OTEL_EXPORTER_OTLP_COMPRESSION` | `none` | `gzip` or `none` |
//! | `OTEL_EXPORTER_OTLP_TIMEOUT` | 10000 | the timeout of one export |
//! | `OTEL_EXPORTER_OTLP_PROTOCOL` | `http/protobuf` | the only supported protocol |
//! | `OTEL_SERVICE_NAME` | the function's own | the service name in the traces |
//! | `OTEL_RESOURCE_ATTRIBUTES` | | further attributes of the service, `KEY=VALUE,…` |
//! | `OTEL_TRACES_SAMPLER` | `parentbased_always_on` | also `always_on`, `always_off`, `traceidratio`, and the last two
//! with the prefix `parentbased_` |
//! | `OTEL_TRACES_SAMPLER_ARG` | 1 | the ratio of sampled traces for `traceidratio`, 0 to 1 |
//! | `OTEL_BSP_SCHEDULE_DELAY` | 5000 | the interval between exports |
//! | `OTEL_BSP_MAX_QUEUE_SIZE`, `OTEL_BSP_MAX_EXPORT_BATCH_SIZE` | 2048, 512 | the limits on queued spans, and on spans
//! in one export |
//! | `OTEL_TRACES_EXPORTER` | `otlp` | `none` disables tracing |
//! | `OTEL_SDK_DISABLED` | `false` | `true` disables tracing |
//!
//! A variable with `_TRACES_` in its name takes precedence over the one without (`OTEL_EXPORTER_OTLP_TRACES_HEADERS`
//! over `OTEL_EXPORTER_OTLP_HEADERS`).
//!
//! # The collector
//!
//! The collector never delays requests. Spans are queued in bounded memory and exported by a separate thread; spans
//! that exceed the queue are dropped. The first failure of an export is logged, and the next success. When the
//! function shuts down, queued spans are exported, within [`SPAN_FLUSH_TIMEOUT`].

mod collector;
mod context;
mod propagation;
mod settings;
mod span;

use std::sync::Arc;
use std::time::Duration;

use http::header::{HOST, USER_AGENT};
use http::{HeaderMap, Method};
use opentelemetry::Context;
use opentelemetry::trace::{SpanKind, TracerProvider};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

pub use context::InSpanFuture;
pub(crate) use context::TraceContext;
pub use opentelemetry::Value;
pub(crate) use settings::Settings;
pub use span::Span;
use span::{truncate_attribute_text, truncated_attribute};

/// The name of the secret with request headers for the trace collector, such as an access token.
///
/// Its format is `NAME=VALUE`, with values percent-encoded, separated by commas or line ends. It is read again when its
/// file changes.
pub const COLLECTOR_HEADERS_SECRET: &str = "otel-headers";

/// The timeout for exporting the queued trace spans at shutdown.
pub const SPAN_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The name of the instrumentation scope, which identifies this crate in exported spans.
const INSTRUMENTATION_SCOPE_NAME: &str = "function-host";

/// Opens a child of the current trace span. The child is empty if the current request is not traced.
pub fn span(name: impl Into<std::borrow::Cow<'static, str>>) -> Span {
    Span::child_of(&Context::current(), name.into(), SpanKind::Internal)
}

/// Opens a child of the current trace span for a request to another service (OpenTelemetry's kind `client`).
///
/// [`Span::inject_headers`] passes the trace on to that service.
pub fn client_span(name: impl Into<std::borrow::Cow<'static, str>>) -> Span {
    Span::child_of(&Context::current(), name.into(), SpanKind::Client)
}

/// Sets the route of the current request in its trace: a path pattern without parts that vary between callers.
pub fn set_route_of_current_request(route: &'static str) {
    span::set_route(&Context::current(), route);
}

/// Wraps `future` so that it runs in the current trace span wherever it is polled, for example in a new task.
pub fn in_current_span<F>(future: F) -> InSpanFuture<F> {
    TraceContext::current().wrap_in_context(future)
}

/// Sets the trace headers of a request, which name the current span as the caller. Without a span, sets none.
pub fn inject_trace_headers(headers: &mut HeaderMap) {
    propagation::inject_context(&Context::current(), headers);
}

/// Opens the trace span of a request that the host sends, and sets the request's trace headers.
pub(crate) fn open_outgoing_span_and_inject_headers<B>(request: &mut http::Request<B>) -> Span {
    let (method, uri) = (request.method().as_str(), request.uri());
    let span = client_span(format!("{method} {}", constant_path_prefix(uri.path())));
    if span.is_recording() {
        span.set_attribute("http.request.method", method.to_owned());
        span.set_attribute("url.path", uri.path().to_owned());
        span.set_attribute("server.address", uri.host().unwrap_or_default().to_owned());
        if let Some(port) = uri.port_u16() {
            span.set_attribute("server.port", i64::from(port));
        }
    }
    span.inject_headers(request.headers_mut());
    span
}

/// Returns the name of a standard HTTP method; `None` for another one. Those do not become span names, because clients
/// choose them.
fn standard_method_name(method: &Method) -> Option<&'static str> {
    const STANDARD_METHODS: [&str; 9] = [
        "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE",
    ];
    STANDARD_METHODS
        .into_iter()
        .find(|standard| *standard == method.as_str())
}

/// Returns the prefix of a path that does not vary between functions and images, for the names of spans.
fn constant_path_prefix(path: &str) -> &str {
    let segments = if path.starts_with("/system/") { 2 } else { 1 };
    match path.match_indices('/').nth(segments) {
        Some((end, _)) => &path[..end],
        None => path,
    }
}

/// The tracer of incoming requests. It does nothing without a collector.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequestTracer(Option<Arc<CollectorTracer>>);

/// The provider of the tracer, which exports spans to the collector, and the tracer itself.
#[derive(Debug)]
struct CollectorTracer {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl RequestTracer {
    /// Creates a tracer whose spans `provider` exports.
    fn new(provider: SdkTracerProvider) -> Self {
        let tracer = provider.tracer(INSTRUMENTATION_SCOPE_NAME);
        Self(Some(Arc::new(CollectorTracer { provider, tracer })))
    }

    /// Opens the trace span of an incoming request.
    pub(crate) fn open_span<B>(&self, request: &http::Request<B>, call_id: &str) -> Span {
        let Some(active) = &self.0 else {
            return Span::empty();
        };
        let caller = propagation::extract_caller_context(request.headers());
        let method = standard_method_name(request.method());
        let mut attributes = vec![
            truncated_attribute("http.request.method", method.unwrap_or("_OTHER")),
            truncated_attribute("url.scheme", "http"),
            truncated_attribute(
                "url.path",
                truncate_attribute_text(request.uri().path()).to_owned(),
            ),
            truncated_attribute("faas.invocation_id", call_id.to_owned()),
        ];
        for (key, header) in [("server.address", HOST), ("user_agent.original", USER_AGENT)] {
            let value = request
                .headers()
                .get(header)
                .and_then(|value| value.to_str().ok());
            attributes.extend(
                value.map(|value| truncated_attribute(key, truncate_attribute_text(value).to_owned())),
            );
        }
        Span::for_request(&active.tracer, &caller, method.unwrap_or("HTTP"), attributes)
    }

    /// Exports the queued trace spans, within [`SPAN_FLUSH_TIMEOUT`], and stops the export.
    pub(crate) async fn flush_and_stop_export(&self) {
        let Some(active) = self.0.clone() else {
            return;
        };
        // The exporter logs its failures. The wait blocks its thread, while the runtime sends the request.
        let flushed =
            tokio::task::spawn_blocking(move || active.provider.shutdown_with_timeout(SPAN_FLUSH_TIMEOUT));
        let _ = flushed.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_functions_and_images_are_not_part_of_span_names() {
        for (path, prefix) in [
            ("/system/functions", "/system/functions"),
            ("/system/function/shop", "/system/function"),
            ("/function/shop/_/health", "/function"),
            ("/async-function/deployer-fn", "/async-function"),
            ("/v2/shop/manifests/sha256:0", "/v2"),
            ("/", "/"),
            ("", ""),
        ] {
            assert_eq!(constant_path_prefix(path), prefix, "{path}");
        }
    }
}
