//! Checks the links, paths, make targets and lengths of lines in the documents, and references to them in the code.

use std::path::Path;

use regex::Regex;

use crate::markdown::MarkdownPage;
use crate::repository;

/// The length of the longest line outside of tables and code blocks, in characters.
const MAX_LINE_CHARS: usize = 120;

/// Returns the paths of the repository's documents.
fn document_paths() -> Vec<String> {
    repository::files_not_built_or_downloaded("", |name| name.ends_with(".md"))
}

/// Returns what is wrong with a link to `target` in the document or source `from`, if anything is.
fn relative_link_fault(from: &str, target: &str) -> Option<String> {
    let (path, anchor) = match target.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (target, None),
    };
    let folder = Path::new(from).parent().unwrap();
    let file = match path {
        "" => repository::root().join(from),
        path => repository::root().join(folder).join(path),
    };
    if !file.exists() {
        return Some(format!("{from}: {target}: no such file"));
    }
    let anchor = anchor?;
    let text = std::fs::read_to_string(&file).unwrap();
    let is_there = MarkdownPage::parse(&text).anchors().contains(anchor);
    (!is_there).then(|| format!("{from}: {target}: no such heading"))
}

#[track_caller]
fn assert_no_faults(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let mut faults = Vec::new();
    for path in document_paths() {
        let page = MarkdownPage::parse(&repository::read(&path));
        for (number, target) in page.links() {
            if target.contains("://") {
                continue;
            }
            faults.extend(relative_link_fault(&path, &target).map(|fault| format!("line {number}: {fault}")));
        }
    }
    assert_no_faults(&faults);
}

#[test]
fn the_index_for_language_models_names_every_page_of_docs_and_leads_nowhere_else_in_vain() {
    let index = "docs/llms.txt";
    let links = MarkdownPage::parse(&repository::read(index)).links();
    let mut faults: Vec<_> = links
        .iter()
        .filter_map(|(number, target)| {
            relative_link_fault(index, target).map(|fault| format!("line {number}: {fault}"))
        })
        .collect();
    for path in repository::files_not_built_or_downloaded("docs", |name| name.ends_with(".md")) {
        let name = path.trim_start_matches("docs/");
        if !links.iter().any(|(_, target)| target == name) {
            faults.push(format!("{index}: no link to {name}"));
        }
    }
    assert_no_faults(&faults);
}

#[test]
fn every_path_from_the_root_in_a_document_exists() {
    // A path from the root, written as code.
    let from_root = Regex::new(
        r"^(?:builder-fn|deployer-fn|function-host|template|tests|chart|fuzz|docs|\.ci)/[A-Za-z0-9_./-]*$",
    )
    .unwrap();
    let mut faults = Vec::new();
    for path in document_paths() {
        for (number, span) in MarkdownPage::parse(&repository::read(&path)).code_spans() {
            let first = span.split(' ').next().unwrap_or_default();
            if from_root.is_match(first) && !repository::root().join(first).exists() {
                faults.push(format!("{path}:{number}: {first}: no such file"));
            }
        }
    }
    assert_no_faults(&faults);
}

#[test]
fn every_make_target_in_a_code_span_of_a_document_exists() {
    let makefile = repository::read("Makefile");
    let exists = |target: &str| {
        makefile
            .lines()
            .any(|line| line.starts_with(&format!("{target}:")))
    };
    let command = Regex::new(r"(?m)(?:^|[ `(])make ([a-z][a-z0-9-]*)").unwrap();
    let mut faults = Vec::new();
    for path in document_paths() {
        let page = MarkdownPage::parse(&repository::read(&path));
        for (number, span) in page.code_spans() {
            for found in command.captures_iter(&span) {
                if !exists(&found[1]) {
                    faults.push(format!("{path}:{number}: make {}: no such target", &found[1]));
                }
            }
        }
    }
    assert_no_faults(&faults);
}

#[test]
fn no_line_outside_of_tables_and_code_is_long() {
    let mut faults = Vec::new();
    for path in document_paths() {
        for (number, line) in MarkdownPage::parse(&repository::read(&path)).prose {
            let length = line.chars().count();
            if length > MAX_LINE_CHARS && !line.starts_with('|') {
                faults.push(format!("{path}:{number}: {length} characters"));
            }
        }
    }
    assert_no_faults(&faults);
}

#[test]
fn every_reference_from_the_code_to_a_document_leads_somewhere() {
    // Not behind a quotation mark, where it is the data of a test, nor within another project's address.
    let reference = Regex::new(r#"(?m)(?:^|[^"/A-Za-z0-9_-])(docs/[a-z-]+\.md(?:\#[a-z0-9_-]+)?)"#).unwrap();
    let is_source = |name: &str| {
        let endings = [
            ".rs", ".toml", ".yaml", ".yml", ".tpl", ".txt", ".sh", ".py", ".json",
        ];
        endings.iter().any(|ending| name.ends_with(ending)) || name == "Makefile" || name == "Dockerfile"
    };
    let mut faults = Vec::new();
    // As a document in the root would link to it.
    for path in repository::files_not_built_or_downloaded("", is_source) {
        if path.starts_with("tests/docs/") {
            continue;
        }
        for found in reference.captures_iter(&repository::read(&path)) {
            faults
                .extend(relative_link_fault("README.md", &found[1]).map(|fault| format!("{path}: {fault}")));
        }
    }
    assert_no_faults(&faults);
}
