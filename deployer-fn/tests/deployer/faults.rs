//! Tests of rollouts with a gateway that is unavailable, slow, loses connections or is another server; and
//! during a shutdown.

use std::time::Duration;

use deployer_fn::{
    DeploymentStatus as Status, FaultyParty, RolloutContext, RolloutDeadline, RolloutHistory,
    RolloutPartTimeouts, RunningState, SuccessorReceiver, roll_out_hand_over,
};
use function_host::Shutdown;
use tokio::time::Instant;

use crate::fixtures::{
    READY_TIMEOUT, assert_outcome, expect_create_request, expect_probe_request, expect_status_request,
    expect_update_request, hand_over_of_new_image, new_state_json, old_state_json,
    roll_out_new_image_and_assert_calls, timeouts_without_stay_up,
};
use crate::script::{ANY_NUMBER_OF_TIMES, ScriptedGateway};

#[tokio::test(start_paused = true)]
async fn an_unreachable_gateway_fails_the_deployment_before_any_change() {
    let outcome = roll_out_new_image_and_assert_calls([expect_status_request()
        .expected_times(ANY_NUMBER_OF_TIMES)
        .failing_to_connect()])
    .await;
    assert_outcome(
        &outcome,
        Status::Failed,
        Some(FaultyParty::Platform),
        &["nothing was changed: could not reach the gateway"],
    );
    assert!(!outcome.changed);
    assert_eq!(outcome.running, RunningState::Unknown);
}

#[tokio::test(start_paused = true)]
async fn only_a_json_state_of_the_function_counts_as_an_answer_to_a_read() {
    for (status, text) in [
        (200, "<html><body>Welcome</body></html>"),
        (200, ""),
        (200, "{}"),
        (200, "{\"name\":\"other\"}"),
        (401, "invalid credentials\n"),
        (502, ""),
    ] {
        let outcome = roll_out_new_image_and_assert_calls([expect_status_request()
            .expected_times(ANY_NUMBER_OF_TIMES)
            .answered_with(status, text)])
        .await;
        assert_outcome(
            &outcome,
            Status::Failed,
            Some(FaultyParty::Platform),
            &["nothing was changed: the gateway answered GET"],
        );
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_lost_answer_to_an_update_the_function_is_read_to_see_its_effect() {
    let outcome = roll_out_new_image_and_assert_calls([
        expect_status_request()
            .expected_times(2)
            .answered_with(200, old_state_json(1)),
        expect_update_request().with_lost_answer(),
        expect_status_request().answered_with(200, new_state_json(0)),
        expect_status_request().answered_with(200, new_state_json(1)),
        expect_probe_request().answered_with(200, "OK"),
    ])
    .await;
    assert_outcome(
        &outcome,
        Status::Ready,
        None,
        &["lost the connection to the gateway during PUT"],
    );
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_update_fails_in_time_with_unknown_state_if_reads_cannot_connect() {
    let begun = Instant::now();
    let outcome = roll_out_new_image_and_assert_calls([
        expect_status_request()
            .expected_times(2)
            .answered_with(200, old_state_json(1)),
        expect_update_request().never_answered(),
        expect_status_request()
            .expected_times(ANY_NUMBER_OF_TIMES)
            .failing_to_connect(),
    ])
    .await;
    assert_outcome(
        &outcome,
        Status::Failed,
        Some(FaultyParty::Platform),
        &["the function's state is unknown: could not reach"],
    );
    assert_eq!(outcome.running, RunningState::Unknown);
    assert!(
        begun.elapsed() < READY_TIMEOUT + RolloutPartTimeouts::default().rollback + Duration::from_secs(5)
    );
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_rejects_the_credentials_has_no_route_or_is_busy_is_the_platforms_fault() {
    for (put_status, post_status, reason) in [
        (401, None, "credentials"),
        (404, Some(404), "does not have the gateway's API"),
        (429, None, "busy"),
    ] {
        let mut calls = vec![
            expect_status_request()
                .expected_times(ANY_NUMBER_OF_TIMES)
                .answered_with(404, ""),
            expect_update_request()
                .expected_times(ANY_NUMBER_OF_TIMES)
                .answered_with(put_status, ""),
        ];
        calls.extend(post_status.map(|status| {
            expect_create_request()
                .expected_times(ANY_NUMBER_OF_TIMES)
                .answered_with(status, "404 page not found\n")
        }));
        assert_outcome(
            &roll_out_new_image_and_assert_calls(calls).await,
            Status::RolledBack,
            Some(FaultyParty::Platform),
            &[reason],
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_rollout_survives_a_gateway_outage_that_ends_within_the_timeout_and_fails_otherwise() {
    let outcome = roll_out_new_image_and_assert_calls([
        expect_status_request()
            .expected_times(2)
            .answered_with(200, old_state_json(1)),
        expect_update_request().answered_with(202, ""),
        expect_status_request().expected_times(5).failing_to_connect(),
        expect_status_request().answered_with(502, ""),
        expect_status_request().answered_with(200, new_state_json(1)),
        expect_probe_request().with_lost_answer(),
        expect_status_request().answered_with(200, new_state_json(1)),
        expect_probe_request().answered_with(200, "OK"),
    ])
    .await;
    assert_outcome(&outcome, Status::Ready, None, &[]);

    let unavailable = roll_out_new_image_and_assert_calls([
        expect_status_request()
            .expected_times(2)
            .answered_with(200, old_state_json(1)),
        expect_update_request().answered_with(202, ""),
        expect_status_request()
            .expected_times(ANY_NUMBER_OF_TIMES)
            .failing_to_connect(),
    ])
    .await;
    assert_outcome(
        &unavailable,
        Status::Failed,
        Some(FaultyParty::Platform),
        &["not ready within 50s: could not reach the gateway"],
    );
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_a_rollout_as_failed_by_the_platform_before_the_process_ends() {
    let (trigger, shutdown) = Shutdown::new();
    let deadline = RolloutDeadline::new(READY_TIMEOUT, None, shutdown);
    let gateway = ScriptedGateway::new([
        expect_status_request().expected_times(2).answered_with(404, ""),
        expect_update_request().answered_with(404, ""),
        expect_create_request()
            .with_request_check(move |_| trigger.begin(Instant::now() + Duration::from_secs(10)))
            .answered_with(202, ""),
        expect_status_request()
            .expected_times(ANY_NUMBER_OF_TIMES)
            .answered_with(200, new_state_json(0)),
    ]);
    let begun = Instant::now();

    let context = RolloutContext {
        transport: &gateway,
        kubernetes: None,
        timeouts: &timeouts_without_stay_up(),
        default_namespace: "openfaas-fn",
        history: &RolloutHistory::default(),
        tenant: None,
        succession: &SuccessorReceiver::without_successor(),
    };
    let outcome = roll_out_hand_over(
        &context,
        &hand_over_of_new_image(),
        vec![],
        &deadline,
        String::new(),
    )
    .await;

    assert_outcome(
        &outcome,
        Status::Failed,
        Some(FaultyParty::Platform),
        &["the deployer is shutting down"],
    );
    assert!(begun.elapsed() < Duration::from_secs(10));
    gateway.assert_no_missing_or_unexpected_calls();
}
