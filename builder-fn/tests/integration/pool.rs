//! Tests of a pool of daemons: which daemon a build goes to, that it is built once, and what the loss of a daemon does.

use std::collections::HashSet;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::moby::buildkit::v1::{SolveRequest, StatusResponse};
use builder_fn::buildkit::{
    Daemon, DaemonHashAndBuildCount, DaemonPool, DaemonResolver, KnownAndAnsweringDaemonCounts,
    PlacementHash, ResolveFuture, choose_daemon,
};
use builder_fn::ready::{describe_pool, probe_periodically};
use function_host::http::Method;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::builds::{answer_statuses_holding_back_the_last, ask};
use crate::complete_or_panic;
use crate::daemon::{self, DaemonCalls, SolveCall};
use crate::persistence::deliver_queued_build;
use crate::setting::{AnswerStatusAndBody, TestBuilder, request_tar_with};

/// The image that builds of these tests make, unless a test needs several.
const IMAGE: &str = "registry:5000/hello:1";

/// Fake daemons, each with a log of one empty response for every build.
struct FakeDaemons {
    daemons: Vec<Daemon>,
    calls: Vec<DaemonCalls>,
}

impl FakeDaemons {
    fn start(count: usize) -> Self {
        let mut fakes = Self {
            daemons: Vec::new(),
            calls: Vec::new(),
        };
        for _ in 0..count {
            fakes.add_daemon();
        }
        fakes
    }

    /// Starts one more daemon, which only builders that are created afterwards have in their pool.
    fn add_daemon(&mut self) {
        let (daemon, mut calls) = daemon::start_fake_daemon_at(&daemon_address(self.daemons.len()));
        answer_statuses_holding_back_the_last(&mut calls, vec![StatusResponse::default()]).send_replace(true);
        self.daemons.push(daemon);
        self.calls.push(calls);
    }

    fn pool(&self) -> DaemonPool {
        DaemonPool::of_daemons("the pool in this test", self.daemons.clone()).expect("there are daemons")
    }

    fn new_builder(&self) -> TestBuilder {
        TestBuilder::new(self.pool())
    }

    /// Waits for a solve at any of the daemons, and returns the daemon's number with it.
    async fn next_solve(&mut self) -> (usize, SolveCall) {
        let receiving = poll_fn(|context| {
            for (number, calls) in self.calls.iter_mut().enumerate() {
                if let Poll::Ready(Some(solve)) = calls.solves.poll_recv(context) {
                    return Poll::Ready((number, solve));
                }
            }
            Poll::Pending
        });
        complete_or_panic(receiving).await
    }

    /// Ends a daemon: its connections are cut, and new ones refused.
    fn kill(&mut self, number: usize) {
        let (_, calls) = daemon::start_fake_daemon();
        self.calls[number] = calls;
    }

    fn assert_no_further_solve(&mut self) {
        for calls in &mut self.calls {
            assert!(calls.solves.try_recv().is_err(), "a build is solved twice");
        }
    }
}

fn daemon_address(number: usize) -> String {
    format!("tcp://buildkit-{number}:1234")
}

/// Returns the number of the daemon that builds of `image` prefer among the first `daemon_count`.
fn preferred_daemon(image: &str, daemon_count: usize) -> usize {
    let daemons: Vec<_> = (0..daemon_count)
        .map(|number| DaemonHashAndBuildCount {
            hash: PlacementHash::of(&[&daemon_address(number)]),
            running: 0,
        })
        .collect();
    let repository = image.rsplit_once(':').expect("a tag").0;
    let image = PlacementHash::of(&["", repository]);
    choose_daemon(&daemons, image, 4).expect("a daemon").preferred
}

/// Returns an image whose builds prefer the daemon `daemon_number` of the first `daemon_count`.
fn image_preferring(daemon_number: usize, daemon_count: usize) -> String {
    let mut images = (0..).map(|suffix| format!("registry:5000/function-{suffix}:1"));
    images
        .find(|image| preferred_daemon(image, daemon_count) == daemon_number)
        .expect("endless")
}

fn request_tar_for_image(image: &str) -> Vec<u8> {
    request_tar_with(json!({ "image": image }))
}

