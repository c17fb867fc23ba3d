//! Lists of patterns as in `.dockerignore`: what `github.com/moby/patternmatcher` makes of them.
//!
//! BuildKit leaves the matching to its client, and every client matches with that Go module, down to its oddities:
//! a context must not have other files here than it has with `docker build`. No crate has exactly these rules, so
//! they are spelled out. In short: `*`, `?` and `[a-z]` stop at `/`, `**` does not, a pattern also matches all that
//! is in a folder it matches, the last pattern that matches decides, `!` makes it an exception.

use regex::{Regex, RegexBuilder};

use super::PatternError;
use super::glob::{self, Glob};

/// Memory for one compiled pattern, in bytes. Nobody writes patterns that need it.
const COMPILED_MAX: usize = 1 << 20;

/// How many there may be. Each is tried with each entry.
const PATTERNS_MAX: usize = 10_000;

/// How long those with wildcards may be together, as regular expressions, in bytes. Compiled, and with what they note while
/// they match, each byte takes from 200 to 600: this is some twelve megabytes, and a thousand patterns as people write them.
const EXPRESSIONS_MAX: usize = 40 << 10;

/// What a pattern with wildcards takes however short it is, in bytes of that.
const EXPRESSION_MIN: usize = 16;

/// Patterns of which later ones overrule earlier ones.
#[derive(Debug)]
pub(super) struct Patterns(Vec<Pattern>);

#[derive(Debug)]
pub(super) struct Pattern {
    text: String,
    is_exception: bool,
    rule: Rule,
}

#[derive(Debug)]
enum Rule {
    Exact,
    Prefix(String),
    Suffix(String),
    Regex(Regex),
}

/// Which patterns match a folder, for what is in it. Empty above the top.
pub(super) type Matched = Vec<bool>;

impl Patterns {
    /// Understands `patterns`; blank ones count for nothing.
    ///
    /// # Errors
    /// When one is malformed (always; the original notices some only when it comes to try them), or too many, or too long.
    pub(super) fn parse(patterns: &[String]) -> Result<Self, PatternError> {
        if let Some(one_more) = patterns.get(PATTERNS_MAX) {
            return Err(PatternError {
                pattern: one_more.clone(),
                reason: "there are more than 10000 of them",
            });
        }
        let meant = patterns
            .iter()
            .map(|pattern| pattern.trim())
            .filter(|pattern| !pattern.is_empty());
        let mut length = 0;
        let parsed = meant.map(|text| {
            let pattern = Pattern::parse(text)?;
            length += pattern.rule.length();
            match length <= EXPRESSIONS_MAX {
                true => Ok(pattern),
                false => Err(PatternError {
                    pattern: text.chars().take(100).collect(),
                    reason: "with those before it, there are too many and too long ones with wildcards",
                }),
            }
        });
        parsed.collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Pattern> {
        self.0.iter()
    }

    /// Whether any of them is an exception.
    pub(super) fn has_exceptions(&self) -> bool {
        self.0.iter().any(|pattern| pattern.is_exception)
    }

    /// Whether the patterns match `path`, whose folder is matched by those in `folder`.
    pub(super) fn matches(&self, path: &str, folder: &[bool]) -> (bool, Matched) {
        let mut matched = false;
        let mut each = vec![false; self.0.len()];
        for (at, pattern) in self.0.iter().enumerate() {
            let inherited = folder.get(at).copied().unwrap_or(false);
            // A pattern that could not change the outcome is not tried, and then is not handed down either.
            if !inherited && pattern.is_exception != matched {
                continue;
            }
            each[at] = inherited || pattern.matches(path);
            if each[at] {
                matched = !pattern.is_exception;
            }
        }
        (matched, each)
    }
}

impl Pattern {
    fn parse(given: &str) -> Result<Self, PatternError> {
        let refuse = |reason| PatternError {
            pattern: given.to_owned(),
            reason,
        };
        let cleaned = glob::clean(given);
        let (is_exception, text) = match cleaned.strip_prefix('!') {
            Some("") => return Err(refuse("'!' has to be followed by a pattern")),
            Some(rest) => (true, rest.to_owned()),
            None => (false, cleaned),
        };
        Glob::parse(&text).ok_or_else(|| refuse("a '[' is not closed, or a '\\' ends it"))?;
        let rule = Rule::compile(&text).map_err(refuse)?;
        Ok(Self {
            text,
            is_exception,
            rule,
        })
    }

