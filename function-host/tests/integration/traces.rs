//! Tests of the trace spans of requests, as a collector receives them.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

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

use crate::function::{FunctionProcess, FunctionResponse, TEST_TIMEOUT, send_request_or_error_after_connect};

/// The id of the trace that the caller names in its requests.
const CALLER_TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
/// The header with which the caller names its trace and its span.
const CALLER_TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// The log message about a collector that does not accept spans.
const EXPORT_FAILED_MESSAGE: &str =
    "could not export traces; they are dropped until the collector accepts them, requests are not affected";

/// A fake trace collector that passes the exports that it receives to the test.
struct FakeCollector {
    address: SocketAddr,
    exports: mpsc::UnboundedReceiver<(HeaderMap, ExportTraceServiceRequest)>,
}

impl FakeCollector {
    /// Starts a fake trace collector without TLS, which accepts every export.
    async fn start_plain() -> Self {
        Self::start_with_rejections_and_optional_tls(0, None).await
    }

    /// Starts a fake trace collector that rejects the first `times` exports with 503.
    async fn start_rejecting_first_exports(times: usize) -> Self {
        Self::start_with_rejections_and_optional_tls(times, None).await
    }

    /// Starts a fake trace collector with TLS and this key, which accepts every export.
    async fn start_with_tls(key: &CertifiedKey<KeyPair>) -> Self {
        let secret = PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![key.cert.der().clone()], secret.into())
            .unwrap();
        Self::start_with_rejections_and_optional_tls(0, Some(Arc::new(config).into())).await
    }

    /// Starts a fake trace collector that rejects the first `rejections` exports with 503, with TLS if `tls` is given.
    async fn start_with_rejections_and_optional_tls(rejections: usize, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, exports) = mpsc::unbounded_channel();
        let rejections = Arc::new(AtomicUsize::new(rejections));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (sender, rejections) = (sender.clone(), rejections.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (sender, rejections) = (sender.clone(), rejections.clone());
                    async move {
                        assert_eq!(request.uri().path(), "/v1/traces");
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        let mut response = Response::new(Full::<Bytes>::default());
                        if rejections
                            .try_update(Relaxed, Relaxed, |left| left.checked_sub(1))
                            .is_ok()
                        {
                            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
                            return Ok(response);
                        }
                        let spans = ExportTraceServiceRequest::decode(body).unwrap();
                        // Fails if the test is over.
                        let _ = sender.send((head.headers, spans));
                        Ok::<_, Infallible>(response)
                    }
                });
                match &tls {
                    None => {
                        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
                    }
                    // A client that does not trust the certificate disconnects.
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
        Self { address, exports }
    }

    fn plain_http_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits for the next export of spans; returns its headers, the attributes of its resource, and its spans.
    async fn wait_for_export(&mut self) -> (HeaderMap, Vec<KeyValue>, Vec<Span>) {
        let export = tokio::time::timeout(TEST_TIMEOUT, self.exports.recv());
        let (headers, mut request) = export.await.unwrap().unwrap();
        let resource = request.resource_spans.remove(0);
        let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        (headers, resource.resource.unwrap().attributes, spans.collect())
    }
}

/// Returns the attribute with this key as text.
fn text_or_integer_attribute_as_text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    Some(match found.value.clone()?.value? {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    })
}

async fn get_with_headers(
    function: &FunctionProcess,
    path: &str,
    headers: &[(&str, &str)],
) -> FunctionResponse {
    let mut builder = Request::get(path).header("host", "test");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    send_request_or_error_after_connect(function.address, builder.body("".into()).unwrap())
        .await
        .unwrap()
}

