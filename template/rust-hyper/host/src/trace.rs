//! Traces: what a request did and when, as spans that a collector of OpenTelemetry's is sent.
//!
//! There are none, and nothing is done for them, unless the environment names a collector. Then each request has a span of
//! its own, in the trace that its caller names in `traceparent` or in a new one, and handlers may open more within it:
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
//! What is asked of a gateway by [`Gateway`](crate::Gateway) has a span, too, and carries the trace on.
//!
//! # Settings
//!
//! They are OpenTelemetry's own. Durations are numbers of milliseconds.
//!
//! | variable | default | what |
//! | --- | --- | --- |
//! | `OTEL_EXPORTER_OTLP_ENDPOINT` | | the collector, `http://HOST:PORT` or `https://…`; spans are posted to `/v1/traces` there |
//! | `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` | | the whole address in its place |
//! | `OTEL_EXPORTER_OTLP_HEADERS` | | further headers, `NAME=VALUE,…`, values percent-encoded; better as the secret `otel-headers` |
//! | `OTEL_EXPORTER_OTLP_CERTIFICATE` | | a file with certificates (PEM) to trust the collector by besides the system's |
//! | `OTEL_EXPORTER_OTLP_COMPRESSION` | `none` | `gzip` or `none` |
//! | `OTEL_EXPORTER_OTLP_TIMEOUT` | 10000 | how long one delivery may take |
//! | `OTEL_EXPORTER_OTLP_PROTOCOL` | `http/protobuf` | no other is spoken |
//! | `OTEL_SERVICE_NAME` | the function's own | what the spans are of |
//! | `OTEL_RESOURCE_ATTRIBUTES` | | what else is to be told of it, `KEY=VALUE,…` |
//! | `OTEL_TRACES_SAMPLER` | `parentbased_always_on` | also `always_on`, `always_off`, `traceidratio`, and `parentbased_` before the last two |
//! | `OTEL_TRACES_SAMPLER_ARG` | 1 | the share of traces for `traceidratio`, 0 to 1 |
//! | `OTEL_BSP_SCHEDULE_DELAY` | 5000 | how long a span waits for others at most |
//! | `OTEL_BSP_MAX_QUEUE_SIZE`, `OTEL_BSP_MAX_EXPORT_BATCH_SIZE` | 2048, 512 | how many spans wait, and how many go together |
//! | `OTEL_TRACES_EXPORTER` | `otlp` | `none` turns it off |
//! | `OTEL_SDK_DISABLED` | `false` | `true` turns it off |
//!
//! Where there are two, the one with `_TRACES_` in its name (`OTEL_EXPORTER_OTLP_TRACES_HEADERS`) counts before the other.
//!
//! # The collector
//!
//! It never holds anything up. Spans wait in a queue of fixed size, and a thread of its own delivers them; what there is no
//! room for is dropped. That a collector cannot be reached is told once, and once more when it can. When the function ends,
//! what still waits is delivered, within [`FLUSH_TIMEOUT`].

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

pub use context::InSpan;
pub(crate) use context::Scope;
pub use opentelemetry::Value;
pub(crate) use settings::Settings;
pub use span::Span;
use span::{attribute, cut};

/// The secret with headers for the collector, a token among them: `NAME=VALUE`, values percent-encoded, separated by commas
/// or line ends. It is read anew when its file changes.
pub const HEADERS_SECRET: &str = "otel-headers";

/// How long the last spans may take to be delivered.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The name of what makes the spans.
const SCOPE: &str = "function-host";

/// A span within the one that this runs in; none where that is not traced.
pub fn span(name: impl Into<std::borrow::Cow<'static, str>>) -> Span {
    Span::within(&Context::current(), name.into(), SpanKind::Internal)
}

/// The same, of a call to another service, which is to be told by [`Span::inject`].
pub fn client_span(name: impl Into<std::borrow::Cow<'static, str>>) -> Span {
    Span::within(&Context::current(), name.into(), SpanKind::Client)
}

