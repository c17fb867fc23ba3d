//! The lines of a build's log, in the form of `docs/api.md`.

/// A parsed line of a build's log: the start, the end or the progress of a step, or a line of output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum LogLine<'a> {
    /// A step begins.
    StepStarted {
        /// The name of the step.
        name: &'a str,
    },
    /// A step ends.
    StepEnded {
        /// The name of the step.
        name: &'a str,
        /// The time that it took, in seconds.
        seconds: f64,
    },
    /// Progress within a step.
    Progress {
        /// What progresses, such as a layer.
        id: &'a str,
        /// How far it is, in bytes or pieces.
        current: u64,
    },
    /// A line of a step's output, or of another form.
    Output {
        /// The text.
        text: &'a str,
    },
}

impl<'a> LogLine<'a> {
    /// Parses a line. A line of no known form is output.
    pub(crate) fn parse(line: &'a str) -> Self {
        let output = Self::Output { text: line };
        let Some((kind, rest)) = line.split_once(": ") else {
            return output;
        };
        // An empty line of output ends after the time.
        let (_, text) = rest.split_once(' ').unwrap_or((rest, ""));
        match kind {
            "v" => match split_step_name_and_seconds_with_two_decimals(text) {
                Some((name, seconds)) => Self::StepEnded { name, seconds },
                None => Self::StepStarted { name: text },
            },
            "s" => match text.rsplit_once(' ').map(|(id, current)| (id, current.parse())) {
                Some((id, Ok(current))) => Self::Progress { id, current },
                _ => output,
            },
            "l" => Self::Output { text },
            _ => output,
        }
    }
}

/// Splits the duration from the end of a step's name: two decimals and `s`.
fn split_step_name_and_seconds_with_two_decimals(text: &str) -> Option<(&str, f64)> {
    let (name, duration) = text.rsplit_once(' ')?;
    let number = duration.strip_suffix('s')?;
    let (whole, decimals) = number.split_once('.')?;
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let is_duration = is_number(whole) && is_number(decimals) && decimals.len() == 2;
    is_duration.then_some((name, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_steps_progress_and_output() {
        for (line, expected) in [
            (
                "v: T [1/2] RUN make",
                LogLine::StepStarted {
                    name: "[1/2] RUN make",
                },
            ),
            (
                "v: T [1/2] RUN make 1.23s",
                LogLine::StepEnded {
                    name: "[1/2] RUN make",
                    seconds: 1.23,
                },
            ),
            ("v: T RUN sleep 5s", LogLine::StepStarted { name: "RUN sleep 5s" }),
            (
                "v: T RUN sleep 1.5s",
                LogLine::StepStarted {
                    name: "RUN sleep 1.5s",
                },
            ),
            (
                "s: T sha256:ab 1024",
                LogLine::Progress {
                    id: "sha256:ab",
                    current: 1024,
                },
            ),
            ("l: T hello: world", LogLine::Output { text: "hello: world" }),
            ("l: T", LogLine::Output { text: "" }),
            ("another line", LogLine::Output { text: "another line" }),
            ("x: T y", LogLine::Output { text: "x: T y" }),
        ] {
            assert_eq!(LogLine::parse(line), expected, "{line}");
        }
    }
}
