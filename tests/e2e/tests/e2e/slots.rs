//! The limit on concurrent builds: when it is reached, calls are rejected or wait.

use anyhow::Result;
use serde_json::json;
use slipway_e2e::{
    build_context::BuildContext, builder_process::BuilderProcess, client::HttpReply, testbed::Testbed,
};

/// The answer to a call over `max_inflight` 1.
const LIMIT_REACHED_TEXT: &str = "Concurrent request limit exceeded. Max concurrent requests: 1\n";

/// Starts a build in the background, and waits until its step runs. It runs until `gate` is opened.
async fn start_gated_build_and_wait_for_its_step(
    testbed: &Testbed,
    builder: &BuilderProcess,
    gate: &str,
) -> Result<tokio::task::JoinHandle<Result<HttpReply>>> {
    let context = BuildContext::with_gated_step(testbed.build_busybox_once_and_get_name().await?, gate);
    let config = json!({ "image": testbed.image_name("e2e/slots", "1"), "skipPush": true });
    let (client, tar) = (
        builder.build_client_with_own_key()?,
        context.tar_with_config_last(&config)?,
    );
    let build = tokio::spawn(async move { client.post_signed(tar).await });
    testbed.wait_for_step(gate, true).await?;
    Ok(build)
}

/// Returns the tar of a small build that pushes nothing.
fn small_tar_without_push(testbed: &Testbed) -> Result<Vec<u8>> {
    BuildContext::dockerfile("FROM scratch\nCOPY a /a\n")
        .with_file("a", "a")
        .tar_with_config_last(&json!({ "image": testbed.image_name("e2e/slots", "2"), "skipPush": true }))
}

/// Asserts that a call was rejected with 429, the text of the limit, and a time after which to retry.
fn assert_rejected_with_429(reply: &HttpReply) {
    assert_eq!((reply.status, reply.text.as_str()), (429, LIMIT_REACHED_TEXT));
    let seconds = reply.retry_after.as_deref().map(str::parse::<u32>);
    assert!(matches!(seconds, Some(Ok(1..))), "{reply:?}");
}

#[tokio::test]
async fn over_max_inflight_a_call_is_rejected_at_once_and_the_builder_is_not_ready() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let builder = BuilderProcess::start_with_settings(&testbed, &[("max_inflight", "1")]).await?;
    builder.wait_until_ready().await?;
    let gate = "gate-of-max-inflight";
    let running = start_gated_build_and_wait_for_its_step(&testbed, &builder, gate).await?;

    assert_rejected_with_429(
        &builder
            .build_client_with_own_key()?
            .post_signed(small_tar_without_push(&testbed)?)
            .await?,
    );
    for path in ["/ready", "/_/ready"] {
        assert_eq!(builder.get(path).await?.0, 503, "{path}");
    }
    assert_eq!(builder.get("/healthz").await?.0, 200);

    running.abort();
    testbed.wait_for_step(gate, false).await?;
    builder.wait_until_ready().await?;
    let reply = builder
        .build_client_with_own_key()?
        .post_signed(small_tar_without_push(&testbed)?)
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    Ok(())
}

#[tokio::test]
async fn with_queue_wait_a_call_waits_for_a_slot_and_calls_over_queue_length_are_rejected() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let settings = [("max_inflight", "1"), ("queue_wait", "5m"), ("queue_length", "1")];
    let builder = BuilderProcess::start_with_settings(&testbed, &settings).await?;
    builder.wait_until_ready().await?;
    let gate = "gate-of-queue-wait";
    let running = start_gated_build_and_wait_for_its_step(&testbed, &builder, gate).await?;
    assert_eq!(builder.get("/ready").await?.0, 200, "one more call may wait");

    let (client, tar) = (
        builder.build_client_with_own_key()?,
        small_tar_without_push(&testbed)?,
    );
    let waiting = tokio::spawn(async move { client.post_signed(tar).await });
    builder.wait_until_not_ready().await?;
    assert_rejected_with_429(
        &builder
            .build_client_with_own_key()?
            .post_signed(small_tar_without_push(&testbed)?)
            .await?,
    );

    testbed.open_gate_of_step(gate)?;
    for served in [running, waiting] {
        let reply = served.await??;
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
    builder.wait_until_ready().await
}

#[tokio::test]
async fn a_call_that_gets_no_slot_within_queue_wait_is_rejected_like_one_that_does_not_wait() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let settings = [("max_inflight", "1"), ("queue_wait", "1s")];
    let builder = BuilderProcess::start_with_settings(&testbed, &settings).await?;
    let gate = "gate-of-expired-wait";
    let running = start_gated_build_and_wait_for_its_step(&testbed, &builder, gate).await?;

    assert_rejected_with_429(
        &builder
            .build_client_with_own_key()?
            .post_signed(small_tar_without_push(&testbed)?)
            .await?,
    );

    running.abort();
    testbed.wait_for_step(gate, false).await
}

/// The terminal record needs time too, so the wait ends before `exec_timeout` cuts the answer.
#[tokio::test]
async fn a_stream_that_gets_no_slot_before_its_deadline_ends_with_a_terminal_record() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let settings = [
        ("max_inflight", "1"),
        ("queue_wait", "5m"),
        // The first build has to come to its step within this time.
        ("exec_timeout", "20s"),
    ];
    let builder = BuilderProcess::start_with_settings(&testbed, &settings).await?;
    let gate = "gate-of-a-deadline";
    let running = start_gated_build_and_wait_for_its_step(&testbed, &builder, gate).await?;
    // The first build ends at its own deadline, so the second may get the slot for a moment. It would not end either.
    let context = BuildContext::with_gated_step(
        testbed.build_busybox_once_and_get_name().await?,
        "gate-of-a-later-deadline",
    );
    let config = json!({ "image": testbed.image_name("e2e/slots", "2"), "skipPush": true });

    let waiting = builder
        .build_client_with_own_key()?
        .post_and_stream_records(context.tar_with_config_last(&config)?, "application/x-ndjson")
        .await?;
    let (_, last) = waiting.read_remaining_lines_and_terminal_record().await?;

    assert_eq!(last["status"], "failed", "{last}");
    assert!(last["error"].is_string(), "{last}");
    running.abort();
    testbed.wait_for_step(gate, false).await
}
