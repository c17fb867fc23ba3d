//! Texts of any length one behind the other, each known by its place.

/// Bytes that are kept together, as in [`Rows`](super::rows::Rows). A longer text is alone.
const PIECE: usize = 1 << PLACE_BITS;

/// Of a place, the bits that say where in a piece; those above say which.
const PLACE_BITS: u32 = 16;

/// Texts in pieces. None is ever removed.
#[derive(Debug, Default)]
pub(super) struct Texts {
    pieces: Vec<Vec<u8>>,
    bytes: usize,
}

impl Texts {
    /// How long they may be together, in bytes. Two pieces that follow each other are longer together than one can be, so that
    /// with twice as much every place would still be a number of 32 bits.
    pub(super) const MAX: usize = 1 << 30;

    /// Bytes of all texts.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a text that is made of `parts`, and says its place.
    pub(super) fn add(&mut self, parts: &[&[u8]]) -> u32 {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.bytes += length;
        let is_first = self.pieces.is_empty();
        let piece = match self.pieces.last_mut() {
            Some(last) if last.len() + length <= PIECE => last,
            // Most contexts are small.
            _ => {
                let room = if is_first { length } else { length.max(PIECE) };
                self.pieces.push(Vec::with_capacity(room));
                let last = self.pieces.len() - 1;
                &mut self.pieces[last]
            }
        };
        let within = piece.len();
        parts.iter().for_each(|part| piece.extend_from_slice(part));
        let place = ((self.pieces.len() - 1) << PLACE_BITS) | within;
        u32::try_from(place).unwrap_or(u32::MAX)
    }

    /// The text at `place`, and others behind it.
    pub(super) fn from(&self, place: u32) -> &[u8] {
        let place = place as usize;
        let piece = self.pieces.get(place >> PLACE_BITS);
        piece
            .and_then(|piece| piece.get(place & (PIECE - 1)..))
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_where_they_were_added_whatever_their_length() {
        let mut texts = Texts::default();
        let lengths = [
            1,
            0,
            PIECE - 2,
            3,
            PIECE,
            PIECE + 1,
            5,
            3 * PIECE,
            PIECE / 2,
            PIECE / 2 + 1,
        ];
        let given = lengths
            .iter()
            .zip(b'a'..)
            .map(|(length, letter)| vec![letter; *length]);
        let given: Vec<_> = given.collect();
        let places: Vec<_> = given
            .iter()
            .map(|text| texts.add(&[&text[..text.len() / 2], &text[text.len() / 2..]]))
            .collect();
        for (text, place) in given.iter().zip(places) {
            assert!(texts.from(place).starts_with(text), "{place}");
        }
        assert_eq!(texts.bytes(), lengths.iter().sum::<usize>());
        assert!(texts.from(u32::MAX).is_empty());
    }
}
