//! Tests of accepted builds whose builder stops: another one finishes them, once.

use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::StatusResponse;
use builder_fn::buildkit::Daemon;
use builder_fn::builds::LeaseTimes;
use builder_fn::slots::BuildSlots;
use function_host::http::Method;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::builds::{answer_statuses_holding_back_the_last, ask};
use crate::complete_or_panic;
use crate::daemon::{self, DaemonCalls, SolveCall};
use crate::gateway::start_gateway_answering_hand_overs;
use crate::persistence::{deliver_queued_build, deliver_queued_build_signed_with};
use crate::record_store::{ask_until, record_repository_of};
use crate::registry::{FakeRegistry, RegistryBehaviour};
use crate::setting::{AnswerStatusAndBody, CALL_ID, TestBuilder, request_tar_with};

/// The time after which a builder that does not renew its sign counts as gone: short, as it is gone in these tests.
const STALE_AFTER: Duration = Duration::from_millis(50);

/// A builder in a runtime of its own, which ends as a process that is killed does: nothing in it runs any more.
struct KillableBuilder {
    builder: TestBuilder,
    runtime: Option<Runtime>,
}

impl KillableBuilder {
    fn new(builder: TestBuilder) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        Self {
            builder,
            runtime: Some(runtime),
        }
    }

    fn deliver_queued_build(&self, id: &str, tar: Vec<u8>) {
        let builder = self.builder.with_call_id(id);
        let build = async move { deliver_queued_build(&builder, tar).await };
        self.runtime.as_ref().expect("it lives").spawn(build);
    }

    fn renew_sign_of_life_and_resume_builds_of_others(&self) {
        let builder = self.builder.clone();
        let resuming = async move {
            let _resuming = builder.renew_sign_of_life_and_resume_builds_of_others();
            std::future::pending::<()>().await;
        };
        self.runtime.as_ref().expect("it lives").spawn(resuming);
    }

    fn kill(&mut self) {
        self.runtime.take().expect("it lives").shutdown_background();
    }
}

