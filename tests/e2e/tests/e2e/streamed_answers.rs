//! Answers that are streamed during the build, on the real BuildKit.

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use slipway_e2e::{
    build_context::{BuildContext, gated_command},
    builder_process::BuilderProcess,
    client::{SigningClient, sign_body},
    testbed::Testbed,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
};

const JSON_LINES_MEDIA_TYPE: &str = "application/x-ndjson";
const EVENT_STREAM_MEDIA_TYPE: &str = "text/event-stream";

/// Returns a context whose steps are never cached.
fn uncached_context(base: &str, steps: &str) -> BuildContext {
    let at = format!("{:?}", std::time::SystemTime::now());
    BuildContext::dockerfile(format!("FROM {base}\nENV AT=\"{at}\"\n{steps}\n"))
}

/// Runs a build whose step waits until the test has read the step's output: output is not held back.
async fn assert_output_arrives_during_the_build(
    testbed: &Testbed,
    client: &SigningClient,
    accept: &str,
    repository: &str,
) -> Result<()> {
    let base = testbed.build_busybox_once_and_get_name().await?;
    let gate = format!("gate-of-{}", repository.replace('/', "-"));
    let steps = format!("RUN echo waiting; {}; echo through", gated_command(&gate));
    let tar = uncached_context(base, &steps)
        .tar_with_config_last(&json!({ "image": testbed.image_name(repository, "1") }))?;
    let mut records = client.post_and_stream_records(tar, accept).await?;

    let first = records
        .next_record_below_64_kib()
        .await?
        .context("the stream has no record")?;
    assert_eq!(first["status"], "in_progress", "{first}");
    records.read_until_log_contains("Z waiting").await?;
    testbed.open_gate_of_step(&gate)?;
    let (lines, last) = records.read_remaining_lines_and_terminal_record().await?;

    assert!(lines.iter().any(|line| line.ends_with("Z through")), "{lines:?}");
    assert_eq!(last["status"], "success", "{last}");
    assert_eq!(
        last["image"],
        testbed.image_name(repository, "1").as_str(),
        "{last}"
    );
    assert!(
        last["duration"].as_f64().is_some_and(|seconds| seconds > 0.0),
        "{last}"
    );
    assert_eq!(last.get("log"), None, "{last}");
    assert!(testbed.registry.get_manifest(repository, "1").await?.is_some());
    Ok(())
}

#[tokio::test]
async fn records_arrive_during_the_build() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let builder = BuilderProcess::start_with_settings(&testbed, &[]).await?;
    assert_output_arrives_during_the_build(
        &testbed,
        &builder.build_client_with_own_key()?,
        JSON_LINES_MEDIA_TYPE,
        "e2e/stream-lines",
    )
    .await?;
    assert_output_arrives_during_the_build(
        &testbed,
        &builder.build_client_with_own_key()?,
        EVENT_STREAM_MEDIA_TYPE,
        "e2e/stream-events",
    )
    .await
}

/// The Community Edition's gateway streams only events, and delivers those of a short build at its end.
#[tokio::test]
async fn events_of_a_build_pass_the_gateway_up_to_the_terminal_record() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let config = json!({ "image": testbed.image_name("e2e/stream-gateway", "1"), "skipPush": true });
    let tar = uncached_context(base, "RUN echo through the gateway").tar_with_config_last(&config)?;
    let (lines, last) = testbed
        .through_gateway
        .post_and_stream_records(tar, EVENT_STREAM_MEDIA_TYPE)
        .await?
        .read_remaining_lines_and_terminal_record()
        .await?;
    assert!(
        lines.iter().any(|line| line.ends_with("through the gateway")),
        "{lines:?}"
    );
    assert_eq!(last["status"], "success", "{last}");
    Ok(())
}

