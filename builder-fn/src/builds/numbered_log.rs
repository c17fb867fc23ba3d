//! The lines of one attempt with their numbers, which are the same for every reader.

use std::collections::HashMap;

use tonic::Status;

use crate::buildkit::{
    AttemptFacts, BuildEvent, BuildState, Connection, ListedBuild, OrderedLogWithoutProgress,
    StepOrExportPartFacts,
};
use crate::redact::SecretMask;
use crate::report::LineFormatter;

/// The distance between the numbers of the first lines of two attempts in a row.
pub(super) const LINE_NUMBERS_PER_ATTEMPT: u64 = 1_000_000_000;

/// A line of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogLine {
    /// The number of the line.
    pub(super) seq: u64,
    /// The number of the step that the line belongs to, from 1, in the order in which the steps appear in the log;
    /// `None` for a line of no step.
    pub(super) step: Option<u32>,
    /// What the line says of a cached step.
    pub(super) kind: LineKind,
    /// The line.
    pub(super) text: String,
}

/// What a line of a log says of a cached step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum LineKind {
    /// Nothing.
    #[default]
    Ordinary,
    /// The line is that of the end of a step whose result came from the cache.
    EndOfCachedStep,
    /// The text is no line, but the name of a cached step that the log has no line of. Where it is among the lines
    /// depends on the reader; it has the number of the line after it.
    NameOfCachedStep,
}

/// A reader of the numbered lines of one attempt.
pub(super) struct NumberedLog {
    log: OrderedLogWithoutProgress,
    lines: LineFormatter,
    seq: u64,
    /// The number of the first line that the reader needs.
    first: u64,
    /// The numbers of the steps that have appeared, by their digests.
    steps: HashMap<String, u32>,
    /// The check of the attempt, until it has passed.
    check: Option<AttemptCheck>,
    has_ended: bool,
}

/// A check that the events of a log are those of the attempt that was running when it was listed.
///
/// BuildKit has no record of an attempt during which it was killed. The build then begins again under the same
/// reference, and the log that is opened by that reference may be the log of the new attempt.
struct AttemptCheck {
    connection: Connection,
    attempt: ListedBuild,
    /// The first answer of the log, which is held until the check has passed; its `None` is the end of the log.
    held: Option<Option<Vec<BuildEvent>>>,
}

impl NumberedLog {
    /// Opens the log of `attempt`, which is the attempt number `attempt_number`, from its beginning.
    pub(super) fn open(
        connection: &Connection,
        attempt: &ListedBuild,
        attempt_number: u64,
        mask: &SecretMask,
    ) -> Self {
        let has_ended = attempt.state != BuildState::Running;
        let check = (!has_ended).then(|| AttemptCheck {
            connection: connection.clone(),
            attempt: attempt.clone(),
            held: None,
        });
        Self {
            log: connection
                .open_log(&attempt.reference)
                .treated_as_ended_if(has_ended),
            lines: LineFormatter::new(mask.clone()),
            seq: (attempt_number - 1) * LINE_NUMBERS_PER_ATTEMPT,
            first: 0,
            steps: HashMap::new(),
            check,
            has_ended: false,
        }
    }

    /// Leaves out lines of output before the line with this number, as far as they need not be formatted to be counted.
    /// A reader that is cut off reads a log from its beginning each time.
    pub(super) fn may_skip_output_before(self, first: u64) -> Self {
        Self { first, ..self }
    }

    /// Passes lines on after a pause of the daemon, also those of an ended attempt, for a reader who does not read to
    /// the end.
    pub(super) fn passing_on_after_pauses_even_if_ended(mut self) -> Self {
        self.log = self.log.treated_as_ended_if(false);
        self
    }

    /// Keeps facts about the steps, in whose names `mask` masks secrets.
    pub(super) fn with_facts(mut self, mask: &SecretMask) -> Self {
        self.log = self.log.with_facts(mask.clone());
        self
    }

