//! Tests of image lookups in registries on loopback.

use std::convert::Infallible;
use std::fs;
use std::sync::Mutex;

use bytes::Bytes;
use function_host::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use function_host::http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;

use super::*;

const MANIFEST_DIGEST: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
const CONFIG_DIGEST: &str = "sha256:22";

/// A function that returns status and body of the fake registry's response to a request.
type AnswerFunction = fn(path: &str, authorization: &str) -> (u16, Value);

/// A fake registry on a loopback port, and the secrets for a lookup in it.
struct FakeRegistry {
    host: String,
    secrets: tempfile::TempDir,
    requests: Arc<Mutex<Vec<String>>>,
}

impl FakeRegistry {
    /// Starts a registry that answers with `answers`, each time with a challenge for basic authentication.
    async fn start(answers: AnswerFunction) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let log = Arc::clone(&log);
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let path = request.uri().to_string();
                    let authorization = request.headers().get(AUTHORIZATION);
                    let authorization = authorization.map_or("", |value| value.to_str().unwrap());
                    let (status, body) = answers(&path, authorization);
                    log.lock().unwrap().push(path);
                    let mut response = Response::new(Full::<Bytes>::from(body.to_string()));
                    *response.status_mut() = StatusCode::from_u16(status).unwrap();
                    let challenge = HeaderValue::from_static("Basic realm=\"slipway\"");
                    response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
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

    fn store_docker_config(&self, content: &str) {
        fs::write(self.secrets.path().join(PULL_CONFIG_SECRET), content).unwrap();
    }

    async fn look_up_image(&self) -> ImagePresenceForPlatform {
        let image = format!("{}/team/hello:1@{MANIFEST_DIGEST}", self.host);
        let lookup = image_check_with(Secrets::new(self.secrets.path()));
        lookup
            .image_presence_for_platform(&PinnedImage::parse_pinned(&image).unwrap())
            .await
    }
}

fn image_check_with(secrets: Secrets) -> RegistryImageCheck {
    RegistryImageCheck {
        secrets,
        config_secret: PULL_CONFIG_SECRET.to_owned(),
        logins: Arc::new(LoginsCache::new(PULL_CONFIG_SECRET)),
        insecure: true,
        token_realms: AdditionalTokenHosts::default(),
        platform: "linux/amd64".to_owned(),
    }
}

/// Returns the response of a registry that has the image, for `linux` and this architecture; panics for other paths.
fn answers_for_one_image(path: &str, architecture: &str) -> (u16, Value) {
    if path == format!("/v2/team/hello/manifests/{MANIFEST_DIGEST}") {
        return (200, json!({"config": {"digest": CONFIG_DIGEST}}));
    }
    assert_eq!(path, format!("/v2/team/hello/blobs/{CONFIG_DIGEST}"));
    (200, json!({"os": "linux", "architecture": architecture}))
}

