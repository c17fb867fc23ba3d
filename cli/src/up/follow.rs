//! Follows a build to its end, across lost connections.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use function_host::http::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{BuildEnd, FunctionBuild};
use crate::builder::{
    AskedCommand, BuilderClient, LogLine, Record, RecordStream, RequestError, Route, SignedBuildRequest,
    StreamCut, build_path, printed_progress_record, printed_restart_record,
};
use crate::failure::Failure;
use crate::output::print_result_or_exit_if_unread;
use crate::progress::{Event, Progress};

/// The pause before the first attempt to connect again, and the longest pause.
const FIRST_AND_LONGEST_RETRY_PAUSE: (Duration, Duration) =
    (Duration::from_millis(250), Duration::from_secs(5));

/// The longest time without a record before a build is given up.
const GIVE_UP_AFTER_SILENCE: Duration = Duration::from_secs(5 * 60);

/// The silence after which a build's state is asked for, and the longest time between two such questions.
const FIRST_AND_LONGEST_STATE_PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(16));

/// The longest time for which the end of a build is asked for whose log has ended without saying how it ended, and the
/// pause between two questions. Another builder may know more than the one that answered.
const END_WAIT_AND_PAUSE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(1));

/// The number of times that a request is sent again whose streamed answer was cut.
const SENDS_AGAIN_MAX: u32 = 5;

/// A build that is followed by its ID.
pub(crate) struct FollowedBuild<'a> {
    pub(crate) client: &'a BuilderClient,
    pub(crate) route: Route,
    pub(crate) id: &'a str,
    pub(crate) progress: &'a Progress,
    pub(crate) form: LogForm,
    /// How long it is no error that no builder knows the build; without it, that is an error at once.
    pub(crate) patience: Option<Duration>,
}

/// The form in which the lines of a followed log are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogForm {
    /// As progress, on the standard error.
    Progress,
    /// As the builder's records, on the standard output.
    Records,
}

/// The state of the connection to a build's log.
struct LogConnectionState {
    /// The time of the last record, or of the beginning.
    last_record: Instant,
    /// The pause before the next attempt to connect.
    pause: Duration,
    /// Whether the loss of the connection was shown, and its return was not.
    is_lost: bool,
    /// Whether a builder knew the build.
    is_known: bool,
}

impl LogConnectionState {
    /// Notes that a record has come.
    fn note_record(&mut self, progress: &Progress) {
        self.last_record = Instant::now();
        self.pause = FIRST_AND_LONGEST_RETRY_PAUSE.0;
        self.is_known = true;
        if std::mem::take(&mut self.is_lost) {
            progress.note("connected again");
        }
    }

    /// Waits before the next attempt to connect, longer each time.
    async fn wait_before_reconnect(&mut self) {
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(FIRST_AND_LONGEST_RETRY_PAUSE.1);
    }
}

impl FollowedBuild<'_> {
    /// Shows that the build began again, and the numbers of its lines too.
    fn show_restart_of_numbers(&self, seq: u64, warning: &str) {
        match self.form {
            LogForm::Progress => self.progress.show(&Event::Warning { text: warning }),
            LogForm::Records => {
                print_result_or_exit_if_unread(&printed_restart_record(seq, warning).to_string())
            }
        }
    }

    /// Shows the lines of a record with this number.
    fn show_log_lines(&self, seq: Option<u64>, lines: &[String], cached: &[String]) {
        match self.form {
            LogForm::Progress => self.progress.show_log_lines(lines, cached),
            LogForm::Records => {
                if let Some(record) = printed_progress_record(seq, lines, cached) {
                    print_result_or_exit_if_unread(&record.to_string());
                }
            }
        }
    }
}

/// Follows the log of a build from its first line to its end, and returns the outcome. A lost connection is resumed at
/// the line after the last one.
///
/// # Errors
/// Fails if no builder knows the build, one rejects the question (400, 401 or 403), or none sends a record for five
/// minutes.
pub(crate) async fn follow_log(following: &FollowedBuild<'_>) -> Result<Value, Failure> {
    let FollowedBuild {
        client,
        route,
        id,
        progress,
        patience,
        ..
    } = following;
    let began = Instant::now();
    let mut connection = LogConnectionState {
        last_record: began,
        pause: FIRST_AND_LONGEST_RETRY_PAUSE.0,
        is_lost: false,
        is_known: false,
    };
    let mut next_line = 1;
    loop {
        let problem = match client.open_log(*route, id, next_line).await {
            Ok(mut records) => {
                match read_log_to_terminal_record(following, &mut records, &mut next_line, &mut connection)
                    .await
                {
                    Ok(outcome) => {
                        return poll_for_end_or_last_state_if_outcome_is_unclear(following, outcome).await;
                    }
                    Err(cut) => cut.to_string(),
                }
            }
            Err(RequestError::Refused(refusal)) if refusal.status == 404 && !connection.is_known => {
                if patience.is_none_or(|patience| began.elapsed() > patience) {
                    let options = &client.settings().options;
                    return Err(failure_of_unknown_build(
                        id,
                        &refusal.text,
                        patience.is_some(),
                        options,
                    ));
                }
                connection.last_record = Instant::now();
                connection.wait_before_reconnect().await;
                continue;
            }
            Err(RequestError::Refused(refusal)) if matches!(refusal.status, 400 | 401 | 403) => {
                let question = AskedCommand::new(client.settings(), "logs", &[id, "-f"], Some(id));
                return Err(question.failure(client.settings(), &RequestError::Refused(refusal)));
            }
            Err(error) => error.to_string(),
        };
        if connection.last_record.elapsed() > GIVE_UP_AFTER_SILENCE {
            return Err(Failure::platform(
                format!("the connection was lost, and nothing came for 5 minutes: {problem}"),
                format!(
                    "the build may go on; return to it with slipway logs {id} -f{}",
                    client.settings().options
                ),
            ));
        }
        if !std::mem::replace(&mut connection.is_lost, true) {
            progress.note(&format!("{problem}; connecting again"));
        }
        connection.wait_before_reconnect().await;
    }
}

