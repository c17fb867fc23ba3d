//! A build context and its tar, laid out as the published clients do: `context/…` first, the config last.

use std::{
    collections::BTreeSet,
    io::Write as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// The files and symbolic links of a build context.
#[derive(Debug, Clone, Default)]
pub struct BuildContext {
    files: Vec<(String, Vec<u8>, u32)>,
    links: Vec<(String, String)>,
}

impl BuildContext {
    /// Returns an empty context.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a context with this Dockerfile.
    pub fn dockerfile(text: impl Into<String>) -> Self {
        Self::new().with_file("Dockerfile", text.into())
    }

    /// Returns the context of a function that serves static pages on port 8080: the smallest function that answers.
    ///
    /// `busybox_image` is the name of the stack's busybox image, `page` the content of `/`.
    ///
    /// Process 1 is a shell that exits on SIGTERM. httpd installs no handler for it, and the kernel delivers to
    /// process 1 only signals that it handles, so the provider would wait for its whole stop timeout.
    pub fn static_page_function(busybox_image: &str, page: &str) -> Self {
        Self::dockerfile(format!(
            "FROM {busybox_image}\nCOPY www /www\nUSER 1000\nEXPOSE 8080\n\
             CMD [\"/bin/sh\", \"-c\", \"trap 'exit 0' TERM; httpd -f -p 8080 -h /www & wait\"]\n"
        ))
        .with_file("www/index.html", page)
        .with_file("www/_/health", "OK\n")
        .with_file("www/_/ready", "OK\n")
    }

    /// Returns a context with a step that runs until its [gate](gated_command) is opened.
    pub fn with_gated_step(base_image: &str, gate: &str) -> Self {
        Self::dockerfile(format!("FROM {base_image}\nRUN {}\n", gated_command(gate)))
    }

    /// Replaces the Dockerfile.
    #[must_use]
    pub fn with_dockerfile(mut self, text: &str) -> Self {
        self.files.retain(|(path, _, _)| path != "Dockerfile");
        self.with_file("Dockerfile", text)
    }

    /// Adds a regular file with mode 0644; `path` is relative to the context.
    pub fn with_file(self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.with_file_of_mode(path, content, 0o644)
    }

    /// Adds a regular file with these permission bits.
    pub fn with_file_of_mode(mut self, path: &str, content: impl Into<Vec<u8>>, mode: u32) -> Self {
        self.files.push((path.to_owned(), content.into(), mode));
        self
    }

    /// Adds a symbolic link; `path` is relative to the context.
    pub fn with_link(mut self, path: &str, target: &str) -> Self {
        self.links.push((path.to_owned(), target.to_owned()));
        self
    }

    /// Returns the tar with this config as its last entry, as the Go SDK lays it out.
    pub fn tar_with_config_last(&self, config: &Value) -> Result<Vec<u8>> {
        let mut builder = self.tar_of_context_entries()?;
        append_entry(
            &mut builder,
            "com.openfaas.docker.config",
            config.to_string().as_bytes(),
            0o664,
            tar::EntryType::Regular,
        )?;
        builder.into_inner().context("closing the tar")
    }

    /// Returns the tar with this config, followed by this envelope of sealed secrets, as faas-cli lays it out.
    pub fn tar_with_secrets(&self, config: &Value, envelope: &str) -> Result<Vec<u8>> {
        let mut builder = self.tar_of_context_entries()?;
        for (name, text, mode) in [
            ("com.openfaas.docker.config", config.to_string().as_str(), 0o664),
            ("com.openfaas.secrets", envelope, 0o600),
        ] {
            append_entry(&mut builder, name, text.as_bytes(), mode, tar::EntryType::Regular)?;
        }
        builder.into_inner().context("closing the tar")
    }

    /// Returns a tar without a config, which builder-fn rejects.
    pub fn tar_without_config(&self) -> Result<Vec<u8>> {
        self.tar_of_context_entries()?
            .into_inner()
            .context("closing the tar")
    }

    /// Writes the context to the folder `context` inside `folder`, with the tar's modification times, for
    /// `buildctl`.
    pub fn write_to_folder(&self, folder: &Path) -> Result<PathBuf> {
        let tar = self.tar_without_config()?;
        let mut archive = tar::Archive::new(tar.as_slice());
        archive.set_preserve_mtime(true);
        archive.set_preserve_permissions(true);
        archive.unpack(folder)?;
        Ok(folder.join("context"))
    }

    /// Returns a tar with all entries of the context. Folders get entries of their own, as in a tar from GNU tar: a
    /// folder without one has no time, and extraction would give it the time of the extraction.
    fn tar_of_context_entries(&self) -> Result<tar::Builder<Vec<u8>>> {
        let mut builder = tar::Builder::new(Vec::new());
        for folder in self.folder_paths_of_files() {
            append_entry(&mut builder, &folder, &[], 0o755, tar::EntryType::Directory)?;
        }
        for (path, content, mode) in &self.files {
            append_entry(
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

    /// Returns the paths of all folders of files in the tar, each with a trailing slash, parents first.
    fn folder_paths_of_files(&self) -> BTreeSet<String> {
        let above = |path: &str| {
            path.match_indices('/')
                .map(|(at, _)| format!("context/{}/", &path[..at]))
                .collect::<Vec<_>>()
        };
        let folders = self.files.iter().flat_map(|(path, ..)| above(path));
        folders.chain(["context/".to_owned()]).collect()
    }
}

/// Returns a command for a build step that runs until
/// [`open_gate_of_step`](crate::testbed::Testbed::open_gate_of_step) is called with `gate`.
///
/// The step is never cached. Only one running step at a time may have a gate with this name.
pub fn gated_command(gate: &str) -> String {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    format!(": {}; until [ -e /{gate} ]; do sleep 0.1; done", now.as_nanos())
}

/// Appends an entry with this content and mode, and the fixed modification time of all entries.
fn append_entry(
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
