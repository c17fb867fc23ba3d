//! Tests of daemons that are bound to platforms: which daemon a build goes to, and builds that are split.

use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::StatusResponse;
use builder_fn::buildkit::{Daemon, DaemonPool, Platform};
use function_host::http::Method;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::builds::{
    answer_statuses_holding_back_the_last, ask, read_numbered_lines_and_terminal_record,
    statuses_of_step_with_output_lines,
};
use crate::complete_or_panic;
use crate::daemon::{self, DaemonCalls, SolveCall};
use crate::persistence::deliver_queued_build;
use crate::registry::{FakeRegistry, RegistryBehaviour, digest_of};
use crate::setting::{AnswerStatusAndBody, CALL_ID, TestBuilder, request_tar_with};

/// The number of the first line of a split build's second part.
const FIRST_LINE_OF_SECOND_PART: u64 = 1_000_000_000_001;

/// Fake daemons with bindings, and a fake registry.
struct Setup {
    daemons: Vec<Daemon>,
    calls: Vec<DaemonCalls>,
    /// The switches that let the logs of the daemons' builds end.
    log_ends: Vec<watch::Sender<bool>>,
    registry: FakeRegistry,
}

impl Setup {
    /// Starts a daemon for each of `bindings`, which names a platform, or nothing for a daemon that is not bound. The
    /// log of each build has three lines of output with the number of its daemon.
    async fn start(bindings: &[&str]) -> Self {
        let mut setup = Self {
            daemons: Vec::new(),
            calls: Vec::new(),
            log_ends: Vec::new(),
            registry: FakeRegistry::start().await,
        };
        for (number, binding) in bindings.iter().enumerate() {
            let (daemon, mut calls) = daemon::start_fake_daemon_at(&format!("tcp://buildkit-{number}:1234"));
            let responses: Vec<StatusResponse> =
                statuses_of_step_with_output_lines(3, &format!("daemon {number} line"));
            let end = answer_statuses_holding_back_the_last(&mut calls, responses);
            end.send_replace(true);
            setup.daemons.push(daemon.bound_to(Platform::parse(binding)));
            setup.calls.push(calls);
            setup.log_ends.push(end);
        }
        setup
    }

    fn new_builder(&self) -> TestBuilder {
        let pool = DaemonPool::of_daemons("the pool in this test", self.daemons.clone());
        TestBuilder::new(pool.expect("there are daemons"))
            .with_manifests_in_registries()
            .with_retry_time(Duration::from_secs(120))
    }

    fn image(&self) -> String {
        format!("{}/hello:1", self.registry.host)
    }

    fn request_tar(&self, platforms: &[&str]) -> Vec<u8> {
        request_tar_with(json!({"image": self.image(), "platforms": platforms}))
    }

    async fn next_solve(&mut self, daemon: usize) -> SolveCall {
        complete_or_panic(self.calls[daemon].solves.recv())
            .await
            .expect("a solve")
    }

    fn assert_no_further_solve(&mut self) {
        for calls in &mut self.calls {
            assert!(calls.solves.try_recv().is_err(), "a part is solved twice");
        }
    }

    /// Stores the index of an image for `architecture`, as a daemon that pushes it by digest does, and returns its
    /// digest.
    fn push_part(&self, architecture: &str) -> String {
        let image = json!({
            "digest": digest_of(architecture.as_bytes()), "size": 1,
            "platform": {"os": "linux", "architecture": architecture},
        });
        let attestation = json!({
            "digest": digest_of(format!("attestation of {architecture}").as_bytes()), "size": 1,
            "platform": {"os": "unknown", "architecture": "unknown"},
        });
        let index = json!({"schemaVersion": 2, "manifests": [image, attestation]});
        self.registry.store_manifest("hello", &index.to_string())
    }

    /// Returns the index under the image's tag, and its digest; `None` if the tag does not exist.
    fn tagged_index(&self) -> Option<(Value, String)> {
        let content = self.registry.tagged_manifest("hello", "1")?;
        Some((
            serde_json::from_slice(&content).expect("JSON"),
            digest_of(&content),
        ))
    }

