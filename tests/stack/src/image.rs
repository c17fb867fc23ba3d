//! Base images of the functions that are built on a stack, made on this machine so that no public registry is needed.
//!
//! Layers are made once and kept in the cache, under a name derived from the recipe. An image is a few layers
//! and a configuration; it is pushed to a stack's registry unless it is already there.

mod archive;
mod blob;
mod layer;
mod registry;

use std::{env, fs, path::PathBuf};

use serde_json::json;

use self::blob::{ImageBlob, bytes_digest};
pub(crate) use self::{
    archive::{ImageToArchive, write_archive},
    layer::{BytesLinkOrDirectory, LayerEntry, PlainInMemoryOrZstdFileLayer, layer_from_entries_in_memory},
    registry::RegistryClient,
};
use crate::{
    directories::LauncherDirectories,
    error::{IoResultExt as _, LauncherError, Result},
    progress::ProgressSink,
};

/// The repository and tag of the Debian image: a release with the C library and linker that a Rust compiler
/// needs.
const DEBIAN_REPOSITORY_AND_TAG: (&str, &str) = ("slipway/debian", "bookworm");

/// The repository and tag of the Rust image, which has this workspace's toolchain.
const RUST_REPOSITORY_AND_TAG: (&str, &str) = ("slipway/rust", env!("CARGO_PKG_RUST_VERSION"));

/// The path of the toolchain in the Rust image, without a leading slash.
const TOOLCHAIN_PATH_IN_IMAGE: &str = "usr/local/rust";
/// The path of cargo's configuration and caches in the Rust image, the same as in the official Rust images.
const CARGO_HOME_IN_IMAGE: &str = "/usr/local/cargo";

/// The value of `PATH` in the Debian image; in the Rust image, the toolchain's directory precedes it.
const PATH_VARIABLE_IN_IMAGE: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Returns the reference of the Rust image in a registry.
pub(crate) fn rust_image_reference(registry: &str) -> String {
    format!(
        "{registry}/{}:{}",
        RUST_REPOSITORY_AND_TAG.0, RUST_REPOSITORY_AND_TAG.1
    )
}

/// The layers of the Debian image and of the Rust image.
#[derive(Debug)]
pub(crate) struct BaseImageLayers {
    debian: PlainInMemoryOrZstdFileLayer,
    toolchain: PlainInMemoryOrZstdFileLayer,
    /// The layer with this machine's certificate authorities and cargo configuration, made at each start.
    machine: PlainInMemoryOrZstdFileLayer,
}

impl BaseImageLayers {
    /// Loads the layers of the base images from the cache, and makes those that are missing.
    pub(crate) async fn load_or_make(
        directories: &LauncherDirectories,
        progress: &ProgressSink,
    ) -> Result<Self> {
        let cache = directories.cache.join("images");
        fs::create_dir_all(&cache).with_operation("create", &cache)?;
        let debian = layer::load_or_make_debian_layer(&cache, DEBIAN_REPOSITORY_AND_TAG.1, progress).await?;
        let toolchain =
            layer::load_or_make_toolchain_layer(&cache, TOOLCHAIN_PATH_IN_IMAGE, progress).await?;
        Ok(Self {
            debian,
            toolchain,
            machine: layer::layer_from_files(network_access_files()?)?,
        })
    }

    /// Pushes the base images that the registry lacks in whole or in part.
    pub(crate) async fn push_missing(
        &self,
        registry: &RegistryClient,
        progress: &ProgressSink,
    ) -> Result<()> {
        let path = format!("/{TOOLCHAIN_PATH_IN_IMAGE}/bin:{PATH_VARIABLE_IN_IMAGE}");
        let images = [
            (
                DEBIAN_REPOSITORY_AND_TAG,
                vec![&self.debian, &self.machine],
                vec![format!("PATH={PATH_VARIABLE_IN_IMAGE}")],
            ),
            (
                RUST_REPOSITORY_AND_TAG,
                vec![&self.debian, &self.toolchain, &self.machine],
                vec![
                    format!("PATH={path}"),
                    format!("CARGO_HOME={CARGO_HOME_IN_IMAGE}"),
                    "CARGO_TERM_COLOR=never".to_owned(),
                ],
            ),
        ];
        for ((repository, tag), layers, environment) in images {
            let image = ImageDocuments::new(&layers, &environment);
            let is_there = async || {
                Ok::<_, LauncherError>(
                    registry.digest_if_complete(repository, tag).await?.as_ref() == Some(&image.digest),
                )
            };
            if is_there().await? {
                continue;
            }
            progress.emit_progress_line("registry", format_args!("pushing {repository}:{tag}"));
            for layer in layers {
                registry.push_blob(repository, &layer.blob_to_push()).await?;
            }
            registry
                .push_blob(repository, &ImageBlob::from_bytes(image.config))
                .await?;
            registry.push_manifest(repository, tag, image.manifest).await?;
            if !is_there().await? {
                return Err(LauncherError::Environment(format!(
                    "{repository}:{tag} was pushed, but the registry lacks some of its blobs: its store is damaged; \
                     `make purge` removes it"
                )));
            }
        }
        Ok(())
    }
}

