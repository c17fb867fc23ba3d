//! The frame of every page, and the headers that keep its link and its content within it.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use function_host::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use function_host::http::{HeaderMap, StatusCode};
use function_host::{Response, ResponseBody};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

/// The style sheet of all pages.
const STYLE: &str = include_str!("style.css");

/// The script of the page of a build as it is written. It is not part of the program.
const SCRIPT_SOURCE: &[u8] = include_bytes!("script.js");

/// The bytes of [`SCRIPT`].
const SCRIPT_BYTES: [u8; script_without_indentation_and_comments::<0>().1] =
    script_without_indentation_and_comments().0;

/// The script of the page of a build, without the indentation and the lines of comments, which would be a fifth of it.
const SCRIPT: &str = match str::from_utf8(&SCRIPT_BYTES) {
    Ok(text) => text,
    // A test shows that there is a script.
    Err(_) => "",
};

/// Returns the first `N` bytes of the script without indentation and lines of comments, and how many there are. The
/// compiler evaluates it, so that an index that is too large is an error of the compiler.
const fn script_without_indentation_and_comments<const N: usize>() -> ([u8; N], usize) {
    let (mut bytes, mut count) = ([0; N], 0);
    let (mut at, mut begins_line, mut is_comment) = (0, true, false);
    while at < SCRIPT_SOURCE.len() {
        let byte = SCRIPT_SOURCE[at];
        at += 1;
        if begins_line && byte == b' ' {
            continue;
        }
        if begins_line {
            is_comment = byte == b'/' && SCRIPT_SOURCE[at] == b'/';
        }
        begins_line = byte == b'\n';
        if !is_comment {
            if count < N {
                bytes[count] = byte;
            }
            count += 1;
        }
    }
    (bytes, count)
}

/// The policy of a page: its own style sheet and its own script, by their hashes, and nothing else. It may ask its own
/// origin for the log, and be in no frame.
static PAGE_CONTENT_SECURITY_POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| STANDARD.encode(Sha256::digest(text));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
        hash(STYLE),
        hash(SCRIPT)
    )
});

/// The policy of an answer that is no page, if a browser shows it all the same.
const ANSWER_CONTENT_SECURITY_POLICY: HeaderValue =
    HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; sandbox");

/// Whether a page is loaded again by itself in browsers without scripts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoscriptReload {
    /// The page stays as it is.
    Never,
    /// A page at the address `address` follows after `seconds`.
    After {
        /// The time for which the page is shown.
        seconds: u32,
        /// The address, relative to the page.
        address: String,
    },
}

/// What a page has besides its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EmbeddedAssets {
    /// The style sheet and the script: the page of a build.
    StyleAndScript,
    /// The style sheet only.
    Style,
    /// Nothing: a part of a page, for its script.
    Nothing,
}

/// Returns the document with this title and this content of its `main` element.
pub(super) fn document(
    title: &str,
    reload: &NoscriptReload,
    assets: EmbeddedAssets,
    main: &Markup,
) -> Markup {
    if assets == EmbeddedAssets::Nothing {
        return html! {
            (DOCTYPE)
            title { (title) }
            (main)
        };
    }
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                meta name="robots" content="noindex, nofollow";
                title { (title) }
                // No request for an icon, which would go to whatever answers at the root of the address.
                link rel="icon" href="data:,";
                @if let NoscriptReload::After { seconds, address } = reload {
                    noscript { meta http-equiv="refresh" content={ (seconds) "; url=" (address) }; }
                }
                style { (PreEscaped(STYLE)) }
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                main #main tabindex="-1" { (main) }
                @if assets == EmbeddedAssets::StyleAndScript { script { (PreEscaped(SCRIPT)) } }
            }
        }
    }
}

/// Returns the response with a page.
pub(super) fn page_response(status: StatusCode, page: Markup) -> Response {
    let mut response = Response::new(ResponseBody::full(page.into_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    if let Ok(policy) = HeaderValue::from_str(&PAGE_CONTENT_SECURITY_POLICY) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    add_protective_headers(headers);
    response
}

/// Adds the headers of every answer about builds: it is stored nowhere, is in no frame, and its address is sent to
/// nobody.
pub(in crate::builds) fn add_protective_headers(headers: &mut HeaderMap) {
    headers
        .entry(CONTENT_SECURITY_POLICY)
        .or_insert(ANSWER_CONTENT_SECURITY_POLICY);
    for (name, value) in [
        (CACHE_CONTROL, "private, no-store"),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
        (HeaderName::from_static("x-robots-tag"), "noindex, nofollow"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn style_and_script_end_where_their_elements_end_and_load_nothing() {
        for (text, end) in [(STYLE, "</style"), (SCRIPT, "</script")] {
            let text = text.to_ascii_lowercase();
            for part in [end, "<!--", "http:", "https:", "@import", "url("] {
                assert!(!text.contains(part), "{part}");
            }
        }
        for sink in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
        ] {
            assert!(!SCRIPT.contains(sink), "{sink}");
        }
        assert!(
            !SCRIPT.contains('`'),
            "a text of several lines would lose its indentation"
        );
    }

    #[test]
    fn the_script_is_the_written_one_without_indentation_and_lines_of_comments() {
        let source = str::from_utf8(SCRIPT_SOURCE).expect("text");
        let lines = source.lines().map(str::trim_start);
        let kept: Vec<_> = lines.filter(|line| !line.starts_with("//")).collect();
        assert_eq!(SCRIPT.lines().collect::<Vec<_>>(), kept);
        assert!(kept.len() > 100 && kept.len() < source.lines().count());
    }

    #[test]
    fn a_page_may_use_its_own_style_and_script_only() {
        let policy = &*PAGE_CONTENT_SECURITY_POLICY;
        assert!(
            policy.starts_with("default-src 'none'; style-src 'sha256-"),
            "{policy}"
        );
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    }
}
