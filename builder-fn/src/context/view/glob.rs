//! The parts of Go's `path/filepath` that patterns and followed paths use: `Clean`, `Join` and `Match`, for Unix.

/// Returns the shortest equivalent of a path, as Go's `filepath.Clean` does.
pub(super) fn clean_path(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut components: Vec<&str> = Vec::new();
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." => match components.last() {
                Some(&last) if last != ".." => {
                    components.pop();
                }
                _ if rooted => {}
                _ => components.push(".."),
            },
            _ => components.push(component),
        }
    }
    let joined = components.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// Joins two paths and cleans the result, as Go's `filepath.Join` does.
pub(super) fn join_paths(left: &str, right: &str) -> String {
    match (left.is_empty(), right.is_empty()) {
        (true, true) => String::new(),
        (true, false) => clean_path(right),
        (false, true) => clean_path(left),
        (false, false) => clean_path(&format!("{left}/{right}")),
    }
}

/// Splits a clean relative path into its folder and its last component.
pub(super) fn split_folder_or_dot_and_name(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or((".", path))
}

/// Returns whether a name contains wildcards that are not escaped.
pub(super) fn has_wildcards(name: &str) -> bool {
    let mut characters = name.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => {
                characters.next();
            }
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// A parsed pattern of Go's `filepath.Match`, for paths whose links are followed. The patterns of ignore files are
/// [`Pattern`](super::patterns::Pattern)s.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Glob(Vec<GlobToken>);

/// A part of a glob pattern.
#[derive(Debug, PartialEq, Eq)]
enum GlobToken {
    /// The wildcard `*`: any number of characters except `/`.
    Star,
    /// The wildcard `?`: one character except `/`.
    AnyCharacter,
    /// A literal character.
    Literal(char),
    /// A character class: one character in, or outside of, the ranges.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Glob {
    /// Parses a component of a path whose links are followed. Returns `None` for a malformed pattern, like Go's
    /// `ErrBadPattern`.
    pub(super) fn parse(pattern: &str) -> Option<Self> {
        let mut tokens = Vec::new();
        let mut rest = pattern.chars().peekable();
        while let Some(character) = rest.next() {
            tokens.push(match character {
                '*' => GlobToken::Star,
                '?' => GlobToken::AnyCharacter,
                '\\' => GlobToken::Literal(rest.next()?),
                '[' => {
                    let negated = rest.next_if_eq(&'^').is_some();
                    let mut ranges = Vec::new();
                    while ranges.is_empty() || rest.next_if_eq(&']').is_none() {
                        let low = parse_class_character(&mut rest)?;
                        let high = if rest.next_if_eq(&'-').is_some() {
                            parse_class_character(&mut rest)?
                        } else {
                            low
                        };
                        ranges.push((low, high));
                    }
                    GlobToken::Class { negated, ranges }
                }
                _ => GlobToken::Literal(character),
            });
        }
        Some(Self(tokens))
    }

    /// Returns whether the glob pattern matches the whole of `name`.
    pub(super) fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let (mut token, mut at) = (0, 0);
        // Where to retry when the rest after the last star does not match: the star then takes one more character.
        let mut retry: Option<(usize, usize)> = None;
        loop {
            match self.0.get(token) {
                None if at == name.len() => return true,
                Some(GlobToken::Star) => {
                    retry = Some((token + 1, at));
                    token += 1;
                    continue;
                }
                Some(one)
                    if name
                        .get(at)
                        .is_some_and(|character| one.matches_unless_star(*character)) =>
                {
                    token += 1;
                    at += 1;
                    continue;
                }
                _ => {}
            }
            match retry {
                Some((after_star, taken)) if name.get(taken).is_some_and(|character| *character != '/') => {
                    retry = Some((after_star, taken + 1));
                    (token, at) = (after_star, taken + 1);
                }
                _ => return false,
            }
        }
    }
}

impl GlobToken {
    /// Returns whether the token of a pattern matches `character`. A star matches none here: see [`Glob::matches`].
    fn matches_unless_star(&self, character: char) -> bool {
        match self {
            Self::Star => false,
            Self::AnyCharacter => character != '/',
            Self::Literal(wanted) => character == *wanted,
            Self::Class { negated, ranges } => {
                let within = ranges
                    .iter()
                    .any(|(low, high)| (*low..=*high).contains(&character));
                within != *negated
            }
        }
    }
}

/// Parses one character of a character class in a pattern.
fn parse_class_character(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<char> {
    let member = match rest.next()? {
        '-' | ']' => return None,
        '\\' => rest.next()?,
        character => character,
    };
    // The class has to be closed, so more has to follow.
    rest.peek().map(|_| member)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_and_joined_as_in_go() {
        for (path, cleaned) in [
            ("", "."),
            ("a", "a"),
            ("./a//b/./c/", "a/b/c"),
            ("a/../b", "b"),
            ("a/..", "."),
            ("../a", "../a"),
            ("a/../../b", "../b"),
            ("/../a", "/a"),
            ("/", "/"),
            ("//a/", "/a"),
            ("!./a", "!./a"),
        ] {
            assert_eq!(clean_path(path), cleaned, "{path:?}");
        }
        for (left, right, joined) in [
            (".", "/a", "a"),
            (".", "../a", "../a"),
            ("/", "../a", "/a"),
            ("a", "../../b", "../b"),
            ("a", "", "a"),
        ] {
            assert_eq!(join_paths(left, right), joined, "{left:?} and {right:?}");
        }
    }

    #[test]
    fn globs_match_as_in_go() {
        for (pattern, name, expected) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*", "", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("*[a-ζ]", "A", false),
            ("a?b", "a/b", false),
            ("[\\]a]", "]", true),
            ("[\\-x]", "-", true),
            ("[x\\-]", "z", false),
            ("[z-a]", "b", false),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(
                Glob::parse(pattern).map(|glob| glob.matches(name)),
                Some(expected),
                "{pattern} and {name}"
            );
        }
    }

    #[test]
    fn malformed_globs_are_rejected() {
        for pattern in [
            "[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", "[", "[^", "[^bc", "a[", "[]", "a\\", "[\\",
        ] {
            assert_eq!(Glob::parse(pattern), None, "{pattern}");
        }
    }

    #[test]
    fn an_escaped_wildcard_is_not_a_wildcard() {
        assert!(has_wildcards("a*") && has_wildcards("[a]") && has_wildcards("\\a?"));
        assert!(!has_wildcards("a\\*b") && !has_wildcards("a") && !has_wildcards("]"));
    }
}
