//! How the layers of an image are compressed: the operator's choice, or a build's own.

use std::fmt;

/// A way to compress layers, and how hard to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// The way.
    pub format: Format,
    /// 1 is quickest. Where it is not said, BuildKit decides.
    pub level: Option<u8>,
}

/// What layers are compressed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Smaller than gzip in less than half the time. Read by containerd since 1.5 and Docker since 23.
    Zstd,
    /// Read by everything.
    Gzip,
    /// Not at all.
    Uncompressed,
}

/// Why there is no such compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompressionError {
    /// The name means nothing.
    #[error("should be zstd, gzip or uncompressed")]
    Format,
    /// The format has no such level.
    #[error("should be a whole number from 1 to {most} for {format}")]
    Level {
        /// The format.
        format: Format,
        /// Its highest level.
        most: u8,
    },
    /// There are no levels of nothing.
    #[error("should be left out where nothing is compressed")]
    NoLevels,
}

impl Default for Compression {
    fn default() -> Self {
        Self {
            format: Format::Zstd,
            level: None,
        }
    }
}

impl Compression {
    /// `format` at `level`.
    ///
    /// # Errors
    /// When the format has no such level.
    pub fn new(format: Format, level: Option<u64>) -> Result<Self, CompressionError> {
        let most = match format {
            Format::Zstd => 22,
            Format::Gzip => 9,
            Format::Uncompressed if level.is_some() => return Err(CompressionError::NoLevels),
            Format::Uncompressed => 0,
        };
        let level = match level.map(u8::try_from) {
            None => None,
            Some(Ok(level)) if (1..=most).contains(&level) => Some(level),
            Some(_) => return Err(CompressionError::Level { format, most }),
        };
        Ok(Self { format, level })
    }
}

impl std::str::FromStr for Format {
    type Err = CompressionError;

    fn from_str(name: &str) -> Result<Self, CompressionError> {
        match name {
            "zstd" => Ok(Self::Zstd),
            "gzip" => Ok(Self::Gzip),
            "uncompressed" => Ok(Self::Uncompressed),
            _ => Err(CompressionError::Format),
        }
    }
}

impl fmt::Display for Format {
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
    fn formats_are_read_as_they_are_shown() {
        for format in [Format::Zstd, Format::Gzip, Format::Uncompressed] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        for name in ["", "ZSTD", "estargz", "zstd:3"] {
            assert_eq!(name.parse::<Format>(), Err(CompressionError::Format), "{name}");
        }
    }

    #[test]
    fn each_format_has_its_levels() {
        for (format, level, is_one) in [
            (Format::Zstd, 1, true),
            (Format::Zstd, 22, true),
            (Format::Zstd, 23, false),
            (Format::Zstd, 0, false),
            (Format::Zstd, 1 << 40, false),
            (Format::Gzip, 9, true),
            (Format::Gzip, 10, false),
            (Format::Uncompressed, 1, false),
        ] {
            assert_eq!(
                Compression::new(format, Some(level)).is_ok(),
                is_one,
                "{format} {level}"
            );
        }
        assert!(Compression::new(Format::Uncompressed, None).is_ok());
    }
}
