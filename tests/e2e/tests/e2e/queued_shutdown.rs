//! Queued builds whose builder is shut down before their end, without records: they are submitted to the queue again.

use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde_json::json;
use slipway_e2e::{
    build_context::{BuildContext, gated_command},
    builder_process::BuilderProcess,
    testbed::Testbed,
};

/// The longest time until the process has exited, and until the queue has delivered the build.
const EXIT_OR_REDELIVERY_TIMEOUT: Duration = Duration::from_secs(180);

/// The stack's own builder gets the call from the queue.
#[tokio::test]
async fn a_queued_build_that_sigterm_interrupts_is_finished_by_another_builder() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    // The grace period has four seconds.
    let settings = [
        ("healthcheck_interval", "1s"),
        ("exec_timeout", "0s"),
        ("write_timeout", "4s"),
    ];
    let mut builder = BuilderProcess::start_with_settings(&testbed, &settings).await?;
    let run = Timestamp::now().as_nanosecond().to_string();
    let id = format!("interrupted-{run}");
    let gate = "gate-of-the-interrupted-build";
    let repository = "e2e/interrupted";
    let dockerfile = format!("FROM {base}\nRUN {}\n", gated_command(gate));
    let config = json!({"image": testbed.image_name(repository, &run)});
    let tar = BuildContext::dockerfile(dockerfile).tar_with_config_last(&config)?;
    let (client, call_id, times) = (
        builder.build_client_with_own_key()?,
        id.clone(),
        format!("{run}, {run}"),
    );
    let delivery = tokio::spawn(async move {
        let headers = [("X-Call-Id", call_id.as_str()), ("X-Start-Time", times.as_str())];
        client.post_signed_with_headers(tar, &headers).await
    });
    testbed.wait_for_step(gate, true).await?;

    builder.send_sigterm()?;
    let reply = delivery.await??;
    assert_eq!(reply.status, 429, "{}", reply.text);
    assert!(
        reply.text.contains("submitted the call to the queue again"),
        "{}",
        reply.text
    );
    assert!(
        builder
            .wait_until_exited(EXIT_OR_REDELIVERY_TIMEOUT)
            .await?
            .success()
    );
    let log = builder.log_text();
    assert!(
        log.contains("submitted an interrupted build to the queue again"),
        "{log}"
    );

    let finishing = async {
        while testbed.registry.get_manifest(repository, &run).await?.is_none() {
            // The step of the interrupted build may still be there for a moment.
            testbed.open_gate_of_step(gate).ok();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(EXIT_OR_REDELIVERY_TIMEOUT, finishing)
        .await
        .context("the build is not finished")??;
    Ok(())
}
