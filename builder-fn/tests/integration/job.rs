//! Tests of a build as a group of three gRPC calls, which end together.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bollard_buildkit_proto::health::HealthCheckRequest;
use bollard_buildkit_proto::health::health_client::HealthClient;
use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex, VertexLog};
use bollard_buildkit_proto::moby::filesync::v1::CredentialsRequest;
use bollard_buildkit_proto::moby::filesync::v1::auth_client::AuthClient;
use builder_fn::buildkit::{
    BuildEvent, BuildFailure, BuildJob, BuildReference, BuiltImageDigestCommitAndTimes, CredentialStore,
    Daemon, FaultyParty, ImageLayerSize, JobError, ManifestLookup, RegistryCredentials, SessionServices,
    SolveOptions, TimeoutsForLastEvents,
};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::Status;

use crate::{daemon, new_pool_of_buildkit_shared_keys};

/// A credential store that has credentials for `registry:5000` only.
#[derive(Debug)]
pub(crate) struct OneRegistryCredentials;

#[tonic::async_trait]
impl CredentialStore for OneRegistryCredentials {
    async fn credentials_or_empty(&self, host: &str) -> RegistryCredentials {
        match host {
            "registry:5000" => RegistryCredentials {
                username: "user".into(),
                secret: "password".into(),
            },
            _ => RegistryCredentials::default(),
        }
    }
}

/// A fake of registries that answer every lookup of a manifest in the same way.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FixedAnswerManifestLookup {
    /// Every registry has every manifest.
    Present,
    /// No registry has a manifest.
    Missing,
    /// Every lookup fails.
    Unknown,
}

#[tonic::async_trait]
impl ManifestLookup for FixedAnswerManifestLookup {
    async fn has_manifest(&self, _: &str, _: &str) -> Result<bool, Box<dyn Error + Send + Sync>> {
        match self {
            Self::Present => Ok(true),
            Self::Missing => Ok(false),
            Self::Unknown => Err("the registry answered 503".into()),
        }
    }

    async fn image_layers_or_empty_if_gone(
        &self,
        _: &str,
        _: &str,
    ) -> Result<Vec<ImageLayerSize>, Box<dyn Error + Send + Sync>> {
        match self {
            Self::Present => Ok([3_000_000, 1_500]
                .map(|bytes| ImageLayerSize {
                    digest: format!("sha256:{bytes}"),
                    bytes,
                })
                .to_vec()),
            Self::Missing => Ok(Vec::new()),
            Self::Unknown => Err("the registry answered 503".into()),
        }
    }

    async fn fetch_unverified_manifest(
        &self,
        _: &str,
        _: &str,
    ) -> Result<Option<Bytes>, Box<dyn Error + Send + Sync>> {
        Err("these registries have no contents".into())
    }

    async fn push_index(&self, _: &str, _: String) -> Result<(), Box<dyn Error + Send + Sync>> {
        Err("these registries take no contents".into())
    }
}

/// A running job, with its events and its result.
pub(crate) struct RunningJob {
    pub(crate) build: JoinHandle<Result<BuiltImageDigestCommitAndTimes, JobError>>,
    pub(crate) events: mpsc::UnboundedReceiver<BuildEvent>,
}

/// Returns the reference of the tests' job.
pub(crate) fn job_reference() -> BuildReference {
    BuildReference::for_call_and_signature("call-1", "sha256=12")
}

/// Starts a job without files on `daemon`.
pub(crate) fn start_job(daemon: Daemon) -> RunningJob {
    start_job_with_manifest_lookup(daemon, FixedAnswerManifestLookup::Present)
}

/// Starts a job without files on `daemon`, for which lookups in registries are answered by `manifests`.
pub(crate) fn start_job_with_manifest_lookup(
    daemon: Daemon,
    manifests: FixedAnswerManifestLookup,
) -> RunningJob {
    let services = SessionServices::new()
        .with_health()
        .with_credentials(Arc::new(OneRegistryCredentials));
    let solve = SolveOptions {
        reference: job_reference(),
        names: vec!["registry:5000/a:1".into()],
        push: true,
        ..SolveOptions::default()
    };
    let job = BuildJob {
        services,
        shared_key: Arc::new(new_pool_of_buildkit_shared_keys().lease_single_use()),
        solve,
        manifests: Arc::new(manifests),
        first_attempt: 1,
        timeouts: TimeoutsForLastEvents::default(),
    };
    let (sender, events) = mpsc::unbounded_channel();
    let build = tokio::spawn(async move {
        let connection = daemon.connect().await.expect("connect");
        job.run_to_outcome(&connection, |event| sender.send(event).expect("the test listens"))
            .await
    });
    RunningJob { build, events }
}

