//! Validation of patterns: a port of the syntax check in Go's `filepath.Match`.
//!
//! `github.com/moby/patternmatcher` rejects a pattern exactly if `filepath.Match(pattern, ".")` fails. That function
//! stops at the first part that does not match, so it accepts patterns that are malformed behind it, such as `a*/b\`.
//! Therefore this is the same algorithm.

/// The error for a malformed pattern, as Go's `ErrBadPattern`.
struct BadPattern;

/// Returns whether Go's `filepath.Match(pattern, ".")` returns without an error.
pub(super) fn go_match_accepts(pattern: &str) -> bool {
    match_name(pattern, ".").is_ok()
}

/// Returns whether a pattern matches the whole of `name`; fails if a part that is reached is malformed.
fn match_name(mut pattern: &str, mut name: &str) -> Result<bool, BadPattern> {
    'chunks: while !pattern.is_empty() {
        let (has_star, chunk, rest) = split_star_chunk_and_rest(pattern);
        pattern = rest;
        if has_star && chunk.is_empty() {
            return Ok(!name.contains('/'));
        }
        if let Some(left) = match_chunk(chunk, name)?
            && (left.is_empty() || !pattern.is_empty())
        {
            name = left;
            continue;
        }
        if has_star {
            let skippable = name.find('/').unwrap_or(name.len());
            for (at, skipped) in name[..skippable].char_indices() {
                if let Some(left) = match_chunk(chunk, &name[at + skipped.len_utf8()..])?
                    && (left.is_empty() || !pattern.is_empty())
                {
                    name = left;
                    continue 'chunks;
                }
            }
        }
        return Ok(false);
    }
    Ok(name.is_empty())
}

/// Splits the next part without stars off a pattern. Returns whether a star precedes the part, the part, and the rest.
fn split_star_chunk_and_rest(pattern: &str) -> (bool, &str, &str) {
    let without_stars = pattern.trim_start_matches('*');
    let has_star = without_stars.len() < pattern.len();
    let mut is_in_class = false;
    let mut characters = without_stars.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => {
                characters.next();
            }
            '[' => is_in_class = true,
            ']' => is_in_class = false,
            '*' if !is_in_class => {
                let (chunk, rest) = without_stars.split_at(at);
                return (has_star, chunk, rest);
            }
            _ => {}
        }
    }
    (has_star, without_stars, "")
}

/// Matches the beginning of `name` with a part of a pattern, and returns the rest; `None` if it does not match. Checks
/// all of `chunk`.
fn match_chunk<'a>(chunk: &str, name: &'a str) -> Result<Option<&'a str>, BadPattern> {
    let mut has_failed = false;
    let mut chunk = chunk.chars();
    let mut name = name.chars();
    while let Some(character) = chunk.next() {
        has_failed |= name.as_str().is_empty();
        let next = if has_failed { None } else { name.next() };
        let is_match = match character {
            '[' => matches_class(&mut chunk, next)?,
            '?' => next.is_some_and(|next| next != '/'),
            '\\' => Some(chunk.next().ok_or(BadPattern)?) == next,
            character => Some(character) == next,
        };
        has_failed |= !is_match;
    }
    Ok((!has_failed).then_some(name.as_str()))
}

/// Parses the rest of a character class, and returns whether the class matches `character`.
fn matches_class(chunk: &mut std::str::Chars<'_>, character: Option<char>) -> Result<bool, BadPattern> {
    let mut peek = chunk.clone();
    let is_negated = peek.next() == Some('^');
    if is_negated {
        *chunk = peek;
    }
    let mut is_match = false;
    let mut is_first = true;
    loop {
        let mut peek = chunk.clone();
        if !is_first && peek.next() == Some(']') {
            *chunk = peek;
            return Ok(is_match != is_negated);
        }
        is_first = false;
        let low = parse_class_character(chunk)?;
        let mut peek = chunk.clone();
        let high = match peek.next() {
            Some('-') => {
                *chunk = peek;
                parse_class_character(chunk)?
            }
            _ => low,
        };
        is_match |= character.is_some_and(|character| (low..=high).contains(&character));
    }
}

/// Parses one character of a character class, after which more has to follow.
fn parse_class_character(chunk: &mut std::str::Chars<'_>) -> Result<char, BadPattern> {
    let member = match chunk.next() {
        None | Some('-' | ']') => return Err(BadPattern),
        Some('\\') => chunk.next().ok_or(BadPattern)?,
        Some(character) => character,
    };
    match chunk.as_str().is_empty() {
        true => Err(BadPattern),
        false => Ok(member),
    }
}
