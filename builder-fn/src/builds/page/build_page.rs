//! The page of one build.

use std::time::{Duration, SystemTime};

use maud::{Markup, PreEscaped, html};
use serde_json::Value;

use super::ansi::show_controls_keeping_tabs_and_newlines;
use super::layout::{EmbeddedAssets, NoscriptReload, document};
use super::log_view::{LogSpace, PageQueryAndLogAddress, log_section};
use super::{PageReaderRights, state_badge, waterfall, words};
use crate::buildkit::ImageLayerSize;
use crate::builds::log_excerpt::LogExcerpt;
use crate::builds::page_link::encode_id;
use crate::builds::page_query::{BuildPageParts, PageQuery};
use crate::builds::{BuildPhase, BuildRecord};

/// The most bytes of a visit to the page over the wire, with what the page loads by itself, in one answer or two.
const VISIT_BYTES_MAX: usize = 60_000;

/// The most bytes of an answer's headers, with those that the gateway adds.
const HEADERS_BYTES_MAX: usize = 1500;

/// The most bytes of the section with the log besides its lines.
const LOG_FRAME_BYTES_MAX: usize = 2500;

/// The bytes that the lines of the log have on a page, however much the rest takes.
const LINES_BYTES_MIN: usize = 4096;

/// The most bytes of the lines on a page that is followed by another one with more of them.
const FIRST_LINES_BYTES_MAX: usize = 3000;

/// The most bytes of the steps.
const STEPS_BYTES_MAX: usize = 10_000;

/// The most bytes of the steps on a page that is followed by another one with all of them.
const FIRST_STEPS_BYTES_MAX: usize = 4000;

/// The most bytes of what follows the log.
const REST_BYTES_MAX: usize = 9_000;

/// The time after which the page of a running build is loaded again in browsers without scripts.
const RELOAD_SECONDS: u32 = 5;

/// The most characters of an error.
const ERROR_CHARS_MAX: usize = 1500;

/// The most layers.
const LAYERS_MAX: usize = 25;

/// The most warnings.
const WARNINGS_MAX: usize = 10;

/// A page without its log.
struct Frame<'a> {
    page: &'a BuildPage<'a>,
    assets: EmbeddedAssets,
    reload: NoscriptReload,
    title: String,
    top: Markup,
    /// What follows the log; `None` if the page has only the steps and the log.
    rest: Option<Markup>,
}

impl Frame<'_> {
    /// Returns the number of bytes of the page without its log.
    fn bytes(&self) -> usize {
        self.with_log(None).into_string().len()
    }

    /// Returns the page with the log, if there is space for it.
    fn with_log(&self, space: Option<LogSpace>) -> Markup {
        let BuildPage { record, access, .. } = self.page;
        let addresses = PageQueryAndLogAddress {
            page: access.link_query_before_parameter("?"),
            log: format!("{}/log{}", encode_id(&record.id), access.link_query_or_empty("?")),
        };
        let main = html! {
            @if access.sees_all() && self.assets != EmbeddedAssets::Nothing {
                nav { a href={ "../builds" (access.link_query_or_empty("?")) } { "All builds" } }
            }
            div #build data-state=(record.phase.as_str()) data-live[self.page.is_waiting_running_or_deploying()] data-log=(addresses.log)
                data-page=(addresses.page) {
                div #top { (self.top) }
                @if let Some(space) = space { (log_section(self.page.excerpt, &addresses, space)) }
                @if let Some(rest) = &self.rest { div #rest { (rest) } }
            }
        };
        document(&self.title, &self.reload, self.assets, &main)
    }
}

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
    pub(in crate::builds) layers: &'a [ImageLayerSize],
    /// What the reader may see besides.
    pub(in crate::builds) access: &'a PageReaderRights,
    /// The part of the log and the form that the reader asks for.
    pub(in crate::builds) query: PageQuery,
    /// The time.
    pub(in crate::builds) now: SystemTime,
}

