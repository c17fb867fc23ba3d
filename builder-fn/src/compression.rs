//! Compression of an image's layers, chosen by the operator or by the build.

use std::fmt;

/// The compression of an image's layers: a format and a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerCompression {
    /// The format in which layers are compressed.
    pub format: CompressionFormat,
    /// The compression level, of which 1 is fastest; `None` for BuildKit's default.
    pub level: Option<u8>,
}

/// The format in which layers are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionFormat {
    /// Zstandard: smaller than gzip in less than half the time. containerd since 1.5 and Docker since 23 can read it.
    Zstd,
    /// Gzip, which every client can read.
    Gzip,
    /// No compression of layers.
    Uncompressed,
}

/// The error for an invalid compression format or level. The texts follow the name of the key or setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompressionError {
    /// The text names none of the compression formats.
    #[error("should be zstd, gzip or uncompressed")]
    CompressionFormat,
    /// The compression format does not have the level.
    #[error("should be a whole number from 1 to {most} for {format}")]
    Level {
        /// The format that does not have the level.
        format: CompressionFormat,
        /// The format's highest level.
        most: u8,
    },
    /// A compression level was given for layers without compression.
    #[error("should be left out for uncompressed layers")]
    NoLevels,
}

impl Default for LayerCompression {
    /// Returns Zstandard at BuildKit's default level.
    fn default() -> Self {
        Self {
            format: CompressionFormat::Zstd,
            level: None,
        }
    }
}

impl LayerCompression {
    /// Returns the compression in `format` at `level`; fails if the format does not have the level.
    ///
    /// # Errors
    /// Fails if the format does not have that level.
    pub fn new(format: CompressionFormat, level: Option<u64>) -> Result<Self, CompressionError> {
        let most = match format {
            CompressionFormat::Zstd => 22,
            CompressionFormat::Gzip => 9,
            CompressionFormat::Uncompressed if level.is_some() => return Err(CompressionError::NoLevels),
            CompressionFormat::Uncompressed => 0,
        };
        let level = match level.map(u8::try_from) {
            None => None,
            Some(Ok(level)) if (1..=most).contains(&level) => Some(level),
            Some(_) => return Err(CompressionError::Level { format, most }),
        };
        Ok(Self { format, level })
    }
}

impl std::str::FromStr for CompressionFormat {
    type Err = CompressionError;

    fn from_str(name: &str) -> Result<Self, CompressionError> {
        match name {
            "zstd" => Ok(Self::Zstd),
            "gzip" => Ok(Self::Gzip),
            "uncompressed" => Ok(Self::Uncompressed),
            _ => Err(CompressionError::CompressionFormat),
        }
    }
}

impl fmt::Display for CompressionFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Uncompressed => "uncompressed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compression_format_is_parsed_from_its_displayed_name() {
        for format in [
            CompressionFormat::Zstd,
            CompressionFormat::Gzip,
            CompressionFormat::Uncompressed,
        ] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        for name in ["", "ZSTD", "estargz", "zstd:3"] {
            assert_eq!(
                name.parse::<CompressionFormat>(),
                Err(CompressionError::CompressionFormat),
                "{name}"
            );
        }
    }

    #[test]
    fn a_compression_level_that_the_format_does_not_have_is_rejected() {
        for (format, level, is_valid) in [
            (CompressionFormat::Zstd, 1, true),
            (CompressionFormat::Zstd, 22, true),
            (CompressionFormat::Zstd, 23, false),
            (CompressionFormat::Zstd, 0, false),
            (CompressionFormat::Zstd, 1 << 40, false),
            (CompressionFormat::Gzip, 9, true),
            (CompressionFormat::Gzip, 10, false),
            (CompressionFormat::Uncompressed, 1, false),
        ] {
            assert_eq!(
                LayerCompression::new(format, Some(level)).is_ok(),
                is_valid,
                "{format} {level}"
            );
        }
        assert!(LayerCompression::new(CompressionFormat::Uncompressed, None).is_ok());
    }
}
