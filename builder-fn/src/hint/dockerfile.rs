//! The instructions of a Dockerfile with their lines, as far as rules need them.
//!
//! It is no parser of Dockerfiles: BuildKit's is. It finds where an instruction begins and what its words are.

/// The length after which the rest of a Dockerfile is not read, in bytes.
pub(super) const MAX_BYTES_READ_OF_FILE: usize = 128 << 10;

/// An instruction of a Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    /// The line at which the instruction begins, from 1 on.
    pub(super) line: u32,
    /// The line at which it ends.
    pub(super) last_line: u32,
    /// The instruction in one line, without the escapes at the ends of lines.
    pub(super) text: String,
}

/// Returns the instructions of a Dockerfile.
pub(super) fn parse_instructions_without_heredocs(dockerfile_text: &str) -> Vec<Instruction> {
    let escape = escape_character(dockerfile_text);
    let mut found: Vec<Instruction> = Vec::new();
    let mut open: Option<Instruction> = None;
    let mut heredocs: Vec<String> = Vec::new();
    for (number, line) in (1..).zip(dockerfile_text.lines()) {
        if let Some(end) = heredocs.first() {
            if line.trim_start_matches('\t') == end {
                heredocs.remove(0);
            }
            if let Some(instruction) = found.last_mut() {
                instruction.last_line = number;
            }
            continue;
        }
        let trimmed = line.trim();
        if trimmed.starts_with('#') || (trimmed.is_empty() && open.is_none()) {
            continue;
        }
        let (content, goes_on) = match line.trim_end().strip_suffix(escape) {
            Some(content) => (content, true),
            None => (line, trimmed.is_empty()),
        };
        let mut instruction = open.take().unwrap_or(Instruction {
            line: number,
            last_line: number,
            text: String::new(),
        });
        instruction.text.push_str(content);
        instruction.last_line = number;
        match goes_on {
            true => open = Some(instruction),
            false => {
                heredocs = heredoc_terminators(&instruction.text);
                found.push(instruction);
            }
        }
    }
    found.extend(open);
    found
}

/// Returns the character that continues a line: a backslash, unless the directive `escape` names another.
fn escape_character(dockerfile_text: &str) -> char {
    let directives = dockerfile_text.lines().take_while(|line| line.starts_with('#'));
    let escape = directives.filter_map(|line| {
        let (key, value) = line.trim_start_matches('#').split_once('=')?;
        key.trim().eq_ignore_ascii_case("escape").then_some(value.trim())
    });
    match escape.last() {
        Some("`") => '`',
        _ => '\\',
    }
}

/// Returns the words that end the here-documents of an instruction, up to 8.
fn heredoc_terminators(instruction: &str) -> Vec<String> {
    let keyword = keyword(instruction);
    if !["RUN", "COPY", "ADD"]
        .iter()
        .any(|known| keyword.eq_ignore_ascii_case(known))
    {
        return Vec::new();
    }
    let words = split_at_unquoted_whitespace(instruction);
    let ends = words.iter().filter_map(|word| {
        let rest = word.trim_start_matches(|character: char| character.is_ascii_digit());
        let rest = rest.strip_prefix("<<")?;
        let rest = rest.strip_prefix('-').unwrap_or(rest);
        let end: String = rest
            .chars()
            .filter(|character| !matches!(character, '"' | '\''))
            .collect();
        (!end.is_empty() && !end.contains('<')).then_some(end)
    });
    ends.take(8).collect()
}

/// Returns the words of an instruction with their quotes: a space between quotes divides nothing.
fn split_at_unquoted_whitespace(instruction: &str) -> Vec<&str> {
    let mut quote = None;
    let divides = |character: char| match quote {
        Some(open) => {
            quote = quote.filter(|_| character != open);
            false
        }
        None => {
            quote = Some(character).filter(|character| matches!(character, '"' | '\''));
            character.is_whitespace()
        }
    };
    instruction.split(divides).collect()
}

/// Returns the first word of an instruction.
pub(super) fn keyword(instruction: &str) -> &str {
    instruction.split_whitespace().next().unwrap_or_default()
}

impl Instruction {
    /// Returns whether the instruction is this one, such as `COPY`.
    pub(super) fn is(&self, name: &str) -> bool {
        keyword(&self.text).eq_ignore_ascii_case(name)
    }

    /// Returns the value of the flag `--NAME=VALUE` before the arguments.
    pub(super) fn flag(&self, name: &str) -> Option<&str> {
        let flags = self.text.split_whitespace().skip(1);
        let mut flags = flags.take_while(|word| word.starts_with("--"));
        flags.find_map(|flag| flag.strip_prefix("--")?.strip_prefix(name)?.strip_prefix('='))
    }

    /// Returns the sources of a `COPY` or `ADD` in its shell form: the words without flags and without the destination.
    pub(super) fn sources_assuming_copy_or_add(&self) -> Vec<&str> {
        let words = self.text.split_whitespace().skip(1);
        let mut words: Vec<_> = words.skip_while(|word| word.starts_with("--")).collect();
        words.pop();
        words
    }
}