    /// Answers the solves of both parts of a build on the first two daemons.
    async fn let_both_parts_succeed(&mut self) {
        for (daemon, architecture) in [(0, "amd64"), (1, "arm64")] {
            let digest = self.push_part(architecture);
            self.next_solve(daemon).await.answer_with_digest(&digest);
        }
    }
}

/// The platforms of a build that is split between an unbound daemon and one that is bound to `linux/arm64`.
const BOTH: [&str; 2] = ["linux/amd64", "linux/arm64"];

fn spawn_build(builder: &TestBuilder, call_id: &str, tar: Vec<u8>) -> JoinHandle<AnswerStatusAndBody> {
    let builder = builder.with_call_id(call_id);
    tokio::spawn(async move { builder.send_signed_build(tar).await })
}

fn spawn_queued_build(builder: &TestBuilder, call_id: &str, tar: Vec<u8>) -> JoinHandle<AnswerStatusAndBody> {
    let builder = builder.with_call_id(call_id);
    tokio::spawn(async move { deliver_queued_build(&builder, tar).await })
}

async fn answer_of(build: JoinHandle<AnswerStatusAndBody>) -> AnswerStatusAndBody {
    complete_or_panic(build).await.expect("no panic")
}

async fn successful_digest_of(build: JoinHandle<AnswerStatusAndBody>) -> String {
    let answer = answer_of(build).await;
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    answer.body["digest"].as_str().expect("a digest").to_owned()
}

#[tokio::test]
async fn a_build_for_one_platform_goes_to_the_daemon_that_is_bound_to_it_as_a_whole() {
    let mut setup = Setup::start(&["", "linux/arm64"]).await;
    let builder = setup.new_builder();
    for (platforms, daemon) in [
        (&["linux/arm64"][..], 1),
        (&["linux/arm64/v8"], 1),
        (&["linux/amd64"], 0),
        (&["linux/amd64", "linux/s390x"], 0),
        (&[], 0),
    ] {
        let build = spawn_build(&builder, &format!("{platforms:?}"), setup.request_tar(platforms));
        let solve = setup.next_solve(daemon).await;
        let frontend = &solve.request.frontend_attrs;
        let exporter = &solve.request.exporters[0].attrs;
        assert_eq!(
            frontend.get("platform").cloned().unwrap_or_default(),
            platforms.join(",")
        );
        assert_eq!(frontend.get("multi-platform"), None);
        assert_eq!(exporter["name"], setup.image());
        assert_eq!(exporter.get("push-by-digest"), None);
        solve.answer_with_digest("sha256:12");
        assert_eq!(successful_digest_of(build).await, "sha256:12");
    }
}

#[tokio::test]
async fn a_platform_that_no_daemon_is_bound_to_is_rejected_with_422_if_all_are_bound() {
    let mut setup = Setup::start(&["linux/amd64", "linux/arm64"]).await;
    let builder = setup.new_builder();
    let answer = builder
        .send_signed_build(setup.request_tar(&["linux/amd64", "linux/s390x"]))
        .await;
    assert_eq!(answer.status, 422);
    let error = answer.body["error"].as_str().expect("an error");
    assert!(
        error.contains("linux/s390x") && error.contains("linux/amd64, linux/arm64"),
        "{error}"
    );
    setup.assert_no_further_solve();
}

