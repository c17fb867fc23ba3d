//! The steps of a build on an axis of time: the wait, BuildKit's steps, the push, and the steps of the deployment.

use std::cmp::Reverse;
use std::time::{Duration, SystemTime};

use maud::{Markup, PreEscaped, html};
use serde_json::Value;

use super::ansi::show_controls_keeping_tabs_and_newlines;
use super::words;
use crate::buildkit::StepOrExportPartFacts;
use crate::builds::log_excerpt::LogExcerpt;
use crate::builds::{BuildPhase, BuildRecord};

/// The most rows.
const ROWS_MAX: usize = 40;

/// The least number of rows that stay when rows are left out because they take too many bytes.
const ROWS_MIN: usize = 5;

/// The most characters of a row's name.
const NAME_CHARS_MAX: usize = 100;

/// The name of the row for the time before a build begins.
const WAIT_ROW_NAME: &str = "waiting for a builder";

/// The name of the row of a deployment whose outcome, which has its steps, is not there yet.
const RUNNING_DEPLOYMENT_ROW_NAME: &str = "deployment";

/// The steps of a deployment in their order, with what they do.
const DEPLOYMENT_STEPS: [(&str, &str); 5] = [
    ("queue", "deployment: wait for another one"),
    ("check", "deployment: check"),
    ("apply", "deployment: apply"),
    ("watch", "deployment: watch and probe"),
    ("restore", "deployment: restore the last good version"),
];

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RowState {
    Waited,
    Cached,
    Executed,
    Running,
    Failed,
    Deployed,
}

impl RowState {
    /// Returns the class of the row's bar.
    fn class(self) -> &'static str {
        match self {
            Self::Waited => "wait",
            Self::Cached => "cached",
            Self::Executed => "done",
            Self::Running => "running",
            Self::Failed => "bad",
            Self::Deployed => "deploy",
        }
    }
}

/// A row: a step with its times.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    /// The number of the step in the log.
    number: Option<u32>,
    name: String,
    state: RowState,
    began: Option<SystemTime>,
    ended: Option<SystemTime>,
}

impl Row {
    fn of_step(number: Option<u32>, facts: &StepOrExportPartFacts, build_is_running: bool) -> Self {
        let state = match (facts.cached, facts.started, facts.ended) {
            _ if facts.failed => RowState::Failed,
            (true, _, _) => RowState::Cached,
            (_, _, Some(_)) => RowState::Executed,
            (_, Some(_), None) if build_is_running => RowState::Running,
            _ => RowState::Waited,
        };
        Self {
            number,
            name: facts.name.clone(),
            state,
            began: facts.started,
            ended: facts.ended,
        }
    }

    /// Returns what the row says of its time.
    fn duration_or_state_text(&self, now: SystemTime) -> String {
        let took = self.began.map(|began| {
            let ended = self.ended.unwrap_or(now);
            words::duration(ended.duration_since(began).unwrap_or_default())
        });
        match (self.state, took) {
            (RowState::Cached, _) => "cached".to_owned(),
            (RowState::Waited, None) => "not begun".to_owned(),
            (RowState::Waited, Some(took)) if self.ended.is_some() => took,
            (RowState::Waited, Some(_)) => "not ended".to_owned(),
            (RowState::Running, Some(took)) => format!("running, {took}"),
            (RowState::Failed, Some(took)) => format!("failed after {took}"),
            (RowState::Failed, None) => "failed".to_owned(),
            (_, took) => took.unwrap_or_default(),
        }
    }
}

/// Returns the rows of a build in the order of their beginnings; those that have not begun are last.
fn rows(record: &BuildRecord, excerpt: &LogExcerpt, now: SystemTime) -> Vec<Row> {
    let is_running = !record.phase.is_terminal() && record.phase != BuildPhase::Unknown;
    let mut rows = Vec::new();
    if let Some(submitted) = record.submitted_at {
        let until = record.started_at.or(record.ended_at);
        rows.push(Row {
            number: None,
            name: WAIT_ROW_NAME.to_owned(),
            state: match until {
                None if is_running => RowState::Running,
                _ => RowState::Waited,
            },
            began: Some(submitted),
            ended: until,
        });
    }
    let mut steps: Vec<_> = excerpt
        .steps
        .iter()
        .map(|(number, facts)| Row::of_step(*number, facts, is_running))
        .collect();
    let parts = excerpt.facts.export_parts().iter();
    steps.extend(parts.map(|facts| Row::of_step(None, facts, is_running)));
    steps.sort_by_key(|row| (row.began.is_none(), row.began));
    if record.phase == BuildPhase::Deploying {
        // The builder hands the image over once the last step has ended.
        let ended = steps.iter().filter_map(|row| row.ended).max();
        steps.push(Row {
            number: None,
            name: RUNNING_DEPLOYMENT_ROW_NAME.to_owned(),
            state: RowState::Running,
            began: ended.max(record.started_at),
            ended: None,
        });
    }
    rows.extend(steps);
    rows.extend(deployment_rows(record, now));
    rows
}

