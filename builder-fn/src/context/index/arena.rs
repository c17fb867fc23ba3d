//! An arena of byte strings in chunks, each string identified by a position of 32 bits.

/// The length of a chunk in bytes. A longer text has a chunk of its own. [`ChunkedVec`](super::chunked_vec::ChunkedVec)
/// says why there are chunks.
const CHUNK_BYTES: usize = 1 << OFFSET_BITS;

/// The number of low bits of a position that are the offset in a chunk; the bits above are the chunk's number.
const OFFSET_BITS: u32 = 16;

/// An arena of byte strings, stored in chunks. None is ever removed.
#[derive(Debug, Default)]
pub(super) struct Arena {
    chunks: Vec<Vec<u8>>,
    bytes: usize,
}

impl Arena {
    /// The limit on the total length of the byte strings, in bytes. Two adjacent chunks together are longer than one
    /// can be, so that even with twice as much every position fits into 32 bits.
    pub(super) const MAX_BYTES: usize = 1 << 30;

    /// Returns the total length of the byte strings, in bytes.
    pub(super) fn total_string_bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the concatenation of `parts` to the arena, and returns its position.
    pub(super) fn add_concatenation(&mut self, parts: &[&[u8]]) -> u32 {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.bytes += length;
        let is_first = self.chunks.is_empty();
        let chunk = match self.chunks.last_mut() {
            Some(last) if last.len() + length <= CHUNK_BYTES => last,
            // Most contexts are small: the first chunk has only the length that it needs.
            _ => {
                let room = if is_first { length } else { length.max(CHUNK_BYTES) };
                self.chunks.push(Vec::with_capacity(room));
                let last = self.chunks.len() - 1;
                &mut self.chunks[last]
            }
        };
        let within = chunk.len();
        parts.iter().for_each(|part| chunk.extend_from_slice(part));
        let position = ((self.chunks.len() - 1) << OFFSET_BITS) | within;
        u32::try_from(position).unwrap_or(u32::MAX)
    }

    /// Returns the bytes of the arena from `position` to the end of the chunk. The caller knows the length of the text
    /// there.
    pub(super) fn chunk_bytes_from(&self, position: u32) -> &[u8] {
        let position = position as usize;
        let chunk = self.chunks.get(position >> OFFSET_BITS);
        chunk
            .and_then(|chunk| chunk.get(position & (CHUNK_BYTES - 1)..))
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_any_length_are_found_at_their_positions() {
        let mut texts = Arena::default();
        let lengths = [
            1,
            0,
            CHUNK_BYTES - 2,
            3,
            CHUNK_BYTES,
            CHUNK_BYTES + 1,
            5,
            3 * CHUNK_BYTES,
            CHUNK_BYTES / 2,
            CHUNK_BYTES / 2 + 1,
        ];
        let given = lengths
            .iter()
            .zip(b'a'..)
            .map(|(length, letter)| vec![letter; *length]);
        let given: Vec<_> = given.collect();
        let positions: Vec<_> = given
            .iter()
            .map(|text| texts.add_concatenation(&[&text[..text.len() / 2], &text[text.len() / 2..]]))
            .collect();
        for (text, position) in given.iter().zip(positions) {
            assert!(texts.chunk_bytes_from(position).starts_with(text), "{position}");
        }
        assert_eq!(texts.total_string_bytes(), lengths.iter().sum::<usize>());
        assert!(texts.chunk_bytes_from(u32::MAX).is_empty());
    }
}
