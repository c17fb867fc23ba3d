//! Reads `context.git` of a JSON request: a repository, a branch, tag or commit, and a folder.

use serde_json::{Map, Value};

use super::error::escape_and_shorten_key;
use super::fields::ConfigFields;
use crate::buildkit::GitContextSource;
use crate::sources::WebUrl;

/// The keys of `context.git`.
const GIT_CONTEXT_KEYS: [&str; 3] = ["repository", "ref", "subdir"];

/// The length of the longest ref or subdir, in bytes.
const MAX_REF_OR_SUBDIR_BYTES: usize = 255;

/// A reference to a context in a git repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitContext {
    /// The URL of the repository.
    pub repository: WebUrl,
    /// The repository and the part of it that is the context, for BuildKit.
    pub source: GitContextSource,
}

impl std::fmt::Display for GitContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.source.url)?;
        match (&self.source.reference, &self.source.subdir) {
            (None, None) => Ok(()),
            (reference, None) => write!(f, "#{}", reference.as_deref().unwrap_or_default()),
            (reference, Some(subdir)) => write!(f, "#{}:{subdir}", reference.as_deref().unwrap_or_default()),
        }
    }
}

/// Reads the value of `context.git`.
pub(super) fn read_git(fields: &mut ConfigFields, value: &Value) -> Option<GitContext> {
    let Value::Object(git) = value else {
        fields.record_wrong_key(
            "context.git",
            "should be an object like {\"repository\": \"https://…/app.git\", \"ref\": \"main\", \"subdir\": \"fn\"}",
        );
        return None;
    };
    for key in git.keys().filter(|key| !GIT_CONTEXT_KEYS.contains(&key.as_str())) {
        fields.record_wrong_key(
            format_args!("context.git.{}", escape_and_shorten_key(key)),
            format_args!(
                "is unknown; context.git should have {}",
                GIT_CONTEXT_KEYS.join(", ")
            ),
        );
    }
    let repository = read_repository(fields, git);
    let reference = read_ref_or_subdir(
        fields,
        git,
        "ref",
        is_acceptable_ref,
        "should be a branch, a tag or a full commit hash",
    );
    let subdir = read_ref_or_subdir(
        fields,
        git,
        "subdir",
        is_subdir,
        "should be a folder in the repository, like functions/hello, of letters, digits and ._+@- without '.', '..' and .git",
    );
    let repository = repository?;
    Some(GitContext {
        source: GitContextSource {
            url: repository.to_string(),
            reference: reference.ok()?,
            subdir: subdir.ok()?,
        },
        repository,
    })
}

fn read_repository(fields: &mut ConfigFields, git: &Map<String, Value>) -> Option<WebUrl> {
    let text = git.get("repository").and_then(Value::as_str).unwrap_or_default();
    let problem = match WebUrl::parse(text) {
        // BuildKit takes another URL for a file.
        Ok(url) if url.ends_with_git_and_needs_no_decoding() => return Some(url),
        Ok(_) => {
            "should end with .git, like https://example.com/team/app.git, and have neither a query nor percent-encoded characters"
                .to_owned()
        }
        Err(problem) => problem.to_string(),
    };
    fields.record_wrong_key("context.git.repository", problem);
    None
}

/// Reads an optional part, and records one that `is_valid` rejects. `Err` stands for such a part.
fn read_ref_or_subdir(
    fields: &mut ConfigFields,
    git: &Map<String, Value>,
    key: &str,
    is_valid: fn(&str) -> bool,
    problem: &str,
) -> Result<Option<String>, ()> {
    match git.get(key) {
        None => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) if text.len() <= MAX_REF_OR_SUBDIR_BYTES && is_valid(text) => {
            Ok(Some(text.clone()))
        }
        Some(_) => {
            fields.record_wrong_key(format_args!("context.git.{key}"), problem);
            Err(())
        }
    }
}

/// Returns whether a text is a ref that git accepts and that is no option, revision or refspec: `git help
/// check-ref-format`, without the characters that no usual name has.
fn is_acceptable_ref(text: &str) -> bool {
    let is_component = |part: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._+@-".contains(&byte);
        part.bytes().all(allowed)
            && part.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
            && !part.ends_with('.')
            && !part.ends_with(".lock")
            && !part.contains("..")
    };
    text.split('/').all(is_component)
}

fn is_subdir(text: &str) -> bool {
    let is_component = |part: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._+@-".contains(&byte);
        !part.is_empty()
            && part.bytes().all(allowed)
            && !matches!(part, "." | "..")
            && !part.eq_ignore_ascii_case(".git")
    };
    text.split('/').all(is_component)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_ref_is_an_option_a_revision_or_a_refspec() {
        for text in [
            "main",
            "v1.0.0+build",
            "release/2026-11",
            "refs/heads/main",
            "refs/pull/7/head",
            "_x",
            "user@feature",
            "0123456789012345678901234567890123456789",
        ] {
            assert!(is_acceptable_ref(text), "{text}");
        }
        for text in [
            "-x",
            "--upload-pack=id",
            "main:refs/heads/x",
            "+main",
            "main^{}",
            "main~1",
            "HEAD@{1}",
            "a..b",
            "a/../b",
            "/main",
            "main/",
            "a//b",
            ".hidden",
            "a/.b",
            "a/-b",
            "x.lock",
            "x.",
            "a b",
            "a\nb",
            "a#b",
            "a?b",
            "a&b",
            "a%2e",
            "a\\b",
            "a*",
            "é",
        ] {
            assert!(!is_acceptable_ref(text), "{text:?}");
        }
    }

    #[test]
    fn no_subdir_leads_out_of_the_repository_or_into_its_administration() {
        for text in ["fn", "functions/hello", "a.b/c-d/_e", ".github"] {
            assert!(is_subdir(text), "{text}");
        }
        for text in [
            "..", "../x", "a/../b", ".", "./a", "/a", "a/", "a//b", ".git", "a/.GIT/b", "a b", "a:b", "a\0b",
            "a\\b", "a%2f", "a&b", "a#b", "é",
        ] {
            assert!(!is_subdir(text), "{text:?}");
        }
    }
}
