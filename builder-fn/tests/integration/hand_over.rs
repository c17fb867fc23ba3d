//! Hand-overs to the deployer, through a fake gateway on loopback.

use std::net::SocketAddr;

use builder_fn::hand_over::DeployVia;
use bytes::Bytes;
use function_host::http;
use function_host::signature::Verifier;
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::daemon::{self, Calls};
use crate::setting::{Answer, CALL_ID, Setting, key, post, tar};

type Received = http::Request<Bytes>;

/// Starts a gateway that gives every request the same answer. Returns its address and the requests that it receives.
pub(crate) async fn gateway(
    status: u16,
    answer: &'static str,
) -> (SocketAddr, mpsc::UnboundedReceiver<Received>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let (sender, received) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let sender = sender.clone();
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let sender = sender.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    let _ = sender.send(http::Request::from_parts(head, body));
                    let mut response = http::Response::new(Full::new(Bytes::from_static(answer.as_bytes())));
                    *response.status_mut() = status.try_into().expect("status");
                    Ok::<_, hyper::Error>(response)
                }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (address, received)
}

fn build(setting: &Setting) -> JoinHandle<Answer> {
    let setting = setting.clone();
    let deploy = json!({"service": "hello", "envVars": {"A": "b"}});
    tokio::spawn(async move { setting.build(tar(json!({"deploy": deploy}))).await })
}

pub(crate) async fn succeed(calls: &mut Calls) {
    let (solve, status, _session) = calls.build().await;
    drop(status);
    solve.succeed("sha256:12");
}

