//! Tests of the gateway client, against servers in the test's process.

use std::collections::HashMap;

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::env::SettingsParser;

const TEST_TIMEOUT: Duration = Duration::from_secs(60);

fn secrets_with_files(files: &[(&str, &str)]) -> (tempfile::TempDir, Secrets) {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(directory.path().join(name), content).unwrap();
    }
    let secrets = Secrets::new(directory.path());
    (directory, secrets)
}

/// Starts a fake gateway that answers one request with `response`; returns its URL, and a task that ends with the head
/// of that request.
async fn gateway_answering_once(response: &'static str) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let seen = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
            assert!(
                stream.read_buf(&mut seen).await.unwrap() > 0,
                "the request ended early"
            );
        }
        stream.write_all(response.as_bytes()).await.unwrap();
        String::from_utf8(seen).unwrap()
    });
    (url, seen)
}

fn get_request(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).body(Full::default()).unwrap()
}

const OK_RESPONSE_TEXT: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]";

#[tokio::test]
async fn the_system_api_gets_the_credentials() {
    let (_directory, secrets) = secrets_with_files(&[
        ("basic-auth-user", "admin\n"),
        ("basic-auth-password", "pass:word"),
    ]);
    let (url, seen) = gateway_answering_once(OK_RESPONSE_TEXT).await;
    let gateway = Gateway::new(&url, secrets).unwrap();

    let response = gateway
        .send(get_request("/system/functions?namespace=x"), TEST_TIMEOUT)
        .await
        .unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.body(), "[]");
    let seen = seen.await.unwrap();
    assert!(
        seen.starts_with("GET /system/functions?namespace=x HTTP/1.1\r\n"),
        "{seen}"
    );
    assert!(
        seen.contains("authorization: Basic YWRtaW46cGFzczp3b3Jk\r\n"),
        "{seen}"
    );
}

#[tokio::test]
async fn functions_never_get_the_credentials() {
    let (_directory, secrets) =
        secrets_with_files(&[("basic-auth-user", "admin"), ("basic-auth-password", "secret")]);
    let (url, seen) = gateway_answering_once(OK_RESPONSE_TEXT).await;
    let gateway = Gateway::new(&url, secrets).unwrap();
    let function = gateway.function_url("env", Some("dev"));
    assert_eq!(function, format!("{url}function/env.dev"));

    gateway.send(get_request(&function), TEST_TIMEOUT).await.unwrap();

    assert!(!seen.await.unwrap().contains("authorization"));
}

#[tokio::test]
async fn other_hosts_never_get_the_credentials() {
    let (_directory, secrets) =
        secrets_with_files(&[("basic-auth-user", "admin"), ("basic-auth-password", "secret")]);
    let (url, seen) = gateway_answering_once(OK_RESPONSE_TEXT).await;
    let gateway = Gateway::new("http://gateway.example:8080", secrets).unwrap();

    gateway
        .send(get_request(&format!("{url}system/functions")), TEST_TIMEOUT)
        .await
        .unwrap();

    assert!(!seen.await.unwrap().contains("authorization"));
}

#[tokio::test]
async fn an_authorization_header_of_the_request_is_kept() {
    let (_directory, secrets) =
        secrets_with_files(&[("basic-auth-user", "admin"), ("basic-auth-password", "secret")]);
    let (url, seen) = gateway_answering_once(OK_RESPONSE_TEXT).await;
    let gateway = Gateway::new(&url, secrets).unwrap();
    let mut request = get_request("/system/info");
    request
        .headers_mut()
        .insert(AUTHORIZATION, HeaderValue::from_static("Bearer token"));

    gateway.send(request, TEST_TIMEOUT).await.unwrap();

    assert!(seen.await.unwrap().contains("authorization: Bearer token\r\n"));
}

