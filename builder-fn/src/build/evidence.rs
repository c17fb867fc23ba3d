//! What a build leaves behind that explains its failure: the last output of its steps, and its context.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::buildkit::BuildEvent;
use crate::context::SourceContext;

/// The most steps whose output is kept: those that run at the same time, and those that failed.
const MAX_KEPT_STEPS: usize = 32;

/// The length to which the kept output of a step is cut, from its beginning, once it is twice as long; in bytes.
const KEPT_OUTPUT_BYTES_PER_STEP: usize = 16 << 10;

/// What a build leaves behind that explains its failure. Its size does not grow with the build.
#[derive(Debug, Default)]
pub(crate) struct FailureEvidence {
    /// The steps that run or have failed, the one that began last at the end.
    steps: VecDeque<RunningOrFailedStep>,
    /// The files of the context.
    context: Option<Arc<SourceContext>>,
}

/// A step that runs or has failed.
#[derive(Debug)]
pub(super) struct RunningOrFailedStep {
    digest: String,
    /// The name of the step.
    pub(super) name: String,
    /// The error of the step; empty while it runs.
    error: String,
    /// The end of the output.
    output: Vec<u8>,
    /// Whether the output was longer.
    is_cut: bool,
}

impl FailureEvidence {
    /// Begins another attempt with the files of its context, if they are known.
    pub(super) fn begin_attempt(&mut self, context: Option<Arc<SourceContext>>) {
        self.steps.clear();
        self.context = context;
    }

    /// Appends the steps of another part of the build, with the context if none is known.
    pub(super) fn append(&mut self, other: Self) {
        self.steps.extend(other.steps);
        self.context = self.context.take().or(other.context);
    }

    /// Forgets the steps and the context.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Records what an event says about the steps.
    pub(super) fn record_event(&mut self, event: &BuildEvent) {
        match event {
            BuildEvent::StepStarted { digest, name, .. } => {
                self.steps.retain(|step| step.digest != *digest);
                self.push_evicting_oldest_unfailed_first(digest, name);
            }
            BuildEvent::StepEnded { digest, error, .. } if error.is_empty() => {
                self.steps.retain(|step| step.digest != *digest);
            }
            BuildEvent::StepEnded {
                digest, name, error, ..
            } => {
                if !self.steps.iter().any(|step| step.digest == *digest) {
                    self.push_evicting_oldest_unfailed_first(digest, name);
                }
                if let Some(step) = self.find(digest) {
                    step.error.clone_from(error);
                }
            }
            BuildEvent::Output { step, text, .. } => {
                if let Some(step) = self.find(step) {
                    step.append_keeping_end(text);
                }
            }
            BuildEvent::Progress { .. } | BuildEvent::Unsure { .. } | BuildEvent::Warning { .. } => {}
        }
    }

    /// Returns the step whose error is part of `solve_error`, or the one that began last of those that run, if the
    /// build was ended, as `was_build_interrupted` says.
    pub(super) fn failed_or_interrupted_step(
        &self,
        solve_error: &str,
        was_build_interrupted: bool,
    ) -> Option<&RunningOrFailedStep> {
        let failed =
            |step: &&RunningOrFailedStep| !step.error.is_empty() && solve_error.contains(&step.error);
        match was_build_interrupted {
            true => self
                .steps
                .iter()
                .rfind(|step| step.error.is_empty() || step.error.contains("context canceled")),
            false => self.steps.iter().find(failed),
        }
    }

    /// Returns the files of the context, if they are known.
    pub(super) fn context(&self) -> Option<&Arc<SourceContext>> {
        self.context.as_ref()
    }

    fn find(&mut self, digest: &str) -> Option<&mut RunningOrFailedStep> {
        self.steps.iter_mut().find(|step| step.digest == digest)
    }

    /// Adds a step, in place of the oldest one that has not failed if there are too many.
    fn push_evicting_oldest_unfailed_first(&mut self, digest: &str, name: &str) {
        if self.steps.len() >= MAX_KEPT_STEPS {
            let oldest = self.steps.iter().position(|step| step.error.is_empty());
            self.steps.remove(oldest.unwrap_or(0));
        }
        self.steps.push_back(RunningOrFailedStep {
            digest: digest.to_owned(),
            name: name.chars().take(1024).collect(),
            error: String::new(),
            output: Vec::new(),
            is_cut: false,
        });
    }
}

