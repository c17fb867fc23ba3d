//! Lookups in registries on loopback that answer as docker-registry does, with passwords or with a token server.

use std::convert::Infallible;
use std::fs;
use std::sync::{Arc, Mutex};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;

use super::credentials::CONFIG_SECRET;
use super::*;

const DIGEST: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
const CONFIG: &str = "sha256:22";

/// Returns status, body and challenge of the response to a request.
type Answers = fn(path: &str, authorization: &str, host: &str) -> (u16, Value, Option<String>);

struct Registry {
    host: String,
    secrets: tempfile::TempDir,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Registry {
    async fn start(answers: Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let (name, log) = (host.clone(), Arc::clone(&requests));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (name, log) = (name.clone(), Arc::clone(&log));
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let path = request.uri().to_string();
                    let authorization = request.headers().get(AUTHORIZATION);
                    let authorization = authorization.map_or("", |value| value.to_str().unwrap());
                    let (status, body, challenge) = answers(&path, authorization, &name);
                    log.lock().unwrap().push(path);
                    let mut response = Response::new(Full::<Bytes>::from(body.to_string()));
                    *response.status_mut() = StatusCode::from_u16(status).unwrap();
                    if let Some(challenge) = challenge {
                        let challenge = challenge.parse().unwrap();
                        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
                    }
                    async move { Ok::<_, Infallible>(response) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self {
            host,
            secrets: tempfile::tempdir().unwrap(),
            requests,
        }
    }

    fn store_credentials(&self) {
        let config = json!({"auths": {&self.host: {"username": "u", "password": "p"}}});
        fs::write(self.secrets.path().join(CONFIG_SECRET), config.to_string()).unwrap();
    }

    async fn look_up(&self) -> Presence {
        let secrets = Secrets::new(self.secrets.path());
        let lookup = ImageLookup::new(secrets, true, "linux/amd64".to_owned());
        let image = format!("{}/team/hello:1@{DIGEST}", self.host);
        lookup.look_up(&PinnedImage::parse(&image).unwrap()).await
    }
}

fn one_image(path: &str, architecture: &str) -> (u16, Value, Option<String>) {
    if path == format!("/v2/team/hello/manifests/{DIGEST}") {
        return (200, json!({"config": {"digest": CONFIG}}), None);
    }
    assert_eq!(path, format!("/v2/team/hello/blobs/{CONFIG}"));
    (200, json!({"os": "linux", "architecture": architecture}), None)
}

#[tokio::test]
async fn an_image_is_present_only_with_its_manifest_and_for_the_platform() {
    let right = Registry::start(|path, _, _| one_image(path, "amd64")).await;
    assert_eq!(right.look_up().await, Presence::Present);

    let wrong = Registry::start(|path, _, _| one_image(path, "arm64")).await;
    let Presence::Missing(reason) = wrong.look_up().await else {
        panic!()
    };
    assert!(
        reason.ends_with("is for linux/arm64, and functions run on linux/amd64"),
        "{reason}"
    );

    let many = Registry::start(|_, _, _| {
        let platforms = json!([{"platform": {"os": "linux", "architecture": "arm64"}},
            {"platform": {"os": "linux", "architecture": "amd64"}},
            {"platform": {"os": "unknown", "architecture": "unknown"}}]);
        (200, json!({"manifests": platforms}), None)
    })
    .await;
    assert_eq!(many.look_up().await, Presence::Present);
    assert_eq!(many.requests.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn an_image_without_a_manifest_is_missing() {
    let registry = Registry::start(|_, _, _| (404, json!({"errors": []}), None)).await;
    let Presence::Missing(reason) = registry.look_up().await else {
        panic!()
    };
    assert!(
        reason.contains("has no image") && reason.contains(DIGEST),
        "{reason}"
    );
}

#[tokio::test]
async fn a_password_is_sent_to_a_registry_that_asks_for_it() {
    let registry = Registry::start(|path, authorization, _| match authorization {
        "Basic dTpw" => one_image(path, "amd64"),
        _ => (401, json!({}), Some("Basic realm=\"slipway\"".to_owned())),
    })
    .await;
    let Presence::Unknown(reason) = registry.look_up().await else {
        panic!()
    };
    assert!(reason.contains("there are none"), "{reason}");
    registry.store_credentials();
    assert_eq!(registry.look_up().await, Presence::Present);
}

#[tokio::test]
async fn a_token_is_fetched_for_a_registry_that_asks_for_it() {
    let registry = Registry::start(|path, authorization, host| match authorization {
        "Bearer let-me-in" => one_image(path, "amd64"),
        "Basic dTpw" => {
            assert_eq!(path, "/token?scope=repository:team/hello:pull&service=a%20b");
            (200, json!({"token": "let-me-in"}), None)
        }
        _ => (
            401,
            json!({}),
            Some(format!("Bearer realm=\"http://{host}/token\",service=\"a b\"")),
        ),
    })
    .await;
    registry.store_credentials();
    assert_eq!(registry.look_up().await, Presence::Present);
}

#[tokio::test]
async fn a_failed_lookup_is_no_objection() {
    for status in [403, 429, 500, 302] {
        let answers: Answers = match status {
            403 => |_, _, _| (403, json!({}), None),
            429 => |_, _, _| (429, json!({}), None),
            500 => |_, _, _| (500, json!({}), None),
            _ => |_, _, _| (302, json!({}), None),
        };
        let registry = Registry::start(answers).await;
        assert!(
            matches!(registry.look_up().await, Presence::Unknown(_)),
            "{status}"
        );
    }
    let html = Registry::start(|_, _, _| (200, json!("<html>"), None)).await;
    assert!(matches!(html.look_up().await, Presence::Unknown(_)));

    let unreachable = ImageLookup::new(Secrets::new("/nowhere"), true, "linux/amd64".to_owned());
    let image = PinnedImage::parse(&format!("127.0.0.1:9/hello@{DIGEST}")).unwrap();
    assert_eq!(unreachable.objection(&image, Duration::from_secs(5)).await, None);
}
