//! Hints: why a build or a deployment failed, where, and what to do next.
//!
//! [`explain`] is a pure function from what is known of a failure. Every rule for a cause needs the words of the program
//! that failed, and names a place only if these words, the Dockerfile or the context have it. Where no rule knows the
//! cause of a failed step, the last one quotes the line of its output that says most.
//!
//! All of it is input from outside. The texts are cut to a fixed size before any rule reads them, each rule passes over
//! them a fixed number of times, and the texts of a hint are short and without control characters.

mod buildkit_error;
mod cmake;
mod compiler;
mod composer;
mod copied;
mod decisive_line;
mod dependency;
mod deployment;
mod dockerfile;
mod dockerfile_error;
mod evidence;
mod exception;
mod exit_code;
mod failure;
mod files;
mod go;
mod image;
mod jvm;
mod kind;
mod known_line;
mod located_error;
mod msbuild;
mod network;
mod node;
mod proxy;
mod python;
mod resources;
mod secret;
mod source;
mod test_failure;
mod test_report;
mod text;
mod time_limit;

use serde::Serialize;

pub use deployment::explain_deployment;
use evidence::Evidence;
pub use failure::{CredentialHolder, FailedStepNameAndOutput, Failure, LoginStateAtRefusingRegistry};
pub use files::{ContextFiles, NoFiles};
pub use image::registry_refusing_credentials;
pub use kind::HintKind;

/// The length after which the text of a sentence is cut, in bytes.
const MAX_SENTENCE_BYTES: usize = 600;

/// The length after which the name of a file or a step, or a line of output, is cut, in bytes.
const MAX_NAME_OR_LINE_BYTES: usize = 200;

/// The most lines of output in a hint.
const MAX_LOG_LINES: usize = 10;

/// Why a build or a deployment failed, where, and what to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hint {
    /// The kind of the cause, for programs.
    pub kind: HintKind,
    /// The cause, in one sentence.
    pub cause: String,
    /// The file with the cause: of the context, or as the failed program named it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The line of the cause in the file, from 1 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// The step of the Dockerfile that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<HintStep>,
    /// The last lines of the log of a function that was deployed and does not work.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
    /// What to do next, in one sentence.
    pub next: String,
}

/// The failed step in a hint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HintStep {
    /// The name of the step, such as `[2/3] RUN make`.
    pub name: String,
    /// The Dockerfile, relative to the context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The line in the Dockerfile at which the step's instruction begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
}

/// A rule: returns the hint if the failure has this rule's cause.
type Rule = for<'a> fn(&Evidence<'a>) -> Option<Hint>;

/// The rules, of which the first with a hint decides. A compiler's error with a place comes before what a program
/// writes about its network, because builds go on after failed downloads; a failed download comes before a missing
/// dependency, because package managers take one for the other.
const RULES: &[Rule] = &[
    time_limit::explain,
    dockerfile_error::explain,
    source::explain_source_denied_by_rules,
    source::explain_missing_source,
    secret::explain_missing_secret,
    image::explain_pull,
    image::explain_push,
    network::explain_failed_add_download,
    resources::explain_full_disk,
    buildkit_error::explain,
    dependency::explain_non_npm_manifest_or_lock_file,
    msbuild::explain,
    compiler::explain,
    go::explain,
    located_error::explain,
    test_failure::explain,
    test_report::explain,
    resources::explain_out_of_memory,
    source::explain_step_file_excluded_or_in_other_case,
    source::explain_missing_manifest,
    secret::explain_missing_login,
    proxy::explain_refusing_proxy,
    node::explain_npm,
    network::explain_network_failure_of_step,
    dependency::explain_missing_or_conflicting_dependency,
    jvm::explain_missing_artifact,
    composer::explain,
    known_line::explain,
    cmake::explain,
    python::explain_interpreter_error,
    node::explain,
    exception::explain,
    exit_code::explain_unrunnable_program_missing_user_or_denied_permission,
    known_line::explain_tolerable_error_at_end,
    decisive_line::explain,
];

/// Returns the hint for a failed build; `None` for a failure of no step whose cause is not known.
pub fn explain(failure: &Failure<'_>) -> Option<Hint> {
    let evidence = Evidence::new(failure);
    let hint = RULES.iter().find_map(|rule| rule(&evidence))?;
    Some(evidence.complete_with_step_and_place(hint))
}

impl Hint {
    /// Creates a hint without a place.
    fn new(kind: HintKind, cause: impl AsRef<str>, next: impl AsRef<str>) -> Self {
        Self {
            kind,
            cause: text::one_line_cut_with_ellipsis(cause.as_ref(), MAX_SENTENCE_BYTES),
            file: None,
            line: None,
            step: None,
            log: Vec::new(),
            next: text::one_line_cut_with_ellipsis(next.as_ref(), MAX_SENTENCE_BYTES),
        }
    }

    /// Creates a hint whose next step is to correct the line at `place`.
    fn to_correct_line(kind: HintKind, cause: impl AsRef<str>, place: &text::Place<'_>) -> Self {
        let file = text::name_if_safe_or(place.file, "the file");
        Self::new(kind, cause, format!("correct line {} of {file}", place.line))
            .at(place.file, Some(place.line))
    }

    /// Returns the hint with this file and this line as its place. An empty file and line 0 are left out.
    fn at(self, file: &str, line: Option<u32>) -> Self {
        Self {
            file: Some(text::one_line_cut_with_ellipsis(file, MAX_NAME_OR_LINE_BYTES))
                .filter(|file| !file.is_empty()),
            line: line.filter(|line| *line > 0),
            ..self
        }
    }

    /// Returns the hint with the last of `lines`.
    fn with_last_log_lines<'l>(mut self, lines: impl Iterator<Item = &'l str>) -> Self {
        let mut log: Vec<_> = lines
            .map(|line| text::one_line_cut_with_ellipsis(line, MAX_NAME_OR_LINE_BYTES))
            .filter(|line| !line.is_empty())
            .collect();
        self.log = log.split_off(log.len().saturating_sub(MAX_LOG_LINES));
        self
    }

    /// Changes every text of the hint, such as to mask secrets.
    pub fn map_texts(&mut self, change: impl Fn(&mut String)) {
        change(&mut self.cause);
        change(&mut self.next);
        self.file.iter_mut().for_each(&change);
        self.log.iter_mut().for_each(&change);
        if let Some(step) = &mut self.step {
            change(&mut step.name);
            step.file.iter_mut().for_each(&change);
        }
    }
}

#[cfg(test)]
mod tests;
