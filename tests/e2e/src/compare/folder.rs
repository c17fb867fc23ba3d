//! Contexts of the benchmark: a folder for `buildctl`, and its tar for builder-fn.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{BUILDER_FN_REPOSITORY, ContextShape, SpeedComparison, run_command};

/// A folder `context` with content that no cache knows.
pub(super) struct UniqueContextFolder {
    dir: tempfile::TempDir,
    /// The seed of the folder's content, also the image's tag.
    pub(super) salt: u64,
}

impl UniqueContextFolder {
    /// Creates a folder with files of this shape; equal salts give equal content.
    pub(super) fn of_shape(shape: ContextShape, salt: u64) -> Result<Self> {
        let folder = Self::with_dockerfile_and_salt(salt)?;
        for number in 0..shape.files {
            let path = folder.context_path().join(format!("{}/{number}", number % 100));
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(
                path,
                pseudorandom_content_ignoring_lowest_seed_bit(shape.bytes, salt ^ ((number as u64) << 8)),
            )?;
        }
        folder.equalize_modification_times()?;
        Ok(folder)
    }

    /// Creates a folder with a copy of `source`, and with the salt in a file.
    pub(super) fn with_source_in_subfolder(source: &Path, salt: u64) -> Result<Self> {
        let folder = Self::with_dockerfile_and_salt(salt)?;
        run_command(
            Command::new("cp")
                .arg("--archive")
                .arg(source)
                .arg(folder.context_path().join("source")),
        )?;
        Ok(folder)
    }

    /// Creates a folder with a Dockerfile that copies the context, and the salt in a file.
    fn with_dockerfile_and_salt(salt: u64) -> Result<Self> {
        let folder = Self {
            dir: tempfile::tempdir()?,
            salt,
        };
        fs::create_dir(folder.context_path())?;
        fs::write(
            folder.context_path().join("Dockerfile"),
            "FROM scratch\nCOPY . /\n",
        )?;
        fs::write(folder.context_path().join("salt"), salt.to_string())?;
        Ok(folder)
    }

    pub(super) fn context_path(&self) -> PathBuf {
        self.dir.path().join("context")
    }

    /// Replaces the content of the file `0/0`, and sets all modification times: this file's, and one for all others.
    pub(super) fn change_content_and_time_of_one_file(&self) -> Result<()> {
        let path = self.context_path().join("0/0");
        let bytes = fs::metadata(&path)?.len() as usize;
        fs::write(
            &path,
            pseudorandom_content_ignoring_lowest_seed_bit(bytes, !self.salt),
        )?;
        self.equalize_modification_times()?;
        run_command(Command::new("touch").args(["-d", "@1700000007"]).arg(path))
    }

    /// Gives all files and folders of the context the same modification time.
    fn equalize_modification_times(&self) -> Result<()> {
        let all = ["-depth", "-exec", "touch", "-h", "-d", "@1700000000", "{}", "+"];
        run_command(Command::new("find").arg(self.context_path()).args(all))
    }

    /// Returns the tar with a config for this compression; an empty text means the builder's default.
    pub(super) fn tar_for_builder(
        &self,
        comparison: &SpeedComparison,
        compression_or_empty: &str,
    ) -> Result<Vec<u8>> {
        let image = comparison
            .testbed
            .image_name(BUILDER_FN_REPOSITORY, &self.salt.to_string());
        let compression = Some(compression_or_empty).filter(|name| !name.is_empty());
        let config: Value = json!({ "image": image, "compression": compression });
        fs::write(
            self.dir.path().join("com.openfaas.docker.config"),
            config.to_string(),
        )?;
        let output = Command::new("tar")
            .arg("-C")
            .arg(self.dir.path())
            .args(["-cf", "-", "com.openfaas.docker.config", "context"])
            .output()?;
        ensure!(
            output.status.success(),
            "tar: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output.stdout)
    }
}

/// Returns incompressible bytes, the same ones for seeds that differ at most in the lowest bit.
pub(crate) fn pseudorandom_content_ignoring_lowest_seed_bit(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut content = Vec::with_capacity(bytes + 8);
    while content.len() < bytes {
        content.extend_from_slice(&next());
    }
    content.truncate(bytes);
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_content_and_seeds_that_differ_in_higher_bits_other_content() {
        assert_eq!(
            pseudorandom_content_ignoring_lowest_seed_bit(100, 7),
            pseudorandom_content_ignoring_lowest_seed_bit(100, 7)
        );
        assert_ne!(
            pseudorandom_content_ignoring_lowest_seed_bit(100, 7),
            pseudorandom_content_ignoring_lowest_seed_bit(100, 8 << 8)
        );
        assert_eq!(pseudorandom_content_ignoring_lowest_seed_bit(13, 1).len(), 13);
    }
}
