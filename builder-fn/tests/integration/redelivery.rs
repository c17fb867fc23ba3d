//! Tests of calls that are delivered again: a running or successful build is followed or found, and not repeated; a
//! failed or cancelled one is built again.

use std::sync::Arc;

use bollard_buildkit_proto::moby::buildkit::v1::StatusResponse;
use builder_fn::buildkit::{BuildEvent, BuildFailure, FaultyParty, JobError, ManifestLookup};
use builder_fn::registry::Registries;
use function_host::Secrets;
use function_host::registry::AdditionalTokenHosts;
use tonic::Status;

use crate::complete_or_panic;
use crate::daemon;
use crate::gateway::start_gateway_answering_hand_overs;
use crate::job::{
    FixedAnswerManifestLookup, OneRegistryCredentials, expect_output_text, job_reference, start_job,
    start_job_with_manifest_lookup, step_output_response,
};

/// Returns the reference of the job's attempt with this number.
fn attempt_reference(number: u32) -> String {
    match number {
        1 => job_reference().to_string(),
        _ => format!("{}-{number}", job_reference()),
    }
}

/// Returns the status with which the daemon rejects a second solve of a reference.
fn job_id_exists_status() -> Status {
    Status::unknown(format!("job ID {} exists", job_reference()))
}

#[tokio::test(start_paused = true)]
async fn a_second_delivery_follows_the_running_build() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let mut second = start_job(daemon);
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;

    solve.answer_with_error(job_id_exists_status());
    status
        .events
        .send(Ok(step_output_response("of the first\n")))
        .await
        .expect("the client reads");
    assert_eq!(expect_output_text(second.events.recv().await), "of the first\n");
    drop(status);
    calls.add_finished_build(&attempt_reference(1), Ok("sha256:12"));

    let image = second.build.await.expect("no panic").expect("it succeeds");
    assert_eq!(image.digest.as_deref(), Some("sha256:12"));
}

#[tokio::test(start_paused = true)]
async fn a_second_delivery_fails_with_the_build_that_it_follows() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let second = start_job(daemon);
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;

    solve.answer_with_error(job_id_exists_status());
    status
        .events
        .send(Ok(StatusResponse::default()))
        .await
        .expect("the client reads");
    drop(status);
    calls.add_finished_build(&attempt_reference(1), Err(Status::unknown("exit code: 3")));

    match second.build.await.expect("no panic").expect_err("it fails") {
        JobError::Failed(failure) => {
            assert_eq!(
                failure,
                BuildFailure {
                    message: "exit code: 3".into(),
                    fault: FaultyParty::Caller,
                    dockerfile_line: None,
                }
            );
        }
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_delivery_builds_if_the_build_that_it_follows_is_cancelled() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let second = start_job(daemon);
    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    solve.answer_with_error(job_id_exists_status());
    drop(status);
    calls.add_finished_build(&attempt_reference(1), Err(Status::cancelled("context canceled")));

    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    assert_eq!(solve.request.r#ref, attempt_reference(2));
    assert_eq!(status.reference, attempt_reference(2));
    drop(status);
    solve.answer_with_digest("sha256:34");

    let image = second.build.await.expect("no panic").expect("it succeeds");
    assert_eq!(image.digest.as_deref(), Some("sha256:34"));
}

#[tokio::test]
async fn a_delivery_after_a_success_gets_its_log_and_image_without_a_build() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    calls.add_finished_build(&attempt_reference(1), Ok("sha256:12"));
    let mut second = start_job(daemon);

    let status = calls.statuses.recv().await.expect("a status");
    status
        .events
        .send(Ok(step_output_response("of the first\n")))
        .await
        .expect("it reads");
    drop(status);

    assert_eq!(expect_output_text(second.events.recv().await), "of the first\n");
    let image = second.build.await.expect("no panic").expect("it succeeds");
    assert_eq!(image.digest.as_deref(), Some("sha256:12"));
    assert!(calls.solves.is_empty(), "nothing is solved");
}

#[tokio::test]
async fn a_delivery_after_failures_is_built_under_the_next_unused_reference() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    calls.add_finished_build(&attempt_reference(1), Err(Status::unknown("failed to push")));
    calls.add_finished_build(&attempt_reference(2), Err(Status::unknown("failed to push")));
    let third = start_job(daemon);

    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    assert_eq!(solve.request.r#ref, attempt_reference(3));
    drop(status);
    solve.answer_with_digest("sha256:12");

    third.build.await.expect("no panic").expect("it succeeds");
}

#[tokio::test]
async fn an_image_that_has_left_its_registry_is_built_again() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    calls.add_finished_build(&attempt_reference(1), Ok("sha256:12"));
    let second = start_job_with_manifest_lookup(daemon, FixedAnswerManifestLookup::Missing);

    let (solve, status, _session) = calls.wait_without_limit_for_build_calls().await;
    assert_eq!(solve.request.r#ref, attempt_reference(2));
    drop(status);
    solve.answer_with_digest("sha256:34");

    let image = second.build.await.expect("no panic").expect("it succeeds");
    assert_eq!(image.digest.as_deref(), Some("sha256:34"));
}

#[tokio::test]
async fn a_registry_error_costs_a_redelivery_a_warning_and_no_second_build() {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    calls.add_finished_build(&attempt_reference(1), Ok("sha256:12"));
    let mut second = start_job_with_manifest_lookup(daemon, FixedAnswerManifestLookup::Unknown);

    drop(calls.statuses.recv().await.expect("a status"));

    match second.events.recv().await.expect("an event") {
        BuildEvent::Unsure { text } => assert!(
            text.contains("registry:5000/a:1") && text.ends_with("the registry answered 503"),
            "{text}"
        ),
        other => panic!("not a warning: {other:?}"),
    }
    let image = second.build.await.expect("no panic").expect("it succeeds");
    assert_eq!(image.digest.as_deref(), Some("sha256:12"));
    assert!(calls.solves.is_empty(), "nothing is solved");
}

#[tokio::test]
async fn a_registry_is_asked_for_the_manifest_by_digest_in_the_images_repository() {
    for (status, expected) in [(200, Some(true)), (404, Some(false)), (503, None)] {
        let (address, mut received) = start_gateway_answering_hand_overs(status, "").await;
        let folder = tempfile::tempdir().expect("folder");
        let registries = Registries {
            credentials: Arc::new(OneRegistryCredentials),
            secrets: Secrets::new(folder.path()),
            insecure: true,
            token_realms: AdditionalTokenHosts::default(),
        };

        let answer = registries
            .has_manifest(&format!("{address}/team/a:1"), "sha256:12")
            .await;

        assert_eq!(answer.ok(), expected);
        let request = received.recv().await.expect("a request");
        assert_eq!(
            (request.method().as_str(), request.uri().path()),
            ("HEAD", "/v2/team/a/manifests/sha256:12")
        );
    }
}

/// The job ends with an error of its own: a lost daemon would be answered with 502, and the queue would retry in vain.
#[tokio::test]
async fn a_call_whose_sixteen_attempts_have_failed_is_used_up_and_not_a_lost_daemon() {
    let (daemon, calls) = daemon::start_fake_daemon();
    for number in 1..=16 {
        calls.add_finished_build(&attempt_reference(number), Err(Status::unknown("exit code: 3")));
    }
    let running = start_job(daemon);
    let error = complete_or_panic(running.build)
        .await
        .expect("no panic")
        .expect_err("no build is left");
    assert!(matches!(error, JobError::AttemptsUsedUp), "{error:?}");
}
