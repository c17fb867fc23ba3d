//! The lines of a log, folded by step.

use maud::{Markup, PreEscaped, html};

use super::ansi::{LINE_CHARS_MAX, StyledLine, show_controls_keeping_tabs_and_newlines, style_line};
use super::words;
use crate::builds::log_excerpt::{LogExcerpt, LogPart, PAGE_LINES_MAX};
use crate::builds::numbered_log::{LINE_NUMBERS_PER_ATTEMPT, LogLine};

/// The most characters of a step's name.
const STEP_NAME_CHARS_MAX: usize = 120;

/// The most bytes of a line as HTML, roughly.
const LINE_BYTES_MAX: usize = 4096;

/// The bytes of a block of lines besides its name and its lines.
const BLOCK_FRAME_BYTES: usize = 80;

/// The space that the lines of a log have on a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogSpace {
    /// The most bytes of HTML.
    pub(super) max_html_bytes: usize,
    /// The number of lines that are shown even if they take more.
    pub(super) min_lines: usize,
}

/// The address of the page and of its log, relative to the page, for the links on it.
#[derive(Clone, Debug)]
pub(super) struct PageQueryAndLogAddress {
    /// The query of the page, which the number of a line follows: `?link=…&` or `?`.
    pub(super) page: String,
    /// The address of the log, which the number of a line follows.
    pub(super) log: String,
}

/// The lines of one step in a row.
struct StepBlock<'a> {
    step: Option<u32>,
    lines: Vec<&'a LogLine>,
}

/// The lines that fit on a page, as HTML.
struct LinesThatFit<'a> {
    lines: Vec<(&'a LogLine, String)>,
    /// Whether lines before them do not fit.
    has_earlier: bool,
    /// The number of the first line after them that does not fit.
    next: Option<u64>,
}

/// Renders the lines that fit into `space`: the last ones if `from_end`, otherwise the first ones. Hostile lines need
/// many bytes for few characters, and so do lines of steps that run at the same time: `block_bytes` is what the lines
/// of a step in a row need besides.
fn render_each_line_that_fits(
    lines: &[LogLine],
    from_end: bool,
    space: LogSpace,
    block_bytes: impl Fn(Option<u32>) -> usize,
) -> LinesThatFit<'_> {
    let mut rendered: Vec<(&LogLine, String)> = Vec::new();
    let mut bytes = 0;
    let mut add = |line| {
        let html = render_line(line).into_string();
        let begins_block = rendered.last().is_none_or(|(last, _)| last.step != line.step);
        bytes += html.len() + if begins_block { block_bytes(line.step) } else { 0 };
        let fits = bytes <= space.max_html_bytes || rendered.len() < space.min_lines;
        if fits {
            rendered.push((line, html));
        }
        fits
    };
    if from_end {
        let has_earlier = lines.iter().rev().any(|line| !add(line));
        rendered.reverse();
        return LinesThatFit {
            lines: rendered,
            has_earlier,
            next: None,
        };
    }
    let next = lines.iter().find(|line| !add(line)).map(|line| line.seq);
    LinesThatFit {
        lines: rendered,
        has_earlier: false,
        next,
    }
}

/// Returns the list item of a line. A line of characters that take many bytes is cut earlier than others.
fn render_line(line: &LogLine) -> Markup {
    let (is_step, text) = split_into_is_step_and_text(&line.text);
    let whole = render_text_of_line(line.seq, is_step, text, 0);
    if whole.0.len() <= LINE_BYTES_MAX {
        return whole;
    }
    let count = text.chars().count();
    let kept = count.min(LINE_CHARS_MAX) * LINE_BYTES_MAX / whole.0.len();
    let end = text.char_indices().nth(kept).map_or(text.len(), |(end, _)| end);
    render_text_of_line(line.seq, is_step, &text[..end], count.saturating_sub(kept))
}

