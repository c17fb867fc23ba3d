//! Counts the steps of one build in the metrics.

use function_host::prometheus::IntCounter;

use crate::buildkit::BuildEvent;

/// Counts each step of a build once, when it first ends.
#[derive(Debug)]
pub(crate) struct StepCounter {
    cached: IntCounter,
    executed: IntCounter,
}

impl StepCounter {
    pub(super) fn new(cached: IntCounter, executed: IntCounter) -> Self {
        Self { cached, executed }
    }

    /// Counts the step that `event` ends, unless that step had ended before.
    pub(crate) fn count_step_that_first_ends(&self, event: &BuildEvent) {
        if let BuildEvent::StepEnded {
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
        let steps = StepCounter::new(cached.clone(), executed.clone());
        let now = SystemTime::now();
        let started = |digest: &str| BuildEvent::StepStarted {
            digest: digest.into(),
            name: String::new(),
            at: now,
            is_rerun: false,
        };
        let ended = |digest: &str, cached, is_rerun| BuildEvent::StepEnded {
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
            steps.count_step_that_first_ends(&event);
        }

        assert_eq!((cached.get(), executed.get()), (1, 1));
    }
}
