//! The layout of a build context: the handler laid over its template, as `faas-cli build --shrinkwrap` does it.
//!
//! Nothing is copied: the layout maps each path in the context to the file that it is read from. Like faas-cli, it
//! follows symbolic links, and leaves the handler's own folders `build` and `template` out. Unlike faas-cli, it follows
//! no link that leads out of the project, and does not look at what the ignore file excludes.

mod ignoring;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use builder_fn::context::PatternsMatchingFolder;

use crate::failure::Failure;
use crate::function::Function;
use ignoring::ContextIgnoreRules;

/// The entries of a handler's folder that faas-cli leaves out.
const SKIPPED_HANDLER_ENTRIES: [&str; 2] = ["build", "template"];

/// The names of a Dockerfile at the root of a context.
const DOCKERFILE_NAMES: [&str; 2] = ["Dockerfile", "dockerfile"];

/// The files and folders of a build context, by their paths in it.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    entries: BTreeMap<String, LayoutEntry>,
    /// The number of files and folders that the ignore file excludes.
    ignored: usize,
}

/// An entry of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LayoutEntry {
    /// A folder.
    Folder,
    /// The file that the content is read from.
    File(PathBuf),
}

/// The state of laying out: the rules, and the real folders that are being added or may be linked to.
struct LayoutWalk {
    ignoring: ContextIgnoreRules,
    /// The real folders that symbolic links may lead into.
    roots: Vec<PathBuf>,
    /// The real folders that are being added, among which a symbolic link must not lead back.
    above: Vec<PathBuf>,
}

impl Layout {
    /// Lays out the context of a function, without what its ignore file excludes.
    ///
    /// # Errors
    /// Fails if a file or folder cannot be read or laid out, the ignore file is malformed, or the context would have no
    /// Dockerfile or would contain a build secret.
    pub(crate) fn of_function(function: &Function) -> Result<Self, Failure> {
        let mut layout = Self::default();
        let template = function.template.as_ref();
        let roots = [
            Some(Path::new(".")),
            Some(&function.handler),
            template.map(|template| &*template.folder),
        ];
        let mut walk = LayoutWalk {
            ignoring: ContextIgnoreRules::of_function(function)?,
            roots: roots
                .into_iter()
                .flatten()
                .filter_map(|root| root.canonicalize().ok())
                .collect(),
            above: Vec::new(),
        };
        let handler_folder =
            template.map(|template| drop_dot_and_dot_dot_components(&template.handler_folder));
        let handler_folder = handler_folder.unwrap_or_default();
        if let Some(template) = template {
            layout.add_entries(
                &template.folder,
                "",
                &[],
                &PatternsMatchingFolder::default(),
                &mut walk,
            )?;
        }
        if let Some(matched) = walk
            .ignoring
            .patterns_matching_folder_unless_excluded(&handler_folder)?
        {
            if walk
                .ignoring
                .decide(&handler_folder, &PatternsMatchingFolder::default())?
                .is_kept
            {
                layout.add_folder(&handler_folder)?;
            }
            layout.add_entries(
                &function.handler,
                &handler_folder,
                &SKIPPED_HANDLER_ENTRIES,
                &matched,
                &mut walk,
            )?;
        }
        for path in &function.copied_paths {
            let source = existing_copied_path_in_project(path)?;
            let path = join(&handler_folder, &drop_dot_and_dot_dot_components(path));
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            if let Some(matched) = walk.ignoring.patterns_matching_folder_unless_excluded(parent)? {
                layout.add_tree(&source, &path, &matched, &mut walk)?;
            }
        }
        layout.check_has_dockerfile_and_no_secret_file(function)?;
        Ok(layout)
    }

    /// Returns the path in the context of a file on this machine, if it is part of the context.
    pub(crate) fn context_path_of(&self, file: &Path) -> Option<&str> {
        let identity = |path: &Path| {
            fs::metadata(path)
                .ok()
                .map(|metadata| (metadata.dev(), metadata.ino()))
        };
        let wanted = identity(file)?;
        let mut entries = self.entries();
        let found = entries.find(
            |(_, entry)| matches!(entry, LayoutEntry::File(source) if identity(source) == Some(wanted)),
        );
        found.map(|(path, _)| path)
    }

    /// Checks that a context has a Dockerfile and contains the file of no build secret.
    fn check_has_dockerfile_and_no_secret_file(&self, function: &Function) -> Result<(), Failure> {
        if !DOCKERFILE_NAMES
            .iter()
            .any(|name| self.entries.contains_key(*name))
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
        for (secret, file) in &function.build_secrets {
            if let Some(path) = self.context_path_of(file) {
                return Err(Failure::usage(
                    format!(
                        "the build secret {secret} of {} is sealed, and its file {} would be sent in the context as {path}, too",
                        function.name,
                        file.display()
                    ),
                    "name the file in .dockerignore, or move it out of the function's folder",
                ));
            }
        }
        Ok(())
    }

