//! The status and the log of builds, asked of builders that were started after the submission, and of a BuildKit that
//! was killed and started again.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::{BuildContext, gated_command},
    builder_process::BuilderProcess,
    buildkit::BuildkitDaemon,
    record_stream::NumberedRecord,
    testbed::Testbed,
};

/// The longest time for a build to be resumed and to end: a builder counts as gone after 20 s.
const RESUMPTION_TIMEOUT: Duration = Duration::from_secs(180);

/// The number of lines that the build writes: more than BuildKit's default limit on the log of a step, and more than
/// the builder's on that in an answer.
const LINES_WRITTEN_BY_STEP: usize = 60_000;

/// The distance between the numbers of the first lines of two attempts in a row.
const LINE_NUMBERS_PER_ATTEMPT: u64 = 1_000_000_000;

/// The replicas of builder-fn, all of which are killed and started again at a time.
struct TwoBuilderReplicas<'t> {
    testbed: &'t Testbed,
    settings: Vec<(&'static str, String)>,
    builders: Vec<BuilderProcess>,
}

impl<'t> TwoBuilderReplicas<'t> {
    /// Starts two builders that build on this daemon and keep records of their own.
    async fn start(testbed: &'t Testbed, daemon: &BuildkitDaemon, records_name: &str) -> Result<Self> {
        let records = format!("{}/e2e/records/{records_name}", testbed.stack.registry.host);
        let mut replicas = Self {
            testbed,
            settings: vec![
                ("buildkit_url", daemon.socket_url()),
                ("records_repository", records),
            ],
            builders: Vec::new(),
        };
        replicas.kill_all_and_start_two().await?;
        Ok(replicas)
    }

    /// Kills every builder, and then starts two others.
    async fn kill_all_and_start_two(&mut self) -> Result<()> {
        for builder in self.builders.drain(..) {
            builder.kill()?;
        }
        let settings: Vec<_> = self
            .settings
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        for _ in 0..2 {
            let builder = BuilderProcess::start_with_settings(self.testbed, &settings).await?;
            self.builders.push(builder);
        }
        Ok(())
    }

