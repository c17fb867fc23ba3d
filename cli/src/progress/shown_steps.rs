//! The memory of the steps that were shown.

use std::collections::HashSet;

use super::Event;
use super::plain::lines_of;

/// The lines of steps that a display has shown. No line is shown twice: BuildKit starts and ends some steps more than
/// once.
#[derive(Default)]
pub(super) struct ShownSteps {
    lines: HashSet<String>,
}

impl ShownSteps {
    /// Returns the lines that show an event, without the lines of steps that were shown before.
    pub(super) fn take_lines_without_repeated_steps(&mut self, event: &Event<'_>) -> Vec<String> {
        let mut lines = lines_of(event);
        if let Event::StepStarted { .. } | Event::StepEnded { .. } = event {
            lines.retain(|line| self.lines.insert(line.clone()));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_a_step_are_shown_once() {
        let mut steps = ShownSteps::default();
        let mut shown = |event| steps.take_lines_without_repeated_steps(&event);
        let started = || Event::StepStarted {
            name: "[1/2] RUN make",
        };
        assert_eq!(shown(started()), ["=> [1/2] RUN make"]);
        assert!(shown(started()).is_empty());
        let ended = |cached| Event::StepEnded {
            name: "[1/2] RUN make",
            seconds: 1.5,
            cached,
        };
        assert_eq!(shown(ended(false)), ["=> [1/2] RUN make 1.5 s"]);
        assert!(shown(ended(false)).is_empty());
        assert_eq!(shown(ended(true)), ["=> CACHED [1/2] RUN make"]);
        assert!(shown(ended(true)).is_empty());
        let output = || Event::Output { text: "the same" };
        assert_eq!(
            shown(output()),
            shown(output()),
            "output is shown as often as it comes"
        );
    }
}