/// Returns a status response with output of a step.
pub(crate) fn step_output_response(text: &str) -> StatusResponse {
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

/// Returns a status response with a failed step.
fn failed_step_response(name: &str, error: &str) -> StatusResponse {
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

/// Returns the text of an output event; fails the test for any other event.
pub(crate) fn expect_output_text(event: Option<BuildEvent>) -> String {
    match event.expect("an event") {
        BuildEvent::Output { text, .. } => String::from_utf8(text).expect("text"),
        other => panic!("not output: {other:?}"),
    }
}

/// Returns the text of the cause of a [`JobError::Lost`]; fails the test for any other result.
pub(crate) fn expect_cause_of_lost_job(result: Result<BuiltImageDigestCommitAndTimes, JobError>) -> String {
    match result.expect_err("the daemon was lost") {
        JobError::Lost(source) => source.to_string(),
        other => panic!("the build failed instead: {other:?}"),
    }
}

#[tokio::test]
async fn a_build_uses_one_reference_passes_output_on_while_it_runs_and_ends_its_session() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let mut running = start_job(daemon);
    let (solve, status, session) = calls.wait_without_limit_for_build_calls().await;

    assert_eq!(solve.request.r#ref, job_reference().to_string());
    assert_eq!(status.reference, job_reference().to_string());
    let id = session
        .headers
        .get("x-docker-expose-session-uuid")
        .expect("an id");
    assert_eq!(id, solve.request.session.as_str());

    status
        .events
        .send(Ok(step_output_response("first\n")))
        .await
        .expect("the client reads");
    assert_eq!(
        expect_output_text(running.events.recv().await),
        "first\n",
        "events come while the build runs"
    );
    solve.answer_with_digest("sha256:12");
    status
        .events
        .send(Ok(step_output_response("last\n")))
        .await
        .expect("the client reads");
    drop(status);
    assert_eq!(expect_output_text(running.events.recv().await), "last\n");
    let image = running.build.await.expect("no panic").expect("it succeeds");
    assert_eq!(image.digest.as_deref(), Some("sha256:12"));
    session
        .ended_by_client
        .await
        .expect("the session ends with the build");
}

#[tokio::test]
async fn the_session_serves_health_and_credentials() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let running = start_job(daemon);
    let (solve, status, session) = calls.wait_without_limit_for_build_calls().await;

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

    solve.answer_with_digest("sha256:12");
    drop(status);
    running.build.await.expect("no panic").expect("it succeeds");
}

#[tokio::test]
async fn a_failed_push_is_reported_after_the_rest_of_its_log_as_the_platforms_fault() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let mut running = start_job(daemon);
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;

    solve.answer_with_error(Status::unknown(
        "failed to push registry:5000/a:1: 401 Unauthorized",
    ));
    status
        .events
        .send(Ok(step_output_response("why\n")))
        .await
        .expect("the client reads");
    let exporting = failed_step_response(
        "exporting to image",
        "failed to push registry:5000/a:1: 401 Unauthorized",
    );
    status.events.send(Ok(exporting)).await.expect("the client reads");
    drop(status);

    assert_eq!(expect_output_text(running.events.recv().await), "why\n");
    match running.build.await.expect("no panic").expect_err("it fails") {
        JobError::Failed(BuildFailure { fault, message, .. }) => {
            assert_eq!(
                fault,
                FaultyParty::Platform,
                "the event with the failed step came after the solve's answer"
            );
            assert_eq!(message, "failed to push registry:5000/a:1: 401 Unauthorized");
        }
        other => panic!("{other}"),
    }
}

