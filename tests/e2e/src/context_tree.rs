//! A build context as a tree of anything a tar can hold, and an image's files in the same words.

use std::{collections::BTreeMap, io::Read as _};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::registry::Registry;

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A file with this content and mode.
    File(Vec<u8>, u32),
    /// A folder with this mode.
    Folder(u32),
    /// A symbolic link.
    Link(String),
    /// Another name of the file at this path, which has to sort before it.
    HardLink(String),
}

/// Entries by path, all with one time.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    /// By path, without the folders that are only implied.
    pub entries: BTreeMap<String, Node>,
    /// Seconds since 1970.
    pub mtime: u64,
}

impl Tree {
    /// With a Dockerfile, and nothing else yet.
    pub fn dockerfile(text: &str) -> Self {
        Self::default().with("Dockerfile", Node::File(text.into(), 0o644))
    }

    /// With this entry, in place of one of the same path.
    #[must_use]
    pub fn with(mut self, path: &str, node: Node) -> Self {
        self.entries.insert(path.to_owned(), node);
        self
    }

    /// With this file.
    #[must_use]
    pub fn file(self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.with(path, Node::File(content.into(), 0o644))
    }

    /// The tar with this config as its last entry.
    pub fn tar(&self, config: &Value) -> Result<Vec<u8>> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, node) in &self.entries {
            let path = format!("context/{path}");
            let mut header = tar::Header::new_gnu();
            header.set_mtime(self.mtime);
            header.set_size(0);
            match node {
                Node::File(content, mode) => {
                    header.set_mode(*mode);
                    header.set_size(content.len() as u64);
                    builder.append_data(&mut header, path, content.as_slice())?;
                }
                Node::Folder(mode) => {
                    header.set_mode(*mode);
                    header.set_entry_type(tar::EntryType::Directory);
                    builder.append_data(&mut header, path, [].as_slice())?;
                }
                Node::Link(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    builder.append_link(&mut header, path, target)?;
                }
                Node::HardLink(target) => {
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

    /// The entries as an image has them: hard links as the files that they are, and folders that are only implied.
    pub fn seen(&self) -> BTreeMap<String, Node> {
        let mut seen = BTreeMap::new();
        for (path, node) in &self.entries {
            for (at, _) in path.match_indices('/') {
                seen.entry(path[..at].to_owned()).or_insert(Node::Folder(0o755));
            }
            let node = match node {
                Node::HardLink(target) => self.entries.get(target).unwrap_or(node),
                other => other,
            };
            seen.insert(path.clone(), node.clone());
        }
        seen
    }
}

/// The files of an image whose layers only add to each other.
pub async fn of_image(registry: &Registry, repository: &str, tag: &str) -> Result<BTreeMap<String, Node>> {
    let manifest = registry
        .manifest(repository, tag)
        .await?
        .context("the image is not there")?;
    let mut files = BTreeMap::new();
    for layer in manifest.layers() {
        let packed = registry.blob(repository, &layer).await?;
        let mut archive = tar::Archive::new(std::io::Cursor::new(unpacked(&packed)?));
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.to_string_lossy().trim_end_matches('/').to_owned();
            let mode = entry.header().mode()? & 0o7777;
            let link = entry.link_name()?.map(|link| link.to_string_lossy().into_owned());
            let node = match (entry.header().entry_type(), link) {
                (tar::EntryType::Directory, _) => Node::Folder(mode),
                (tar::EntryType::Symlink, Some(target)) => Node::Link(target),
                (tar::EntryType::Link, Some(target)) => files
                    .get(&target)
                    .cloned()
                    .context("a link to what is not there")?,
                (tar::EntryType::Regular, _) => {
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content)?;
                    Node::File(content, mode)
                }
                (other, _) => bail!("{path} is {other:?}"),
            };
            files.insert(path, node);
        }
    }
    Ok(files)
}

/// A layer's tar.
pub fn unpacked(packed: &[u8]) -> Result<Vec<u8>> {
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
