//! Tests of the record store: what is known of builds after every builder has gone, with a fake registry.

use std::time::Duration;

use builder_fn::buildkit::Daemon;
use builder_fn::slots::BuildSlots;
use function_host::http::Method;
use serde_json::{Value, json};

use crate::builds::{ask, signed_bodyless_request};
use crate::complete_or_panic;
use crate::daemon::{self, HistoryBehaviour};
use crate::gateway::start_gateway_answering_hand_overs;
use crate::hand_over::let_build_succeed;
use crate::persistence::deliver_queued_build;
use crate::registry::{FakeRegistry, RegistryBehaviour};
use crate::setting::{AnswerStatusAndBody, CALL_ID, TestBuilder, request_tar_with, tar_with_files};

fn builder_with_record_store(daemon: Daemon, registry: &FakeRegistry) -> TestBuilder {
    TestBuilder::new(daemon).with_record_store(&record_repository_of(registry))
}

pub(crate) fn record_repository_of(registry: &FakeRegistry) -> String {
    format!("{}/slipway/records", registry.host)
}

/// Returns a further builder with the records in `registry`, whose daemon does not answer.
fn later_builder_without_daemon(registry: &FakeRegistry) -> TestBuilder {
    builder_with_record_store(daemon::never_connecting_daemon(), registry)
}

