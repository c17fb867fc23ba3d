//! What a person or a program sees while a build runs, on the standard error.

mod event;
mod plain;
mod shown_steps;
mod step_of_part;
mod terminal;

use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, PoisonError};

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output;
pub(crate) use event::Event;
use shown_steps::ShownSteps;
use terminal::TerminalDisplay;

/// The beginning of BuildKit's name for the step that exports and pushes the image.
const EXPORT_STEP_NAME: &str = "exporting to image";

/// The form in which the progress of a build is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressForm {
    /// `terminal` on a terminal, and `plain` elsewhere.
    #[default]
    Auto,
    /// A live display of the running steps. Without a terminal it is `plain`.
    Terminal,
    /// Lines.
    Plain,
    /// One JSON object on each line.
    Json,
    /// Warnings, errors, and how to return to a build that is left.
    Quiet,
}

/// The progress of one function's build. Clones show to the same display.
#[derive(Clone)]
pub(crate) struct Progress {
    function: String,
    form: ProgressForm,
    display: Arc<Mutex<ProgressDisplay>>,
    /// The seconds of the last step that exported and pushed an image.
    export_seconds: Arc<Mutex<Option<f64>>>,
}

/// A display of events.
enum ProgressDisplay {
    Terminal(Box<TerminalDisplay>),
    Plain(ShownSteps),
    Json,
    Quiet,
}

impl Progress {
    /// Creates the progress of a function in this form.
    pub(crate) fn new(form: ProgressForm, function: &str) -> Self {
        let is_live =
            std::io::stderr().is_terminal() && std::env::var("TERM").is_ok_and(|term| term != "dumb");
        let display = match form {
            ProgressForm::Auto | ProgressForm::Terminal if is_live => {
                let has_color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
                ProgressDisplay::Terminal(Box::new(TerminalDisplay::new(function, has_color)))
            }
            ProgressForm::Auto | ProgressForm::Terminal | ProgressForm::Plain => {
                ProgressDisplay::Plain(ShownSteps::default())
            }
            ProgressForm::Json => ProgressDisplay::Json,
            ProgressForm::Quiet => ProgressDisplay::Quiet,
        };
        Self {
            function: function.to_owned(),
            form,
            export_seconds: Arc::default(),
            display: Arc::new(Mutex::new(display)),
        }
    }

    /// Returns whether only warnings, failures and notices are shown.
    pub(crate) fn is_quiet(&self) -> bool {
        self.form == ProgressForm::Quiet
    }

    /// Returns the time of the step that exported and pushed the image, in seconds, if it was shown.
    pub(crate) fn export_seconds(&self) -> Option<f64> {
        *self.export_seconds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows an event; in the form `quiet` only warnings, failures and notices.
    pub(crate) fn show(&self, event: &Event<'_>) {
        if let Event::StepEnded { name, seconds, .. } = event
            && name.starts_with(EXPORT_STEP_NAME)
        {
            *self.export_seconds.lock().unwrap_or_else(PoisonError::into_inner) = Some(*seconds);
        }
        let mut display = self.display.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *display {
            ProgressDisplay::Terminal(terminal) => terminal.show(event),
            ProgressDisplay::Plain(shown) => {
                let lines = shown.take_lines_without_repeated_steps(event);
                lines
                    .iter()
                    .for_each(|line| output::print_message_as_is(&format!("{}: {line}", self.function)));
            }
            ProgressDisplay::Json => output::print_message_as_is(&self.to_json(event).to_string()),
            ProgressDisplay::Quiet => {
                if let Event::Warning { .. } | Event::Failed { .. } | Event::Notice { .. } = event {
                    let lines = plain::lines_of(event);
                    lines
                        .iter()
                        .for_each(|line| output::print_message_as_is(&format!("{}: {line}", self.function)));
                }
            }
        }
    }

    /// Shows a remark, except in the form `quiet`.
    pub(crate) fn note(&self, text: &str) {
        self.show(&Event::Note { text });
    }

    /// Shows a remark that the person needs, also where only warnings and errors are shown.
    pub(crate) fn show_always(&self, text: &str) {
        self.show(&Event::Notice { text });
    }

    /// Shows the events of a record's lines, and its cached steps.
    pub(crate) fn show_log_lines(&self, lines: &[String], cached: &[String]) {
        Event::of_record(lines, cached)
            .iter()
            .for_each(|event| self.show(event));
    }

    fn to_json(&self, event: &Event<'_>) -> Value {
        let mut value = serde_json::to_value(event).unwrap_or_default();
        value["function"] = json!(self.function);
        value
    }
}

/// Shows an error in a form: an event with the name of the function whose build it ends, if it is one's, in the form
/// `json`, and lines in every other form.
pub(crate) fn show_failure(form: ProgressForm, function: &str, failure: &Failure) {
    match form {
        ProgressForm::Json => Progress::new(form, function).show(&Event::Failed {
            summary: &failure.message,
            explanation: &[],
            next: &failure.next,
            code: failure.status.code(),
            facts: None,
        }),
        ProgressForm::Auto | ProgressForm::Terminal | ProgressForm::Plain | ProgressForm::Quiet => {
            output::print_failure(failure);
        }
    }
}

/// Shows the error of a command in the form `json`, and returns the exit status in place of the error that `main` would
/// print as lines.
///
/// # Errors
/// Returns the error in every other form.
pub(crate) fn show_failure_if_json(
    form: ProgressForm,
    result: Result<ExitStatus, Failure>,
) -> Result<ExitStatus, Failure> {
    match result {
        Err(failure) if form == ProgressForm::Json => {
            show_failure(form, "", &failure);
            Ok(failure.status)
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_json_object_with_its_function() {
        let progress = Progress::new(ProgressForm::Json, "shop");
        let event = Event::of_log_line("v: T [1/2] RUN make 1.50s");
        assert_eq!(
            progress.to_json(&event),
            json!({"event": "step_ended", "name": "[1/2] RUN make", "seconds": 1.5, "function": "shop"})
        );
    }
}
