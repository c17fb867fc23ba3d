//! Archives of images, in the layout of the OCI image specification 1.1, which containerd imports.

use std::{collections::BTreeMap, fs::File, io, path::Path};

use serde_json::{Value, json};

use super::{
    ImageDocuments,
    blob::{BlobContent, ImageBlob},
    layer::PlainInMemoryOrZstdFileLayer,
    registry::MANIFEST_MEDIA_TYPE,
};
use crate::error::{IoResultExt as _, Result};

/// An image to be put into an archive.
#[derive(Debug)]
pub(crate) struct ImageToArchive {
    /// The reference that the image has after it is imported.
    pub(crate) reference: String,
    /// The layers of the image, from the lowest to the topmost.
    pub(crate) layers: Vec<PlainInMemoryOrZstdFileLayer>,
    /// The settings of the image's containers: the field `config` of an image's configuration.
    pub(crate) settings: Value,
}

/// Writes an archive with these images, whose layers are in memory.
pub(crate) fn write_archive(path: &Path, images: &[ImageToArchive]) -> Result<()> {
    let mut blobs = BTreeMap::new();
    let mut add = |blob: ImageBlob| blobs.insert(blob.digest.clone(), blob);
    let mut manifests = Vec::new();
    for image in images {
        let layers = image.layers.iter().collect::<Vec<_>>();
        let documents = ImageDocuments::with_settings(&layers, &image.settings);
        manifests.push(json!({
            "mediaType": MANIFEST_MEDIA_TYPE,
            "digest": documents.digest,
            "size": documents.manifest.len(),
            "annotations": { "io.containerd.image.name": image.reference },
        }));
        for layer in layers {
            add(layer.blob_to_push());
        }
        add(ImageBlob::from_bytes(documents.config));
        add(ImageBlob::from_bytes(documents.manifest));
    }
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    let mut archive = tar::Builder::new(File::create(path).with_operation("write", path)?);
    let mut append = |name: &str, content: &mut dyn io::Read, size: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        archive
            .append_data(&mut header, name, content)
            .with_operation("write", path)
    };
    let layout = json!({ "imageLayoutVersion": "1.0.0" });
    for (name, document) in [("oci-layout", layout), ("index.json", index)] {
        let text = document.to_string();
        append(name, &mut text.as_bytes(), text.len() as u64)?;
    }
    for (digest, blob) in &blobs {
        let name = format!("blobs/{}", digest.replace(':', "/"));
        match &blob.content {
            BlobContent::Bytes(bytes) => append(&name, &mut bytes.as_ref(), blob.size)?,
            BlobContent::File(file) => {
                let mut content = File::open(file).with_operation("read", file)?;
                append(&name, &mut content, blob.size)?;
            }
        }
    }
    archive.into_inner().with_operation("write", path).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::image::layer::layer_from_files;

    #[test]
    fn an_archive_names_each_image_and_has_every_blob_once() {
        let layer = layer_from_files(vec![("a".to_owned(), b"a".to_vec())]).unwrap();
        let image = |reference: &str| ImageToArchive {
            reference: reference.to_owned(),
            layers: vec![layer.clone()],
            settings: json!({ "Entrypoint": [reference] }),
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        write_archive(file.path(), &[image("r/one:1"), image("r/two:1")]).unwrap();
        let mut entries = BTreeMap::new();
        let mut archive = tar::Archive::new(File::open(file.path()).unwrap());
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let name = entry.path().unwrap().display().to_string();
            assert!(entries.insert(name, content).is_none());
        }
        // Two documents, one layer, and a configuration and a manifest for each image.
        assert_eq!(entries.len(), 7);
        let index: Value = serde_json::from_slice(&entries["index.json"]).unwrap();
        assert_eq!(
            index["manifests"][1]["annotations"]["io.containerd.image.name"],
            "r/two:1"
        );
        let digest = index["manifests"][1]["digest"].as_str().unwrap();
        let manifest = &entries[&format!("blobs/{}", digest.replace(':', "/"))];
        let manifest: Value = serde_json::from_slice(manifest).unwrap();
        assert_eq!(manifest["layers"][0]["digest"], layer.digest);
    }
}
