//! Texts from programs: cut to a bound, without control characters, and taken apart.

/// Returns `text` on one line, without control characters, cut after `max_bytes` bytes.
pub(super) fn one_line_cut_with_ellipsis(text: &str, max_bytes: usize) -> String {
    let mut line = String::new();
    let mut is_cut = false;
    let words = text
        .split(|character: char| character.is_whitespace() || character.is_control())
        .filter(|word| !word.is_empty());
    'words: for word in words {
        if !line.is_empty() {
            line.push(' ');
        }
        for character in word
            .chars()
            .filter(|character| !is_invisible_non_control(*character))
        {
            if line.len() + character.len_utf8() > max_bytes {
                is_cut = true;
                break 'words;
            }
            line.push(character);
        }
    }
    let trimmed = line.trim_end().len();
    line.truncate(trimmed);
    if is_cut {
        line.push('…');
    }
    line
}

/// Returns whether a character changes the direction or the look of a text, or is not shown.
fn is_invisible_non_control(character: char) -> bool {
    matches!(
        character,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
    )
}

/// Returns the end of `text` of at most `max_bytes` bytes, without the part of a line that is cut.
pub(super) fn last_whole_lines(text: &str, max_bytes: usize) -> &str {
    let Some(start) = text.len().checked_sub(max_bytes).filter(|start| *start > 0) else {
        return text;
    };
    let start = (start..text.len())
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(text.len());
    let rest = text.get(start..).unwrap_or_default();
    rest.split_once('\n').map_or("", |(_, rest)| rest)
}

/// Returns the beginning of `text` of at most `max_bytes` bytes.
pub(super) fn first_part(text: &str, max_bytes: usize) -> &str {
    if text.len() <= max_bytes {
        return text;
    }
    let end = (0..=max_bytes)
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

/// Returns the output of a terminal program as plain lines: without escape sequences, and with a line for each state of
/// a line that is written over.
pub(super) fn without_terminal_codes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => match characters.next() {
                // A control sequence ends with a character from @ to ~.
                Some('[') => {
                    characters.find(|end| ('@'..='~').contains(end));
                }
                // A command of the operating system ends with BEL or ESC \.
                Some(']') if characters.find(|end| matches!(end, '\u{7}' | '\u{1b}')) == Some('\u{1b}') => {
                    characters.next_if_eq(&'\\');
                }
                _ => {}
            },
            '\r' if characters.peek() == Some(&'\n') => {}
            '\r' => plain.push('\n'),
            '\n' | '\t' => plain.push(character),
            other if other.is_control() => {}
            other => plain.push(other),
        }
    }
    plain
}

/// Returns what is between `before` and the next `after` in `text`.
pub(super) fn between<'t>(text: &'t str, before: &str, after: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(before)?;
    rest.split_once(after).map(|(inside, _)| inside)
}

/// Returns `text` with `new` in place of the path `old`, where that is not a part of a longer path.
pub(super) fn replace_whole_path(text: &str, old: &str, new: &str) -> String {
    let is_of_path =
        |character: char| character.is_alphanumeric() || matches!(character, '/' | '.' | '_' | '-');
    let mut replaced = String::with_capacity(text.len());
    let mut copied = 0;
    for (start, _) in text.match_indices(old) {
        let end = start + old.len();
        let before = text.get(..start).unwrap_or_default();
        let after = text.get(end..).unwrap_or_default();
        if !before.ends_with(is_of_path) && !after.starts_with(is_of_path) {
            replaced.push_str(text.get(copied..start).unwrap_or_default());
            replaced.push_str(new);
            copied = end;
        }
    }
    replaced.push_str(text.get(copied..).unwrap_or_default());
    replaced
}

/// A place in a file that a program names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place<'t> {
    /// The file as the program names it.
    pub(super) file: &'t str,
    /// The line, from 1 on.
    pub(super) line: u32,
}

/// Parses `FILE:LINE` at the beginning of `text`, and what follows.
pub(super) fn parse_place(text: &str) -> Option<(Place<'_>, &str)> {
    let (file, rest) = text.split_once(':')?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let line: u32 = rest.get(..digits)?.parse().ok()?;
    let is_file =
        !file.is_empty() && file.len() <= 200 && !file.contains(['"', '\'', '<', '>', '|', '(', ')']);
    let file = file.strip_prefix("./").unwrap_or(file);
    (is_file && line > 0).then_some((Place { file, line }, rest.get(digits..)?))
}

/// Returns the text after an optional `:COLUMN` and the next `:`.
pub(super) fn message_after_column(rest: &str) -> Option<&str> {
    let rest = rest.strip_prefix(':')?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return Some(rest.trim_start());
    }
    let rest = rest.get(digits..)?;
    Some(rest.strip_prefix(':')?.trim_start())
}