impl BuildPage<'_> {
    /// Returns the page in the form that the reader asks for.
    ///
    /// Of a build that has ended, a page that was sent before the log was read is followed by another one without being
    /// asked for: by its script with [`BuildPageParts::StepsAndLog`], and without scripts with
    /// [`BuildPageParts::WithoutScript`]. Both together take no more than one page.
    pub(in crate::builds) fn render_requested_parts(&self) -> Markup {
        let visit = |frames: &[&Frame<'_>]| {
            let overhead = frames.len() * (HEADERS_BYTES_MAX + LOG_FRAME_BYTES_MAX);
            frames.iter().map(|frame| frame.bytes()).sum::<usize>() + overhead
        };
        let lines = |taken: usize| LogSpace {
            max_html_bytes: VISIT_BYTES_MAX.saturating_sub(taken).max(LINES_BYTES_MIN),
            min_lines: 1,
        };
        let following = |form, first: &Frame<'_>| {
            let taken = visit(&[first])
                + HEADERS_BYTES_MAX
                + LOG_FRAME_BYTES_MAX
                + FIRST_LINES_BYTES_MAX
                + LINES_BYTES_MIN;
            let steps = VISIT_BYTES_MAX.saturating_sub(taken).min(STEPS_BYTES_MAX);
            self.frame(form, steps, None)
        };
        match self.query.form {
            BuildPageParts::AllButLog => self
                .frame(BuildPageParts::AllButLog, STEPS_BYTES_MAX, None)
                .with_log(None),
            BuildPageParts::Whole if self.is_followed_by_page_with_unread_lines() => {
                let part = self.excerpt.unread.map(|part| format!("from={part}&"));
                let address = self.relative_address_with_link_and_parts(
                    &part.unwrap_or_default(),
                    BuildPageParts::WithoutScript,
                );
                let reload = NoscriptReload::After { seconds: 0, address };
                let mut first = self.frame(BuildPageParts::Whole, FIRST_STEPS_BYTES_MAX, Some(reload));
                let second = following(BuildPageParts::WithoutScript, &first);
                // What does not fit is left to the link to the lines.
                if visit(&[&first, &second]) + LINES_BYTES_MIN > VISIT_BYTES_MAX {
                    first.reload = NoscriptReload::Never;
                }
                let taken = visit(&[&first, &second]) + LINES_BYTES_MIN;
                let space = LogSpace {
                    max_html_bytes: FIRST_LINES_BYTES_MAX.min(VISIT_BYTES_MAX.saturating_sub(taken)),
                    min_lines: 0,
                };
                first.with_log(Some(space))
            }
            BuildPageParts::Whole => {
                let page = self.frame(BuildPageParts::Whole, STEPS_BYTES_MAX, None);
                let space = lines(visit(&[&page]));
                page.with_log(Some(space))
            }
            form @ (BuildPageParts::WithoutScript | BuildPageParts::StepsAndLog) => {
                let first = self.frame(BuildPageParts::Whole, FIRST_STEPS_BYTES_MAX, None);
                let second = following(form, &first);
                let space = lines(visit(&[&first, &second]) + FIRST_LINES_BYTES_MAX);
                second.with_log(Some(space))
            }
        }
    }

    /// Returns whether the page is followed by another one with the lines that the builder had no time for. It waits
    /// longer for those that an address names.
    fn is_followed_by_page_with_unread_lines(&self) -> bool {
        !self.is_waiting_running_or_deploying() && self.query.part.is_none() && self.excerpt.unread.is_some()
    }

    fn is_waiting_running_or_deploying(&self) -> bool {
        let phase = self.record.phase;
        !phase.is_terminal() && phase != BuildPhase::Unknown
    }

    /// Returns the query of the page with the link, `parameters` and the parts, as an address relative to the page.
    fn relative_address_with_link_and_parts(&self, parameters: &str, form: BuildPageParts) -> String {
        let page = self.access.link_query_before_parameter("?");
        format!("{page}{parameters}{}", form.query_parameter_or_empty())
    }

    /// Returns the page without its log.
    fn frame(
        &self,
        form: BuildPageParts,
        steps_bytes_max: usize,
        reload_if_ended: Option<NoscriptReload>,
    ) -> Frame<'_> {
        let name = self.name();
        let steps = waterfall::render_waterfall(self.record, self.excerpt, steps_bytes_max, self.now);
        let reload_running = || {
            let part = self.query.part.map(|part| format!("from={part}&"));
            NoscriptReload::After {
                seconds: RELOAD_SECONDS,
                address: self.relative_address_with_link_and_parts(
                    &part.unwrap_or_default(),
                    BuildPageParts::WithoutScript,
                ),
            }
        };
        let reload = match self.is_waiting_running_or_deploying() {
            true => reload_running(),
            false => reload_if_ended.unwrap_or(NoscriptReload::Never),
        };
        Frame {
            page: self,
            assets: match form {
                BuildPageParts::Whole => EmbeddedAssets::StyleAndScript,
                BuildPageParts::WithoutScript => EmbeddedAssets::Style,
                BuildPageParts::StepsAndLog | BuildPageParts::AllButLog => EmbeddedAssets::Nothing,
            },
            reload,
            title: format!("{}: {name} – Slipway", self.record.phase.as_str()),
            top: match form {
                BuildPageParts::StepsAndLog => html! { div #steps { (steps) } },
                _ => self.render_header_failure_and_steps(&name, &steps),
            },
            rest: match form {
                BuildPageParts::StepsAndLog => None,
                _ => Some(self.render_image_deployment_warnings_and_chart()),
            },
        }
    }

    /// Returns the name of the build: its function, or its image, or its ID.
    fn name(&self) -> String {
        let record = self.record;
        let name = record
            .function
            .as_ref()
            .or(record.image.as_ref())
            .unwrap_or(&record.id);
        words::cut_to_chars_and_html_bytes(&show_controls_keeping_tabs_and_newlines(name), 120)
    }

    fn outcome_text(&self, key: &str, limit: usize) -> Option<String> {
        let text = self.record.outcome.get(key)?.as_str()?;
        Some(words::cut_to_chars_and_html_bytes(
            &show_controls_keeping_tabs_and_newlines(text),
            limit,
        ))
    }

    /// Returns the state, what failed and why, and the steps.
    fn render_header_failure_and_steps(&self, name: &str, steps: &Markup) -> Markup {
        let record = self.record;
        let took = record.time_from_first_attempt_to_end_or_now(self.now);
        html! {
            header {
                h1 { (name) }
                p {
                    (state_badge(record.phase))
                    @if let Some(took) = took { " " span.took { (words::duration(took)) } }
                    @if record.attempts > 1 { " in attempt " (record.attempts) }
                }
                @if let Some(text) = &self.incomplete { p.note { (words::cut_to_chars_and_html_bytes(&show_controls_keeping_tabs_and_newlines(text), 500)) } }
            }
            (self.render_error_and_hint_if_any())
            section aria-labelledby="steps-title" {
                h2 #steps-title { "Steps" }
                div #steps { (steps) }
            }
        }
    }

    /// Returns the error and the hint of a build that failed or was cancelled, or whose end is not known; empty without
    /// both.
    fn render_error_and_hint_if_any(&self) -> Markup {
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
        let image = html! {
            section aria-labelledby="image-title" {
                h2 #image-title { "Image and source" }
                (self.render_facts())
                @if !self.layers.is_empty() { (render_layers(self.layers)) }
            }
        };
        let deployment = deployment.map(|outcome| {
            html! {
                section aria-labelledby="deployment-title" {
                    h2 #deployment-title { "Deployment" }
                    (waterfall::render_deployment_outcome(outcome))
                }
            }
        });
        let warnings = (!warnings.is_empty()).then(|| {
            html! {
                section aria-labelledby="warnings-title" {
                    h2 #warnings-title { "Warnings" }
                    ul {
                        @for warning in warnings.iter().take(WARNINGS_MAX).filter_map(Value::as_str) {
                            li { (words::cut_to_chars_and_html_bytes(&show_controls_keeping_tabs_and_newlines(warning), 300)) }
                        }
                        @if warnings.len() > WARNINGS_MAX { li { "and " (warnings.len() - WARNINGS_MAX) " more" } }
                    }
                }
            }
        });
        let chart = (self.others.len() > 1).then(|| self.render_chart());
        let sections = [
            Some(("image", image)),
            deployment.map(|section| ("deployment", section)),
        ];
        let others = [
            warnings.map(|section| ("warnings", section)),
            chart.map(|section| ("last builds", section)),
        ];
        sections_that_fit(sections.into_iter().chain(others).flatten(), REST_BYTES_MAX)
    }

    fn render_facts(&self) -> Markup {
        let record = self.record;
        let sent = self.excerpt.facts.sent_context_bytes_if_reported();
        html! {
            dl {
                @if let Some(image) = &record.image {
                    div { dt { "Image" } dd { code { (words::cut_to_chars_and_html_bytes(&show_controls_keeping_tabs_and_newlines(image), 300)) } } }
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
                div { dt { "ID" } dd { code { (words::cut_to_chars_and_html_bytes(&show_controls_keeping_tabs_and_newlines(&record.id), 128)) } } }
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

/// Returns the sections that together take at most `max_html_bytes` bytes, and the names of the others.
fn sections_that_fit(
    sections: impl Iterator<Item = (&'static str, Markup)>,
    max_html_bytes: usize,
) -> Markup {
    let (mut html, mut left_out) = (String::new(), Vec::new());
    for (name, section) in sections {
        match html.len() + section.0.len() <= max_html_bytes {
            true => html.push_str(&section.0),
            false => left_out.push(name),
        }
    }
    html! {
        (PreEscaped(html))
        @if !left_out.is_empty() { p.note { "Too long for this page: " (left_out.join(", ")) "." } }
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
        value.as_str().map(|text| {
            words::cut_to_chars_and_html_bytes(&show_controls_keeping_tabs_and_newlines(text), limit)
        })
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
            pre { @for line in lines.iter().take(10).filter_map(|line| text(line, 200)) { (line) "\n" } }
        }
    }
}

/// Returns the sizes of an image's layers.
fn render_layers(layers: &[ImageLayerSize]) -> Markup {
    let total = layers
        .iter()
        .fold(0_u64, |total, layer| total.saturating_add(layer.bytes));
    html! {
        details {
            summary { (layers.len()) " layers, " (words::bytes(total)) }
            ol {
                @for layer in layers.iter().take(LAYERS_MAX) {
                    li { (words::bytes(layer.bytes)) " " code { (words::cut_to_chars_and_html_bytes(&show_controls_keeping_tabs_and_newlines(&layer.digest), 19)) } }
                }
                @if layers.len() > LAYERS_MAX { li { "and " (layers.len() - LAYERS_MAX) " more" } }
            }
        }
    }
}

#[cfg(test)]
mod tests;
