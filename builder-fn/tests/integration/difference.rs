//! Tests of what changed between two builds: what builds were made from is kept in a fake registry.

use std::time::Duration;

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex};
use function_host::http::Method;
use serde_json::{Value, json};

use crate::builds::{answer_statuses_holding_back_the_last, ask, signed_bodyless_request};
use crate::complete_or_panic;
use crate::daemon;
use crate::record_store::{record_repository_of, wait_for_tags};
use crate::registry::FakeRegistry;
use crate::setting::{AnswerStatusAndBody, TestBuilder, request_tar_with};

/// Returns the status of a build whose steps were cached, or took so many seconds.
fn status_with_steps(names_and_seconds_unless_cached: &[(&str, Option<i64>)]) -> StatusResponse {
    let vertex = |(at, (name, seconds)): (usize, &(&str, Option<i64>))| {
        let began = 1_790_000_000 + 100 * i64::try_from(at).expect("small");
        let time = |seconds| Some(Timestamp { seconds, nanos: 0 });
        Vertex {
            digest: format!("sha256:{at}"),
            name: (*name).to_owned(),
            cached: seconds.is_none(),
            started: time(began),
            completed: time(began + seconds.unwrap_or_default()),
            ..Vertex::default()
        }
    };
    StatusResponse {
        vertexes: names_and_seconds_unless_cached
            .iter()
            .enumerate()
            .map(vertex)
            .collect(),
        ..StatusResponse::default()
    }
}

/// Builds the call `id`, and waits until what it was made from is recorded.
async fn build_and_wait_for_inputs(
    registry: &FakeRegistry,
    id: &str,
    config: Value,
    names_and_seconds_unless_cached: &[(&str, Option<i64>)],
) -> TestBuilder {
    let (daemon, mut calls) = daemon::start_fake_daemon();
    let builder = TestBuilder::new(daemon)
        .with_record_store(&record_repository_of(registry))
        .with_call_id(id);
    let ended = answer_statuses_holding_back_the_last(
        &mut calls,
        vec![
            status_with_steps(names_and_seconds_unless_cached),
            StatusResponse::default(),
        ],
    );
    ended.send_replace(true);
    let inputs = |registry: &FakeRegistry| {
        let tags = registry.tags("slipway/records");
        tags.iter().filter(|tag| tag.starts_with("m-")).count()
    };
    let before = inputs(registry);
    let own = builder.clone();
    let build = tokio::spawn(async move { own.send_signed_build(request_tar_with(config)).await });
    let solve = complete_or_panic(calls.solves.recv()).await.expect("a solve");
    solve.answer_with_digest(&format!("sha256:{id}"));
    let answer = complete_or_panic(build).await.expect("no panic");
    assert_eq!(answer.status, 200, "{}", answer.body);
    builder.wait_until_background_work_ended().await;
    assert_eq!(inputs(registry), before + 1);
    builder
}