/// Returns the list item of the line number `seq` with this text, after which `chars_cut_off` characters are left out.
fn render_text_of_line(seq: u64, is_step: bool, text: &str, chars_cut_off: usize) -> Markup {
    let StyledLine { parts, left_out } = style_line(text);
    let left_out = left_out + chars_cut_off;
    html! {
        li id={ "L" (seq) } {
            a href={ "#L" (seq) } { (seq) }
            " "
            span.step[is_step] {
                @for (style, text) in parts {
                    @match style.classes() {
                        None => (text),
                        Some(classes) => span class=(classes) { (text) },
                    }
                }
                @if left_out > 0 { em { " … and " (left_out) " characters more" } }
            }
        }
    }
}

/// Splits a line of the log's format into whether it is about a step, and its text without the kind and the time.
fn split_into_is_step_and_text(line: &str) -> (bool, &str) {
    let mut parts = line.splitn(3, ' ');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("v:"), Some(_), Some(text)) => (true, text),
        (Some("l:"), Some(_), text) => (false, text.unwrap_or_default()),
        _ => (false, line),
    }
}

/// Returns the number of the line with which the page before the line `first` begins; `None` if it is the first of its
/// attempt.
fn first_line_of_page_before(first: u64) -> Option<u64> {
    let start = first.saturating_sub(1) / LINE_NUMBERS_PER_ATTEMPT * LINE_NUMBERS_PER_ATTEMPT + 1;
    (first > start).then(|| first.saturating_sub(PAGE_LINES_MAX).max(start))
}

