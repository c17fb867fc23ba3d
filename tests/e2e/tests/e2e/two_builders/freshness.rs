//! With `max_age`, a signed request that has a time is built under one call ID only, at whichever builder, and is
//! rejected once it is older than `max_age`.

use anyhow::Result;
use serde_json::json;
use slipway_e2e::{build_context::BuildContext, client::HttpReply, deployer_process::DeployerProcess};

use super::{TwoBuildersAndOneDeployer, assert_built_and_ready, time_seconds_from_now, unused_call_id};

const MAX_AGE_SETTING: (&str, &str) = ("max_age", "1h");

/// Asserts that a request was rejected because its signature was used by the call with this id.
fn assert_signature_used_by(reply: &HttpReply, call_id: &str) {
    assert_eq!(reply.status, 409, "{}", reply.text);
    let error = reply.text_field("error");
    assert!(
        error.contains(call_id) && error.contains("submittedAt"),
        "{error}"
    );
}

#[tokio::test]
async fn a_signature_is_not_built_again_under_another_call_id_by_any_builder() -> Result<()> {
    let mut two =
        TwoBuildersAndOneDeployer::remove_function_and_start("replayed", &[MAX_AGE_SETTING]).await?;
    let (first, other) = (unused_call_id("first")?, unused_call_id("other")?);
    let mut config = two.config_with_deployment("1");
    config["submittedAt"] = json!(time_seconds_from_now(-1)?);
    let tar = two.page_tar("once", &config).await?;
    assert_built_and_ready(&two.build_at(0, &tar, &first).await?)?;

    for restart in [false, true] {
        if restart {
            two.replace_builders_one_after_the_other().await?;
        }
        for index in [1, 0] {
            two.proxy.clear_requests();
            assert_signature_used_by(&two.build_at(index, &tar, &other).await?, &first);
            assert_eq!(two.proxy.changing_system_requests(), Vec::<String>::new());
            // The queue's redelivery is not another request.
            assert_built_and_ready(&two.build_at(index, &tar, &first).await?)?;
        }
    }

    // The same source, signed again with another time, is another request.
    config["submittedAt"] = json!(time_seconds_from_now(0)?);
    let tar = two.page_tar("once", &config).await?;
    assert_built_and_ready(&two.build_at(1, &tar, &other).await?)?;
    two.remove_function().await
}

#[tokio::test]
async fn a_signature_counts_as_used_while_its_build_runs_and_after_it_failed() -> Result<()> {
    let mut two =
        TwoBuildersAndOneDeployer::remove_function_and_start("replayed-early", &[MAX_AGE_SETTING]).await?;
    let (gate, first) = ("gate-of-replayed-early", unused_call_id("first")?);
    let mut config = two.config_with_deployment("1");
    config["submittedAt"] = json!(time_seconds_from_now(-1)?);
    let tar = two.gated_page_tar("once", gate, &config).await?;
    let running = two
        .start_gated_build_and_wait_for_its_step(0, &tar, gate, &[("X-Call-Id", &first)])
        .await?;
    for index in [0, 1] {
        assert_signature_used_by(
            &two.build_at(index, &tar, &unused_call_id("other")?).await?,
            &first,
        );
    }
    two.testbed.open_gate_of_step(gate)?;
    assert_built_and_ready(&running.await??)?;

    let base = two.testbed.build_busybox_once_and_get_name().await?;
    config["submittedAt"] = json!(time_seconds_from_now(0)?);
    let failing =
        BuildContext::dockerfile(format!("FROM {base}\nRUN exit 7\n")).tar_with_config_last(&config)?;
    let failed = unused_call_id("failed")?;
    assert_eq!(two.build_at(0, &failing, &failed).await?.status, 422);
    two.replace_builders_one_after_the_other().await?;
    for index in [0, 1] {
        assert_signature_used_by(
            &two.build_at(index, &failing, &unused_call_id("other")?).await?,
            &failed,
        );
    }
    two.remove_function().await
}

#[tokio::test]
async fn with_require_fresh_requests_that_are_too_old_or_have_no_time_are_rejected() -> Result<()> {
    let two = TwoBuildersAndOneDeployer::remove_function_and_start(
        "too-old",
        &[MAX_AGE_SETTING, ("require_fresh", "true")],
    )
    .await?;
    let fresh = time_seconds_from_now(-1)?;
    let old = time_seconds_from_now(-2 * 60 * 60)?;
    for (time, status) in [(None, 400), (Some(&old), 400), (Some(&fresh), 200)] {
        let mut config = two.config_with_deployment("1");
        if let Some(time) = time {
            config["submittedAt"] = json!(time);
        }
        let tar = two.page_tar("fresh", &config).await?;
        let reply = two.build_at(1, &tar, &unused_call_id("fresh")?).await?;
        assert_eq!(reply.status, status, "{time:?}: {}", reply.text);
        if status == 400 {
            let error = reply.text_field("error");
            assert!(error.contains("submittedAt"), "{time:?}: {error}");
        }
    }
    two.remove_function().await
}

#[tokio::test]
async fn with_max_age_a_request_without_a_time_is_still_built_under_any_number_of_call_ids() -> Result<()> {
    let two = TwoBuildersAndOneDeployer::remove_function_and_start("timeless", &[MAX_AGE_SETTING]).await?;
    let tar = two.page_tar("timeless", &two.config_with_deployment("1")).await?;
    for index in [0, 1] {
        assert_built_and_ready(&two.build_at(index, &tar, &unused_call_id("timeless")?).await?)?;
    }
    two.remove_function().await
}

#[tokio::test]
async fn every_deployer_refuses_a_hand_over_after_its_expiry() -> Result<()> {
    let two = TwoBuildersAndOneDeployer::remove_function_and_start("expired", &[]).await?;
    let tar = two
        .page_tar("expired", &two.config_without_deployment("1"))
        .await?;
    let built = two.build_at(0, &tar, &unused_call_id("expired")?).await?;
    assert_eq!(built.status, 200, "{}", built.text);
    let host = &two.testbed.stack.registry.host;
    let image = format!(
        "{host}/{}@{}",
        two.repository_path_of_function(),
        built.text_field("digest")
    );
    let mut hand_over = json!({
        "image": image, "callId": unused_call_id("expired")?, "submittedAt": time_seconds_from_now(-60)?,
        "builtAt": time_seconds_from_now(-30)?, "deploy": { "service": two.function },
    });
    let expired = time_seconds_from_now(-1)?;
    hand_over["expiresAt"] = json!(expired);
    let other = DeployerProcess::start(&two.testbed, two.proxy.url(), &[]).await?;
    for deployer in [&two.deployer, &other] {
        let reply = deployer
            .send_hand_over_and_get_status_and_text(&hand_over)
            .await?;
        assert_eq!(reply.status, 422, "{}", reply.text);
        assert_eq!(reply.text_field("status"), "refused", "{}", reply.text);
        // The second, without its fraction.
        assert!(reply.text.contains(&expired[..19]), "{}", reply.text);
    }
    assert!(
        two.testbed
            .functions
            .function_status(&two.function)
            .await?
            .is_none()
    );
    hand_over["expiresAt"] = json!(time_seconds_from_now(60)?);
    let reply = other.send_hand_over_and_get_status_and_text(&hand_over).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    two.remove_function().await
}
