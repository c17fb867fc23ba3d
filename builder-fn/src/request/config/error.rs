//! Errors in a build configuration.

use std::fmt;

/// The most wrong keys that an error lists. Further ones are counted, so that a configuration of 1 MiB cannot make an
/// answer of many.
const MAX_WRONG_KEYS_LISTED: usize = 50;

/// The length of the longest part of a caller's key that an error shows, in characters.
const MAX_KEY_CHARS_SHOWN: usize = 100;

/// The reason why a build configuration is rejected, for the caller.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct ConfigError {
    /// The place of the configuration, as texts name it.
    pub place: &'static str,
    /// The problem of the configuration.
    pub problem: ConfigProblem,
}

/// The problem of a build configuration. The texts follow the name of its place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigProblem {
    /// The configuration is not JSON.
    #[error("not JSON: {reason}")]
    Syntax {
        /// The parser's message, which is a position and never content.
        reason: String,
    },
    /// The configuration begins with a byte order mark, which JSON must not have (RFC 8259, section 8.1).
    #[error("begins with a byte order mark ({encoding}); should be UTF-8 without one")]
    ByteOrderMark {
        /// The encoding that the byte order mark belongs to.
        encoding: &'static str,
    },
    /// The configuration is JSON, but not an object.
    #[error("should be a JSON object")]
    NotAnObject,
    /// Keys of the configuration are missing or wrong.
    #[error(transparent)]
    Keys(KeyErrors),
}

/// The missing and wrong keys of a configuration: the first [`MAX_WRONG_KEYS_LISTED`], each with what would be right,
/// and the number of the others.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct KeyErrors {
    listed: Vec<String>,
    /// The number of wrong keys that are not listed.
    more: usize,
}

impl KeyErrors {
    /// Adds the error of a key. `problem` follows the key, as in `timeout` and `should be a duration`.
    pub(super) fn push(&mut self, key: impl fmt::Display, problem: impl fmt::Display) {
        if self.listed.len() < MAX_WRONG_KEYS_LISTED {
            self.listed.push(format!("{key} {problem}"));
        } else {
            self.more += 1;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }
}

impl std::error::Error for KeyErrors {}

impl fmt::Display for KeyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.listed.join("; "))?;
        match self.more {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// Returns the encoding of the byte order mark that `content` begins with.
pub(super) fn byte_order_mark_encoding(content: &[u8]) -> Option<&'static str> {
    // The mark of UTF-32 begins like that of UTF-16.
    const BYTE_ORDER_MARKS: [(&[u8], &str); 5] = [
        (b"\xef\xbb\xbf", "UTF-8"),
        (b"\xff\xfe\0\0", "UTF-32"),
        (b"\0\0\xfe\xff", "UTF-32"),
        (b"\xff\xfe", "UTF-16"),
        (b"\xfe\xff", "UTF-16"),
    ];
    let found = BYTE_ORDER_MARKS
        .iter()
        .find(|(mark, _)| content.starts_with(mark));
    found.map(|(_, encoding)| *encoding)
}

/// Escapes and shortens a caller's key, so that it can be shown.
pub(super) fn escape_and_shorten_key(key: &str) -> String {
    match key.char_indices().nth(MAX_KEY_CHARS_SHOWN) {
        Some((end, _)) => format!("{}…", key[..end].escape_debug()),
        None => key.escape_debug().to_string(),
    }
}
