//! Decompresses a body while it arrives. Its first bytes say how it is compressed. Why clients compress bodies:
//! `docs/pitfalls.md#size-limit-of-the-queue`.
//!
//! The output is limited, in total and in relation to the input, so that a small body cannot keep a builder busy.

use std::io::{self, Write};

use flate2::write::MultiGzDecoder;

use super::RequestError;
use crate::context::{ArchiveError, ArchiveReader, Spool};

const GZIP: &[u8] = b"\x1f\x8b";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
/// Length of the longer of both magic numbers.
const MAGIC_LENGTH: usize = 4;

/// Largest window of a zstd body, as a power of two: 8 MiB of memory, as much as `zstd -19` uses.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// Output in bytes below which the ratio is not checked: a tar of a few files is mostly zeros.
const RATIO_FREE_BYTES: u64 = 64 << 20;
/// Largest ratio of output to input above that. Source code compresses by less than 20.
const RATIO_MAX: u64 = 200;

/// Decompresses a body, if it is compressed, and passes the tar on to the spool and the index.
pub(super) enum Decompressor {
    /// Too few bytes have arrived to detect the format.
    Undetected(TarOutput, Vec<u8>),
    /// A plain tar, or a format that the index will reject.
    Plain(TarOutput),
    Gzip(MultiGzDecoder<TarOutput>),
    Zstd(Box<zstd::stream::write::Decoder<'static, TarOutput>>),
}

impl Decompressor {
    /// Returns a decompressor whose output may have `limit` bytes.
    pub(super) fn new(spool: Spool, reader: ArchiveReader, limit: u64) -> Self {
        let output = TarOutput {
            spool,
            reader,
            limit,
            bytes_in: 0,
            bytes_out: 0,
            error: None,
        };
        Self::Undetected(output, Vec::with_capacity(MAGIC_LENGTH))
    }

    /// Decompresses the next piece of the body.
    pub(super) fn push(self, piece: &[u8]) -> Result<Self, RequestError> {
        match self {
            Self::Undetected(output, mut start) => {
                start.extend_from_slice(piece);
                if start.len() < MAGIC_LENGTH {
                    return Ok(Self::Undetected(output, start));
                }
                Self::detect(output, &start)?.push(&start)
            }
            mut detected => {
                detected.write(piece)?;
                Ok(detected)
            }
        }
    }

    /// Ends the body, and returns the spool and the reader of the tar.
    pub(super) fn finish(self) -> Result<(Spool, ArchiveReader), RequestError> {
        let output = match self {
            Self::Undetected(mut output, start) => {
                // Shorter than any tar: the reader reports what is wrong.
                output.bytes_in = start.len() as u64;
                match output.write_all(&start) {
                    Ok(()) => output,
                    Err(error) => return Err(output.take_error("tar", error)),
                }
            }
            Self::Plain(output) => output,
            Self::Gzip(mut decoder) => match decoder.try_finish() {
                Ok(()) => decoder.finish().map_err(|source| broken("gzip", source))?,
                Err(error) => return Err(decoder.get_mut().take_error("gzip", error)),
            },
            Self::Zstd(mut decoder) => match decoder.flush() {
                // The reader reports a frame that is cut short, because the tar then lacks its end.
                Ok(()) => decoder.into_inner(),
                Err(error) => return Err(decoder.get_mut().take_error("zstd", error)),
            },
        };
        Ok((output.spool, output.reader))
    }

    /// Returns the decoder for the format that begins with `start`.
    fn detect(output: TarOutput, start: &[u8]) -> Result<Self, RequestError> {
        if start.starts_with(GZIP) {
            return Ok(Self::Gzip(MultiGzDecoder::new(output)));
        }
        if !start.starts_with(ZSTD) {
            return Ok(Self::Plain(output));
        }
        let mut decoder =
            zstd::stream::write::Decoder::new(output).map_err(|source| broken("zstd", source))?;
        decoder
            .window_log_max(ZSTD_WINDOW_LOG_MAX)
            .map_err(|source| broken("zstd", source))?;
        Ok(Self::Zstd(Box::new(decoder)))
    }

