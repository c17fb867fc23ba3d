//! Decompresses a request's body, once its signature is verified, or a fetched context. The first bytes show how it is
//! compressed. Why clients compress bodies: `docs/pitfalls.md#size-limit-of-the-queue`.
//!
//! The output is limited, in total and in relation to the input, so that a small body cannot keep a builder busy.

mod gzip;

use std::io::{self, Write};

use zstd::stream::{raw, zio};

use gzip::GzipStream;

use super::RequestError;
use crate::context::{ArchiveError, Spool, SpoolSettings};

const GZIP_MAGIC: &[u8] = b"\x1f\x8b";
const ZSTD_MAGIC: &[u8] = b"\x28\xb5\x2f\xfd";
/// The magic number of a skippable zstd frame, without its first byte, `0x50` to `0x5f`. `pzstd` puts such
/// frames before others.
const ZSTD_SKIPPABLE_MAGIC_TAIL: &[u8] = b"\x2a\x4d\x18";
/// The length of the longest magic number of a compression format.
const MAGIC_BYTES_MAX: usize = 4;

/// The largest window of a zstd body, as a power of two: 8 MiB of memory, as much as `zstd -19` uses.
const ZSTD_WINDOW_LOG2_MAX: u32 = 23;

/// The size of the output, in bytes, below which the compression ratio is not checked: a tar of a few files is
/// mostly zeros.
const RATIO_UNCHECKED_OUTPUT_BYTES: u64 = 64 << 20;
/// The largest ratio of output to input for a larger output. Source code compresses by less than 20.
const COMPRESSION_RATIO_MAX: u64 = 200;

/// The number of bytes of a body that are read and decompressed at once.
const PIECE_BYTES: usize = 64 << 10;

/// The format of a body, which its first bytes show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyCompression {
    /// A tar that is not compressed, or a format that the reader of the tar rejects.
    Plain,
    /// A compressed tar.
    Compressed(CompressionFormat),
}

/// Returns the format of `body`. Blocks.
///
/// # Errors
/// Fails if the body cannot be read back from its spool.
pub(super) fn detect_body_compression(body: &Spool) -> Result<BodyCompression, RequestError> {
    let mut start = [0; MAGIC_BYTES_MAX];
    let count = body.read_at(&mut start, 0).map_err(RequestError::ReadSpool)?;
    Ok(
        CompressionFormat::detect(&start[..count])
            .map_or(BodyCompression::Plain, BodyCompression::Compressed),
    )
}

/// Decompresses `body` into a new spool of at most `limit` bytes; returns `None` if the body is not compressed. Blocks.
///
/// # Errors
/// Fails if the body cannot be decompressed, or the tar exceeds a limit or cannot be spooled.
pub(super) fn decompress_if_compressed(
    body: &Spool,
    settings: &SpoolSettings,
    limit: u64,
) -> Result<Option<Spool>, RequestError> {
    decompress_with_buffer(body, settings, limit, PIECE_BYTES)
}

/// Decompresses `body` as [`decompress_if_compressed`] does, in pieces of `piece_bytes`.
fn decompress_with_buffer(
    body: &Spool,
    settings: &SpoolSettings,
    limit: u64,
    piece_bytes: usize,
) -> Result<Option<Spool>, RequestError> {
    let BodyCompression::Compressed(format) = detect_body_compression(body)? else {
        return Ok(None);
    };
    let mut decoder = BodyDecoder::new(format, LimitedTarWriter::new(settings, limit))?;
    let mut buffer = vec![
        0;
        usize::try_from(body.len())
            .unwrap_or(piece_bytes)
            .min(piece_bytes)
    ];
    let mut offset = 0;
    loop {
        let count = body
            .read_at(&mut buffer, offset)
            .map_err(RequestError::ReadSpool)?;
        if count == 0 {
            return decoder.finish().map(Some);
        }
        decoder = decoder.decompress_piece(&buffer[..count])?;
        offset += count as u64;
    }
}

/// The format of a compressed body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CompressionFormat {
    /// gzip, RFC 1952.
    Gzip,
    /// zstd, RFC 8878.
    Zstd,
}

impl CompressionFormat {
    /// Returns the format whose magic number `start` has; `None` for a plain tar, or a format that the reader of the
    /// tar rejects.
    fn detect(start: &[u8]) -> Option<Self> {
        let is_skippable =
            matches!(start, [0x50..=0x5f, rest @ ..] if rest.starts_with(ZSTD_SKIPPABLE_MAGIC_TAIL));
        if start.starts_with(GZIP_MAGIC) && start.len() == MAGIC_BYTES_MAX {
            return Some(Self::Gzip);
        }
        (start.starts_with(ZSTD_MAGIC) || is_skippable).then_some(Self::Zstd)
    }
}

