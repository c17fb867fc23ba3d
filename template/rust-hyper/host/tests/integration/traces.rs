//! Spans of requests, as a collector gets them.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use function_host::http::{self, HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use prost::Message;
use rcgen::{CertifiedKey, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::function::{Answer, Function, send};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// What is logged of a collector that does not take spans.
const UNDELIVERED: &str =
    "traces are not delivered, and dropped until they are; nothing else suffers from it";

/// Takes what is exported, in memory.
struct Collector {
    address: SocketAddr,
    deliveries: mpsc::UnboundedReceiver<(HeaderMap, ExportTraceServiceRequest)>,
}

impl Collector {
    async fn start() -> Self {
        Self::serve(0, None).await
    }

    /// One that refuses so many deliveries before it takes one.
    async fn refusing(times: usize) -> Self {
        Self::serve(times, None).await
    }

    async fn behind_tls(key: &CertifiedKey<KeyPair>) -> Self {
        let secret = PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![key.cert.der().clone()], secret.into())
            .unwrap();
        Self::serve(0, Some(Arc::new(config).into())).await
    }

    async fn serve(refused: usize, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (deliver, deliveries) = mpsc::unbounded_channel();
        let refused = Arc::new(AtomicUsize::new(refused));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (deliver, refused) = (deliver.clone(), refused.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (deliver, refused) = (deliver.clone(), refused.clone());
                    async move {
                        assert_eq!(request.uri().path(), "/v1/traces");
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        let mut response = Response::new(Full::<Bytes>::default());
                        if refused
                            .try_update(Relaxed, Relaxed, |left| left.checked_sub(1))
                            .is_ok()
                        {
                            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
                            return Ok(response);
                        }
                        let spans = ExportTraceServiceRequest::decode(body).unwrap();
                        // The test may be over.
                        let _ = deliver.send((head.headers, spans));
                        Ok::<_, Infallible>(response)
                    }
                });
                match &tls {
                    None => {
                        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
                    }
                    // Who does not trust it goes away.
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            tokio::spawn(
                                http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                            );
                        }
                    }
                }
            }
        });
        Self { address, deliveries }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next delivery: its headers, the resource's attributes, its spans.
    async fn delivery(&mut self) -> (HeaderMap, Vec<KeyValue>, Vec<Span>) {
        let delivery = tokio::time::timeout(Duration::from_secs(60), self.deliveries.recv());
        let (headers, mut request) = delivery.await.unwrap().unwrap();
        let resource = request.resource_spans.remove(0);
        let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        (headers, resource.resource.unwrap().attributes, spans.collect())
    }
}

/// An attribute as text.
fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    Some(match found.value.clone()?.value? {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    })
}

async fn ask(function: &Function, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::get(path).header("host", "test");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(function.address, request.body("".into()).unwrap())
        .await
        .unwrap()
}

#[tokio::test]
async fn a_request_is_a_span_of_its_callers_trace_and_lines_of_the_log_name_that() {
    let mut collector = Collector::start().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("otel-headers"),
        "authorization=Bearer%20hunter2\n",
    )
    .unwrap();
    let mut function = Function::start(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url()),
        ("OTEL_BSP_SCHEDULE_DELAY", "3600000"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-team=functions"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
        ("secret_mount_path", folder.path().to_str().unwrap()),
    ])
    .await;
    ask(
        &function,
        "/logged?token=hunter2",
        &[("traceparent", CALLER), ("x-call-id", "t-1")],
    )
    .await;
    assert_eq!(function.line("logged").await["trace_id"], TRACE);
    ask(&function, "/fail", &[("traceparent", "00-not-a-parent")]).await;
    ask(&function, "/healthz", &[]).await;
    // What still waits is delivered at the end, and would not be otherwise.
    function.signal("TERM");
    assert_eq!(function.end().await, 0);

    let (headers, resource, spans) = collector.delivery().await;
    assert_eq!(
        (&headers["authorization"], &headers["x-team"]),
        (&"Bearer hunter2".parse().unwrap(), &"functions".parse().unwrap())
    );
    assert_eq!(attribute(&resource, "service.name").unwrap(), "tested");
    assert_eq!(
        attribute(&resource, "deployment.environment.name").unwrap(),
        "test"
    );
    assert!(!format!("{resource:?} {spans:?}").contains("hunter2"));
    // A probe has none.
    let [logged, failed] = &spans[..] else {
        panic!("{spans:?}");
    };
    assert_eq!(hex::encode(&logged.trace_id), TRACE);
    assert_eq!(hex::encode(&logged.parent_span_id), "00f067aa0ba902b7");
    assert_eq!((&*logged.name, logged.kind()), ("GET", SpanKind::Server));
    for (key, value) in [
        ("http.request.method", "GET"),
        ("url.path", "/logged"),
        ("http.response.status_code", "200"),
        ("faas.invocation_id", "t-1"),
        ("server.address", "test"),
    ] {
        assert_eq!(
            attribute(&logged.attributes, key).as_deref(),
            Some(value),
            "{key}"
        );
    }
    assert_eq!(
        logged.status.clone().unwrap_or_default().code(),
        StatusCode::Unset
    );

    assert_ne!(hex::encode(&failed.trace_id), TRACE);
    assert!(failed.parent_span_id.is_empty());
    assert_eq!(
        attribute(&failed.attributes, "http.response.status_code").unwrap(),
        "500"
    );
    assert_eq!(failed.status.clone().unwrap().code(), StatusCode::Error);
}