#[tokio::test]
async fn the_first_step_without_its_cache_is_named_with_the_changed_argument_and_no_value_leaks() {
    let registry = FakeRegistry::start().await;
    let base = "[1/3] FROM r.example/base:1@sha256:aa";
    let (copy, run) = ("[2/3] COPY hunter2 b", "[3/3] RUN make");
    let arguments = |version: &str| json!({"buildArgs": {"VERSION": version, "TOKEN": "hunter2"}});
    let config = arguments("secret-1");
    build_and_wait_for_inputs(
        &registry,
        "v1",
        config,
        &[(base, Some(1)), (copy, Some(2)), (run, Some(3))],
    )
    .await;
    let config = arguments("secret-2");
    let builder = build_and_wait_for_inputs(
        &registry,
        "v2",
        config,
        &[(base, None), (copy, None), (run, Some(4))],
    )
    .await;

    let answer = complete_or_panic(async {
        loop {
            // The record of the first build is written in the background.
            let answer = ask(&builder, Method::GET, "/builds/v1/diff/v2").await;
            if answer.status == 200 {
                return answer.body;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(
        answer["firstMiss"],
        json!({"step": run, "seconds": 4.0, "causes": [{"kind": "argument", "name": "VERSION", "change": "changed"}]})
    );
    assert_eq!(
        answer["steps"][2],
        json!({"name": run, "a": {"cached": false, "seconds": 3.0}, "b": {"cached": false, "seconds": 4.0}})
    );
    assert_eq!(
        answer["arguments"],
        json!({"changed": ["VERSION"], "added": [], "removed": []})
    );
    assert_eq!(
        answer["bases"],
        json!([{"image": "r.example/base:1", "a": "sha256:aa", "b": "sha256:aa"}])
    );
    assert_eq!(
        (&answer["a"]["id"], &answer["b"]["id"]),
        (&json!("v1"), &json!("v2"))
    );
    assert_eq!(answer["b"]["imageBytes"], 3_001_500);

    let text = answer.to_string();
    let kept: Vec<_> = registry.contents();
    for value in ["hunter2", "secret-1", "secret-2"] {
        assert!(!text.contains(value), "{text}");
    }
    for (key, content) in kept {
        let content = String::from_utf8_lossy(&content);
        for plain in ["hunter2", "secret-", "VERSION", "RUN make"] {
            assert!(!content.contains(plain), "{plain:?} is readable in {key}");
        }
    }
}

#[tokio::test]
async fn what_a_build_was_made_from_is_swept_with_its_record_or_a_day_later_without_one() {
    let day = Duration::from_secs(24 * 60 * 60);
    let registry = FakeRegistry::start().await;
    let steps = [("[1/1] RUN make", Some(1))];
    let recorded = build_and_wait_for_inputs(&registry, "recorded", json!({}), &steps).await;
    let orphan = build_and_wait_for_inputs(&registry, "orphan", json!({}), &steps).await;
    let inputs = || {
        let tags = registry.tags("slipway/records").into_iter();
        tags.filter(|tag| tag.starts_with("m-")).count()
    };
    // Each build has two tags for its record, which is written in the background, and one for what it was made from.
    wait_for_tags(&registry, "slipway/records", 6).await;
    registry.delete_last_record("slipway/records");

    orphan
        .sweep_records_as_if_after(day - Duration::from_secs(60))
        .await;
    assert_eq!(inputs(), 2, "its record may still be written");
    orphan.sweep_records_as_if_after(2 * day).await;
    assert_eq!(inputs(), 1);
    assert_eq!(ask(&recorded, Method::GET, "/builds/recorded").await.status, 200);
    recorded.sweep_records_as_if_after(8 * day).await;
    assert_eq!(registry.tags("slipway/records"), [""; 0]);
}

#[tokio::test]
async fn other_images_unknown_builds_and_forged_questions_get_no_comparison() {
    let registry = FakeRegistry::start().await;
    let steps = [("[1/1] RUN make", Some(1))];
    build_and_wait_for_inputs(&registry, "v1", json!({}), &steps).await;
    let other = json!({"image": "registry:5000/other:1"});
    let builder = build_and_wait_for_inputs(&registry, "v2", other, &steps).await;
    let asked = async |path: &str| ask(&builder, Method::GET, path).await;
    let wrong = complete_or_panic(async {
        loop {
            let answer = asked("/builds/v1/diff/v2").await;
            if answer.status != 404 {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(wrong.status, 400, "{}", wrong.body);
    assert!(
        wrong.body["error"]
            .as_str()
            .is_some_and(|error| error.contains("other:1"))
    );
    // The daemon of the builds has gone, and may have known it.
    assert_eq!(asked("/builds/v1/diff/v9").await.status, 502);
    let (daemon, _calls) = daemon::start_fake_daemon();
    let later = TestBuilder::new(daemon).with_record_store(&record_repository_of(&registry));
    assert_eq!(ask(&later, Method::GET, "/builds/v1/diff/v9").await.status, 404);
    let post = signed_bodyless_request("payload key", Method::POST, "/builds/v1/diff/v2", "*/*");
    assert_eq!(builder.send_request(post).await.status(), 405);
    let forged = signed_bodyless_request("another key", Method::GET, "/builds/v1/diff/v2", "*/*");
    assert_eq!(
        AnswerStatusAndBody::from_json_response_or_text_of_429(builder.send_request(forged).await)
            .await
            .status,
        401
    );

    let (daemon, _calls) = daemon::start_fake_daemon();
    let without = ask(&TestBuilder::new(daemon), Method::GET, "/builds/v1/diff/v2").await;
    assert_eq!(without.status, 501);
    assert!(
        without.body["error"]
            .as_str()
            .is_some_and(|error| error.contains("records_repository"))
    );
}
