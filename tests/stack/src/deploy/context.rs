//! A build context on disk: its hash, and the tar for builder-fn.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::error::{IoResultExt as _, Result};

/// The files of a build context, sorted by path.
#[derive(Debug)]
pub(super) struct Context {
    files: Vec<File>,
}

#[derive(Debug)]
struct File {
    /// The path of the file, relative to the context's root.
    path: PathBuf,
    mode: u32,
    content: Vec<u8>,
}

impl Context {
    /// Reads the build context with all files of a directory.
    pub(super) fn read(directory: &Path) -> Result<Self> {
        let mut files = Vec::new();
        read(directory, Path::new(""), &mut files)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { files })
    }

    /// Returns a hash of the context's files and of `inputs`, the other inputs of the image's build. The hash
    /// is valid as a tag.
    pub(super) fn hash(&self, inputs: &[&str]) -> String {
        let mut hash = Hash::new(inputs);
        for file in &self.files {
            hash.add(file.path.as_os_str().as_encoded_bytes());
            hash.add(&file.mode.to_be_bytes());
            hash.add(&file.content);
        }
        hash.finish()
    }

    /// Returns the tar of a build request: the configuration, then the files.
    pub(super) fn tar(&self, config: &Value) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut append = |path: &Path, mode: u32, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(mode);
            // The same time for all files, because the time of copying must not affect the image.
            header.set_mtime(1);
            tar.append_data(&mut header, path, content)
                .at("add to the tar", path)
        };
        append(
            Path::new("com.openfaas.docker.config"),
            0o644,
            config.to_string().as_bytes(),
        )?;
        for file in &self.files {
            append(&Path::new("context").join(&file.path), file.mode, &file.content)?;
        }
        tar.into_inner().at("finish", "the tar")
    }
}

/// Returns a hash of texts, which changes if a boundary between them moves.
pub(super) fn hash_of(texts: &[&str]) -> String {
    Hash::new(texts).finish()
}

/// A hash over length-prefixed parts, so that moving a boundary between parts changes it.
struct Hash(Sha256);

impl Hash {
    fn new(parts: &[&str]) -> Self {
        let mut hash = Self(Sha256::new());
        parts.iter().for_each(|part| hash.add(part.as_bytes()));
        hash
    }

    fn add(&mut self, part: &[u8]) {
        self.0.update((part.len() as u64).to_be_bytes());
        self.0.update(part);
    }

    fn finish(self) -> String {
        let mut text = hex::encode(self.0.finalize());
        text.truncate(16);
        text
    }
}

fn read(directory: &Path, below: &Path, files: &mut Vec<File>) -> Result<()> {
    for entry in fs::read_dir(directory).at("read", directory)? {
        let entry = entry.at("read", directory)?;
        let (path, below) = (entry.path(), below.join(entry.file_name()));
        if path.is_dir() {
            read(&path, &below, files)?;
            continue;
        }
        let mode = entry.metadata().at("read", &path)?.permissions().mode() & 0o777;
        files.push(File {
            path: below,
            mode,
            content: fs::read(&path).at("read", &path)?,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(files: &[(&str, &str)]) -> Context {
        let directory = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        Context::read(directory.path()).unwrap()
    }

    #[test]
    fn the_hash_changes_with_names_contents_and_other_inputs() {
        let first = context(&[("a/b", "c")]).hash(&["x"]);
        assert_eq!(first, context(&[("a/b", "c")]).hash(&["x"]));
        for other in [
            context(&[("a/b", "d")]).hash(&["x"]),
            context(&[("a/c", "c")]).hash(&["x"]),
            context(&[("a/b", "c")]).hash(&["y"]),
            context(&[("a/b", "c"), ("e", "")]).hash(&["x"]),
        ] {
            assert_ne!(first, other);
        }
        assert_ne!(hash_of(&["ab", "c"]), hash_of(&["a", "bc"]));
    }

    #[test]
    fn the_tar_has_the_configuration_first_and_the_files_under_context() {
        let tar = context(&[("src/main.rs", "fn main() {}"), ("Dockerfile", "FROM scratch")]);
        let tar = tar.tar(&serde_json::json!({ "image": "x" })).unwrap();
        let mut archive = tar::Archive::new(tar.as_slice());
        let names = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string());
        let names = names.collect::<Vec<_>>();
        assert_eq!(
            names,
            [
                "com.openfaas.docker.config",
                "context/Dockerfile",
                "context/src/main.rs"
            ]
        );
    }
}
