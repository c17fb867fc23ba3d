//! Finds secrets in what a build prints: their lines and their base64, in parts and backwards too.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use serde_json::Value;

/// The number of characters in a row that count as a leak of a longer line or encoding.
const LEAK_PART_CHARACTERS: usize = 8;

/// The length of the shortest line that counts as a secret: builder-fn does not mask shorter ones.
const MIN_SECRET_LINE_BYTES: usize = 4;

/// A form in which a secret was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlainOrBase64Form {
    /// A line of the secret, or a part of one.
    Plain,
    /// A part of the secret's base64 that both alphabets have.
    Base64,
    /// A part of the secret's base64 with a character that only the URL-safe alphabet has.
    UrlSafeBase64,
}

/// A detector of secrets in texts: of their lines and of their base64, in parts too, forwards and backwards.
///
/// A part of [`LEAK_PART_CHARACTERS`] characters is enough. So base64 is found however it is wrapped at that length or
/// more, in either alphabet, whatever was encoded before the secret, and from every line of a secret.
#[derive(Debug)]
pub(crate) struct LeakDetector {
    parts: Vec<(PlainOrBase64Form, String)>,
}

impl LeakDetector {
    /// Creates a detector of these secrets: of their lines of at least 4 bytes, and of their base64.
    pub(crate) fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let mut parts = Vec::new();
        for value in secrets {
            for line in value.lines().map(str::trim) {
                if line.len() >= MIN_SECRET_LINE_BYTES {
                    parts.extend(
                        all_substrings_of_leak_length(line).map(|part| (PlainOrBase64Form::Plain, part)),
                    );
                }
            }
            for skipped in 0..3 {
                let rest = value.trim_end().as_bytes().get(skipped..).unwrap_or_default();
                // The base64 of whole groups of three bytes does not depend on what follows them.
                let whole = &rest[..rest.len() / 3 * 3];
                let (standard, url_safe) = (STANDARD.encode(whole), URL_SAFE.encode(whole));
                if standard.len() < LEAK_PART_CHARACTERS {
                    continue;
                }
                parts.extend(
                    all_substrings_of_leak_length(&standard).map(|part| (PlainOrBase64Form::Base64, part)),
                );
                let only_url_safe =
                    all_substrings_of_leak_length(&url_safe).filter(|part| part.contains(['-', '_']));
                parts.extend(only_url_safe.map(|part| (PlainOrBase64Form::UrlSafeBase64, part)));
            }
        }
        Self { parts }
    }

    /// Returns a form in which a text has a secret, and what was found; `None` if it has none. The strings of a text
    /// that is JSON, or has one JSON value on each line, are read too.
    pub(crate) fn find_leaked_part(&self, text: &str) -> Option<(PlainOrBase64Form, &str)> {
        self.leaked_parts_in(text).next()
    }

    /// Returns whether a text has a secret in this form.
    pub(crate) fn finds_form(&self, text: &str, form: PlainOrBase64Form) -> bool {
        self.leaked_parts_in(text).any(|(found, _)| found == form)
    }

    fn leaked_parts_in(&self, text: &str) -> impl Iterator<Item = (PlainOrBase64Form, &str)> {
        let mut texts = vec![text.to_owned()];
        for line in text.lines().chain([text]) {
            if let Ok(value) = serde_json::from_str(line) {
                collect_strings_and_field_names(&value, &mut texts);
            }
        }
        // A step can print each line backwards, so that no mask applies.
        let backwards: Vec<String> = texts
            .iter()
            .flat_map(|text| text.lines())
            .map(|line| line.chars().rev().collect())
            .collect();
        texts.extend(backwards);
        let parts = self.parts.iter().map(|(form, part)| (*form, part.as_str()));
        parts.filter(move |(_, part)| texts.iter().any(|text| text.contains(part)))
    }
}