    /// Asks every builder about a build until it has this state; returns the last answer.
    async fn wait_for_state_at_every_builder(&self, id: &str, state: &str) -> Result<Value> {
        let end = Instant::now() + RESUMPTION_TIMEOUT;
        let mut last = Value::Null;
        for builder in &self.builders {
            loop {
                let (status, answer) = builder.ask(&format!("/builds/{id}")).await?;
                // Killed builders and daemons make no build unknown.
                ensure!(status == 200, "{status} {answer:#}");
                if answer["state"] == state {
                    last = answer;
                    break;
                }
                ensure!(Instant::now() < end, "{id} is not {state}: {answer:#}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        Ok(last)
    }

    /// Asserts that every builder answers with this end of a build and this log.
    async fn wait_and_assert_success_and_log_at_every_builder(
        &self,
        id: &str,
        finished_build: &Value,
        log: &[(u64, String)],
    ) -> Result<()> {
        let answer = self.wait_for_state_at_every_builder(id, "success").await?;
        for field in ["id", "image", "digest", "submittedAt", "attempts"] {
            assert_eq!(answer[field], finished_build[field], "{field} of {answer:#}");
        }
        for builder in &self.builders {
            let (lines, terminal) = builder
                .questions()?
                .read_numbered_lines_and_terminal_record(id)
                .await?;
            assert_eq!(terminal["status"], "success", "{terminal:#}");
            assert!(terminal["warnings"].is_null(), "{terminal:#}");
            let differing = lines.iter().zip(log).find(|(found, expected)| found != expected);
            assert_eq!((differing, lines.len()), (None, log.len()));
        }
        Ok(())
    }
}

/// Returns the numbers that the step wrote in the last attempt, in the order of the lines.
fn numbers_written_in_last_attempt(log: &[(u64, String)]) -> Vec<usize> {
    let attempt_of = |number: u64| number / LINE_NUMBERS_PER_ATTEMPT;
    let last = log.last().map(|(number, _)| attempt_of(*number));
    let lines = log.iter().filter(|(number, _)| Some(attempt_of(*number)) == last);
    lines
        .filter_map(|(_, text)| text.split(" line ").nth(1)?.split(' ').next()?.parse().ok())
        .collect()
}

#[tokio::test]
async fn status_and_whole_log_outlive_every_builder_during_the_build_and_buildkit_after_it() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let mut daemon = BuildkitDaemon::start(&testbed, "").await?;
    let now = Timestamp::now().as_nanosecond();
    let (id, gate) = (format!("known-{now}"), "gate-of-a-known-build");
    let mut replicas = TwoBuilderReplicas::start(&testbed, &daemon, &id).await?;
    let text = "x".repeat(70);
    let dockerfile = format!(
        "FROM {base}\nRUN awk 'BEGIN {{ for (i = 0; i < {LINES_WRITTEN_BY_STEP}; i++) print \"a line \" i \" {text}\" }}'; {}\n",
        gated_command(gate)
    );
    let image = testbed.image_name("e2e/known-build", "1");
    let tar = BuildContext::dockerfile(dockerfile).tar_with_config_last(&json!({ "image": image }))?;
    // A call that came from the queue has two times.
    let times = format!("{now}, {}", now + 1);
    let (client, call_id) = (replicas.builders[0].build_client_with_own_key()?, id.clone());
    let submission = tokio::spawn(async move {
        let headers = [("X-Call-Id", call_id.as_str()), ("X-Start-Time", times.as_str())];
        client.post_signed_with_headers(tar, &headers).await
    });
    testbed.wait_for_step(gate, true).await?;

    replicas.kill_all_and_start_two().await?;
    assert!(submission.await?.is_err(), "the builder that accepted it is gone");
    for builder in &replicas.builders {
        let (status, answer) = builder.ask(&format!("/builds/{id}")).await?;
        assert_eq!((status, &answer["image"]), (200, &json!(image)), "{answer:#}");
        assert!(
            matches!(answer["state"].as_str(), Some("waiting" | "running")),
            "{answer:#}"
        );
    }
    let (questions, asked) = (replicas.builders[1].questions()?, id.clone());
    let live = tokio::spawn(async move { questions.read_numbered_lines_and_terminal_record(&asked).await });
    testbed.wait_for_step(gate, false).await?;
    testbed.wait_for_step(gate, true).await?;
    replicas.wait_for_state_at_every_builder(&id, "running").await?;
    let last_line = format!("a line {} ", LINES_WRITTEN_BY_STEP - 1);
    for builder in &replicas.builders {
        let from = LINE_NUMBERS_PER_ATTEMPT;
        let log = builder
            .questions()?
            .open_log_unless_too_many_readers(&id, from)
            .await?;
        let mut log = log.context("too many readers")?;
        loop {
            match log.next_numbered_line_or_end_record().await? {
                Some(NumberedRecord::Line(_, text)) if text.contains(&last_line) => break,
                Some(NumberedRecord::Line(..)) => {}
                other => anyhow::bail!("the log ended before its last line: {other:?}"),
            }
        }
    }
    testbed.open_gate_of_step(gate)?;
    let end = replicas.wait_for_state_at_every_builder(&id, "success").await?;
    let (log, terminal) = live.await??;
    assert_eq!(terminal["status"], "success", "{terminal:#}");
    assert_eq!(terminal["digest"], end["digest"], "{terminal:#}");
    assert!(
        numbers_written_in_last_attempt(&log)
            .into_iter()
            .eq(0..LINES_WRITTEN_BY_STEP)
    );
    let pushed = testbed.registry.get_manifest("e2e/known-build", "1").await?;
    assert_eq!(pushed.context("the image")?.digest, end["digest"], "{end:#}");

    replicas.kill_all_and_start_two().await?;
    replicas
        .wait_and_assert_success_and_log_at_every_builder(&id, &end, &log)
        .await?;
    daemon.kill_and_restart_on_another_port().await?;
    replicas
        .wait_and_assert_success_and_log_at_every_builder(&id, &end, &log)
        .await?;
    replicas.kill_all_and_start_two().await?;
    replicas
        .wait_and_assert_success_and_log_at_every_builder(&id, &end, &log)
        .await
}
