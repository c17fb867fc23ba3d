//! A signed request is built once within `max_age`, at whichever builder, and is rejected after it.

use anyhow::Result;
use serde_json::json;
use slipway_e2e::{build_context::BuildContext, client::Reply, deployer_process::DeployerProcess};

use super::{TwoBuilders, assert_ready, call_id, seconds_from_now};

const MAX_AGE: (&str, &str) = ("max_age", "1h");

/// Asserts that a request was rejected because its signature was used by the call with this id.
fn assert_used(reply: &Reply, by: &str) {
    assert_eq!(reply.status, 409, "{}", reply.text);
    let error = reply.field("error");
    assert!(error.contains(by) && error.contains("submittedAt"), "{error}");
}

#[tokio::test]
async fn a_signature_is_not_built_again_under_another_call_id_by_any_builder() -> Result<()> {
    let mut two = TwoBuilders::open("replayed", &[MAX_AGE]).await?;
    let (first, other) = (call_id("first")?, call_id("other")?);
    let mut config = two.config("1");
    config["submittedAt"] = json!(seconds_from_now(-1)?);
    let tar = two.pages("once", &config).await?;
    assert_ready(&two.build(0, &tar, &first).await?)?;

    for restart in [false, true] {
        if restart {
            two.restart_builders().await?;
        }
        for index in [1, 0] {
            two.proxy.clear_requests();
            assert_used(&two.build(index, &tar, &other).await?, &first);
            assert_eq!(two.proxy.writes(), Vec::<String>::new());
            // The queue's redelivery is not another request.
            assert_ready(&two.build(index, &tar, &first).await?)?;
        }
    }

    // The same source, signed again with another time, is another request.
    config["submittedAt"] = json!(seconds_from_now(0)?);
    let tar = two.pages("once", &config).await?;
    assert_ready(&two.build(1, &tar, &other).await?)?;
    two.close().await
}

#[tokio::test]
async fn a_signature_whose_build_runs_or_failed_is_used_too() -> Result<()> {
    let mut two = TwoBuilders::open("replayed-early", &[MAX_AGE]).await?;
    let (gate, first) = ("gate-of-replayed-early", call_id("first")?);
    let mut config = two.config("1");
    config["submittedAt"] = json!(seconds_from_now(-1)?);
    let tar = two.gated_pages("once", gate, &config).await?;
    let running = two.start_gated(0, &tar, gate, &[("X-Call-Id", &first)]).await?;
    for index in [0, 1] {
        assert_used(&two.build(index, &tar, &call_id("other")?).await?, &first);
    }
    two.testbed.open_gate(gate)?;
    assert_ready(&running.await??)?;

    let base = two.testbed.busybox().await?;
    config["submittedAt"] = json!(seconds_from_now(0)?);
    let failing = BuildContext::dockerfile(format!("FROM {base}\nRUN exit 7\n")).tar(&config)?;
    let failed = call_id("failed")?;
    assert_eq!(two.build(0, &failing, &failed).await?.status, 422);
    two.restart_builders().await?;
    for index in [0, 1] {
        assert_used(&two.build(index, &failing, &call_id("other")?).await?, &failed);
    }
    two.close().await
}

#[tokio::test]
async fn requests_that_are_too_old_or_have_no_time_are_rejected() -> Result<()> {
    let two = TwoBuilders::open("too-old", &[MAX_AGE, ("require_fresh", "true")]).await?;
    let fresh = seconds_from_now(-1)?;
    let old = seconds_from_now(-2 * 60 * 60)?;
    for (time, status) in [(None, 400), (Some(&old), 400), (Some(&fresh), 200)] {
        let mut config = two.config("1");
        if let Some(time) = time {
            config["submittedAt"] = json!(time);
        }
        let tar = two.pages("fresh", &config).await?;
        let reply = two.build(1, &tar, &call_id("fresh")?).await?;
        assert_eq!(reply.status, status, "{time:?}: {}", reply.text);
        if status == 400 {
            let error = reply.field("error");
            assert!(error.contains("submittedAt"), "{time:?}: {error}");
        }
    }
    two.close().await
}

#[tokio::test]
async fn with_max_age_clients_without_a_time_are_built_as_before() -> Result<()> {
    let two = TwoBuilders::open("timeless", &[MAX_AGE]).await?;
    let tar = two.pages("timeless", &two.config("1")).await?;
    for index in [0, 1] {
        assert_ready(&two.build(index, &tar, &call_id("timeless")?).await?)?;
    }
    two.close().await
}

#[tokio::test]
async fn every_deployer_refuses_a_hand_over_after_its_expiry() -> Result<()> {
    let two = TwoBuilders::open("expired", &[]).await?;
    let tar = two.pages("expired", &two.config_without_deployment("1")).await?;
    let built = two.build(0, &tar, &call_id("expired")?).await?;
    assert_eq!(built.status, 200, "{}", built.text);
    let host = &two.testbed.stack.registry.host;
    let image = format!("{host}/{}@{}", two.repository(), built.field("digest"));
    let mut hand_over = json!({
        "image": image, "callId": call_id("expired")?, "submittedAt": seconds_from_now(-60)?,
        "builtAt": seconds_from_now(-30)?, "deploy": { "service": two.function },
    });
    let expired = seconds_from_now(-1)?;
    hand_over["expiresAt"] = json!(expired);
    let other = DeployerProcess::start(&two.testbed, two.proxy.url(), &[]).await?;
    for deployer in [&two.deployer, &other] {
        let reply = deployer.deploy(&hand_over).await?;
        assert_eq!(reply.status, 422, "{}", reply.text);
        assert_eq!(reply.field("status"), "refused", "{}", reply.text);
        // The second, without its fraction.
        assert!(reply.text.contains(&expired[..19]), "{}", reply.text);
    }
    assert!(two.testbed.functions.status(&two.function).await?.is_none());
    hand_over["expiresAt"] = json!(seconds_from_now(60)?);
    let reply = other.deploy(&hand_over).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    two.close().await
}