    /// Whether it begins with `!`.
    pub(super) fn is_exception(&self) -> bool {
        self.is_exception
    }

    /// The pattern without a last component that stands for everything.
    pub(super) fn without_trailing_glob(&self) -> &str {
        let text = self.text.strip_suffix("/**").unwrap_or(&self.text);
        text.strip_suffix("/*").unwrap_or(text)
    }

    fn matches(&self, path: &str) -> bool {
        match &self.rule {
            Rule::Exact => path == self.text,
            Rule::Prefix(prefix) => path.starts_with(prefix),
            // `**/a` matches `a` too.
            Rule::Suffix(suffix) => path.ends_with(suffix) || suffix.strip_prefix('/') == Some(path),
            Rule::Regex(regex) => regex.is_match(path),
        }
    }
}

impl Rule {
    /// Of the regular expression, if it is one.
    fn length(&self) -> usize {
        match self {
            Self::Regex(regex) => EXPRESSION_MIN + regex.as_str().len(),
            _ => 0,
        }
    }

    fn compile(pattern: &str) -> Result<Self, &'static str> {
        #[derive(PartialEq)]
        enum Shape {
            Exact,
            Prefix,
            Suffix,
            Regex,
        }
        let mut shape = Shape::Exact;
        let mut expression = Expression::new();
        let mut rest = pattern.chars().peekable();
        let mut is_first = true;
        while let Some(character) = rest.next() {
            match character {
                '*' if rest.next_if_eq(&'*').is_some() => {
                    rest.next_if_eq(&'/');
                    if rest.peek().is_some() {
                        expression.plain("(.*/)?");
                        shape = Shape::Regex;
                    } else if shape == Shape::Exact {
                        shape = Shape::Prefix;
                    } else {
                        expression.plain(".*");
                        shape = Shape::Regex;
                    }
                    if is_first {
                        shape = Shape::Suffix;
                    }
                }
                '*' => {
                    expression.plain("[^/]*");
                    shape = Shape::Regex;
                }
                '?' => {
                    expression.plain("[^/]");
                    shape = Shape::Regex;
                }
                '\\' => {
                    expression.escaped(rest.next().ok_or("a '\\' ends it")?)?;
                    shape = Shape::Regex;
                }
                '[' | ']' => {
                    expression.plain(character.encode_utf8(&mut [0; 4]));
                    shape = Shape::Regex;
                }
                '.' | '+' | '(' | ')' | '|' | '{' | '}' | '$' => expression.escaped(character)?,
                _ => expression.plain(character.encode_utf8(&mut [0; 4])),
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

/// A regular expression in Go's syntax, written down in that of the `regex` crate.
///
/// The two differ in classes alone, as far as patterns go: there, `[`, `&`, `~` and a first `]` are ordinary in Go.
/// The original passes what stands in a class through the same substitutions as the rest (`[*]` thus means something
/// odd), so classes can only be told apart here, after them. Not rendered: `[[:alpha:]]`, `\\p` and `\\Q`.
struct Expression {
    text: String,
    class: Class,
}

enum Class {
    Outside,
    /// Right after `[`.
    Opened,
    /// Right after `[^`.
    Negated,
    Inside,
}

impl Expression {
    fn new() -> Self {
        Self {
            text: "^".to_owned(),
            class: Class::Outside,
        }
    }

    fn plain(&mut self, go: &str) {
        for character in go.chars() {
            let (next, literal) = match (&self.class, character) {
                (Class::Outside, '[') => (Class::Opened, false),
                (Class::Outside, _) => (Class::Outside, false),
                (Class::Opened, '^') => (Class::Negated, false),
                (Class::Inside, ']') => (Class::Outside, false),
                (_, '[' | ']' | '&' | '~' | '^') => (Class::Inside, true),
                _ => (Class::Inside, false),
            };
            if literal {
                self.text.push('\\');
            }
            self.text.push(character);
            self.class = next;
        }
    }

    /// A character after `\`, which has a meaning of its own for some letters.
    fn escaped(&mut self, character: char) -> Result<(), &'static str> {
        let inside = !matches!(self.class, Class::Outside);
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
            _ => return Err("a '\\' stands before a character that needs none"),
        }
        if inside {
            self.class = Class::Inside;
        }
        Ok(())
    }

    fn compile(mut self) -> Result<Regex, &'static str> {
        self.text.push('$');
        let compiled = RegexBuilder::new(&self.text).size_limit(COMPILED_MAX).build();
        compiled.map_err(|_| "it means nothing, or too much")
    }
}
