//! Hides in texts about a build what was given to it in confidence.

use std::collections::BTreeMap;

use crate::report::{Mask, SHORTEST};

/// Hides the values of secrets and of build arguments.
#[derive(Debug, Default)]
pub struct Cover {
    secrets: Mask,
    arguments: Mask,
    /// Values that are too short to be looked for within words.
    words: Vec<String>,
}

/// Names are no longer than this, in bytes.
const NAME_MAX: usize = 200;

const HIDDEN: &str = "***";

impl Cover {
    /// One for a build with these secrets and arguments.
    pub fn new(secrets: Mask, arguments: &BTreeMap<String, String>) -> Self {
        let words = arguments.values().map(|value| value.trim());
        Self {
            secrets,
            arguments: Mask::of(arguments.values().map(String::as_bytes)),
            words: words
                .filter(|word| (1..SHORTEST).contains(&word.len()))
                .map(str::to_owned)
                .collect(),
        }
    }

    /// The text, with what is hidden in it.
    pub fn text(&self, text: &str) -> String {
        let text = self.secrets.text(text);
        let text = self.arguments.text(&text);
        self.words
            .iter()
            .fold(text.into_owned(), |text, word| hide_word(&text, word))
    }

    /// The name of a step: one line, not a long one. What is in its brackets, which says where the step is in the Dockerfile,
    /// is not looked through for short values.
    pub fn name(&self, name: &str) -> String {
        let first = name.lines().next().unwrap_or_default();
        let begins = match first.starts_with('[') {
            true => first.find("] ").map_or(0, |end| end + 2),
            false => 0,
        };
        let (place, rest) = first.split_at(begins);
        let hidden = self.arguments.text(&self.secrets.text(place)).into_owned();
        let mut name = hidden + &self.text(rest);
        if name.len() > NAME_MAX {
            name.truncate(name.floor_char_boundary(NAME_MAX));
            name.push('…');
        }
        name
    }
}

/// Replaces `word` where it is no part of a longer one.
fn hide_word(text: &str, word: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut from = 0;
    for (at, _) in text.match_indices(word) {
        let (before, after) = (&text[..at], &text[at + word.len()..]);
        let alone = !before.ends_with(char::is_alphanumeric) && !after.starts_with(char::is_alphanumeric);
        if alone {
            shown.push_str(&text[from..at]);
            shown.push_str(HIDDEN);
            from = at + word.len();
        }
    }
    shown.push_str(&text[from..]);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cover() -> Cover {
        let secrets: [&[u8]; 1] = [b"hunter2"];
        let arguments = [
            ("TOKEN", "s3cr3t-value"),
            ("JOBS", "4"),
            ("BASE", "registry:5000/rust:1"),
            ("EMPTY", ""),
            ("LINES", "one line\nanother"),
        ];
        let arguments = arguments.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Cover::new(Mask::of(secrets.into_iter()), &arguments.into())
    }

    #[test]
    fn names_of_steps_say_what_is_done_and_not_with_what() {
        let cover = cover();
        for (name, told) in [
            (
                "[build 4/14] RUN make -j4 -l 4",
                "[build 4/14] RUN make -j4 -l ***",
            ),
            ("[1/2] RUN curl -H s3cr3t-value x", "[1/2] RUN curl -H *** x"),
            ("[1/2] RUN echo hunter2", "[1/2] RUN echo ***"),
            ("[1/2] FROM registry:5000/rust:1", "[1/2] FROM ***"),
            (
                "[internal] load build definition from Dockerfile",
                "[internal] load build definition from Dockerfile",
            ),
            ("exporting to image", "exporting to image"),
            ("[2/2] RUN <<EOF\necho content\nEOF", "[2/2] RUN <<EOF"),
            ("[2/2] RUN echo one line", "[2/2] RUN echo ***"),
            ("[s3cr3t-value 1/2] RUN x", "[*** 1/2] RUN x"),
            ("", ""),
        ] {
            assert_eq!(cover.name(name), told);
        }
    }

    #[test]
    fn a_name_is_not_long() {
        let name = cover().name(&format!("[1/2] RUN {}", "ü".repeat(500)));
        assert!(name.len() <= NAME_MAX + '…'.len_utf8(), "{name}");
    }

    #[test]
    fn a_secret_that_begins_before_the_end_of_a_name_is_hidden_first() {
        let filler = "x".repeat(NAME_MAX - 13);
        let name = cover().name(&format!("[1/2] RUN {filler} hunter2"));
        assert!(!name.contains("hunt"), "{name}");
    }

    #[test]
    fn without_secrets_and_arguments_nothing_is_hidden() {
        assert_eq!(Cover::default().text("hunter2 4"), "hunter2 4");
    }
}