/// The decoder of a compressed body.
enum BodyDecoder {
    Gzip(GzipStream),
    Zstd(Box<zio::Writer<LimitedTarWriter, raw::Decoder<'static>>>),
}

impl BodyDecoder {
    fn new(format: CompressionFormat, output: LimitedTarWriter) -> Result<Self, RequestError> {
        if matches!(format, CompressionFormat::Gzip) {
            return Ok(Self::Gzip(GzipStream::new(output)));
        }
        let decoder = raw::Decoder::new().and_then(|mut decoder| {
            decoder.set_parameter(raw::DParameter::WindowLogMax(ZSTD_WINDOW_LOG2_MAX))?;
            Ok(decoder)
        });
        let decoder = decoder.map_err(|source| decoder_rejection_error("zstd", source))?;
        Ok(Self::Zstd(Box::new(zio::Writer::new(output, decoder))))
    }

    /// Decompresses the next piece of the body.
    fn decompress_piece(self, piece: &[u8]) -> Result<Self, RequestError> {
        match self {
            Self::Gzip(stream) => Ok(Self::Gzip(stream.decompress_piece(piece)?)),
            Self::Zstd(mut decoder) => {
                decoder.writer_mut().bytes_in += piece.len() as u64;
                match decoder.write_all(piece) {
                    Ok(()) => Ok(Self::Zstd(decoder)),
                    Err(error) => Err(decoder.writer_mut().take_write_error("zstd", error)),
                }
            }
        }
    }

    /// Checks that the compressed body is complete, and returns the spool with the tar.
    fn finish(self) -> Result<Spool, RequestError> {
        let output = match self {
            Self::Gzip(stream) => stream.finish()?,
            Self::Zstd(mut decoder) => match decoder.finish() {
                Ok(()) => decoder.into_inner().0,
                Err(error) => return Err(decoder.writer_mut().take_write_error("zstd", error)),
            },
        };
        Ok(*output.spool)
    }
}

/// Writes decompressed bytes to a spool, and checks the limits on their number and on the compression ratio.
pub(super) struct LimitedTarWriter {
    /// Boxed, because the writer moves with each piece of a body.
    spool: Box<Spool>,
    limit: u64,
    /// The number of bytes of the body so far.
    bytes_in: u64,
    /// The number of bytes of the tar so far.
    bytes_out: u64,
    /// The error that caused a write to fail: the decoders in between pass on only I/O errors.
    error: Option<RequestError>,
}

impl LimitedTarWriter {
    fn new(settings: &SpoolSettings, limit: u64) -> Self {
        Self {
            spool: Box::new(Spool::new(settings.clone()).with_block_hashes()),
            limit,
            bytes_in: 0,
            bytes_out: 0,
            error: None,
        }
    }

    /// Appends decompressed bytes to the spool, unless they exceed a limit.
    fn append(&mut self, piece: &[u8]) -> Result<(), RequestError> {
        self.bytes_out += piece.len() as u64;
        if self.bytes_out > self.limit {
            return Err(ArchiveError::DecompressedTooLarge { limit: self.limit }.into());
        }
        if self.bytes_out > RATIO_UNCHECKED_OUTPUT_BYTES
            && self.bytes_out / COMPRESSION_RATIO_MAX > self.bytes_in
        {
            return Err(ArchiveError::DecompressionBomb {
                ratio: COMPRESSION_RATIO_MAX,
            }
            .into());
        }
        Ok(self.spool.append(piece)?)
    }

