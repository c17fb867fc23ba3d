//! Files that an instruction copies or a step uses and that are not where they are looked for, and denied sources.

use super::dockerfile::{Instruction, bind_mounts, stage_names};
use super::evidence::Evidence;
use super::{Hint, HintKind, copied, text};
use crate::context::excluding_pattern_if_found;

/// The limit on the size of an ignore file in bytes. The patterns of a larger one are not considered.
const IGNORE_FILE_READ_BYTES: usize = 64 << 10;

/// The most parts of a path that are looked at.
const MAX_PATH_PARTS: usize = 64;

/// A pattern that excludes a path.
struct ExcludingPattern {
    /// The ignore file.
    file: String,
    /// The line of the pattern.
    line: u32,
    /// The pattern as it is written.
    pattern: String,
}

/// Explains a source that the builder's rules deny.
pub(super) fn explain_source_denied_by_rules(evidence: &Evidence<'_>) -> Option<Hint> {
    let (source, reason) = evidence
        .error
        .strip_prefix("the build may not read ")?
        .split_once(": ")?;
    Some(Hint::new(
        HintKind::SourceDenied,
        format!("the rules of this builder do not let the build read {source}: {reason}"),
        "use a source that the rules allow, or ask the operator to allow this one",
    ))
}

/// Explains a source of `COPY`, `ADD` or a mount that is not there.
pub(super) fn explain_missing_source(evidence: &Evidence<'_>) -> Option<Hint> {
    if evidence.process_failure_reason().is_some() {
        return None;
    }
    let (_, rest) = evidence
        .error
        .split_once("failed to calculate checksum of ref ")?;
    let path = rest.strip_suffix("\": not found")?.split_once(": \"/")?.1;
    // Without the instruction it is not known that the path belongs to the context.
    let instruction = evidence.instruction()?;
    if let Some(from) = only_origin_where_inner_none_is_context(instruction, path)? {
        let is_stage = stage_names(evidence.instructions()).contains(&from);
        return Some(Hint::new(
            HintKind::SourceMissing,
            format!(
                "{}{from} has no /{path}, which the instruction uses from it",
                if is_stage { "the stage " } else { "" }
            ),
            format!(
                "use a path that {} has, or create {} there",
                text::name_if_safe_or(from, "it"),
                text::name_if_safe_or(path, "this one")
            ),
        ));
    }
    let dockerfile = evidence.failure.dockerfile;
    let line = Some(instruction.line);
    if let Some(found) = find_excluding_pattern_if_certain(evidence, path) {
        return Some(ignored_hint(path, &found));
    }
    if let Some(found) = find_path_in_other_case(evidence, path) {
        return Some(
            Hint::new(
                HintKind::SourceWrongCase,
                format!("the context has no {path}; it has {found}, in another case"),
                format!(
                    "write {} in the instruction, or rename the file",
                    text::name_if_safe_or(&found, "the name of the file")
                ),
            )
            .at(dockerfile, line),
        );
    }
    if let Some(outside) = source_outside_context(instruction) {
        return Some(
            Hint::new(
                HintKind::SourceMissing,
                format!("{outside} is outside of the context, and {path} is not in it: an instruction reaches only files of the context"),
                format!(
                    "move {} into the context, or hand in a folder as the context that has both",
                    text::name_if_safe_or(path, "the file")
                ),
            )
            .at(dockerfile, line),
        );
    }
    Some(
        Hint::new(
            HintKind::SourceMissing,
            format!("the context has no {path}"),
            format!(
                "add {} to the context, or correct the instruction; paths are relative to the context",
                text::name_if_safe_or(path, "it")
            ),
        )
        .at(dockerfile, line),
    )
}

