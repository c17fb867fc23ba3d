//! Lists of patterns in the syntax of `.dockerignore`, with the rules of `github.com/moby/patternmatcher`.
//!
//! BuildKit leaves the matching to its client, and every client uses that Go module with its peculiarities. A context
//! must not have other files here than with `docker build`, and no crate has exactly these rules, so they are written
//! out. In short: `*`, `?` and `[a-z]` stop at `/`, and `**` does not; a pattern that matches a folder matches
//! everything in it; the last pattern that matches decides; `!` makes an exception.

use regex::{Regex, RegexBuilder};

use super::effort::MatchingEffort;
use super::{PatternOrCancellationError, glob, go_match};

/// The limit on the memory of one compiled pattern, in bytes: more than any real pattern needs.
const COMPILED_PATTERN_MAX_BYTES: usize = 1 << 20;

/// The limit on the number of patterns in one list. Each is matched against each entry.
const PATTERN_COUNT_MAX: usize = 10_000;

/// The limit on the total length of the regular expressions that patterns of one list become, in bytes. Compiled and
/// with the state of matching, each byte takes from 200 to 600 bytes of memory: this is about 12 MB, and enough for a
/// thousand ordinary patterns.
const EXPRESSIONS_TOTAL_MAX_BYTES: usize = 40 << 10;

/// The bytes that each regular expression takes of [`EXPRESSIONS_TOTAL_MAX_BYTES`], in addition to its length.
const EXPRESSION_OVERHEAD_BYTES: usize = 16;

/// The effort of trying a pattern once, in bytes. A regular expression takes the length of the path in addition.
const PATTERN_EFFORT_BYTES: usize = 16;

/// A list of include or exclude patterns, of which the last that matches decides.
#[derive(Debug)]
pub(super) struct Patterns(Vec<Pattern>);

/// A parsed pattern of a list, as `.dockerignore` has them.
#[derive(Debug)]
pub(super) struct Pattern {
    text: String,
    is_exception: bool,
    rule: MatchRule,
}

/// The way in which a pattern is matched with a path.
#[derive(Debug)]
enum MatchRule {
    Exact,
    Prefix(String),
    Suffix(String),
    Regex(Regex),
    /// The rule of a malformed pattern, which fails once it is tried.
    Malformed(&'static str),
}

/// A flag for each pattern of a list: whether it was tried for a folder and matches it. The entries in the folder
/// inherit the flags. Empty for the root.
pub(super) type MatchedOfTriedPatterns = Vec<bool>;

impl Patterns {
    /// Parses a list of patterns, without the blank ones.
    ///
    /// # Errors
    /// Fails if a pattern is malformed, or there are too many or too long ones. Some malformed patterns are rejected
    /// only when they are tried, as in the original.
    pub(super) fn parse_deferring_some_errors_until_tried(
        patterns: &[String],
    ) -> Result<Self, PatternOrCancellationError> {
        if let Some(one_more) = patterns.get(PATTERN_COUNT_MAX) {
            return Err(PatternOrCancellationError {
                pattern: one_more.clone(),
                reason: "there are more than 10000 patterns",
            });
        }
        let present = patterns
            .iter()
            .map(|pattern| pattern.trim())
            .filter(|pattern| !pattern.is_empty());
        let mut length = 0;
        let parsed = present.map(|text| {
            let pattern = Pattern::parse_deferring_some_errors_until_tried(text)?;
            length += pattern.rule.bytes_counted_against_expressions_limit();
            match length <= EXPRESSIONS_TOTAL_MAX_BYTES {
                true => Ok(pattern),
                false => Err(PatternOrCancellationError {
                    pattern: text.chars().take(100).collect(),
                    reason: "the patterns with wildcards up to this one are too many or too long",
                }),
            }
        });
        parsed.collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Pattern> {
        self.0.iter()
    }

    /// Returns whether any pattern of the list is an exception (`!`).
    pub(super) fn has_exceptions(&self) -> bool {
        self.0.iter().any(|pattern| pattern.is_exception)
    }

    /// Returns whether the list of patterns matches `path`, and a flag for each pattern. `folder_matches` has the
    /// flags for the path's folder.
    ///
    /// # Errors
    /// Fails if a malformed pattern has to be tried, or too much was tried before.
    pub(super) fn matches(
        &self,
        path: &str,
        folder_matches: &[bool],
        effort: &mut MatchingEffort<'_>,
    ) -> Result<(bool, MatchedOfTriedPatterns), PatternOrCancellationError> {
        let mut matched = false;
        let mut each = vec![false; self.0.len()];
        for (at, pattern) in self.0.iter().enumerate() {
            let inherited = folder_matches.get(at).copied().unwrap_or(false);
            // A pattern that could not change the result is not tried, and so does not count for entries below either.
            if !inherited && pattern.is_exception != matched {
                continue;
            }
            each[at] = inherited
                || pattern
                    .matches(path, effort)
                    .map_err(|reason| pattern.error(reason))?;
            if each[at] {
                matched = !pattern.is_exception;
            }
        }
        Ok((matched, each))
    }
}

impl Pattern {
    /// Parses one pattern; fails if Go's `filepath.Match` rejects it. A pattern that fails only once it is tried is
    /// kept.
    pub(super) fn parse_deferring_some_errors_until_tried(
        pattern_text: &str,
    ) -> Result<Self, PatternOrCancellationError> {
        let reject = |reason| PatternOrCancellationError {
            pattern: pattern_text.to_owned(),
            reason,
        };
        let cleaned = glob::clean_path(pattern_text);
        let (is_exception, text) = match cleaned.strip_prefix('!') {
            Some("") => return Err(reject("a pattern has to follow '!'")),
            Some(rest) => (true, rest.to_owned()),
            None => (false, cleaned),
        };
        if !go_match::go_match_accepts(&text) {
            return Err(reject("a '[' is not closed, or it ends with a '\\'"));
        }
        let rule = MatchRule::compile(&text).unwrap_or_else(MatchRule::Malformed);
        Ok(Self {
            text,
            is_exception,
            rule,
        })
    }

