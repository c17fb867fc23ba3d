//! Updates of builder-fn as a function, by the gateway: SIGTERM loses no build that it has accepted from the queue.

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde_json::json;
use slipway_e2e::{
    build_context::{BuildContext, gated_command},
    deployed_builder::DeployedBuilder,
    testbed::Testbed,
};

/// The time for which a builder finishes its builds after SIGTERM: shorter than that after which the provider kills it.
const BUILDER_GRACE_PERIOD: &str = "10s";

#[tokio::test]
async fn an_update_of_the_builder_loses_neither_running_nor_waiting_nor_resumed_builds() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let settings = [
        ("max_inflight", "1"),
        ("queue_wait", "9m"),
        ("healthcheck_interval", "1s"),
        ("exec_timeout", "0s"),
        ("write_timeout", BUILDER_GRACE_PERIOD),
    ];
    let mut builder =
        DeployedBuilder::deploy_anew_and_wait_until_ready(&testbed, "builder-updated", &settings, &[])
            .await?;
    let run = Timestamp::now().as_nanosecond();
    let gate = "gate-of-the-updated-builder";
    let repository = "e2e/updated-builder";
    let image = |tag: &str| testbed.image_name(repository, tag);
    for tag in ["running", "waiting"] {
        if let Some(manifest) = testbed.registry.get_manifest(repository, tag).await? {
            testbed
                .registry
                .delete_manifest_and_its_tags(repository, &manifest.digest)
                .await?;
        }
    }
    let [running, waiting] = ["running", "waiting"].map(|name| format!("{name}-{run}"));
    let dockerfile = format!("FROM {base}\nRUN {}\n", gated_command(gate));
    let tar =
        BuildContext::dockerfile(dockerfile).tar_with_config_last(&json!({"image": image("running")}))?;
    let queued = builder.queued_client()?;
    let reply = queued
        .post_signed_with_headers(tar, &[("X-Call-Id", &running)])
        .await?;
    assert_eq!(reply.status, 202, "{}", reply.text);
    testbed.wait_for_step(gate, true).await?;
    // The queue-worker delivers one call after the other: this one comes as a second worker's would.
    let tar = BuildContext::dockerfile(format!("FROM {base}\nRUN : {run}\n"))
        .tar_with_config_last(&json!({"image": image("waiting")}))?;
    let direct = builder.gateway_client()?;
    let (id, submitted) = (waiting.clone(), run.to_string());
    let delivery = tokio::spawn(async move {
        let headers = [("X-Call-Id", id.as_str()), ("X-Start-Time", submitted.as_str())];
        direct.post_signed_with_headers(tar, &headers).await
    });
    builder.wait_for_state_or_timeout(&waiting, "waiting").await?;

    // The first update ends a builder with a running and a waiting build, and the second one a builder with resumed
    // ones.
    for version in ["2", "3"] {
        builder.request_update_with_changed_variable(version).await?;
        testbed.wait_for_step(gate, false).await?;
        testbed.wait_for_step(gate, true).await?;
    }
    let answer = delivery.await??;
    assert_eq!(answer.status, 429, "{}", answer.text);
    testbed.open_gate_of_step(gate)?;
    for (id, tag) in [(&running, "running"), (&waiting, "waiting")] {
        let built = builder.wait_for_state_or_timeout(id, "success").await?;
        let pushed = testbed.registry.get_manifest(repository, tag).await?;
        assert_eq!(pushed.context("the image")?.digest, built["digest"], "{built:#}");
    }
    builder.remove().await
}
