//! Converts a line of output to text for a page: colours become classes, and no character hides or moves another.

use std::iter::Peekable;
use std::str::Chars;

/// The most parts of a line with styles of their own. The rest has the style of the last part.
const STYLED_PARTS_MAX: usize = 200;

/// The most characters of a line that are shown.
pub(super) const LINE_CHARS_MAX: usize = 1000;

/// The style of a part of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ColourAndBold {
    /// The colour of the text, from 0 (black) to 7 (white); `None` for that of the page.
    pub(super) colour: Option<u8>,
    /// Whether the text is bold.
    pub(super) is_bold: bool,
}

impl ColourAndBold {
    /// Returns the classes for the style; `None` for plain text.
    pub(super) fn classes(self) -> Option<String> {
        match (self.colour, self.is_bold) {
            (None, false) => None,
            (None, true) => Some("b".to_owned()),
            (Some(colour), false) => Some(format!("a{colour}")),
            (Some(colour), true) => Some(format!("b a{colour}")),
        }
    }

    /// Applies the parameters of the control sequence for styles. Backgrounds and concealed text are left out, so that
    /// no text has the colour of what is behind it.
    fn apply_sgr_parameters(&mut self, parameters: &str) {
        let mut numbers = parameters
            .split(';')
            .map(|number| number.parse::<u32>().unwrap_or(0));
        while let Some(number) = numbers.next() {
            match number {
                0 => *self = Self::default(),
                1 => self.is_bold = true,
                22 => self.is_bold = false,
                30..=37 => self.colour = colour_number_up_to_255(number - 30),
                90..=97 => self.colour = colour_number_up_to_255(number - 90),
                39 => self.colour = None,
                38 | 48 => {
                    let colour = match numbers.next() {
                        Some(5) => numbers.next().map(nearest_of_palette),
                        Some(2) => match (numbers.next(), numbers.next(), numbers.next()) {
                            (Some(red), Some(green), Some(blue)) => {
                                Some(nearest_of_eight_colours(red, green, blue))
                            }
                            _ => None,
                        },
                        _ => None,
                    };
                    if let (38, Some(colour)) = (number, colour) {
                        self.colour = Some(colour);
                    }
                }
                _ => {}
            }
        }
    }
}

fn colour_number_up_to_255(number: u32) -> Option<u8> {
    u8::try_from(number).ok()
}

/// Returns which of the eight colours is nearest to one of the palette of 256.
fn nearest_of_palette(number: u32) -> u8 {
    match number {
        0..=7 => u8::try_from(number).unwrap_or(7),
        8..=15 => u8::try_from(number - 8).unwrap_or(7),
        16..=231 => {
            let part = |divisor: u32| (number - 16) / divisor % 6 * 51;
            nearest_of_eight_colours(part(36), part(6), part(1))
        }
        232..=243 => 0,
        _ => 7,
    }
}

/// Returns which of the eight colours is nearest to a mixture of red, green and blue, each from 0 to 255.
fn nearest_of_eight_colours(red: u32, green: u32, blue: u32) -> u8 {
    let half = red.max(green).max(blue) / 2;
    let bit = |part: u32, value: u8| if part > half && part > 63 { value } else { 0 };
    bit(red, 1) | bit(green, 2) | bit(blue, 4)
}

/// A line for a page: parts with styles, and the number of characters that were left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StyledLine {
    /// The parts.
    pub(super) parts: Vec<(ColourAndBold, String)>,
    /// The number of characters at the end that are not shown.
    pub(super) left_out: usize,
}

/// Converts a line of output.
pub(super) fn style_line(line: &str) -> StyledLine {
    let end = line
        .char_indices()
        .nth(LINE_CHARS_MAX)
        .map_or(line.len(), |(end, _)| end);
    let (shown, rest) = line.split_at(end);
    let mut styled = StyledLine {
        parts: Vec::new(),
        left_out: rest.chars().count(),
    };
    let (mut style, mut text) = (ColourAndBold::default(), String::new());
    let mut characters = shown.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, characters.peek()) {
            ('\u{1b}', Some('[')) => match take_control_sequence(&mut characters) {
                Some((parameters, 'm')) if styled.parts.len() < STYLED_PARTS_MAX => {
                    let before = style;
                    style.apply_sgr_parameters(&parameters);
                    if style != before && !text.is_empty() {
                        styled.parts.push((before, std::mem::take(&mut text)));
                    }
                }
                Some(_) => {}
                None => text.push(visible_control(character)),
            },
            ('\u{1b}', Some(']')) => {
                if !skip_operating_system_command(&mut characters) {
                    text.push(visible_control(character));
                }
            }
            _ => push_visible(&mut text, character),
        }
    }
    if !text.is_empty() {
        styled.parts.push((style, text));
    }
    styled
}

/// Takes the rest of a control sequence, and returns its parameters and its last character. Takes nothing if it has no
/// end.
fn take_control_sequence(characters: &mut Peekable<Chars<'_>>) -> Option<(String, char)> {
    let mut ahead = characters.clone();
    ahead.next();
    let mut parameters = String::new();
    for character in ahead.by_ref() {
        match character {
            '\u{20}'..='\u{3f}' => parameters.push(character),
            '\u{40}'..='\u{7e}' => {
                *characters = ahead;
                return Some((parameters, character));
            }
            _ => return None,
        }
    }
    None
}