/// Returns the rows of the deployment. The deployer reports durations; the last step ends with the build.
fn deployment_rows(record: &BuildRecord, now: SystemTime) -> Vec<Row> {
    let durations = record
        .outcome
        .get("deployment")
        .map(|deployment| &deployment["durations"]);
    let seconds = |name: &str| durations.and_then(|durations| durations[name].as_f64());
    let took = |name: &str| {
        let seconds = seconds(name).filter(|seconds| *seconds > 0.0);
        seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    };
    let steps = DEPLOYMENT_STEPS.map(|(key, name)| (name, took(key)));
    let total: Duration = steps
        .iter()
        .filter_map(|(_, took)| *took)
        .fold(Duration::ZERO, Duration::saturating_add);
    let ended = record.ended_at.unwrap_or(now);
    let Some(mut at) = ended.checked_sub(total) else {
        return Vec::new();
    };
    let mut rows = Vec::new();
    for (name, took) in steps {
        let Some(took) = took else { continue };
        let began = at;
        at = at.checked_add(took).unwrap_or(at);
        rows.push(Row {
            number: None,
            name: name.to_owned(),
            state: RowState::Deployed,
            began: Some(began),
            ended: Some(at),
        });
    }
    rows
}

/// An axis of time.
struct Axis {
    start: SystemTime,
    seconds: f64,
}

impl Axis {
    /// Returns the axis on which all rows fit. A wait that is longer than everything after it is cut, so that the steps
    /// are wide enough to be seen.
    fn of_rows_with_long_wait_cut(rows: &[Row], now: SystemTime) -> Option<Self> {
        let first = rows.iter().filter_map(|row| row.began).min()?;
        let end = rows
            .iter()
            .filter(|row| row.began.is_some())
            .filter_map(|row| row.ended.or((row.state == RowState::Running).then_some(now)))
            .max()?;
        let work = rows.iter().filter(|row| row.state != RowState::Waited);
        let work = work.filter_map(|row| row.began).min().unwrap_or(first);
        let took = end.duration_since(work).unwrap_or_default();
        let start = work
            .checked_sub(took)
            .map_or(first, |earliest| first.max(earliest));
        Some(Self {
            start,
            seconds: end
                .duration_since(start)
                .unwrap_or_default()
                .as_secs_f64()
                .max(0.001),
        })
    }

    /// Returns where the bar between two times begins, and its width, in thousandths of the axis.
    fn bar_start_and_width_in_thousandths(&self, began: SystemTime, ended: SystemTime) -> (u32, u32) {
        let place = |time: SystemTime| {
            let seconds = time.duration_since(self.start).unwrap_or_default().as_secs_f64();
            (seconds / self.seconds * 1000.0).clamp(0.0, 1000.0) as u32
        };
        let (from, to) = (place(began).min(995), place(ended));
        (from, to.saturating_sub(from).max(5))
    }
}

/// Keeps `max` rows in their order: the wait, the deployment, failed steps, pushes, running steps, then the slowest.
fn keep_most_telling_rows(rows: Vec<Row>, max: usize, now: SystemTime) -> Vec<Row> {
    if rows.len() <= max {
        return rows;
    }
    let rank = |row: &Row| {
        let is_push = row.number.is_none() && row.name.starts_with("pushing ");
        let took = row.began.map(|began| {
            let ended = row.ended.unwrap_or(now);
            ended.duration_since(began).unwrap_or_default()
        });
        let kind = match row.state {
            RowState::Deployed => 0,
            _ if [WAIT_ROW_NAME, RUNNING_DEPLOYMENT_ROW_NAME].contains(&row.name.as_str()) => 0,
            RowState::Failed => 1,
            _ if is_push => 2,
            RowState::Running => 3,
            RowState::Executed => 4,
            RowState::Waited => 5,
            RowState::Cached => 6,
        };
        (kind, Reverse(took.unwrap_or_default()))
    };
    let mut numbered: Vec<_> = rows.into_iter().enumerate().collect();
    numbered.sort_by_key(|(_, row)| rank(row));
    numbered.truncate(max);
    numbered.sort_by_key(|(position, _)| *position);
    numbered.into_iter().map(|(_, row)| row).collect()
}

