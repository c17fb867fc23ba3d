//! The parts of a build's tar that rules are applied to.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::Context as _;
use builder_fn::request::dockerfile_path_in_config;

/// The name of the configuration in a build's tar.
const CONFIG_FILE_NAME: &str = "com.openfaas.docker.config";
/// The size, in bytes, of the largest configuration that is read.
const MAX_CONFIG_BYTES: u64 = 1024 * 1024;
/// The number of bytes that are read of a Dockerfile: more than builder-fn searches for directives.
const DOCKERFILE_READ_BYTES: u64 = 1024 * 1024;

/// The configuration and the Dockerfile of a build.
pub(crate) struct ConfigAndDockerfile {
    pub(crate) config: Vec<u8>,
    /// The Dockerfile's content; empty if the tar has none where the configuration says.
    pub(crate) dockerfile: Vec<u8>,
}

/// Reads the configuration and the Dockerfile in a tar.
///
/// # Errors
/// Fails if the file is not a tar with a configuration, or the configuration is too large.
pub(crate) fn read_config_and_dockerfile_in_tar(path: &Path) -> anyhow::Result<ConfigAndDockerfile> {
    // One byte more, to notice a larger one.
    let config = read_beginning_of_file_in_tar(path, CONFIG_FILE_NAME, MAX_CONFIG_BYTES + 1)?
        .with_context(|| format!("the tar has no {CONFIG_FILE_NAME}"))?;
    if config.len() as u64 > MAX_CONFIG_BYTES {
        anyhow::bail!("{CONFIG_FILE_NAME} in the tar is larger than {MAX_CONFIG_BYTES} bytes");
    }
    let dockerfile = format!("context/{}", dockerfile_path_in_config(&config)?);
    Ok(ConfigAndDockerfile {
        dockerfile: read_beginning_of_file_in_tar(path, &dockerfile, DOCKERFILE_READ_BYTES)?
            .unwrap_or_default(),
        config,
    })
}

/// Returns the first `max_bytes` bytes of the file `name` in the tar at `path`, if the tar has it.
fn read_beginning_of_file_in_tar(path: &Path, name: &str, max_bytes: u64) -> anyhow::Result<Option<Vec<u8>>> {
    let mut archive = tar::Archive::new(open_tar(path)?);
    for entry in archive.entries()? {
        let entry = entry.context("could not read the tar")?;
        let found = entry.path()?;
        if found.strip_prefix("./").unwrap_or(&found) == Path::new(name) {
            let mut content = Vec::new();
            entry.take(max_bytes).read_to_end(&mut content)?;
            return Ok(Some(content));
        }
    }
    Ok(None)
}

/// Opens a tar that may be compressed with gzip or zstd, and returns a reader of the plain tar.
fn open_tar(path: &Path) -> anyhow::Result<Box<dyn Read>> {
    let mut file = File::open(path)?;
    let mut start = Vec::new();
    (&mut file).take(4).read_to_end(&mut start)?;
    file.seek(SeekFrom::Start(0))?;
    let file = BufReader::new(file);
    Ok(match start.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        // A frame of zstd, or one that its readers skip: `pzstd` puts such before each of its frames.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(file)?)
        }
        _ => Box::new(file),
    })
}
