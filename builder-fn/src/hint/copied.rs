//! Where the instructions of a stage copy folders of the context to.

use super::dockerfile::Instruction;

/// The most instructions that are remembered.
const MAX_COPIES: usize = 16;

/// The working directory of a base image, which is not known: no path of a program begins with it.
const UNKNOWN_FOLDER: &str = "?";

/// Where the instructions of a stage before a step copy folders of the context to.
pub(super) struct CopiedFolders {
    /// The working directory of the step; `None` if its command may change it.
    working_directory: Option<String>,
    copies: Vec<CopiedFolder>,
}

/// A folder of the context, and where its content is copied to.
struct CopiedFolder {
    /// The folder; empty for the whole context.
    source: String,
    destination: String,
}

impl CopiedFolders {
    /// Reads what the instructions of the step's stage before it copy. What is not certain is left out: variables, wildcards, lists
    /// in JSON, here-documents, and what other stages copied.
    pub(super) fn before(instructions: &[Instruction], step: &Instruction) -> Self {
        let mut folder = UNKNOWN_FOLDER.to_owned();
        let mut copies = Vec::new();
        for instruction in instructions.iter().take_while(|other| other.line < step.line) {
            if instruction.is("FROM") {
                copies.clear();
                UNKNOWN_FOLDER.clone_into(&mut folder);
            } else if instruction.is("WORKDIR") {
                let path = instruction.text.split_whitespace().nth(1).unwrap_or_default();
                folder = match is_certain(path) {
                    true => join(&folder, path),
                    false => UNKNOWN_FOLDER.to_owned(),
                };
            } else if (instruction.is("COPY") || instruction.is("ADD")) && instruction.flag("from").is_none()
            {
                let Some(destination) = instruction.text.split_whitespace().last() else {
                    continue;
                };
                let sources = instruction.sources();
                if !sources.iter().copied().chain([destination]).all(is_certain) {
                    continue;
                }
                copies.extend(sources.into_iter().map(|source| CopiedFolder {
                    source: normal(source).trim_start_matches('/').to_owned(),
                    destination: join(&folder, destination),
                }));
            }
        }
        let moves = |word: &str| matches!(word, "cd" | "pushd" | "-C" | "chdir");
        let is_moving = step
            .text
            .split(|character: char| !character.is_alphanumeric() && character != '-');
        Self {
            working_directory: Some(folder).filter(|_| !is_moving.into_iter().any(moves)),
            copies: copies.into_iter().take(MAX_COPIES).collect(),
        }
    }

    /// Returns the working directory of the step; `None` if its command may change it.
    pub(super) fn working_directory(&self) -> Option<&str> {
        self.working_directory.as_deref()
    }

    /// Returns the paths in the context that would be at `path` in the image, if the context had them.
    pub(super) fn sources_of(&self, path: &str) -> Vec<String> {
        let absolute = match (&self.working_directory, path.starts_with('/')) {
            (_, true) => normal(path),
            (Some(folder), false) => join(folder, path),
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

/// Returns whether a word of an instruction is the path that it is written as.
fn is_certain(word: &str) -> bool {
    !word.contains(['$', '*', '?', '[', ']', '{', '"', '\'', '\\', '<', '|', ':'])
}

/// Returns `path` as it is seen from `folder`.
fn join(folder: &str, path: &str) -> String {
    match path.starts_with('/') {
        true => normal(path),
        false => normal(&format!("{folder}/{path}")),
    }
}

/// Returns a path without `.`, without `..` and without slashes that mean nothing.
fn normal(path: &str) -> String {
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
