//! A build context as a tree, with entries of every kind that contexts may have, and an image's files in that form.

use std::{collections::BTreeMap, io::Read as _};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::registry::RegistryClient;

/// An entry of a context's tree or of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeEntry {
    /// A file with its content and mode.
    File(Vec<u8>, u32),
    /// A folder with its mode.
    Folder(u32),
    /// A symbolic link with its target.
    Link(String),
    /// A hard link with the path of its target, which has to sort before this entry.
    HardLink(String),
}

/// The entries of a context by path, all with the same time.
#[derive(Debug, Clone, Default)]
pub struct ContextTree {
    /// The tree's entries by path. Parent folders need no entry.
    pub entries: BTreeMap<String, TreeEntry>,
    /// The modification time of all entries in seconds since 1970.
    pub mtime: u64,
}

impl ContextTree {
    /// Returns a tree that contains only this Dockerfile.
    pub fn dockerfile(text: &str) -> Self {
        Self::default().with_entry("Dockerfile", TreeEntry::File(text.into(), 0o644))
    }

    /// Adds an entry, or replaces the one at the same path.
    #[must_use]
    pub fn with_entry(mut self, path: &str, node: TreeEntry) -> Self {
        self.entries.insert(path.to_owned(), node);
        self
    }

    /// Adds a file with mode 0644.
    #[must_use]
    pub fn with_file(self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.with_entry(path, TreeEntry::File(content.into(), 0o644))
    }

    /// Returns the tree's tar with this config as its last entry.
    pub fn tar_with_config_last(&self, config: &Value) -> Result<Vec<u8>> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, node) in &self.entries {
            let path = format!("context/{path}");
            let mut header = tar::Header::new_gnu();
            header.set_mtime(self.mtime);
            header.set_size(0);
            match node {
                TreeEntry::File(content, mode) => {
                    header.set_mode(*mode);
                    header.set_size(content.len() as u64);
                    builder.append_data(&mut header, path, content.as_slice())?;
                }
                TreeEntry::Folder(mode) => {
                    header.set_mode(*mode);
                    header.set_entry_type(tar::EntryType::Directory);
                    builder.append_data(&mut header, path, [].as_slice())?;
                }
                TreeEntry::Link(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    builder.append_link(&mut header, path, target)?;
                }
                TreeEntry::HardLink(target) => {
                    header.set_entry_type(tar::EntryType::Link);
                    builder.append_link(&mut header, path, format!("context/{target}"))?;
                }
            }
        }
        let config = config.to_string();
        let mut header = tar::Header::new_gnu();
        header.set_size(config.len() as u64);
        builder.append_data(&mut header, "com.openfaas.docker.config", config.as_bytes())?;
        builder.into_inner().context("closing the tar")
    }

    /// Returns the tree's entries as `COPY . /` puts them into an image: hard links as files, and with all parent
    /// folders.
    pub fn entries_in_image(&self) -> BTreeMap<String, TreeEntry> {
        let mut entries = BTreeMap::new();
        for (path, node) in &self.entries {
            for (at, _) in path.match_indices('/') {
                entries
                    .entry(path[..at].to_owned())
                    .or_insert(TreeEntry::Folder(0o755));
            }
            let node = match node {
                TreeEntry::HardLink(target) => self.entries.get(target).unwrap_or(node),
                other => other,
            };
            entries.insert(path.clone(), node.clone());
        }
        entries
    }
}

/// Fetches the layers of an image, which may only add files, and returns the files in them.
pub async fn read_image_files_if_layers_only_add(
    registry: &RegistryClient,
    repository: &str,
    tag: &str,
) -> Result<BTreeMap<String, TreeEntry>> {
    let manifest = registry
        .get_manifest(repository, tag)
        .await?
        .context("the image is not in the registry")?;
    let mut files = BTreeMap::new();
    for layer in manifest.layer_digests() {
        let packed = registry.get_blob(repository, &layer).await?;
        let mut archive = tar::Archive::new(std::io::Cursor::new(decompress_layer(&packed)?));
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.to_string_lossy().trim_end_matches('/').to_owned();
            let mode = entry.header().mode()? & 0o7777;
            let link = entry.link_name()?.map(|link| link.to_string_lossy().into_owned());
            let node = match (entry.header().entry_type(), link) {
                (tar::EntryType::Directory, _) => TreeEntry::Folder(mode),
                (tar::EntryType::Symlink, Some(target)) => TreeEntry::Link(target),
                (tar::EntryType::Link, Some(target)) => files
                    .get(&target)
                    .cloned()
                    .context("a hard link whose target is missing")?,
                (tar::EntryType::Regular, _) => {
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content)?;
                    TreeEntry::File(content, mode)
                }
                (other, _) => bail!("{path}: unsupported entry type {other:?}"),
            };
            files.insert(path, node);
        }
    }
    Ok(files)
}

/// Returns a layer's tar, decompressed.
pub fn decompress_layer(packed: &[u8]) -> Result<Vec<u8>> {
    let mut tar = Vec::new();
    match packed {
        [0x1f, 0x8b, ..] => {
            flate2::read::MultiGzDecoder::new(packed).read_to_end(&mut tar)?;
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => tar = zstd::stream::decode_all(packed)?,
        _ => tar = packed.to_vec(),
    }
    Ok(tar)
}
