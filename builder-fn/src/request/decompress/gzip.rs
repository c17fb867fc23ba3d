//! A gzip stream: one or more members, and perhaps zeros after the last one.

use std::io::{self, Write};

use flate2::write::GzDecoder;

use super::TarOutput;
use crate::context::ArchiveError;
use crate::request::RequestError;

const FORMAT: &str = "gzip";

/// Decompresses a gzip stream.
///
/// Zeros after the last member are ignored, as by gzip: programs that write whole blocks fill the last one with them. Data
/// after such zeros is rejected, because some programs read it and others do not.
pub(in crate::request) enum GzipStream {
    /// In a member.
    Member(Box<GzDecoder<TarOutput>>),
    /// At the end of a member.
    Between(TarOutput),
    /// In the zeros after the last member.
    Padding(TarOutput),
}

impl GzipStream {
    /// Returns a stream at its start.
    pub(super) fn new(output: TarOutput) -> Self {
        Self::Member(Box::new(GzDecoder::new(output)))
    }

    /// Decompresses the next piece.
    pub(super) fn push(mut self, mut piece: &[u8]) -> Result<Self, RequestError> {
        let bytes_in = piece.len() as u64;
        match &mut self {
            Self::Member(member) => member.get_mut().bytes_in += bytes_in,
            Self::Between(output) | Self::Padding(output) => output.bytes_in += bytes_in,
        }
        while let Some(first) = piece.first() {
            self = match self {
                Self::Member(mut member) => match member.write(piece) {
                    // Nothing of the rest belongs to this member.
                    Ok(0) => Self::Between(end(member)?),
                    Ok(used) => {
                        piece = piece.get(used..).unwrap_or_default();
                        Self::Member(member)
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => Self::Member(member),
                    Err(error) => return Err(member.get_mut().take_error(FORMAT, error)),
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

    /// Ends the stream, and returns its output.
    pub(super) fn finish(self) -> Result<TarOutput, RequestError> {
        match self {
            Self::Member(member) => end(member),
            Self::Between(output) | Self::Padding(output) => Ok(output),
        }
    }
}

/// Checks that a member is complete, and returns its output.
fn end(mut member: Box<GzDecoder<TarOutput>>) -> Result<TarOutput, RequestError> {
    match member.try_finish() {
        Ok(()) => member.finish().map_err(|source| super::broken(FORMAT, source)),
        Err(error) => Err(member.get_mut().take_error(FORMAT, error)),
    }
}