/// Skips a command for the terminal, such as one that sets its title. Skips nothing, and returns `false`, if it has no
/// end.
fn skip_operating_system_command(characters: &mut Peekable<Chars<'_>>) -> bool {
    let mut ahead = characters.clone();
    while let Some(character) = ahead.next() {
        let is_end = match character {
            '\u{7}' => true,
            '\u{1b}' => match ahead.next() {
                Some('\\') => true,
                _ => return false,
            },
            _ => false,
        };
        if is_end {
            *characters = ahead;
            return true;
        }
    }
    false
}

/// Appends a character, or what stands for one that is invisible or changes the direction of the text.
fn push_visible(text: &mut String, character: char) {
    match character {
        '\t' => text.push(character),
        '\u{0}'..='\u{1f}' | '\u{7f}' => text.push(visible_control(character)),
        '\u{80}'..='\u{9f}'
        | '\u{ad}'
        | '\u{61c}'
        | '\u{180e}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e007f}' => text.push_str(&format!("<U+{:04X}>", u32::from(character))),
        _ => text.push(character),
    }
}

/// Returns the symbol for a control character.
fn visible_control(character: char) -> char {
    match u32::from(character) {
        0x7f => '\u{2421}',
        number => char::from_u32(0x2400 + number).unwrap_or(char::REPLACEMENT_CHARACTER),
    }
}

/// Returns a text in which a symbol or a number stands for each control character, but tabs and line ends, and for each
/// invisible one: for names and errors. Control sequences for colours are shown, not applied.
pub(super) fn show_controls_keeping_tabs_and_newlines(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => plain.push(character),
            _ => push_visible(&mut plain, character),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the parts of a line, each as its classes and its text.
    fn classes_and_texts_of_parts(line: &str) -> Vec<(String, String)> {
        let styled = style_line(line);
        let parts = styled.parts.into_iter();
        parts
            .map(|(style, text)| (style.classes().unwrap_or_default(), text))
            .collect()
    }

    #[test]
    fn colours_and_bold_text_become_classes() {
        for (line, expected) in [
            ("plain", vec![("", "plain")]),
            (
                "\u{1b}[1;31merror\u{1b}[0m: no",
                vec![("b a1", "error"), ("", ": no")],
            ),
            ("\u{1b}[92mok\u{1b}[39m.", vec![("a2", "ok"), ("", ".")]),
            ("\u{1b}[38;5;196mred\u{1b}[mx", vec![("a1", "red"), ("", "x")]),
            ("\u{1b}[38;2;10;200;220mcyan", vec![("a6", "cyan")]),
            ("\u{1b}[48;5;1mno background", vec![("", "no background")]),
            ("\u{1b}[8mnot concealed", vec![("", "not concealed")]),
            ("\u{1b}[2K\u{1b}[1Gmoved", vec![("", "moved")]),
        ] {
            let expected: Vec<_> = expected
                .into_iter()
                .map(|(classes, text)| (classes.to_owned(), text.to_owned()))
                .collect();
            assert_eq!(classes_and_texts_of_parts(line), expected, "{line:?}");
        }
    }

    #[test]
    fn nothing_hides_moves_or_reverses_text() {
        for (line, shown) in [
            ("good\rbad", "good\u{240d}bad"),
            ("a\u{8}\u{8}b", "a\u{2408}\u{2408}b"),
            ("\u{202e}txet", "<U+202E>txet"),
            ("a\u{200b}b\u{feff}", "a<U+200B>b<U+FEFF>"),
            ("\u{9b}31mred", "<U+009B>31mred"),
            ("\u{1b}]8;;http://evil\u{7}link\u{1b}]8;;\u{7}", "link"),
            ("\u{1b}]0;no end", "\u{241b}]0;no end"),
            ("\u{1b}[31", "\u{241b}[31"),
            ("\u{1b}", "\u{241b}"),
            ("\u{1b}[31\u{1b}[0mx", "\u{241b}[31x"),
        ] {
            let text: String = style_line(line).parts.into_iter().map(|(_, text)| text).collect();
            assert_eq!(text, shown, "{line:?}");
        }
    }

    #[test]
    fn a_long_line_is_cut_with_a_count_of_what_is_left_out_and_its_parts_are_limited() {
        let styled = style_line(&"é".repeat(LINE_CHARS_MAX + 5));
        assert_eq!(styled.left_out, 5);
        assert_eq!(styled.parts[0].1.chars().count(), LINE_CHARS_MAX);
        let many = style_line(&"\u{1b}[31mx\u{1b}[32my".repeat(180));
        assert!(many.parts.len() <= STYLED_PARTS_MAX + 1);
    }

    proptest! {
        #[test]
        fn a_styled_line_has_no_control_character_but_tabs(line in "(\\x1b|[\\[\\];m0-9]|\\PC|\\p{C}){0,60}") {
            for (_, text) in style_line(&line).parts {
                let is_control = |character: char| character.is_control() && character != '\t';
                prop_assert!(!text.contains(is_control), "{text:?}");
            }
        }
    }
}