#[tokio::test]
async fn a_user_without_a_password_is_an_error() {
    let (_directory, secrets) = secrets_with_files(&[("basic-auth-user", "admin")]);
    let gateway = Gateway::new("http://127.0.0.1:9", secrets).unwrap();
    let error = gateway
        .send(get_request("/system/info"), TEST_TIMEOUT)
        .await
        .unwrap_err();
    assert!(
        matches!(error, GatewayError::Credentials(SecretError::Missing { .. })),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_redirect_of_the_gateway_is_returned_and_not_followed() {
    let (_directory, secrets) = secrets_with_files(&[]);
    let (url, _seen) = gateway_answering_once(
        "HTTP/1.1 302 Found\r\nlocation: http://elsewhere/\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    let response = Gateway::new(&url, secrets)
        .unwrap()
        .send(get_request("/"), TEST_TIMEOUT)
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::FOUND);
}

#[tokio::test]
async fn a_response_over_the_limit_is_rejected() {
    let (_directory, secrets) = secrets_with_files(&[]);
    let (url, _seen) =
        gateway_answering_once("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n0123456789").await;
    let gateway = Gateway::new(&url, secrets).unwrap().with_body_limit(8);
    let error = gateway
        .send(get_request("/large"), TEST_TIMEOUT)
        .await
        .unwrap_err();
    assert!(
        matches!(error, GatewayError::TooLarge { limit: 8, .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_truncated_response_is_reported_as_a_lost_connection() {
    let (_directory, secrets) = secrets_with_files(&[]);
    let (url, _seen) =
        gateway_answering_once("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n0123456789").await;
    let error = Gateway::new(&url, secrets)
        .unwrap()
        .send(get_request("/"), TEST_TIMEOUT)
        .await
        .unwrap_err();
    assert!(matches!(error, GatewayError::Lost { .. }), "{error:?}");
}

#[tokio::test]
async fn a_refused_connection_is_a_connect_error_that_names_the_request() {
    let (_directory, secrets) = secrets_with_files(&[]);
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let gateway = Gateway::new(&format!("http://{free}"), secrets).unwrap();
    let error = gateway
        .send(get_request("/system/info"), TEST_TIMEOUT)
        .await
        .unwrap_err();
    assert!(matches!(error, GatewayError::Connect { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "could not reach the gateway for GET /system/info"
    );
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_does_not_answer_ends_the_request_at_its_timeout() {
    let (_directory, secrets) = secrets_with_files(&[]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Gateway::new(&format!("http://{}", listener.local_addr().unwrap()), secrets).unwrap();
    // The kernel accepts the connection, and nothing reads from it. The clock is paused: no time passes.
    let error = gateway
        .send(get_request("/slow"), Duration::from_secs(3))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the gateway did not answer GET /slow within 3s"
    );
}

#[test]
fn an_invalid_gateway_url_is_rejected_and_not_part_of_the_error() {
    let (_directory, secrets) = secrets_with_files(&[]);
    for url in [
        "",
        "gateway",
        "gateway:8080",
        "ftp://gateway",
        "http://",
        "http://user:hunter2@gateway",
        "http://g/?x",
    ] {
        let error = Gateway::new(url, secrets.clone()).unwrap_err();
        assert!(matches!(error, GatewayError::Url), "{url}");
        assert!(!error.to_string().contains("hunter2"));
    }
}

#[test]
fn the_gateway_url_has_a_default_and_a_wrong_one_is_a_problem() {
    let (_directory, secrets) = secrets_with_files(&[]);
    let nothing = HashMap::<String, String>::new();
    let mut parser = SettingsParser::new(&nothing);
    assert_eq!(
        gateway_from_setting_or_default(&mut parser, &secrets)
            .unwrap()
            .url(),
        DEFAULT_GATEWAY_URL
    );
    assert!(parser.fail_if_problems().is_ok());

    let variables = [("gateway_url", "gateway:8080")];
    let mut parser = SettingsParser::new(&variables);
    gateway_from_setting_or_default(&mut parser, &secrets).unwrap();
    let problems = parser.fail_if_problems().unwrap_err();
    assert!(
        problems
            .to_string()
            .starts_with("gateway_url should be http://HOST[:PORT]"),
        "{problems}"
    );
}

#[test]
fn paths_are_appended_to_the_gateway_url() {
    let (_directory, secrets) = secrets_with_files(&[]);
    let gateway = Gateway::new("http://gateway:8080/base/", secrets).unwrap();
    assert_eq!(
        gateway.uri_of_path("/system/info").unwrap(),
        "http://gateway:8080/base/system/info"
    );
    assert_eq!(
        gateway.function_url("env", None),
        "http://gateway:8080/base/function/env"
    );
    assert_eq!(
        gateway.function_url("env", Some("")),
        "http://gateway:8080/base/function/env"
    );
    for path in ["system", "", "/a b"] {
        assert!(
            matches!(gateway.uri_of_path(path), Err(GatewayError::Path { .. })),
            "{path:?}"
        );
    }
}

#[cfg(feature = "tls")]
mod tls {
    use std::sync::Arc;

    use rustls::ServerConfig;
    use rustls::crypto::ring;
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// Starts a fake gateway with a self-signed certificate for `localhost`, which answers the first request of each
    /// connection; returns its URL and the certificate in PEM.
    async fn start_https_gateway() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let mut seen = [0; 1024];
                    assert!(stream.read(&mut seen).await.unwrap() > 0);
                    stream.write_all(OK_RESPONSE_TEXT.as_bytes()).await.unwrap();
                }
            }
        });
        (url, made.cert.pem())
    }

    #[tokio::test]
    async fn a_private_certificate_authority_is_trusted_only_with_its_secret() {
        let (url, certificate) = start_https_gateway().await;

        let (_directory, with) = secrets_with_files(&[(CA_SECRET_NAME, &certificate)]);
        let response = Gateway::new(&url, with)
            .unwrap()
            .send(get_request("/"), TEST_TIMEOUT)
            .await
            .unwrap();
        assert_eq!(response.body(), "[]");

        let (_directory, without) = secrets_with_files(&[]);
        let error = Gateway::new(&url, without)
            .unwrap()
            .send(get_request("/"), TEST_TIMEOUT)
            .await
            .unwrap_err();
        assert!(matches!(error, GatewayError::Connect { .. }), "{error:?}");
    }

    #[test]
    fn a_gateway_ca_secret_that_is_not_a_certificate_is_rejected() {
        let text = "-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n";
        let (_directory, secrets) = secrets_with_files(&[(CA_SECRET_NAME, text)]);
        let error = Gateway::new("https://gateway", secrets).unwrap_err();
        assert!(matches!(error, GatewayError::Authority(_)), "{error:?}");
    }
}

#[cfg(not(feature = "tls"))]
#[test]
fn https_is_rejected_if_the_function_is_built_without_it() {
    let (_directory, secrets) = secrets_with_files(&[]);
    let error = Gateway::new("https://gateway", secrets).unwrap_err();
    assert!(error.to_string().ends_with("built without https"), "{error}");
}
