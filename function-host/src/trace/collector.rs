//! The export of trace spans to an OpenTelemetry collector.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Compression, Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::Handle;

use super::RequestTracer;
use super::settings::{self, EnvironmentCollectorHeaders, ExporterSettings, Settings};
use crate::connector::{self, Connector};
use crate::error_chain::{BoxError, ErrorChain};
use crate::secret::Secrets;

/// The limit on the body of the trace collector's response, in bytes.
const MAX_COLLECTOR_RESPONSE_BYTES: usize = 64 * 1024;

impl Settings {
    /// Starts to export trace spans, if the settings name a collector. The current runtime sends the requests.
    ///
    /// `default_service_name` is the service name, unless the environment sets it.
    pub(crate) fn start_export_if_enabled(
        self,
        default_service_name: Option<&'static str>,
    ) -> Result<RequestTracer, BoxError> {
        let Some(exporter_settings) = self.0 else {
            return Ok(RequestTracer::default());
        };
        let connector = match exporter_settings.endpoint.scheme_str() {
            Some("https") => connector::connector_trusting_system_certificates(
                exporter_settings.authorities.as_deref(),
                None,
            )?,
            _ => connector::plain_connector()?,
        };
        tracing::info!(
            collector = url_origin(&exporter_settings.endpoint),
            "exporting traces"
        );
        let resource = Resource::builder();
        let resource = match default_service_name.filter(|_| !exporter_settings.is_named) {
            Some(name) => resource.with_service_name(name),
            None => resource,
        };
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(exporter_settings.endpoint.to_string())
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(exporter_settings.timeout)
            .with_http_client(CollectorClient::new(&exporter_settings, connector));
        if exporter_settings.compress {
            exporter = exporter.with_compression(Compression::Gzip);
        }
        let provider = SdkTracerProvider::builder()
            .with_sampler(exporter_settings.sampler)
            .with_resource(resource.build())
            .with_batch_exporter(exporter.build()?)
            .build();
        Ok(RequestTracer::new(provider))
    }
}

/// Returns the scheme, host and port of the collector's URL for the log. The rest may be secret.
fn url_origin(endpoint: &http::Uri) -> String {
    let authority = endpoint.authority().map_or("", |authority| authority.as_str());
    format!("{}://{authority}", endpoint.scheme_str().unwrap_or_default())
}

/// The HTTP client of the span exporter. It sends on the function's runtime, because the exporter's thread
/// has none.
struct CollectorClient {
    runtime: Handle,
    client: Client<Connector, Full<Bytes>>,
    headers: EnvironmentCollectorHeaders,
    secrets: Secrets,
    timeout: Duration,
    status: Arc<ExportStatus>,
}

impl CollectorClient {
    fn new(settings: &ExporterSettings, connector: Connector) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector);
        Self {
            runtime: Handle::current(),
            client,
            headers: settings.headers.clone(),
            secrets: settings.secrets.clone(),
            timeout: settings.timeout,
            status: Arc::new(ExportStatus {
                collector: url_origin(&settings.endpoint),
                failing: AtomicBool::new(false),
            }),
        }
    }
}

#[async_trait::async_trait]
impl HttpClient for CollectorClient {
    async fn send_bytes(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut add = |headers: HeaderMap| {
            for (name, value) in headers.iter() {
                request.headers_mut().insert(name, value.clone());
            }
        };
        add(self.headers.0.clone());
        match settings::read_secret_headers_empty_if_missing(&self.secrets) {
            Ok(headers) => add(headers),
            Err(problem) => {
                self.status.record_failure(format_args!(
                    "secret {}: {problem}",
                    super::COLLECTOR_HEADERS_SECRET
                ));
                return Err(problem.into());
            }
        }
        let (client, timeout, status) = (self.client.clone(), self.timeout, self.status.clone());
        let sending = self.runtime.spawn(async move {
            let sent =
                tokio::time::timeout(timeout, send_export_and_receive_any_status(&client, request)).await;
            match sent.unwrap_or_else(|elapsed| Err(elapsed.into())) {
                Ok(response) => {
                    match response.status().is_success() {
                        true => status.record_success(),
                        false => status
                            .record_failure(format_args!("the collector answered {}", response.status())),
                    }
                    Ok(response)
                }
                Err(error) => {
                    status.record_failure(ErrorChain(error.as_ref()));
                    Err(error)
                }
            }
        });
        // Fails if the runtime has been shut down.
        sending.await?
    }
}

/// Sends an export to the collector, and reads the whole response.
async fn send_export_and_receive_any_status(
    client: &Client<Connector, Full<Bytes>>,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, HttpError> {
    let (head, body) = client.request(request.map(Full::new)).await?.into_parts();
    let body = Limited::new(body, MAX_COLLECTOR_RESPONSE_BYTES).collect().await?;
    Ok(Response::from_parts(head, body.to_bytes()))
}

impl fmt::Debug for CollectorClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CollectorClient")
            .field(&self.status.collector)
            .finish()
    }
}

/// The outcome of the last export of spans. It logs when exports begin to fail, and when they succeed again.
struct ExportStatus {
    collector: String,
    failing: AtomicBool,
}

impl ExportStatus {
    /// Records a failed export of spans, and logs the first one.
    fn record_failure(&self, error: impl fmt::Display) {
        if !self.failing.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                collector = self.collector,
                %error,
                "could not export traces; they are dropped until the collector accepts them, requests are not affected"
            );
        }
    }

    /// Records a successful export of spans, and logs the first one after a failure.
    fn record_success(&self) {
        if self.failing.swap(false, Ordering::Relaxed) {
            tracing::info!(collector = self.collector, "exporting traces again");
        }
    }
}
