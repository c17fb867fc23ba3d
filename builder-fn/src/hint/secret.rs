//! Build secrets that a step uses and the build does not have.

use super::evidence::Evidence;
use super::{Hint, HintKind, text};

/// The folder in which BuildKit mounts secrets.
const SECRETS_FOLDER: &str = "/run/secrets/";

/// The words with which programs say that a file is not there.
const MISSING_FILE_WORDS: &[&str] = &[
    "No such file",
    "cannot open",
    "can't open",
    "cannot access",
    "ENOENT",
    "not found",
    "does not exist",
    "nonexistent",
];

/// Explains a secret that the build does not have.
pub(super) fn explain_missing_secret(evidence: &Evidence<'_>) -> Option<Hint> {
    if let Some(name) = evidence
        .error
        .strip_prefix("secret ")
        .and_then(|rest| rest.strip_suffix(": not found"))
    {
        return Some(missing_build_secret_hint(name));
    }
    evidence.process_failure_reason()?;
    let line = evidence.lines().find(|line| {
        line.contains(SECRETS_FOLDER) && MISSING_FILE_WORDS.iter().any(|words| line.contains(words))
    })?;
    let (_, rest) = line.split_once(SECRETS_FOLDER)?;
    let end =
        rest.find(|character: char| !(character.is_alphanumeric() || matches!(character, '-' | '_' | '.')));
    let name = rest.get(..end.unwrap_or(rest.len()))?.trim_end_matches('.');
    // A program may look for a secret that the step does not mount at all.
    let instruction = evidence.instruction()?;
    let is_mounted = instruction.text.split_whitespace().any(|word| {
        word.strip_prefix("--mount=").is_some_and(|mount| {
            let mut options = mount.split(',');
            options.any(|option| option == "type=secret")
                && mount
                    .split(',')
                    .any(|option| option.strip_prefix("id=") == Some(name))
        })
    });
    is_mounted.then(|| missing_build_secret_hint(name))
}

/// Returns the hint for a secret that the build does not have.
fn missing_build_secret_hint(name: &str) -> Hint {
    let name = text::one_line_cut_with_ellipsis(name, super::MAX_NAME_OR_LINE_BYTES);
    Hint::new(
        HintKind::SecretMissing,
        format!("the step uses the build secret {name}, which the build does not have"),
        format!(
            "give the secret {} with the build: build_secrets in the stack file, or among the sealed secrets of the request",
            text::name_if_safe_or(&name, "that the cause names")
        ),
    )
}