#[tokio::test]
async fn a_hand_over_names_the_image_by_digest_and_is_signed() {
    let (address, mut received) = gateway(200, r#"{"function":"hello","status":"ready"}"#).await;
    let (daemon, mut calls) = daemon::start();
    let setting = Setting::with_gateway(daemon, &format!("http://{address}"));
    setting.secret("deploy-secret", "deploy key\n");

    let answer = build(&setting);
    succeed(&mut calls).await;

    let answer = answer.await.expect("no panic");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(
        answer.body["deployment"],
        json!({"function": "hello", "status": "ready"})
    );
    assert_eq!(answer.body["status"], "success");
    let request = received.recv().await.expect("a hand-over");
    assert_eq!(
        (request.method().as_str(), request.uri().path()),
        ("POST", "/function/deployer-fn")
    );
    assert_eq!(request.headers()["x-call-id"], CALL_ID);
    let signature = request.headers()["x-deploy-signature"].to_str().expect("text");
    let mut verifier = Verifier::new(&key("deploy key"), signature).expect("a signature");
    verifier.update(request.body());
    verifier.finish().expect("the right one");
    let mut body: Value = serde_json::from_slice(request.body()).expect("JSON");
    assert!(
        body["builtAt"]
            .take()
            .as_str()
            .is_some_and(|time| time.ends_with('Z'))
    );
    assert_eq!(
        body,
        json!({
            "image": "registry:5000/hello@sha256:12",
            "tag": "registry:5000/hello:1",
            "callId": CALL_ID,
            "builtAt": null,
            "deploy": {"service": "hello", "envVars": {"A": "b"}}
        })
    );
}

#[tokio::test]
async fn a_failed_deployment_decides_the_status_and_the_answer_has_the_digest() {
    for (deployer, status) in [(422, 422), (400, 422), (401, 502), (502, 502), (404, 502)] {
        let (address, _received) =
            gateway(deployer, r#"{"status":"refused","reasons":["it crashed"]}"#).await;
        let (daemon, mut calls) = daemon::start();
        let setting = Setting::with_gateway(daemon, &format!("http://{address}"));
        setting.secret("deploy-secret", "deploy key");

        let answer = build(&setting);
        succeed(&mut calls).await;

        let answer = answer.await.expect("no panic");
        assert_eq!(answer.status, status, "the deployer answered {deployer}");
        assert_eq!(answer.body["digest"], "sha256:12", "the image exists");
        assert_eq!(
            answer.body["error"],
            "the image was built and pushed, but not deployed: it crashed"
        );
    }
}

#[tokio::test]
async fn a_gateway_that_is_down_is_502_and_the_answer_has_the_digest() {
    let (daemon, mut calls) = daemon::start();
    let setting = Setting::new(daemon);
    setting.secret("deploy-secret", "deploy key");

    let answer = build(&setting);
    succeed(&mut calls).await;

    let answer = answer.await.expect("no panic");
    assert_eq!(answer.status, 502);
    assert_eq!(answer.body["digest"], "sha256:12");
    assert_eq!(answer.body["deployment"]["status"], "failed");
    let error = answer.body["error"].as_str().expect("text");
    assert!(
        error.contains("could not reach the gateway for POST /function/deployer-fn"),
        "{error}"
    );
}

#[tokio::test]
async fn a_hand_over_through_the_queue_is_not_waited_for() {
    for (gateway_status, status, deployment) in [(202, 200, "queued"), (500, 502, "failed")] {
        let (address, mut received) = gateway(gateway_status, "").await;
        let (daemon, mut calls) = daemon::start();
        let setting =
            Setting::with_gateway(daemon, &format!("http://{address}")).via(DeployVia::AsyncFunction);
        setting.secret("deploy-secret", "deploy key");

        let answer = build(&setting);
        succeed(&mut calls).await;

        let answer = answer.await.expect("no panic");
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.body["deployment"]["status"], deployment, "{answer:?}");
        let request = received.recv().await.expect("a hand-over");
        assert_eq!(request.uri().path(), "/async-function/deployer-fn");
        assert!(!request.headers().contains_key("x-callback-url"));
        assert!(request.headers().contains_key("x-deploy-signature"));
    }
}

#[tokio::test]
async fn with_deploy_via_callback_the_answer_contains_the_hand_over_and_is_signed() {
    let (address, mut received) = gateway(200, "{}").await;
    let (daemon, mut calls) = daemon::start();
    let setting = Setting::with_gateway(daemon, &format!("http://{address}")).via(DeployVia::Callback);
    setting.secret("deploy-secret", "deploy key");

    let config = json!({"deploy": {"service": "hello"}, "probe": {"path": "/works"}});
    let answer = tokio::spawn({
        let setting = setting.clone();
        async move { setting.answer(tar(config)).await }
    });
    succeed(&mut calls).await;

    let (head, body) = answer.await.expect("no panic").into_parts();
    let body = body.collect().await.expect("body").to_bytes();
    assert_eq!(head.status, 200);
    let signature = head.headers["x-deploy-signature"].to_str().expect("text");
    let mut verifier = Verifier::new(&key("deploy key"), signature).expect("a signature");
    verifier.update(&body);
    verifier.finish().expect("the right one");
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(body["status"], "success");
    assert_eq!(body["deployment"]["status"], "handed_over");
    let hand_over = &body["deployment"]["handOver"];
    assert_eq!(hand_over["image"], "registry:5000/hello@sha256:12");
    assert_eq!(hand_over["deploy"], json!({"service": "hello"}));
    assert_eq!(hand_over["probe"], json!({"path": "/works"}));
    assert!(
        received.try_recv().is_err(),
        "the builder does not call the deployer"
    );
}

#[tokio::test]
async fn with_deploy_via_callback_a_streamed_deployment_is_rejected_before_the_build() {
    let (daemon, mut calls) = daemon::start();
    let setting = Setting::new(daemon).via(DeployVia::Callback);
    setting.secret("deploy-secret", "deploy key");
    let tar = tar(json!({"deploy": {"service": "hello"}}));
    let signature = function_host::signature::sign(&key("payload key"), &tar);
    let mut request = post(tar, Some(&signature));
    let accept = "application/x-ndjson".parse().expect("header");
    request.headers_mut().insert("accept", accept);

    let answer = Answer::read(setting.send(request).await).await;

    assert_eq!((answer.status, &answer.body["status"]), (200, &json!("failed")));
    let error = answer.body["error"].as_str().expect("text");
    assert!(error.contains("deploy_via=callback"), "{error}");
    assert!(calls.solves.try_recv().is_err());
}

#[tokio::test]
async fn a_build_that_fails_is_not_deployed() {
    let (address, mut received) = gateway(200, "{}").await;
    let (daemon, mut calls) = daemon::start();
    let setting = Setting::with_gateway(daemon, &format!("http://{address}"));
    setting.secret("deploy-secret", "deploy key");

    let answer = build(&setting);
    let (solve, status, _session) = calls.build().await;
    drop(status);
    solve.fail(tonic::Status::unknown("exit code: 1"));

    assert_eq!(answer.await.expect("no panic").status, 422);
    assert!(received.try_recv().is_err());
}

#[tokio::test]
async fn a_builder_without_the_deploy_secret_rejects_deployments_before_the_build() {
    let (daemon, mut calls) = daemon::start();

    let answer = build(&Setting::new(daemon)).await.expect("no panic");

    assert_eq!(answer.status, 400);
    assert!(
        answer.body["error"]
            .as_str()
            .expect("text")
            .contains("deploy-secret"),
        "{answer:?}"
    );
    assert!(calls.solves.try_recv().is_err());
}
