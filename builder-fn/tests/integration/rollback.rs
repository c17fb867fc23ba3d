//! Tests of rollbacks: versions are kept in a fake registry, and a fake gateway answers for the deployer.

use std::time::Duration;

use builder_fn::buildkit::Daemon;
use builder_fn::hand_over::DeployVia;
use function_host::http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::builds::{ask, signed_bodyless_request};
use crate::complete_or_panic;
use crate::daemon::{self, DaemonCalls};
use crate::gateway::{
    DRY_RUN_ACCEPTED_JSON, GatewayCall, ReceivedRequest, start_gateway_answering_hand_overs,
    start_manual_gateway,
};
use crate::job::FixedAnswerManifestLookup;
use crate::record_store::{ask_until, record_repository_of, wait_for_tags};
use crate::registry::{FakeRegistry, RegistryBehaviour};
use crate::setting::{AnswerStatusAndBody, PAYLOAD_KEY, TestBuilder, request_tar_with};

const READY_DEPLOYER_ANSWER_JSON: &str = r#"{"function":"hello","status":"ready"}"#;

/// A builder with a record store and a gateway, the calls of its fake daemon, and the fake registry with its records.
struct BuilderDaemonAndRegistry {
    builder: TestBuilder,
    calls: DaemonCalls,
    registry: FakeRegistry,
}

async fn setting(gateway: std::net::SocketAddr) -> BuilderDaemonAndRegistry {
    let registry = FakeRegistry::start().await;
    let (daemon, calls) = daemon::start_fake_daemon();
    BuilderDaemonAndRegistry {
        builder: builder_with_gateway_and_record_store(daemon, gateway, &registry),
        calls,
        registry,
    }
}

fn builder_with_gateway_and_record_store(
    daemon: Daemon,
    gateway: std::net::SocketAddr,
    registry: &FakeRegistry,
) -> TestBuilder {
    TestBuilder::with_gateway(daemon, &format!("http://{gateway}"))
        .with_record_store(&record_repository_of(registry))
}

impl BuilderDaemonAndRegistry {
    /// Builds and deploys the version `id`, whose image has the digest `sha256:ID`.
    async fn build_and_deploy(&mut self, id: &str) -> AnswerStatusAndBody {
        self.build_and_deploy_with_config_changes(id, json!({})).await
    }

    async fn build_and_deploy_with_config_changes(
        &mut self,
        id: &str,
        config_changes: Value,
    ) -> AnswerStatusAndBody {
        self.build_and_deploy_signed_with_key(PAYLOAD_KEY, id, config_changes)
            .await
    }

    async fn build_and_deploy_signed_with_key(
        &mut self,
        key: &'static str,
        id: &str,
        config_changes: Value,
    ) -> AnswerStatusAndBody {
        let mut config = json!({"deploy": {"service": "hello", "envVars": {"VERSION": id}}});
        for (key, value) in config_changes.as_object().expect("an object") {
            config[key] = value.clone();
        }
        let builder = self.builder.with_call_id(id);
        let tar = request_tar_with(config);
        let build = tokio::spawn(async move { builder.send_build_signed_with(key, None, tar).await });
        let (solve, status, _session) = self.calls.wait_without_limit_for_build_calls().await;
        drop(status);
        solve.answer_with_digest(&format!("sha256:{id}"));
        complete_or_panic(build).await.expect("no panic")
    }
}

async fn listed_versions_of_hello(builder: &TestBuilder) -> Vec<Value> {
    let answer = ask(builder, Method::GET, "/functions/hello/versions").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body["versions"].as_array().expect("a list").clone()
}

