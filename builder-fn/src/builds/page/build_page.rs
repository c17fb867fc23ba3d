//! The page of one build.

use std::time::{Duration, SystemTime};

use maud::{Markup, html};
use serde_json::Value;

use super::ansi::with_visible_controls;
use super::layout::{HasScript, Reload, document};
use super::log_view::{LogAddresses, log_section};
use super::{PageAccess, state_badge, waterfall, words};
use crate::buildkit::ImageLayer;
use crate::builds::log_excerpt::LogExcerpt;
use crate::builds::page_link::encode_id;
use crate::builds::{BuildPhase, BuildRecord};

/// The most bytes of a page, with its style sheet and its script.
const PAGE_BYTES_MAX: usize = 58_000;

/// The bytes that the log has on a page, however much the rest takes.
const LOG_BYTES_MIN: usize = 4096;

/// The most characters of an error.
const ERROR_CHARS_MAX: usize = 1500;

/// The most warnings.
const WARNINGS_MAX: usize = 10;

/// What the page of a build shows.
pub(in crate::builds) struct BuildPage<'a> {
    /// What is known of the build.
    pub(in crate::builds) record: &'a BuildRecord,
    /// What could not be read.
    pub(in crate::builds) incomplete: Option<String>,
    /// The part of the log.
    pub(in crate::builds) excerpt: &'a LogExcerpt,
    /// The last builds of the same function or image, the newest first.
    pub(in crate::builds) others: &'a [BuildRecord],
    /// The layers of the image, if they are known.
    pub(in crate::builds) layers: &'a [ImageLayer],
    /// What the reader may see besides.
    pub(in crate::builds) access: &'a PageAccess,
    /// The time.
    pub(in crate::builds) now: SystemTime,
}