    /// Takes the error that caused a decoder's write to fail, and returns it, or else the decoder's own error.
    fn take_write_error(&mut self, format: &'static str, error: io::Error) -> RequestError {
        self.error
            .take()
            .unwrap_or_else(|| decoder_rejection_error(format, error))
    }
}

impl Write for LimitedTarWriter {
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

/// Returns the error for a body that a decoder rejects: its window is too large, or it is damaged or incomplete.
fn decoder_rejection_error(format: &'static str, source: io::Error) -> RequestError {
    // The library tells this error from others only by its text.
    if format == "zstd" && source.to_string().contains("too much memory") {
        let limit = 1 << ZSTD_WINDOW_LOG2_MAX;
        return ArchiveError::WindowTooLarge { limit }.into();
    }
    ArchiveError::Decompression { format, source }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{ArchiveLimits, ArchiveReader, SpoolQuota};
    use function_host::prometheus::IntGauge;

    fn tar_with_dockerfile(content: &[u8]) -> Vec<u8> {
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

    fn compress_gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn compress_zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(bytes, 19).unwrap()
    }

    /// Decompresses a body in pieces, and returns the number of entries of the context in it.
    fn decompress_in_pieces_and_count_context_entries(
        body: &[u8],
        piece_bytes: usize,
        limit: u64,
    ) -> Result<usize, RequestError> {
        let settings = SpoolSettings {
            folder: std::env::temp_dir(),
            memory: 1 << 20,
            quota: SpoolQuota::new(u64::MAX, IntGauge::new("used", "used").unwrap()),
        };
        let body = Spool::in_memory(body.to_vec());
        let tar = decompress_with_buffer(&body, &settings, limit, piece_bytes)?.unwrap_or(body);
        Ok(ArchiveReader::new(ArchiveLimits::default())
            .read(&tar)?
            .entries
            .len())
    }

    #[test]
    fn a_tar_has_the_same_entries_in_every_compression_and_in_pieces_of_any_size() {
        let tar = tar_with_dockerfile(b"FROM scratch\n");
        for body in [tar.clone(), compress_gzip(&tar), compress_zstd(&tar)] {
            for piece in [1, 3, 1000, body.len()] {
                assert_eq!(
                    decompress_in_pieces_and_count_context_entries(&body, piece, 1 << 20).unwrap(),
                    1
                );
            }
        }
        let (first, second) = tar.split_at(700);
        for body in [
            [compress_gzip(first), compress_gzip(second)].concat(),
            [compress_zstd(first), compress_zstd(second)].concat(),
        ] {
            assert_eq!(
                decompress_in_pieces_and_count_context_entries(&body, 100, 1 << 20).unwrap(),
                1,
                "several gzip members or zstd frames are one stream"
            );
        }
    }

    #[test]
    fn a_body_that_decompresses_to_more_than_the_limit_is_rejected() {
        let tar = tar_with_dockerfile(&[7; 100_000]);
        for body in [compress_gzip(&tar), compress_zstd(&tar)] {
            let error = decompress_in_pieces_and_count_context_entries(&body, 1000, 50_000)
                .unwrap_err()
                .to_string();
            assert!(error.contains("50000 bytes"), "{error}");
        }
    }

    #[test]
    fn a_decompression_bomb_is_rejected_for_its_ratio_long_before_the_size_limit() {
        let zeros = vec![0; 100 << 20];
        let bomb = [
            tar_with_dockerfile(b"")[..1024].to_vec(),
            tar_with_dockerfile(&zeros),
        ]
        .concat();
        for body in [compress_gzip(&bomb), compress_zstd(&bomb)] {
            let error = decompress_in_pieces_and_count_context_entries(&body, 1000, 1 << 40)
                .unwrap_err()
                .to_string();
            assert!(error.contains("200 times"), "{error}");
        }
    }

    /// Returns a frame that zstd skips. `pzstd` writes the size of the next frame into one.
    fn skippable_zstd_frame(first_magic_byte: u8, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).unwrap().to_le_bytes();
        [&[first_magic_byte, 0x2a, 0x4d, 0x18], &length[..], content].concat()
    }

