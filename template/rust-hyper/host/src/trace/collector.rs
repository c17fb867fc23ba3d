//! The collector: how spans get there.

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

use super::Traces;
use super::settings::{self, Headers, Settings, Tracing};
use crate::error::{BoxError, ErrorChain};
use crate::gateway::connector::{self, Connector};
use crate::secret::Secrets;

/// More than any collector has to say, in bytes.
const ANSWER_MAX: usize = 64 * 1024;

impl Settings {
    /// Begins to trace, where that was asked for: within the runtime that is to send. `name` is what the function is called
    /// where the environment does not say it.
    pub(crate) fn start(self, name: Option<&'static str>) -> Result<Traces, BoxError> {
        let Some(tracing) = self.0 else {
            return Ok(Traces::default());
        };
        let connector = match tracing.endpoint.scheme_str() {
            Some("https") => connector::trusting_also(tracing.authorities.as_deref())?,
            _ => connector::plain()?,
        };
        tracing::info!(collector = origin(&tracing.endpoint), "traces are sent");
        let resource = Resource::builder();
        let resource = match name.filter(|_| !tracing.is_named) {
            Some(name) => resource.with_service_name(name),
            None => resource,
        };
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(tracing.endpoint.to_string())
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(tracing.timeout)
            .with_http_client(Collector::new(&tracing, connector));
        if tracing.compress {
            exporter = exporter.with_compression(Compression::Gzip);
        }
        let provider = SdkTracerProvider::builder()
            .with_sampler(tracing.sampler)
            .with_resource(resource.build())
            .with_batch_exporter(exporter.build()?)
            .build();
        Ok(Traces::new(provider))
    }
}

/// Scheme, host and port: there may be more in an address than a log should have.
fn origin(endpoint: &http::Uri) -> String {
    let authority = endpoint.authority().map_or("", |authority| authority.as_str());
    format!("{}://{authority}", endpoint.scheme_str().unwrap_or_default())
}

/// Sends to the collector from the function's own runtime: the thread that has something to send has none.
struct Collector {
    runtime: Handle,
    client: Client<Connector, Full<Bytes>>,
    headers: Headers,
    secrets: Secrets,
    timeout: Duration,
    trouble: Arc<Trouble>,
}

impl Collector {
    fn new(tracing: &Tracing, connector: Connector) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector);
        Self {
            runtime: Handle::current(),
            client,
            headers: tracing.headers.clone(),
            secrets: tracing.secrets.clone(),
            timeout: tracing.timeout,
            trouble: Arc::new(Trouble {
                collector: origin(&tracing.endpoint),
                told: AtomicBool::new(false),
            }),
        }
    }
}

#[async_trait::async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut add = |headers: HeaderMap| {
            for (name, value) in headers.iter() {
                request.headers_mut().insert(name, value.clone());
            }
        };
        add(self.headers.0.clone());
        match settings::secret_headers(&self.secrets) {
            Ok(headers) => add(headers),
            Err(fault) => {
                self.trouble
                    .tell(format_args!("the secret with its headers: {fault}"));
                return Err(fault.into());
            }
        }
        let (client, limit, trouble) = (self.client.clone(), self.timeout, self.trouble.clone());
        let sending = self.runtime.spawn(async move {
            let sent = tokio::time::timeout(limit, send(&client, request)).await;
            match sent.unwrap_or_else(|elapsed| Err(elapsed.into())) {
                Ok(answer) => {
                    match answer.status().is_success() {
                        true => trouble.end(),
                        false => trouble.tell(format_args!("it answers {}", answer.status())),
                    }
                    Ok(answer)
                }
                Err(error) => {
                    trouble.tell(ErrorChain(error.as_ref()));
                    Err(error)
                }
            }
        });
        // The runtime may be gone.
        sending.await?
    }
}

async fn send(
    client: &Client<Connector, Full<Bytes>>,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, HttpError> {
    let (head, body) = client.request(request.map(Full::new)).await?.into_parts();
    let body = Limited::new(body, ANSWER_MAX).collect().await?;
    Ok(Response::from_parts(head, body.to_bytes()))
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Collector").field(&self.trouble.collector).finish()
    }
}

/// What is told of a collector that does not take spans: that it is so, once, and when it is over.
struct Trouble {
    collector: String,
    told: AtomicBool,
}

impl Trouble {
    fn tell(&self, why: impl fmt::Display) {
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                collector = self.collector,
                error = %why,
                "traces are not delivered, and dropped until they are; nothing else suffers from it"
            );
        }
    }

    fn end(&self) {
        if self.told.swap(false, Ordering::Relaxed) {
            tracing::info!(collector = self.collector, "traces are delivered again");
        }
    }
}