#[tokio::test]
async fn every_failure_of_a_signed_request_ends_with_a_terminal_record() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let builder = BuilderProcess::start_with_settings(&testbed, &[]).await?;
    let client = builder.build_client_with_own_key()?;
    let image = testbed.image_name("e2e/stream-failed", "1");

    let tar = uncached_context(base, "RUN echo this is said before; exit 3")
        .tar_with_config_last(&json!({ "image": image }))?;
    let (lines, last) = client
        .post_and_stream_records(tar, JSON_LINES_MEDIA_TYPE)
        .await?
        .read_remaining_lines_and_terminal_record()
        .await?;
    assert!(
        lines.iter().any(|line| line.ends_with("this is said before")),
        "{lines:?}"
    );
    assert_eq!(last["status"], "failed", "{last}");
    assert!(
        last["error"]
            .as_str()
            .is_some_and(|text| text.contains("exit code: 3")),
        "{last}"
    );

    let tar = uncached_context(base, "RUN sleep 302; echo over")
        .tar_with_config_last(&json!({ "image": image, "timeout": "3s" }))?;
    let (_, last) = client
        .post_and_stream_records(tar, EVENT_STREAM_MEDIA_TYPE)
        .await?
        .read_remaining_lines_and_terminal_record()
        .await?;
    assert_eq!(last["error"], "the build ran past its time limit of 3s", "{last}");
    testbed.wait_for_step("sleep 302", false).await?;

    let tar = uncached_context(base, "").tar_without_config()?;
    let (_, last) = client
        .post_and_stream_records(tar, JSON_LINES_MEDIA_TYPE)
        .await?
        .read_remaining_lines_and_terminal_record()
        .await?;
    assert!(
        last["error"]
            .as_str()
            .is_some_and(|text| text.contains("com.openfaas.docker.config")),
        "{last}"
    );

    let refused = client
        .post_with_signature(Vec::new(), None, &[("Accept", JSON_LINES_MEDIA_TYPE)])
        .await?;
    assert_eq!(
        (refused.status, refused.text_field("status").as_str()),
        (401, "failed")
    );
    assert!(
        testbed
            .registry
            .get_manifest("e2e/stream-failed", "1")
            .await?
            .is_none()
    );
    Ok(())
}

/// Python's `splitlines`, for one, ends a line at each of these characters.
#[tokio::test]
async fn no_record_contains_a_line_end_of_unicode() -> Result<()> {
    const UNICODE_LINE_ENDS: [char; 3] = ['\u{2028}', '\u{2029}', '\u{85}'];
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let builder = BuilderProcess::start_with_settings(&testbed, &[]).await?;
    let printed = r"a\342\200\250b\342\200\251c\302\205d";
    let step = format!("RUN printf '{printed}\\n'; exit 3");
    let tar = uncached_context(base, &step)
        .tar_with_config_last(&json!({ "image": testbed.image_name("e2e/stream-unicode", "1") }))?;
    for accept in [JSON_LINES_MEDIA_TYPE, EVENT_STREAM_MEDIA_TYPE, "application/json"] {
        let reply = builder
            .build_client_with_own_key()?
            .post_signed_with_headers(tar.clone(), &[("Accept", accept)])
            .await?;
        assert!(
            !reply.text.contains(UNICODE_LINE_ENDS),
            "{accept}: {}",
            reply.text
        );
        let line = r"a\u2028b\u2029c\u0085d";
        assert!(reply.text.contains(line), "{accept}: {}", reply.text);
    }
    let (lines, _) = builder
        .build_client_with_own_key()?
        .post_and_stream_records(tar, JSON_LINES_MEDIA_TYPE)
        .await?
        .read_remaining_lines_and_terminal_record()
        .await?;
    let line = "a\u{2028}b\u{2029}c\u{85}d";
    assert!(lines.iter().any(|one| one.ends_with(line)), "{lines:?}");
    Ok(())
}

