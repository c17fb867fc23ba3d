//! The steps of one build, counted as they end.

use function_host::prometheus::IntCounter;

use crate::buildkit::Event;

/// Counts each step once, even if it runs again.
#[derive(Debug)]
pub struct Steps {
    cached: IntCounter,
    executed: IntCounter,
}

impl Steps {
    pub(super) fn new(cached: IntCounter, executed: IntCounter) -> Self {
        Self { cached, executed }
    }

    /// Counts the step that `event` ends, if it does and the step had not ended before.
    pub fn note(&self, event: &Event) {
        if let Event::StepEnded {
            cached,
            is_rerun: false,
            ..
        } = event
        {
            match cached {
                true => self.cached.inc(),
                false => self.executed.inc(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_step_is_counted_when_it_first_ends() {
        let counter = |name| IntCounter::new(name, "x").expect("a counter");
        let (cached, executed) = (counter("cached"), counter("executed"));
        let steps = Steps::new(cached.clone(), executed.clone());
        let now = SystemTime::now();
        let started = |digest: &str| Event::StepStarted {
            digest: digest.into(),
            name: String::new(),
            at: now,
            is_rerun: false,
        };
        let ended = |digest: &str, cached, is_rerun| Event::StepEnded {
            digest: digest.into(),
            name: String::new(),
            started: None,
            ended: now,
            cached,
            error: String::new(),
            is_rerun,
        };

        for event in [
            started("a"),
            ended("a", false, false),
            ended("a", false, true),
            ended("b", true, false),
            started("c"),
        ] {
            steps.note(&event);
        }

        assert_eq!((cached.get(), executed.get()), (1, 1));
    }
}