#[tokio::test]
async fn each_platform_is_built_on_its_daemon_and_one_index_of_all_is_pushed_under_the_tag() {
    let mut setup = Setup::start(&["", "linux/arm64"]).await;
    let builder = setup.new_builder();
    let build = spawn_build(&builder, CALL_ID, setup.request_tar(&BOTH));
    for (daemon, platform, architecture) in [(0, "linux/amd64", "amd64"), (1, "linux/arm64", "arm64")] {
        let solve = setup.next_solve(daemon).await;
        let frontend = &solve.request.frontend_attrs;
        let exporter = &solve.request.exporters[0].attrs;
        assert_eq!(frontend["platform"], platform);
        assert_eq!(frontend["multi-platform"], "true");
        assert_eq!(exporter["name"], format!("{}/hello", setup.registry.host));
        assert_eq!(
            (&*exporter["push"], &*exporter["push-by-digest"]),
            ("true", "true")
        );
        assert_eq!(setup.tagged_index(), None, "not before both are there");
        solve.answer_with_digest(&setup.push_part(architecture));
    }
    let digest = successful_digest_of(build).await;

    let (index, tagged) = setup.tagged_index().expect("an index");
    assert_eq!(tagged, digest);
    let manifests = index["manifests"].as_array().expect("a list");
    let architectures: Vec<_> = manifests
        .iter()
        .map(|one| &one["platform"]["architecture"])
        .collect();
    assert_eq!(architectures, ["amd64", "unknown", "arm64", "unknown"]);
    let asked = ask(&builder, Method::GET, &format!("/builds/{CALL_ID}"))
        .await
        .body;
    assert_eq!(
        (&asked["state"], &asked["digest"]),
        (&json!("success"), &json!(digest))
    );
    assert_eq!(asked["attempts"], 1, "{asked}");
}

#[tokio::test]
async fn a_part_that_fails_ends_the_others_and_its_error_is_that_of_the_build() {
    let mut setup = Setup::start(&["", "linux/arm64"]).await;
    let builder = setup.new_builder();
    let build = spawn_queued_build(&builder, CALL_ID, setup.request_tar(&BOTH));
    let mut first = setup.next_solve(0).await;
    let second = setup.next_solve(1).await;
    second.answer_with_error(tonic::Status::unknown(
        "process \"make\" did not complete successfully: exit code: 1",
    ));
    complete_or_panic(first.reply.closed()).await;
    let answer = answer_of(build).await;
    assert_eq!(answer.status, 422, "{:?}", answer.body);
    assert!(
        answer.body["error"]
            .as_str()
            .expect("an error")
            .contains("exit code: 1")
    );
    assert_eq!(setup.tagged_index(), None);
    // Another builder knows it from the histories alone.
    let asked = ask(&setup.new_builder(), Method::GET, &format!("/builds/{CALL_ID}"))
        .await
        .body;
    assert_eq!(asked["state"], "failed", "{asked}");
    assert!(
        asked["error"]
            .as_str()
            .expect("an error")
            .contains("exit code: 1"),
        "{asked}"
    );
}

#[tokio::test]
async fn a_cancelled_build_ends_on_all_daemons() {
    let mut setup = Setup::start(&["", "linux/arm64"]).await;
    let builder = setup.new_builder();
    let build = spawn_queued_build(&builder, CALL_ID, setup.request_tar(&BOTH));
    let mut solves = [setup.next_solve(0).await, setup.next_solve(1).await];
    let other = setup.new_builder();
    let cancelling =
        tokio::spawn(async move { ask(&other, Method::DELETE, &format!("/builds/{CALL_ID}")).await });
    for daemon in 0..2 {
        setup.next_solve(daemon).await.answer_with_digest("");
    }
    complete_or_panic(cancelling).await.expect("no panic");
    for solve in &mut solves {
        complete_or_panic(solve.reply.closed()).await;
    }
    assert_eq!(answer_of(build).await.status, 409);
    assert_eq!(setup.tagged_index(), None);
}

#[tokio::test]
async fn a_split_call_that_two_builders_get_is_built_once() {
    let mut setup = Setup::start(&["", "linux/arm64"]).await;
    let (builder, other) = (setup.new_builder(), setup.new_builder());
    let tar = setup.request_tar(&BOTH);
    let first = spawn_queued_build(&builder, CALL_ID, tar.clone());
    let solves = [setup.next_solve(0).await, setup.next_solve(1).await];
    let second = spawn_queued_build(&other, CALL_ID, tar);
    for daemon in 0..2 {
        for _ in 0..2 {
            complete_or_panic(setup.calls[daemon].next_session_call()).await;
        }
    }
    for (solve, architecture) in solves.into_iter().zip(["amd64", "arm64"]) {
        solve.answer_with_digest(&setup.push_part(architecture));
    }
    let digest = successful_digest_of(first).await;
    assert_eq!(successful_digest_of(second).await, digest);
    setup.assert_no_further_solve();
}