    /// Returns whether the pattern is an exception, which begins with `!`.
    pub(super) fn is_exception(&self) -> bool {
        self.is_exception
    }

    /// Returns the pattern without `/**`, and then without `/*`, at its end.
    pub(super) fn without_trailing_glob(&self) -> &str {
        let text = self.text.strip_suffix("/**").unwrap_or(&self.text);
        text.strip_suffix("/*").unwrap_or(text)
    }

    /// Returns the reason why the pattern fails once it is tried, or that its meaning differs from its appearance.
    pub(super) fn problem(&self) -> Option<&'static str> {
        match &self.rule {
            MatchRule::Malformed(reason) => Some(reason),
            _ if ends_with_backslash(&self.text) => Some("it ends with a '\\'"),
            _ => None,
        }
    }

    /// Returns the error that names the pattern, cut after 100 characters.
    fn error(&self, reason: &'static str) -> PatternOrCancellationError {
        PatternOrCancellationError {
            pattern: self.text.chars().take(100).collect(),
            reason,
        }
    }

    /// Returns whether the pattern, without the `!` of an exception, matches the whole of `path`.
    pub(super) fn matches(&self, path: &str, effort: &mut MatchingEffort<'_>) -> Result<bool, &'static str> {
        effort.spend_within_limit(PATTERN_EFFORT_BYTES)?;
        Ok(match &self.rule {
            MatchRule::Malformed(reason) => return Err(reason),
            MatchRule::Exact => path == self.text,
            MatchRule::Prefix(prefix) => path.starts_with(prefix),
            // `**/a` also matches `a`.
            MatchRule::Suffix(suffix) => path.ends_with(suffix) || suffix.strip_prefix('/') == Some(path),
            MatchRule::Regex(regex) => {
                effort.spend_within_limit(path.len())?;
                regex.is_match(path)
            }
        })
    }
}

impl MatchRule {
    /// Returns the bytes that the rule takes of [`EXPRESSIONS_TOTAL_MAX_BYTES`].
    fn bytes_counted_against_expressions_limit(&self) -> usize {
        match self {
            Self::Regex(regex) => EXPRESSION_OVERHEAD_BYTES + regex.as_str().len(),
            _ => 0,
        }
    }