impl BuildPage<'_> {
    /// Returns the page.
    pub(in crate::builds) fn render(&self) -> Markup {
        let record = self.record;
        let name = self.name();
        let is_running = !record.phase.is_terminal() && record.phase != BuildPhase::Unknown;
        let id = encode_id(&record.id);
        let addresses = LogAddresses {
            page: self.access.link_query_before_parameter("?"),
            log: format!("{id}/log{}", self.access.link_query_or_empty("?")),
        };
        let top = self.render_top(&name);
        let rest = self.render_image_deployment_warnings_and_chart();
        let page = |log: &Markup| {
            let main = html! {
                @if self.access.sees_all() { nav { a href={ "../builds" (self.access.link_query_or_empty("?")) } { "All builds" } } }
                div #build data-state=(record.phase.as_str()) data-live[is_running] data-log=(addresses.log)
                    data-page=(addresses.page) {
                    div #top { (top) }
                    (log)
                    div #rest { (rest) }
                }
            };
            let reload = match is_running {
                true => Reload::WithoutScript,
                false => Reload::Never,
            };
            document(
                &format!("{}: {name} – Slipway", record.phase.as_str()),
                reload,
                HasScript::Yes,
                &main,
            )
        };
        let frame = page(&html! {}).into_string().len();
        let budget = PAGE_BYTES_MAX.saturating_sub(frame + 2000).max(LOG_BYTES_MIN);
        page(&log_section(self.excerpt, &addresses, budget))
    }

    /// Returns the name of the build: its function, or its image, or its ID.
    fn name(&self) -> String {
        let record = self.record;
        let name = record
            .function
            .as_ref()
            .or(record.image.as_ref())
            .unwrap_or(&record.id);
        words::cut(&with_visible_controls(name), 120)
    }

    fn outcome_text(&self, key: &str, limit: usize) -> Option<String> {
        let text = self.record.outcome.get(key)?.as_str()?;
        Some(words::cut(&with_visible_controls(text), limit))
    }

    /// Returns the state, what failed and why, and the steps.
    fn render_top(&self, name: &str) -> Markup {
        let record = self.record;
        let took = record.time_taken(self.now);
        html! {
            header {
                h1 { (name) }
                p {
                    (state_badge(record.phase))
                    @if let Some(took) = took { " " span.took { (words::duration(took)) } }
                    @if record.attempts > 1 { " in attempt " (record.attempts) }
                }
                @if let Some(text) = &self.incomplete { p.note { (words::cut(&with_visible_controls(text), 500)) } }
            }
            (self.render_failure())
            section aria-labelledby="steps-title" {
                h2 #steps-title { "Steps" }
                (waterfall::render_waterfall(record, self.excerpt, self.now))
            }
        }
    }

    /// Returns what failed and why; nothing for a build that did not fail.
    fn render_failure(&self) -> Markup {
        let error = self.outcome_text("error", ERROR_CHARS_MAX);
        let hint = self.record.outcome.get("hint").filter(|hint| hint.is_object());
        if error.is_none() && hint.is_none() {
            return html! {};
        }
        let title = match self.record.phase {
            BuildPhase::Cancelled => "Cancelled",
            BuildPhase::Unknown => "What is not known",
            _ => "What failed",
        };
        html! {
            section.failure aria-labelledby="failure-title" {
                h2 #failure-title { (title) }
                @if let Some(hint) = hint { (render_hint(hint)) }
                @if let Some(error) = error { pre { (error) } }
                @if let Some(other) = self.outcome_text("supersededBy", 128) {
                    p { "A newer build replaces this one: " code { (other) } }
                }
            }
        }
    }

    /// Returns the image, the context, the deployment, the warnings and the last builds.
    fn render_image_deployment_warnings_and_chart(&self) -> Markup {
        let record = self.record;
        let deployment = record
            .outcome
            .get("deployment")
            .filter(|deployment| deployment.is_object());
        let warnings = record.outcome.get("warnings").and_then(Value::as_array);
        let warnings = warnings.map(Vec::as_slice).unwrap_or_default();
        html! {
            section aria-labelledby="image-title" {
                h2 #image-title { "Image and source" }
                (self.render_facts())
                @if !self.layers.is_empty() { (render_layers(self.layers)) }
            }
            @if let Some(outcome) = deployment {
                section aria-labelledby="deployment-title" {
                    h2 #deployment-title { "Deployment" }
                    (waterfall::render_deployment_outcome(outcome))
                }
            }
            @if !warnings.is_empty() {
                section aria-labelledby="warnings-title" {
                    h2 #warnings-title { "Warnings" }
                    ul {
                        @for warning in warnings.iter().take(WARNINGS_MAX).filter_map(Value::as_str) {
                            li { (words::cut(&with_visible_controls(warning), 300)) }
                        }
                        @if warnings.len() > WARNINGS_MAX { li { "and " (warnings.len() - WARNINGS_MAX) " more" } }
                    }
                }
            }
            @if self.others.len() > 1 { (self.render_chart()) }
        }
    }

    fn render_facts(&self) -> Markup {
        let record = self.record;
        let sent = self.excerpt.facts.sent_context_bytes();
        html! {
            dl {
                @if let Some(image) = &record.image {
                    div { dt { "Image" } dd { code { (words::cut(&with_visible_controls(image), 300)) } } }
                }
                @if let Some(digest) = self.outcome_text("digest", 100) { div { dt { "Digest" } dd { code { (digest) } } } }
                @if let Some(commit) = self.outcome_text("commit", 100) { div { dt { "Commit" } dd { code { (commit) } } } }
                @if record.context_bytes.is_some() || sent.is_some() {
                    div {
                        dt { "Context" }
                        dd {
                            @if let Some(bytes) = record.context_bytes { (words::bytes(bytes)) " received" }
                            @if record.context_bytes.is_some() && sent.is_some() { ", " }
                            @if let Some(bytes) = sent { (words::bytes(bytes)) " sent to BuildKit" }
                        }
                    }
                }
                @for (name, time) in [
                    ("Submitted", record.submitted_at), ("Began", record.started_at), ("Ended", record.ended_at),
                ] {
                    @if let Some(time) = time { div { dt { (name) } dd { (words::time(time)) " UTC" } } }
                }
                @if let Some(steps) = record.steps {
                    div { dt { "Steps" } dd { (steps.completed) " of " (steps.total) ", " (steps.cached) " cached" } }
                }
                div { dt { "ID" } dd { code { (words::cut(&with_visible_controls(&record.id), 128)) } } }
            }
        }
    }

    /// Returns the durations of the last builds of the same function or image, as bars. Only a reader who may see all
    /// builds gets links to them.
    fn render_chart(&self) -> Markup {
        let took = |build: &BuildRecord| {
            let ended = build.ended_at?;
            ended.duration_since(build.started_at?).ok()
        };
        let longest = self.others.iter().filter_map(took).max().unwrap_or_default();
        let width = |took: Duration| {
            let share = took.as_secs_f64() / longest.as_secs_f64().max(0.001);
            (share * 1000.0).clamp(5.0, 1000.0) as u32
        };
        html! {
            section aria-labelledby="chart-title" {
                h2 #chart-title { "Last builds" }
                ol.chart {
                    @for build in self.others {
                        @let is_this = build.id == self.record.id;
                        @let when = build.submitted_at.map(words::time).unwrap_or_default();
                        li aria-current=[is_this.then_some("true")] {
                            @if self.access.sees_all() && !is_this {
                                a href={ (encode_id(&build.id)) (self.access.link_query_or_empty("?")) } { (when) }
                            } @else { span { (when) } }
                            " " (state_badge(build.phase)) " "
                            span.time { (took(build).map(words::duration).unwrap_or_else(|| "–".to_owned())) }
                            @if let Some(took) = took(build) {
                                svg.bar.(bar_class(build.phase)) viewBox="0 0 1000 8" preserveAspectRatio="none"
                                    aria-hidden="true" { rect x="0" width=(width(took)) height="8" {} }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Returns the class of a bar in the chart.
fn bar_class(phase: BuildPhase) -> &'static str {
    match phase {
        BuildPhase::Success => "done",
        BuildPhase::Failed => "bad",
        BuildPhase::Running | BuildPhase::Deploying => "running",
        BuildPhase::Waiting | BuildPhase::Cancelled | BuildPhase::Unknown => "wait",
    }
}

/// Returns the cause, the place and the next step of a failure.
fn render_hint(hint: &Value) -> Markup {
    let text = |value: &Value, limit| {
        value
            .as_str()
            .map(|text| words::cut(&with_visible_controls(text), limit))
    };
    let place = |value: &Value| {
        let file = text(&value["file"], 300)?;
        Some(match value["line"].as_u64() {
            Some(line) => format!("{file}:{line}"),
            None => file,
        })
    };
    let step = &hint["step"];
    let lines = hint["log"].as_array().map(Vec::as_slice).unwrap_or_default();
    html! {
        @if let Some(cause) = text(&hint["cause"], 1000) { p.cause { strong { (cause) } } }
        dl {
            @if let Some(place) = place(hint) { div { dt { "Place" } dd { code { (place) } } } }
            @if let Some(name) = text(&step["name"], 300) {
                div {
                    dt { "Step" }
                    dd { code { (name) } @if let Some(place) = place(step) { " in " code { (place) } } }
                }
            }
            @if let Some(next) = text(&hint["next"], 1000) { div { dt { "Next" } dd { (next) } } }
        }
        @if !lines.is_empty() {
            p { "The function's last lines:" }
            pre { @for line in lines.iter().take(10).filter_map(|line| text(line, 300)) { (line) "\n" } }
        }
    }
}

/// Returns the sizes of an image's layers.
fn render_layers(layers: &[ImageLayer]) -> Markup {
    let total = layers
        .iter()
        .fold(0_u64, |total, layer| total.saturating_add(layer.bytes));
    html! {
        details {
            summary { (layers.len()) " layers, " (words::bytes(total)) }
            ol {
                @for layer in layers.iter().take(50) {
                    li { (words::bytes(layer.bytes)) " " code { (words::cut(&with_visible_controls(&layer.digest), 19)) } }
                }
            }
        }
    }
}
