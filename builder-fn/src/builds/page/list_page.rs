//! The page with the list of builds.

use std::time::SystemTime;

use maud::{Markup, html};

use super::ansi::show_controls_keeping_tabs_and_newlines;
use super::layout::{EmbeddedAssets, NoscriptReload, document};
use super::{PageReaderRights, state_badge, words};
use crate::builds::BuildRecord;
use crate::builds::filter::{BUILD_STATES, BuildFilter};
use crate::builds::page_link::encode_id;

/// The number of builds on a page whose query names none. Each takes up to a kilobyte.
pub(in crate::builds) const LIST_PAGE_DEFAULT_LIMIT: usize = 50;

/// The most characters of a name in the list.
const NAME_CHARS_MAX: usize = 80;

/// What the list shows.
pub(in crate::builds) struct ListPage<'a> {
    /// The builds, the newest first.
    pub(in crate::builds) builds: &'a [BuildRecord],
    /// What could not be read.
    pub(in crate::builds) incomplete: Option<String>,
    /// The filter that selected the builds.
    pub(in crate::builds) filter: &'a BuildFilter,
    /// What precedes an ID in a link from the address of the list.
    pub(in crate::builds) folder: &'a str,
    /// What the reader may see.
    pub(in crate::builds) access: &'a PageReaderRights,
    /// The time.
    pub(in crate::builds) now: SystemTime,
}

impl ListPage<'_> {
    /// Returns the HTML of the page.
    pub(in crate::builds) fn render(&self) -> Markup {
        let main = html! {
            header { h1 { "Builds" } }
            @if let Some(text) = &self.incomplete { p.note { (words::cut_to_chars_and_html_bytes(&show_controls_keeping_tabs_and_newlines(text), 500)) } }
            (self.render_filter())
            @if self.builds.is_empty() {
                p { "There are no builds like this." }
            } @else {
                table.builds {
                    thead { tr {
                        th scope="col" { "Submitted (UTC)" } th scope="col" { "State" } th scope="col" { "Function" }
                        th scope="col" { "Image" } th scope="col" { "Took" }
                    } }
                    tbody { @for build in self.builds { (self.render_row(build)) } }
                }
            }
        };
        document(
            "Builds – Slipway",
            &NoscriptReload::Never,
            EmbeddedAssets::Style,
            &main,
        )
    }

    fn render_filter(&self) -> Markup {
        let (state, function, image) = (self.filter.state(), self.filter.function(), self.filter.image());
        html! {
            form.filter method="get" {
                @if let Some(link) = self.access.link_parameter_value() { input type="hidden" name="link" value=(link); }
                label { "State " select name="state" {
                    option value="" { "all" }
                    @for name in BUILD_STATES { option selected[state == Some(name)] { (name) } }
                } }
                label { "Function " input name="function" value=[function] autocomplete="off" maxlength="253"; }
                label { "Image " input name="image" value=[image] autocomplete="off" maxlength="300"; }
                button type="submit" { "Show" }
            }
        }
    }

    fn render_row(&self, build: &BuildRecord) -> Markup {
        let when = build.submitted_at.map(words::time);
        let when = when.unwrap_or_else(|| {
            words::cut_to_chars_and_html_bytes(&show_controls_keeping_tabs_and_newlines(&build.id), 40)
        });
        let took = build.time_from_first_attempt_to_end_or_now(self.now);
        let name = |name: &Option<String>| {
            let name = name.as_deref().map(|name| {
                words::cut_to_chars_and_html_bytes(
                    &show_controls_keeping_tabs_and_newlines(name),
                    NAME_CHARS_MAX,
                )
            });
            name.unwrap_or_else(|| "–".to_owned())
        };
        html! {
            tr {
                td data-label="Submitted" { a href={ (self.folder) (encode_id(&build.id)) (self.access.link_query_or_empty("?")) } { (when) } }
                td data-label="State" { (state_badge(build.phase)) }
                td data-label="Function" { (name(&build.function)) }
                td data-label="Image" { code { (name(&build.image)) } }
                td data-label="Took" { (took.map(words::duration).unwrap_or_else(|| "–".to_owned())) }
            }
        }
    }
}
