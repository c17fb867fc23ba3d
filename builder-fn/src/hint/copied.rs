//! Where the instructions of a stage copy folders of the context to.

use super::dockerfile::Instruction;

/// The most copied folders that are remembered.
const MAX_COPIED_FOLDERS: usize = 16;

/// The working directory of a base image, which is not known: no path of a program begins with it.
const UNKNOWN_WORKING_DIRECTORY: &str = "?";

/// Where the instructions of a stage before a step copy folders of the context to.
pub(super) struct CopiedFolders {
    /// The working directory of the step; `None` if its command may change it.
    working_directory_unless_command_may_change_it: Option<String>,
    copies: Vec<CopiedFolder>,
}

/// A folder of the context, and where its content is copied to.
struct CopiedFolder {
    /// The folder; empty for the whole context.
    source: String,
    destination: String,
}

impl CopiedFolders {
    /// Reads what the instructions of the step's stage before it copy. What is not certain is left out: variables,
    /// wildcards, lists in JSON, here-documents, and what other stages copied.
    pub(super) fn copied_before_step(instructions: &[Instruction], step: &Instruction) -> Self {
        let mut folder = UNKNOWN_WORKING_DIRECTORY.to_owned();
        let mut copies = Vec::new();
        for instruction in instructions.iter().take_while(|other| other.line < step.line) {
            if instruction.is("FROM") {
                copies.clear();
                UNKNOWN_WORKING_DIRECTORY.clone_into(&mut folder);
            } else if instruction.is("WORKDIR") {
                let path = instruction.text.split_whitespace().nth(1).unwrap_or_default();
                folder = match is_literal_path(path) {
                    true => join_and_normalize(&folder, path),
                    false => UNKNOWN_WORKING_DIRECTORY.to_owned(),
                };
            } else if (instruction.is("COPY") || instruction.is("ADD")) && instruction.flag("from").is_none()
            {
                let Some(destination) = instruction.text.split_whitespace().last() else {
                    continue;
                };
                let sources = instruction.sources_assuming_copy_or_add();
                if !sources.iter().copied().chain([destination]).all(is_literal_path) {
                    continue;
                }
                copies.extend(sources.into_iter().map(|source| CopiedFolder {
                    source: normalize_path(source).trim_start_matches('/').to_owned(),
                    destination: join_and_normalize(&folder, destination),
                }));
            }
        }
        let moves = |word: &str| matches!(word, "cd" | "pushd" | "-C" | "chdir");
        let is_moving = step
            .text
            .split(|character: char| !character.is_alphanumeric() && character != '-');
        Self {
            working_directory_unless_command_may_change_it: Some(folder)
                .filter(|_| !is_moving.into_iter().any(moves)),
            copies: copies.into_iter().take(MAX_COPIED_FOLDERS).collect(),
        }
    }

    /// Returns the working directory of the step; `None` if its command may change it.
    pub(super) fn working_directory_unless_command_may_change_it(&self) -> Option<&str> {
        self.working_directory_unless_command_may_change_it.as_deref()
    }

    /// Returns the files of the context that the instructions copied to `path`, if they are files: by their names into
    /// its folder, or under its name.
    pub(super) fn possible_files_copied_to(&self, path: &str) -> Vec<String> {
        let absolute = normalize_path(path);
        let (folder, name) = folder_and_name(&absolute);
        let is_source = |copy: &&CopiedFolder| {
            let source_name = copy.source.rsplit('/').next();
            copy.destination == absolute || copy.destination == folder && source_name == Some(name)
        };
        let copies = self.copies.iter().filter(is_source);
        copies
            .map(|copy| copy.source.clone())
            .filter(|source| !source.is_empty())
            .collect()
    }

    /// Returns the paths in the context that would be at `path` in the image, if the context had them.
    pub(super) fn possible_context_paths_for_image_path(&self, path: &str) -> Vec<String> {
        let absolute = match (
            &self.working_directory_unless_command_may_change_it,
            path.starts_with('/'),
        ) {
            (_, true) => normalize_path(path),
            (Some(folder), false) => join_and_normalize(folder, path),
            (None, false) => return Vec::new(),
        };
        let source_of = |copy: &CopiedFolder| {
            let rest = absolute.strip_prefix(copy.destination.as_str())?;
            let rest = match copy.destination.as_str() {
                "/" => rest,
                _ => rest.strip_prefix('/')?,
            };
            Some(match copy.source.is_empty() {
                true => rest.to_owned(),
                false => format!("{}/{rest}", copy.source),
            })
        };
        self.copies.iter().filter_map(source_of).collect()
    }
}

/// Returns the folder of a path that begins with a slash, and the name in it.
fn folder_and_name(path: &str) -> (&str, &str) {
    match path.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some(parts) => parts,
        None => ("", path),
    }
}

/// Returns whether a word of an instruction is the path that it is written as.
fn is_literal_path(word: &str) -> bool {
    !word.contains(['$', '*', '?', '[', ']', '{', '"', '\'', '\\', '<', '|', ':'])
}

/// Resolves `path` against `folder`, unless it is absolute, and normalizes the result.
fn join_and_normalize(folder: &str, path: &str) -> String {
    match path.starts_with('/') {
        true => normalize_path(path),
        false => normalize_path(&format!("{folder}/{path}")),
    }
}

/// Returns a path without `.`, without `..` and without slashes that mean nothing.
fn normalize_path(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match path.starts_with('/') {
        true => format!("/{joined}"),
        false => joined,
    }
}