/// Returns the item of a row with its bar.
fn render_row(row: &Row, axis: Option<&Axis>, now: SystemTime) -> Markup {
    html! {
        li data-step=[row.number] {
            span.name { (words::cut_to_chars_and_html_bytes(&show_controls_keeping_tabs_and_newlines(&row.name).replace('\n', " "), NAME_CHARS_MAX)) }
            " "
            span.time { (row.duration_or_state_text(now)) }
            @if let (Some(axis), Some(began)) = (axis, row.began) {
                @let (from, width) = axis.bar_start_and_width_in_thousandths(began, row.ended.unwrap_or(now));
                svg.bar.(row.state.class()) viewBox="0 0 1000 8" preserveAspectRatio="none" aria-hidden="true" {
                    rect x=(from) width=(width) height="8" {}
                }
            }
        }
    }
}

/// Returns the list of steps with their bars, as many as fit into `soft_max_html_bytes` bytes, and
/// at least [`ROWS_MIN`].
pub(super) fn render_waterfall(
    record: &BuildRecord,
    excerpt: &LogExcerpt,
    soft_max_html_bytes: usize,
    now: SystemTime,
) -> Markup {
    let mut rows = rows(record, excerpt, now);
    let axis = Axis::of_rows_with_long_wait_cut(&rows, now);
    let count = rows.len();
    let mut max = ROWS_MAX;
    let html = loop {
        rows = keep_most_telling_rows(rows, max, now);
        let items = rows
            .iter()
            .map(|row| render_row(row, axis.as_ref(), now).into_string());
        let html: String = items.collect();
        if html.len() <= soft_max_html_bytes || rows.len() <= ROWS_MIN {
            break PreEscaped(html);
        }
        max = (rows.len() - 1)
            .min(rows.len() * soft_max_html_bytes / html.len())
            .max(ROWS_MIN);
    };
    let left_out = count - rows.len();
    html! {
        ol.steps { (html) }
        @if left_out > 0 { p { "and " (left_out) " more, which are in the log" } }
        @if !excerpt.is_complete && excerpt.problem.is_none() && record.phase.is_terminal() && !excerpt.lines.is_empty() {
            p { "The log is long and was not read to its end: steps may be missing." }
        }
    }
}

/// Returns the outcome of a deployment, with what ran when it had ended.
pub(super) fn render_deployment_outcome(outcome: &Value) -> Markup {
    let text = |key: &str| {
        outcome[key].as_str().map(|text| {
            words::cut_to_chars_and_html_bytes(&show_controls_keeping_tabs_and_newlines(text), 300)
        })
    };
    let url = outcome["url"].as_str().filter(|url| {
        let is_web = url.starts_with("http://") || url.starts_with("https://");
        is_web && url.len() <= 2048
    });
    let reasons = outcome["reasons"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    html! {
        dl {
            @for (key, name) in [
                ("status", "Outcome"), ("function", "Function"), ("namespace", "Namespace"), ("image", "Deployed image"),
                ("previousImage", "Ran before"), ("supersededBy", "Replaced by the build"),
            ] {
                @if let Some(text) = text(key) { div { dt { (name) } dd { code { (text) } } } }
            }
            @if let Some(state) = outcome.get("running").filter(|state| state.is_object() || state.is_null()) {
                div { dt { "Ran afterwards" } dd { (render_running_state(state)) } }
            }
            @if let Some(url) = url {
                div { dt { "Address" } dd { a href=(url) rel="noopener noreferrer nofollow" { (words::cut_to_chars_and_html_bytes(url, 300)) } } }
            }
        }
        @if !reasons.is_empty() {
            ul.reasons {
                @for reason in reasons.iter().take(20).filter_map(Value::as_str) {
                    li { (words::cut_to_chars_and_html_bytes(&show_controls_keeping_tabs_and_newlines(reason), 1000)) }
                }
            }
        }
    }
}

/// Returns the image and the replicas that a function had at the end of a deployment; null stands for no function.
fn render_running_state(state: &Value) -> Markup {
    let image = state["image"].as_str().unwrap_or("nothing");
    let image = words::cut_to_chars_and_html_bytes(&show_controls_keeping_tabs_and_newlines(image), 300);
    html! {
        code { (image) }
        @if let Some(count) = state["availableReplicas"].as_u64() { ", available replicas: " (count) }
    }
}

#[cfg(test)]
mod tests;
