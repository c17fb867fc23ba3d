//! Tests of the dry run at the deployer, before a build takes a slot.

use std::time::Duration;

use builder_fn::hand_over::DeployVia;
use builder_fn::slots::BuildSlots;
use function_host::signature::SignatureVerifier;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::daemon;
use crate::gateway::{self, DRY_RUN_ACCEPTED_JSON};
use crate::hand_over::let_build_succeed;
use crate::setting::{AnswerStatusAndBody, CALL_ID, TestBuilder, hmac_keys, request_tar_with};

/// Sends a build request whose config has `deploy` and `probe`, in a background task.
fn spawn_deployed_build(setting: &TestBuilder) -> JoinHandle<AnswerStatusAndBody> {
    let setting = setting.clone();
    let config = json!({"deploy": {"service": "hello"}, "probe": {"path": "/works"}});
    tokio::spawn(async move { setting.send_signed_build(request_tar_with(config)).await })
}

#[tokio::test]
async fn a_deployment_that_would_be_refused_is_rejected_before_a_slot_is_taken() {
    for (status, answer, expected) in [
        (
            422,
            r#"{"dryRun":true,"status":"refused","reasons":["no secret \"a\"","no namespace \"b\""]}"#,
            422,
        ),
        (
            400,
            r#"{"dryRun":true,"status":"refused","reasons":["deploy.service must be lower-case"]}"#,
            422,
        ),
        (
            409,
            r#"{"dryRun":true,"status":"refused","reasons":["a newer one runs"],"supersededBy":"call-2"}"#,
            409,
        ),
    ] {
        let (address, mut received) = gateway::start_manual_gateway().await;
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let setting = TestBuilder::with_gateway(daemon, &format!("http://{address}"))
            .with_slots(BuildSlots::new(1, Duration::from_secs(3600), 1));
        setting.write_secret("deploy-secret", "deploy key");
        let other = tokio::spawn({
            let setting = setting.clone();
            async move { setting.send_signed_build(request_tar_with(json!({}))).await }
        });
        let (solve, updates, _session) = calls.wait_without_limit_for_build_calls().await;

        let answering = spawn_deployed_build(&setting);
        let call = received.recv().await.expect("a dry run");
        assert_eq!(call.request.uri().path(), "/function/deployer-fn");
        assert_eq!(call.request.headers()["x-call-id"], CALL_ID);
        let signature = call.request.headers()["x-deploy-signature"]
            .to_str()
            .expect("text");
        let mut verifier = SignatureVerifier::new(&hmac_keys("deploy key"), signature).expect("a signature");
        verifier.update(call.request.body());
        verifier.verify().expect("the right one");
        let mut body = call.body();
        assert!(body["submittedAt"].take().is_string());
        assert_eq!(
            body,
            json!({
                "dryRun": true,
                "tag": "registry:5000/hello:1",
                "callId": CALL_ID,
                "submittedAt": null,
                "deploy": {"service": "hello"},
                "probe": {"path": "/works"}
            })
        );
        call.answer(status, answer);
        // The only slot is taken all the time.
        let rejected = answering.await.expect("no panic");

        let answer: Value = serde_json::from_str(answer).expect("JSON");
        assert_eq!(
            (rejected.status, &rejected.body["status"]),
            (expected, &json!("failed"))
        );
        assert_eq!(rejected.body["deployment"], answer);
        assert_eq!(rejected.body["supersededBy"], answer["supersededBy"]);
        for reason in answer["reasons"].as_array().expect("reasons") {
            let error = rejected.body["error"].as_str().expect("text");
            assert!(error.contains(reason.as_str().expect("text")), "{error}");
        }
        assert!(calls.solves.try_recv().is_err());
        drop(updates);
        solve.answer_with_digest("sha256:12");
        assert_eq!(other.await.expect("no panic").status, 200);
    }
}

#[tokio::test]
async fn a_deployer_that_cannot_answer_a_dry_run_prevents_no_build() {
    let down = Some("\"deploy\" and \"probe\" could not be checked before the build");
    // Per case: the answers to the dry run, and the warning.
    for (answers, warning) in [
        (&[(200, DRY_RUN_ACCEPTED_JSON)][..], None),
        (&[(503, ""), (200, DRY_RUN_ACCEPTED_JSON)], None),
        (&[(503, ""), (503, "")], down),
        (&[(502, ""), (504, "")], down),
        (&[(404, "no such function")], down),
        (&[(401, r#"{"status":"refused","reasons":["wrong key"]}"#)], down),
        (
            &[(
                502,
                r#"{"dryRun":true,"status":"failed","reasons":["no gateway"]}"#,
            )],
            down,
        ),
        // A deployer from before dry runs.
        (
            &[(400, r#"{"status":"refused","reasons":["image is missing"]}"#)],
            None,
        ),
    ] {
        let (address, mut received) = gateway::start_manual_gateway().await;
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let setting = TestBuilder::with_gateway(daemon, &format!("http://{address}"));
        setting.write_secret("deploy-secret", "deploy key");

        let building = spawn_deployed_build(&setting);
        for (status, answer) in answers {
            let call = received.recv().await.expect("a dry run");
            assert!(call.is_dry_run());
            call.answer(*status, answer);
        }
        let_build_succeed(&mut calls).await;
        let call = received.recv().await.expect("a hand-over");
        assert!(!call.is_dry_run());
        call.answer(200, r#"{"status":"ready"}"#);

        let answer = building.await.expect("no panic");
        assert_eq!(answer.status, 200, "{answer:?}");
        let log = answer.body["log"].to_string().replace("\\\"", "\"");
        assert_eq!(
            log.matches("warning: ").count(),
            usize::from(warning.is_some()),
            "{log}"
        );
        assert!(warning.is_none_or(|warning| log.contains(warning)), "{log}");
    }
}

#[tokio::test]
async fn a_dry_run_is_sent_directly_if_hand_overs_go_through_the_queue_and_not_at_all_with_callbacks() {
    for (via, expected) in [
        (
            DeployVia::AsyncFunction,
            &["/function/deployer-fn", "/async-function/deployer-fn"][..],
        ),
        (DeployVia::Callback, &[]),
    ] {
        let (address, mut received) = gateway::start_manual_gateway().await;
        let (daemon, mut calls) = daemon::start_fake_daemon();
        let setting = TestBuilder::with_gateway(daemon, &format!("http://{address}")).with_deploy_via(via);
        setting.write_secret("deploy-secret", "deploy key");

        let building = spawn_deployed_build(&setting);
        let deployer = async {
            let mut paths = Vec::new();
            for _ in expected {
                let call = received.recv().await.expect("a call");
                paths.push(call.request.uri().path().to_owned());
                match call.is_dry_run() {
                    true => call.answer(200, DRY_RUN_ACCEPTED_JSON),
                    false => call.answer(202, ""),
                }
            }
            paths
        };
        let (paths, ()) = tokio::join!(deployer, let_build_succeed(&mut calls));

        assert_eq!(paths, expected);
        assert_eq!(building.await.expect("no panic").status, 200);
        assert!(received.try_recv().is_err());
    }
}
