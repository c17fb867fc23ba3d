//! Parses the parts of Markdown that the documents use.

use std::collections::BTreeSet;

use regex::Regex;

/// A parsed Markdown document, line by line.
pub(crate) struct MarkdownPage {
    /// The document's lines outside of code blocks, with their numbers from 1.
    pub(crate) prose: Vec<(usize, String)>,
}

impl MarkdownPage {
    /// Parses the Markdown `text` of a document.
    pub(crate) fn parse(text: &str) -> Self {
        let mut in_code = false;
        let mut prose = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                in_code = !in_code;
            } else if !in_code {
                prose.push((index + 1, line.to_owned()));
            }
        }
        assert!(!in_code, "a code block is not closed");
        Self { prose }
    }

    /// Returns the targets of all links in the document, with the numbers of their lines.
    pub(crate) fn links(&self) -> Vec<(usize, String)> {
        let link = Regex::new(r"\]\(([^)]+)\)").unwrap();
        let mut links = Vec::new();
        for (number, line) in &self.prose {
            let targets = link
                .captures_iter(line)
                .map(|found| (*number, found[1].to_owned()));
            links.extend(targets);
        }
        links
    }

    /// Returns all texts between backticks in the document, with the numbers of their lines.
    pub(crate) fn code_spans(&self) -> Vec<(usize, String)> {
        let mut spans = Vec::new();
        for (number, line) in &self.prose {
            spans.extend(texts_in_backticks(line).into_iter().map(|span| (*number, span)));
        }
        spans
    }

    /// Returns the anchors that GitHub makes from the document's headings.
    pub(crate) fn anchors(&self) -> BTreeSet<String> {
        let headings = self.prose.iter().filter_map(|(_, line)| {
            let text = line.trim_start_matches('#');
            (text.len() < line.len() && text.starts_with(' ')).then(|| heading_anchor(text.trim()))
        });
        headings.collect()
    }
}

/// Returns the texts between backticks in `line`.
pub(crate) fn texts_in_backticks(line: &str) -> Vec<String> {
    line.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Returns the anchor of a heading: lower case, blanks as hyphens, without punctuation.
fn heading_anchor(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// Returns the names in the first column of the table that follows the comment `<!-- MARK -->`.
///
/// # Panics
/// If there is no such table, or if a name is in it twice.
pub(crate) fn names_in_table(text: &str, mark: &str) -> BTreeSet<String> {
    let (_, rest) = text
        .split_once(&format!("<!-- {mark} -->"))
        .unwrap_or_else(|| panic!("no table {mark}"));
    let (table, _) = rest.split_once("<!-- end -->").expect("the end of the table");
    let mut names = BTreeSet::new();
    // The first two rows are the heading and its line.
    for row in table.lines().filter(|line| line.starts_with('|')).skip(2) {
        let column = row.split('|').nth(1).unwrap();
        let found = texts_in_backticks(column);
        assert!(!found.is_empty(), "{mark}: no name in {row}");
        for name in found {
            assert!(names.insert(name.clone()), "{mark}: {name} is there twice");
        }
    }
    assert!(!names.is_empty(), "{mark}: an empty table");
    names
}

#[test]
fn anchors_are_those_that_github_makes() {
    let page = MarkdownPage::parse(
        "# One\n\n### Uploaded tars skip .dockerignore\n```\n# code\n```\n## `a_b` (c)\n#no\n",
    );
    let expected = ["one", "uploaded-tars-skip-dockerignore", "a_b-c"];
    assert_eq!(page.anchors(), expected.map(str::to_owned).into());
}

#[test]
fn names_are_those_of_the_first_column() {
    let text =
        "<!-- t -->\n| name | of |\n| --- | --- |\n| `a`, `b` | `c` |\n| `d` | |\n<!-- end -->\n| `e` |";
    assert_eq!(
        names_in_table(text, "t"),
        ["a", "b", "d"].map(str::to_owned).into()
    );
}