fn spawn_build(builder: &TestBuilder, call_id: &str, tar: Vec<u8>) -> JoinHandle<AnswerStatusAndBody> {
    let builder = builder.with_call_id(call_id);
    tokio::spawn(async move { builder.send_signed_build(tar).await })
}

fn spawn_queued_build(builder: &TestBuilder, call_id: &str, tar: Vec<u8>) -> JoinHandle<AnswerStatusAndBody> {
    let builder = builder.with_call_id(call_id);
    tokio::spawn(async move { deliver_queued_build(&builder, tar).await })
}

async fn await_success_and_return_digest(build: JoinHandle<AnswerStatusAndBody>) -> String {
    let answer = complete_or_panic(build).await.expect("no panic");
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    answer.body["digest"].as_str().expect("a digest").to_owned()
}

#[tokio::test]
async fn builds_of_one_image_go_to_one_daemon_from_every_builder_and_images_are_spread() {
    let mut fakes = FakeDaemons::start(3);
    let builders = [fakes.new_builder(), fakes.new_builder()];
    let mut used = HashSet::new();
    for number in 0..8 {
        let image = format!("registry:5000/function-{number}:1");
        for (at, builder) in builders.iter().enumerate() {
            let build = spawn_build(builder, &format!("{number}-{at}"), request_tar_for_image(&image));
            let (daemon, solve) = fakes.next_solve().await;
            assert_eq!(daemon, preferred_daemon(&image, 3), "{image}");
            used.insert(daemon);
            solve.answer_with_digest("sha256:12");
            await_success_and_return_digest(build).await;
        }
    }
    assert!(used.len() > 1, "{used:?}");
}

#[tokio::test]
async fn a_busy_daemon_overflows_to_another_one() {
    let mut fakes = FakeDaemons::start(3);
    let builders = [fakes.new_builder(), fakes.new_builder()];
    let mut running = Vec::new();
    for number in 0..4 {
        // Builds of other builders count too.
        let build = spawn_build(
            &builders[number % 2],
            &number.to_string(),
            request_tar_for_image(IMAGE),
        );
        let (daemon, solve) = fakes.next_solve().await;
        assert_eq!(daemon, preferred_daemon(IMAGE, 3));
        running.push((build, solve));
    }

    let fifth = spawn_build(&builders[0], "fifth", request_tar_for_image(IMAGE));
    let (daemon, solve) = fakes.next_solve().await;
    assert_ne!(daemon, preferred_daemon(IMAGE, 3));
    solve.answer_with_digest("sha256:12");
    await_success_and_return_digest(fifth).await;
    for (build, solve) in running {
        solve.answer_with_digest("sha256:12");
        await_success_and_return_digest(build).await;
    }

    let sixth = spawn_build(&builders[0], "sixth", request_tar_for_image(IMAGE));
    let (daemon, solve) = fakes.next_solve().await;
    assert_eq!(daemon, preferred_daemon(IMAGE, 3), "it is not busy any more");
    solve.answer_with_digest("sha256:12");
    await_success_and_return_digest(sixth).await;
}