/// Explains a manifest that a package manager does not find where the step runs.
pub(super) fn explain_missing_manifest(evidence: &Evidence<'_>) -> Option<Hint> {
    evidence.process_failure_reason()?;
    let name = evidence.lines().rev().take(80).find_map(|line| {
        if line.starts_with("error: could not find `Cargo.toml` in ") {
            return Some("Cargo.toml");
        }
        if line.contains("Could not read package.json: Error: ENOENT") {
            return Some("package.json");
        }
        if line.contains("go.mod file not found in current directory")
            || line.starts_with("go: cannot find main module")
        {
            return Some("go.mod");
        }
        let pip = line.strip_prefix("ERROR: Could not open requirements file: ")?;
        text::between(pip, "directory: '", "'")
    })?;
    Some(Hint::new(
        HintKind::SourceMissing,
        format!("the step finds no {name} where it runs"),
        format!(
            "copy {} into the working directory of the step before it (COPY, WORKDIR), or run the command in its folder",
            text::name_if_safe_or(name, "the file")
        ),
    ))
}

/// Explains a file that a step's program does not find, if a `COPY` would have brought it to exactly this path, but for
/// a pattern that excludes it or for its case.
pub(super) fn explain_step_file_excluded_or_in_other_case(evidence: &Evidence<'_>) -> Option<Hint> {
    evidence.process_failure_reason()?;
    let line = evidence.lines().rev().take(50).find(|line| {
        ["No such file", "cannot open", "can't open", "not found", "ENOENT"]
            .iter()
            .any(|words| line.contains(words))
    })?;
    let words = line.split(|character: char| {
        character.is_whitespace() || matches!(character, '\'' | '"' | '`' | ',' | '(' | ')')
    });
    let words = words
        .map(|word| word.trim_end_matches([':', '.']))
        .filter(|word| may_be_path(word))
        .take(8);
    let step = evidence.instruction()?;
    let copied = copied::CopiedFolders::copied_before_step(evidence.instructions(), step);
    let sources = words.flat_map(|word| copied.possible_context_paths_for_image_path(word));
    let mut sources = sources.filter(|source| !source.is_empty()).take(32);
    let files = evidence.failure.files;
    let mut in_other_case = None;
    let source = sources.find(|source| {
        let is_there = files.has(source);
        if !is_there && in_other_case.is_none() {
            in_other_case = find_path_in_other_case(evidence, source).map(|found| (source.clone(), found));
        }
        is_there
    });
    if let Some(source) = source {
        let found = find_excluding_pattern_if_certain(evidence, &source)?;
        return Some(
            match command_names_file(step, &source) && !may_be_secret(&source) {
                true => ignored_hint(&source, &found),
                false => ignored_hint_without_exception(&source, &found),
            },
        );
    }
    let (wanted, found) = in_other_case?;
    Some(
        Hint::new(
            HintKind::SourceWrongCase,
            format!("the step uses {wanted}, and the context has {found}, in another case"),
            format!(
                "write {}, or rename the file",
                text::name_if_safe_or(&found, "the name of the file")
            ),
        )
        .at(&found, None),
    )
}

/// Returns whether a `RUN` has the name of a file in its command.
fn command_names_file(step: &Instruction, path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let mut words = step
        .text
        .split(|character: char| character.is_whitespace() || "'\"`,()[];&|<>=/".contains(character));
    words.any(|word| word == name)
}

/// Returns whether a file may have secrets, by its name.
fn may_be_secret(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    let words = [
        "secret",
        "credential",
        "password",
        "token",
        "id_rsa",
        "id_ed25519",
        ".pem",
        ".key",
        ".p12",
    ];
    path.split('/').any(|part| part.starts_with('.')) || words.iter().any(|words| path.contains(words))
}

/// Returns the hint for a path that a pattern excludes.
fn ignored_hint(path: &str, found: &ExcludingPattern) -> Hint {
    let ExcludingPattern { file, line, pattern } = found;
    let pattern = text::one_line_cut_with_ellipsis(pattern, super::MAX_NAME_OR_LINE_BYTES);
    Hint::new(
        HintKind::SourceIgnored,
        format!("line {line} of {file} ({pattern}) excludes {path} from the build"),
        match text::is_safe_in_shell_advice(path) && text::is_safe_in_shell_advice(file) {
            true => {
                format!("add the exception !{path} below line {line} of {file}, or narrow the pattern; or do without {path}")
            }
            false => "narrow the pattern, or do without the file".to_owned(),
        },
    )
    .at(file, Some(*line))
}