impl Drop for KillableBuilder {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Starts a fake daemon whose builds have logs without lines.
fn start_fake_daemon_with_empty_logs() -> (Daemon, DaemonCalls) {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let ended = answer_statuses_holding_back_the_last(&mut calls, vec![StatusResponse::default()]);
    ended.send_replace(true);
    (daemon, calls)
}

async fn next_solve(calls: &mut DaemonCalls) -> SolveCall {
    complete_or_panic(calls.solves.recv()).await.expect("a solve")
}

fn call_id_of(solve: &SolveCall) -> &str {
    &solve.request.frontend_attrs["slipway.call-id"]
}

fn attempt_number_of(solve: &SolveCall) -> &str {
    &solve.request.frontend_attrs["slipway.attempt"]
}

fn spawn_queued_build(builder: &TestBuilder, id: &str) -> JoinHandle<AnswerStatusAndBody> {
    let builder = builder.with_call_id(id);
    tokio::spawn(async move { deliver_queued_build(&builder, request_tar_with(json!({}))).await })
}

fn builder_with_leases(daemon: Daemon, registry: &FakeRegistry) -> TestBuilder {
    TestBuilder::new(daemon).with_leases(&record_repository_of(registry), STALE_AFTER)
}

#[tokio::test]
async fn builds_of_a_killed_builder_are_finished_and_deployed_once_by_another() {
    let registry = FakeRegistry::start().await;
    let (gateway, mut hand_overs) =
        start_gateway_answering_hand_overs(200, r#"{"function":"hello","status":"ready"}"#).await;
    let (daemon, mut calls) = start_fake_daemon_with_empty_logs();
    let new_builder = || {
        TestBuilder::with_gateway(daemon.clone(), &format!("http://{gateway}"))
            .with_leases(&record_repository_of(&registry), STALE_AFTER)
    };
    let slots = BuildSlots::new(1, Duration::from_secs(600), 16);
    let mut killed = KillableBuilder::new(new_builder().with_slots(slots));
    let tar =
        request_tar_with(json!({"deploy": {"service": "hello"}, "submittedAt": "2026-01-01T00:00:00Z"}));
    killed.deliver_queued_build("running", tar);
    let mut first = next_solve(&mut calls).await;
    killed.deliver_queued_build(
        "waiting",
        request_tar_with(json!({"image": "registry:5000/other:1"})),
    );
    let other = new_builder();
    ask_until(&other, "waiting", |asked| asked.body["state"] == "waiting").await;

    killed.kill();
    complete_or_panic(first.reply.closed()).await;
    let reference = first.request.r#ref.clone();
    drop(first);
    let _resuming = other.renew_sign_of_life_and_resume_builds_of_others();
    for _ in 0..2 {
        let solve = next_solve(&mut calls).await;
        let is_first = call_id_of(&solve) == "running";
        assert_eq!(solve.request.r#ref.starts_with(&reference), is_first);
        // It is not known how many attempts the killed builder has begun.
        assert_eq!(attempt_number_of(&solve), "17");
        solve.answer_with_digest("sha256:12");
    }
    for id in ["running", "waiting"] {
        let asked = ask_until(&other, id, |asked| asked.body["state"] == "success").await;
        assert_eq!(asked.body["digest"], "sha256:12", "{}", asked.body);
        let stored = ask_until(&new_builder(), id, |asked| asked.body["state"] == "success").await;
        assert_eq!(stored.body["deployment"], asked.body["deployment"]);
    }
    let hand_over = hand_overs.recv().await.expect("a hand-over");
    assert_eq!(hand_over.headers()["x-call-id"], "running");
    assert!(hand_overs.try_recv().is_err(), "it was handed over once");
    assert!(calls.solves.try_recv().is_err(), "each was built once");
}

#[tokio::test]
async fn a_shutdown_hands_back_at_once_what_waits_and_what_still_arrives() {
    let registry = FakeRegistry::start().await;
    let (daemon, mut calls) = start_fake_daemon_with_empty_logs();
    // Only what is handed back is resumed.
    let new_builder = || TestBuilder::new(daemon.clone()).with_record_store(&record_repository_of(&registry));
    let slots = BuildSlots::new(1, Duration::from_secs(600), 16);
    let builder = new_builder().with_slots(slots);
    let running = spawn_queued_build(&builder, "running");
    let first = next_solve(&mut calls).await;
    let waiting = spawn_queued_build(&builder, "waiting");
    let other = new_builder();
    ask_until(&other, "waiting", |asked| asked.body["state"] == "waiting").await;
    let _resuming = other.renew_sign_of_life_and_resume_builds_of_others();

    builder.begin_shutdown(Instant::now() + Duration::from_secs(3600));
    let answer = complete_or_panic(waiting).await.expect("no panic");
    assert_eq!(answer.status, 429);
    assert!(
        answer
            .body
            .as_str()
            .is_some_and(|error| error.contains("another builder resumes the build")),
        "{}",
        answer.body
    );
    let solve = next_solve(&mut calls).await;
    assert_eq!(call_id_of(&solve), "waiting");
    solve.answer_with_digest("sha256:12");
    ask_until(&other, "waiting", |asked| asked.body["state"] == "success").await;

    let late = complete_or_panic(spawn_queued_build(&builder, "late"))
        .await
        .expect("no panic");
    assert_eq!(late.status, 429, "{}", late.body);
    let solve = next_solve(&mut calls).await;
    assert_eq!(call_id_of(&solve), "late");
    solve.answer_with_digest("sha256:13");

    assert!(!running.is_finished(), "what runs may finish");
    first.answer_with_digest("sha256:14");
    assert_eq!(complete_or_panic(running).await.expect("no panic").status, 200);
}

#[tokio::test]
async fn a_build_that_does_not_finish_before_the_end_of_a_shutdown_is_handed_back() {
    let registry = FakeRegistry::start().await;
    let (daemon, mut calls) = start_fake_daemon_with_empty_logs();
    let new_builder = || TestBuilder::new(daemon.clone()).with_record_store(&record_repository_of(&registry));
    let builder = new_builder();
    let running = spawn_queued_build(&builder, "running");
    let first = next_solve(&mut calls).await;

    builder.begin_shutdown(Instant::now());
    let answer = complete_or_panic(running).await.expect("no panic");
    assert_eq!(answer.status, 429);
    drop(first);
    let other = new_builder();
    ask_until(&other, "running", |asked| asked.body["state"] == "waiting").await;
    let _resuming = other.renew_sign_of_life_and_resume_builds_of_others();
    let solve = next_solve(&mut calls).await;
    assert_eq!(call_id_of(&solve), "running");
    assert_eq!(attempt_number_of(&solve), "2");
    solve.answer_with_digest("sha256:14");
    let asked = ask_until(&other, "running", |asked| asked.body["state"] == "success").await;
    assert_eq!(asked.body["digest"], "sha256:14");
}

#[tokio::test]
async fn a_build_that_cannot_be_resumed_is_reported_as_lost() {
    let registry = FakeRegistry::start().await;
    let (daemon, mut calls) = start_fake_daemon_with_empty_logs();
    let builder = builder_with_leases(daemon.clone(), &registry).without_body_copies();
    let mut killed = KillableBuilder::new(builder);
    killed.deliver_queued_build(CALL_ID, request_tar_with(json!({})));
    let _solve = next_solve(&mut calls).await;
    killed.kill();

    let (daemon, _calls) = daemon::start_fake_daemon();
    let other = builder_with_leases(daemon, &registry);
    let _resuming = other.renew_sign_of_life_and_resume_builds_of_others();
    let asked = ask_until(&other, CALL_ID, |asked| asked.body["state"] == "failed").await;
    let error = asked.body["error"].as_str().expect("a text");
    assert!(
        error.contains("too large for a record") && error.contains("send it again"),
        "{error}"
    );
}

#[tokio::test]
async fn a_build_is_given_up_after_four_builders_have_stopped_while_they_built_it() {
    let registry = FakeRegistry::start().await;
    let (daemon, mut calls) = start_fake_daemon_with_empty_logs();
    let new_builder = || KillableBuilder::new(builder_with_leases(daemon.clone(), &registry));
    let mut builder = new_builder();
    builder.deliver_queued_build(CALL_ID, request_tar_with(json!({})));
    for _ in 0..4 {
        let _solve = next_solve(&mut calls).await;
        builder.kill();
        builder = new_builder();
        builder.renew_sign_of_life_and_resume_builds_of_others();
    }

    let asked = ask_until(&builder.builder, CALL_ID, |asked| asked.body["state"] == "failed").await;
    let error = asked.body["error"].as_str().expect("a text");
    assert!(
        error.starts_with("every builder that ran this build stopped"),
        "{error}"
    );
}

/// Waits until the registry has got `count` requests whose lines contain `line_part`.
async fn wait_for_requests(registry: &FakeRegistry, line_part: &str, count: usize) {
    complete_or_panic(async {
        while count_requests(registry, line_part) < count {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Returns how many requests the registry has got whose lines contain `line_part`.
fn count_requests(registry: &FakeRegistry, line_part: &str) -> usize {
    let lines = registry.request_lines();
    lines.iter().filter(|line| line.contains(line_part)).count()
}

/// The part after the time in the index tag of a build that was handed back: an owner that no process has.
const HANDED_BACK_INDEX_TAG_PART: &str = "-0000000000000000-";

#[tokio::test]
async fn a_build_without_a_slot_stays_accepted_and_is_tried_again_by_any_builder() {
    let registry = FakeRegistry::start().await;
    let (daemon, mut calls) = leave_build_of_killed_builder_and_return_its_daemon(&registry).await;
    let slots = BuildSlots::new(1, Duration::from_millis(1), 16);
    let full = builder_with_leases(daemon.clone(), &registry).with_slots(slots);
    let running = spawn_queued_build(&full, "running");
    let first = next_solve(&mut calls).await;
    let _resuming = full.renew_sign_of_life_and_resume_builds_of_others();
    // It claims the build, gets no slot, hands the build back, and tries again.
    wait_for_requests(&registry, HANDED_BACK_INDEX_TAG_PART, 2).await;
    assert!(calls.solves.try_recv().is_err(), "there is no slot");

    let other = builder_with_leases(daemon, &registry);
    let _resuming_too = other.renew_sign_of_life_and_resume_builds_of_others();
    let solve = next_solve(&mut calls).await;
    assert_eq!(call_id_of(&solve), CALL_ID);
    solve.answer_with_digest("sha256:12");
    for builder in [&other, &full] {
        let asked = ask_until(builder, CALL_ID, |asked| asked.body["state"] != "waiting").await;
        assert_eq!(asked.body["state"], "success", "{}", asked.body);
    }
    first.answer_with_digest("sha256:13");
    assert_eq!(complete_or_panic(running).await.expect("no panic").status, 200);
}

#[tokio::test]
async fn a_queued_call_that_gets_no_slot_in_time_is_built_when_there_is_one() {
    let registry = FakeRegistry::start().await;
    let (daemon, mut calls) = start_fake_daemon_with_empty_logs();
    let slots = BuildSlots::new(1, Duration::from_millis(1), 16);
    let builder = builder_with_leases(daemon, &registry).with_slots(slots);
    let running = spawn_queued_build(&builder, "running");
    let first = next_solve(&mut calls).await;
    let answer = complete_or_panic(spawn_queued_build(&builder, "waiting")).await;
    let answer = answer.expect("no panic");
    assert_eq!(answer.status, 429);
    let text = answer.body.as_str().expect("a text");
    assert!(text.contains("the build stays accepted"), "{text}");

    first.answer_with_digest("sha256:12");
    assert_eq!(complete_or_panic(running).await.expect("no panic").status, 200);
    let _resuming = builder.renew_sign_of_life_and_resume_builds_of_others();
    let solve = next_solve(&mut calls).await;
    assert_eq!(call_id_of(&solve), "waiting");
    solve.answer_with_digest("sha256:13");
    let asked = ask_until(&builder, "waiting", |asked| asked.body["state"] == "success").await;
    assert_eq!(asked.body["digest"], "sha256:13");
    let left = registry.tags("slipway/records");
    let entries = left.iter().filter(|tag| tag.starts_with("i-"));
    assert_eq!(
        entries.count(),
        2,
        "what was replaced is deleted: one entry for each build is left in {left:?}"
    );
}

#[tokio::test]
async fn a_call_is_not_rejected_while_the_registry_may_still_store_its_acceptance() {
    let registry = FakeRegistry::start().await;
    let (daemon, mut calls) = start_fake_daemon_with_empty_logs();
    let new_builder = || {
        let times = LeaseTimes {
            stale_after: STALE_AFTER,
            settle: Duration::from_millis(10),
            search: Duration::from_millis(10),
            exchange: Duration::from_millis(500),
            ..LeaseTimes::default()
        };
        TestBuilder::new(daemon.clone()).with_record_store_and_times(&record_repository_of(&registry), times)
    };
    let builder = new_builder().with_slots(BuildSlots::new(1, Duration::from_millis(1), 16));
    let running = spawn_queued_build(&builder, "running");
    let first = next_solve(&mut calls).await;
    let part = "PUT /v2/slipway/records/manifests/r-";
    let before = count_requests(&registry, part);
    registry.set_behaviour(RegistryBehaviour::Stalling(part));
    let late = spawn_queued_build(&builder, "late");
    // The acceptance, and what hands the build back after it got no slot.
    wait_for_requests(&registry, part, before + 2).await;
    assert!(
        !late.is_finished(),
        "nobody knows whether another builder runs it"
    );

    registry.set_behaviour(RegistryBehaviour::Open);
    let answer = complete_or_panic(late).await.expect("no panic");
    let text = answer.body.as_str().expect("a text");
    assert!(
        answer.status == 429 && text.contains("the build stays accepted"),
        "{text}"
    );
    let other = new_builder();
    let _resuming = other.renew_sign_of_life_and_resume_builds_of_others();
    let solve = next_solve(&mut calls).await;
    assert_eq!(call_id_of(&solve), "late");
    solve.answer_with_digest("sha256:12");
    ask_until(&other, "late", |asked| asked.body["state"] == "success").await;
    first.answer_with_digest("sha256:13");
    complete_or_panic(running).await.expect("no panic");
}

/// The end of a build is written as often as necessary: once it were given up, the build would be resumed.
#[tokio::test]
async fn an_end_that_could_not_be_recorded_does_not_begin_the_build_again() {
    let registry = FakeRegistry::start().await;
    let (daemon, mut calls) = start_fake_daemon_with_empty_logs();
    let times = LeaseTimes {
        stale_after: STALE_AFTER,
        settle: Duration::from_millis(10),
        search: Duration::from_millis(10),
        end_pause: Duration::from_millis(1),
        ..LeaseTimes::default()
    };
    let builder =
        TestBuilder::new(daemon).with_record_store_and_times(&record_repository_of(&registry), times);
    let running = spawn_queued_build(&builder, CALL_ID);
    let solve = next_solve(&mut calls).await;
    let part = "PUT /v2/slipway/records/manifests/r-";
    let before = count_requests(&registry, part);
    registry.set_behaviour(RegistryBehaviour::Failing(part, 503));
    solve.answer_with_error(tonic::Status::unknown("exit code: 1"));
    let _resuming = builder.renew_sign_of_life_and_resume_builds_of_others();
    // Twice as many attempts as the end of a build has while too many others wait.
    wait_for_requests(&registry, part, before + 10).await;
    let (daemon, _calls) = start_fake_daemon_with_empty_logs();
    let later = builder_with_leases(daemon, &registry);
    registry.set_behaviour(RegistryBehaviour::Open);
    ask_until(&later, CALL_ID, |asked| asked.body["state"] == "failed").await;
    assert_eq!(complete_or_panic(running).await.expect("no panic").status, 422);
    assert!(calls.solves.try_recv().is_err(), "the build has ended");
}

#[tokio::test]
async fn builds_are_found_in_a_registry_that_lists_tags_only_after_one_that_exists() {
    let registry = FakeRegistry::start().await;
    let (daemon, mut calls) = leave_build_of_killed_builder_and_return_its_daemon(&registry).await;
    for prefix in ["a-", "z-"] {
        registry.add_tags_without_manifests("slipway/records", prefix, 1200);
    }
    registry.set_behaviour(RegistryBehaviour::ListingAfterExistingTags);
    let other = builder_with_leases(daemon, &registry);
    let list = ask(&other, Method::GET, "/builds").await.body;
    assert_eq!(list["builds"][0]["id"], CALL_ID, "{list}");
    let _resuming = other.renew_sign_of_life_and_resume_builds_of_others();
    next_solve(&mut calls).await.answer_with_digest("sha256:12");
    ask_until(&other, CALL_ID, |asked| asked.body["state"] == "success").await;
}

#[tokio::test]
async fn the_end_of_a_process_waits_for_resumed_builds_which_it_may_hand_back_any_number_of_times() {
    let registry = FakeRegistry::start().await;
    let (daemon, mut calls) = leave_build_of_killed_builder_and_return_its_daemon(&registry).await;
    for _ in 0..5 {
        let builder = builder_with_leases(daemon.clone(), &registry);
        let _resuming = builder.renew_sign_of_life_and_resume_builds_of_others();
        let mut solve = next_solve(&mut calls).await;
        // The process ends too soon for the build.
        builder.begin_shutdown(Instant::now());
        builder.wait_until_background_work_ended().await;
        complete_or_panic(solve.reply.closed()).await;
    }

    let builder = builder_with_leases(daemon, &registry);
    let _resuming = builder.renew_sign_of_life_and_resume_builds_of_others();
    let solve = next_solve(&mut calls).await;
    builder.begin_shutdown(Instant::now() + Duration::from_secs(3600));
    solve.answer_with_digest("sha256:12");
    builder.wait_until_background_work_ended().await;
    let asked = ask_until(&builder, CALL_ID, |asked| asked.body["state"] == "success").await;
    assert_eq!(asked.body["digest"], "sha256:12");
}

#[tokio::test]
async fn the_end_of_a_process_waits_for_queued_builds_whose_caller_has_gone() {
    let (daemon, mut calls) = start_fake_daemon_with_empty_logs();
    let builder = TestBuilder::new(daemon);
    let delivery = spawn_queued_build(&builder, CALL_ID);
    let solve = next_solve(&mut calls).await;
    delivery.abort();
    delivery.await.expect_err("the caller has left");
    builder.begin_shutdown(Instant::now() + Duration::from_secs(3600));
    solve.answer_with_digest("sha256:12");
    builder.wait_until_background_work_ended().await;
    let asked = ask(&builder, Method::GET, &format!("/builds/{CALL_ID}")).await;
    assert_eq!(asked.body["state"], "success", "{}", asked.body);
}

/// Leaves the record of an accepted build of a killed builder in `registry`. Returns the build's daemon and its calls.
async fn leave_build_of_killed_builder_and_return_its_daemon(
    registry: &FakeRegistry,
) -> (Daemon, DaemonCalls) {
    let (daemon, mut calls) = start_fake_daemon_with_empty_logs();
    let mut killed = KillableBuilder::new(builder_with_leases(daemon.clone(), registry));
    killed.deliver_queued_build(CALL_ID, request_tar_with(json!({})));
    let _solve = next_solve(&mut calls).await;
    killed.kill();
    (daemon, calls)
}

#[tokio::test]
async fn a_registry_that_fails_during_a_claim_delays_the_build_and_does_not_lose_it() {
    for part in [
        "GET /v2/slipway/records/manifests/sha256:",
        "PUT /v2/slipway/records/manifests/i-",
        "PUT /v2/slipway/records/manifests/r-",
        "GET /v2/slipway/records/tags/list",
    ] {
        let registry = FakeRegistry::start().await;
        let (daemon, mut calls) = leave_build_of_killed_builder_and_return_its_daemon(&registry).await;
        let before = registry.request_lines().len();
        registry.set_behaviour(RegistryBehaviour::Failing(part, 503));
        let other = builder_with_leases(daemon, &registry);
        let _resuming = other.renew_sign_of_life_and_resume_builds_of_others();
        complete_or_panic(async {
            while !registry.request_lines()[before..]
                .iter()
                .any(|line| line.contains(part))
            {
                tokio::task::yield_now().await;
            }
        })
        .await;
        registry.set_behaviour(RegistryBehaviour::Open);
        next_solve(&mut calls).await.answer_with_digest("sha256:12");
        ask_until(&other, CALL_ID, |asked| asked.body["state"] == "success").await;
    }
}

#[tokio::test]
async fn builds_are_resumed_though_the_registry_redirects_blobs_to_an_unreachable_address() {
    let registry = FakeRegistry::start().await;
    let (daemon, mut calls) = leave_build_of_killed_builder_and_return_its_daemon(&registry).await;
    registry.set_behaviour(RegistryBehaviour::Redirecting("http://127.0.0.1:9".into()));
    let other = builder_with_leases(daemon, &registry);
    let _resuming = other.renew_sign_of_life_and_resume_builds_of_others();
    next_solve(&mut calls).await.answer_with_digest("sha256:12");
    ask_until(&other, CALL_ID, |asked| asked.body["state"] == "success").await;
}

#[tokio::test]
async fn a_build_whose_request_the_registry_has_lost_is_reported_as_lost() {
    let registry = FakeRegistry::start().await;
    let (_daemon, _calls) = leave_build_of_killed_builder_and_return_its_daemon(&registry).await;
    registry.delete_first_manifest_with_tag_prefix("slipway/records", "b-");
    let (daemon, _calls) = start_fake_daemon_with_empty_logs();
    let other = builder_with_leases(daemon, &registry);
    let _resuming = other.renew_sign_of_life_and_resume_builds_of_others();
    let asked = ask_until(&other, CALL_ID, |asked| asked.body["state"] == "failed").await;
    let error = asked.body["error"].as_str().expect("a text");
    assert!(error.contains("does not have its request any more"), "{error}");
}

#[tokio::test]
async fn a_build_is_resumed_whose_hand_back_was_cut_off() {
    let registry = FakeRegistry::start().await;
    let (daemon, mut calls) = start_fake_daemon_with_empty_logs();
    let builder = builder_with_leases(daemon.clone(), &registry);
    let running = spawn_queued_build(&builder, CALL_ID);
    let first = next_solve(&mut calls).await;
    // Only the entry in the index says that the build was handed back.
    let part = "PUT /v2/slipway/records/manifests/r-";
    registry.set_behaviour(RegistryBehaviour::Failing(part, 503));
    builder.begin_shutdown(Instant::now());
    complete_or_panic(running).await.expect("no panic");
    drop(first);
    registry.set_behaviour(RegistryBehaviour::Open);

    let other = builder_with_leases(daemon, &registry);
    let _resuming = other.renew_sign_of_life_and_resume_builds_of_others();
    next_solve(&mut calls).await.answer_with_digest("sha256:12");
    ask_until(&other, CALL_ID, |asked| asked.body["state"] == "success").await;
}

#[tokio::test]
async fn a_tenant_at_max_builds_does_not_delay_the_resumption_of_builds_of_others() {
    let registry = FakeRegistry::start().await;
    let (daemon, mut calls) = start_fake_daemon_with_empty_logs();
    let policy = json!({"tenants": {
        "acme": {"keys": ["acme-payload"], "maxBuilds": 1},
        "globex": {"keys": ["globex-payload"]},
    }});
    let new_builder = || {
        let builder = builder_with_leases(daemon.clone(), &registry).with_policy(&policy);
        builder.write_secret("acme-payload", "the payload key of acme");
        builder.write_secret("globex-payload", "the payload key of globex");
        builder
    };
    let mut killed = KillableBuilder::new(new_builder());
    let mut solves = Vec::new();
    for (key, id) in [
        ("the payload key of acme", "of-acme"),
        ("the payload key of globex", "of-globex"),
    ] {
        let builder = killed.builder.with_call_id(id);
        let build =
            async move { deliver_queued_build_signed_with(&builder, key, request_tar_with(json!({}))).await };
        killed.runtime.as_ref().expect("it lives").spawn(build);
        solves.push(next_solve(&mut calls).await);
    }
    killed.kill();
    drop(solves);

    let other = new_builder().with_slots(BuildSlots::new(2, Duration::ZERO, 0));
    let busy = other.with_call_id("busy");
    let busy = tokio::spawn(async move {
        deliver_queued_build_signed_with(
            &busy,
            "the payload key of acme",
            request_tar_with(json!({"tags": ["2"]})),
        )
        .await
    });
    let running = next_solve(&mut calls).await;
    let _resuming = other.renew_sign_of_life_and_resume_builds_of_others();
    let solve = next_solve(&mut calls).await;
    assert_eq!(call_id_of(&solve), "of-globex");
    solve.answer_with_digest("sha256:12");
    running.answer_with_digest("sha256:13");
    complete_or_panic(busy).await.expect("no panic");
    let solve = next_solve(&mut calls).await;
    assert_eq!(call_id_of(&solve), "of-acme");
    solve.answer_with_digest("sha256:14");
}