#[tokio::test]
async fn a_terminated_builder_ends_its_stream_with_a_terminal_record() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let settings = [
        ("exec_timeout", "0s"),
        ("write_timeout", "4s"),
        ("healthcheck_interval", "1s"),
    ];
    let builder = BuilderProcess::start_with_settings(&testbed, &settings).await?;
    let tar = uncached_context(base, "RUN echo begun; sleep 303; echo over")
        .tar_with_config_last(&json!({ "image": testbed.image_name("e2e/stream-ended", "1") }))?;
    let mut records = builder
        .build_client_with_own_key()?
        .post_and_stream_records(tar, JSON_LINES_MEDIA_TYPE)
        .await?;
    records.read_until_log_contains("Z begun").await?;

    builder.send_sigterm()?;

    let (_, last) = records.read_remaining_lines_and_terminal_record().await?;
    assert_eq!(last["status"], "failed", "{last}");
    assert!(
        last["error"]
            .as_str()
            .is_some_and(|text| text.contains("shutting down")),
        "{last}"
    );
    testbed.wait_for_step("sleep 303", false).await
}

#[tokio::test]
async fn a_client_that_disconnects_cancels_its_build() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let builder = BuilderProcess::start_with_settings(&testbed, &[]).await?;
    let tar = uncached_context(base, "RUN echo begun; sleep 304; echo over")
        .tar_with_config_last(&json!({ "image": testbed.image_name("e2e/stream-gone", "1") }))?;
    let mut records = builder
        .build_client_with_own_key()?
        .post_and_stream_records(tar, JSON_LINES_MEDIA_TYPE)
        .await?;
    records.read_until_log_contains("Z begun").await?;
    testbed.wait_for_step("sleep 304", true).await?;

    drop(records);

    testbed.wait_for_step("sleep 304", false).await
}

