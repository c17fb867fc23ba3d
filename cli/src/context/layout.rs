//! The layout of a build context: the handler laid over its template, as `faas-cli build --shrinkwrap` does it.
//!
//! Nothing is copied: the layout maps each path in the context to the file that it is read from. Like faas-cli, it follows
//! symbolic links, and leaves the handler's own folders `build` and `template` out.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Component, Path, PathBuf};

use builder_fn::context::{IgnoreRules, MatchedFolder};

use crate::failure::Failure;
use crate::function::Function;

/// The entries of a handler's folder that faas-cli leaves out.
const SKIPPED_ENTRIES: [&str; 2] = ["build", "template"];

/// Files at the root of a context that BuildKit reads even if the ignore file excludes them.
const ALWAYS_SENT: [&str; 4] = [
    "Dockerfile",
    "dockerfile",
    "Dockerfile.dockerignore",
    ".dockerignore",
];

/// The ignore files at the root of a context, of which BuildKit reads the first that exists.
const IGNORE_FILES: [&str; 2] = ["Dockerfile.dockerignore", ".dockerignore"];

/// The files and folders of a build context, by their paths in it.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    entries: BTreeMap<String, LayoutEntry>,
    /// The number of files that the ignore file excludes.
    ignored_files: usize,
}

/// An entry of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LayoutEntry {
    /// A folder.
    Folder,
    /// The file that the content is read from.
    File(PathBuf),
}

impl Layout {
    /// Lays out the context of a function, without what its ignore file excludes.
    ///
    /// # Errors
    /// Fails if a file or folder cannot be read or laid out, or the ignore file is malformed.
    pub(crate) fn of_function(function: &Function) -> Result<Self, Failure> {
        let mut layout = Self::default();
        let handler_folder = match &function.template {
            Some(template) => {
                layout.add_tree(&template.folder, "", &mut Vec::new())?;
                clean_path(&template.handler_folder)
            }
            None => String::new(),
        };
        layout.add_folder(&handler_folder)?;
        for (name, path) in read_folder(&function.handler)? {
            if !SKIPPED_ENTRIES.contains(&name.as_str()) {
                layout.add_tree(&path, &join(&handler_folder, &name), &mut Vec::new())?;
            }
        }
        for path in &function.copied_paths {
            let source = copied_path_in_project(path)?;
            layout.add_tree(
                &source,
                &join(&handler_folder, &clean_path(path)),
                &mut Vec::new(),
            )?;
        }
        layout.exclude_ignored()?;
        if !ALWAYS_SENT[..2]
            .iter()
            .any(|name| layout.entries.contains_key(*name))
        {
            return Err(Failure::usage(
                format!("the context of {} has no Dockerfile", function.name),
                match &function.template {
                    Some(template) => format!("add a Dockerfile to {}", template.folder.display()),
                    None => format!(
                        "add a Dockerfile to {}, or name a template in `lang`",
                        function.handler.display()
                    ),
                },
            ));
        }
        Ok(layout)
    }

    /// Returns the entries, sorted by their paths.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &LayoutEntry)> {
        self.entries.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// Returns the number of files.
    pub(crate) fn files(&self) -> usize {
        let is_file = |entry: &&LayoutEntry| matches!(entry, LayoutEntry::File(_));
        self.entries.values().filter(is_file).count()
    }

    /// Returns the number of files that the ignore file excludes.
    pub(crate) fn ignored_files(&self) -> usize {
        self.ignored_files
    }

    /// Adds the file or folder at `source` and everything in it at `path`. `above` has the real paths of the folders that
    /// are being added, among which a symbolic link must not lead back.
    fn add_tree(&mut self, source: &Path, path: &str, above: &mut Vec<PathBuf>) -> Result<(), Failure> {
        let metadata = fs::metadata(source).map_err(|error| unreadable(source, &error))?;
        if metadata.is_file() {
            return self.add_file(path, source);
        }
        if !metadata.is_dir() {
            return Err(Failure::usage(
                format!("{} is neither a file nor a folder", source.display()),
                "remove it, or move it out of the function's folder",
            ));
        }
        let real = source
            .canonicalize()
            .map_err(|error| unreadable(source, &error))?;
        if above.contains(&real) {
            return Err(Failure::usage(
                format!(
                    "{} is a symbolic link to a folder that contains it",
                    source.display()
                ),
                "remove the link, or move it out of the function's folder",
            ));
        }
        self.add_folder(path)?;
        above.push(real);
        for (name, child) in read_folder(source)? {
            self.add_tree(&child, &join(path, &name), above)?;
        }
        above.pop();
        Ok(())
    }

