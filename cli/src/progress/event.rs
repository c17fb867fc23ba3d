//! The events of a build, from the first file that is packed to the running function.

use serde::Serialize;

use crate::builder::{BuildFacts, LogLine};

/// An event of a build.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event<'a> {
    /// The context was packed.
    Packed {
        /// The number of files.
        files: usize,
        /// The number of files and folders that the ignore file excludes.
        ignored: usize,
        /// The bytes before compression.
        bytes: u64,
        /// The bytes of the request.
        compressed: u64,
    },
    /// A part of the request was sent.
    Sent {
        /// The bytes that were sent.
        sent: u64,
        /// The bytes of the request.
        total: u64,
    },
    /// The request was accepted.
    Submitted {
        /// The ID of the build.
        id: &'a str,
        /// The way that the request took.
        route: &'a str,
    },
    /// A rollback began.
    RollbackStarted {
        /// The ID of the rollback.
        id: &'a str,
        /// The version that is deployed again.
        to: &'a str,
        /// The options of the command that lead to the same builder.
        #[serde(skip)]
        options: &'a str,
    },
    /// The build is in another state.
    State {
        /// The state, in the words of the API.
        state: &'a str,
    },
    /// A step began.
    StepStarted {
        /// The name of the step.
        name: &'a str,
    },
    /// A step ended.
    StepEnded {
        /// The name of the step.
        name: &'a str,
        /// The time that it took, in seconds.
        seconds: f64,
        /// Whether its result came from the cache.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        cached: bool,
    },
    /// Something within a step progresses.
    StepProgress {
        /// What progresses, such as a layer.
        id: &'a str,
        /// How far it is.
        current: u64,
    },
    /// A step printed a line.
    Output {
        /// The line.
        text: &'a str,
    },
    /// A remark of the command.
    Note {
        /// The text of the remark.
        text: &'a str,
    },
    /// A remark that the person needs, such as how to return to a build.
    Notice {
        /// The text of the remark.
        text: &'a str,
    },
    /// Something that may be wrong.
    Warning {
        /// What may be wrong.
        text: &'a str,
    },
    /// The function runs.
    Running {
        /// What is known of the deployment.
        summary: &'a str,
        /// The URL of the function.
        url: &'a str,
        /// The image, with its digest if it is known.
        image: &'a str,
        /// The facts about the build.
        #[serde(flatten)]
        facts: &'a BuildFacts,
    },
    /// The build or the deployment failed.
    Failed {
        /// What failed.
        summary: &'a str,
        /// Why, and where, in lines.
        explanation: &'a [String],
        /// What to do next.
        next: &'a str,
        /// The exit status of the command.
        code: u8,
        /// The facts about the build, if there was one.
        #[serde(flatten)]
        facts: Option<&'a BuildFacts>,
    },
}

impl<'a> Event<'a> {
    /// Returns the event of a line of a build's log.
    pub(crate) fn of_log_line(line: &'a str) -> Self {
        match LogLine::parse(line) {
            LogLine::StepStarted { name } => Self::StepStarted { name },
            LogLine::StepEnded { name, seconds } => Self::StepEnded {
                name,
                seconds,
                cached: false,
            },
            LogLine::Progress { id, current } => Self::StepProgress { id, current },
            LogLine::Output { text } => Self::Output { text },
        }
    }

    /// Returns the events of a record's lines. `cached` has the names of cached steps: those that end in the lines, and
    /// others, which end after the lines. The beginning of a cached step that also ends in the lines is left out.
    pub(crate) fn of_record(lines: &'a [String], cached: &'a [String]) -> Vec<Self> {
        let mut without_line: Vec<_> = cached.iter().map(String::as_str).collect();
        let mut events: Vec<Self> = Vec::new();
        for line in lines {
            let mut event = Self::of_log_line(line);
            if let Self::StepEnded { name, cached, .. } = &mut event
                && let Some(index) = without_line.iter().position(|other| other == name)
            {
                without_line.remove(index);
                *cached = true;
                let is_beginning =
                    |other: &Self| matches!(other, Self::StepStarted { name: begun } if begun == name);
                if let Some(beginning) = events.iter().rposition(is_beginning) {
                    events.remove(beginning);
                }
            }
            events.push(event);
        }
        events.extend(without_line.into_iter().map(|name| Self::StepEnded {
            name,
            seconds: 0.0,
            cached: true,
        }));
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_step_of_a_record_is_one_end_in_the_place_of_its_line_or_after_all_lines() {
        let lines = ["v: T [1/3] FROM a", "v: T [1/3] FROM a 0.00s", "v: T [3/3] RUN c"].map(str::to_owned);
        let cached = ["[2/3] RUN b", "[1/3] FROM a"].map(str::to_owned);
        let shown: Vec<_> = Event::of_record(&lines, &cached)
            .iter()
            .map(|event| serde_json::to_value(event).expect("JSON"))
            .collect();
        let ended =
            |name| serde_json::json!({"event": "step_ended", "name": name, "seconds": 0.0, "cached": true});
        assert_eq!(
            shown,
            [
                ended("[1/3] FROM a"),
                serde_json::json!({"event": "step_started", "name": "[3/3] RUN c"}),
                ended("[2/3] RUN b"),
            ]
        );
    }
}
