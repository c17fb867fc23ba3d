//! Image layers: a tar, compressed if it is large, with its two digests.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::blob::{BlobContent, ImageBlob, bytes_digest};
use crate::{
    command::{new_command, run_program},
    directories::{self, write_private_file},
    error::{IoResultExt as _, LauncherError, Result},
    progress::ProgressSink,
};

const PLAIN_LAYER_MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const ZSTD_LAYER_MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// The paths of a Rust toolchain that builds do not need.
const EXCLUDED_TOOLCHAIN_PATHS: &[&str] = &[
    "./share",
    "./libexec",
    "./etc",
    "./lib/rustlib/src",
    "./bin/rustdoc",
    "./bin/rustfmt",
    "./bin/cargo-fmt",
    "./bin/cargo-clippy",
    "./bin/clippy-driver",
    "./bin/rust-analyzer",
    "./bin/rust-gdb*",
    "./bin/rust-lldb",
];

/// An image layer.
#[derive(Debug, Clone)]
pub(crate) struct PlainInMemoryOrZstdFileLayer {
    pub(super) media_type: &'static str,
    /// The digest of the layer's stored blob.
    pub(super) digest: String,
    /// The size of the layer's stored blob, in bytes.
    pub(super) size: u64,
    /// The digest of the layer's uncompressed tar.
    pub(super) diff_id: String,
    content: BlobContent,
}

impl PlainInMemoryOrZstdFileLayer {
    /// Returns the layer's blob for a push.
    pub(super) fn blob_to_push(&self) -> ImageBlob {
        ImageBlob {
            digest: self.digest.clone(),
            size: self.size,
            content: self.content.clone(),
        }
    }
}

/// The digests of a layer, stored in a file beside the layer in the cache.
#[derive(Serialize, Deserialize)]
struct LayerDigests {
    digest: String,
    size: u64,
    diff_id: String,
}

/// Loads or makes the Debian layer: essential packages, apt, certificates, a linker and the C library.
pub(super) async fn load_or_make_debian_layer(
    cache: &Path,
    release: &str,
    progress: &ProgressSink,
) -> Result<PlainInMemoryOrZstdFileLayer> {
    let arguments = [
        "--variant=apt",
        "--include=ca-certificates,gcc,libc6-dev",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--skip=output/dev",
        "--format=tar",
    ];
    let recipe = format!("{release} {}", arguments.join(" "));
    load_or_make_layer(cache, "debian", &recipe, progress, |tar| {
        let mut make = new_command("mmdebstrap");
        make.args(arguments).arg(release).arg(tar);
        make
    })
    .await
}

/// Loads or makes the layer with this workspace's Rust toolchain.
pub(super) async fn load_or_make_toolchain_layer(
    cache: &Path,
    path_in_image: &str,
    progress: &ProgressSink,
) -> Result<PlainInMemoryOrZstdFileLayer> {
    let rustc = |argument: &'static [&'static str]| {
        let mut rustc = new_command("rustc");
        rustc.current_dir(directories::repository_root()).args(argument);
        rustc
    };
    let version = run_program(&mut rustc(&["-Vv"])).await?;
    let sysroot = run_program(&mut rustc(&["--print", "sysroot"])).await?;
    let sysroot = String::from_utf8_lossy(&sysroot).trim().to_owned();
    let recipe = format!(
        "{path_in_image} {EXCLUDED_TOOLCHAIN_PATHS:?} {}",
        String::from_utf8_lossy(&version)
    );
    load_or_make_layer(cache, "rust", &recipe, progress, |tar| {
        let mut make = new_command("tar");
        make.args([
            "--sort=name",
            "--mtime=@0",
            "--owner=0",
            "--group=0",
            "--numeric-owner",
        ]);
        make.args(
            EXCLUDED_TOOLCHAIN_PATHS
                .iter()
                .map(|path| format!("--exclude={path}")),
        );
        make.arg(format!("--transform=s,^\\.,{path_in_image},S"))
            .args(["-C", &sysroot, "-cf"])
            .arg(tar)
            .arg(".");
        make
    })
    .await
}

/// An entry of a layer that is made in memory.
#[derive(Debug)]
pub(crate) struct LayerEntry {
    /// The path of the entry from the root of the image, without a leading slash.
    pub(crate) path: String,
    /// The permissions of the entry; they have no meaning for a symbolic link.
    pub(crate) mode: u32,
    pub(crate) content: BytesLinkOrDirectory,
}

/// The content of an entry of a layer.
#[derive(Debug)]
pub(crate) enum BytesLinkOrDirectory {
    File(Vec<u8>),
    SymbolicLink(String),
    Directory,
}

/// Creates an uncompressed layer of small files, each with its path from the root, without the cache.
pub(super) fn layer_from_files(files: Vec<(String, Vec<u8>)>) -> Result<PlainInMemoryOrZstdFileLayer> {
    layer_from_entries_in_memory(files.into_iter().map(|(path, content)| LayerEntry {
        path,
        mode: 0o644,
        content: BytesLinkOrDirectory::File(content),
    }))
}