/// Waits until the versions of the function are those with these IDs and states.
async fn wait_for_versions(builder: &TestBuilder, expected: &[(&str, &str)]) {
    complete_or_panic(async {
        loop {
            let versions = listed_versions_of_hello(builder).await;
            let found: Vec<_> = versions
                .iter()
                .map(|version| {
                    (
                        version["id"].as_str().unwrap_or(""),
                        version["state"].as_str().unwrap_or(""),
                    )
                })
                .collect();
            if found == expected {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Returns the tags of all versions.
fn version_tags(registry: &FakeRegistry) -> Vec<String> {
    let tags = registry.tags("slipway/records").into_iter();
    tags.filter(|tag| tag.starts_with("v-")).collect()
}

async fn roll_back(builder: &TestBuilder, query: &str) -> AnswerStatusAndBody {
    ask(
        builder,
        Method::POST,
        &format!("/functions/hello/rollback?{query}"),
    )
    .await
}

/// Waits for the end of the rollback `id`, and returns its record.
async fn wait_for_end_of_rollback(builder: &TestBuilder, id: &str) -> Value {
    let is_ended = |answer: &AnswerStatusAndBody| {
        answer.status == 200 && matches!(answer.body["state"].as_str(), Some("success" | "failed"))
    };
    ask_until(builder, id, is_ended).await.body
}

async fn next_hand_over(hand_overs: &mut UnboundedReceiver<ReceivedRequest>) -> Value {
    let request = complete_or_panic(hand_overs.recv()).await.expect("a hand-over");
    serde_json::from_slice(request.body()).expect("JSON")
}

/// Accepts dry runs until a hand-over arrives, and returns it unanswered.
async fn accept_dry_runs_until_next_hand_over(calls: &mut UnboundedReceiver<GatewayCall>) -> GatewayCall {
    loop {
        let call = complete_or_panic(calls.recv()).await.expect("a call");
        match call.is_dry_run() {
            true => call.answer(200, DRY_RUN_ACCEPTED_JSON),
            false => return call,
        }
    }
}

#[tokio::test]
async fn a_rollback_hands_over_the_last_good_version_as_handed_in_now_and_is_known_as_a_build() {
    let (gateway, mut hand_overs) = start_gateway_answering_hand_overs(200, READY_DEPLOYER_ANSWER_JSON).await;
    let mut setting = setting(gateway).await;
    for id in ["v1", "v2"] {
        assert_eq!(setting.build_and_deploy(id).await.status, 200);
    }
    let builder = &setting.builder;
    wait_for_versions(builder, &[("v2", "ready"), ("v1", "ready")]).await;
    let listed = listed_versions_of_hello(builder).await;
    assert_eq!(
        (&listed[0]["current"], &listed[0]["target"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(
        (&listed[1]["current"], &listed[1]["target"]),
        (&json!(false), &json!(true))
    );
    let [first, second] = [
        next_hand_over(&mut hand_overs).await,
        next_hand_over(&mut hand_overs).await,
    ];

    let begun = roll_back(builder, "id=r1").await;
    assert!(matches!(begun.status, 200 | 202), "{}", begun.body);
    assert_eq!(begun.body["rollback"], json!({"to": "v1", "from": "v2"}));
    let again = next_hand_over(&mut hand_overs).await;
    for key in ["image", "tag", "deploy"] {
        assert_eq!(again[key], first[key], "{key}");
    }
    assert_eq!(again["callId"], "r1");
    assert!(again["submittedAt"].as_str() > second["submittedAt"].as_str());

    let record = wait_for_end_of_rollback(builder, "r1").await;
    assert_eq!(record["state"], "success", "{record}");
    assert_eq!(
        record["deployment"],
        json!({"function": "hello", "status": "ready"})
    );
    assert_eq!(
        (&record["function"], &record["image"], &record["digest"]),
        (
            &json!("hello.openfaas-fn"),
            &json!("registry:5000/hello:1"),
            &json!("sha256:v1")
        )
    );
    wait_for_versions(builder, &[("r1", "ready"), ("v2", "ready"), ("v1", "ready")]).await;
    let list = ask(builder, Method::GET, "/builds?function=hello").await.body;
    assert!(
        list["builds"]
            .as_array()
            .expect("a list")
            .iter()
            .any(|build| build["id"] == "r1"),
        "{list}"
    );

    // After every builder and the history of the daemon have gone.
    let later =
        builder_with_gateway_and_record_store(daemon::never_connecting_daemon(), gateway, &setting.registry);
    for builder in [builder, &later] {
        let request = signed_bodyless_request(
            PAYLOAD_KEY,
            Method::GET,
            "/builds/r1/log?from=1",
            "application/x-ndjson",
        );
        let body = builder.send_request(request).await.into_body();
        let body = complete_or_panic(body.collect()).await.expect("body").to_bytes();
        let records = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let mut records: Vec<Value> = records
            .map(|line| serde_json::from_slice(line).expect("JSON"))
            .collect();
        let terminal = records.pop().expect("a terminal record");
        let lines: Vec<_> = records
            .iter()
            .map(|record| record["log"][0].to_string())
            .collect();
        assert_eq!(records[0]["seq"], 1);
        assert!(
            lines[0].contains("[rollback] hello.openfaas-fn to v1"),
            "{lines:?}"
        );
        assert!(
            lines.iter().any(|line| line.contains("[deploy] hello")),
            "{lines:?}"
        );
        assert_eq!(
            (&terminal["status"], &terminal["warnings"]),
            (&json!("success"), &Value::Null)
        );
        assert_eq!(terminal["rollback"], json!({"to": "v1", "from": "v2"}));
    }
}

#[tokio::test]
async fn the_specification_of_a_version_is_readable_neither_in_the_registry_nor_in_the_list() {
    let (gateway, _hand_overs) = start_gateway_answering_hand_overs(200, READY_DEPLOYER_ANSWER_JSON).await;
    let mut setting = setting(gateway).await;
    let config =
        json!({"deploy": {"service": "hello", "envVars": {"PASSWORD": "hunter2"}, "secrets": ["api-key"]}});
    setting.build_and_deploy_with_config_changes("v1", config).await;
    wait_for_versions(&setting.builder, &[("v1", "ready")]).await;
    for (key, content) in setting.registry.contents() {
        let text = String::from_utf8_lossy(&content);
        for plain in ["hello", "hunter2", "api-key"] {
            assert!(!text.contains(plain), "{plain:?} is readable in {key}");
        }
    }
    assert!(
        !json!(listed_versions_of_hello(&setting.builder).await)
            .to_string()
            .contains("hunter2")
    );
}

#[tokio::test]
async fn a_version_that_the_deployer_rolled_back_itself_is_not_listed() {
    let (gateway, mut calls) = start_manual_gateway().await;
    let mut setting = setting(gateway).await;
    let answers = [
        ("v1", 200, READY_DEPLOYER_ANSWER_JSON),
        ("v2", 422, r#"{"status":"rolled_back","reasons":["it exits"]}"#),
    ];
    for (id, status, body) in answers {
        let answering = async {
            accept_dry_runs_until_next_hand_over(&mut calls)
                .await
                .answer(status, body)
        };
        let (answer, ()) = tokio::join!(setting.build_and_deploy(id), answering);
        assert_eq!(answer.status, status, "{}", answer.body);
    }
    wait_for_versions(&setting.builder, &[("v1", "ready")]).await;
}

#[tokio::test]
async fn a_redelivered_call_that_a_newer_version_has_replaced_stays_a_version() {
    let (gateway, mut calls) = start_manual_gateway().await;
    let mut setting = setting(gateway).await;
    let newer = r#"{"status":"superseded","reasons":["a newer build is deployed"],"supersededBy":"v2"}"#;
    for (id, submitted_at, status, body) in [
        ("v1", "2026-01-01T00:00:00Z", 200, READY_DEPLOYER_ANSWER_JSON),
        ("v2", "2026-01-02T00:00:00Z", 200, READY_DEPLOYER_ANSWER_JSON),
        ("v1", "2026-01-01T00:00:00Z", 409, newer),
    ] {
        let answering = async {
            accept_dry_runs_until_next_hand_over(&mut calls)
                .await
                .answer(status, body)
        };
        // Each delivery is at another builder, whose daemon knows of no other build.
        let (daemon, daemon_calls) = daemon::start_fake_daemon();
        setting.builder = builder_with_gateway_and_record_store(daemon, gateway, &setting.registry);
        setting.calls = daemon_calls;
        let deploying =
            setting.build_and_deploy_with_config_changes(id, json!({"submittedAt": submitted_at}));
        let (answer, ()) = tokio::join!(deploying, answering);
        assert_eq!(answer.status, status, "{}", answer.body);
        setting.builder.wait_until_background_work_ended().await;
    }
    wait_for_versions(&setting.builder, &[("v2", "ready"), ("v1", "ready")]).await;
}

#[tokio::test]
async fn a_rollback_during_a_deployment_replaces_what_is_being_deployed() {
    let (gateway, mut calls) = start_manual_gateway().await;
    let mut setting = setting(gateway).await;
    let answering = async {
        accept_dry_runs_until_next_hand_over(&mut calls)
            .await
            .answer(200, READY_DEPLOYER_ANSWER_JSON)
    };
    tokio::join!(setting.build_and_deploy("v1"), answering);
    wait_for_versions(&setting.builder, &[("v1", "ready")]).await;

    let builder = setting.builder.clone();
    let deploying = tokio::spawn(async move { setting.build_and_deploy("v2").await });
    let second = accept_dry_runs_until_next_hand_over(&mut calls).await;
    wait_for_versions(&builder, &[("v2", "deploying"), ("v1", "ready")]).await;
    assert_eq!(roll_back(&builder, "id=r1").await.status, 202);
    let rollback = accept_dry_runs_until_next_hand_over(&mut calls).await;
    assert_eq!(rollback.body()["image"], "registry:5000/hello@sha256:v1");
    assert!(rollback.body()["submittedAt"].as_str() > second.body()["submittedAt"].as_str());
    let newer = r#"{"status":"superseded","reasons":["a newer build waits"],"supersededBy":"r1"}"#;
    second.answer(409, newer);
    rollback.answer(200, READY_DEPLOYER_ANSWER_JSON);
    assert_eq!(wait_for_end_of_rollback(&builder, "r1").await["state"], "success");
    let replaced = complete_or_panic(deploying).await.expect("no panic");
    assert_eq!(
        (replaced.status, &replaced.body["supersededBy"]),
        (409, &json!("r1"))
    );
    wait_for_versions(&builder, &[("r1", "ready"), ("v1", "ready")]).await;
}

#[tokio::test]
async fn a_build_that_was_handed_in_before_a_rollback_ends_as_superseded_by_it() {
    let (gateway, mut calls) = start_manual_gateway().await;
    let mut setting = setting(gateway).await;
    for id in ["v1", "v2"] {
        let answering = async {
            accept_dry_runs_until_next_hand_over(&mut calls)
                .await
                .answer(200, READY_DEPLOYER_ANSWER_JSON)
        };
        tokio::join!(setting.build_and_deploy(id), answering);
    }
    wait_for_versions(&setting.builder, &[("v2", "ready"), ("v1", "ready")]).await;
    let builder = setting.builder.with_call_id("v3");
    let tar = request_tar_with(json!({"deploy": {"service": "hello"}}));
    let running = tokio::spawn(async move { builder.send_signed_build(tar).await });
    let call = complete_or_panic(calls.recv()).await.expect("a dry run");
    call.answer(200, DRY_RUN_ACCEPTED_JSON);
    let (solve, _status, _session) = setting.calls.wait_without_limit_for_build_calls().await;

    assert_eq!(roll_back(&setting.builder, "id=r1").await.status, 202);
    let answer = complete_or_panic(running).await.expect("no panic");
    assert_eq!(
        (answer.status, &answer.body["supersededBy"]),
        (409, &json!("r1")),
        "{}",
        answer.body
    );
    drop(solve);
    accept_dry_runs_until_next_hand_over(&mut calls)
        .await
        .answer(200, READY_DEPLOYER_ANSWER_JSON);
    assert_eq!(
        wait_for_end_of_rollback(&setting.builder, "r1").await["state"],
        "success"
    );
}

#[tokio::test]
async fn a_rollback_that_is_requested_again_changes_nothing() {
    let (gateway, mut hand_overs) = start_gateway_answering_hand_overs(200, READY_DEPLOYER_ANSWER_JSON).await;
    let mut setting = setting(gateway).await;
    for id in ["v1", "v2", "v3"] {
        setting.build_and_deploy(id).await;
        next_hand_over(&mut hand_overs).await;
    }
    wait_for_versions(
        &setting.builder,
        &[("v3", "ready"), ("v2", "ready"), ("v1", "ready")],
    )
    .await;
    let later =
        builder_with_gateway_and_record_store(daemon::never_connecting_daemon(), gateway, &setting.registry);
    roll_back(&setting.builder, "id=r1").await;
    wait_for_end_of_rollback(&setting.builder, "r1").await;
    next_hand_over(&mut hand_overs).await;
    for builder in [&setting.builder, &later] {
        let again = roll_back(builder, "id=r1").await;
        assert_eq!(
            (again.status, &again.body["state"]),
            (200, &json!("success")),
            "{}",
            again.body
        );
        assert_eq!(again.body["rollback"], json!({"to": "v2", "from": "v3"}));
    }
    assert!(hand_overs.try_recv().is_err(), "it was handed over once");
    let taken = roll_back(&setting.builder, "id=v1").await;
    assert_eq!(taken.status, 409, "{}", taken.body);
}

#[tokio::test]
async fn a_second_rollback_goes_further_back_and_an_id_chooses_any_version() {
    let (gateway, mut hand_overs) = start_gateway_answering_hand_overs(200, READY_DEPLOYER_ANSWER_JSON).await;
    let mut setting = setting(gateway).await;
    for id in ["v1", "v2", "v3"] {
        setting.build_and_deploy(id).await;
        next_hand_over(&mut hand_overs).await;
    }
    wait_for_versions(
        &setting.builder,
        &[("v3", "ready"), ("v2", "ready"), ("v1", "ready")],
    )
    .await;
    for (query, id, digest) in [
        ("id=r1", "r1", "v2"),
        ("id=r2", "r2", "v1"),
        ("id=r3&to=v3", "r3", "v3"),
    ] {
        roll_back(&setting.builder, query).await;
        assert_eq!(
            wait_for_end_of_rollback(&setting.builder, id).await["state"],
            "success"
        );
        let image = next_hand_over(&mut hand_overs).await["image"].clone();
        assert_eq!(
            image,
            json!(format!("registry:5000/hello@sha256:{digest}")),
            "{query}"
        );
        complete_or_panic(async {
            while listed_versions_of_hello(&setting.builder).await[0]["state"] != "ready" {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    let missing = roll_back(&setting.builder, "id=r4&to=v9").await;
    assert_eq!(missing.status, 404);
    let error = missing.body["error"].as_str().expect("a text");
    assert!(
        error.contains("no version v9") && error.contains("r3, r2, r1, v3, v2, v1"),
        "{error}"
    );
}

#[tokio::test]
async fn ten_versions_are_listed_and_at_most_twelve_remain_stored() {
    let (gateway, _hand_overs) = start_gateway_answering_hand_overs(200, READY_DEPLOYER_ANSWER_JSON).await;
    let mut setting = setting(gateway).await;
    let ids: Vec<_> = (1..=14).map(|number| format!("v{number}")).collect();
    for id in &ids {
        setting.build_and_deploy(id).await;
    }
    let newest: Vec<_> = ids
        .iter()
        .rev()
        .take(10)
        .map(|id| (id.as_str(), "ready"))
        .collect();
    wait_for_versions(&setting.builder, &newest).await;
    complete_or_panic(async {
        while version_tags(&setting.registry).len() > 12 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn versions_that_nothing_verified_are_deleted_as_others_are_and_the_last_good_one_is_kept() {
    let (gateway, mut calls) = start_manual_gateway().await;
    let mut setting = setting(gateway).await;
    let unverified = r#"{"function":"hello","status":"unverified"}"#;
    for number in 1..=15 {
        let answer = if number == 2 {
            READY_DEPLOYER_ANSWER_JSON
        } else {
            unverified
        };
        let answering = async {
            accept_dry_runs_until_next_hand_over(&mut calls)
                .await
                .answer(200, answer)
        };
        let id = format!("v{number}");
        tokio::join!(setting.build_and_deploy(&id), answering);
        setting.builder.wait_until_background_work_ended().await;
    }
    // Twelve, and the good one.
    assert_eq!(version_tags(&setting.registry).len(), 13);
    let newest: Vec<_> = (6..=15).rev().map(|number| format!("v{number}")).collect();
    let newest: Vec<_> = newest.iter().map(|id| (id.as_str(), "unverified")).collect();
    wait_for_versions(&setting.builder, &newest).await;
}

#[tokio::test]
async fn half_a_year_after_the_last_deployment_the_sweep_keeps_the_last_ready_version_and_no_earlier_one() {
    let (gateway, _hand_overs) = start_gateway_answering_hand_overs(200, READY_DEPLOYER_ANSWER_JSON).await;
    let mut setting = setting(gateway).await;
    for id in ["v1", "v2"] {
        setting.build_and_deploy(id).await;
    }
    let builder = &setting.builder;
    builder.wait_until_background_work_ended().await;
    wait_for_versions(builder, &[("v2", "ready"), ("v1", "ready")]).await;
    // The record of each build has two tags, and is written in the background.
    wait_for_tags(&setting.registry, "slipway/records", 6).await;
    let days = |days: u64| Duration::from_secs(days * 24 * 60 * 60);

    builder.sweep_records_as_if_after(days(179)).await;
    wait_for_versions(builder, &[("v2", "ready"), ("v1", "ready")]).await;
    let tags = setting.registry.tags("slipway/records");
    assert_eq!(tags, version_tags(&setting.registry), "the builds are gone");

    builder.sweep_records_as_if_after(days(181)).await;
    assert_eq!(version_tags(&setting.registry).len(), 1);
    wait_for_versions(builder, &[("v2", "ready")]).await;
}

#[tokio::test]
async fn a_rollback_whose_image_is_gone_is_refused_before_anything_is_changed() {
    let (gateway, mut hand_overs) = start_gateway_answering_hand_overs(200, READY_DEPLOYER_ANSWER_JSON).await;
    let mut setting = setting(gateway).await;
    for id in ["v1", "v2"] {
        setting.build_and_deploy(id).await;
        next_hand_over(&mut hand_overs).await;
    }
    wait_for_versions(&setting.builder, &[("v2", "ready"), ("v1", "ready")]).await;
    let builder = setting
        .builder
        .clone()
        .with_manifest_lookup(FixedAnswerManifestLookup::Missing);
    let refused = roll_back(&builder, "id=r1").await;
    assert_eq!(refused.status, 410, "{}", refused.body);
    let error = refused.body["error"].as_str().expect("a text");
    assert!(
        error.contains("registry:5000/hello@sha256:v1") && error.contains("nothing was changed"),
        "{error}"
    );
    assert!(hand_overs.try_recv().is_err());
    assert_eq!(ask(&builder, Method::GET, "/builds/r1").await.status, 404);
}

#[tokio::test]
async fn a_rollback_that_todays_deployer_refuses_in_the_dry_run_fails_and_deploys_nothing() {
    let (gateway, mut calls) = start_manual_gateway().await;
    let mut setting = setting(gateway).await;
    for id in ["v1", "v2"] {
        let answering = async {
            accept_dry_runs_until_next_hand_over(&mut calls)
                .await
                .answer(200, READY_DEPLOYER_ANSWER_JSON)
        };
        tokio::join!(setting.build_and_deploy(id), answering);
    }
    wait_for_versions(&setting.builder, &[("v2", "ready"), ("v1", "ready")]).await;
    assert_eq!(roll_back(&setting.builder, "id=r1").await.status, 202);
    let dry_run = complete_or_panic(calls.recv()).await.expect("a dry run");
    assert!(dry_run.is_dry_run());
    let refusal = r#"{"dryRun":true,"status":"refused","reasons":["the secret \"api-key\" does not exist"]}"#;
    dry_run.answer(422, refusal);
    let record = wait_for_end_of_rollback(&setting.builder, "r1").await;
    assert_eq!(
        (&record["state"], &record["code"]),
        (&json!("failed"), &json!(422))
    );
    assert_eq!(
        record["error"],
        "the version was not deployed again: the secret \"api-key\" does not exist"
    );
    wait_for_versions(&setting.builder, &[("v2", "ready"), ("v1", "ready")]).await;
}

#[tokio::test]
async fn a_rollback_without_a_target_version_fails_while_an_unknown_image_is_deployed() {
    let (gateway, mut calls) = start_manual_gateway().await;
    let mut setting = setting(gateway).await;
    for id in ["v1", "v2"] {
        let answering = async {
            accept_dry_runs_until_next_hand_over(&mut calls)
                .await
                .answer(200, READY_DEPLOYER_ANSWER_JSON)
        };
        tokio::join!(setting.build_and_deploy(id), answering);
    }
    wait_for_versions(&setting.builder, &[("v2", "ready"), ("v1", "ready")]).await;
    for (query, image, is_deployed) in [
        ("id=r1", "registry:5000/hello@sha256:other", false),
        ("id=r2", "registry:5000/hello@sha256:v2", true),
        ("id=r3&to=v2", "registry:5000/hello@sha256:other", true),
    ] {
        assert_eq!(roll_back(&setting.builder, query).await.status, 202, "{query}");
        let dry_run = complete_or_panic(calls.recv()).await.expect("a dry run");
        let accepted =
            json!({"dryRun": true, "status": "accepted", "reasons": [], "deployed": {"image": image}});
        dry_run.answer(200, &accepted.to_string());
        if is_deployed {
            let hand_over = complete_or_panic(calls.recv()).await.expect("a hand-over");
            assert!(!hand_over.is_dry_run());
            hand_over.answer(200, READY_DEPLOYER_ANSWER_JSON);
        }
        let id = &query["id=".len().."id=r1".len()];
        let record = wait_for_end_of_rollback(&setting.builder, id).await;
        let expected = if is_deployed { "success" } else { "failed" };
        assert_eq!(record["state"], expected, "{query}: {record}");
        if !is_deployed {
            assert!(
                record["error"]
                    .as_str()
                    .is_some_and(|error| error.contains("by its ID")),
                "{record}"
            );
        }
        if is_deployed {
            complete_or_panic(async {
                while listed_versions_of_hello(&setting.builder).await[0]["state"] != "ready" {
                    tokio::task::yield_now().await;
                }
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_version_with_an_unknown_outcome_stays_listed_as_deploying() {
    let (gateway, mut calls) = start_manual_gateway().await;
    let mut setting = setting(gateway).await;
    for (id, status, body) in [
        ("v1", 200, READY_DEPLOYER_ANSWER_JSON),
        (
            "v2",
            502,
            r#"{"status":"failed","reasons":["the state is unknown"]}"#,
        ),
    ] {
        let answering = async {
            accept_dry_runs_until_next_hand_over(&mut calls)
                .await
                .answer(status, body)
        };
        tokio::join!(setting.build_and_deploy(id), answering);
    }
    setting.builder.wait_until_background_work_ended().await;
    wait_for_versions(&setting.builder, &[("v2", "deploying"), ("v1", "ready")]).await;
}

#[tokio::test]
async fn a_rollback_that_was_signed_before_the_current_version_is_refused() {
    let (gateway, mut hand_overs) = start_gateway_answering_hand_overs(200, READY_DEPLOYER_ANSWER_JSON).await;
    let mut setting = setting(gateway).await;
    setting.build_and_deploy("v1").await;
    let request = signed_bodyless_request(
        PAYLOAD_KEY,
        Method::POST,
        "/functions/hello/rollback?id=r1",
        "*/*",
    );
    setting.build_and_deploy("v2").await;
    for _ in 0..2 {
        next_hand_over(&mut hand_overs).await;
    }
    wait_for_versions(&setting.builder, &[("v2", "ready"), ("v1", "ready")]).await;
    let refused =
        AnswerStatusAndBody::from_json_response_or_text_of_429(setting.builder.send_request(request).await)
            .await;
    assert_eq!(refused.status, 409, "{}", refused.body);
    assert!(
        refused.body["error"]
            .as_str()
            .is_some_and(|error| error.contains("v2"))
    );
    assert!(hand_overs.try_recv().is_err());
}

#[tokio::test]
async fn a_rollback_is_refused_to_other_tenants_and_where_todays_rules_forbid_the_version() {
    const ACME_AND_GLOBEX_KEYS: [&str; 2] = ["the payload key of acme", "the payload key of globex"];
    let (gateway, mut hand_overs) = start_gateway_answering_hand_overs(200, READY_DEPLOYER_ANSWER_JSON).await;
    let mut setting = setting(gateway).await;
    let policy = |secrets: Value| {
        json!({"tenants": {
            "acme": {"keys": ["acme-payload"], "push": ["registry:5000/"], "secrets": secrets},
            "globex": {"keys": ["globex-payload"]},
        }})
    };
    let with_policy = |builder: TestBuilder, secrets: Value| {
        let builder = builder.with_policy(&policy(secrets));
        builder.write_secret("acme-payload", ACME_AND_GLOBEX_KEYS[0]);
        builder.write_secret("globex-payload", ACME_AND_GLOBEX_KEYS[1]);
        builder
    };
    setting.builder = with_policy(setting.builder, json!(["api-key"]));
    for (id, secrets) in [("v1", json!(["api-key"])), ("v2", json!([]))] {
        let config = json!({"deploy": {"service": "hello", "secrets": secrets}});
        let answer = setting
            .build_and_deploy_signed_with_key(ACME_AND_GLOBEX_KEYS[0], id, config)
            .await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        next_hand_over(&mut hand_overs).await;
    }
    let send = async |builder: &TestBuilder, key: &str, method: Method, path: &str| {
        AnswerStatusAndBody::from_json_response_or_text_of_429(
            builder
                .send_request(signed_bodyless_request(key, method, path, "*/*"))
                .await,
        )
        .await
    };
    let list = "/functions/hello/versions";
    let roll_back = "/functions/hello/rollback?id=r1&to=v1";
    complete_or_panic(async {
        loop {
            let listed = send(&setting.builder, ACME_AND_GLOBEX_KEYS[0], Method::GET, list)
                .await
                .body;
            if listed["versions"][0]["state"] == "ready" && listed["versions"][1]["state"] == "ready" {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;

    let foreign = send(&setting.builder, ACME_AND_GLOBEX_KEYS[1], Method::GET, list).await;
    assert_eq!(foreign.body["versions"], json!([]));
    assert_eq!(
        send(&setting.builder, ACME_AND_GLOBEX_KEYS[1], Method::POST, roll_back)
            .await
            .status,
        404
    );
    let forged = send(&setting.builder, "another key", Method::POST, roll_back).await;
    assert_eq!(forged.status, 401);

    let stricter = with_policy(setting.builder.clone(), json!([]));
    let refused = send(&stricter, ACME_AND_GLOBEX_KEYS[0], Method::POST, roll_back).await;
    assert_eq!(refused.status, 403, "{}", refused.body);
    let error = refused.body["error"].as_str().expect("a text");
    assert!(
        error.contains("api-key") && error.contains("nothing was changed"),
        "{error}"
    );
    assert!(hand_overs.try_recv().is_err());
}

#[tokio::test]
async fn without_a_place_for_versions_or_a_deployer_that_is_called_a_rollback_is_refused_clearly() {
    let (gateway, _hand_overs) = start_gateway_answering_hand_overs(200, READY_DEPLOYER_ANSWER_JSON).await;
    let (daemon, _calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::with_gateway(daemon, &format!("http://{gateway}"));
    let refused = roll_back(&builder, "id=r1").await;
    assert_eq!(refused.status, 501);
    let error = refused.body["error"].as_str().expect("a text");
    assert!(error.contains("records_repository"), "{error}");
    assert_eq!(
        ask(&builder, Method::GET, "/functions/hello/versions")
            .await
            .status,
        501
    );

    let registry = FakeRegistry::start().await;
    let builder = builder
        .with_record_store(&record_repository_of(&registry))
        .with_deploy_via(DeployVia::Callback);
    let refused = roll_back(&builder, "id=r1").await;
    assert_eq!(refused.status, 501);
    assert!(
        refused.body["error"]
            .as_str()
            .is_some_and(|error| error.contains("deploy_via"))
    );
}

#[tokio::test]
async fn a_rollback_that_cannot_be_recorded_is_not_begun() {
    let (gateway, mut hand_overs) = start_gateway_answering_hand_overs(200, READY_DEPLOYER_ANSWER_JSON).await;
    let mut setting = setting(gateway).await;
    for id in ["v1", "v2"] {
        setting.build_and_deploy(id).await;
        next_hand_over(&mut hand_overs).await;
    }
    wait_for_versions(&setting.builder, &[("v2", "ready"), ("v1", "ready")]).await;
    setting
        .registry
        .set_behaviour(RegistryBehaviour::Failing("PUT /v2/slipway/records", 503));
    assert_eq!(roll_back(&setting.builder, "id=r1").await.status, 502);
    setting
        .registry
        .set_behaviour(RegistryBehaviour::Failing("/v2/slipway/records", 503));
    assert_eq!(roll_back(&setting.builder, "id=r2").await.status, 502);
    assert!(hand_overs.try_recv().is_err());
}

#[tokio::test]
async fn a_deployment_does_not_wait_for_a_registry_that_stalls_on_records() {
    let (gateway, _hand_overs) = start_gateway_answering_hand_overs(200, READY_DEPLOYER_ANSWER_JSON).await;
    let mut setting = setting(gateway).await;
    setting
        .registry
        .set_behaviour(RegistryBehaviour::Stalling("/v2/slipway/records"));
    let answer = tokio::time::timeout(Duration::from_secs(30), setting.build_and_deploy("v1")).await;
    assert_eq!(answer.expect("no wait").status, 200);
}

#[tokio::test]
async fn wrong_rollback_and_version_requests_are_rejected_with_the_reason() {
    let (gateway, _hand_overs) = start_gateway_answering_hand_overs(200, READY_DEPLOYER_ANSWER_JSON).await;
    let setting = setting(gateway).await;
    for (method, path, status, text) in [
        (Method::POST, "/functions/hello/rollback", 400, "id is missing"),
        (
            Method::POST,
            "/functions/hello/rollback?id=r1",
            404,
            "no version of hello.openfaas-fn",
        ),
        (Method::GET, "/functions/hello/rollback?id=r1", 405, "POST"),
        (Method::POST, "/functions/hello/versions", 405, "GET"),
    ] {
        let answer = ask(&setting.builder, method, path).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        assert!(
            answer.body["error"]
                .as_str()
                .is_some_and(|error| error.contains(text)),
            "{}",
            answer.body
        );
    }
    let unsigned = function_host::Request::new(function_host::Body::from(Vec::new()));
    let mut unsigned = unsigned;
    *unsigned.method_mut() = Method::POST;
    *unsigned.uri_mut() = "/functions/hello/rollback?id=r1".parse().expect("path");
    let response = setting.builder.send_request(unsigned).await;
    assert_eq!(response.status(), 401);
    let body = response.into_body().collect().await.expect("body").to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("X-Signed-At"));
}
