//! A request that a queue delivers again, with the same call id: it attaches to its build or gives the same result.

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde_json::{Value, json};
use slipway_e2e::{build_context::BuildContext, client::Reply};

use super::{TwoBuilders, assert_ready, call_id};

/// Returns the image's digest in a build's result.
fn digest(reply: &Reply) -> Result<String> {
    let result = reply.json();
    let digest = result["digest"].as_str();
    Ok(digest
        .with_context(|| format!("no digest in {result:#}"))?
        .to_owned())
}

#[tokio::test]
async fn a_redelivery_to_another_builder_attaches_to_the_running_build() -> Result<()> {
    let two = TwoBuilders::open("attached", &[("max_inflight", "1")]).await?;
    let gate = "gate-of-attached";
    let id = call_id("attached")?;
    let tar = two.gated_pages("attached", gate, &two.config("1")).await?;
    // A queue sends the gateway's time with each delivery.
    let time = Timestamp::now().as_nanosecond().to_string();
    let headers = [("X-Call-Id", id.as_str()), ("X-Start-Time", time.as_str())];
    let first = two.start_gated(0, &tar, gate, &headers).await?;
    let second = two.start(1, &tar, &headers)?;
    // Its only slot is taken: the second builder has the request.
    two.builders[1].wait_until_not_ready().await?;
    two.testbed.open_gate(gate)?;
    let (first, second) = (first.await??, second.await??);
    assert_ready(&first)?;
    assert_ready(&second)?;
    assert_eq!(digest(&first)?, digest(&second)?);
    two.close().await
}

#[tokio::test]
async fn a_redelivery_gives_the_same_result_and_changes_nothing_at_any_builder() -> Result<()> {
    let mut two = TwoBuilders::open("delivered-again", &[]).await?;
    let id = call_id("delivered-again")?;
    let tar = two.pages("once", &two.config("1")).await?;
    let first = two.build(0, &tar, &id).await?;
    assert_eq!(assert_ready(&first)?["deployment"]["changed"], true);
    let created = two.created_at().await?;

    let again = async |two: &TwoBuilders, index| -> Result<()> {
        two.proxy.clear_requests();
        let reply = two.build(index, &tar, &id).await?;
        assert_eq!(
            assert_ready(&reply)?["deployment"]["changed"],
            false,
            "{}",
            reply.text
        );
        assert_eq!(digest(&reply)?, digest(&first)?);
        assert_eq!(two.proxy.writes(), Vec::<String>::new());
        Ok(())
    };
    again(&two, 0).await?;
    again(&two, 1).await?;
    two.restart_builders().await?;
    again(&two, 0).await?;
    again(&two, 1).await?;
    assert_eq!(two.created_at().await?, created);
    two.close().await
}

/// With the strategy `recreate`, the provider takes a version that does not start, and the deployer rolls it back.
#[tokio::test]
async fn a_deployment_that_failed_is_not_tried_again_when_it_is_delivered_again() -> Result<()> {
    let mut two = TwoBuilders::open("failed-once", &[]).await?;
    let mut config = two.config("1");
    let annotations = json!({ "dev.slipway.update-strategy": "recreate" });
    config["deploy"]["annotations"] = annotations.clone();
    let tar = two.pages("good", &config).await?;
    assert_ready(&two.build(0, &tar, &call_id("good")?).await?)?;

    let base = two.testbed.busybox().await?;
    let crash = format!("FROM {base}\nUSER 1000\nCMD [\"/bin/sh\", \"-c\", \"exit 3\"]\n");
    let mut config = two.config("2");
    config["deploy"]["annotations"] = annotations;
    let tar = BuildContext::dockerfile(crash).tar(&config)?;
    let (id, time) = (call_id("bad")?, Timestamp::now().as_nanosecond().to_string());
    let headers = [("X-Call-Id", id.as_str()), ("X-Start-Time", time.as_str())];
    let first = two.build_with(0, &tar, &headers).await?;
    assert_eq!(first.status, 422, "{}", first.text);
    assert_eq!(deployment_status(&first), "rolled_back", "{}", first.text);

    two.restart_builder(0).await?;
    for index in [0, 1] {
        two.proxy.clear_requests();
        let again = two.build_with(index, &tar, &headers).await?;
        assert_eq!(again.status, 422, "{}", again.text);
        assert_eq!(deployment_status(&again), "rolled_back", "{}", again.text);
        assert_eq!(two.proxy.writes(), Vec::<String>::new());
    }
    assert_eq!(two.page().await?, (200, "good".to_owned()));
    two.close().await
}

fn deployment_status(reply: &Reply) -> Value {
    reply.json()["deployment"]["status"].take()
}

#[tokio::test]
async fn a_finished_build_whose_manifest_left_the_registry_is_built_again() -> Result<()> {
    let mut two = TwoBuilders::open("built-again", &[]).await?;
    let id = call_id("built-again")?;
    let tar = two.pages("again", &two.config_without_deployment("1")).await?;
    let built = two.build(0, &tar, &id).await?;
    assert_eq!(built.status, 200, "{}", built.text);
    let (registry, repository) = (&two.testbed.registry.clone(), two.repository());
    for restart in [false, true] {
        if restart {
            two.restart_builders().await?;
        }
        for index in [0, 1] {
            let pushed = digest(&two.build(index, &tar, &id).await?)?;
            assert!(registry.manifest(&repository, &pushed).await?.is_some());
            registry.delete_manifest(&repository, &pushed).await?;
            let again = two.build(index, &tar, &id).await?;
            assert_eq!(again.status, 200, "{}", again.text);
            let manifest = registry.manifest(&repository, &digest(&again)?).await?;
            assert!(manifest.is_some(), "{}", again.text);
            assert!(registry.manifest(&repository, "1").await?.is_some());
        }
    }
    two.close().await
}