/// Returns the section with the log, whose lines take the `space`.
pub(super) fn log_section(
    excerpt: &LogExcerpt,
    addresses: &PageQueryAndLogAddress,
    space: LogSpace,
) -> Markup {
    let name = |step: Option<u32>| {
        let step = step?;
        let found = excerpt.steps.iter().find(|(number, _)| *number == Some(step));
        let name = found.map_or_else(
            || format!("step {step}"),
            |(_, facts)| show_controls_keeping_tabs_and_newlines(&facts.name),
        );
        Some(words::cut_to_chars_and_html_bytes(
            &name.replace('\n', " "),
            STEP_NAME_CHARS_MAX,
        ))
    };
    let block_bytes =
        |step| BLOCK_FRAME_BYTES + name(step).map_or(0, |name| html! { (name) }.into_string().len());
    let LinesThatFit {
        lines: rendered,
        has_earlier,
        next: cut,
    } = render_each_line_that_fits(&excerpt.lines, excerpt.is_end, space, block_bytes);
    let has_earlier = has_earlier || excerpt.has_earlier;
    let next = cut.unwrap_or(excerpt.next);
    let has_later = cut.is_some() || excerpt.has_later;
    let mut blocks: Vec<StepBlock<'_>> = Vec::new();
    for (line, _) in &rendered {
        match blocks.last_mut() {
            Some(block) if block.step == line.step => block.lines.push(line),
            _ => blocks.push(StepBlock {
                step: line.step,
                lines: vec![line],
            }),
        }
    }
    let mut html_of_lines = rendered.iter().map(|(_, html)| html.as_str());
    html! {
        section #log aria-labelledby="log-title" {
            h2 #log-title { "Log" }
            form #tools role="search" hidden {
                label for="find" { "Search" }
                input #find type="search" autocomplete="off" spellcheck="false";
                button type="submit" { "Find" }
                button #fold type="button" aria-expanded="true" aria-controls="lines" { "Fold all steps" }
                label #following hidden { input #follow type="checkbox" checked; " Follow" }
                output #found aria-live="polite" {}
            }
            ol #hits hidden aria-label="Lines found" {}
            @if let Some(problem) = &excerpt.problem { p.note { (words::cut_to_chars_and_html_bytes(&show_controls_keeping_tabs_and_newlines(problem), 1000)) } }
            @if let Some(part) = excerpt.unread {
                p.note {
                    @if rendered.is_empty() { "The log is not read yet. " }
                    @else if part == LogPart::End { "The log is long, and not read to its end yet: these are the last lines so far. " }
                    @else { "The log is not read to its end yet. " }
                    a #load href={ (addresses.page) "from=" (part) "#log" } {
                        @if part == LogPart::End { "Load the last lines" } @else { "Load the lines" }
                    }
                }
            }
            p.pager {
                @if has_earlier {
                    a href={ (addresses.page) "from=1#log" } { "First lines" }
                    @if let Some(earlier) = rendered.first().and_then(|(first, _)| first_line_of_page_before(first.seq)) {
                        " " a href={ (addresses.page) "from=" (earlier) "#log" } { "Earlier lines" }
                    }
                }
                " " a href=(addresses.log) { "The whole log as text" }
            }
            div #lines {
                @for block in &blocks {
                    @let lines = PreEscaped(html_of_lines.by_ref().take(block.lines.len()).collect::<String>());
                    @match name(block.step) {
                        Some(name) => details open data-step=[block.step] { summary { (name) } ol { (lines) } },
                        None => ol { (lines) },
                    }
                }
                @if rendered.is_empty() && excerpt.problem.is_none() && excerpt.unread.is_none() { p #empty.note { "There are no lines here." } }
            }
            p.pager {
                @if has_later {
                    a #later href={ (addresses.page) "from=" (next) "#log" } data-next=(next) { "Later lines" }
                    " " a href={ (addresses.page) "from=end#log" } { "Last lines" }
                } @else if excerpt.problem.is_some() || excerpt.unread.is_some() {
                    span #later data-next=(next) {}
                } @else {
                    span #later data-next=(next) { "This is the end of the log." }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buildkit::StepOrExportPartFacts;
    use crate::builds::numbered_log::LineKind;

    fn line(seq: u64, step: Option<u32>, text: &str) -> LogLine {
        LogLine {
            seq,
            step,
            kind: LineKind::Ordinary,
            text: text.to_owned(),
        }
    }

    fn space(max_html_bytes: usize) -> LogSpace {
        LogSpace {
            max_html_bytes,
            min_lines: 1,
        }
    }

    fn addresses() -> PageQueryAndLogAddress {
        PageQueryAndLogAddress {
            page: "?".to_owned(),
            log: "a/log".to_owned(),
        }
    }

    #[test]
    fn hostile_lines_are_rendered_with_no_tags_but_the_pages_own() {
        for text in [
            "l: T <script>alert(1)</script>",
            "l: T \u{1b}[31m<img src=x onerror=alert(1)>\u{1b}[0m",
            "l: T \"><svg onload=alert(1)>",
            "v: T ]]><script>",
            "l: T </ol></details></section><script>",
            "l: T &lt;b&gt;",
        ] {
            let html = render_line(&line(1, None, text)).into_string();
            let tags: Vec<_> = html.match_indices('<').map(|(at, _)| &html[at..]).collect();
            let is_own = |tag: &&str| {
                ["<li ", "</li>", "<a ", "</a>", "<span", "</span>"]
                    .iter()
                    .any(|own| tag.starts_with(own))
            };
            assert!(tags.iter().all(is_own), "{html}");
        }
        assert!(
            render_line(&line(1, None, "l: T &lt;"))
                .into_string()
                .contains("&amp;lt;")
        );
    }

    #[test]
    fn lines_are_folded_by_step_and_have_addresses() {
        let excerpt = LogExcerpt {
            lines: vec![
                line(1, Some(1), "v: T [1/2] RUN a"),
                line(2, Some(1), "l: T one"),
                line(3, Some(2), "l: T two"),
                line(4, None, "l: T warning: three"),
            ],
            next: 5,
            is_complete: true,
            ..LogExcerpt::default()
        };
        let html = log_section(&excerpt, &addresses(), space(20_000)).into_string();
        assert_eq!(html.matches("<details open").count(), 2, "{html}");
        assert!(html.contains(r##"<li id="L3"><a href="#L3">3</a>"##), "{html}");
        assert!(html.contains(r#"data-next="5""#), "{html}");
    }

    #[test]
    fn a_log_that_was_not_read_in_time_says_so_and_can_be_loaded() {
        for (lines, unread, said, address) in [
            (
                vec![],
                Some(LogPart::End),
                "The log is not read yet",
                "?from=end#log",
            ),
            (
                vec![],
                Some(LogPart::From(7)),
                "The log is not read yet",
                "?from=7#log",
            ),
            (
                vec![line(1, None, "l: T one")],
                Some(LogPart::End),
                "the last lines so far",
                "?from=end#log",
            ),
            (vec![], None, "There are no lines here", ""),
        ] {
            let excerpt = LogExcerpt {
                lines,
                unread,
                is_end: true,
                ..LogExcerpt::default()
            };
            let html = log_section(&excerpt, &addresses(), space(20_000)).into_string();
            assert!(html.contains(said), "{html}");
            assert_eq!(html.contains("There are no lines"), unread.is_none(), "{html}");
            assert_eq!(html.contains("the end of the log"), unread.is_none(), "{html}");
            let link = format!(r#"id="load" href="{address}""#);
            assert_eq!(html.contains(&link), unread.is_some(), "{html}");
        }
        let problem = LogExcerpt {
            problem: Some("the log could not be read".into()),
            ..LogExcerpt::default()
        };
        let html = log_section(&problem, &addresses(), space(20_000)).into_string();
        assert!(
            html.contains("could not be read") && !html.contains("the end of the log"),
            "{html}"
        );
        assert!(!html.contains("There are no lines"), "{html}");
    }

    #[test]
    fn earlier_lines_are_those_of_the_same_attempt() {
        for (first, earlier) in [
            (1, None),
            (2, Some(1)),
            (301, Some(1)),
            (302, Some(2)),
            (1_000_000_001, None),
            (1_000_000_005, Some(1_000_000_001)),
            (1_000_000_302, Some(1_000_000_002)),
        ] {
            assert_eq!(first_line_of_page_before(first), earlier, "{first}");
        }
    }

    #[test]
    fn hostile_lines_take_no_more_than_their_budget_at_the_beginning_and_at_the_end() {
        for text in ["\u{1b}[31m&\u{1b}[32m&", "&", "<", "\u{202e}"] {
            let lines: Vec<_> = (1..=300)
                .map(|seq| line(seq, Some(1), &text.repeat(8192 / text.len())))
                .collect();
            for is_end in [false, true] {
                let excerpt = LogExcerpt {
                    lines: lines.clone(),
                    next: 301,
                    is_end,
                    is_complete: true,
                    ..LogExcerpt::default()
                };
                let html = log_section(&excerpt, &addresses(), space(30_000)).into_string();
                assert!(html.len() < 32_000, "{text:?}: {}", html.len());
                assert!(html.contains(if is_end { "id=\"L300\"" } else { "id=\"L1\"" }));
                assert!(html.contains(if is_end { "Earlier lines" } else { "Later lines" }));
            }
        }
    }

    #[test]
    fn lines_of_steps_that_run_at_the_same_time_take_no_more_than_their_budget() {
        let name = "RUN <make> ".repeat(20);
        let facts = |digest: &str| StepOrExportPartFacts {
            digest: digest.to_owned(),
            name: name.clone(),
            ..StepOrExportPartFacts::default()
        };
        let excerpt = LogExcerpt {
            lines: (1..=300)
                .map(|seq| line(seq, Some(seq as u32 % 2), "l: T x"))
                .collect(),
            steps: vec![(Some(0), facts("a")), (Some(1), facts("b"))],
            next: 301,
            ..LogExcerpt::default()
        };
        let html = log_section(&excerpt, &addresses(), space(20_000)).into_string();
        assert!(html.contains("<details"), "{html}");
        assert!((19_000..22_000).contains(&html.len()), "{}", html.len());
    }

    #[test]
    fn a_line_that_does_not_fit_is_shown_only_where_a_page_must_have_one() {
        let excerpt = LogExcerpt {
            lines: vec![line(1, None, &format!("l: T {}", "<".repeat(900)))],
            next: 2,
            ..LogExcerpt::default()
        };
        for (min_lines, count) in [(0, 0), (1, 1)] {
            let space = LogSpace {
                max_html_bytes: 1000,
                min_lines,
            };
            let html = log_section(&excerpt, &addresses(), space).into_string();
            assert_eq!(html.matches("<li id").count(), count, "{html}");
            assert_eq!(html.contains("from=1#log"), count == 0, "{html}");
        }
    }
}
