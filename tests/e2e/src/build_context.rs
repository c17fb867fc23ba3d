//! A build context in the making, packed as the published clients pack it: `context/…` first, the config last.

use std::{
    collections::BTreeSet,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Files on their way into a tar for builder-fn.
#[derive(Debug, Clone, Default)]
pub struct Source {
    files: Vec<(String, Vec<u8>, u32)>,
    links: Vec<(String, String)>,
}

impl Source {
    /// An empty context.
    pub fn new() -> Self {
        Self::default()
    }

    /// A context with this Dockerfile.
    pub fn dockerfile(text: impl Into<String>) -> Self {
        Self::new().file("Dockerfile", text.into())
    }

    /// A function of static pages, served on 8080 by the stack's busybox image: the smallest thing that answers.
    /// `base` is that image's name, `page` what `/` says.
    ///
    /// The first process is a shell that ends on SIGTERM. httpd itself has no handler for it, and the kernel gives a first
    /// process no other signals than it handles: it would be waited for until the provider's patience is over.
    pub fn pages(base: &str, page: &str) -> Self {
        Self::dockerfile(format!(
            "FROM {base}\nCOPY www /www\nUSER 1000\nEXPOSE 8080\n\
             CMD [\"/bin/sh\", \"-c\", \"trap 'exit 0' TERM; httpd -f -p 8080 -h /www & wait\"]\n"
        ))
        .file("www/index.html", page)
        .file("www/_/health", "OK\n")
        .file("www/_/ready", "OK\n")
    }

    /// The same with another Dockerfile.
    #[must_use]
    pub fn with_dockerfile(mut self, text: &str) -> Self {
        self.files.retain(|(path, _, _)| path != "Dockerfile");
        self.file("Dockerfile", text)
    }

    /// Adds a plain file, path relative to the context.
    pub fn file(self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.file_with_mode(path, content, 0o644)
    }

    /// Adds a file with these permission bits.
    pub fn file_with_mode(mut self, path: &str, content: impl Into<Vec<u8>>, mode: u32) -> Self {
        self.files.push((path.to_owned(), content.into(), mode));
        self
    }

    /// Adds a symbolic link, path relative to the context.
    pub fn link(mut self, path: &str, target: &str) -> Self {
        self.links.push((path.to_owned(), target.to_owned()));
        self
    }

    /// The tar with this config as its last entry, as the Go SDK lays it out.
    pub fn tar(&self, config: &Value) -> Result<Vec<u8>> {
        let mut builder = self.context_entries()?;
        append(
            &mut builder,
            "com.openfaas.docker.config",
            config.to_string().as_bytes(),
            0o664,
            tar::EntryType::Regular,
        )?;
        builder.into_inner().context("closing the tar")
    }

    /// The tar with this config and this envelope of sealed secrets behind it, as faas-cli lays it out.
    pub fn tar_with_secrets(&self, config: &Value, envelope: &str) -> Result<Vec<u8>> {
        let mut builder = self.context_entries()?;
        for (name, text, mode) in [
            ("com.openfaas.docker.config", config.to_string().as_str(), 0o664),
            ("com.openfaas.secrets", envelope, 0o600),
        ] {
            append(&mut builder, name, text.as_bytes(), mode, tar::EntryType::Regular)?;
        }
        builder.into_inner().context("closing the tar")
    }

    /// The tar without a config: a client's mistake.
    pub fn tar_without_config(&self) -> Result<Vec<u8>> {
        self.context_entries()?.into_inner().context("closing the tar")
    }

    /// Writes the context into the folder `context` of this one, with the times that the tar has, for `buildctl`.
    pub fn extract(&self, folder: &Path) -> Result<PathBuf> {
        let tar = self.tar_without_config()?;
        let mut archive = tar::Archive::new(tar.as_slice());
        archive.set_preserve_mtime(true);
        archive.set_preserve_permissions(true);
        archive.unpack(folder)?;
        Ok(folder.join("context"))
    }

    /// Folders have entries of their own, as in what tar writes: one that is only implied has no time, and extracting
    /// it would give it that of the extraction.
    fn context_entries(&self) -> Result<tar::Builder<Vec<u8>>> {
        let mut builder = tar::Builder::new(Vec::new());
        for folder in self.folders() {
            append(&mut builder, &folder, &[], 0o755, tar::EntryType::Directory)?;
        }
        for (path, content, mode) in &self.files {
            append(
                &mut builder,
                &format!("context/{path}"),
                content,
                *mode,
                tar::EntryType::Regular,
            )?;
        }
        for (path, target) in &self.links {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_mode(0o777);
            header.set_mtime(1_700_000_000);
            header.set_entry_type(tar::EntryType::Symlink);
            builder
                .append_link(&mut header, format!("context/{path}"), target)
                .with_context(|| format!("packing {path}"))?;
        }
        Ok(builder)
    }

    fn folders(&self) -> BTreeSet<String> {
        let above = |path: &str| {
            path.match_indices('/')
                .map(|(at, _)| format!("context/{}/", &path[..at]))
                .collect::<Vec<_>>()
        };
        let folders = self.files.iter().flat_map(|(path, ..)| above(path));
        folders.chain(["context/".to_owned()]).collect()
    }
}

fn append(
    builder: &mut tar::Builder<Vec<u8>>,
    path: &str,
    content: &[u8],
    mode: u32,
    kind: tar::EntryType,
) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_mtime(1_700_000_000);
    header.set_entry_type(kind);
    builder
        .append_data(&mut header, path, content)
        .with_context(|| format!("packing {path}"))?;
    builder.get_mut().flush()?;
    Ok(())
}