/// Reads a log until its terminal record, which is returned. Shows the build's state while nothing comes.
async fn read_log_to_terminal_record(
    following: &FollowedBuild<'_>,
    records: &mut RecordStream,
    next_line: &mut u64,
    connection: &mut LogConnectionState,
) -> Result<Value, StreamCut> {
    let mut shown_state = String::new();
    let mut pause = FIRST_AND_LONGEST_STATE_PAUSE.0;
    loop {
        let record = tokio::select! {
            record = records.next_record() => record?,
            () = sleep(pause) => {
                pause = (pause * 2).min(FIRST_AND_LONGEST_STATE_PAUSE.1);
                ask_and_show_new_waiting_or_deploying_state(following, &mut shown_state).await;
                continue;
            }
        };
        connection.note_record(following.progress);
        match record {
            Record::Progress { seq, lines, cached } => {
                if !lines.is_empty() {
                    pause = FIRST_AND_LONGEST_STATE_PAUSE.0;
                }
                following.show_log_lines(seq, &lines, &cached);
                if let Some(seq) = seq {
                    *next_line = (*next_line).max(seq + 1);
                }
            }
            Record::NumbersRestart { seq, warning } => {
                following.show_restart_of_numbers(seq, &warning);
                *next_line = seq + 1;
            }
            Record::Terminal(outcome) => return Ok(outcome),
        }
    }
}

/// Asks for the state of a build, and shows it if it is `waiting` or `deploying` and another one than before.
async fn ask_and_show_new_waiting_or_deploying_state(following: &FollowedBuild<'_>, shown: &mut String) {
    let path = build_path(following.id);
    // The log has the outcome, so a question without an answer is no failure.
    if let Ok(build) = following.client.ask(following.route, Method::GET, &path).await
        && let Some(state) = build["state"].as_str()
        && state != *shown
        && matches!(state, "waiting" | "deploying")
    {
        following.progress.show(&Event::State { state });
        state.clone_into(shown);
    }
}

/// Returns the outcome of a build whose log has ended. Where the log does not say how the build ended, asks for it: the
/// builder that sent the log may not know what became of the deployment, and another one may still be deploying.
async fn poll_for_end_or_last_state_if_outcome_is_unclear(
    following: &FollowedBuild<'_>,
    outcome: Value,
) -> Result<Value, Failure> {
    if outcome["status"] != "failed" || !outcome["code"].is_null() {
        return Ok(outcome);
    }
    let path = build_path(following.id);
    let began = Instant::now();
    let mut last = outcome.clone();
    loop {
        if let Ok(build) = following.client.ask(following.route, Method::GET, &path).await {
            match build["state"].as_str() {
                Some("success" | "failed" | "cancelled") => return Ok(build),
                Some(state) => last["state"] = state.into(),
                None => {}
            }
        }
        // A build that is known to go on is waited for.
        let goes_on = matches!(last["state"].as_str(), Some("waiting" | "running" | "deploying"));
        if !goes_on && began.elapsed() > END_WAIT_AND_PAUSE.0 {
            return Ok(last);
        }
        sleep(END_WAIT_AND_PAUSE.1).await;
    }
}

/// Creates the error for a build that no builder knows.
fn failure_of_unknown_build(id: &str, text: &str, was_queued: bool, options: &str) -> Failure {
    match was_queued {
        true => Failure::platform(
            format!("no builder has accepted the build {id}: {text}"),
            format!(
                "see whether the queue-worker runs; slipway logs {id} -f{options} waits once more, --queue-timeout SECONDS \
                 waits longer"
            ),
        ),
        false => Failure::usage(
            format!("build {id}: {text}"),
            format!("find its ID: slipway builds{options}"),
        ),
    }
}