    /// Returns the entries, sorted by their paths.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &LayoutEntry)> {
        self.entries.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// Returns the number of files.
    pub(crate) fn file_count(&self) -> usize {
        let is_file = |entry: &&LayoutEntry| matches!(entry, LayoutEntry::File(_));
        self.entries.values().filter(is_file).count()
    }

    /// Returns the number of files and folders that the ignore file excludes.
    pub(crate) fn ignored_count(&self) -> usize {
        self.ignored
    }

    /// Adds the entries of the folder at `source` to the folder `path`, except those with the `skipped_names`.
    /// `matched` has the patterns that match the folder `path`.
    fn add_entries(
        &mut self,
        source: &Path,
        path: &str,
        skipped_names: &[&str],
        matched: &PatternsMatchingFolder,
        walk: &mut LayoutWalk,
    ) -> Result<(), Failure> {
        for entry in fs::read_dir(source).map_err(|error| unreadable(source, &error))? {
            let entry = entry.map_err(|error| unreadable(source, &error))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                let decision = walk
                    .ignoring
                    .decide(&join(path, &name.to_string_lossy()), matched)?;
                if decision.is_kept {
                    return Err(Failure::usage(
                        format!("{}: the name {name:?} is not UTF-8", source.display()),
                        "rename the file, or name it in .dockerignore",
                    ));
                }
                self.ignored += 1;
                continue;
            };
            if !skipped_names.contains(&name) {
                self.add_tree(&entry.path(), &join(path, name), matched, walk)?;
            }
        }
        Ok(())
    }

    /// Adds the file or folder at `source` and everything in it at `path`, as far as the ignore file does not exclude
    /// it. `parent` has the patterns that match the folder of `path`.
    fn add_tree(
        &mut self,
        source: &Path,
        path: &str,
        parent: &PatternsMatchingFolder,
        walk: &mut LayoutWalk,
    ) -> Result<(), Failure> {
        let decision = walk.ignoring.decide(path, parent)?;
        if !decision.is_kept && !decision.is_entered {
            self.ignored += 1;
            return Ok(());
        }
        let metadata = match fs::metadata(source) {
            Ok(metadata) if metadata.is_dir() || decision.is_kept => metadata,
            Err(error) if decision.is_kept => return Err(unreadable(source, &error)),
            // An exception of the ignore file may be about a folder only.
            _ => {
                self.ignored += 1;
                return Ok(());
            }
        };
        walk.check_link_target_is_in_project(source)?;
        if metadata.is_file() {
            return self.add_file(path, source);
        }
        if !metadata.is_dir() {
            return Err(Failure::usage(
                format!("{} is neither a file nor a folder", source.display()),
                "name it in .dockerignore, or move it out of the function's folder",
            ));
        }
        let real = source
            .canonicalize()
            .map_err(|error| unreadable(source, &error))?;
        if walk.above.contains(&real) {
            return Err(Failure::usage(
                format!(
                    "{} is a symbolic link to a folder that contains it",
                    source.display()
                ),
                "name the link in .dockerignore, or remove it",
            ));
        }
        if decision.is_kept {
            self.add_folder(path)?;
        }
        walk.above.push(real);
        self.add_entries(source, path, &[], &decision.matched, walk)?;
        walk.above.pop();
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
}

impl LayoutWalk {
    /// Checks that `source`, if it is a symbolic link, leads to a place in the project.
    fn check_link_target_is_in_project(&self, source: &Path) -> Result<(), Failure> {
        let is_link = fs::symlink_metadata(source).is_ok_and(|metadata| metadata.is_symlink());
        let target = source
            .canonicalize()
            .map_err(|error| unreadable(source, &error))?;
        if !is_link || self.roots.iter().any(|root| target.starts_with(root)) {
            return Ok(());
        }
        Err(Failure::usage(
            format!(
                "{} is a symbolic link to {}, which is outside of the project",
                source.display(),
                target.display()
            ),
            "copy what the build needs into the function's folder, or name the link in .dockerignore",
        ))
    }
}

/// Returns the path of an entry of the stack file's `copy`, which has to be inside the working folder, and not all of
/// it.
fn existing_copied_path_in_project(path: &str) -> Result<PathBuf, Failure> {
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
    match drop_dot_and_dot_dot_components(path) {
        cleaned if cleaned.is_empty() => Err(reject("is the whole working folder")),
        cleaned if !Path::new(&cleaned).exists() => Err(reject("does not exist")),
        cleaned => Ok(PathBuf::from(cleaned)),
    }
}

/// Returns a relative path without `.` and `..` components and without a trailing slash.
fn drop_dot_and_dot_dot_components(path: &str) -> String {
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

fn conflict(path: &str, both_entries: &str) -> Failure {
    Failure::usage(
        format!("{path} in the context would be both {both_entries}"),
        "rename one of the two: the handler is laid over the template",
    )
}

#[cfg(test)]
mod tests;