impl RunningOrFailedStep {
    /// Returns the end of the output, from the beginning of a line on.
    pub(super) fn kept_whole_output_lines(&self) -> &[u8] {
        match self.is_cut {
            false => &self.output,
            true => {
                let start = self.output.iter().position(|byte| *byte == b'\n');
                start
                    .and_then(|start| self.output.get(start + 1..))
                    .unwrap_or_default()
            }
        }
    }

    /// Appends output, and drops its beginning once it is twice as long as what is kept.
    fn append_keeping_end(&mut self, text: &[u8]) {
        let kept = text.len().min(KEPT_OUTPUT_BYTES_PER_STEP);
        self.is_cut |= kept < text.len();
        self.output
            .extend_from_slice(text.get(text.len() - kept..).unwrap_or_default());
        if self.output.len() >= 2 * KEPT_OUTPUT_BYTES_PER_STEP {
            self.is_cut = true;
            let excess = self.output.len() - KEPT_OUTPUT_BYTES_PER_STEP;
            self.output.drain(..excess);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn started(digest: &str) -> BuildEvent {
        BuildEvent::StepStarted {
            digest: digest.into(),
            name: format!("[1/1] RUN {digest}"),
            at: SystemTime::UNIX_EPOCH,
            is_rerun: false,
        }
    }

    fn ended(digest: &str, error: &str) -> BuildEvent {
        BuildEvent::StepEnded {
            digest: digest.into(),
            name: format!("[1/1] RUN {digest}"),
            started: None,
            ended: SystemTime::UNIX_EPOCH,
            cached: false,
            error: error.into(),
            is_rerun: false,
        }
    }

    fn wrote(digest: &str, text: &str) -> BuildEvent {
        BuildEvent::Output {
            step: digest.into(),
            stream: 1,
            at: SystemTime::UNIX_EPOCH,
            text: text.into(),
        }
    }

    #[test]
    fn the_failed_step_is_the_one_with_the_solves_error_and_the_running_one_the_last_that_began() {
        let mut evidence = FailureEvidence::default();
        for event in [
            started("a"),
            wrote("a", "one\n"),
            started("b"),
            wrote("b", "two\n"),
            started("c"),
            ended("c", ""),
        ] {
            evidence.record_event(&event);
        }
        let running = evidence
            .failed_or_interrupted_step("", true)
            .expect("a step runs");
        assert_eq!(running.kept_whole_output_lines(), b"two\n");
        evidence.record_event(&ended("b", "context canceled"));
        evidence.record_event(&ended("a", "exit code: 1"));
        let failed = evidence
            .failed_or_interrupted_step("process: exit code: 1", false)
            .expect("a step failed");
        assert_eq!(
            (failed.name.as_str(), failed.kept_whole_output_lines()),
            ("[1/1] RUN a", &b"one\n"[..])
        );
        assert!(
            evidence
                .failed_or_interrupted_step("another error", false)
                .is_none()
        );
    }

    #[test]
    fn the_output_of_a_failed_step_is_kept_while_many_others_begin() {
        let mut evidence = FailureEvidence::default();
        evidence.record_event(&started("a"));
        evidence.record_event(&wrote("a", "why\n"));
        for step in 0..20 {
            evidence.record_event(&started(&format!("beside {step}")));
        }
        evidence.record_event(&ended("a", "exit code: 1"));
        for step in 0..100 {
            evidence.record_event(&started(&format!("after {step}")));
        }
        let failed = evidence.failed_or_interrupted_step("exit code: 1", false);
        assert_eq!(
            failed.map(|step| step.kept_whole_output_lines()),
            Some(&b"why\n"[..])
        );
    }

    #[test]
    fn kept_steps_and_their_output_are_bounded_and_a_line_without_its_beginning_is_left_out() {
        let mut evidence = FailureEvidence::default();
        for step in 0..100 {
            let digest = step.to_string();
            evidence.record_event(&started(&digest));
            for line in 0..200 {
                evidence.record_event(&wrote(&digest, &format!("{line} {}\n", "x".repeat(1000))));
            }
            evidence.record_event(&wrote(&digest, &"y".repeat(1 << 20)));
        }
        let kept: usize = evidence.steps.iter().map(|step| step.output.capacity()).sum();
        assert!(
            evidence.steps.len() <= MAX_KEPT_STEPS && kept <= MAX_KEPT_STEPS * 6 * KEPT_OUTPUT_BYTES_PER_STEP,
            "{kept}"
        );
        let last = evidence
            .failed_or_interrupted_step("", true)
            .expect("a step runs");
        assert_eq!(
            last.kept_whole_output_lines(),
            b"",
            "no line of it begins in what is kept"
        );
    }
}