impl FunctionBuild<'_> {
    /// Follows a queued build to its end.
    pub(super) async fn follow_queued(&self, id: &str) -> Result<BuildEnd, Failure> {
        let following = FollowedBuild {
            client: self.client,
            route: Route::Gateway,
            id,
            progress: &self.progress,
            form: LogForm::Progress,
            patience: Some(self.options.queue_timeout()),
        };
        self.progress.show(&Event::State { state: "queued" });
        let outcome = follow_log(&following).await?;
        Ok(self.end_of_build(self.judge(&outcome), &outcome))
    }

    /// Follows a streamed answer to its end. If it is cut, the request is sent again: the builder goes on where the
    /// build is, or begins it again with what is cached.
    pub(super) async fn follow_stream_with_resends(
        &self,
        route: Route,
        submission: &SignedBuildRequest,
        id: &str,
        mut records: RecordStream,
    ) -> Result<BuildEnd, Failure> {
        let submission = SignedBuildRequest {
            call_id: id.to_owned(),
            ..submission.clone()
        };
        let mut shown = ShownLines::default();
        let mut sends = 0;
        let mut pause = FIRST_AND_LONGEST_RETRY_PAUSE.0;
        loop {
            match records.next_record().await {
                Ok(Record::Progress { lines, cached, .. }) => {
                    let lines = shown.without_shown(lines);
                    let cached = shown.without_shown_steps(cached, &lines);
                    self.progress.show_log_lines(&lines, &cached);
                }
                // Lines of an answer have no numbers.
                Ok(Record::NumbersRestart { warning, .. }) => {
                    self.progress.show(&Event::Warning { text: &warning });
                }
                Ok(Record::Terminal(outcome)) => {
                    return Ok(self.end_of_build(self.judge(&outcome), &outcome));
                }
                Err(cut) => {
                    shown.note_log_begins_again();
                    self.progress
                        .note(&format!("{cut}; sending the request again, as the same build"));
                    records = loop {
                        sends += 1;
                        if sends > SENDS_AGAIN_MAX {
                            return Err(Failure::platform(
                                format!(
                                    "the build's answer was cut, and sending the request again {SENDS_AGAIN_MAX} times did not help: {cut}"
                                ),
                                "say --via queue, which needs no lasting connection, or raise the time limits between here and \
                                 the builder",
                            ));
                        }
                        sleep(pause).await;
                        pause = (pause * 2).min(FIRST_AND_LONGEST_RETRY_PAUSE.1);
                        match self.client.submit(route, &submission, |_| {}).await {
                            Ok(submitted) => {
                                if let Some(records) = submitted.records {
                                    break records;
                                }
                            }
                            Err(RequestError::Refused(refusal)) if !matches!(refusal.status, 429 | 500..) => {
                                return Ok(self.end_of_build(self.judge(&refusal.outcome), &refusal.outcome));
                            }
                            Err(error) => self.progress.note(&error.to_string()),
                        }
                    };
                }
            }
        }
    }
}

/// The lines that were shown before, so that those of a joined build are not shown twice. Lines have times in seconds:
/// a line is shown as often as it came before the cut or after it, whichever is more.
#[derive(Debug, Default)]
struct ShownLines {
    shown: HashMap<u64, u32>,
    seen_since_cut: HashMap<u64, u32>,
}

impl ShownLines {
    /// Begins to count again, because the log begins again.
    fn note_log_begins_again(&mut self) {
        self.seen_since_cut.clear();
    }

    /// Returns the lines that were not shown before the cut.
    fn without_shown(&mut self, lines: Vec<String>) -> Vec<String> {
        lines
            .into_iter()
            .filter(|line| self.count_line_and_check_new(line))
            .collect()
    }

    /// Returns the names of cached steps that end in these lines, or were not shown before the cut.
    fn without_shown_steps(&mut self, names: Vec<String>, lines: &[String]) -> Vec<String> {
        let is_end_of = |line: &String, step: &str| matches!(LogLine::parse(line), LogLine::StepEnded { name, .. } if name == step);
        names
            .into_iter()
            .filter(|name| {
                // Counts the name in both cases.
                self.count_line_and_check_new(name) || lines.iter().any(|line| is_end_of(line, name))
            })
            .collect()
    }

    fn count_line_and_check_new(&mut self, line: &str) -> bool {
        let mut hasher = DefaultHasher::new();
        line.hash(&mut hasher);
        let hash = hasher.finish();
        let seen = self.seen_since_cut.entry(hash).or_default();
        *seen += 1;
        let shown = self.shown.entry(hash).or_default();
        let is_new = *seen > *shown;
        *shown = (*shown).max(*seen);
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_begins_again_shows_only_what_was_not_shown_before() {
        let lines = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let mut shown = ShownLines::default();
        assert_eq!(shown.without_shown(lines(&["a", "b", "b"])), ["a", "b", "b"]);
        shown.note_log_begins_again();
        assert_eq!(shown.without_shown(lines(&["a", "b"])), [""; 0]);
        assert_eq!(shown.without_shown(lines(&["b", "b", "c"])), ["b", "c"]);
    }

    #[test]
    fn a_cached_step_is_shown_again_only_where_its_line_is() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let mut shown = ShownLines::default();
        assert_eq!(shown.without_shown_steps(texts(&["a", "b"]), &[]), ["a", "b"]);
        shown.note_log_begins_again();
        let lines = texts(&["v: T b 0.00s"]);
        assert_eq!(shown.without_shown_steps(texts(&["a", "b"]), &lines), ["b"]);
    }
}
