//! A body's compression, told by its first bytes and taken off while it arrives.
//!
//! What comes out is bounded: in all, and in relation to what went in, so that a small body cannot keep a builder busy.

use std::io::{self, Write};

use flate2::write::MultiGzDecoder;

use super::RequestError;
use crate::context::{ArchiveError, ArchiveReader, Spool};

const GZIP: &[u8] = b"\x1f\x8b";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
/// As long as the longer of both.
const MAGIC: usize = 4;

/// The memory that a zstd body may ask for is two to this power: 8 MiB, as much as `zstd -19` uses.
const ZSTD_WINDOW: u32 = 23;

/// Up to here a body may unpack from anything: a tar of a few files is mostly zeros.
const FREE_OF_RATIO: u64 = 64 << 20;
/// Further on, so many bytes may come out for each that goes in. Source has less than 20.
const RATIO: u64 = 200;

/// Takes off a body's compression, if it has one, and keeps and indexes what comes out.
pub(super) enum Unpacker {
    /// Too little was seen to tell.
    Start(Sink, Vec<u8>),
    /// A tar as it is, or what the index will refuse.
    Plain(Sink),
    Gzip(MultiGzDecoder<Sink>),
    Zstd(Box<zstd::stream::write::Decoder<'static, Sink>>),
}

impl Unpacker {
    /// For bodies that may unpack to `limit` bytes.
    pub(super) fn new(spool: Spool, reader: ArchiveReader, limit: u64) -> Self {
        let sink = Sink {
            spool,
            reader,
            limit,
            packed: 0,
            unpacked: 0,
            failed: None,
        };
        Self::Start(sink, Vec::with_capacity(MAGIC))
    }

    /// Takes the next piece of the body.
    pub(super) fn take(self, piece: &[u8]) -> Result<Self, RequestError> {
        match self {
            Self::Start(sink, mut start) => {
                start.extend_from_slice(piece);
                if start.len() < MAGIC {
                    return Ok(Self::Start(sink, start));
                }
                Self::told_by(sink, &start)?.take(&start)
            }
            mut told => {
                told.write(piece)?;
                Ok(told)
            }
        }
    }

    /// The body has ended.
    pub(super) fn finish(self) -> Result<(Spool, ArchiveReader), RequestError> {
        let sink = match self {
            Self::Start(mut sink, start) => {
                // Shorter than any tar: the index says what is wrong.
                sink.packed = start.len() as u64;
                match sink.write_all(&start) {
                    Ok(()) => sink,
                    Err(error) => return Err(sink.why("tar", error)),
                }
            }
            Self::Plain(sink) => sink,
            Self::Gzip(mut decoder) => match decoder.try_finish() {
                Ok(()) => decoder.finish().map_err(|source| broken("gzip", source))?,
                Err(error) => return Err(decoder.get_mut().why("gzip", error)),
            },
            Self::Zstd(mut decoder) => match decoder.flush() {
                // A frame that is cut short lacks the tar's end, which the index misses.
                Ok(()) => decoder.into_inner(),
                Err(error) => return Err(decoder.get_mut().why("zstd", error)),
            },
        };
        Ok((sink.spool, sink.reader))
    }

    fn told_by(sink: Sink, start: &[u8]) -> Result<Self, RequestError> {
        if start.starts_with(GZIP) {
            return Ok(Self::Gzip(MultiGzDecoder::new(sink)));
        }
        if !start.starts_with(ZSTD) {
            return Ok(Self::Plain(sink));
        }
        let mut decoder = zstd::stream::write::Decoder::new(sink).map_err(|source| broken("zstd", source))?;
        decoder
            .window_log_max(ZSTD_WINDOW)
            .map_err(|source| broken("zstd", source))?;
        Ok(Self::Zstd(Box::new(decoder)))
    }

