//! One build as a group of three calls: how it ends, and that it ends together.

use std::sync::Arc;
use std::time::Duration;

use bollard_buildkit_proto::health::HealthCheckRequest;
use bollard_buildkit_proto::health::health_client::HealthClient;
use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex, VertexLog};
use bollard_buildkit_proto::moby::filesync::v1::CredentialsRequest;
use bollard_buildkit_proto::moby::filesync::v1::auth_client::AuthClient;
use builder_fn::buildkit::session::{CredentialStore, Services};
use builder_fn::buildkit::{Daemon, Event, Failure, Fault, Job, JobError, Limits, Solve, Solved};
use builder_fn::docker_config::Credentials;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::Status;

use crate::{daemon, shared_keys};

#[derive(Debug)]
pub(crate) struct OneRegistry;

#[tonic::async_trait]
impl CredentialStore for OneRegistry {
    async fn credentials(&self, host: &str) -> Credentials {
        match host {
            "registry:5000" => Credentials {
                username: "user".into(),
                secret: "password".into(),
            },
            _ => Credentials::default(),
        }
    }
}

pub(crate) struct Running {
    pub(crate) build: JoinHandle<Result<Solved, JobError>>,
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
}

pub(crate) fn build(daemon: Daemon) -> Running {
    let services = Services::new()
        .with_health()
        .with_credentials(Arc::new(OneRegistry));
    let solve = Solve {
        reference: "ref".into(),
        names: vec!["registry:5000/a:1".into()],
        ..Solve::default()
    };
    let job = Job {
        services,
        shared_key: Arc::new(shared_keys().cold()),
        solve,
        limits: Limits::default(),
    };
    let (sender, events) = mpsc::unbounded_channel();
    let build = tokio::spawn(async move {
        let connection = daemon.connect().await.expect("connect");
        job.run(&connection, |event| sender.send(event).expect("the test listens"))
            .await
    });
    Running { build, events }
}

pub(crate) fn log(text: &str) -> StatusResponse {
    let log = VertexLog {
        vertex: "step".into(),
        stream: 1,
        msg: text.into(),
        timestamp: None,
    };
    StatusResponse {
        logs: vec![log],
        ..StatusResponse::default()
    }
}

fn failed_step(name: &str, error: &str) -> StatusResponse {
    let vertex = Vertex {
        name: name.into(),
        error: error.into(),
        ..Vertex::default()
    };
    StatusResponse {
        vertexes: vec![vertex],
        ..StatusResponse::default()
    }
}

pub(crate) fn text(event: Option<Event>) -> String {
    match event.expect("an event") {
        Event::Output { text, .. } => String::from_utf8(text).expect("text"),
        other => panic!("no output: {other:?}"),
    }
}

pub(crate) fn lost(result: Result<Solved, JobError>) -> String {
    match result.expect_err("the daemon was lost") {
        JobError::Lost(source) => source.to_string(),
        JobError::Failed(failure) => panic!("this is no failed build: {failure:?}"),
    }
}

