//! The steps of one build, counted as they end.

use std::collections::HashSet;

use function_host::prometheus::IntCounter;

use crate::buildkit::Event;

/// Steps that are remembered; beyond that, one may be counted twice.
const REMEMBERED: usize = 10_000;

/// Counts each step once, though the daemon repeats itself.
#[derive(Debug)]
pub struct Steps {
    seen: HashSet<String>,
    cached: IntCounter,
    executed: IntCounter,
}

impl Steps {
    pub(super) fn new(cached: IntCounter, executed: IntCounter) -> Self {
        Self {
            seen: HashSet::new(),
            cached,
            executed,
        }
    }

    /// Takes notice of an event.
    pub fn note(&mut self, event: &Event) {
        let Event::Step {
            digest,
            completed: Some(_),
            cached,
            ..
        } = event
        else {
            return;
        };
        if self.seen.contains(digest) {
            return;
        }
        if self.seen.len() < REMEMBERED {
            self.seen.insert(digest.clone());
        }
        match cached {
            true => self.cached.inc(),
            false => self.executed.inc(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_step_is_counted_once_when_it_has_ended() {
        let counter = |name| IntCounter::new(name, "x").expect("a counter");
        let (cached, executed) = (counter("cached"), counter("executed"));
        let mut steps = Steps::new(cached.clone(), executed.clone());
        let event = |digest: &str, completed, cached| Event::Step {
            digest: digest.into(),
            name: String::new(),
            started: None,
            completed,
            cached,
            error: String::new(),
        };
        let now = Some(SystemTime::now());

        for event in [
            event("a", None, false),
            event("a", now, false),
            event("a", now, false),
            event("b", now, true),
            event("c", None, false),
        ] {
            steps.note(&event);
        }

        assert_eq!((cached.get(), executed.get()), (1, 1));
    }
}