    fn write(&mut self, piece: &[u8]) -> Result<(), RequestError> {
        let packed = piece.len() as u64;
        match self {
            Self::Start(..) => Ok(()),
            Self::Plain(sink) => {
                sink.packed += packed;
                sink.write_all(piece).map_err(|error| sink.why("tar", error))
            }
            Self::Gzip(decoder) => {
                decoder.get_mut().packed += packed;
                let written = decoder.write_all(piece);
                written.map_err(|error| decoder.get_mut().why("gzip", error))
            }
            Self::Zstd(decoder) => {
                decoder.get_mut().packed += packed;
                let written = decoder.write_all(piece);
                written.map_err(|error| decoder.get_mut().why("zstd", error))
            }
        }
    }
}

/// Where the unpacked bytes go: to the index and to the spool.
pub(super) struct Sink {
    spool: Spool,
    reader: ArchiveReader,
    limit: u64,
    packed: u64,
    unpacked: u64,
    /// What really happened, when a write has failed: the decoders between know only I/O errors.
    failed: Option<RequestError>,
}

impl Sink {
    fn keep(&mut self, piece: &[u8]) -> Result<(), RequestError> {
        self.unpacked += piece.len() as u64;
        if self.unpacked > self.limit {
            return Err(ArchiveError::UnpacksTooLarge { limit: self.limit }.into());
        }
        if self.unpacked > FREE_OF_RATIO && self.unpacked / RATIO > self.packed {
            return Err(ArchiveError::UnpacksTooMuch { ratio: RATIO }.into());
        }
        self.reader.feed(piece)?;
        Ok(self.spool.append(piece)?)
    }

    /// The error behind that of a decoder; its own, where there is none.
    fn why(&mut self, format: &'static str, error: io::Error) -> RequestError {
        self.failed.take().unwrap_or_else(|| broken(format, error))
    }
}

impl Write for Sink {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        match self.keep(piece) {
            Ok(()) => Ok(piece.len()),
            Err(error) => {
                self.failed = Some(error);
                Err(io::Error::other("not kept"))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn broken(format: &'static str, source: io::Error) -> RequestError {
    ArchiveError::Broken { format, source }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{ArchiveLimits, SpoolRoom, SpoolSettings};
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

    fn unpack(body: &[u8], piece: usize, limit: u64) -> Result<usize, RequestError> {
        let settings = SpoolSettings {
            dir: std::env::temp_dir(),
            memory: 1 << 20,
            room: SpoolRoom::new(u64::MAX, IntGauge::new("used", "used").unwrap()),
        };
        let mut unpacker = Unpacker::new(
            Spool::new(settings),
            ArchiveReader::new(ArchiveLimits::default()),
            limit,
        );
        for piece in body.chunks(piece) {
            unpacker = unpacker.take(piece)?;
        }
        let (_, reader) = unpacker.finish()?;
        Ok(reader.finish()?.entries.len())
    }

    #[test]
    fn a_tar_is_the_same_whatever_it_is_packed_with_and_however_it_arrives() {
        let tar = tar(b"FROM scratch\n");
        for body in [tar.clone(), gzip(&tar), zstd(&tar)] {
            for piece in [1, 3, 1000, body.len()] {
                assert_eq!(unpack(&body, piece, 1 << 20).unwrap(), 1);
            }
        }
        let (first, second) = tar.split_at(700);
        for body in [
            [gzip(first), gzip(second)].concat(),
            [zstd(first), zstd(second)].concat(),
        ] {
            assert_eq!(
                unpack(&body, 100, 1 << 20).unwrap(),
                1,
                "several members are one stream"
            );
        }
    }

    #[test]
    fn what_unpacks_to_more_than_the_limit_is_refused() {
        let tar = tar(&[7; 100_000]);
        for body in [gzip(&tar), zstd(&tar)] {
            let error = unpack(&body, 1000, 50_000).unwrap_err().to_string();
            assert!(error.contains("50000 bytes"), "{error}");
        }
    }

    #[test]
    fn a_bomb_is_refused_long_before_the_limit() {
        let zeros = vec![0; 100 << 20];
        let bomb = [tar(b"")[..1024].to_vec(), tar(&zeros)].concat();
        for body in [gzip(&bomb), zstd(&bomb)] {
            let error = unpack(&body, 1000, 1 << 40).unwrap_err().to_string();
            assert!(error.contains("200 times"), "{error}");
        }
    }

    #[test]
    fn a_broken_or_cut_body_is_told_apart_from_a_good_one() {
        let tar = tar(b"FROM scratch\n");
        for body in [gzip(&tar), zstd(&tar)] {
            for cut in 0..body.len() - 9 {
                assert!(unpack(&body[..cut], 50, 1 << 20).is_err(), "cut at {cut}");
            }
            let mut damaged = body.clone();
            damaged[body.len() / 2] ^= 0xff;
            assert!(unpack(&damaged, 50, 1 << 20).is_err());
        }
        assert!(unpack(b"", 1, 1 << 20).is_err());
        assert!(unpack(b"BZ", 1, 1 << 20).is_err());
    }
}
