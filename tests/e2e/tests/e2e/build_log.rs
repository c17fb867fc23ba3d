//! The log of a build, as a reader sees it who is cut off again and again.

use std::{
    env,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::{BuildContext, gated_command},
    builder_process::BuilderProcess,
    buildkit::BuildkitDaemon,
    cut_log::{CutLogReader, LogForm},
    tcp_proxy::TcpProxy,
    testbed::Testbed,
};

/// The number of lines that the build's steps write together: 50 MB.
const LINES_WRITTEN_BY_BUILD: u64 = 250_000;

/// The length of a line, with its line end.
const LINE_BYTES: usize = 200;

/// The number of times that the reader is cut off.
const CUTS: usize = 200;

/// The largest number of bytes that the reader gets before it is cut off. On average it is half of that, and the
/// records of all lines have about 78 MB.
const CUT_BYTES_MAX: u64 = 600 << 10;

/// The limit on what BuildKit sends to the builder. If each reader got the log from its beginning, it would be 6 GB.
const BYTES_FROM_BUILDKIT_MAX: u64 = 200 << 20;

/// The limit on the builder's own memory.
const BUILDER_MEMORY_MAX: usize = 96 << 20;

/// Returns a command that writes the lines with the numbers from `from` to `end_exclusive` - 1.
fn command_writing_lines(from: u64, end_exclusive: u64) -> String {
    // "a line ", the number, and a space come before the rest of the line.
    let rest = "x".repeat(LINE_BYTES - "a line 000000 \n".len());
    format!(
        "awk 'BEGIN {{ for (i = {from}; i < {end_exclusive}; i++) printf \"a line %06d {rest}\\n\", i }}'"
    )
}

/// Returns the number that the build wrote into a line of its output.
fn written_number(line: &str) -> Option<u64> {
    line.split_once(" a line ")?.1.split_once(' ')?.0.parse().ok()
}

/// Returns the seed of the places at which the reader is cut off: another one in every run, unless
/// `SLIPWAY_LOG_CUTS_SEED` is set to one that an earlier run has printed.
fn cut_seed_from_environment_or_clock() -> Result<u64> {
    match env::var("SLIPWAY_LOG_CUTS_SEED") {
        Ok(seed) => seed.parse().context("SLIPWAY_LOG_CUTS_SEED should be a number"),
        Err(_) => Ok(u64::from(
            SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos(),
        )),
    }
}

/// The build waits after each third of its lines until the reader has seen most of them, so the reader is cut off while
/// the build runs and after its end. A step comes after that with the last third, and BuildKit warns about the
/// Dockerfile.
#[tokio::test]
async fn a_reader_that_is_cut_off_200_times_at_random_sees_each_of_50_megabytes_of_numbered_lines_once()
-> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let daemon = BuildkitDaemon::start(&testbed, "").await?;
    let proxy = TcpProxy::start_to(&daemon.socket_url()).await?;
    let builder = BuilderProcess::start_with_settings(&testbed, &[("buildkit_url", proxy.url())]).await?;
    let now = Timestamp::now().as_nanosecond();
    // Of this run: a step that an ended run has left behind waits for a gate too.
    let gates = ["a-third", "two-thirds"].map(|part| format!("gate-after-{part}-of-the-log-{now}"));
    let thirds = [
        0,
        LINES_WRITTEN_BY_BUILD / 3,
        LINES_WRITTEN_BY_BUILD * 2 / 3,
        LINES_WRITTEN_BY_BUILD,
    ];
    let dockerfile = format!(
        "FROM {base} as base\nRUN {}; {}\nRUN {}; {}\nRUN {}\nRUN true\n",
        command_writing_lines(thirds[0], thirds[1]),
        gated_command(&gates[0]),
        command_writing_lines(thirds[1], thirds[2]),
        gated_command(&gates[1]),
        command_writing_lines(thirds[2], thirds[3]),
    );
    let config = json!({ "image": testbed.image_name("e2e/long-log", "1"), "skipPush": true });
    let tar = BuildContext::dockerfile(dockerfile).tar_with_config_last(&config)?;
    let id = format!("long-log-{now}");
    // A call that came from the queue has two times.
    let (client, call_id, times) = (
        builder.build_client_with_own_key()?,
        id.clone(),
        format!("{now}, {now}"),
    );
    let build = tokio::spawn(async move {
        let headers = [("X-Call-Id", call_id.as_str()), ("X-Start-Time", times.as_str())];
        client.post_signed_with_headers(tar, &headers).await
    });
    testbed.wait_for_step(&gates[0], true).await?;

    let seed = cut_seed_from_environment_or_clock()?;
    eprintln!("SLIPWAY_LOG_CUTS_SEED={seed}");
    let begun = Instant::now();
    let mut reader = CutLogReader::new(builder.questions()?, &id, seed);
    let (mut written, mut warnings) = (0, Vec::new());
    let mut closed = gates.iter().zip(&thirds[1..]).peekable();
    let mut see = |line: &str| -> Result<()> {
        match written_number(line) {
            Some(number) => {
                ensure!(number == written, "line {number} came in place of {written}");
                written += 1;
            }
            None if line.contains("warning: ") => warnings.push(line.to_owned()),
            None => {}
        }
        // Before all lines before the gate were seen.
        if let Some((gate, _)) = closed.next_if(|(_, end)| written + LINES_WRITTEN_BY_BUILD / 20 > **end) {
            testbed.open_gate_of_step(gate)?;
        }
        Ok(())
    };
    let forms = [LogForm::Records, LogForm::Events];
    for form in forms.into_iter().cycle().take(CUTS) {
        let end = reader
            .read_until_random_cut(form, CUT_BYTES_MAX, &mut see)
            .await?;
        ensure!(end.is_none(), "the log ended before the last cut: {end:?}");
    }
    let terminal: Value = reader.read_to_end(LogForm::Records, &mut see).await?;
    let took = begun.elapsed();

    assert_eq!(written, LINES_WRITTEN_BY_BUILD);
    assert_eq!(terminal["status"], "success", "{terminal:#}");
    assert_eq!(build.await??.status, 200);
    let memory = builder.peak_memory_bytes_minus_current_file_pages()?;
    eprintln!(
        "read {} bytes of records in {took:?}, and {} of cut off ones; the builder used {memory} bytes of memory",
        reader.complete_record_bytes(),
        reader.discarded_bytes()
    );
    assert!(memory < BUILDER_MEMORY_MAX, "{memory}");
    // The log comes from BuildKit once for the build's own answer and once for its readers.
    let from_buildkit = proxy.answered_bytes();
    assert!(from_buildkit < BYTES_FROM_BUILDKIT_MAX, "{from_buildkit}");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    Ok(())
}