    /// Runs a program of the machine on a file with these bytes, and returns its output.
    fn run_on_file(program: &str, arguments: &[&str], bytes: &[u8]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tar");
        std::fs::write(&path, bytes).unwrap();
        let output = std::process::Command::new(program)
            .args(arguments)
            .arg(&path)
            .output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(
            output.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    }

    #[test]
    fn zeros_after_a_gzip_stream_are_ignored_as_gnu_tar_does() {
        let tar = tar_with_dockerfile(b"FROM scratch\n");
        let stream = run_on_file("gzip", &["--stdout"], &tar);
        for zeros in [1, 7, 10_000] {
            let body = [&stream[..], &vec![0; zeros]].concat();
            for piece in [1, 100, body.len()] {
                assert_eq!(
                    decompress_in_pieces_and_count_context_entries(&body, piece, 1 << 20).unwrap(),
                    1,
                    "{zeros} zeros"
                );
            }
            let listed = run_on_file("tar", &["--list", "--gzip", "--file"], &body);
            assert_eq!(
                String::from_utf8(listed).unwrap().lines().count(),
                2,
                "{zeros} zeros"
            );
            let another = [&body[..], &stream].concat();
            let error = decompress_in_pieces_and_count_context_entries(&another, 100, 1 << 20)
                .unwrap_err()
                .to_string();
            assert!(error.contains("after the zeros"), "{error}");
        }
        for rest in [&b"x"[..], b"\x1f", b"\x1f\x8b\x08"] {
            assert!(
                decompress_in_pieces_and_count_context_entries(&[&stream[..], rest].concat(), 100, 1 << 20)
                    .is_err(),
                "{rest:?}"
            );
        }
    }

    #[test]
    fn skippable_zstd_frames_are_ignored_wherever_they_are() {
        let tar = tar_with_dockerfile(b"FROM scratch\n");
        let (first, second) = tar.split_at(700);
        for magic in [0x50, 0x57, 0x5f] {
            let skip = |content: &[u8]| skippable_zstd_frame(magic, content);
            for body in [
                [skip(b""), compress_zstd(&tar)].concat(),
                [
                    skip(b"1234"),
                    compress_zstd(first),
                    skip(b"5678"),
                    compress_zstd(second),
                    skip(&[0; 5000]),
                ]
                .concat(),
                [skip(b"1"), skip(b"2"), compress_zstd(&tar)].concat(),
            ] {
                for piece in [1, 100, body.len()] {
                    assert_eq!(
                        decompress_in_pieces_and_count_context_entries(&body, piece, 1 << 20).unwrap(),
                        1
                    );
                }
                let cut = [&body[..], &skip(b"1234")[..9]].concat();
                assert!(
                    decompress_in_pieces_and_count_context_entries(&cut, 100, 1 << 20).is_err(),
                    "a skippable frame that is cut short"
                );
            }
        }
        assert!(
            decompress_in_pieces_and_count_context_entries(
                &[skippable_zstd_frame(0x4f, b"1"), compress_zstd(&tar)].concat(),
                100,
                1 << 20
            )
            .is_err()
        );
        assert!(
            decompress_in_pieces_and_count_context_entries(
                &[skippable_zstd_frame(0x60, b"1"), compress_zstd(&tar)].concat(),
                100,
                1 << 20
            )
            .is_err()
        );
        let error =
            decompress_in_pieces_and_count_context_entries(&skippable_zstd_frame(0x50, b"1"), 100, 1 << 20)
                .unwrap_err()
                .to_string();
        assert!(error.contains("empty"), "{error}");
    }

    #[test]
    fn a_zstd_body_whose_window_is_too_large_is_rejected_with_an_error_about_the_window() {
        let tar = tar_with_dockerfile(&vec![7; 20 << 20]);
        let packed = |window_log| {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(window_log).unwrap();
            encoder.write_all(&tar).unwrap();
            encoder.finish().unwrap()
        };
        assert_eq!(
            decompress_in_pieces_and_count_context_entries(&packed(23), 1000, 1 << 30).unwrap(),
            1
        );
        let error = decompress_in_pieces_and_count_context_entries(&packed(24), 1000, 1 << 30)
            .unwrap_err()
            .to_string();
        assert!(error.contains("window of more than 8388608 bytes"), "{error}");
    }

    #[test]
    fn a_compressed_body_whose_compressed_data_ends_between_two_tar_entries_is_rejected() {
        let tar = tar_with_dockerfile(b"FROM scratch\n");
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.write_all(&tar[..2048]).unwrap();
        encoder.flush().unwrap();
        assert!(decompress_in_pieces_and_count_context_entries(encoder.get_ref(), 100, 1 << 20).is_err());
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&tar[..2048]).unwrap();
        encoder.flush().unwrap();
        assert!(decompress_in_pieces_and_count_context_entries(encoder.get_ref(), 100, 1 << 20).is_err());
    }

    #[test]
    fn a_damaged_or_truncated_compressed_body_is_rejected() {
        let tar = tar_with_dockerfile(b"FROM scratch\n");
        for body in [compress_gzip(&tar), compress_zstd(&tar)] {
            for cut in 0..body.len() - 9 {
                assert!(
                    decompress_in_pieces_and_count_context_entries(&body[..cut], 50, 1 << 20).is_err(),
                    "cut at {cut}"
                );
            }
            let mut damaged = body.clone();
            damaged[body.len() / 2] ^= 0xff;
            assert!(decompress_in_pieces_and_count_context_entries(&damaged, 50, 1 << 20).is_err());
        }
        assert!(decompress_in_pieces_and_count_context_entries(b"", 1, 1 << 20).is_err());
        assert!(decompress_in_pieces_and_count_context_entries(b"BZ", 1, 1 << 20).is_err());
    }
}