    /// Waits for the next lines; `None` after the last one. Dropping the future loses nothing.
    ///
    /// # Errors
    /// Fails if the daemon does not know the attempt, has begun another one under its reference, or is lost.
    pub(super) async fn next_lines(&mut self) -> Result<Option<Vec<LogLine>>, Status> {
        if self.has_ended {
            return Ok(None);
        }
        let Some(events) = self.next_events_of_attempt().await? else {
            self.has_ended = true;
            let rest = self.lines.take_unfinished_output();
            return Ok(Some(
                rest.into_iter()
                    .map(|text| self.number_line(None, text))
                    .collect(),
            ));
        };
        let mut numbered = Vec::new();
        for event in events {
            if let BuildEvent::StepEnded {
                name,
                started: None,
                cached: true,
                ..
            } = &event
            {
                numbered.push(LogLine {
                    seq: self.seq + 1,
                    step: None,
                    kind: LineKind::NameOfCachedStep,
                    text: self.lines.format_step_name(name),
                });
                continue;
            }
            let is_end_of_cached_step = matches!(event, BuildEvent::StepEnded { cached: true, .. });
            let step = self.step_number_of_event(&event);
            let needless = self.first.saturating_sub(self.seq + 1);
            let skipped = match needless {
                0 => Err(event),
                needless => self.lines.skip_output(event, needless),
            };
            let event = match skipped {
                Ok(count) => {
                    self.seq += count;
                    continue;
                }
                Err(event) => event,
            };
            for text in self.lines.format_event(event) {
                numbered.push(self.number_line(step, text));
            }
            // The line of the end follows the rest of the step's output.
            if let Some(end) = numbered.last_mut().filter(|_| is_end_of_cached_step) {
                end.kind = LineKind::EndOfCachedStep;
            }
        }
        Ok(Some(numbered))
    }

    /// Waits for the next events of the attempt; `None` after the last one. The first ones are returned only after the
    /// daemon has said that they are not those of another attempt. Dropping the future loses nothing.
    async fn next_events_of_attempt(&mut self) -> Result<Option<Vec<BuildEvent>>, Status> {
        let Some(check) = &mut self.check else {
            return self.log.next_events().await;
        };
        if check.held.is_none() {
            check.held = Some(self.log.next_events().await?);
        }
        if !check.connection.has_record_of_attempt(&check.attempt).await? {
            return Err(Status::not_found("BuildKit no longer has this attempt"));
        }
        let check = self.check.take();
        Ok(check.and_then(|check| check.held).flatten())
    }

    /// Returns the number of the last line that was read.
    pub(super) fn last_read_line_number(&self) -> u64 {
        self.seq
    }

    /// Returns the steps with their numbers in the log, as far as it was read, and the other facts; none unless they
    /// were asked for. A step that has not appeared in the log has no number.
    pub(super) fn into_numbered_steps_and_facts_if_kept(
        self,
    ) -> (Vec<(Option<u32>, StepOrExportPartFacts)>, AttemptFacts) {
        let mut facts = self.log.into_facts_or_empty_if_not_collected();
        let steps = facts.take_steps().into_iter();
        let numbered = steps.map(|step| (self.steps.get(&step.digest).copied(), step));
        (numbered.collect(), facts)
    }

    fn number_line(&mut self, step: Option<u32>, text: String) -> LogLine {
        self.seq += 1;
        LogLine {
            seq: self.seq,
            step,
            kind: LineKind::Ordinary,
            text,
        }
    }

    /// Returns the number of the step that an event belongs to, and numbers a step that appears for the first time.
    fn step_number_of_event(&mut self, event: &BuildEvent) -> Option<u32> {
        let digest = match event {
            BuildEvent::StepStarted { digest, .. } | BuildEvent::StepEnded { digest, .. } => digest,
            BuildEvent::Output { step, .. } => step,
            BuildEvent::Progress { .. } | BuildEvent::Unsure { .. } | BuildEvent::Warning { .. } => {
                return None;
            }
        };
        if let Some(known) = self.steps.get(digest) {
            return Some(*known);
        }
        let number = u32::try_from(self.steps.len()).ok()? + 1;
        self.steps.insert(digest.clone(), number);
        Some(number)
    }
}
