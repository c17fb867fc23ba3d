//! A live display: running steps with a clock and the last lines of output below the lines of what is done.

use std::collections::VecDeque;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::Event;
use super::plain::{format_bytes, lines_of};
use super::shown_steps::ShownSteps;
use super::step_of_part::index_of_only_step_that_may_have_part;
use crate::output::printable;

/// The number of lines of output that are shown below the running steps.
const SHOWN_OUTPUT_LINES: usize = 6;

/// The number of lines of output that are shown once more when the build failed.
const OUTPUT_LINES_REPEATED_ON_FAILURE: usize = 30;

/// The interval at which the clocks of running steps are redrawn.
const CLOCK_REDRAW_INTERVAL: Duration = Duration::from_millis(100);

/// A live display of one function's build.
pub(super) struct TerminalDisplay {
    function: String,
    bars: MultiProgress,
    /// The running steps, in the order in which they began.
    steps: Vec<(String, ProgressBar)>,
    shown: ShownSteps,
    upload: Option<ProgressBar>,
    /// The state of the build, while no step runs.
    state: Option<ProgressBar>,
    output: ProgressBar,
    last_lines: VecDeque<String>,
    has_color: bool,
}

impl TerminalDisplay {
    /// Creates a display on the standard error.
    pub(super) fn new(function: &str, has_color: bool) -> Self {
        console::set_colors_enabled_stderr(has_color);
        let bars = MultiProgress::new();
        let output = bars.add(ProgressBar::new_spinner());
        output.set_style(style_or_default("{msg:.dim}"));
        Self {
            function: function.to_owned(),
            bars,
            steps: Vec::new(),
            shown: ShownSteps::default(),
            upload: None,
            state: None,
            output,
            last_lines: VecDeque::new(),
            has_color,
        }
    }

    /// Shows an event.
    pub(super) fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Sent { sent, total } => self.show_upload(*sent, *total),
            Event::State { state } => {
                self.remove_state_bar();
                let bar = self.add_bar(" {spinner} {msg} {elapsed}");
                bar.set_message(format!("{}: {state}", self.function));
                self.state = Some(bar);
            }
            Event::StepStarted { name } => {
                self.remove_state_bar();
                if self.steps.iter().all(|(running, _)| running != name) {
                    let bar = self.add_bar(" {spinner} {prefix} {elapsed} {msg}");
                    bar.set_prefix(truncate_to_terminal_width_beside_clock(&printable(name)));
                    self.steps.push(((*name).to_owned(), bar));
                }
            }
            Event::StepEnded { name, .. } => {
                let ended = self.steps.iter().position(|(running, _)| running == name);
                if let Some(index) = ended {
                    self.bars.remove(&self.steps.remove(index).1);
                }
                if self.steps.is_empty() {
                    self.clear_output();
                }
                for line in self.shown.take_lines_without_repeated_steps(event) {
                    self.print(&format!(" {line}"));
                }
            }
            Event::StepProgress { id, current } => {
                let running = self.steps.iter().map(|(name, _)| name.as_str());
                let step = index_of_only_step_that_may_have_part(running, id)
                    .and_then(|index| self.steps.get(index));
                if let Some((_, bar)) = step {
                    bar.set_message(format!(
                        "{} {}",
                        truncate_to_terminal_width_beside_clock(&printable(id)),
                        format_bytes(*current)
                    ));
                }
            }
            Event::Output { text } => {
                self.last_lines.push_back(printable(text));
                if self.last_lines.len() > OUTPUT_LINES_REPEATED_ON_FAILURE {
                    self.last_lines.pop_front();
                }
                let skipped = self.last_lines.len().saturating_sub(SHOWN_OUTPUT_LINES);
                let lines: Vec<_> = self
                    .last_lines
                    .iter()
                    .skip(skipped)
                    .map(|line| truncate_to_terminal_width_beside_clock(line))
                    .collect();
                self.output.set_message(format!("   {}", lines.join("\n   ")));
                self.output.tick();
            }
            Event::Failed { .. } => {
                self.remove_bars_and_clear_output();
                for line in std::mem::take(&mut self.last_lines) {
                    self.print(&format!("   {line}"));
                }
                self.print_lines(event, true);
                self.output.finish_and_clear();
            }
            Event::Running { .. } => {
                self.remove_bars_and_clear_output();
                self.print_lines(event, false);
                // The URL follows on the standard output, on a line of its own.
                self.output.finish_and_clear();
            }
            Event::Packed { .. }
            | Event::Submitted { .. }
            | Event::RollbackStarted { .. }
            | Event::Note { .. }
            | Event::Notice { .. }
            | Event::Warning { .. } => {
                self.print_lines(event, false);
            }
        }
    }

    fn show_upload(&mut self, sent: u64, total: u64) {
        if self.upload.is_none() {
            let bar = self.add_bar(" {prefix} {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec}");
            bar.set_prefix(format!("{}: sending", self.function));
            bar.set_length(total);
            self.upload = Some(bar);
        }
        if let Some(bar) = &self.upload {
            bar.set_length(total);
            bar.set_position(sent);
        }
        if sent == total
            && let Some(bar) = self.upload.take()
        {
            self.bars.remove(&bar);
        }
    }

    /// Adds a bar above the lines of output.
    fn add_bar(&self, template: &str) -> ProgressBar {
        let bar = self.bars.insert_before(&self.output, ProgressBar::new_spinner());
        bar.set_style(style_or_default(template));
        bar.enable_steady_tick(CLOCK_REDRAW_INTERVAL);
        bar
    }

    fn remove_state_bar(&mut self) {
        if let Some(bar) = self.state.take() {
            self.bars.remove(&bar);
        }
    }

    /// Removes the bars of the state, of all steps and of the upload, and clears the text of the output.
    fn remove_bars_and_clear_output(&mut self) {
        self.remove_state_bar();
        for bar in self.steps.drain(..).map(|(_, bar)| bar).chain(self.upload.take()) {
            self.bars.remove(&bar);
        }
        self.output.set_message("");
        self.output.tick();
    }

    fn clear_output(&mut self) {
        self.output.set_message("");
        self.output.tick();
    }

    fn print_lines(&self, event: &Event<'_>, is_error: bool) {
        for line in lines_of(event) {
            let line = format!("{}: {line}", self.function);
            match is_error && self.has_color {
                true => self.print(&console::style(line).red().for_stderr().to_string()),
                false => self.print(&line),
            }
        }
    }

    /// Prints a line above the live part.
    fn print(&self, line: &str) {
        // Fails only if the terminal is gone.
        let _ = self.bars.println(line);
    }
}

impl Drop for TerminalDisplay {
    fn drop(&mut self) {
        self.remove_bars_and_clear_output();
        self.output.finish_and_clear();
    }
}

/// Returns the style with a template of indicatif's, or the default one if it is malformed.
fn style_or_default(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// Cuts a text so that it fits on a line with a clock beside it.
fn truncate_to_terminal_width_beside_clock(text: &str) -> String {
    let width = usize::from(console::Term::stderr().size().1)
        .saturating_sub(16)
        .max(20);
    console::truncate_str(text, width, "…").into_owned()
}
