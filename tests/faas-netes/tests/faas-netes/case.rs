//! A case of the table, and its comparison with an answer.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{matching, provider::Answer};

/// A case of the table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Case {
    /// The property of faas-netes that the case shows.
    pub(crate) case: String,
    /// The files and functions where the property was read.
    pub(crate) source: String,
    /// The objects that exist before.
    #[serde(default)]
    pub(crate) given: Vec<Value>,
    /// The number of other functions that exist before.
    #[serde(default)]
    pub(crate) given_functions: u32,
    /// The requests that are sent before; each has a status.
    #[serde(default)]
    pub(crate) before: Vec<Request>,
    pub(crate) request: Request,
    pub(crate) answer: ExpectedAnswer,
    /// The objects that are there afterwards.
    #[serde(default)]
    pub(crate) then: Vec<Effect>,
    /// The file of the case.
    #[serde(skip)]
    pub(crate) file: String,
}

/// A request to the provider.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) json: Option<Value>,
    pub(crate) body: Option<String>,
    /// Whether the request has no credentials.
    #[serde(default)]
    pub(crate) anonymous: bool,
    pub(crate) status: Option<u16>,
}

/// The answer that faas-netes gives.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExpectedAnswer {
    status: u16,
    body: Option<EmptyOrPlainText>,
    /// Texts that the body contains, in any case.
    #[serde(default)]
    mentions: Vec<String>,
    /// A pattern for the body (`matching`).
    json: Option<Value>,
}

/// The kind of a body; the words of a text are the provider's own.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
enum EmptyOrPlainText {
    Empty,
    Text,
}

/// The state of an object afterwards.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Effect {
    pub(crate) kind: String,
    pub(crate) name: String,
    /// A pattern for the object (`matching`).
    pub(crate) like: Option<Value>,
    /// Whether the object does not exist.
    #[serde(default)]
    pub(crate) absent: bool,
    /// Whether the object does not exist, or is being deleted.
    #[serde(default)]
    pub(crate) deleted: bool,
}

/// Reads all files of the table.
pub(crate) fn read_table(root: &Path) -> Result<Vec<Case>> {
    let directory = root.join("table");
    let mut paths: Vec<_> = fs::read_dir(&directory)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.sort();
    let mut cases = Vec::new();
    for path in paths {
        let file = path.file_stem().unwrap_or_default().to_string_lossy();
        let text = fs::read_to_string(&path)?;
        let read: Vec<Case> = serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
        cases.extend(read.into_iter().map(|case| Case {
            file: file.to_string(),
            ..case
        }));
    }
    ensure!(!cases.is_empty(), "{}: no cases", directory.display());
    for case in &cases {
        ensure!(!case.source.trim().is_empty(), "{}: no source", case.case);
    }
    Ok(cases)
}

/// Returns the Deployment of one of many functions.
pub(crate) fn numbered_function(number: u32) -> Value {
    let name = format!("other-{number}");
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": {"faas_function": name}},
        "spec": {
            "selector": {"matchLabels": {"faas_function": name}},
            "template": {
                "metadata": {"labels": {"faas_function": name}},
                "spec": {"containers": [{"name": name, "image": "i"}]},
            },
        },
    })
}

impl ExpectedAnswer {
    /// Fails with the first difference between the answer and the expected one.
    pub(crate) fn compare(&self, answer: &Answer) -> Result<()> {
        ensure!(answer.status == self.status, "status: not {}", self.status);
        match self.body {
            Some(EmptyOrPlainText::Empty) => ensure!(answer.body.is_empty(), "body: not empty"),
            Some(EmptyOrPlainText::Text) => {
                ensure!(!answer.body.trim().is_empty(), "body: empty");
                ensure!(
                    answer.content_type.starts_with("text/plain"),
                    "content type: not text/plain"
                );
            }
            None => {}
        }
        let lower_case = answer.body.to_lowercase();
        for text in &self.mentions {
            ensure!(
                lower_case.contains(&text.to_lowercase()),
                "body: does not mention {text:?}"
            );
        }
        if let Some(pattern) = &self.json {
            ensure!(
                answer.content_type == "application/json",
                "content type: not JSON"
            );
            let body: Value = serde_json::from_str(&answer.body).context("body")?;
            matching::compare(pattern, &body, "body")?;
        }
        Ok(())
    }
}

impl Effect {
    /// Fails if an object, or its absence, is not the expected effect.
    pub(crate) fn compare(&self, object: Option<&Value>) -> Result<()> {
        match (object, &self.like) {
            (None, None) if self.absent || self.deleted => Ok(()),
            (None, _) => bail!("does not exist"),
            (Some(object), None) if self.deleted => {
                let deletion = &object["metadata"]["deletionTimestamp"];
                ensure!(!deletion.is_null(), "is not deleted");
                Ok(())
            }
            (Some(_), None) => bail!("exists"),
            (Some(object), Some(pattern)) => matching::compare(pattern, object, ""),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_case_of_a_file_has_a_name_of_its_own() {
        let cases = read_table(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
        let mut names = BTreeSet::new();
        for case in &cases {
            assert!(
                names.insert((&case.file, &case.case)),
                "{}: {}",
                case.file,
                case.case
            );
        }
    }
}
