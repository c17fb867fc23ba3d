//! The pages for people: a build, the list of builds, and why neither is shown.
//!
//! Nothing here looks anything up. Everything from callers is text: the macro escapes it by its type, and
//! [`ansi`](ansi) makes invisible characters visible. A page works without its script.

mod ansi;
mod build_page;
mod layout;
mod list_page;
mod log_view;
mod waterfall;
mod words;

use function_host::Response;
use function_host::http::StatusCode;
use maud::{Markup, html};

pub(super) use build_page::BuildPage;
pub(super) use layout::add_protective_headers;
pub(super) use list_page::{LIST_PAGE_DEFAULT_LIMIT, ListPage};

use super::BuildPhase;
use super::page_link::ReceivedBuildsLink;

/// What the reader of a page may see.
#[derive(Clone, Debug)]
pub(super) enum PageReaderRights {
    /// All builds, without a link: signatures are disabled.
    Open,
    /// What a link names.
    Link(ReceivedBuildsLink),
    /// One build, without a link that could be given on: the request itself was signed.
    Signed,
}

impl PageReaderRights {
    /// Returns whether the reader may see the list and other builds.
    fn sees_all(&self) -> bool {
        match self {
            Self::Open => true,
            Self::Link(link) => link.is_for_all_builds(),
            Self::Signed => false,
        }
    }

    /// Returns the link of the reader; `None` without one.
    pub(super) fn page_link(&self) -> Option<&ReceivedBuildsLink> {
        match self {
            Self::Link(link) => Some(link),
            Self::Open | Self::Signed => None,
        }
    }

    /// Returns the value of the parameter with the link.
    fn link_parameter_value(&self) -> Option<&str> {
        self.page_link().map(ReceivedBuildsLink::as_str)
    }

    /// Returns the query of further requests, which begins with the mark; empty without a link.
    fn link_query_or_empty(&self, question_mark_or_ampersand: &str) -> String {
        match self {
            Self::Link(link) => format!("{question_mark_or_ampersand}{}", link.as_parameter()),
            Self::Open | Self::Signed => String::new(),
        }
    }

    /// Returns the query of further requests that have one more parameter, which follows.
    fn link_query_before_parameter(&self, question_mark_or_ampersand: &str) -> String {
        match self {
            Self::Link(link) => format!("{question_mark_or_ampersand}{}&", link.as_parameter()),
            Self::Open | Self::Signed => question_mark_or_ampersand.to_owned(),
        }
    }
}

/// Returns the state of a build as a word.
fn state_badge(phase: BuildPhase) -> Markup {
    html! { span.state.(phase.as_str()) { (phase.as_str()) } }
}

/// Returns the response with a page.
pub(super) fn page_response(page: Markup) -> Response {
    layout::page_response(StatusCode::OK, page)
}

/// Returns the response with a page that says why something is not shown, and what to do next.
pub(super) fn error_page_response(status: StatusCode, error: &str, next_step: &str) -> Response {
    let title = match status {
        StatusCode::UNAUTHORIZED => "This link does not work",
        StatusCode::NOT_FOUND => "This build is not known",
        StatusCode::BAD_REQUEST => "This address is wrong",
        StatusCode::TOO_MANY_REQUESTS => "Too many readers",
        _ => "This cannot be shown now",
    };
    let main = html! {
        header { h1 { (title) } }
        p { (words::cut_to_chars_and_html_bytes(&ansi::show_controls_keeping_tabs_and_newlines(error), 1000)) }
        p { (next_step) }
    };
    layout::page_response(
        status,
        layout::document(
            "Slipway",
            &layout::NoscriptReload::Never,
            layout::EmbeddedAssets::Style,
            &main,
        ),
    )
}
