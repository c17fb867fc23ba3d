//! A request that a queue delivers again, with the same call id: it attaches to its build or gives the same result.

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde_json::{Value, json};
use slipway_e2e::{build_context::BuildContext, client::HttpReply};

use super::{TwoBuildersAndOneDeployer, assert_built_and_ready, unused_call_id};

/// Returns the image's digest in a build's result.
fn digest_in_result(reply: &HttpReply) -> Result<String> {
    let result = reply.json_or_error_text();
    let digest = result["digest"].as_str();
    Ok(digest
        .with_context(|| format!("no digest in {result:#}"))?
        .to_owned())
}

#[tokio::test]
async fn a_redelivery_to_another_builder_attaches_to_the_running_build() -> Result<()> {
    let two =
        TwoBuildersAndOneDeployer::remove_function_and_start("attached", &[("max_inflight", "1")]).await?;
    let gate = "gate-of-attached";
    let id = unused_call_id("attached")?;
    let tar = two
        .gated_page_tar("attached", gate, &two.config_with_deployment("1"))
        .await?;
    // A queue sends the gateway's time with each delivery.
    let time = Timestamp::now().as_nanosecond().to_string();
    let headers = [("X-Call-Id", id.as_str()), ("X-Start-Time", time.as_str())];
    let first = two
        .start_gated_build_and_wait_for_its_step(0, &tar, gate, &headers)
        .await?;
    let second = two.start_build(1, &tar, &headers)?;
    // Its only slot is taken: the second builder has the request.
    two.builders[1].wait_until_not_ready().await?;
    two.testbed.open_gate_of_step(gate)?;
    let (first, second) = (first.await??, second.await??);
    assert_built_and_ready(&first)?;
    assert_built_and_ready(&second)?;
    assert_eq!(digest_in_result(&first)?, digest_in_result(&second)?);
    two.remove_function().await
}

#[tokio::test]
async fn a_redelivery_to_any_builder_gives_the_same_digest_and_changes_no_function() -> Result<()> {
    let mut two = TwoBuildersAndOneDeployer::remove_function_and_start("delivered-again", &[]).await?;
    let id = unused_call_id("delivered-again")?;
    let tar = two.page_tar("once", &two.config_with_deployment("1")).await?;
    let first = two.build_at(0, &tar, &id).await?;
    assert_eq!(assert_built_and_ready(&first)?["deployment"]["changed"], true);
    let created = two.creation_time_of_running_version().await?;

    let again = async |two: &TwoBuildersAndOneDeployer, index| -> Result<()> {
        two.proxy.clear_requests();
        let reply = two.build_at(index, &tar, &id).await?;
        assert_eq!(
            assert_built_and_ready(&reply)?["deployment"]["changed"],
            false,
            "{}",
            reply.text
        );
        assert_eq!(digest_in_result(&reply)?, digest_in_result(&first)?);
        assert_eq!(two.proxy.changing_system_requests(), Vec::<String>::new());
        Ok(())
    };
    again(&two, 0).await?;
    again(&two, 1).await?;
    two.replace_builders_one_after_the_other().await?;
    again(&two, 0).await?;
    again(&two, 1).await?;
    assert_eq!(two.creation_time_of_running_version().await?, created);
    two.remove_function().await
}

/// With the strategy `recreate`, the provider takes a version that does not start, and the deployer rolls it back.
#[tokio::test]
async fn a_deployment_that_failed_is_not_tried_again_when_it_is_delivered_again() -> Result<()> {
    let mut two = TwoBuildersAndOneDeployer::remove_function_and_start("failed-once", &[]).await?;
    let mut config = two.config_with_deployment("1");
    let annotations = json!({ "dev.slipway.update-strategy": "recreate" });
    config["deploy"]["annotations"] = annotations.clone();
    let tar = two.page_tar("good", &config).await?;
    assert_built_and_ready(&two.build_at(0, &tar, &unused_call_id("good")?).await?)?;

    let base = two.testbed.build_busybox_once_and_get_name().await?;
    let crash = format!("FROM {base}\nUSER 1000\nCMD [\"/bin/sh\", \"-c\", \"exit 3\"]\n");
    let mut config = two.config_with_deployment("2");
    config["deploy"]["annotations"] = annotations;
    let tar = BuildContext::dockerfile(crash).tar_with_config_last(&config)?;
    let (id, time) = (
        unused_call_id("bad")?,
        Timestamp::now().as_nanosecond().to_string(),
    );
    let headers = [("X-Call-Id", id.as_str()), ("X-Start-Time", time.as_str())];
    let first = two.build_at_with_headers(0, &tar, &headers).await?;
    assert_eq!(first.status, 422, "{}", first.text);
    assert_eq!(
        deployment_status_in_reply(&first),
        "rolled_back",
        "{}",
        first.text
    );

    two.start_new_builder_then_kill_old(0).await?;
    for index in [0, 1] {
        two.proxy.clear_requests();
        let again = two.build_at_with_headers(index, &tar, &headers).await?;
        assert_eq!(again.status, 422, "{}", again.text);
        assert_eq!(
            deployment_status_in_reply(&again),
            "rolled_back",
            "{}",
            again.text
        );
        assert_eq!(two.proxy.changing_system_requests(), Vec::<String>::new());
    }
    assert_eq!(two.get_function_page().await?, (200, "good".to_owned()));
    two.remove_function().await
}

/// Returns the deployment's status in a build's result.
fn deployment_status_in_reply(reply: &HttpReply) -> Value {
    reply.json_or_error_text()["deployment"]["status"].take()
}

#[tokio::test]
async fn a_finished_build_whose_manifest_left_the_registry_is_built_again() -> Result<()> {
    let mut two = TwoBuildersAndOneDeployer::remove_function_and_start("built-again", &[]).await?;
    let id = unused_call_id("built-again")?;
    let tar = two.page_tar("again", &two.config_without_deployment("1")).await?;
    let built = two.build_at(0, &tar, &id).await?;
    assert_eq!(built.status, 200, "{}", built.text);
    let (registry, repository) = (&two.testbed.registry.clone(), two.repository_path_of_function());
    for restart in [false, true] {
        if restart {
            two.replace_builders_one_after_the_other().await?;
        }
        for index in [0, 1] {
            let pushed = digest_in_result(&two.build_at(index, &tar, &id).await?)?;
            assert!(registry.get_manifest(&repository, &pushed).await?.is_some());
            registry
                .delete_manifest_and_its_tags(&repository, &pushed)
                .await?;
            let again = two.build_at(index, &tar, &id).await?;
            assert_eq!(again.status, 200, "{}", again.text);
            let manifest = registry
                .get_manifest(&repository, &digest_in_result(&again)?)
                .await?;
            assert!(manifest.is_some(), "{}", again.text);
            assert!(registry.get_manifest(&repository, "1").await?.is_some());
        }
    }
    two.remove_function().await
}