#[tokio::test]
async fn a_redelivered_split_call_leaves_the_tag_to_the_build_that_has_it_now() {
    let mut setup = Setup::start(&["", "linux/arm64"]).await;
    let builder = setup.new_builder();
    let tar = setup.request_tar(&BOTH);
    let build = spawn_queued_build(&builder, CALL_ID, tar.clone());
    setup.let_both_parts_succeed().await;
    let digest = successful_digest_of(build).await;
    setup.registry.tag_manifest("hello", "1", "{\"newer\": true}");

    let again = spawn_queued_build(&setup.new_builder(), CALL_ID, tar.clone());
    assert_eq!(successful_digest_of(again).await, digest);
    assert_eq!(setup.tagged_index().expect("an index").0, json!({"newer": true}));
    setup.assert_no_further_solve();

    // The index of the call is gone, and its images are not.
    setup.registry.delete_manifest("hello", &digest);
    let again = spawn_queued_build(&setup.new_builder(), CALL_ID, tar);
    assert_eq!(successful_digest_of(again).await, digest);
    assert_eq!(setup.tagged_index().expect("an index").1, digest);
    setup.assert_no_further_solve();
}

#[tokio::test]
async fn a_lost_daemon_costs_its_own_part_of_a_queued_build_another_attempt() {
    let mut setup = Setup::start(&["", "linux/arm64", "linux/arm64"]).await;
    let builder = setup.new_builder();
    let build = spawn_queued_build(&builder, CALL_ID, setup.request_tar(&BOTH));
    let first = setup.next_solve(0).await;
    let (one, other) = setup.calls.split_at_mut(2);
    let lost = tokio::select! {
        solve = one[1].solves.recv() => solve.map(|_| 1),
        solve = other[0].solves.recv() => solve.map(|_| 2),
    };
    let lost = lost.expect("a solve");
    let (_, ended) = daemon::start_fake_daemon();
    setup.calls[lost] = ended;

    let retried = setup.next_solve(3 - lost).await;
    assert!(!first.reply.is_closed(), "it goes on");
    first.answer_with_digest(&setup.push_part("amd64"));
    retried.answer_with_digest(&setup.push_part("arm64"));
    successful_digest_of(build).await;
    setup.assert_no_further_solve();
    let asked = ask(&builder, Method::GET, &format!("/builds/{CALL_ID}"))
        .await
        .body;
    assert_eq!(asked["attempts"], 2, "{asked}");
}