/// Waits until a repository has at least `count` tags: a record that is written in the background has two.
pub(crate) async fn wait_for_tags(registry: &FakeRegistry, repository: &str, count: usize) {
    complete_or_panic(async {
        while registry.tags(repository).len() < count {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Asks `builder` about a build until the answer is as expected.
pub(crate) async fn ask_until(
    builder: &TestBuilder,
    id: &str,
    is_expected: impl Fn(&AnswerStatusAndBody) -> bool,
) -> AnswerStatusAndBody {
    complete_or_panic(async {
        loop {
            let answer = ask(builder, Method::GET, &format!("/builds/{id}")).await;
            if is_expected(&answer) {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn a_rejected_build_is_known_after_its_builder_has_gone() {
    let registry = FakeRegistry::start().await;
    let (daemon, _calls) = daemon::start_fake_daemon();
    let builder = builder_with_record_store(daemon, &registry);
    let answer = builder
        .send_signed_build(tar_with_files(&[("context/Dockerfile", b"")]))
        .await;
    assert_eq!(answer.status, 400);
    wait_for_tags(&registry, "slipway/records", 2).await;
    drop(builder);

    let (daemon, _calls) = daemon::start_fake_daemon();
    let later = builder_with_record_store(daemon, &registry);
    let asked = ask(&later, Method::GET, &format!("/builds/{CALL_ID}")).await;
    assert_eq!(asked.status, 200, "{}", asked.body);
    assert_eq!(asked.body["state"], "failed");
    assert_eq!(asked.body["error"], answer.body["error"]);
    assert_eq!(asked.body["incomplete"], Value::Null);
    let list = ask(&later, Method::GET, "/builds?state=failed").await.body;
    assert_eq!(list["builds"][0]["id"], CALL_ID);
}

#[tokio::test]
async fn a_waiting_build_is_known_at_every_builder_before_it_waits() {
    let registry = FakeRegistry::start().await;
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = builder_with_record_store(daemon, &registry).with_slots(BuildSlots::new(
        1,
        Duration::from_secs(600),
        16,
    ));
    let [running, waiting] = ["running", "waiting"].map(|id| {
        let builder = builder.with_call_id(id);
        async move { deliver_queued_build(&builder, request_tar_with(json!({}))).await }
    });
    let running = tokio::spawn(running);
    let solve = complete_or_panic(calls.solves.recv()).await.expect("a solve");
    let waiting = tokio::spawn(waiting);

    let (daemon, _calls) = daemon::start_fake_daemon();
    let later = builder_with_record_store(daemon, &registry);
    let asked = ask_until(&later, "waiting", |asked| asked.status == 200).await;
    assert_eq!(asked.body["state"], "waiting");
    assert_eq!(asked.body["image"], "registry:5000/hello:1");
    let asked = ask(&later, Method::GET, "/builds/other").await;
    assert_eq!(asked.status, 404);
    let error = asked.body["error"].as_str().expect("a text");
    assert!(error.starts_with("no builder has accepted this build: the queue has not delivered it yet"));

    waiting.abort();
    running.abort();
    drop(solve);
}

#[tokio::test]
async fn a_deployment_and_its_warnings_are_known_after_builders_and_the_history_have_gone() {
    let registry = FakeRegistry::start().await;
    let deployed = r#"{"function":"hello","status":"ready","image":"registry:5000/hello@sha256:12"}"#;
    let (gateway, _hand_overs) = start_gateway_answering_hand_overs(200, deployed).await;
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::with_gateway(daemon, &format!("http://{gateway}"))
        .with_record_store(&record_repository_of(&registry));
    let tar = request_tar_with(json!({"deploy": {"service": "hello"}, "colour": "red"}));
    let own = builder.clone();
    let build = tokio::spawn(async move { deliver_queued_build(&own, tar).await });
    let_build_succeed(&mut calls).await;
    let answer = complete_or_panic(build).await.expect("no panic");
    assert_eq!(answer.status, 200, "{answer:?}");
    drop((builder, calls));

    let asked = ask(
        &later_builder_without_daemon(&registry),
        Method::GET,
        &format!("/builds/{CALL_ID}"),
    )
    .await;
    assert_eq!(asked.status, 200);
    let body = &asked.body;
    assert_eq!(body["state"], "success", "{body}");
    for key in ["deployment", "digest", "warnings", "image"] {
        assert_eq!(body[key], answer.body[key], "{key}");
        assert!(!body[key].is_null(), "{key}");
    }
    assert_eq!(
        (&body["function"], &body["attempts"]),
        (&json!("hello.openfaas-fn"), &json!(1))
    );
    assert!(
        body["incomplete"]
            .as_str()
            .is_some_and(|text| text.starts_with("BuildKit's history could not be read"))
    );

    // The version is written in the background: once while it is deployed, and once with the outcome.
    let is_manifest = |content: &[u8]| content.len() > 2 && content.starts_with(b"{");
    complete_or_panic(async {
        let is_put = |line: &&String| line.starts_with("PUT /v2/slipway/records/manifests/v-");
        while registry.request_lines().iter().filter(is_put).count() < 2
            || registry
                .contents()
                .iter()
                .filter(|(_, content)| is_manifest(content))
                .count()
                > 3
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let contents = registry.contents();
    let records: Vec<_> = contents.iter().filter(|(_, content)| content.len() > 2).collect();
    let manifests = records.iter().filter(|(_, content)| content.starts_with(b"{"));
    assert_eq!(
        manifests.count(),
        3,
        "the record, the version and the sign are left, and neither the acceptance nor the body"
    );
    for (key, content) in contents {
        let text = String::from_utf8_lossy(&content);
        for plain in ["hello", "Dockerfile", CALL_ID, "ready"] {
            assert!(!text.contains(plain), "{plain:?} is readable in {key}");
        }
    }
}

#[tokio::test]
async fn a_redelivery_that_fails_does_not_hide_the_success() {
    let registry = FakeRegistry::start().await;
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = builder_with_record_store(daemon, &registry);
    let own = builder.clone();
    let build = tokio::spawn(async move { deliver_queued_build(&own, request_tar_with(json!({}))).await });
    let_build_succeed(&mut calls).await;
    assert_eq!(complete_or_panic(build).await.expect("no panic").status, 200);
    let written = registry.tags("slipway/records");
    assert_eq!(written.len(), 3, "{written:?}");

    let other = later_builder_without_daemon(&registry);
    let redelivered = deliver_queued_build(&other, tar_with_files(&[("context/Dockerfile", b"")])).await;
    assert_eq!(redelivered.status, 400);
    // The write of the rejection has read the record before it gave up.
    let reads = || {
        let lines = registry.request_lines();
        lines
            .iter()
            .filter(|line| line.starts_with("GET /v2/slipway/records/manifests/r-"))
            .count()
    };
    complete_or_panic(async {
        while reads() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let asked = ask(
        &later_builder_without_daemon(&registry),
        Method::GET,
        &format!("/builds/{CALL_ID}"),
    )
    .await;
    assert_eq!(asked.body["state"], "success", "{}", asked.body);
    assert_eq!(registry.tags("slipway/records"), written);
}

#[tokio::test]
async fn body_sign_of_life_index_entry_and_acceptance_are_written_in_this_order_before_the_solve() {
    let registry = FakeRegistry::start().await;
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = builder_with_record_store(daemon, &registry);
    let own = builder.clone();
    let build = tokio::spawn(async move { deliver_queued_build(&own, request_tar_with(json!({}))).await });
    let solve = complete_or_panic(calls.solves.recv()).await.expect("a solve");
    let lines = registry.request_lines();
    let at = |part: &str| {
        let beginning = format!("PUT /v2/slipway/records/manifests/{part}-");
        let found = lines.iter().position(|line| line.starts_with(&beginning));
        found.unwrap_or_else(|| panic!("no {part} in {lines:?}"))
    };
    assert!(
        at("b") < at("o") && at("o") < at("i") && at("i") < at("r"),
        "{lines:?}"
    );
    build.abort();
    drop(solve);
}

#[tokio::test]
async fn a_registry_that_fails_costs_the_record_and_not_the_build() {
    let registry = FakeRegistry::start().await;
    registry.set_behaviour(RegistryBehaviour::Failing("/v2/slipway/records", 503));
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = builder_with_record_store(daemon, &registry);
    let own = builder.clone();
    let build = tokio::spawn(async move { deliver_queued_build(&own, request_tar_with(json!({}))).await });
    let_build_succeed(&mut calls).await;
    let answer = complete_or_panic(build).await.expect("no panic");
    assert_eq!(answer.status, 200);
    let warnings = answer.body["warnings"].to_string();
    assert!(
        warnings.contains("could not be recorded in the registry"),
        "{warnings}"
    );

    let (daemon, calls) = daemon::start_fake_daemon();
    calls.history.set_behaviour(HistoryBehaviour::Kept);
    let asked = ask(
        &builder_with_record_store(daemon, &registry),
        Method::GET,
        "/builds/another",
    )
    .await;
    assert_eq!(asked.status, 502, "it may be recorded there");
    let error = asked.body["error"].as_str().expect("a text");
    assert!(
        error.contains("the record store") && error.contains("ask again"),
        "{error}"
    );
}

#[tokio::test]
async fn a_build_that_names_the_repository_of_the_records_is_rejected() {
    let registry = FakeRegistry::start().await;
    let builder = later_builder_without_daemon(&registry);
    let records = record_repository_of(&registry);
    for config in [
        json!({"image": format!("{records}:r-00")}),
        json!({"image": format!("{records}/acme:1")}),
        json!({"cacheTo": [records]}),
        json!({"cacheFrom": [records]}),
    ] {
        let answer = builder.send_signed_build(request_tar_with(config.clone())).await;
        assert_eq!(answer.status, 403, "{config}: {}", answer.body);
        assert!(
            answer.body["error"]
                .as_str()
                .is_some_and(|error| error.contains("repository for records")),
            "{}",
            answer.body
        );
    }
}

#[tokio::test]
async fn a_tenant_sees_its_own_records_only() {
    let registry = FakeRegistry::start().await;
    let policy = json!({"tenants": {
        "acme": {"keys": ["acme-payload"]},
        "globex": {"keys": ["globex-payload"]},
    }});
    let new_builder = || {
        let (daemon, calls) = daemon::start_fake_daemon();
        let builder = builder_with_record_store(daemon, &registry).with_policy(&policy);
        builder.write_secret("acme-payload", "the payload key of acme");
        builder.write_secret("globex-payload", "the payload key of globex");
        (builder, calls)
    };
    let (builder, _calls) = new_builder();
    let broken = tar_with_files(&[("context/Dockerfile", b"")]);
    let answer = builder
        .send_build_signed_with("the payload key of acme", None, broken)
        .await;
    assert_eq!(answer.status, 400);
    wait_for_tags(&registry, "slipway/records/acme", 2).await;

    let (later, _calls) = new_builder();
    for (key, status, count) in [
        ("the payload key of acme", 200, 1),
        ("the payload key of globex", 404, 0),
    ] {
        let path = format!("/builds/{CALL_ID}");
        let request = signed_bodyless_request(key, Method::GET, &path, "*/*");
        let asked =
            AnswerStatusAndBody::from_json_response_or_text_of_429(later.send_request(request).await).await;
        assert_eq!(asked.status, status, "{key}");
        let request = signed_bodyless_request(key, Method::GET, "/builds", "*/*");
        let list = AnswerStatusAndBody::from_json_response_or_text_of_429(later.send_request(request).await)
            .await
            .body;
        assert_eq!(
            list["builds"].as_array().map(Vec::len),
            Some(count),
            "{key}: {list}"
        );
    }
    assert_eq!(registry.tags("slipway/records"), Vec::<String>::new());
}