#[tokio::test]
async fn a_daemon_that_refuses_connections_is_passed_over() {
    let mut fakes = FakeDaemons::start(3);
    let builder = fakes.new_builder();
    fakes.kill(preferred_daemon(IMAGE, 3));
    for call in ["first", "second"] {
        let build = spawn_build(&builder, call, request_tar_for_image(IMAGE));
        let (daemon, solve) = fakes.next_solve().await;
        assert_ne!(daemon, preferred_daemon(IMAGE, 3));
        solve.answer_with_digest("sha256:12");
        await_success_and_return_digest(build).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_daemon_is_asked_twice_for_300_milliseconds_and_does_not_delay_the_next_build() {
    let mut fakes = FakeDaemons::start(3);
    let dead = preferred_daemon(IMAGE, 3);
    fakes.daemons[dead] = daemon::never_connecting_daemon_at(&daemon_address(dead));
    let builder = fakes.new_builder();
    for (call, delay) in [("first", 600), ("second", 0)] {
        let start = Instant::now();
        let build = spawn_build(&builder, call, request_tar_for_image(IMAGE));
        let (daemon, solve) = fakes.next_solve().await;
        assert_ne!(daemon, dead);
        assert_eq!(start.elapsed().as_millis(), delay, "{call}");
        solve.answer_with_digest("sha256:12");
        await_success_and_return_digest(build).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_build_fails_with_502_if_no_daemon_answers() {
    let daemons = (0..3).map(|number| daemon::never_connecting_daemon_at(&daemon_address(number)));
    let pool = DaemonPool::of_daemons("the pool in this test", daemons).expect("there are daemons");
    let builder = TestBuilder::new(pool);

    let answer = builder.send_signed_build(request_tar_for_image(IMAGE)).await;

    assert_eq!(answer.status, 502);
    let error = answer.body["error"].as_str().expect("an error");
    let dead = daemon_address(preferred_daemon(IMAGE, 3));
    assert!(
        error.contains(&format!("BuildKit at {dead} does not answer")),
        "{error}"
    );
}

#[tokio::test]
async fn a_call_that_two_builders_get_is_built_once_also_with_a_daemon_added_in_between() {
    let mut fakes = FakeDaemons::start(3);
    let before = fakes.new_builder();
    fakes.add_daemon();
    let after = fakes.new_builder();
    // The second builder prefers the new daemon.
    let tar = request_tar_for_image(&image_preferring(3, 4));
    let first = spawn_queued_build(&before, "call", tar.clone());
    let (daemon, solve) = fakes.next_solve().await;
    assert_ne!(daemon, 3);

    let second = spawn_queued_build(&after, "call", tar.clone());
    // Both builders have a session for the build.
    fakes.calls[daemon].next_session_call().await;
    complete_or_panic(fakes.calls[daemon].next_session_call()).await;
    solve.answer_with_digest("sha256:12");
    for build in [first, second] {
        assert_eq!(await_success_and_return_digest(build).await, "sha256:12");
    }
    let third = spawn_queued_build(&after, "call", tar);
    assert_eq!(await_success_and_return_digest(third).await, "sha256:12");
    fakes.assert_no_further_solve();
    for (number, calls) in fakes.calls.iter().enumerate() {
        if number != daemon {
            assert_eq!(
                calls.history.count_of_records_daemon_decoded(),
                0,
                "{number} has no record of the call"
            );
        }
    }
}

#[tokio::test]
async fn a_new_build_makes_no_daemon_decode_its_records() {
    let mut fakes = FakeDaemons::start(3);
    let builder = fakes.new_builder();
    for calls in &fakes.calls {
        calls.add_finished_build("earlier", Ok("sha256:12"));
    }
    let build = spawn_queued_build(&builder, "call", request_tar_for_image(IMAGE));
    let (_, solve) = fakes.next_solve().await;
    solve.answer_with_digest("sha256:12");
    await_success_and_return_digest(build).await;
    for calls in &fakes.calls {
        assert_eq!(calls.history.count_of_records_daemon_decoded(), 0);
    }
}

#[tokio::test]
async fn a_signed_request_is_accepted_once_by_builders_that_prefer_different_daemons() {
    let tar_signed_now = || {
        let now = jiff::Timestamp::try_from(SystemTime::now()).expect("a time");
        request_tar_with(json!({"image": image_preferring(3, 4), "submittedAt": now.to_string()}))
    };
    for outcome in [Ok("sha256:12"), Err("exit code: 1")] {
        let mut fakes = FakeDaemons::start(3);
        let before = fakes
            .new_builder()
            .with_max_age_of_requests_with_submitted_at(Duration::from_secs(600));
        fakes.add_daemon();
        let after = fakes
            .new_builder()
            .with_max_age_of_requests_with_submitted_at(Duration::from_secs(600));
        let tar = tar_signed_now();
        let first = spawn_build(&before, "first", tar.clone());
        let (_, solve) = fakes.next_solve().await;
        match outcome {
            Ok(digest) => solve.answer_with_digest(digest),
            Err(error) => solve.answer_with_error(tonic::Status::unknown(error)),
        }
        complete_or_panic(first).await.expect("no panic");

        let second = spawn_build(&after, "second", tar);
        let answer = complete_or_panic(second).await.expect("no panic");
        assert_eq!(answer.status, 409, "{outcome:?}: {:?}", answer.body);
        fakes.assert_no_further_solve();
    }
}

#[tokio::test]
async fn a_failed_call_is_built_again_on_its_preferred_daemon_under_the_next_reference() {
    let mut fakes = FakeDaemons::start(3);
    let before = fakes.new_builder();
    fakes.add_daemon();
    let after = fakes.new_builder();
    let tar = request_tar_for_image(&image_preferring(3, 4));
    let first = spawn_queued_build(&before, "call", tar.clone());
    let (_, solve) = fakes.next_solve().await;
    let reference = solve.request.r#ref.clone();
    solve.answer_with_error(tonic::Status::unknown("exit code: 1"));
    assert_eq!(complete_or_panic(first).await.expect("no panic").status, 422);

    let second = spawn_queued_build(&after, "call", tar);
    let (daemon, solve) = fakes.next_solve().await;
    assert_eq!(
        (daemon, solve.request.r#ref.as_str()),
        (3, format!("{reference}-2").as_str())
    );
    solve.answer_with_digest("sha256:12");
    await_success_and_return_digest(second).await;
}

/// Returns the daemon among the first two that gives way if both run the build `reference`.
fn which_of_first_two_daemons_gives_way(reference: &str) -> usize {
    let build = PlacementHash::of(&[reference]);
    let score = |number| PlacementHash::of(&[&daemon_address(number)]).score(build);
    usize::from(score(0) > score(1))
}

#[tokio::test(start_paused = true)]
async fn of_two_builders_that_begin_a_call_at_the_same_moment_on_two_daemons_one_gives_way() {
    let mut fakes = FakeDaemons::start(2);
    let builder = fakes.new_builder();
    let mut seen = HashSet::new();
    for number in 0.. {
        let call = number.to_string();
        let build = spawn_queued_build(&builder, &call, request_tar_for_image(IMAGE));
        let (own, mut solve) = fakes.next_solve().await;
        let other = 1 - own;
        let reference = solve.request.r#ref.clone();
        // The other builder has asked before this solve, and its own solve begins after it.
        let request = SolveRequest {
            r#ref: reference.clone(),
            frontend_attrs: solve.request.frontend_attrs.clone(),
            ..SolveRequest::default()
        };
        let history = fakes.calls[other].history.clone();
        let begun = history.record_start(&request).expect("it is not taken");
        let gives_way = which_of_first_two_daemons_gives_way(&reference) == own;
        if gives_way {
            complete_or_panic(solve.reply.closed()).await;
            begun.record_outcome(Ok("sha256:other"));
        } else {
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert!(!solve.reply.is_closed(), "it has precedence");
            drop(begun);
            solve.answer_with_digest("sha256:own");
        }
        let expected = if gives_way { "sha256:other" } else { "sha256:own" };
        assert_eq!(await_success_and_return_digest(build).await, expected);
        seen.insert(gives_way);
        if seen.len() == 2 {
            return;
        }
    }
}

#[tokio::test]
async fn a_queued_build_on_a_lost_daemon_goes_to_another_one_as_one_retry() {
    let mut fakes = FakeDaemons::start(3);
    let builder = fakes.new_builder().with_retry_time(Duration::from_secs(120));
    let build = spawn_queued_build(&builder, "call", request_tar_for_image(IMAGE));
    let (lost, _solve) = fakes.next_solve().await;

    fakes.kill(lost);

    let (daemon, solve) = fakes.next_solve().await;
    assert_ne!(daemon, lost);
    solve.answer_with_digest("sha256:12");
    await_success_and_return_digest(build).await;
    let asked = ask(&builder, Method::GET, "/builds/call").await;
    assert_eq!(asked.body["attempts"], 2, "{}", asked.body);
}

#[tokio::test]
async fn every_builder_answers_questions_about_builds_on_every_daemon() {
    let mut fakes = FakeDaemons::start(3);
    let (builder, other) = (fakes.new_builder(), fakes.new_builder());
    let mut builds = Vec::new();
    for number in 0..3 {
        let tar = request_tar_for_image(&image_preferring(number, 3));
        let build = spawn_queued_build(&builder, &format!("call-{number}"), tar);
        let (daemon, solve) = fakes.next_solve().await;
        assert_eq!(daemon, number);
        builds.push((build, solve));
    }
    let list = ask(&other, Method::GET, "/builds?state=running").await.body;
    assert_eq!(list["builds"].as_array().map(Vec::len), Some(3), "{list}");
    assert!(list.get("incomplete").is_none(), "{list}");
    for number in 0..3 {
        let asked = ask(&other, Method::GET, &format!("/builds/call-{number}")).await;
        assert_eq!((asked.status, &asked.body["state"]), (200, &json!("running")));
    }

    // The marker's solve is answered at every daemon.
    let cancelling = tokio::spawn(async move { ask(&other, Method::DELETE, "/builds/call-1").await });
    for _ in 0..3 {
        let (_, marker) = fakes.next_solve().await;
        assert_eq!(marker.request.frontend_attrs["slipway.cancel"], "call-1");
        marker.answer_with_digest("");
    }
    let cancelled = complete_or_panic(cancelling).await.expect("no panic");
    assert!([200, 202].contains(&cancelled.status), "{:?}", cancelled.body);
    for (number, (build, mut solve)) in builds.into_iter().enumerate() {
        match number {
            1 => {
                complete_or_panic(solve.reply.closed()).await;
                assert_eq!(complete_or_panic(build).await.expect("no panic").status, 409);
            }
            _ => {
                solve.answer_with_digest("sha256:12");
                await_success_and_return_digest(build).await;
            }
        }
    }
}

#[tokio::test]
async fn the_list_of_builds_says_that_a_daemon_could_not_be_asked() {
    let mut fakes = FakeDaemons::start(2);
    let builder = fakes.new_builder();
    fakes.kill(1);
    let list = ask(&builder, Method::GET, "/builds").await.body;
    let incomplete = list["incomplete"].as_str().expect("a note");
    assert!(incomplete.contains(&daemon_address(1)), "{incomplete}");
}

/// A resolver whose daemons a test changes.
#[derive(Clone, Default)]
struct ChangingResolver(Arc<Mutex<Vec<Daemon>>>);

impl DaemonResolver for ChangingResolver {
    fn resolve_daemons(&self) -> ResolveFuture {
        let daemons = self.0.lock().expect("no panic").clone();
        Box::pin(async move { Ok(daemons) })
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_change_of_the_resolved_addresses_builds_go_to_the_new_daemons() {
    let mut fakes = FakeDaemons::start(3);
    let resolver = ChangingResolver::default();
    *resolver.0.lock().expect("no panic") = fakes.daemons[..1].to_vec();
    let by_name = daemon::never_connecting_daemon();
    let pool = DaemonPool::of_resolved_daemons("the pool in this test", by_name, resolver.clone());
    let builder = TestBuilder::new(pool);
    let build = spawn_build(&builder, "first", request_tar_for_image(IMAGE));
    let (daemon, solve) = fakes.next_solve().await;
    assert_eq!(daemon, 0);
    solve.answer_with_digest("sha256:12");
    await_success_and_return_digest(build).await;

    *resolver.0.lock().expect("no panic") = fakes.daemons[1..].to_vec();
    tokio::time::sleep(Duration::from_secs(5)).await;

    let build = spawn_build(&builder, "second", request_tar_for_image(IMAGE));
    let (daemon, solve) = fakes.next_solve().await;
    assert_ne!(daemon, 0);
    solve.answer_with_digest("sha256:12");
    await_success_and_return_digest(build).await;
}

#[tokio::test(start_paused = true)]
async fn the_readiness_probe_counts_the_daemons_that_answer() {
    let mut fakes = FakeDaemons::start(3);
    let (sender, mut sizes) = watch::channel(KnownAndAnsweringDaemonCounts::default());
    let probing = tokio::spawn(probe_periodically(fakes.pool(), sender));
    for answering in [3, 2, 0] {
        for number in answering..3 {
            fakes.kill(number);
        }
        let size = KnownAndAnsweringDaemonCounts {
            known: 3,
            answering,
            outdated: 0,
        };
        complete_or_panic(sizes.wait_for(|found| *found == size))
            .await
            .expect("it probes");
        assert_eq!(
            describe_pool(size),
            format!("{answering} of 3 BuildKit daemons answer\n")
        );
    }
    probing.abort();
}
