//! Finds and reads the files of the repository.

use std::path::{Path, PathBuf};

/// Folders that are skipped, because they hold git's own files, or files that were built or downloaded.
const SKIPPED_FOLDERS: [&str; 7] = [
    ".git",
    "target",
    "build",
    "node_modules",
    "corpus",
    "artifacts",
    "coverage",
];

/// Returns the root of the repository.
pub(crate) fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().unwrap()
}

/// Returns the text of the file at `path` within the repository.
pub(crate) fn read(path: &str) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the paths, relative to the root, of all files in `folder` that `is_wanted_name` accepts by their name.
pub(crate) fn files_not_built_or_downloaded(
    folder: &str,
    is_wanted_name: impl Fn(&str) -> bool,
) -> Vec<String> {
    let root = root();
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            if entry.file_type().unwrap().is_dir() {
                if !SKIPPED_FOLDERS.contains(&&*name) {
                    folders.push(path);
                }
            } else if is_wanted_name(&name) {
                let relative = path.strip_prefix(&root).unwrap();
                found.push(relative.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}
