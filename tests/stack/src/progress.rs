//! Progress for people: one line for each step, with the elapsed time, and what runs at the moment.
//!
//! On a terminal, the last lines show what runs, each with a clock and its last message, and change in place. In a log,
//! what runs is repeated from time to time.

use std::{
    fmt,
    io::{self, IsTerminal as _},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// The interval between repeated lines about the same work in a log.
const LOG_REPEAT_INTERVAL: Duration = Duration::from_secs(20);

/// The interval at which the clocks on a terminal advance.
const TERMINAL_CLOCK_INTERVAL: Duration = Duration::from_millis(500);

/// The number of columns of a terminal that does not report it.
const DEFAULT_COLUMNS: u16 = 80;

/// A sink for progress lines, which are for people.
#[derive(Clone)]
pub struct ProgressSink {
    start: Instant,
    shared: Arc<Mutex<SharedProgress>>,
    columns: Option<fn() -> u16>,
}

/// The output of a sink, and the work that it shows.
struct SharedProgress {
    /// Writes text: whole lines and, on a terminal, control sequences that clear lines.
    write: Box<dyn FnMut(&str) + Send>,
    running: Vec<RunningWork>,
    next_id: u64,
    /// The number of lines at the end of a terminal that show what runs.
    shown_lines: usize,
}

/// Work that has begun and not ended.
struct RunningWork {
    id: u64,
    subject: String,
    began: Instant,
    message: String,
}

impl ProgressSink {
    /// Creates a sink that passes each progress line, with the elapsed time in front, to `write`.
    pub fn new(write: impl Fn(&str) + Send + Sync + 'static) -> Self {
        let write = move |text: &str| write(text.trim_end_matches('\n'));
        Self::with_writer(write, None)
    }

    /// Creates a sink that writes progress lines to standard error, and shows there what runs if it is a terminal.
    pub fn to_stderr() -> Self {
        use std::io::Write as _;
        let write = |text: &str| {
            // Progress is lost without harm if standard error is closed.
            let _ = io::stderr().write_all(text.as_bytes());
        };
        let columns: fn() -> u16 = stderr_columns;
        Self::with_writer(write, io::stderr().is_terminal().then_some(columns))
    }

    /// Creates a sink that discards all progress lines.
    pub fn discarding() -> Self {
        Self::new(|_| ())
    }

    /// Creates a sink that passes its text to `write`; `columns` returns the width of the terminal, `None` is a log.
    fn with_writer(write: impl FnMut(&str) + Send + 'static, columns: Option<fn() -> u16>) -> Self {
        Self {
            start: Instant::now(),
            shared: Arc::new(Mutex::new(SharedProgress {
                write: Box::new(write),
                running: Vec::new(),
                next_id: 0,
                shown_lines: 0,
            })),
            columns,
        }
    }

    /// Emits a progress line about `subject`.
    pub fn emit_progress_line(&self, subject: impl fmt::Display, message: impl fmt::Display) {
        let line = format_progress_line(self.start.elapsed(), subject, message);
        self.write_lines_and_running_work(|_| vec![line]);
    }

    /// Awaits `work` and shows how long it has been running, and the last message that it passes to its
    /// [`WorkMessageSetter`].
    pub(crate) async fn show_while<T, F: Future<Output = T>>(
        &self,
        subject: impl Into<String>,
        work: impl FnOnce(WorkMessageSetter) -> F,
    ) -> T {
        let shown = ShownWorkGuard::begin(self, subject.into());
        let mut work = std::pin::pin!(work(WorkMessageSetter {
            shared: self.shared.clone(),
            id: shown.id,
        }));
        let interval = match self.columns {
            Some(_) => TERMINAL_CLOCK_INTERVAL,
            None => LOG_REPEAT_INTERVAL,
        };
        loop {
            match tokio::time::timeout(interval, &mut work).await {
                Ok(done) => return done,
                Err(_) => self.write_lines_and_running_work(|progress| match self.columns {
                    // The clocks are written below.
                    Some(_) => Vec::new(),
                    None => (progress.running.iter())
                        .filter(|running| running.id == shown.id)
                        .map(|running| {
                            format_progress_line(
                                self.start.elapsed(),
                                &running.subject,
                                running.time_and_message(),
                            )
                        })
                        .collect(),
                }),
            }
        }
    }

    /// Writes lines, and below them, on a terminal, what runs.
    fn write_lines_and_running_work(&self, lines: impl FnOnce(&mut SharedProgress) -> Vec<String>) {
        // A line that panicked while it was written leaves nothing half done that matters.
        let mut progress = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        if progress.shown_lines > 0 {
            // To the beginning of the first line that shows what runs, and clear from there (ECMA-48, CPL and ED).
            text = format!("\x1b[{}F\x1b[J", progress.shown_lines);
        }
        for line in lines(&mut progress) {
            text.push_str(&line);
            text.push('\n');
        }
        progress.shown_lines = 0;
        if let Some(columns) = self.columns {
            let columns = usize::from(columns());
            for running in &progress.running {
                let line =
                    format_progress_line(self.start.elapsed(), &running.subject, running.time_and_message());
                // A longer line would take two lines of the terminal.
                text.extend(line.chars().take(columns.saturating_sub(1)));
                text.push('\n');
            }
            progress.shown_lines = progress.running.len();
        }
        if !text.is_empty() {
            (progress.write)(&text);
        }
    }
}

impl fmt::Debug for ProgressSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress")
            .field("elapsed", &self.start.elapsed())
            .finish()
    }
}