/// Creates an uncompressed layer of entries that root owns, without the cache.
pub(crate) fn layer_from_entries_in_memory(
    entries: impl IntoIterator<Item = LayerEntry>,
) -> Result<PlainInMemoryOrZstdFileLayer> {
    let mut tar = tar::Builder::new(Vec::new());
    for LayerEntry { path, mode, content } in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_mtime(0);
        header.set_size(0);
        let added = match content {
            BytesLinkOrDirectory::File(content) => {
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, &path, content.as_slice())
            }
            BytesLinkOrDirectory::SymbolicLink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                tar.append_link(&mut header, &path, target)
            }
            BytesLinkOrDirectory::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                tar.append_data(&mut header, &path, std::io::empty())
            }
        };
        added.with_operation("add to the layer", path)?;
    }
    let bytes = tar.into_inner().with_operation("finish", "the layer")?;
    let digest = bytes_digest(&bytes);
    let (size, diff_id) = (bytes.len() as u64, digest.clone());
    Ok(PlainInMemoryOrZstdFileLayer {
        media_type: PLAIN_LAYER_MEDIA_TYPE,
        digest,
        size,
        diff_id,
        content: BlobContent::Bytes(bytes.into()),
    })
}

/// Loads a layer from the cache, or makes it with the program that `make` returns. A changed `recipe` makes a
/// new layer.
async fn load_or_make_layer(
    cache: &Path,
    name: &str,
    recipe: &str,
    progress: &ProgressSink,
    make: impl FnOnce(&Path) -> Command,
) -> Result<PlainInMemoryOrZstdFileLayer> {
    let fingerprint = bytes_digest(recipe.as_bytes());
    let short = fingerprint
        .trim_start_matches("sha256:")
        .get(..16)
        .unwrap_or_default();
    let dir = cache.join(format!("{name}-{short}"));
    if !dir.exists() {
        let _lock = directories::truncate_and_lock_file_async(cache.join(format!(".{name}.lock"))).await?;
        if !dir.exists() {
            progress.emit_progress_line("images", format_args!("making the {name} layer"));
            let new = tempfile::tempdir_in(cache).with_operation("create a directory in", cache)?;
            let tar = new.path().join("layer.tar");
            run_program(&mut make(&tar)).await?;
            let diff_id = file_digest(&tar).await?;
            run_program(new_command("zstd").args(["-q", "-3", "-T0", "--rm"]).arg(&tar)).await?;
            let blob = new.path().join(BLOB_FILE_NAME);
            let size = fs::metadata(&blob).with_operation("read", &blob)?.len();
            let digests = LayerDigests {
                digest: file_digest(&blob).await?,
                size,
                diff_id,
            };
            let path = new.path().join(DIGESTS_FILE_NAME);
            let text = serde_json::to_vec(&digests).map_err(|source| LauncherError::InvalidFile {
                path: path.clone(),
                source,
            })?;
            write_private_file(&path, &text)?;
            let new = new.keep();
            fs::rename(&new, &dir).with_operation("rename", &new)?;
            progress.emit_progress_line(
                "images",
                format_args!("made the {name} layer, {} MB", size / 1_000_000),
            );
        }
    }
    load_cached_layer(&dir)
}

/// The name of the file with a layer's compressed tar, in the layer's directory of the cache.
const BLOB_FILE_NAME: &str = "layer.tar.zst";
/// The name of the file with a layer's digests, beside the tar.
const DIGESTS_FILE_NAME: &str = "layer.json";

/// Reads the digests of a layer in the cache; its content stays in its file.
fn load_cached_layer(dir: &Path) -> Result<PlainInMemoryOrZstdFileLayer> {
    let path = dir.join(DIGESTS_FILE_NAME);
    let text = fs::read(&path).with_operation("read", &path)?;
    let LayerDigests {
        digest,
        size,
        diff_id,
    } = serde_json::from_slice(&text).map_err(|source| LauncherError::InvalidFile { path, source })?;
    Ok(PlainInMemoryOrZstdFileLayer {
        media_type: ZSTD_LAYER_MEDIA_TYPE,
        digest,
        size,
        diff_id,
        content: BlobContent::File(dir.join(BLOB_FILE_NAME)),
    })
}

/// Runs `sha256sum` for the digest of a large file: the system's program is fast in every build profile.
async fn file_digest(path: &Path) -> Result<String> {
    let output = run_program(new_command("sha256sum").arg("--zero").arg(path)).await?;
    let hex = output.get(..64).map(String::from_utf8_lossy).unwrap_or_default();
    Ok(format!("sha256:{hex}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_layer_is_made_once_and_its_digests_match_the_stored_blob() {
        let cache = tempfile::tempdir().unwrap();
        let make = |tar: &Path| {
            let mut make = new_command("cp");
            make.arg("/bin/true").arg(tar);
            make
        };
        let progress = ProgressSink::discarding();
        let first = load_or_make_layer(cache.path(), "x", "recipe", &progress, make)
            .await
            .unwrap();
        let never = |_: &Path| new_command("false");
        let again = load_or_make_layer(cache.path(), "x", "recipe", &progress, never)
            .await
            .unwrap();
        assert_eq!((&first.digest, &first.diff_id), (&again.digest, &again.diff_id));
        assert_eq!(first.diff_id, bytes_digest(&fs::read("/bin/true").unwrap()));
        let BlobContent::File(path) = &first.content else {
            panic!("a cached layer is a file")
        };
        let stored = fs::read(path).unwrap();
        assert_eq!(
            (first.digest, first.size),
            (bytes_digest(&stored), stored.len() as u64)
        );
    }

    #[test]
    fn a_layer_of_files_is_reproducible() {
        let make = || layer_from_files(vec![("etc/a".to_owned(), b"a".to_vec())]).unwrap();
        assert_eq!(make().digest, make().digest);
        assert_eq!(make().digest, make().diff_id);
    }
}
