//! Checks of hints for any texts of programs, Dockerfiles and ignore files.

use builder_fn::hint::{
    ContextFiles, FailedStepNameAndOutput, Failure, Hint, explain, explain_deployment,
    registry_refusing_credentials,
};
use serde_json::json;

/// The size of a hint in JSON that a terminal record has room for, in bytes.
const HINT_MAX_BYTES: usize = 10 << 10;

/// A context that has a file at every path of even length. The ignore file and all others have fuzzed content.
struct FuzzedContextFiles<'b> {
    dockerfile: &'b [u8],
    ignore_file: &'b [u8],
}

impl ContextFiles for FuzzedContextFiles<'_> {
    fn has(&self, path: &str) -> bool {
        path.len().is_multiple_of(2)
    }

    fn find_only_name_in_other_case(&self, _: &str, name: &str) -> Option<String> {
        Some(name.to_uppercase())
    }

    fn read_beginning(&self, path: &str, limit: usize) -> Option<Vec<u8>> {
        let content = match path {
            ".dockerignore" => self.ignore_file,
            _ => self.dockerfile,
        };
        Some(content.iter().copied().take(limit).collect())
    }
}

/// Explains the failure in the bytes, and checks that its hint is short and has no control characters.
///
/// The first byte is the line that BuildKit names. The parts after it, which NUL bytes divide, are the error, the step,
/// its output, the Dockerfile and the ignore file.
pub(crate) fn check_hint(line_and_parts: &[u8]) {
    let Some((line, bytes)) = line_and_parts.split_first() else {
        return;
    };
    let mut parts = bytes.split(|byte| *byte == 0);
    let mut text = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let (error, step, output) = (text(), text(), text());
    let files = FuzzedContextFiles {
        dockerfile: parts.next().unwrap_or_default(),
        ignore_file: parts.next().unwrap_or_default(),
    };
    let failure = Failure {
        error: &error,
        step: Some(FailedStepNameAndOutput {
            name: &step,
            output: &output,
        }),
        dockerfile_line: Some(u32::from(*line)).filter(|line| *line > 0),
        dockerfile: "Dockerfile",
        files: &files,
        login: None,
        no_network: None,
    };
    let deployment = json!({"reasons": [error], "log": [output]});
    let hints = [explain(&failure), explain_deployment(&deployment)];
    hints.into_iter().flatten().for_each(check_hint_size_and_texts);
    registry_refusing_credentials(&error);
}

/// Checks that a hint is small, has a file if it has a line, and that its texts have no control characters.
fn check_hint_size_and_texts(mut hint: Hint) {
    let json = json!(hint).to_string();
    assert!(json.len() <= HINT_MAX_BYTES, "{json}");
    assert!(!hint.cause.is_empty() && !hint.next.is_empty(), "{json}");
    assert!(hint.line.is_none() || hint.file.is_some(), "{json}");
    hint.map_texts(|text| {
        let is_hidden =
            |character: char| character.is_control() || "\u{202e}\u{2066}\u{200b}".contains(character);
        assert!(!text.contains(is_hidden), "{text:?}");
    });
}
