//! Registries on loopback, as they answer: docker-registry with passwords, and with a token server.

use std::convert::Infallible;
use std::fs;
use std::sync::{Arc, Mutex};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;

use super::*;

const DIGEST: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
const CONFIG: &str = "sha256:22";

/// What is answered: to whom, and what.
type Answers = fn(path: &str, authorization: &str, host: &str) -> (u16, Value, Option<String>);

struct Registry {
    host: String,
    folder: tempfile::TempDir,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Registry {
    async fn start(answers: Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (name, log) = (host.clone(), Arc::clone(&asked));
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
            folder: tempfile::tempdir().unwrap(),
            asked,
        }
    }

    fn login(&self) {
        let config = json!({"auths": {&self.host: {"username": "u", "password": "p"}}});
        fs::write(self.folder.path().join(CONFIG_SECRET), config.to_string()).unwrap();
    }

    async fn ask(&self) -> Answer {
        let secrets = Secrets::new(self.folder.path());
        let images = Images::new(secrets, true, "linux/amd64".to_owned());
        let image = format!("{}/team/hello:1@{DIGEST}", self.host);
        images.ask(&PinnedImage::parse(&image).unwrap()).await
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
async fn an_image_is_there_where_its_manifest_is_and_its_platform_is_right() {
    let right = Registry::start(|path, _, _| one_image(path, "amd64")).await;
    assert_eq!(right.ask().await, Answer::There);

    let wrong = Registry::start(|path, _, _| one_image(path, "arm64")).await;
    let Answer::Missing(reason) = wrong.ask().await else {
        panic!()
    };
    assert!(
        reason.ends_with("is for linux/arm64, and functions run on linux/amd64"),
        "{reason}"
    );

    let index = |architecture: &str| {
        json!({"manifests": [{"platform": {"os": "linux", "architecture": architecture}},
        {"platform": {"os": "unknown", "architecture": "unknown"}}]})
    };
    assert_eq!(
        platform(&index("amd64")["manifests"][0]["platform"]),
        "linux/amd64"
    );
    let many = Registry::start(|_, _, _| {
        let platforms = json!([{"platform": {"os": "linux", "architecture": "arm64"}},
            {"platform": {"os": "linux", "architecture": "amd64"}}]);
        (200, json!({"manifests": platforms}), None)
    })
    .await;
    assert_eq!(many.ask().await, Answer::There);
    assert_eq!(many.asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_registry_that_has_no_such_manifest_is_believed() {
    let registry = Registry::start(|_, _, _| (404, json!({"errors": []}), None)).await;
    let Answer::Missing(reason) = registry.ask().await else {
        panic!()
    };
    assert!(
        reason.contains("has no image") && reason.contains(DIGEST),
        "{reason}"
    );
}

#[tokio::test]
async fn a_password_is_given_where_it_is_asked_for() {
    let registry = Registry::start(|path, authorization, _| match authorization {
        "Basic dTpw" => one_image(path, "amd64"),
        _ => (401, json!({}), Some("Basic realm=\"slipway\"".to_owned())),
    })
    .await;
    let Answer::Unclear(reason) = registry.ask().await else {
        panic!()
    };
    assert!(reason.contains("there are none"), "{reason}");
    registry.login();
    assert_eq!(registry.ask().await, Answer::There);
}

#[tokio::test]
async fn a_token_is_fetched_where_it_is_asked_for() {
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
    registry.login();
    assert_eq!(registry.ask().await, Answer::There);
}

#[tokio::test]
async fn what_is_no_answer_speaks_against_nothing() {
    for status in [403, 429, 500, 302] {
        let answers: Answers = match status {
            403 => |_, _, _| (403, json!({}), None),
            429 => |_, _, _| (429, json!({}), None),
            500 => |_, _, _| (500, json!({}), None),
            _ => |_, _, _| (302, json!({}), None),
        };
        let registry = Registry::start(answers).await;
        assert!(matches!(registry.ask().await, Answer::Unclear(_)), "{status}");
    }
    let html = Registry::start(|_, _, _| (200, json!("<html>"), None)).await;
    assert!(matches!(html.ask().await, Answer::Unclear(_)));

    let nobody = Images::new(Secrets::new("/nowhere"), true, "linux/amd64".to_owned());
    let image = PinnedImage::parse(&format!("127.0.0.1:9/hello@{DIGEST}")).unwrap();
    assert_eq!(nobody.objection(&image, Duration::from_secs(5)).await, None);
}