/// BuildKit puts the whole Dockerfile into the details of an error, which gRPC sends as a trailer. The trailer of a
/// large Dockerfile exceeds the HTTP/2 library's default limit on headers, which would look like a broken connection.
#[tokio::test]
async fn a_failed_build_with_large_error_details_is_a_failed_build_and_not_a_lost_daemon() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let running = start_job(daemon);
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    let error = "process did not complete successfully: exit code: 3";
    let step = failed_step_response("[2/2] RUN exit 3", error);
    status.events.send(Ok(step)).await.expect("the client reads");
    drop(status);
    let details = vec![7; 1 << 20].into();

    solve.answer_with_error(Status::with_details(tonic::Code::Unknown, error, details));

    match running.build.await.expect("no panic") {
        Err(JobError::Failed(failure)) => assert_eq!(failure.fault, FaultyParty::Caller, "{failure}"),
        other => panic!("not a failed build: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_log_that_does_not_end_delays_a_finished_build_by_the_idle_timeout() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let running = start_job(daemon);
    let (solve, _status, _session) = calls.wait_without_limit_for_build_calls().await;
    let begun = Instant::now();

    solve.answer_with_digest("sha256:12");

    running.build.await.expect("no panic").expect("it succeeds");
    assert_eq!(
        begun.elapsed().as_secs(),
        TimeoutsForLastEvents::default().idle.as_secs()
    );
}

#[tokio::test(start_paused = true)]
async fn a_log_that_continues_after_the_build_is_cut_off_at_the_total_timeout() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let running = start_job(daemon);
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    let begun = Instant::now();

    solve.answer_with_digest("sha256:12");
    let writing = tokio::spawn(async move {
        while status
            .events
            .send(Ok(step_output_response("and\n")))
            .await
            .is_ok()
        {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });

    running.build.await.expect("no panic").expect("it succeeds");
    assert_eq!(
        begun.elapsed().as_secs(),
        TimeoutsForLastEvents::default().total.as_secs()
    );
    writing.await.expect("it ends when the client no longer reads");
}

#[tokio::test]
async fn dropping_a_build_cancels_all_its_calls() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let running = start_job(daemon);
    let (mut solve, status, session) = calls.wait_without_limit_for_build_calls().await;

    running.build.abort();

    solve.reply.closed().await;
    status.events.closed().await;
    session
        .ended_by_client
        .await
        .expect("the client ends the session");
}

#[tokio::test]
async fn the_end_of_the_session_ends_the_build_as_lost() {
    for status in [None, Some(Status::internal("healthcheck failed fatally"))] {
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let running = start_job(daemon);
        let (mut solve, status_call, session) = calls.wait_without_limit_for_build_calls().await;

        session.end.send(status).expect("the session runs");

        assert_eq!(
            expect_cause_of_lost_job(running.build.await.expect("no panic")),
            "BuildKit ended the session"
        );
        solve.reply.closed().await;
        status_call.events.closed().await;
    }
}

/// A daemon answers a status call for a build that it does not know with `not_found`, after 6 s.
#[tokio::test]
async fn a_status_call_is_repeated_until_the_daemon_knows_the_build() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let mut running = start_job(daemon);
    let (solve, mut status, _session) = calls.wait_without_limit_for_build_calls().await;
    for _ in 0..2 {
        status
            .events
            .send(Err(Status::not_found("no such job")))
            .await
            .expect("the client reads");
        status = calls.statuses.recv().await.expect("another status call");
    }
    status
        .events
        .send(Ok(step_output_response("first\n")))
        .await
        .expect("the client reads");
    assert_eq!(expect_output_text(running.events.recv().await), "first\n");
    solve.answer_with_digest("sha256:12");
    drop(status);
    running.build.await.expect("no panic").expect("it succeeds");
}

#[tokio::test]
async fn an_error_of_the_status_stream_ends_the_build_as_lost() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let running = start_job(daemon);
    let (mut solve, status, session) = calls.wait_without_limit_for_build_calls().await;

    status
        .events
        .send(Err(Status::unknown("no such job ref")))
        .await
        .expect("the client reads");

    assert!(expect_cause_of_lost_job(running.build.await.expect("no panic")).contains("no such job ref"));
    solve.reply.closed().await;
    session
        .ended_by_client
        .await
        .expect("the client ends the session");
}

#[tokio::test]
async fn a_broken_connection_ends_the_build_as_lost() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let running = start_job(daemon);
    let _unanswered = calls.wait_without_limit_for_build_calls().await;

    calls.cut_connections();

    expect_cause_of_lost_job(running.build.await.expect("no panic"));
}

#[tokio::test]
async fn a_daemon_that_shuts_down_is_lost_and_not_a_failed_build() {
    for status in [
        Status::unavailable("closing"),
        Status::cancelled("context canceled"),
    ] {
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let running = start_job(daemon);
        let (solve, status_call, _session) = calls.wait_without_limit_for_build_calls().await;

        solve.answer_with_error(status);
        drop(status_call);

        expect_cause_of_lost_job(running.build.await.expect("no panic"));
    }
}

#[tokio::test]
async fn a_probe_succeeds_only_while_the_daemon_answers() {
    let (daemon, calls) = daemon::start_fake_daemon();
    daemon.check_that_it_answers().await.expect("it answers");

    drop(calls);
    tokio::task::yield_now().await;

    daemon
        .check_that_it_answers()
        .await
        .expect_err("the daemon has ended");
}
