//! Blobs of a registry: contents with digests.

use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

/// A blob: its content with digest and size.
#[derive(Debug, Clone)]
pub(super) struct ImageBlob {
    pub(super) digest: String,
    pub(super) size: u64,
    pub(super) content: BlobContent,
}

/// The content of a blob.
#[derive(Debug, Clone)]
pub(super) enum BlobContent {
    Bytes(std::sync::Arc<[u8]>),
    File(PathBuf),
}

impl ImageBlob {
    /// Creates a blob in memory and computes its digest.
    pub(super) fn from_bytes(bytes: Vec<u8>) -> Self {
        Self {
            digest: bytes_digest(&bytes),
            size: bytes.len() as u64,
            content: BlobContent::Bytes(bytes.into()),
        }
    }
}

/// Returns the SHA-256 digest of bytes in the notation of registries.
pub(super) fn bytes_digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