/// Returns the hint for a path that a pattern excludes, perhaps on purpose: it does not advise to add an exception.
fn ignored_hint_without_exception(path: &str, found: &ExcludingPattern) -> Hint {
    Hint {
        next: "let the step do without the file, or narrow the pattern if the image may have it; what is secret belongs into a \
               secret of the build"
            .to_owned(),
        ..ignored_hint(path, found)
    }
}

/// Returns what an instruction uses `path` from: the stage, image or other context that it names, or `Some(None)` for
/// the context of the build. Returns `None` if no mount of a `RUN` has the path, or mounts from several origins have
/// it.
fn only_origin_where_inner_none_is_context<'i>(
    instruction: &'i Instruction,
    path: &str,
) -> Option<Option<&'i str>> {
    if !instruction.is("RUN") {
        return Some(instruction.flag("from"));
    }
    let mounts = bind_mounts(instruction);
    let normal = |source: &str| source.trim_start_matches("./").trim_matches('/').to_owned();
    let mut origins = mounts.iter().filter(|mount| normal(mount.source) == normal(path));
    let first = origins.next()?.from;
    origins.all(|mount| mount.from == first).then_some(first)
}

/// Returns the pattern that excludes a path: of the Dockerfile's own ignore file, or else of `.dockerignore`.
fn find_excluding_pattern_if_certain(evidence: &Evidence<'_>, path: &str) -> Option<ExcludingPattern> {
    let files = evidence.failure.files;
    let own = format!("{}.dockerignore", evidence.failure.dockerfile);
    let shared = ".dockerignore".to_owned();
    let (file, content) = match files.read_beginning(&own, IGNORE_FILE_READ_BYTES + 1) {
        Some(content) => (own, content),
        None => {
            let content = files.read_beginning(&shared, IGNORE_FILE_READ_BYTES + 1)?;
            (shared, content)
        }
    };
    // An exception may follow after what was read.
    if content.len() > IGNORE_FILE_READ_BYTES {
        return None;
    }
    let (line, pattern) = excluding_pattern_if_found(&content, path)?;
    Some(ExcludingPattern {
        file,
        line: u32::try_from(line).ok()?,
        pattern,
    })
}

/// Returns the path in the context that differs from `path` in case only.
fn find_path_in_other_case(evidence: &Evidence<'_>, path: &str) -> Option<String> {
    let files = evidence.failure.files;
    let mut found = String::new();
    for part in path.split('/').take(MAX_PATH_PARTS) {
        let exact = match found.is_empty() {
            true => part.to_owned(),
            false => format!("{found}/{part}"),
        };
        if files.has(&exact) {
            found = exact;
            continue;
        }
        let other = files.find_only_name_in_other_case(&found, part)?;
        found = match found.is_empty() {
            true => other,
            false => format!("{found}/{other}"),
        };
    }
    (found != path && found.eq_ignore_ascii_case(path)).then_some(found)
}

/// Returns the source of an instruction that leads out of the context.
fn source_outside_context(instruction: &Instruction) -> Option<&str> {
    let is_outside = |source: &&str| {
        let mut depth = 0_i32;
        source.split('/').any(|part| {
            match part {
                "" | "." => {}
                ".." => depth -= 1,
                _ => depth += 1,
            }
            depth < 0
        })
    };
    instruction
        .sources_assuming_copy_or_add()
        .into_iter()
        .find(is_outside)
}

/// Returns whether a word of output may be a path: it has a dot or a slash, and a letter.
fn may_be_path(word: &str) -> bool {
    word.len() <= 1024
        && word.contains(['.', '/'])
        && word.contains(|character: char| character.is_alphanumeric())
        && !word.contains("://")
}