#[tokio::test]
async fn an_image_is_present_if_its_config_or_one_listed_manifest_is_for_the_platform() {
    let right = FakeRegistry::start(|path, _| answers_for_one_image(path, "amd64")).await;
    assert_eq!(right.look_up_image().await, ImagePresenceForPlatform::Present);

    let wrong = FakeRegistry::start(|path, _| answers_for_one_image(path, "arm64")).await;
    let ImagePresenceForPlatform::Missing(reason) = wrong.look_up_image().await else {
        panic!()
    };
    assert!(
        reason.ends_with("is for linux/arm64, and functions run on linux/amd64"),
        "{reason}"
    );

    let many = FakeRegistry::start(|_, _| {
        let platforms = json!([{"platform": {"os": "linux", "architecture": "arm64"}},
            {"platform": {"os": "linux", "architecture": "amd64"}},
            {"platform": {"os": "unknown", "architecture": "unknown"}}]);
        (200, json!({"manifests": platforms}))
    })
    .await;
    assert_eq!(many.look_up_image().await, ImagePresenceForPlatform::Present);
    assert_eq!(many.requests.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn an_image_whose_platform_is_not_known_is_present() {
    let redirected = FakeRegistry::start(|path, _| match path.contains("/blobs/") {
        true => (307, json!({})),
        false => answers_for_one_image(path, ""),
    })
    .await;
    assert_eq!(
        redirected.look_up_image().await,
        ImagePresenceForPlatform::Present
    );
    let unnamed = FakeRegistry::start(|path, _| answers_for_one_image(path, "")).await;
    assert_eq!(unnamed.look_up_image().await, ImagePresenceForPlatform::Present);
}

#[tokio::test]
async fn a_platform_text_that_is_no_platform_name_is_not_repeated_to_the_caller() {
    let registry = FakeRegistry::start(|_, _| {
        let platform = json!({"os": "hunter2 hunter2", "architecture": "hunter2".repeat(9)});
        (200, json!({"manifests": [{"platform": platform}]}))
    })
    .await;
    let ImagePresenceForPlatform::Missing(reason) = registry.look_up_image().await else {
        panic!()
    };
    assert!(
        reason.contains("is for ?/?,") && !reason.contains("hunter2"),
        "{reason}"
    );
}

#[tokio::test]
async fn an_image_without_a_manifest_is_missing() {
    let registry = FakeRegistry::start(|_, _| (404, json!({"errors": []}))).await;
    let ImagePresenceForPlatform::Missing(reason) = registry.look_up_image().await else {
        panic!()
    };
    assert!(
        reason.contains("has no image") && reason.contains(MANIFEST_DIGEST),
        "{reason}"
    );
}

#[tokio::test]
async fn credentials_in_the_pull_secret_are_sent_and_unusable_ones_make_the_image_unknown() {
    let registry = FakeRegistry::start(|path, authorization| match authorization {
        "Basic dTpw" => answers_for_one_image(path, "amd64"),
        _ => (401, json!({})),
    })
    .await;
    let host = registry.host.clone();
    for (config, reason) in [
        (String::new(), "there are none for it"),
        (
            "hunter2".to_owned(),
            "the secret registry-pull-config cannot be used: invalid at line 1",
        ),
        (
            format!(r#"{{"auths": {{"{host}": {{"auth": "hunter2"}}}}}}"#),
            ".auth should be the base64 of a user name",
        ),
    ] {
        registry.store_docker_config(&config);
        let ImagePresenceForPlatform::Unknown(found) = registry.look_up_image().await else {
            panic!("{config}")
        };
        assert!(found.contains(reason) && !found.contains("hunter2"), "{found}");
    }
    registry.store_docker_config(&format!(
        r#"{{"auths": {{"{host}": {{"auth": "dT\npw"}}, "other": 1}}}}"#
    ));
    assert_eq!(registry.look_up_image().await, ImagePresenceForPlatform::Present);
}

#[tokio::test]
async fn a_failed_lookup_of_an_image_is_no_objection_to_its_deployment() {
    let answers: [AnswerFunction; 5] = [
        |_, _| (403, json!({})),
        |_, _| (429, json!({})),
        |_, _| (500, json!({})),
        |_, _| (302, json!({})),
        |_, _| (200, json!("<html>")),
    ];
    for answers in answers {
        let registry = FakeRegistry::start(answers).await;
        let presence = registry.look_up_image().await;
        assert!(
            matches!(presence, ImagePresenceForPlatform::Unknown(_)),
            "{presence:?}"
        );
    }
    let image = PinnedImage::parse_pinned(&format!("127.0.0.1:9/hello@{MANIFEST_DIGEST}")).unwrap();
    let unreachable = image_check_with(Secrets::new("/nowhere"));
    assert_eq!(
        unreachable
            .find_objection_if_lookup_succeeds(&image, Duration::from_secs(5))
            .await,
        None
    );
}
