//! A call that is delivered again: its build is built once, and its outcome told to both.

use bollard_buildkit_proto::moby::buildkit::v1::StatusResponse;
use builder_fn::buildkit::{Failure, Fault, JobError};
use tonic::Status;

use crate::daemon;
use crate::job::{build, log, text};

fn running() -> Status {
    Status::unknown("job ID ref exists")
}

#[tokio::test(start_paused = true)]
async fn while_the_build_runs_the_second_delivery_follows_it() {
    let (daemon, mut calls) = daemon::start();
    let mut second = build(daemon);
    let (solve, status, _session) = calls.build().await;

    solve.fail(running());
    status
        .events
        .send(Ok(log("of the first\n")))
        .await
        .expect("it follows");
    assert_eq!(text(second.events.recv().await), "of the first\n");
    drop(status);
    calls.remember("ref", Ok("sha256:12"));

    let solved = second.build.await.expect("no panic").expect("it succeeds");
    assert_eq!(solved.digest.as_deref(), Some("sha256:12"));
}

#[tokio::test(start_paused = true)]
async fn the_failure_of_the_build_that_is_followed_is_told() {
    let (daemon, mut calls) = daemon::start();
    let second = build(daemon);
    let (solve, status, _session) = calls.build().await;

    solve.fail(running());
    status
        .events
        .send(Ok(StatusResponse::default()))
        .await
        .expect("it follows");
    drop(status);
    calls.remember("ref", Err(Status::unknown("exit code: 3")));

    match second.build.await.expect("no panic").expect_err("it fails") {
        JobError::Failed(failure) => {
            assert_eq!(
                failure,
                Failure {
                    message: "exit code: 3".into(),
                    fault: Fault::Caller
                }
            );
        }
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn when_the_build_that_is_followed_is_cancelled_the_second_delivery_builds() {
    let (daemon, mut calls) = daemon::start();
    let second = build(daemon);
    let (solve, status, _session) = calls.build().await;
    solve.fail(running());
    drop(status);
    calls.remember("ref", Err(Status::cancelled("context canceled")));

    let (solve, status, _session) = calls.build().await;
    assert_eq!(solve.request.r#ref, "ref-2");
    assert_eq!(status.reference, "ref-2");
    drop(status);
    solve.succeed("sha256:34");

    let solved = second.build.await.expect("no panic").expect("it succeeds");
    assert_eq!(solved.digest.as_deref(), Some("sha256:34"));
}

#[tokio::test]
async fn after_a_build_that_succeeded_its_log_and_image_are_told_again() {
    let (daemon, mut calls) = daemon::start();
    calls.remember("ref", Ok("sha256:12"));
    let mut second = build(daemon);

    let status = calls.statuses.recv().await.expect("a status");
    status
        .events
        .send(Ok(log("of the first\n")))
        .await
        .expect("it reads");
    drop(status);

    assert_eq!(text(second.events.recv().await), "of the first\n");
    let solved = second.build.await.expect("no panic").expect("it succeeds");
    assert_eq!(solved.digest.as_deref(), Some("sha256:12"));
    assert!(calls.solves.is_empty(), "nothing is built");
}

#[tokio::test]
async fn after_builds_that_failed_it_is_built_under_a_name_without_a_log() {
    let (daemon, mut calls) = daemon::start();
    calls.remember("ref", Err(Status::unknown("failed to push")));
    calls.remember("ref-2", Err(Status::unknown("failed to push")));
    let third = build(daemon);

    let (solve, status, _session) = calls.build().await;
    assert_eq!(solve.request.r#ref, "ref-3");
    drop(status);
    solve.succeed("sha256:12");

    third.build.await.expect("no panic").expect("it succeeds");
}