impl RunningWork {
    /// Returns how long the work has been running, and its last message.
    fn time_and_message(&self) -> String {
        let seconds = self.began.elapsed().as_secs();
        match self.message.as_str() {
            "" => format!("running for {seconds} s"),
            message => format!("{seconds} s: {message}"),
        }
    }
}

/// A guard for work that a sink shows until the guard is dropped.
struct ShownWorkGuard<'a> {
    sink: &'a ProgressSink,
    id: u64,
}

impl<'a> ShownWorkGuard<'a> {
    /// Adds work to what the sink shows.
    fn begin(sink: &'a ProgressSink, subject: String) -> Self {
        let mut id = 0;
        sink.write_lines_and_running_work(|progress| {
            id = progress.next_id;
            progress.next_id += 1;
            progress.running.push(RunningWork {
                id,
                subject,
                began: Instant::now(),
                message: String::new(),
            });
            Vec::new()
        });
        Self { sink, id }
    }
}

impl Drop for ShownWorkGuard<'_> {
    fn drop(&mut self) {
        self.sink.write_lines_and_running_work(|progress| {
            progress.running.retain(|running| running.id != self.id);
            Vec::new()
        });
    }
}

/// The handle by which running work sets the message that its sink shows.
pub(crate) struct WorkMessageSetter {
    shared: Arc<Mutex<SharedProgress>>,
    id: u64,
}

impl WorkMessageSetter {
    /// Sets the last message of the work, without control characters; the sink shows it when it next shows the clock of
    /// the work.
    pub(crate) fn set_message_for_next_refresh(&self, message: &str) {
        let mut progress = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = progress.running.iter_mut().find(|running| running.id == self.id) {
            running.message = message.chars().filter(|char| !char.is_control()).collect();
        }
    }
}

/// Returns the number of columns of the terminal at standard error.
fn stderr_columns() -> u16 {
    match rustix::termios::tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_col > 0 => size.ws_col,
        _ => DEFAULT_COLUMNS,
    }
}

/// Formats a progress line: `[ 12.3s] subject: message`. The time is as wide for ten minutes as for one second.
fn format_progress_line(elapsed: Duration, subject: impl fmt::Display, message: impl fmt::Display) -> String {
    format!("[{:6.1}s] {subject}: {message}", elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a sink, with what it has written.
    fn sink_with_output(columns: Option<fn() -> u16>) -> (ProgressSink, Arc<Mutex<String>>) {
        let output = Arc::new(Mutex::new(String::new()));
        let written = output.clone();
        let write = move |text: &str| written.lock().unwrap().push_str(text);
        (ProgressSink::with_writer(write, columns), output)
    }

    #[test]
    fn a_progress_line_has_the_elapsed_time_the_subject_and_the_message() {
        let line =
            |milliseconds| format_progress_line(Duration::from_millis(milliseconds), "buildkit", "ready");
        assert_eq!(line(0), "[   0.0s] buildkit: ready");
        assert_eq!(line(612_340), "[ 612.3s] buildkit: ready");
    }

    #[test]
    fn each_progress_step_writes_one_line_with_subject_and_message() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let written = lines.clone();
        let progress = ProgressSink::new(move |line| written.lock().unwrap().push(line.to_owned()));
        progress.emit_progress_line("buildkit", "starting");
        progress.emit_progress_line("buildkit", "ready");
        let lines = lines.lock().unwrap();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].ends_with("] buildkit: starting"), "{lines:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_repeats_the_clock_and_the_last_message_of_each_work() {
        let (progress, output) = sink_with_output(None);
        let silent = progress.show_while("silent", |_| tokio::time::sleep(LOG_REPEAT_INTERVAL * 3 / 2));
        let talking = progress.show_while("talking", async |messages: WorkMessageSetter| {
            messages.set_message_for_next_refresh("first");
            messages.set_message_for_next_refresh("\x1b[2JCompiling\tsyn\r");
            tokio::time::sleep(LOG_REPEAT_INTERVAL * 5 / 2).await;
        });
        tokio::join!(silent, talking);
        let output = output.lock().unwrap();
        let mut lines = output.lines().collect::<Vec<_>>();
        // Timers of the same time fire in any order.
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "[  20.0s] silent: running for 20 s",
                "[  20.0s] talking: 20 s: [2JCompilingsyn",
                "[  40.0s] talking: 40 s: [2JCompilingsyn",
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_terminal_shows_what_runs_below_all_steps_and_nothing_once_it_has_ended() {
        let (progress, output) = sink_with_output(Some(|| 35));
        let first = progress.show_while("first", async |messages: WorkMessageSetter| {
            messages.set_message_for_next_refresh("a message that is longer than the terminal is wide");
            tokio::time::sleep(TERMINAL_CLOCK_INTERVAL * 3 / 2).await;
        });
        first.await;
        progress.emit_progress_line("stack", "running");
        assert_eq!(
            *output.lock().unwrap(),
            "[   0.0s] first: running for 0 s\n\
             \x1b[1F\x1b[J[   0.5s] first: 0 s: a message th\n\
             \x1b[1F\x1b[J\
             [   0.8s] stack: running\n"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_is_dropped_is_no_longer_shown() {
        let (progress, output) = sink_with_output(Some(|| 80));
        let work = progress.show_while("given up", |_| std::future::pending::<()>());
        let _ = tokio::time::timeout(TERMINAL_CLOCK_INTERVAL / 2, work).await;
        assert!(output.lock().unwrap().ends_with("\x1b[1F\x1b[J"));
    }
}