/// Names the route by which the request is served: a path with nothing in it that is one caller's alone.
pub fn set_route(route: &'static str) {
    span::name_route(&Context::current(), route);
}

/// The future in the span that this is called in, wherever it is polled: in a task of its own, say.
pub fn in_current_span<F>(future: F) -> InSpan<F> {
    Scope::current().run(future)
}

/// Names the current span to whoever is sent these headers, as their caller.
pub fn inject(headers: &mut HeaderMap) {
    propagation::inject(&Context::current(), headers);
}

/// Begins the span of a request that is sent within the current one, and names it there as the caller.
pub(crate) fn outgoing<B>(request: &mut http::Request<B>) -> Span {
    let (method, uri) = (request.method().as_str(), request.uri());
    let span = client_span(format!("{method} {}", kind_of(uri.path())));
    if span.is_recording() {
        span.set("http.request.method", method.to_owned());
        span.set("url.path", uri.path().to_owned());
        span.set("server.address", uri.host().unwrap_or_default().to_owned());
        if let Some(port) = uri.port_u16() {
            span.set("server.port", i64::from(port));
        }
    }
    span.inject(request.headers_mut());
    span
}

/// The methods that spans are named by: of others there are any number.
fn known(method: &Method) -> Option<&'static str> {
    const METHODS: [&str; 9] = [
        "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE",
    ];
    METHODS.into_iter().find(|known| *known == method.as_str())
}

/// The part of a gateway's or a registry's path that many have in common.
fn kind_of(path: &str) -> &str {
    let segments = if path.starts_with("/system/") { 2 } else { 1 };
    match path.match_indices('/').nth(segments) {
        Some((end, _)) => &path[..end],
        None => path,
    }
}

/// What spans are made with: nothing, where there is no collector.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traces(Option<Arc<Tracing>>);

#[derive(Debug)]
struct Tracing {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    fn new(provider: SdkTracerProvider) -> Self {
        let tracer = provider.tracer(SCOPE);
        Self(Some(Arc::new(Tracing { provider, tracer })))
    }

    /// Begins the span of a request. It ends when it is dropped.
    pub(crate) fn request<B>(&self, request: &http::Request<B>, call_id: &str) -> Span {
        let Some(tracing) = &self.0 else {
            return Span::none();
        };
        let caller = propagation::extract(request.headers());
        let method = known(request.method());
        let mut attributes = vec![
            attribute("http.request.method", method.unwrap_or("_OTHER")),
            attribute("url.scheme", "http"),
            attribute("url.path", cut(request.uri().path()).to_owned()),
            attribute("faas.invocation_id", call_id.to_owned()),
        ];
        for (key, header) in [("server.address", HOST), ("user_agent.original", USER_AGENT)] {
            let value = request
                .headers()
                .get(header)
                .and_then(|value| value.to_str().ok());
            attributes.extend(value.map(|value| attribute(key, cut(value).to_owned())));
        }
        Span::of_request(&tracing.tracer, &caller, method.unwrap_or("HTTP"), attributes)
    }

    /// Delivers what waits, and ends.
    pub(crate) async fn flush(&self) {
        let Some(tracing) = self.0.clone() else {
            return;
        };
        // What failed has been told. The thread waits; this one lets the delivery itself go on.
        let flushed =
            tokio::task::spawn_blocking(move || tracing.provider.shutdown_with_timeout(FLUSH_TIMEOUT));
        let _ = flushed.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_named_by_what_their_paths_have_in_common() {
        for (path, kind) in [
            ("/system/functions", "/system/functions"),
            ("/system/function/shop", "/system/function"),
            ("/function/shop/_/health", "/function"),
            ("/async-function/deployer-fn", "/async-function"),
            ("/v2/shop/manifests/sha256:0", "/v2"),
            ("/", "/"),
            ("", ""),
        ] {
            assert_eq!(kind_of(path), kind, "{path}");
        }
    }
}