#[tokio::test]
async fn a_build_opens_a_session_solves_and_follows_under_one_reference() {
    let (daemon, mut calls) = daemon::start();
    let mut running = build(daemon);
    let (solve, status, session) = calls.build().await;

    assert_eq!(solve.request.r#ref, "ref");
    assert_eq!(status.reference, "ref");
    let id = session
        .headers
        .get("x-docker-expose-session-uuid")
        .expect("an id");
    assert_eq!(id, solve.request.session.as_str());

    status.events.send(Ok(log("first\n"))).await.expect("listening");
    assert_eq!(
        text(running.events.recv().await),
        "first\n",
        "events come while the build runs"
    );
    solve.succeed("sha256:12");
    status
        .events
        .send(Ok(log("last\n")))
        .await
        .expect("still listening");
    drop(status);
    assert_eq!(text(running.events.recv().await), "last\n");
    let solved = running.build.await.expect("no panic").expect("it succeeds");
    assert_eq!(solved.digest.as_deref(), Some("sha256:12"));
    session.given_up.await.expect("the session ends with the build");
}

#[tokio::test]
async fn the_daemon_can_ask_for_health_and_credentials() {
    let (daemon, mut calls) = daemon::start();
    let running = build(daemon);
    let (solve, status, session) = calls.build().await;

    let health = HealthClient::new(session.services.clone())
        .check(HealthCheckRequest::default())
        .await;
    assert_eq!(
        health.expect("an answer").into_inner().status().as_str_name(),
        "SERVING"
    );
    let mut auth = AuthClient::new(session.services.clone());
    for (host, username, secret) in [("registry:5000", "user", "password"), ("elsewhere", "", "")] {
        let answer = auth
            .credentials(CredentialsRequest { host: host.into() })
            .await
            .expect("credentials")
            .into_inner();
        assert_eq!(
            (answer.username.as_str(), answer.secret.as_str()),
            (username, secret)
        );
    }

    solve.succeed("sha256:12");
    drop(status);
    running.build.await.expect("no panic").expect("it succeeds");
}

#[tokio::test]
async fn a_build_that_fails_says_so_after_the_rest_of_its_log() {
    let (daemon, mut calls) = daemon::start();
    let mut running = build(daemon);
    let (solve, status, _session) = calls.build().await;

    solve.fail(Status::unknown(
        "failed to push registry:5000/a:1: 401 Unauthorized",
    ));
    status
        .events
        .send(Ok(log("why\n")))
        .await
        .expect("still listening");
    let exporting = failed_step(
        "exporting to image",
        "failed to push registry:5000/a:1: 401 Unauthorized",
    );
    status.events.send(Ok(exporting)).await.expect("still listening");
    drop(status);

    assert_eq!(text(running.events.recv().await), "why\n");
    match running.build.await.expect("no panic").expect_err("it fails") {
        JobError::Failed(Failure { fault, message }) => {
            assert_eq!(
                fault,
                Fault::Platform,
                "what failed is only known from what came after the solve's answer"
            );
            assert_eq!(message, "failed to push registry:5000/a:1: 401 Unauthorized");
        }
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_does_not_end_is_not_waited_for_forever() {
    let (daemon, mut calls) = daemon::start();
    let running = build(daemon);
    let (solve, _status, _session) = calls.build().await;
    let begun = Instant::now();

    solve.succeed("sha256:12");

    running
        .build
        .await
        .expect("no panic")
        .expect("it succeeds all the same");
    assert_eq!(begun.elapsed().as_secs(), Limits::default().quiet.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_log_that_goes_on_after_the_build_is_cut_off() {
    let (daemon, mut calls) = daemon::start();
    let running = build(daemon);
    let (solve, status, _session) = calls.build().await;
    let begun = Instant::now();

    solve.succeed("sha256:12");
    let chatting = tokio::spawn(async move {
        while status.events.send(Ok(log("and\n"))).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });

    running
        .build
        .await
        .expect("no panic")
        .expect("it succeeds all the same");
    assert_eq!(begun.elapsed().as_secs(), Limits::default().drain.as_secs());
    chatting.await.expect("nobody listens any more");
}

#[tokio::test]
async fn a_build_that_is_dropped_is_cancelled_in_all_its_parts() {
    let (daemon, mut calls) = daemon::start();
    let running = build(daemon);
    let (mut solve, status, session) = calls.build().await;

    running.build.abort();

    solve.reply.closed().await;
    status.events.closed().await;
    session.given_up.await.expect("the session is given up");
}

#[tokio::test]
async fn a_session_that_the_daemon_ends_ends_the_build() {
    for status in [None, Some(Status::internal("healthcheck failed fatally"))] {
        let (daemon, mut calls) = daemon::start();
        let running = build(daemon);
        let (mut solve, status_call, session) = calls.build().await;

        session.end.send(status).expect("the session runs");

        assert_eq!(
            lost(running.build.await.expect("no panic")),
            "BuildKit ended the session"
        );
        solve.reply.closed().await;
        status_call.events.closed().await;
    }
}

#[tokio::test]
async fn a_status_that_breaks_ends_the_build() {
    let (daemon, mut calls) = daemon::start();
    let running = build(daemon);
    let (mut solve, status, session) = calls.build().await;

    status
        .events
        .send(Err(Status::unknown("no such job ref")))
        .await
        .expect("listening");

    assert!(lost(running.build.await.expect("no panic")).contains("no such job ref"));
    solve.reply.closed().await;
    session.given_up.await.expect("the session is given up");
}

#[tokio::test]
async fn a_daemon_that_disappears_ends_the_build() {
    let (daemon, mut calls) = daemon::start();
    let running = build(daemon);
    let _unanswered = calls.build().await;

    calls.cut();

    lost(running.build.await.expect("no panic"));
}

#[tokio::test]
async fn a_daemon_that_shuts_down_is_no_failed_build() {
    for status in [
        Status::unavailable("closing"),
        Status::cancelled("context canceled"),
    ] {
        let (daemon, mut calls) = daemon::start();
        let running = build(daemon);
        let (solve, status_call, _session) = calls.build().await;

        solve.fail(status);
        drop(status_call);

        lost(running.build.await.expect("no panic"));
    }
}

#[tokio::test]
async fn a_daemon_is_ready_while_it_answers() {
    let (daemon, calls) = daemon::start();
    daemon.probe().await.expect("it answers");

    drop(calls);
    tokio::task::yield_now().await;

    daemon.probe().await.expect_err("it is gone");
}