#[tokio::test]
async fn a_request_is_a_span_in_its_callers_trace_and_its_log_lines_have_the_trace_id() {
    let mut collector = FakeCollector::start_plain().await;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(
        directory.path().join("otel-headers"),
        "authorization=Bearer%20hunter2\n",
    )
    .unwrap();
    let mut function = FunctionProcess::start_and_wait(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.plain_http_url()),
        ("OTEL_BSP_SCHEDULE_DELAY", "3600000"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-team=functions"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
        ("secret_mount_path", directory.path().to_str().unwrap()),
    ])
    .await;
    get_with_headers(
        &function,
        "/logged?token=hunter2",
        &[("traceparent", CALLER_TRACEPARENT), ("x-call-id", "t-1")],
    )
    .await;
    assert_eq!(
        function.next_log_line_with_message("logged").await["trace_id"],
        CALLER_TRACE_ID
    );
    get_with_headers(&function, "/fail", &[("traceparent", "00-not-a-parent")]).await;
    get_with_headers(&function, "/healthz", &[]).await;
    // The schedule delay is an hour, so only the shutdown exports the spans.
    function.send_signal("TERM");
    assert_eq!(function.wait_for_exit_code().await, 0);

    let (headers, resource, spans) = collector.wait_for_export().await;
    assert_eq!(
        (&headers["authorization"], &headers["x-team"]),
        (&"Bearer hunter2".parse().unwrap(), &"functions".parse().unwrap())
    );
    assert_eq!(
        text_or_integer_attribute_as_text(&resource, "service.name").unwrap(),
        "tested"
    );
    assert_eq!(
        text_or_integer_attribute_as_text(&resource, "deployment.environment.name").unwrap(),
        "test"
    );
    assert!(!format!("{resource:?} {spans:?}").contains("hunter2"));
    // Probes have no spans.
    let [logged, failed] = &spans[..] else {
        panic!("{spans:?}");
    };
    assert_eq!(hex::encode(&logged.trace_id), CALLER_TRACE_ID);
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
            text_or_integer_attribute_as_text(&logged.attributes, key).as_deref(),
            Some(value),
            "{key}"
        );
    }
    assert_eq!(
        logged.status.clone().unwrap_or_default().code(),
        StatusCode::Unset
    );

    assert_ne!(hex::encode(&failed.trace_id), CALLER_TRACE_ID);
    assert!(failed.parent_span_id.is_empty());
    assert_eq!(
        text_or_integer_attribute_as_text(&failed.attributes, "http.response.status_code").unwrap(),
        "500"
    );
    assert_eq!(failed.status.clone().unwrap().code(), StatusCode::Error);
}

#[tokio::test]
async fn a_trace_that_its_caller_does_not_sample_is_not_exported() {
    let mut collector = FakeCollector::start_plain().await;
    let mut function = FunctionProcess::start_and_wait(&[(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        &(collector.plain_http_url() + "/v1/traces"),
    )])
    .await;
    let caller = CALLER_TRACEPARENT.replace("-01", "-00");
    get_with_headers(&function, "/logged", &[("traceparent", &caller)]).await;
    assert!(function.next_log_line_with_message("logged").await["trace_id"].is_null());
    get_with_headers(&function, "/logged", &[]).await;
    function.send_signal("TERM");
    assert_eq!(function.wait_for_exit_code().await, 0);
    let (_, _, spans) = collector.wait_for_export().await;
    assert_eq!(spans.len(), 1, "{spans:?}");
    assert!(spans[0].parent_span_id.is_empty());
}

#[tokio::test]
async fn with_a_collector_that_is_down_one_warning_is_logged_and_requests_and_exit_succeed() {
    let unused = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", unused.local_addr().unwrap());
    drop(unused);
    let mut function = FunctionProcess::start_and_wait(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &url),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "2"),
    ])
    .await;
    for _ in 0..5 {
        assert_eq!(get_with_headers(&function, "/logged", &[]).await.status, 200);
    }
    let warning = function.next_log_line_with_message(EXPORT_FAILED_MESSAGE).await;
    assert_eq!(warning["level"], "WARN");
    assert_eq!(warning["collector"], url);
    assert!(
        warning["error"].as_str().unwrap().contains("refused"),
        "{warning}"
    );
    function.send_signal("TERM");
    while let Some(line) = function.next_raw_log_line().await {
        assert!(!line.contains("WARN"), "{line}");
    }
    assert_eq!(function.wait_for_exit_code().await, 0);
}

#[tokio::test]
async fn a_collector_that_never_answers_delays_neither_requests_nor_the_exit() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let function = FunctionProcess::start_and_wait(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &url),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000"),
        ("OTEL_BSP_SCHEDULE_DELAY", "1"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "2"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1"),
    ])
    .await;
    for _ in 0..50 {
        assert_eq!(get_with_headers(&function, "/logged", &[]).await.status, 200);
    }
    let accepted = tokio::time::timeout(TEST_TIMEOUT, silent.accept()).await;
    let _connection = accepted.expect("nothing is exported").unwrap();
    // The timeout of an export is an hour, and the process exits earlier.
    function.send_signal("TERM");
    assert_eq!(function.wait_for_exit_code().await, 0);
}