/// Returns the host of the first `scheme://` URL in `text`, without user and port.
pub(super) fn host_of_first_url(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("://")?;
    let end = rest.find(|character: char| {
        matches!(character, '/' | '"' | '\'' | '`' | ')' | ',' | '?' | '#' | ']') || character.is_whitespace()
    });
    let authority = rest.get(..end.unwrap_or(rest.len()))?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = host.split_once(':').map_or(host, |(host, _)| host);
    may_be_host(host).then_some(host)
}

/// Returns whether a text has only characters of host names and addresses, and no more than a name may have.
pub(super) fn may_be_host(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':'))
}

/// Returns whether a name may be part of advice, which people copy to a shell: it has no character that a shell, or a
/// reader, takes for anything else, and is no option of a program.
pub(super) fn is_safe_in_shell_advice(name: &str) -> bool {
    let is_allowed =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'/' | b'@' | b'+' | b'-');
    !name.is_empty()
        && name.len() <= super::MAX_NAME_OR_LINE_BYTES
        && !name.starts_with('-')
        && name.bytes().all(is_allowed)
}

/// Returns the name if it may be part of advice, and `otherwise` if not.
pub(super) fn name_if_safe_or<'t>(name: &'t str, otherwise: &'t str) -> &'t str {
    match is_safe_in_shell_advice(name) {
        true => name,
        false => otherwise,
    }
}

/// Returns whether a name may be that of an image in advice: plain, but that it may have colons.
pub(super) fn is_safe_image_name(name: &str) -> bool {
    is_safe_in_shell_advice(&name.replace(':', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_codes_are_removed_and_overwritten_lines_are_lines() {
        let text = "\u{1b}[1m\u{1b}[91merror\u{1b}[0m: no\r\n 10%\r 20%\r\n\u{1b}]0;title\u{7}ok\u{1b}]8;;x\u{1b}\\link\u{8}\n";
        assert_eq!(without_terminal_codes(text), "error: no\n 10%\n 20%\noklink\n");
        for unfinished in ["\u{1b}", "\u{1b}[", "\u{1b}[3", "\u{1b}]x", "\u{1b}]x\u{1b}"] {
            assert_eq!(without_terminal_codes(unfinished), "", "{unfinished:?}");
        }
    }

    #[test]
    fn a_line_of_a_hint_is_short_and_has_no_control_or_invisible_characters() {
        assert_eq!(
            one_line_cut_with_ellipsis("a\n\tb\u{1b}[31mc\u{202e}d \u{0}", 100),
            "a b [31mcd"
        );
        assert_eq!(one_line_cut_with_ellipsis("äöü", 4), "äö…");
        assert_eq!(
            one_line_cut_with_ellipsis("a\u{ad}\u{61c}\u{180e}\u{e0041}b", 9),
            "ab"
        );
        assert_eq!(one_line_cut_with_ellipsis("  ", 4), "");
    }

    #[test]
    fn places_and_hosts_are_parsed_only_where_they_are_complete() {
        let (place, rest) = parse_place("./src/a.c:4:20: error: x").expect("a place");
        assert_eq!((place.file, place.line), ("src/a.c", 4));
        assert_eq!(message_after_column(rest), Some("error: x"));
        for text in ["", ":", "a:", "a:0: x", "a:x", "a:99999999999: x"] {
            assert_eq!(parse_place(text), None, "{text}");
        }
        for (text, host) in [
            ("Get \"https://user:pw@example.com:8080/a\"", Some("example.com")),
            (
                "to `https://index.crates.io/config.json`",
                Some("index.crates.io"),
            ),
            ("https:// x", None),
        ] {
            assert_eq!(host_of_first_url(text), host, "{text}");
        }
    }

    #[test]
    fn a_path_is_replaced_only_where_it_is_not_a_part_of_a_longer_one() {
        for (text, replaced) in [
            ("/a: no", "src/a: no"),
            ("/a and /a", "src/a and src/a"),
            ("/bin/a, /ab, /a/b, x/a, /a.c", "/bin/a, /ab, /a/b, x/a, /a.c"),
            ("ä/a (/a)", "ä/a (src/a)"),
        ] {
            assert_eq!(replace_whole_path(text, "/a", "src/a"), replaced);
        }
    }

    #[test]
    fn beginnings_are_cut_at_characters_and_ends_at_whole_lines() {
        assert_eq!(last_whole_lines("one\ntwo\nthree", 8), "three");
        assert_eq!(last_whole_lines("äääää", 3), "");
        assert_eq!(last_whole_lines("a", 3), "a");
        assert_eq!(first_part("äää", 3), "ä");
    }
}
