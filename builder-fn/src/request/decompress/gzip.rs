//! Decompresses a gzip stream: one or more members, and perhaps zeros after the last one.

use std::io::{self, Write};

use flate2::write::GzDecoder;

use super::LimitedTarWriter;
use crate::context::ArchiveError;
use crate::request::RequestError;

const FORMAT_NAME: &str = "gzip";

/// A gzip stream that is decompressed piece by piece into a spool.
///
/// Zeros after the last member are ignored, as by gzip: programs that write whole blocks fill the last one with them.
/// Data after such zeros is rejected, because some programs read it and others do not.
pub(in crate::request) enum GzipStream {
    /// The stream is within a gzip member.
    Member(Box<GzDecoder<LimitedTarWriter>>),
    /// The stream is at the end of a gzip member.
    Between(LimitedTarWriter),
    /// The stream is in the zeros after the last gzip member.
    Padding(LimitedTarWriter),
}

impl GzipStream {
    /// Returns a gzip stream at its start.
    pub(super) fn new(output: LimitedTarWriter) -> Self {
        Self::Member(Box::new(GzDecoder::new(output)))
    }

    /// Decompresses the next piece of the gzip stream, which may end one member and begin another.
    pub(super) fn decompress_piece(mut self, mut piece: &[u8]) -> Result<Self, RequestError> {
        let bytes_in = piece.len() as u64;
        match &mut self {
            Self::Member(member) => member.get_mut().bytes_in += bytes_in,
            Self::Between(output) | Self::Padding(output) => output.bytes_in += bytes_in,
        }
        while let Some(first) = piece.first() {
            self = match self {
                Self::Member(mut member) => match member.write(piece) {
                    // Nothing of the rest belongs to this member.
                    Ok(0) => Self::Between(finish_member(member)?),
                    Ok(used) => {
                        piece = piece.get(used..).unwrap_or_default();
                        Self::Member(member)
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => Self::Member(member),
                    Err(error) => return Err(member.get_mut().take_write_error(FORMAT_NAME, error)),
                },
                Self::Between(output) if *first == 0 => Self::Padding(output),
                Self::Between(output) => Self::new(output),
                Self::Padding(output) if piece.iter().all(|byte| *byte == 0) => {
                    return Ok(Self::Padding(output));
                }
                Self::Padding(_) => return Err(ArchiveError::AfterPadding.into()),
            };
        }
        Ok(self)
    }

    /// Checks that the gzip stream does not end within a member, and returns its output.
    pub(super) fn finish(self) -> Result<LimitedTarWriter, RequestError> {
        match self {
            Self::Member(member) => finish_member(member),
            Self::Between(output) | Self::Padding(output) => Ok(output),
        }
    }
}

/// Checks that a gzip member is complete, and returns its output.
fn finish_member(mut member: Box<GzDecoder<LimitedTarWriter>>) -> Result<LimitedTarWriter, RequestError> {
    match member.try_finish() {
        Ok(()) => member
            .finish()
            .map_err(|source| super::decoder_rejection_error(FORMAT_NAME, source)),
        Err(error) => Err(member.get_mut().take_write_error(FORMAT_NAME, error)),
    }
}