    /// Translates a pattern to its rule: a comparison of text where that is enough, or else a regular expression.
    fn compile(pattern: &str) -> Result<Self, &'static str> {
        #[derive(PartialEq)]
        enum Shape {
            Exact,
            Prefix,
            Suffix,
            Regex,
        }
        let mut shape = Shape::Exact;
        let mut expression = GoRegex::new();
        let mut rest = pattern.chars().peekable();
        let mut is_first = true;
        while let Some(character) = rest.next() {
            match character {
                '*' if rest.next_if_eq(&'*').is_some() => {
                    rest.next_if_eq(&'/');
                    if rest.peek().is_some() {
                        expression.push("(.*/)?");
                        shape = Shape::Regex;
                    } else if shape == Shape::Exact {
                        shape = Shape::Prefix;
                    } else {
                        expression.push(".*");
                        shape = Shape::Regex;
                    }
                    if is_first {
                        shape = Shape::Suffix;
                    }
                }
                '*' => {
                    expression.push("[^/]*");
                    shape = Shape::Regex;
                }
                '?' => {
                    expression.push("[^/]");
                    shape = Shape::Regex;
                }
                '\\' => {
                    match rest.next() {
                        Some(escaped) => expression.push_go_escape(escaped)?,
                        // The original leaves it there, so that it escapes the end of the expression.
                        None => expression.text.push('\\'),
                    }
                    shape = Shape::Regex;
                }
                '[' | ']' => {
                    expression.push(character.encode_utf8(&mut [0; 4]));
                    shape = Shape::Regex;
                }
                '.' | '+' | '(' | ')' | '|' | '{' | '}' | '$' => expression.push_go_escape(character)?,
                _ => expression.push(character.encode_utf8(&mut [0; 4])),
            }
            is_first = false;
        }
        Ok(match shape {
            Shape::Exact => Self::Exact,
            Shape::Prefix => Self::Prefix(pattern.strip_suffix("**").unwrap_or(pattern).to_owned()),
            Shape::Suffix => Self::Suffix(pattern.strip_prefix("**").unwrap_or(pattern).to_owned()),
            Shape::Regex => Self::Regex(expression.compile()?),
        })
    }
}

/// Returns whether a pattern ends with a `\` that escapes nothing.
fn ends_with_backslash(pattern: &str) -> bool {
    let backslashes = pattern.chars().rev().take_while(|character| *character == '\\');
    backslashes.count() % 2 == 1
}

/// A translation of a regular expression from Go's syntax to that of the `regex` crate.
///
/// In patterns the two differ only inside classes, where `[`, `&`, `~` and a first `]` are literals in Go. The original
/// applies the same substitutions inside classes as outside (so `[*]` has an odd meaning), so classes can be recognised
/// only here, after the substitutions. Not supported: `[[:alpha:]]`, `\\p` and `\\Q`.
struct GoRegex {
    text: String,
    class: ClassState,
}

/// The state of the expression's end: inside or outside of a character class.
enum ClassState {
    Outside,
    /// The expression ends directly after the `[` of a class.
    Opened,
    /// The expression ends directly after the `[^` of a class.
    Negated,
    Inside,
}

impl GoRegex {
    /// Creates an expression that matches only from the start of a text.
    fn new() -> Self {
        Self {
            text: "^".to_owned(),
            class: ClassState::Outside,
        }
    }

    /// Appends a part of a regular expression in Go's syntax.
    fn push(&mut self, go_syntax: &str) {
        for character in go_syntax.chars() {
            let (next, literal) = match (&self.class, character) {
                (ClassState::Outside, '[') => (ClassState::Opened, false),
                (ClassState::Outside, _) => (ClassState::Outside, false),
                (ClassState::Opened, '^') => (ClassState::Negated, false),
                (ClassState::Inside, ']') => (ClassState::Outside, false),
                (_, '[' | ']' | '&' | '~' | '^') => (ClassState::Inside, true),
                _ => (ClassState::Inside, false),
            };
            if literal {
                self.text.push('\\');
            }
            self.text.push(character);
            self.class = next;
        }
    }

    /// Appends an escaped character to a regular expression; after `\`, some letters have a special meaning.
    fn push_go_escape(&mut self, character: char) -> Result<(), &'static str> {
        let inside = !matches!(self.class, ClassState::Outside);
        match character {
            'd' => self.text.push_str("[0-9]"),
            'D' => self.text.push_str("[^0-9]"),
            's' => self.text.push_str("[\\t\\n\\x0c\\r ]"),
            'S' => self.text.push_str("[^\\t\\n\\x0c\\r ]"),
            'w' => self.text.push_str("[0-9A-Za-z_]"),
            'W' => self.text.push_str("[^0-9A-Za-z_]"),
            'b' | 'B' => self.text.push_str(&format!("(?-u:\\{character})")),
            'a' | 'f' | 'n' | 'r' | 't' | 'v' | 'x' | 'A' | 'z' => self.text.extend(['\\', character]),
            _ if character.is_ascii() && !character.is_ascii_alphanumeric() => {
                self.text.push_str(&format!("\\x{{{:x}}}", u32::from(character)));
            }
            _ => return Err("a '\\' is before a character that must not be escaped"),
        }
        if inside {
            self.class = ClassState::Inside;
        }
        Ok(())
    }

    /// Compiles the translated regular expression.
    fn compile(mut self) -> Result<Regex, &'static str> {
        self.text.push('$');
        let compiled = RegexBuilder::new(&self.text)
            .size_limit(COMPILED_PATTERN_MAX_BYTES)
            .build();
        compiled.map_err(|_| "it is not a valid expression, or is too complex")
    }
}