    fn write(&mut self, piece: &[u8]) -> Result<(), RequestError> {
        let bytes_in = piece.len() as u64;
        match self {
            Self::Undetected(..) => Ok(()),
            Self::Plain(output) => {
                output.bytes_in += bytes_in;
                output
                    .write_all(piece)
                    .map_err(|error| output.take_error("tar", error))
            }
            Self::Gzip(decoder) => {
                decoder.get_mut().bytes_in += bytes_in;
                let written = decoder.write_all(piece);
                written.map_err(|error| decoder.get_mut().take_error("gzip", error))
            }
            Self::Zstd(decoder) => {
                decoder.get_mut().bytes_in += bytes_in;
                let written = decoder.write_all(piece);
                written.map_err(|error| decoder.get_mut().take_error("zstd", error))
            }
        }
    }
}

/// Writes decompressed bytes to the reader of the tar and to the spool, and checks the limits.
pub(super) struct TarOutput {
    spool: Spool,
    reader: ArchiveReader,
    limit: u64,
    /// Bytes of the body.
    bytes_in: u64,
    /// Bytes of the tar.
    bytes_out: u64,
    /// The error behind a failed write: the decoders in between pass on only I/O errors.
    error: Option<RequestError>,
}

impl TarOutput {
    fn append(&mut self, piece: &[u8]) -> Result<(), RequestError> {
        self.bytes_out += piece.len() as u64;
        if self.bytes_out > self.limit {
            return Err(ArchiveError::DecompressedTooLarge { limit: self.limit }.into());
        }
        if self.bytes_out > RATIO_FREE_BYTES && self.bytes_out / RATIO_MAX > self.bytes_in {
            return Err(ArchiveError::DecompressionBomb { ratio: RATIO_MAX }.into());
        }
        self.reader.feed(piece)?;
        Ok(self.spool.append(piece)?)
    }

    /// Returns the error behind a decoder's, or the decoder's own where there is none.
    fn take_error(&mut self, format: &'static str, error: io::Error) -> RequestError {
        self.error.take().unwrap_or_else(|| broken(format, error))
    }
}

impl Write for TarOutput {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        match self.append(piece) {
            Ok(()) => Ok(piece.len()),
            Err(error) => {
                self.error = Some(error);
                Err(io::Error::other("the tar was rejected"))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn broken(format: &'static str, source: io::Error) -> RequestError {
    ArchiveError::Decompression { format, source }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{ArchiveLimits, SpoolQuota, SpoolSettings};
    use function_host::prometheus::IntGauge;

    fn tar(content: &[u8]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in [
            ("com.openfaas.docker.config", &b"{}"[..]),
            ("context/Dockerfile", content),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, content).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(bytes, 19).unwrap()
    }

    fn decompress(body: &[u8], piece: usize, limit: u64) -> Result<usize, RequestError> {
        let settings = SpoolSettings {
            dir: std::env::temp_dir(),
            memory: 1 << 20,
            quota: SpoolQuota::new(u64::MAX, IntGauge::new("used", "used").unwrap()),
        };
        let mut decompressor = Decompressor::new(
            Spool::new(settings),
            ArchiveReader::new(ArchiveLimits::default()),
            limit,
        );
        for piece in body.chunks(piece) {
            decompressor = decompressor.push(piece)?;
        }
        let (_, reader) = decompressor.finish()?;
        Ok(reader.finish()?.entries.len())
    }

    #[test]
    fn a_tar_is_the_same_with_every_compression_and_in_pieces_of_any_size() {
        let tar = tar(b"FROM scratch\n");
        for body in [tar.clone(), gzip(&tar), zstd(&tar)] {
            for piece in [1, 3, 1000, body.len()] {
                assert_eq!(decompress(&body, piece, 1 << 20).unwrap(), 1);
            }
        }
        let (first, second) = tar.split_at(700);
        for body in [
            [gzip(first), gzip(second)].concat(),
            [zstd(first), zstd(second)].concat(),
        ] {
            assert_eq!(
                decompress(&body, 100, 1 << 20).unwrap(),
                1,
                "several gzip members or zstd frames are one stream"
            );
        }
    }

    #[test]
    fn a_body_that_decompresses_to_more_than_the_limit_is_rejected() {
        let tar = tar(&[7; 100_000]);
        for body in [gzip(&tar), zstd(&tar)] {
            let error = decompress(&body, 1000, 50_000).unwrap_err().to_string();
            assert!(error.contains("50000 bytes"), "{error}");
        }
    }

    #[test]
    fn a_decompression_bomb_is_rejected_long_before_the_limit() {
        let zeros = vec![0; 100 << 20];
        let bomb = [tar(b"")[..1024].to_vec(), tar(&zeros)].concat();
        for body in [gzip(&bomb), zstd(&bomb)] {
            let error = decompress(&body, 1000, 1 << 40).unwrap_err().to_string();
            assert!(error.contains("200 times"), "{error}");
        }
    }

    #[test]
    fn a_damaged_or_truncated_compressed_body_is_rejected() {
        let tar = tar(b"FROM scratch\n");
        for body in [gzip(&tar), zstd(&tar)] {
            for cut in 0..body.len() - 9 {
                assert!(decompress(&body[..cut], 50, 1 << 20).is_err(), "cut at {cut}");
            }
            let mut damaged = body.clone();
            damaged[body.len() / 2] ^= 0xff;
            assert!(decompress(&damaged, 50, 1 << 20).is_err());
        }
        assert!(decompress(b"", 1, 1 << 20).is_err());
        assert!(decompress(b"BZ", 1, 1 << 20).is_err());
    }
}
