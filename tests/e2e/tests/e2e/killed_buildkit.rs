//! The log of a build whose BuildKit is killed in the middle and started again, as its readers see it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::{BuildContext, gated_command},
    builder_process::BuilderProcess,
    buildkit::BuildkitDaemon,
    questions::BuildQuestionClient,
    record_stream::{NumberedRecord, RecordStream},
    testbed::Testbed,
};
use tokio::{sync::watch, task::JoinHandle};

/// The number of lines that the build writes before its gate.
const LINES_BEFORE_GATE: u64 = 2000;

/// The number of lines that the build writes altogether.
const LINES: u64 = 3000;

/// The distance between the numbers of the first lines of two attempts.
const LINE_NUMBERS_PER_ATTEMPT: u64 = 1_000_000_000;

/// The time for which the daemon is away. Readers ask for the build twice a second meanwhile.
const OUTAGE: Duration = Duration::from_secs(2);

/// The longest time from the end of the outage until a log can be opened again.
const REOPENING_TIMEOUT: Duration = Duration::from_secs(60);

/// The numbered lines of a log, and its terminal record.
type ReadLog = (Vec<(u64, String)>, Value);

/// A reader that follows the log of a build in the background.
struct FollowingReader {
    reading: JoinHandle<Result<ReadLog>>,
    /// The number of lines of the build's output that it has seen.
    seen: watch::Receiver<u64>,
}

impl FollowingReader {
    /// Begins to follow the log from the line with this number on.
    fn start(questions: BuildQuestionClient, id: &str, from: u64) -> Self {
        let (sender, seen) = watch::channel(0);
        let id = id.to_owned();
        let reading = tokio::spawn(async move {
            let mut log = open_log_once_a_place_has_it(&questions, &id, from).await?;
            let mut lines = Vec::new();
            loop {
                match log.next_numbered_line_or_end_record().await? {
                    Some(NumberedRecord::Line(number, text)) => {
                        if written_number(&text).is_some() {
                            sender.send_modify(|seen| *seen += 1);
                        }
                        lines.push((number, text));
                    }
                    Some(NumberedRecord::End(record)) => return Ok((lines, record)),
                    None => bail!("no terminal record after {} lines", lines.len()),
                }
            }
        });
        Self { reading, seen }
    }

    /// Waits until the reader has seen this number of lines of the build's output.
    async fn wait_for_lines(&mut self, count: u64) -> Result<()> {
        self.seen.wait_for(|seen| *seen >= count).await?;
        Ok(())
    }

    /// Returns what the reader has seen, once the log has ended.
    async fn finish(self) -> Result<ReadLog> {
        self.reading.await?
    }
}

