//! Telling a person what is being done, and since when: one line a step, on a terminal and in a log alike.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

/// Where the steps of a long task are told.
#[derive(Clone)]
pub struct Progress {
    start: Instant,
    write: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Progress {
    /// Gives each line, with the elapsed time in front, to a function.
    pub fn new(write: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self {
            start: Instant::now(),
            write: Arc::new(write),
        }
    }

    /// Lines on standard error.
    pub fn stderr() -> Self {
        use std::io::Write as _;
        Self::new(|line| {
            // Whoever closed standard error does not want to know.
            let _ = writeln!(std::io::stderr(), "{line}");
        })
    }

    /// Tells nobody.
    pub fn silent() -> Self {
        Self::new(|_| ())
    }

    /// Tells one step of one thing.
    pub fn step(&self, of: impl fmt::Display, what: impl fmt::Display) {
        (self.write)(&format!("{} {of}: {what}", stamp(self.start.elapsed())));
    }

    /// Since when this task runs.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress")
            .field("elapsed", &self.start.elapsed())
            .finish()
    }
}

/// `[ 12.3s]`: as wide for ten minutes as for one second.
fn stamp(elapsed: Duration) -> String {
    format!("[{:6.1}s]", elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_line_has_the_elapsed_time_the_thing_and_the_step() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = lines.clone();
        Progress::new(move |line| kept.lock().unwrap().push(line.to_owned())).step("buildkit", "ready");
        assert_eq!(lines.lock().unwrap().as_slice(), ["[   0.0s] buildkit: ready"]);
        assert_eq!(stamp(Duration::from_millis(612_340)), "[ 612.3s]");
    }
}