#[tokio::test]
async fn a_registry_that_fails_for_a_moment_does_not_fail_a_queued_split_build() {
    let mut setup = Setup::start(&["", "linux/arm64"]).await;
    setup
        .registry
        .set_behaviour(RegistryBehaviour::Failing("PUT /v2/hello/manifests/1", 503));
    let builder = setup.new_builder();
    let build = spawn_queued_build(&builder, CALL_ID, setup.request_tar(&BOTH));
    setup.let_both_parts_succeed().await;
    let registry = setup.registry.clone();
    let is_refused = || {
        registry
            .request_lines()
            .iter()
            .any(|line| line.starts_with("PUT /v2/hello/manifests/1"))
    };
    complete_or_panic(async {
        while !is_refused() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(setup.tagged_index(), None);
    setup.registry.set_behaviour(RegistryBehaviour::default());
    let digest = successful_digest_of(build).await;
    assert_eq!(setup.tagged_index().expect("an index").1, digest);
    setup.assert_no_further_solve();
}

#[tokio::test]
async fn a_registry_that_refuses_the_index_fails_the_build_and_names_the_image() {
    let mut setup = Setup::start(&["", "linux/arm64"]).await;
    setup
        .registry
        .set_behaviour(RegistryBehaviour::Failing("PUT /v2/hello/manifests/1", 403));
    let builder = setup.new_builder();
    let build = spawn_queued_build(&builder, CALL_ID, setup.request_tar(&BOTH));
    setup.let_both_parts_succeed().await;
    let answer = answer_of(build).await;
    assert_eq!(answer.status, 502, "{:?}", answer.body);
    let error = answer.body["error"].as_str().expect("an error");
    assert!(error.contains(&setup.image()) && error.contains("403"), "{error}");
}

#[tokio::test]
async fn a_split_build_that_is_not_pushed_has_no_index_and_no_digest() {
    let mut setup = Setup::start(&["", "linux/arm64"]).await;
    let builder = setup.new_builder();
    let tar = request_tar_with(json!({"image": setup.image(), "platforms": BOTH, "skipPush": true}));
    let build = spawn_build(&builder, CALL_ID, tar);
    for daemon in 0..2 {
        let solve = setup.next_solve(daemon).await;
        assert_eq!(solve.request.exporters[0].attrs.get("push-by-digest"), None);
        solve.answer_with_digest("sha256:12");
    }
    let answer = answer_of(build).await;
    assert_eq!(
        (answer.status, answer.body.get("digest")),
        (200, None),
        "{:?}",
        answer.body
    );
    assert_eq!(setup.registry.request_lines(), Vec::<String>::new());
}

#[tokio::test]
async fn the_parts_of_a_build_share_no_exported_cache() {
    let mut setup = Setup::start(&["", "linux/arm64"]).await;
    let builder = setup.new_builder();
    let cache = format!("{}/hello:cache", setup.registry.host);
    let config = json!({"image": setup.image(), "platforms": BOTH, "cacheFrom": [cache], "cacheTo": [cache]});
    let build = spawn_build(&builder, CALL_ID, request_tar_with(config));
    for (daemon, suffix, architecture) in [(0, "-linux-amd64", "amd64"), (1, "-linux-arm64", "arm64")] {
        let solve = setup.next_solve(daemon).await;
        let caches = solve.request.cache.clone().expect("caches");
        let refs = |entries: &[bollard_buildkit_proto::moby::buildkit::v1::CacheOptionsEntry]| {
            entries
                .iter()
                .map(|entry| entry.attrs["ref"].clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(refs(&caches.exports), [format!("{cache}{suffix}")]);
        assert_eq!(refs(&caches.imports), [format!("{cache}{suffix}"), cache.clone()]);
        solve.answer_with_digest(&setup.push_part(architecture));
    }
    successful_digest_of(build).await;
}

#[tokio::test]
async fn every_reader_gets_the_log_of_one_platform_after_that_of_the_other_with_the_same_numbers() {
    let mut setup = Setup::start(&["", "linux/arm64"]).await;
    let builder = setup.new_builder();
    setup.log_ends[0].send_replace(false);
    let build = spawn_queued_build(&builder, CALL_ID, setup.request_tar(&BOTH));
    let solves = [setup.next_solve(0).await, setup.next_solve(1).await];
    // Reads while the build runs; the second part's log is complete before the first one's.
    let other = setup.new_builder();
    let reading = tokio::spawn(async move { read_numbered_lines_and_terminal_record(&other, 1).await });
    for (solve, architecture) in solves.into_iter().zip(["amd64", "arm64"]) {
        solve.answer_with_digest(&setup.push_part(architecture));
    }
    setup.log_ends[0].send_replace(true);
    let digest = successful_digest_of(build).await;
    let (live, _) = complete_or_panic(reading).await.expect("no panic");

    let (lines, terminal) = read_numbered_lines_and_terminal_record(&builder, 1).await;
    assert_eq!(terminal["digest"], digest, "{terminal}");
    assert_eq!(live, lines);
    let (first, second): (Vec<_>, Vec<_>) = lines
        .into_iter()
        .partition(|(number, _)| *number < FIRST_LINE_OF_SECOND_PART);
    for (part, start, text) in [
        (&first, 1, "daemon 0 line"),
        (&second, FIRST_LINE_OF_SECOND_PART, "daemon 1 line"),
    ] {
        let numbers: Vec<_> = part.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (start..start + 5).collect::<Vec<_>>(), "{part:?}");
        assert_eq!(
            part.iter().filter(|(_, line)| line.contains(text)).count(),
            3,
            "{part:?}"
        );
    }
    let (rest, _) = read_numbered_lines_and_terminal_record(&builder, FIRST_LINE_OF_SECOND_PART + 2).await;
    assert_eq!(rest, second[2..]);
}
