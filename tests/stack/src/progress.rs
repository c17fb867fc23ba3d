//! Progress lines for people: one line for each step, with the elapsed time, for a terminal or a log.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

/// A sink for progress lines, which are for people.
#[derive(Clone)]
pub struct ProgressSink {
    start: Instant,
    write: Arc<dyn Fn(&str) + Send + Sync>,
}

impl ProgressSink {
    /// Creates a sink that passes each progress line, with the elapsed time in front, to `write`.
    pub fn new(write: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self {
            start: Instant::now(),
            write: Arc::new(write),
        }
    }

    /// Creates a sink that writes progress lines to standard error.
    pub fn to_stderr() -> Self {
        use std::io::Write as _;
        Self::new(|line| {
            // Progress is lost without harm if standard error is closed.
            let _ = writeln!(std::io::stderr(), "{line}");
        })
    }

    /// Creates a sink that discards all progress lines.
    pub fn discarding() -> Self {
        Self::new(|_| ())
    }

    /// Emits a progress line about `subject`.
    pub fn emit_step(&self, subject: impl fmt::Display, message: impl fmt::Display) {
        (self.write)(&format_progress_line(self.start.elapsed(), subject, message));
    }
}

impl fmt::Debug for ProgressSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress")
            .field("elapsed", &self.start.elapsed())
            .finish()
    }
}

/// Formats a progress line: `[ 12.3s] subject: message`. The time is as wide for ten minutes as for one second.
fn format_progress_line(elapsed: Duration, subject: impl fmt::Display, message: impl fmt::Display) -> String {
    format!("[{:6.1}s] {subject}: {message}", elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_progress_line_has_the_elapsed_time_the_subject_and_the_message() {
        let line =
            |milliseconds| format_progress_line(Duration::from_millis(milliseconds), "buildkit", "ready");
        assert_eq!(line(0), "[   0.0s] buildkit: ready");
        assert_eq!(line(612_340), "[ 612.3s] buildkit: ready");
    }

    #[test]
    fn every_progress_step_is_one_line() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let written = lines.clone();
        let progress = ProgressSink::new(move |line| written.lock().unwrap().push(line.to_owned()));
        progress.emit_step("buildkit", "starting");
        progress.emit_step("buildkit", "ready");
        let lines = lines.lock().unwrap();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].ends_with("] buildkit: starting"), "{lines:?}");
    }
}
