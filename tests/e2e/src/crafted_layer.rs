//! Layers of base images with entries that no tool would write: names outside of the root, devices, whiteouts.

use anyhow::{Context as _, Result};
use tar::EntryType;

/// A builder of an image layer, which may have entries that no ordinary program writes.
#[derive(Debug, Default)]
pub struct CraftedLayerBuilder {
    tar: Vec<u8>,
}

/// A finished layer, in both forms.
pub struct CraftedLayerTarAndZstd {
    /// The tar, compressed with zstd.
    pub zstd: Vec<u8>,
    /// The layer's tar, not compressed.
    pub tar: Vec<u8>,
}

impl CraftedLayerBuilder {
    /// Returns an empty layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file with this mode, whatever its name.
    pub fn with_file(self, path: &str, mode: u32, content: &[u8]) -> Result<Self> {
        self.with_entry(path, EntryType::Regular, "", mode, (0, 0), content)
    }

    /// Adds a symbolic link at `path` to `target`.
    pub fn with_symlink(self, path: &str, target: &str) -> Result<Self> {
        self.with_entry(path, EntryType::Symlink, target, 0o777, (0, 0), &[])
    }

    /// Adds a hard link at `path` to the file at `target`.
    pub fn with_hard_link(self, path: &str, target: &str) -> Result<Self> {
        self.with_entry(path, EntryType::Link, target, 0o644, (0, 0), &[])
    }

    /// Adds a device or a FIFO at `path`; `number` has a device's major and minor number.
    pub fn with_device(self, path: &str, kind: EntryType, number: (u32, u32)) -> Result<Self> {
        self.with_entry(path, kind, "", 0o666, number, &[])
    }

    /// Ends the tar and compresses it.
    pub fn finish(mut self) -> Result<CraftedLayerTarAndZstd> {
        self.tar.extend([0; 1024]);
        let zstd = zstd::encode_all(self.tar.as_slice(), 1).context("compressing the layer")?;
        Ok(CraftedLayerTarAndZstd { zstd, tar: self.tar })
    }

    /// Adds an entry whose names are written as they are: the tar crate would reject some of them.
    fn with_entry(
        mut self,
        path: &str,
        kind: EntryType,
        target: &str,
        mode: u32,
        (major, minor): (u32, u32),
        content: &[u8],
    ) -> Result<Self> {
        let mut header = tar::Header::new_ustar();
        let old = header.as_old_mut();
        let name = old.name.get_mut(..path.len()).context("the name is too long")?;
        name.copy_from_slice(path.as_bytes());
        let link = old.linkname.get_mut(..target.len());
        link.context("the target is too long")?
            .copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
        header.set_cksum();
        self.tar.extend(header.as_bytes());
        self.tar.extend(content);
        self.tar.resize(self.tar.len().next_multiple_of(512), 0);
        Ok(self)
    }
}
