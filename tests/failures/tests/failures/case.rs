//! A case of the table: a failure, and what its hint has to say.

use std::collections::BTreeMap;
use std::path::Path;

use builder_fn::hint::{
    ContextFiles, CredentialHolder, FailedStepNameAndOutput, Failure, Hint, HintKind,
    LoginStateAtRefusingRegistry, explain, explain_deployment,
};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A failure, and what its hint has to say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    /// What was done wrong.
    #[serde(rename = "what")]
    _what: String,
    /// Where the texts were recorded, and with which versions.
    #[serde(rename = "recorded")]
    _recorded: String,
    /// The options of the build that was recorded.
    #[serde(rename = "build", default)]
    _build: Option<String>,
    /// Whether an end-to-end test runs the case on the stack.
    #[serde(rename = "live", default)]
    _live: bool,
    /// What the end-to-end test that builds a `live` case adds to the build's config.
    #[serde(rename = "config", default)]
    _config: Value,
    /// The context as it was handed in: paths and contents.
    #[serde(default)]
    files: BTreeMap<String, String>,
    /// The path of the Dockerfile in the context.
    #[serde(default)]
    dockerfile: Option<String>,
    /// The error of the solve, or the builder's own.
    #[serde(default)]
    error: String,
    /// The name of the failed step.
    #[serde(default)]
    step: Option<String>,
    /// The line of the Dockerfile that BuildKit names.
    #[serde(default)]
    step_line: Option<u32>,
    /// The output of the failed step.
    #[serde(default)]
    output: String,
    /// The credentials of the build for the registry.
    #[serde(default)]
    login: Option<RegistryLoginOfCase>,
    /// The tenant whose steps have no network.
    #[serde(default)]
    no_network: Option<String>,
    /// The deployer's answer, of a case that is a deployment.
    #[serde(default)]
    deployment: Option<Value>,
    /// What the hint has to say.
    pub(crate) expected: ExpectedHint,
}

/// The credentials of a build for a registry.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegistryLoginOfCase {
    /// `operator`, or the name of a tenant.
    holder: String,
    given: bool,
    #[serde(default)]
    problem: Option<String>,
}

/// What the hint of a case has to say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExpectedHint {
    /// The word for the kind; `null` if no cause may be claimed: there is no hint, or one of the kind `step-failed`.
    pub(crate) kind: Option<String>,
    /// The file; `null` if there must be none.
    #[serde(default, deserialize_with = "some_even_if_null")]
    file: Option<Option<String>>,
    /// The line; `null` if there must be none.
    #[serde(default, deserialize_with = "some_even_if_null")]
    line: Option<Option<u32>>,
    /// The line of the step; `null` if there must be none.
    #[serde(default, deserialize_with = "some_even_if_null")]
    step_line: Option<Option<u32>>,
    /// Texts of which the cause, the next step or the log lines have to contain each, in upper or lower case.
    #[serde(default)]
    mentions: Vec<String>,
}

/// Tells a `null` from a key that is left out.
fn some_even_if_null<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// The context of a case.
struct CaseFiles<'a>(&'a BTreeMap<String, String>);

impl ContextFiles for CaseFiles<'_> {
    fn has(&self, path: &str) -> bool {
        let folder = format!("{path}/");
        self.0
            .keys()
            .any(|file| file == path || file.starts_with(&folder))
    }

    fn find_only_name_in_other_case(&self, folder: &str, name: &str) -> Option<String> {
        let prefix = match folder {
            "" => String::new(),
            folder => format!("{folder}/"),
        };
        let names = self
            .0
            .keys()
            .filter_map(|file| file.strip_prefix(&prefix)?.split('/').next());
        let mut found: Vec<_> = names
            .filter(|found| found.eq_ignore_ascii_case(name) && *found != name)
            .collect();
        found.dedup();
        match found.as_slice() {
            [one] => Some((*one).to_owned()),
            _ => None,
        }
    }

    fn read_beginning(&self, path: &str, limit: usize) -> Option<Vec<u8>> {
        let content = self.0.get(path)?.as_bytes();
        Some(content[..content.len().min(limit)].to_vec())
    }
}

impl Case {
    /// Reads the case in a file.
    pub(crate) fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).expect("a readable case");
        serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Returns the hint for the case.
    pub(crate) fn explain(&self) -> Option<Hint> {
        if let Some(deployment) = &self.deployment {
            return explain_deployment(deployment);
        }
        let files = CaseFiles(&self.files);
        explain(&Failure {
            error: self.error.trim_end(),
            step: self.step.as_deref().map(|name| FailedStepNameAndOutput {
                name,
                output: &self.output,
            }),
            dockerfile_line: self.step_line,
            dockerfile: self.dockerfile.as_deref().unwrap_or("Dockerfile"),
            files: &files,
            login: self.login.as_ref().map(|login| LoginStateAtRefusingRegistry {
                holder: match login.holder.as_str() {
                    "operator" => CredentialHolder::Operator,
                    tenant => CredentialHolder::Tenant(tenant),
                },
                is_given: login.given,
                problem: login.problem.as_deref(),
            }),
            no_network: self.no_network.as_deref(),
        })
    }

    /// Returns what is wrong with a hint for the case.
    pub(crate) fn differences_from_expected_hint(&self, hint: Option<&Hint>) -> Vec<String> {
        let expected = &self.expected;
        let mut problems = Vec::new();
        let kind = hint.map(|hint| hint.kind.as_str().to_owned());
        if expected.kind.is_none() && kind.as_deref() == Some(HintKind::StepFailed.as_str()) {
            return problems;
        }
        if kind != expected.kind {
            problems.push(format!("the kind should be {:?}", expected.kind));
        }
        let Some(hint) = hint else { return problems };
        if let Some(file) = &expected.file
            && hint.file != *file
        {
            problems.push(format!("the file should be {file:?}"));
        }
        if let Some(line) = expected.line
            && hint.line != line
        {
            problems.push(format!("the line should be {line:?}"));
        }
        let step_line = hint.step.as_ref().and_then(|step| step.line);
        if let Some(expected) = expected.step_line
            && step_line != expected
        {
            problems.push(format!("the step should be at line {expected:?}"));
        }
        let text = format!("{}\n{}\n{}", hint.cause, hint.next, hint.log.join("\n")).to_lowercase();
        for mention in &expected.mentions {
            if !text.contains(&mention.to_lowercase()) {
                problems.push(format!("{mention:?} should be mentioned"));
            }
        }
        problems
    }
}
