//! Rollouts with a gateway that is away, slow, breaks off, or is none; and with the deployer itself being ended.

use std::time::Duration;

use deployer_fn::outcome::{Fault, Running, Status};
use deployer_fn::rollout::{Deadline, Ground, Limits, Memory, rollout};
use function_host::Shutdown;
use tokio::time::Instant;

use crate::rollout::{READY_TIMEOUT, assert_ended, hand_over, health, new, old, post, put, read, run};
use crate::script::{ALWAYS, Script};

#[tokio::test(start_paused = true)]
async fn a_gateway_that_is_down_is_told_before_anything_is_changed() {
    let outcome = run([read().times(ALWAYS).refused()]).await;
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
async fn answers_that_are_no_functions_are_not_taken_for_one() {
    for (status, text) in [
        (200, "<html><body>Welcome</body></html>"),
        (200, ""),
        (200, "{}"),
        (200, "{\"name\":\"other\"}"),
        (401, "invalid credentials\n"),
        (502, ""),
    ] {
        let outcome = run([read().times(ALWAYS).reply(status, text)]).await;
        assert_ended(
            &outcome,
            Status::Failed,
            Some(Fault::Platform),
            &["nothing was changed: the gateway answered GET"],
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_whose_answer_was_lost_is_looked_up() {
    let done = run([
        read().reply(200, old(1)),
        put().lost(),
        read().reply(200, new(0)),
        read().reply(200, new(1)),
        health().reply(200, "OK"),
    ])
    .await;
    assert_ended(&done, Status::Ready, None, &["lost the gateway during PUT"]);
}

#[tokio::test(start_paused = true)]
async fn an_update_that_is_never_answered_ends_in_time_with_what_is_known() {
    let begun = Instant::now();
    let outcome = run([
        read().reply(200, old(1)),
        put().silent(),
        read().times(ALWAYS).refused(),
    ])
    .await;
    assert_ended(
        &outcome,
        Status::Failed,
        Some(Fault::Platform),
        &["what runs now is not known: could not reach"],
    );
    assert_eq!(outcome.running, Running::Unknown);
    assert!(begun.elapsed() < READY_TIMEOUT + Limits::default().rollback + Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_does_not_know_us_or_the_route_is_the_platforms_doing() {
    for (put_status, post_status, reason) in [
        (401, None, "credentials"),
        (404, Some(404), "no gateway"),
        (429, None, "busy"),
    ] {
        let mut calls = vec![
            read().times(ALWAYS).reply(404, ""),
            put().times(ALWAYS).reply(put_status, ""),
        ];
        calls.extend(post_status.map(|status| post().times(ALWAYS).reply(status, "404 page not found\n")));
        assert_ended(
            &run(calls).await,
            Status::RolledBack,
            Some(Fault::Platform),
            &[reason],
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_is_away_for_a_while_is_waited_for() {
    let outcome = run([
        read().reply(200, old(1)),
        put().reply(202, ""),
        read().times(5).refused(),
        read().reply(502, ""),
        read().reply(200, new(1)),
        health().lost(),
        read().reply(200, new(1)),
        health().reply(200, "OK"),
    ])
    .await;
    assert_ended(&outcome, Status::Ready, None, &[]);

    let lost = run([
        read().reply(200, old(1)),
        put().reply(202, ""),
        read().times(ALWAYS).refused(),
    ])
    .await;
    assert_ended(
        &lost,
        Status::Failed,
        Some(Fault::Platform),
        &["not ready within 50s: could not reach the gateway"],
    );
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_process_ends_a_rollout_as_one_to_be_tried_again() {
    let (trigger, shutdown) = Shutdown::new();
    let deadline = Deadline::new(READY_TIMEOUT, None, shutdown);
    let script = Script::new([
        read().reply(404, ""),
        put().reply(404, ""),
        post()
            .check(move |_| trigger.begin(Instant::now() + Duration::from_secs(10)))
            .reply(202, ""),
        read().times(ALWAYS).reply(200, new(0)),
    ]);
    let begun = Instant::now();

    let ground = Ground {
        transport: &script,
        limits: &Limits::default(),
        memory: &Memory::default(),
    };
    let outcome = rollout(&ground, &hand_over(), vec![], &deadline, String::new()).await;

    assert_ended(
        &outcome,
        Status::Failed,
        Some(Fault::Platform),
        &["the deployer itself is being ended"],
    );
    assert!(begun.elapsed() < Duration::from_secs(10));
    script.finish();
}
