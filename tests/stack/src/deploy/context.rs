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
pub(super) struct StackBuildContext {
    files: Vec<ContextFile>,
}

#[derive(Debug)]
struct ContextFile {
    /// The path of the file, relative to the context's root.
    path: PathBuf,
    mode: u32,
    content: Vec<u8>,
}

impl StackBuildContext {
    /// Reads the build context with all files of a directory and of the directories in it.
    pub(super) fn read_directory_tree(directory: &Path) -> Result<Self> {
        let mut files = Vec::new();
        read_files_below(directory, Path::new(""), &mut files)?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { files })
    }

    /// Returns a hash of the context's files and of the other inputs of the image's build. The hash is valid as a
    /// tag.
    pub(super) fn tag_hash(&self, other_inputs: &[&str]) -> String {
        let mut hasher = LengthPrefixedHasher::new(other_inputs);
        for file in &self.files {
            hasher.add_bytes(file.path.as_os_str().as_encoded_bytes());
            hasher.add_bytes(&file.mode.to_be_bytes());
            hasher.add_bytes(&file.content);
        }
        hasher.into_first_16_hex_digits()
    }

    /// Returns the tar of a build request: the configuration, then the files.
    pub(super) fn tar_of_build_request(&self, config: &Value) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut append = |path: &Path, mode: u32, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(mode);
            // The same time for all files, because the time of copying must not affect the image.
            header.set_mtime(1);
            tar.append_data(&mut header, path, content)
                .with_operation("add to the tar", path)
        };
        append(
            Path::new("com.openfaas.docker.config"),
            0o644,
            config.to_string().as_bytes(),
        )?;
        for file in &self.files {
            append(&Path::new("context").join(&file.path), file.mode, &file.content)?;
        }
        tar.into_inner().with_operation("finish", "the tar")
    }
}

/// Returns a hash of texts, which changes if a boundary between them moves.
pub(super) fn hash_of_texts(texts: &[&str]) -> String {
    LengthPrefixedHasher::new(texts).into_first_16_hex_digits()
}

/// A SHA-256 hasher of byte strings, each with its length before it, so that moving a boundary changes the hash.
struct LengthPrefixedHasher(Sha256);

impl LengthPrefixedHasher {
    /// Creates a hasher with these texts already added.
    fn new(texts: &[&str]) -> Self {
        let mut hasher = Self(Sha256::new());
        texts.iter().for_each(|text| hasher.add_bytes(text.as_bytes()));
        hasher
    }

    fn add_bytes(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    /// Returns the first 16 hexadecimal digits of the SHA-256 hash.
    fn into_first_16_hex_digits(self) -> String {
        let mut text = hex::encode(self.0.finalize());
        text.truncate(16);
        text
    }
}

/// Adds all files below a directory to `files`, with paths that begin with `path_prefix`.
fn read_files_below(directory: &Path, path_prefix: &Path, files: &mut Vec<ContextFile>) -> Result<()> {
    for entry in fs::read_dir(directory).with_operation("read", directory)? {
        let entry = entry.with_operation("read", directory)?;
        let (path, path_prefix) = (entry.path(), path_prefix.join(entry.file_name()));
        if path.is_dir() {
            read_files_below(&path, &path_prefix, files)?;
            continue;
        }
        let mode = entry
            .metadata()
            .with_operation("read", &path)?
            .permissions()
            .mode()
            & 0o777;
        files.push(ContextFile {
            path: path_prefix,
            mode,
            content: fs::read(&path).with_operation("read", &path)?,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context_with_files(files: &[(&str, &str)]) -> StackBuildContext {
        let directory = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        StackBuildContext::read_directory_tree(directory.path()).unwrap()
    }

    #[test]
    fn the_context_hash_changes_with_names_contents_and_other_inputs() {
        let first = context_with_files(&[("a/b", "c")]).tag_hash(&["x"]);
        assert_eq!(first, context_with_files(&[("a/b", "c")]).tag_hash(&["x"]));
        for other in [
            context_with_files(&[("a/b", "d")]).tag_hash(&["x"]),
            context_with_files(&[("a/c", "c")]).tag_hash(&["x"]),
            context_with_files(&[("a/b", "c")]).tag_hash(&["y"]),
            context_with_files(&[("a/b", "c"), ("e", "")]).tag_hash(&["x"]),
        ] {
            assert_ne!(first, other);
        }
        assert_ne!(hash_of_texts(&["ab", "c"]), hash_of_texts(&["a", "bc"]));
    }

    #[test]
    fn a_plain_tar_of_a_new_function_has_less_than_200_000_bytes() {
        // faas-cli puts a new handler, which is a copy of the template's folder `function`, into that folder's place.
        let template = crate::directories::repository_root().join("template/rust-hyper");
        let context = StackBuildContext::read_directory_tree(&template).unwrap();
        let folders = context
            .files
            .iter()
            .flat_map(|file| file.path.ancestors().skip(1))
            .collect::<std::collections::BTreeSet<_>>();
        let config =
            serde_json::json!({ "image": "registry.example/shop:1", "deploy": { "service": "shop" } });
        let tar = context.tar_of_build_request(&config).unwrap();
        // The tar program also has an entry for each folder, and fills its last record.
        let length = (tar.len() + folders.len() * 512).next_multiple_of(10_240);
        assert!(length < 200_000, "{length} bytes");
    }

    #[test]
    fn the_tar_has_the_configuration_first_and_the_files_under_context() {
        let tar = context_with_files(&[("src/main.rs", "fn main() {}"), ("Dockerfile", "FROM scratch")]);
        let tar = tar
            .tar_of_build_request(&serde_json::json!({ "image": "x" }))
            .unwrap();
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