/// The configuration and manifest of an image (OCI image specification 1.1).
#[derive(Debug)]
struct ImageDocuments {
    config: Vec<u8>,
    manifest: Vec<u8>,
    digest: String,
}

impl ImageDocuments {
    /// Makes the documents of an image with these layers, from the lowest to the topmost, and these variables.
    fn new(layers: &[&PlainInMemoryOrZstdFileLayer], environment: &[String]) -> Self {
        Self::with_settings(
            layers,
            &json!({ "Env": environment, "Cmd": ["/bin/sh"], "WorkingDir": "/" }),
        )
    }

    /// Makes the documents of an image with these layers, from the lowest to the topmost, and the settings of its
    /// containers, which are the field `config` of an image's configuration.
    fn with_settings(layers: &[&PlainInMemoryOrZstdFileLayer], settings: &serde_json::Value) -> Self {
        let diff_ids = layers
            .iter()
            .map(|layer| layer.diff_id.as_str())
            .collect::<Vec<_>>();
        let config = json!({
            "architecture": image_architecture(),
            "os": "linux",
            "config": settings,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = config.to_string().into_bytes();
        let layers = layers.iter().map(
            |layer| json!({ "mediaType": layer.media_type, "digest": layer.digest, "size": layer.size }),
        );
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": registry::MANIFEST_MEDIA_TYPE,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": bytes_digest(&config),
                "size": config.len(),
            },
            "layers": layers.collect::<Vec<_>>(),
        });
        let manifest = manifest.to_string().into_bytes();
        Self {
            digest: bytes_digest(&manifest),
            config,
            manifest,
        }
    }
}

/// Returns this machine's architecture in the notation of images.
fn image_architecture() -> &'static str {
    match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Reads the files that give programs in the images this machine's network access: its certificate
/// authorities, and its cargo configuration with the source of crates. Returns each with its path in the
/// image.
fn network_access_files() -> Result<Vec<(String, Vec<u8>)>> {
    let bundle = "etc/ssl/certs/ca-certificates.crt";
    let trusted =
        env::var_os("SSL_CERT_FILE").map_or_else(|| PathBuf::from(format!("/{bundle}")), PathBuf::from);
    let mut files = vec![(
        bundle.to_owned(),
        fs::read(&trusted).with_operation("read", &trusted)?,
    )];
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cargo = env::var_os("CARGO_HOME")
        .map_or_else(|| home.join(".cargo"), PathBuf::from)
        .join("config.toml");
    if let Ok(config) = fs::read(cargo) {
        files.push((
            format!("{}/config.toml", CARGO_HOME_IN_IMAGE.trim_start_matches('/')),
            config,
        ));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_its_layers_in_order_and_is_reproducible() {
        let layers =
            ["a", "b"].map(|name| layer::layer_from_files(vec![(name.to_owned(), name.into())]).unwrap());
        let make = || ImageDocuments::new(&[&layers[0], &layers[1]], &["A=b".to_owned()]);
        let image = make();
        let manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
        assert_eq!(manifest["layers"][1]["digest"], layers[1].digest);
        let config: serde_json::Value = serde_json::from_slice(&image.config).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], layers[0].diff_id);
        assert_eq!(make().digest, image.digest);
    }

    #[test]
    fn the_rust_images_reference_has_the_registry_and_a_tag_that_begins_with_1() {
        assert!(rust_image_reference("r:5000").starts_with("r:5000/slipway/rust:1."));
    }
}