#[tokio::test]
async fn a_trace_that_its_caller_does_not_keep_is_not_exported() {
    let mut collector = Collector::start().await;
    let mut function = Function::start(&[(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        &(collector.url() + "/v1/traces"),
    )])
    .await;
    let caller = CALLER.replace("-01", "-00");
    ask(&function, "/logged", &[("traceparent", &caller)]).await;
    assert!(function.line("logged").await["trace_id"].is_null());
    ask(&function, "/logged", &[]).await;
    function.signal("TERM");
    assert_eq!(function.end().await, 0);
    let (_, _, spans) = collector.delivery().await;
    assert_eq!(spans.len(), 1, "{spans:?}");
    assert!(spans[0].parent_span_id.is_empty());
}

#[tokio::test]
async fn a_collector_that_is_not_there_is_told_once_and_holds_nothing_up() {
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let mut function = Function::start(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &url),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "2"),
    ])
    .await;
    for _ in 0..5 {
        assert_eq!(ask(&function, "/logged", &[]).await.status, 200);
    }
    let warning = function.line(UNDELIVERED).await;
    assert_eq!(warning["level"], "WARN");
    assert_eq!(warning["collector"], url);
    assert!(
        warning["error"].as_str().unwrap().contains("refused"),
        "{warning}"
    );
    function.signal("TERM");
    while let Some(line) = function.raw_line().await {
        assert!(!line.contains("WARN"), "{line}");
    }
    assert_eq!(function.end().await, 0);
}

#[tokio::test]
async fn a_collector_that_never_answers_holds_neither_requests_nor_the_end_up() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let function = Function::start(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &url),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000"),
        ("OTEL_BSP_SCHEDULE_DELAY", "1"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "2"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1"),
    ])
    .await;
    for _ in 0..50 {
        assert_eq!(ask(&function, "/logged", &[]).await.status, 200);
    }
    let _connection = silent.accept().await.unwrap();
    // Not as long as a delivery may take.
    function.signal("TERM");
    assert_eq!(function.end().await, 0);
}

#[tokio::test]
async fn a_wrong_address_ends_the_start_with_78_and_says_what_would_be_right() {
    let mut function = Function::spawn(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318")]);
    let line: serde_json::Value = serde_json::from_str(&function.raw_line().await.unwrap()).unwrap();
    assert_eq!(line["setting"], "OTEL_EXPORTER_OTLP_ENDPOINT");
    assert!(
        line["message"]
            .as_str()
            .unwrap()
            .contains("should be like http://HOST:4318"),
        "{line}"
    );
    assert_eq!(function.end().await, 78);
}

#[tokio::test]
async fn only_for_a_collector_is_there_a_thread() {
    let without = Function::start(&[]).await;
    let with = Function::start(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")]).await;
    // A thread has its name a moment after it has begun.
    while with.threads("OpenTelemetry").is_empty() {
        ask(&with, "/logged", &[]).await;
        ask(&without, "/logged", &[]).await;
    }
    assert!(without.threads("OpenTelemetry").is_empty());
}

#[tokio::test]
async fn a_collector_that_refuses_for_a_while_is_told_of_when_it_is_over_and_a_rotated_token_is_used() {
    let mut collector = Collector::refusing(1).await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("otel-headers");
    std::fs::write(&token, "api-key=first").unwrap();
    let mut function = Function::start(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url()),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
        ("secret_mount_path", folder.path().to_str().unwrap()),
    ])
    .await;
    ask(&function, "/logged", &[]).await;
    let warning = function.line(UNDELIVERED).await;
    assert_eq!(warning["error"], "it answers 503 Service Unavailable");
    // The SDK tries again by itself.
    function.line("traces are delivered again").await;
    let (headers, ..) = collector.delivery().await;
    assert_eq!(headers["api-key"], "first");

    std::fs::write(folder.path().join("next"), "api-key=second").unwrap();
    std::fs::rename(folder.path().join("next"), &token).unwrap();
    ask(
        &function,
        "/logged",
        &[("user-agent", &"x".repeat(5000)), ("traceparent", CALLER)],
    )
    .await;
    let (headers, _, spans) = collector.delivery().await;
    assert_eq!(headers["api-key"], "second");
    assert_eq!(
        attribute(&spans[0].attributes, "user_agent.original")
            .unwrap()
            .len(),
        512
    );
}

#[tokio::test]
async fn a_collector_behind_tls_is_trusted_by_the_certificate_that_is_named() {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let mut collector = Collector::behind_tls(&key).await;
    let folder = tempfile::tempdir().unwrap();
    let certificate = folder.path().join("collector.pem");
    std::fs::write(&certificate, key.cert.pem()).unwrap();
    let url = format!("https://localhost:{}", collector.address.port());
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
    ];
    let mut stranger = Function::start(&settings).await;
    ask(&stranger, "/logged", &[]).await;
    let warning = stranger.line(UNDELIVERED).await;
    assert!(
        warning["error"].as_str().unwrap().contains("UnknownIssuer"),
        "{warning}"
    );

    let named = ("OTEL_EXPORTER_OTLP_CERTIFICATE", certificate.to_str().unwrap());
    let function = Function::start(&[settings[0], settings[1], named]).await;
    ask(&function, "/logged", &[]).await;
    let (_, _, spans) = collector.delivery().await;
    assert_eq!(spans[0].name, "GET");
}