    /// Adds a folder, and the folders above it.
    fn add_folder(&mut self, path: &str) -> Result<(), Failure> {
        let ends = path.match_indices('/').map(|(at, _)| at);
        for end in ends.chain([path.len()]).filter(|end| *end > 0) {
            let folder = &path[..end];
            match self.entries.get(folder) {
                None => {
                    self.entries.insert(folder.to_owned(), LayoutEntry::Folder);
                }
                Some(LayoutEntry::Folder) => {}
                Some(LayoutEntry::File(file)) => {
                    return Err(conflict(
                        folder,
                        &format!("a folder and the file {}", file.display()),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Adds a file, which replaces one at the same path.
    fn add_file(&mut self, path: &str, source: &Path) -> Result<(), Failure> {
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.add_folder(folder)?;
        }
        match self.entries.get(path) {
            Some(LayoutEntry::Folder) => Err(conflict(
                path,
                &format!("a folder and the file {}", source.display()),
            )),
            _ => {
                self.entries
                    .insert(path.to_owned(), LayoutEntry::File(source.to_owned()));
                Ok(())
            }
        }
    }

    /// Removes what the context's ignore file excludes, with the rules of BuildKit's clients.
    fn exclude_ignored(&mut self) -> Result<(), Failure> {
        let files = IGNORE_FILES.iter().filter_map(|name| self.entries.get(*name));
        let Some(LayoutEntry::File(file)) = files.into_iter().next().cloned() else {
            return Ok(());
        };
        let reject = |reason: String| {
            Failure::usage(
                format!("{}: {reason}", file.display()),
                "correct the pattern in that file",
            )
        };
        let content = fs::read(&file).map_err(|error| unreadable(&file, &error))?;
        let rules = IgnoreRules::parse(&content).map_err(|error| reject(error.to_string()))?;
        let mut folders: HashMap<&str, Option<MatchedFolder>> = HashMap::new();
        let root = MatchedFolder::default();
        let mut kept = BTreeMap::new();
        let mut excluded_folders = Vec::new();
        for (path, entry) in &self.entries {
            let parent = path.rsplit_once('/').map(|(parent, _)| parent);
            let matched = match parent {
                None => Some(&root),
                Some(parent) => folders.get(parent).and_then(Option::as_ref),
            };
            let is_folder = *entry == LayoutEntry::Folder;
            let Some(matched) = matched else {
                // The folder above is excluded, with all that is in it.
                self.ignored_files += usize::from(!is_folder);
                continue;
            };
            let decision = rules
                .decide(path, matched)
                .map_err(|error| reject(error.to_string()))?;
            let is_kept = !decision.is_excluded || ALWAYS_SENT.contains(&path.as_str());
            if is_folder {
                let is_entered = !decision.is_excluded || decision.may_include_below;
                folders.insert(path, is_entered.then_some(decision.matched));
            }
            match (is_kept, is_folder) {
                (true, _) => {
                    kept.insert(path.clone(), entry.clone());
                }
                (false, true) => excluded_folders.push(path.clone()),
                (false, false) => self.ignored_files += 1,
            }
        }
        // A folder that is excluded itself is there if something in it is not.
        for folder in excluded_folders.into_iter().rev() {
            let inside = format!("{folder}/");
            if kept
                .range(inside.clone()..)
                .next()
                .is_some_and(|(path, _)| path.starts_with(&inside))
            {
                kept.insert(folder, LayoutEntry::Folder);
            }
        }
        self.entries = kept;
        Ok(())
    }
}

/// Returns the names and paths of a folder's entries, sorted by name.
fn read_folder(folder: &Path) -> Result<Vec<(String, PathBuf)>, Failure> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| unreadable(folder, &error))? {
        let entry = entry.map_err(|error| unreadable(folder, &error))?;
        let name = entry.file_name().into_string().map_err(|name| {
            Failure::usage(
                format!("{}: the name {name:?} is not UTF-8", folder.display()),
                "rename the file, or move it out of the function's folder",
            )
        })?;
        entries.push((name, entry.path()));
    }
    entries.sort();
    Ok(entries)
}

/// Returns the path of an entry of the stack file's `copy`, which has to be inside the working folder, and not all of it.
fn copied_path_in_project(path: &str) -> Result<PathBuf, Failure> {
    let reject = |problem: &str| {
        Failure::usage(
            format!("configuration.copy: {path:?} {problem}"),
            "name a file or folder below the working folder",
        )
    };
    let is_inside = Path::new(path)
        .components()
        .all(|component| matches!(component, Component::Normal(_) | Component::CurDir));
    if !is_inside {
        return Err(reject("is not a path below the working folder"));
    }
    match clean_path(path) {
        cleaned if cleaned.is_empty() => Err(reject("is the whole working folder")),
        cleaned if !Path::new(&cleaned).exists() => Err(reject("does not exist")),
        cleaned => Ok(PathBuf::from(cleaned)),
    }
}

/// Returns a relative path without `.` and `..` components and without a trailing slash.
fn clean_path(path: &str) -> String {
    let parts = path.split('/').filter(|part| !matches!(*part, "" | "." | ".."));
    parts.collect::<Vec<_>>().join("/")
}

/// Joins a folder and a name; the folder may be the root, which is empty.
fn join(folder: &str, name: &str) -> String {
    match (folder.is_empty(), name.is_empty()) {
        (true, _) => name.to_owned(),
        (_, true) => folder.to_owned(),
        _ => format!("{folder}/{name}"),
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::usage(
        format!("could not read {}: {error}", path.display()),
        "correct the file or its permissions, or remove it",
    )
}

fn conflict(path: &str, what: &str) -> Failure {
    Failure::usage(
        format!("{path} in the context would be both {what}"),
        "rename one of the two: the handler is laid over the template",
    )
}

#[cfg(test)]
mod tests;