/// Opens the log of a build. Tries again while no place that knows the build can be read, which is answered with 502.
async fn open_log_once_a_place_has_it(
    questions: &BuildQuestionClient,
    id: &str,
    from: u64,
) -> Result<RecordStream> {
    let end = Instant::now() + OUTAGE + REOPENING_TIMEOUT;
    loop {
        match questions.open_log_unless_too_many_readers(id, from).await {
            Ok(log) => return log.context("the builder has too many readers"),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Returns a command that writes the lines with these numbers.
fn command_writing_lines(from: u64, to: u64) -> String {
    format!("awk 'BEGIN {{ for (i = {from}; i < {to}; i++) printf \"a line %06d of the output\\n\", i }}'")
}

/// Returns the number that the build wrote into a line of its output.
fn written_number(line: &str) -> Option<u64> {
    line.split_once(" a line ")?.1.split_once(' ')?.0.parse().ok()
}

/// Asserts that lines have the numbers from `first` on without a gap, and that their output is `0..output_lines`.
fn assert_contiguous(lines: &[(u64, String)], first: u64, output_lines: u64) {
    let numbers = lines.iter().map(|(number, _)| *number);
    assert!(
        numbers.eq((first..).take(lines.len())),
        "{:?}",
        lines.iter().map(|(number, _)| number).collect::<Vec<_>>()
    );
    let output: Vec<_> = lines
        .iter()
        .filter_map(|(_, text)| written_number(text))
        .collect();
    assert!(
        output.iter().copied().eq(0..output_lines),
        "{output_lines} expected: {output:?}"
    );
}

/// Asserts that a log has the lines of the lost attempt up to the gate, if `has_lost_attempt`, and those of the whole
/// rerun, each once and under the numbers of its attempt.
fn assert_each_line_once_under_the_numbers_of_its_attempt(log: ReadLog, has_lost_attempt: bool) {
    let (mut lines, terminal) = log;
    assert_eq!(terminal["status"], "success", "{terminal:#}");
    assert_eq!(terminal["warnings"], Value::Null, "{terminal:#}");
    let end_of_lost = lines.partition_point(|(number, _)| *number <= LINE_NUMBERS_PER_ATTEMPT);
    let rerun = lines.split_off(end_of_lost);
    match has_lost_attempt {
        true => assert_contiguous(&lines, 1, LINES_BEFORE_GATE),
        false => assert_eq!(lines, []),
    }
    assert_contiguous(&rerun, LINE_NUMBERS_PER_ATTEMPT + 1, LINES);
}

/// One builder runs the build, and another one only answers questions about it. At both, a reader follows the log from
/// before BuildKit is killed; another one, which has all lines of the lost attempt, connects while BuildKit is away.
#[tokio::test]
async fn readers_at_every_builder_get_each_line_once_although_buildkit_is_killed_in_mid_build() -> Result<()>
{
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let mut daemon = BuildkitDaemon::start(&testbed, "").await?;
    let settings = [("buildkit_url", daemon.socket_url())];
    let settings: Vec<_> = settings
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let running = BuilderProcess::start_with_settings(&testbed, &settings).await?;
    let other = BuilderProcess::start_with_settings(&testbed, &settings).await?;
    let now = Timestamp::now().as_nanosecond();
    let gate = format!("gate-of-killed-buildkit-{now}");
    let dockerfile = format!(
        "FROM {base}\nRUN {}; {}; {}\n",
        command_writing_lines(0, LINES_BEFORE_GATE),
        gated_command(&gate),
        command_writing_lines(LINES_BEFORE_GATE, LINES),
    );
    let config = json!({ "image": testbed.image_name("e2e/killed-buildkit", "1") });
    let tar = BuildContext::dockerfile(dockerfile).tar_with_config_last(&config)?;
    let id = format!("killed-buildkit-{now}");
    // A call that came from the queue has two times.
    let (client, call_id, times) = (
        running.build_client_with_own_key()?,
        id.clone(),
        format!("{now}, {now}"),
    );
    let build = tokio::spawn(async move {
        let headers = [("X-Call-Id", call_id.as_str()), ("X-Start-Time", times.as_str())];
        client.post_signed_with_headers(tar, &headers).await
    });
    testbed.wait_for_step(&gate, true).await?;
    let mut following = Vec::new();
    for builder in [&running, &other] {
        let mut reader = FollowingReader::start(builder.questions()?, &id, 1);
        reader.wait_for_lines(LINES_BEFORE_GATE).await?;
        following.push(reader);
    }

    daemon.kill_without_unmounting()?;
    // The step of the killed daemon may have outlived it.
    if testbed.open_gate_of_step(&gate).is_ok() {
        testbed.wait_for_step(&gate, false).await?;
    }
    let mut late = Vec::new();
    for builder in [&running, &other] {
        late.push(FollowingReader::start(
            builder.questions()?,
            &id,
            LINES_BEFORE_GATE + 100,
        ));
    }
    tokio::time::sleep(OUTAGE).await;
    daemon.start_again_on_another_port().await?;
    testbed.wait_for_step(&gate, true).await?;
    // The rerun goes on once a reader has its first lines.
    for reader in &mut following {
        reader.wait_for_lines(2 * LINES_BEFORE_GATE).await?;
    }
    testbed.open_gate_of_step(&gate)?;
    assert_eq!(build.await??.status, 200);

    for reader in following {
        assert_each_line_once_under_the_numbers_of_its_attempt(reader.finish().await?, true);
    }
    for reader in late {
        assert_each_line_once_under_the_numbers_of_its_attempt(reader.finish().await?, false);
    }
    for builder in [&running, &other] {
        let questions = builder.questions()?;
        let (status, state) = questions.get(&format!("/builds/{id}")).await?;
        assert_eq!((status, &state["state"]), (200, &json!("success")), "{state:#}");
        assert_eq!(state["attempts"], 2, "{state:#}");
        let (lines, _) = questions.read_numbered_lines_and_terminal_record(&id).await?;
        assert_contiguous(&lines, LINE_NUMBERS_PER_ATTEMPT + 1, LINES);
    }
    Ok(())
}
