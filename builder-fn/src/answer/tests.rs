//! Tests of the statuses, bodies and headers of answers.

use function_host::Response;
use function_host::http::header::CONNECTION;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::*;
use crate::buildkit::{BuildFailure, FaultyParty};
use crate::context::SpoolError;
use crate::hand_over::DeploymentOutcome;
use crate::report::StreamFormat;
use crate::request::RequestError;

async fn read_status_and_json(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("body").to_bytes();
    (status, serde_json::from_slice(&body).expect("JSON"))
}

fn answer_fields() -> AnswerImageAndSeconds<'static> {
    AnswerImageAndSeconds {
        image: Some("registry/hello:1"),
        seconds: 1.5,
    }
}

fn response_with_log(mut answer: Answer) -> Response {
    answer.report.log = Some(vec!["l: x".into()]);
    answer.into_json_response_or_text_429()
}

#[tokio::test]
async fn a_successful_build_is_answered_with_200_and_its_log() {
    let answer = Answer::from_built(
        BuildResult {
            digest: Some("sha256:12".into()),
            commit: None,
            deployment: None,
        },
        answer_fields(),
    );

    assert_eq!(
        read_status_and_json(response_with_log(answer)).await,
        (
            200,
            json!({"log": ["l: x"], "image": "registry/hello:1", "digest": "sha256:12", "status": "success",
                   "duration": 1.5})
        )
    );
}

#[tokio::test]
async fn the_deployment_of_a_built_image_decides_the_status_and_the_answer_keeps_the_digest() {
    for (deployment, status) in [
        (DeploymentStatus::Ready, 200),
        (DeploymentStatus::Rejected, 422),
        (DeploymentStatus::Failed, 502),
    ] {
        let deployment = DeploymentOutcome {
            status: deployment,
            answer: json!({"status": "x", "reasons": ["it crashed"]}),
            enclosed: None,
        };
        let answer = Answer::from_built(
            BuildResult {
                digest: Some("sha256:12".into()),
                commit: None,
                deployment: Some(deployment),
            },
            answer_fields(),
        );

        let (found, body) = read_status_and_json(response_with_log(answer)).await;
        assert_eq!(found, status);
        assert_eq!(body["digest"], "sha256:12");
        assert_eq!(body["deployment"]["reasons"][0], "it crashed");
        let text = "the image was built and pushed, but not deployed: it crashed";
        assert_eq!(body["error"] == text, status != 200, "{body}");
        assert_eq!(body["status"], if status == 200 { "success" } else { "failed" });
    }
}

#[tokio::test]
async fn an_error_is_answered_with_the_http_status_of_its_kind_and_the_log_so_far() {
    let build = |fault| {
        Error::Failed(BuildFailure {
            message: "exit code: 3".into(),
            fault,
            dockerfile_line: None,
        })
    };
    for (error, status) in [
        (Error::Request(RequestError::NotSigned), 401),
        (Error::Request(RequestError::NoConfig), 400),
        (
            Error::Request(RequestError::TooSlow {
                rate: 7,
                grace: std::time::Duration::from_secs(10),
            }),
            408,
        ),
        (Error::Request(RequestError::TooLarge { limit: 7 }), 413),
        (Error::Request(SpoolError::Quota { limit: 7 }.into()), 507),
        (
            Error::NoDeploySecret {
                secret: "deploy-secret",
            },
            400,
        ),
        (Error::NoSealKey, 400),
        (build(FaultyParty::Caller), 422),
        (
            Error::TimeLimit {
                limit: std::time::Duration::from_secs(90),
            },
            422,
        ),
        (build(FaultyParty::Platform), 502),
        (Error::Interrupted, 502),
        (Error::Lost("reset".into()), 502),
    ] {
        let text = error.to_string();
        let (found, body) =
            read_status_and_json(response_with_log(Answer::from_error(&error, answer_fields()))).await;
        assert_eq!(found, status, "{text}");
        assert_eq!(body["error"], text);
        assert_eq!(body["status"], "failed");
        assert_eq!(body["image"], "registry/hello:1");
        assert_eq!(body["log"], json!(["l: x"]));
    }
}

#[tokio::test]
async fn a_busy_builder_answers_429_with_the_same_body_as_the_host() {
    let response =
        Answer::from_error(&Error::Busy { limit: 3 }, answer_fields()).into_json_response_or_text_429();

    assert_eq!(response.status().as_u16(), 429);
    assert_eq!(response.headers()["retry-after"], "1");
    let body = response.into_body().collect().await.expect("body").to_bytes();
    assert_eq!(
        body,
        "Concurrent request limit exceeded. Max concurrent requests: 3\n"
    );
}

#[tokio::test]
async fn a_builder_that_is_shutting_down_answers_with_a_retry_after_header() {
    let response = Answer::from_error(&Error::Draining, AnswerImageAndSeconds::default())
        .into_json_response_or_text_429();

    assert_eq!(response.status().as_u16(), 429);
    assert_eq!(response.headers()["retry-after"], "1");
    let body = response.into_body().collect().await.expect("body").to_bytes();
    assert_eq!(
        body,
        "the builder is shutting down and starts no more builds; try again\n"
    );
}

#[test]
fn the_answer_to_a_too_large_request_closes_the_connection() {
    let error = Error::Request(RequestError::TooLarge { limit: 7 });

    let response =
        Answer::from_error(&error, AnswerImageAndSeconds::default()).into_json_response_or_text_429();
    assert_eq!(response.headers()[CONNECTION], "close");
}

#[tokio::test]
async fn a_streamed_answer_is_200_and_must_not_be_buffered_by_proxies() {
    let answer = Answer::from_error(&Error::Request(RequestError::NoConfig), answer_fields());
    let response = answer.into_streamed_response(StreamFormat::EventStream);

    assert_eq!(response.status(), 200);
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-cache"),
        ("x-accel-buffering", "no"),
    ] {
        assert_eq!(response.headers()[name], value);
    }
    let body = response.into_body().collect().await.expect("body").to_bytes();
    let record = body
        .strip_prefix(b"data: ")
        .and_then(|rest| rest.strip_suffix(b"\n\n"));
    let record: Value = serde_json::from_slice(record.expect("an event")).expect("JSON");
    assert_eq!(record["status"], "failed");
}