#[tokio::test]
async fn a_client_that_reads_nothing_for_write_timeout_loses_its_build_and_its_slot() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    // Long enough that the test sees the step and the taken slot.
    let settings = [("max_inflight", "1"), ("write_timeout", "5s")];
    let builder = BuilderProcess::start_with_settings(&testbed, &settings).await?;
    // More output than the buffers between builder and client hold.
    let steps = "RUN seq 1000000 1999999; sleep 305; echo over";
    let config = json!({ "image": testbed.image_name("e2e/stream-unread", "1"), "skipPush": true });
    let tar = uncached_context(base, steps).tar_with_config_last(&config)?;
    let key = std::fs::read(&testbed.stack.payload_secret)?;
    let signature = sign_body(key.trim_ascii(), &tar)?;
    let head = format!(
        "POST /build HTTP/1.1\r\nHost: builder\r\nAccept: {JSON_LINES_MEDIA_TYPE}\r\nX-Build-Signature: {signature}\r\nContent-Length: {}\r\n\r\n",
        tar.len()
    );
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let address = builder.url().trim_start_matches("http://").parse()?;
    let mut connection = socket.connect(address).await?;
    connection.write_all(head.as_bytes()).await?;
    connection.write_all(&tar).await?;
    testbed.wait_for_step("sleep 305", true).await?;
    assert_eq!(builder.get("/ready").await?.0, 503, "the slot is taken");

    // The client stays connected and reads nothing.
    testbed.wait_for_step("sleep 305", false).await?;

    builder.wait_until_ready().await?;
    let tar = uncached_context(base, "RUN echo next").tar_with_config_last(&config)?;
    let (_, last) = builder
        .build_client_with_own_key()?
        .post_and_stream_records(tar, JSON_LINES_MEDIA_TYPE)
        .await?
        .read_remaining_lines_and_terminal_record()
        .await?;
    assert_eq!(last["status"], "success", "{last}");
    // The answer is truncated, so that no client can take it for a successful one.
    let mut sent = Vec::new();
    let ended = connection.read_to_end(&mut sent).await;
    let sent = String::from_utf8_lossy(&sent);
    assert!(ended.is_err() || !sent.ends_with("0\r\n\r\n"), "{ended:?}");
    assert!(!sent.contains(r#""status":"success""#), "{sent}");
    Ok(())
}

/// The limit on the memory for output that the client does not read. It is generous, and far below the size of all
/// lines together: 79 MB.
const UNREAD_OUTPUT_MEMORY_MAX_BYTES: usize = 24 << 20;

/// The largest number of builders that are measured: on a busy machine, more waits in buffers than a builder needs.
const MAX_MEASUREMENTS: usize = 3;

#[tokio::test]
async fn long_lines_arrive_complete_and_unread_output_takes_one_of_3_builders_little_memory() -> Result<()> {
    const LONG_LINE_BYTES: usize = 200_000;
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let builder = BuilderProcess::start_with_settings(&testbed, &[]).await?;
    let client = builder.build_client_with_own_key()?;

    let steps = format!("RUN head -c {LONG_LINE_BYTES} /dev/zero | tr '\\0' x; echo");
    let config = json!({ "image": testbed.image_name("e2e/stream-long", "1"), "skipPush": true });
    let (lines, last) = client
        .post_and_stream_records(
            uncached_context(base, &steps).tar_with_config_last(&config)?,
            JSON_LINES_MEDIA_TYPE,
        )
        .await?
        .read_remaining_lines_and_terminal_record()
        .await?;
    assert_eq!(last["status"], "success", "{last}");
    let long: usize = lines
        .iter()
        .filter(|line| line.starts_with("l: "))
        .map(|line| line.matches('x').count())
        .sum();
    assert_eq!(long, LONG_LINE_BYTES);

    let mut growths = Vec::new();
    for measurement in 0..MAX_MEASUREMENTS {
        let grown = memory_bytes_for_unread_output(&testbed, measurement).await?;
        if grown < UNREAD_OUTPUT_MEMORY_MAX_BYTES {
            return Ok(());
        }
        growths.push(grown);
    }
    bail!(
        "each builder needed {UNREAD_OUTPUT_MEMORY_MAX_BYTES} bytes and more for unread output: {growths:?}"
    )
}

/// Returns the memory in bytes that a new builder takes for 79 MB of output which its client does not read.
async fn memory_bytes_for_unread_output(testbed: &Testbed, measurement_number: usize) -> Result<usize> {
    let base = testbed.build_busybox_once_and_get_name().await?;
    let builder = BuilderProcess::start_with_settings(testbed, &[]).await?;
    let client = builder.build_client_with_own_key()?;
    let config = json!({ "image": testbed.image_name("e2e/stream-unread", "1"), "skipPush": true });
    // By default, BuildKit keeps 2 MiB of a step's output, so several steps are needed.
    let gate = &format!("gate-of-unread-output-{measurement_number}");
    let mut many_lines: String = (0..9)
        .map(|step| format!("RUN seq {step}000000 {step}999999\n"))
        .collect();
    many_lines += &format!("RUN seq 9000000 9999999; {}\n", gated_command(gate));
    let before = builder.peak_memory_bytes()?;
    let mut records = client
        .post_and_stream_records(
            uncached_context(base, &many_lines).tar_with_config_last(&config)?,
            JSON_LINES_MEDIA_TYPE,
        )
        .await?;
    records
        .next_record_below_64_kib()
        .await?
        .context("the stream has no record")?;
    // The client reads nothing until BuildKit has run the last step.
    testbed.wait_for_step(gate, true).await?;
    testbed.open_gate_of_step(gate)?;
    testbed.wait_for_step(gate, false).await?;
    let (lines, last) = records.read_remaining_lines_and_terminal_record().await?;
    assert_eq!(last["status"], "success", "{last}");
    assert!(
        lines
            .iter()
            .any(|line| line.contains("a log may have 4194304 bytes")),
        "{}",
        lines.len()
    );
    Ok(builder.peak_memory_bytes()? - before)
}