/// A mount of a `RUN` that binds a file or a folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BindMountSource<'i> {
    /// The stage, the context or the image that it is from; `None` for the context of the build.
    pub(super) from: Option<&'i str>,
    /// The path in it that is mounted; empty for all of it.
    pub(super) source: &'i str,
}

/// Returns the bind mounts of a `RUN`.
pub(super) fn bind_mounts(instruction: &Instruction) -> Vec<BindMountSource<'_>> {
    let flags = instruction.text.split_whitespace().skip(1);
    let flags = flags.take_while(|word| word.starts_with("--"));
    let mounts = flags.filter_map(|flag| {
        let options = flag.strip_prefix("--mount=")?.trim_matches(['"', '\'']);
        let mut mount = BindMountSource::default();
        for option in options.split(',') {
            match option.split_once('=') {
                Some(("type", kind)) if kind != "bind" => return None,
                Some(("from", from)) => mount.from = Some(from),
                Some(("source" | "src", source)) => mount.source = source,
                _ => {}
            }
        }
        Some(mount)
    });
    mounts.collect()
}

/// Returns the names of the stages that have one, up to 20.
pub(super) fn stage_names(instructions: &[Instruction]) -> Vec<&str> {
    let froms = instructions.iter().filter(|instruction| instruction.is("FROM"));
    let names = froms.filter_map(|from| {
        let words: Vec<_> = from.text.split_whitespace().collect();
        match words.as_slice() {
            [.., word, name] if word.eq_ignore_ascii_case("as") => Some(*name),
            _ => None,
        }
    });
    names.take(20).collect()
}

/// Returns the image or the stage that the stage of an instruction begins from.
pub(super) fn base_of_stage<'i>(
    instructions: &'i [Instruction],
    instruction: &Instruction,
) -> Option<&'i str> {
    let before = instructions
        .iter()
        .take_while(|other| other.line < instruction.line);
    let from = before.filter(|other| other.is("FROM")).last()?;
    let mut words = from.text.split_whitespace().skip(1);
    words.find(|word| !word.starts_with("--"))
}

/// Returns the only instruction whose text is that of a step's name without its number: `[build 2/3] RUN make`.
pub(super) fn only_instruction_of_step<'i>(
    instructions: &'i [Instruction],
    step_name: &str,
) -> Option<&'i Instruction> {
    let (_, wanted) = step_name.strip_prefix('[')?.split_once("] ")?;
    let is_wanted = |instruction: &&Instruction| {
        let mut one = instruction.text.split_whitespace();
        let mut other = wanted.split_whitespace();
        let same_keyword = match (one.next(), other.next()) {
            (Some(one), Some(other)) => one.eq_ignore_ascii_case(other),
            _ => false,
        };
        same_keyword && one.eq(other)
    };
    let mut found = instructions.iter().filter(is_wanted);
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_have_their_first_and_last_lines_and_are_found_by_step_name() {
        let dockerfile = "# syntax\nFROM a AS build\n\nRUN x && \\\n  # a comment\n  y\nRUN <<EOF\nCOPY no /\nEOF\ncopy a \\\n\n b\nRUN z";
        let found = parse_instructions_without_heredocs(dockerfile);
        let lines: Vec<_> = found
            .iter()
            .map(|found| (found.line, found.last_line, keyword(&found.text)))
            .collect();
        assert_eq!(
            lines,
            [
                (2, 2, "FROM"),
                (4, 6, "RUN"),
                (7, 9, "RUN"),
                (10, 12, "copy"),
                (13, 13, "RUN")
            ]
        );
        assert_eq!(stage_names(&found), ["build"]);
        let step = only_instruction_of_step(&found, "[build 2/4] RUN x &&     y");
        assert_eq!(step.map(|step| step.line), Some(4));
        let step = only_instruction_of_step(&found, "[build 4/4] COPY a  b");
        assert_eq!(step.map(|step| step.line), Some(10));
    }

    #[test]
    fn a_step_that_two_instructions_match_has_no_instruction() {
        let found = parse_instructions_without_heredocs("FROM a\nRUN x\nFROM b\nRUN x\n");
        assert_eq!(only_instruction_of_step(&found, "[2/2] RUN x"), None);
    }

    #[test]
    fn another_escape_character_continues_lines_instead_of_the_backslash() {
        let found = parse_instructions_without_heredocs("# escape=`\nFROM a\nRUN x `\n y\\\nRUN z\n");
        assert_eq!(
            found.iter().map(|found| found.line).collect::<Vec<_>>(),
            [2, 3, 5]
        );
    }

    #[test]
    fn a_shift_or_a_quoted_text_begins_no_here_document_and_a_heredoc_word_does() {
        for command in [
            "echo $((x<<shift))",
            "echo $((1 << shift))",
            "echo 'a <<b'",
            "cat <<<word",
        ] {
            let found = parse_instructions_without_heredocs(&format!("FROM a\nRUN {command}\nRUN z\n"));
            assert_eq!(found.len(), 3, "{command}");
        }
        for word in ["<<EOF", "<<-EOF", "<<\"EOF\"", "3<<EOF"] {
            let found =
                parse_instructions_without_heredocs(&format!("FROM a\nRUN cat {word}\nRUN no\nEOF\nRUN z\n"));
            assert_eq!(found.len(), 3, "{word}");
        }
    }
}
