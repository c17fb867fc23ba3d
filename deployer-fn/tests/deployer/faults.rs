//! Tests of rollouts with a gateway that is unavailable, slow, loses connections or is another server; and
//! during a shutdown.

use std::time::Duration;

use deployer_fn::{
    Deadline, DeploymentStatus as Status, Fault, RolloutContext, RolloutHistory, Running, SuccessorReceiver,
    Timeouts, rollout,
};
use function_host::Shutdown;
use tokio::time::Instant;

use crate::fixtures::{
    READY_TIMEOUT, assert_ended, expect_health, expect_post, expect_put, expect_read, hand_over, new_state,
    old_state, roll_out,
};
use crate::script::{ALWAYS, ScriptedGateway};

#[tokio::test(start_paused = true)]
async fn an_unreachable_gateway_fails_the_deployment_before_any_change() {
    let outcome = roll_out([expect_read().times(ALWAYS).unreachable()]).await;
    assert_ended(
        &outcome,
        Status::Failed,
        Some(Fault::Platform),
        &["nothing was changed: could not reach the gateway"],
    );
    assert!(!outcome.changed);
    assert_eq!(outcome.running, Running::Unknown);
}

#[tokio::test(start_paused = true)]
async fn only_the_state_of_the_function_counts_as_an_answer_to_a_read() {
    for (status, text) in [
        (200, "<html><body>Welcome</body></html>"),
        (200, ""),
        (200, "{}"),
        (200, "{\"name\":\"other\"}"),
        (401, "invalid credentials\n"),
        (502, ""),
    ] {
        let outcome = roll_out([expect_read().times(ALWAYS).reply(status, text)]).await;
        assert_ended(
            &outcome,
            Status::Failed,
            Some(Fault::Platform),
            &["nothing was changed: the gateway answered GET"],
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_whose_answer_was_lost_is_read_back() {
    let outcome = roll_out([
        expect_read().times(2).reply(200, old_state(1)),
        expect_put().lost(),
        expect_read().reply(200, new_state(0)),
        expect_read().reply(200, new_state(1)),
        expect_health().reply(200, "OK"),
    ])
    .await;
    assert_ended(
        &outcome,
        Status::Ready,
        None,
        &["lost the connection to the gateway during PUT"],
    );
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_update_ends_within_the_timeouts() {
    let begun = Instant::now();
    let outcome = roll_out([
        expect_read().times(2).reply(200, old_state(1)),
        expect_put().silent(),
        expect_read().times(ALWAYS).unreachable(),
    ])
    .await;
    assert_ended(
        &outcome,
        Status::Failed,
        Some(Fault::Platform),
        &["the function's state is unknown: could not reach"],
    );
    assert_eq!(outcome.running, Running::Unknown);
    assert!(begun.elapsed() < READY_TIMEOUT + Timeouts::default().rollback + Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_gateway_without_credentials_route_or_capacity_is_the_platforms_fault() {
    for (put_status, post_status, reason) in [
        (401, None, "credentials"),
        (404, Some(404), "does not have the gateway's API"),
        (429, None, "busy"),
    ] {
        let mut calls = vec![
            expect_read().times(ALWAYS).reply(404, ""),
            expect_put().times(ALWAYS).reply(put_status, ""),
        ];
        calls.extend(
            post_status.map(|status| expect_post().times(ALWAYS).reply(status, "404 page not found\n")),
        );
        assert_ended(
            &roll_out(calls).await,
            Status::RolledBack,
            Some(Fault::Platform),
            &[reason],
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_rollout_survives_a_gateway_that_is_briefly_unavailable() {
    let outcome = roll_out([
        expect_read().times(2).reply(200, old_state(1)),
        expect_put().reply(202, ""),
        expect_read().times(5).unreachable(),
        expect_read().reply(502, ""),
        expect_read().reply(200, new_state(1)),
        expect_health().lost(),
        expect_read().reply(200, new_state(1)),
        expect_health().reply(200, "OK"),
    ])
    .await;
    assert_ended(&outcome, Status::Ready, None, &[]);

    let unavailable = roll_out([
        expect_read().times(2).reply(200, old_state(1)),
        expect_put().reply(202, ""),
        expect_read().times(ALWAYS).unreachable(),
    ])
    .await;
    assert_ended(
        &unavailable,
        Status::Failed,
        Some(Fault::Platform),
        &["not ready within 50s: could not reach the gateway"],
    );
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_a_rollout_with_a_failure_that_is_retried() {
    let (trigger, shutdown) = Shutdown::new();
    let deadline = Deadline::new(READY_TIMEOUT, None, shutdown);
    let gateway = ScriptedGateway::new([
        expect_read().times(2).reply(404, ""),
        expect_put().reply(404, ""),
        expect_post()
            .check(move |_| trigger.begin(Instant::now() + Duration::from_secs(10)))
            .reply(202, ""),
        expect_read().times(ALWAYS).reply(200, new_state(0)),
    ]);
    let begun = Instant::now();

    let context = RolloutContext {
        transport: &gateway,
        timeouts: &Timeouts::default(),
        default_namespace: "openfaas-fn",
        history: &RolloutHistory::default(),
        succession: &SuccessorReceiver::none(),
    };
    let outcome = rollout(&context, &hand_over(), vec![], &deadline, String::new()).await;

    assert_ended(
        &outcome,
        Status::Failed,
        Some(Fault::Platform),
        &["the deployer is shutting down"],
    );
    assert!(begun.elapsed() < Duration::from_secs(10));
    gateway.finish();
}