/// Returns all parts of [`LEAK_PART_CHARACTERS`] characters of a text; the text itself if it is shorter.
fn all_substrings_of_leak_length(text: &str) -> impl Iterator<Item = String> {
    let characters: Vec<char> = text.chars().collect();
    let length = characters.len().min(LEAK_PART_CHARACTERS);
    (0..=characters.len() - length).map(move |at| characters[at..at + length].iter().collect())
}

/// Adds all strings of a JSON value, and the names of its objects' fields, to `strings`.
fn collect_strings_and_field_names(value: &Value, strings: &mut Vec<String>) {
    match value {
        Value::String(text) => strings.push(text.clone()),
        Value::Array(items) => items
            .iter()
            .for_each(|item| collect_strings_and_field_names(item, strings)),
        Value::Object(fields) => fields.iter().for_each(|(name, item)| {
            strings.push(name.clone());
            collect_strings_and_field_names(item, strings);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of several lines, one of them with characters whose base64 differs between the alphabets.
    const SECRET_WITH_SEVERAL_LINES: &str = "first = t0ken\nsecond?>>?~~?>>? line\nthe last \"quoted\" one\n";

    fn detector_of_two_secrets() -> LeakDetector {
        LeakDetector::new([SECRET_WITH_SEVERAL_LINES, "s3cr3t\n"])
    }

    /// Wraps an ASCII text as `base64 -w` does, each line as a line of a build's log.
    fn log_json_wrapped_at(text: &str, length: usize) -> String {
        let lines = text.as_bytes().chunks(length);
        let lines: Vec<_> = lines
            .map(|line| format!("o: {}", String::from_utf8_lossy(line)))
            .collect();
        serde_json::json!({ "status": "success", "log": lines }).to_string()
    }

    #[test]
    fn every_line_of_a_secret_is_found_also_in_json_and_backwards() {
        for line in SECRET_WITH_SEVERAL_LINES.lines().chain(["s3cr3t"]) {
            let json = serde_json::json!({ "log": [format!("o: with {line} in it")] }).to_string();
            let backwards: String = line.chars().rev().collect();
            for text in [
                line.to_owned(),
                json.clone(),
                format!("{json}\n{{}}\n"),
                backwards,
            ] {
                let found = detector_of_two_secrets()
                    .find_leaked_part(&text)
                    .map(|(form, _)| form);
                assert_eq!(found, Some(PlainOrBase64Form::Plain), "{text}");
            }
        }
    }

    #[test]
    fn base64_is_found_however_it_is_wrapped_and_in_both_alphabets() {
        for before in ["", "a", "ab", "user:"] {
            let whole = format!("{before}{SECRET_WITH_SEVERAL_LINES}");
            let (standard, url_safe) = (STANDARD.encode(&whole), URL_SAFE.encode(&whole));
            for length in [8, 9, 12, 64, 76, 1000] {
                let found = detector_of_two_secrets()
                    .finds_form(&log_json_wrapped_at(&standard, length), PlainOrBase64Form::Base64);
                assert!(found, "{before:?} wrapped at {length}");
            }
            let found = detector_of_two_secrets().finds_form(
                &log_json_wrapped_at(&url_safe, 1000),
                PlainOrBase64Form::UrlSafeBase64,
            );
            assert!(found, "{before:?}, URL-safe");
        }
    }

    #[test]
    fn the_base64_of_each_line_alone_is_found() {
        for line in SECRET_WITH_SEVERAL_LINES.lines() {
            let encoded = STANDARD.encode(line);
            assert!(
                detector_of_two_secrets().find_leaked_part(&encoded).is_some(),
                "{line}"
            );
        }
        assert!(
            detector_of_two_secrets()
                .find_leaked_part(&STANDARD.encode("s3cr3t\n"))
                .is_some()
        );
    }

    #[test]
    fn a_masked_log_has_no_leak() {
        for text in [
            "{\"status\":\"success\",\"log\":[\"o: ***\",\"o: with *** in it\"]}",
            "RUN --mount=type=secret,id=pip_token cat /run/secrets/pip_token | base64",
            "",
        ] {
            assert_eq!(detector_of_two_secrets().find_leaked_part(text), None, "{text}");
        }
    }
}