#[tokio::test]
async fn a_wrong_endpoint_exits_with_78_and_the_log_says_what_would_be_right() {
    let mut function =
        FunctionProcess::spawn_without_known_addresses(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318")]);
    let line: serde_json::Value = serde_json::from_str(&function.next_raw_log_line().await.unwrap()).unwrap();
    assert_eq!(line["setting"], "OTEL_EXPORTER_OTLP_ENDPOINT");
    assert!(
        line["problem"]
            .as_str()
            .unwrap()
            .contains("should be like http://HOST:4318"),
        "{line}"
    );
    assert_eq!(function.wait_for_exit_code().await, 78);
}

#[tokio::test]
async fn without_a_collector_there_is_no_exporter_thread() {
    let without = FunctionProcess::start_and_wait(&[]).await;
    let with =
        FunctionProcess::start_and_wait(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")]).await;
    // A thread sets its name shortly after its start.
    let named = async {
        while with.thread_names("OpenTelemetry").is_empty() {
            get_with_headers(&with, "/logged", &[]).await;
            get_with_headers(&without, "/logged", &[]).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, named)
        .await
        .expect("there is no exporter thread with a collector");
    assert!(without.thread_names("OpenTelemetry").is_empty());
}

#[tokio::test]
async fn the_recovery_of_a_collector_is_logged_and_a_rotated_token_is_used() {
    let mut collector = FakeCollector::start_rejecting_first_exports(1).await;
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("otel-headers");
    std::fs::write(&token, "api-key=first").unwrap();
    let mut function = FunctionProcess::start_and_wait(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.plain_http_url()),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
        ("secret_mount_path", directory.path().to_str().unwrap()),
    ])
    .await;
    get_with_headers(&function, "/logged", &[]).await;
    let warning = function.next_log_line_with_message(EXPORT_FAILED_MESSAGE).await;
    assert_eq!(warning["error"], "the collector answered 503 Service Unavailable");
    // The SDK retries the export.
    function
        .next_log_line_with_message("exporting traces again")
        .await;
    let (headers, ..) = collector.wait_for_export().await;
    assert_eq!(headers["api-key"], "first");

    std::fs::write(directory.path().join("next"), "api-key=second").unwrap();
    std::fs::rename(directory.path().join("next"), &token).unwrap();
    get_with_headers(
        &function,
        "/logged",
        &[
            ("user-agent", &"x".repeat(5000)),
            ("traceparent", CALLER_TRACEPARENT),
        ],
    )
    .await;
    let (headers, _, spans) = collector.wait_for_export().await;
    assert_eq!(headers["api-key"], "second");
    assert_eq!(
        text_or_integer_attribute_as_text(&spans[0].attributes, "user_agent.original")
            .unwrap()
            .len(),
        512
    );
}

#[tokio::test]
async fn a_collector_with_tls_is_trusted_by_the_configured_certificate() {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let mut collector = FakeCollector::start_with_tls(&key).await;
    let directory = tempfile::tempdir().unwrap();
    let certificate = directory.path().join("collector.pem");
    std::fs::write(&certificate, key.cert.pem()).unwrap();
    let url = format!("https://localhost:{}", collector.address.port());
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
    ];
    let mut untrusting = FunctionProcess::start_and_wait(&settings).await;
    get_with_headers(&untrusting, "/logged", &[]).await;
    let warning = untrusting.next_log_line_with_message(EXPORT_FAILED_MESSAGE).await;
    assert!(
        warning["error"].as_str().unwrap().contains("UnknownIssuer"),
        "{warning}"
    );

    let named = ("OTEL_EXPORTER_OTLP_CERTIFICATE", certificate.to_str().unwrap());
    let function = FunctionProcess::start_and_wait(&[settings[0], settings[1], named]).await;
    get_with_headers(&function, "/logged", &[]).await;
    let (_, _, spans) = collector.wait_for_export().await;
    assert_eq!(spans[0].name, "GET");
}
