//! What a file contains, as short as it can be told from what others contain.

use std::fmt;
use std::sync::LazyLock;

/// Made anew by every process, and told to nobody.
static KEY: LazyLock<[u8; 32]> = LazyLock::new(|| {
    // 244 random bits, spread over all that a key has.
    let random = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()];
    *blake3::hash(&random.map(uuid::Uuid::into_bytes).concat()).as_bytes()
});

/// A hash of a file's content: two files with the same one have the same content.
///
/// It is 96 bits of BLAKE3 under a key that only this process has; one of another process says nothing. There is one for
/// each file of a context, and one for each that is remembered, which is why it is not longer. That is enough: without the key
/// nobody can search for two contents with the same hash, and nobody is shown a hash, so that all that is left is chance.
/// Contents are compared only where everything else that is known of two files is the same, and then two different ones
/// are taken for one once in 2⁹⁶ times.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ContentHash(pub [u8; 12]);

/// Hashes a content that comes in pieces.
#[derive(Clone)]
pub(crate) struct ContentHasher(blake3::Hasher);

impl ContentHash {
    /// The hash of `content`.
    pub fn of(content: &[u8]) -> Self {
        let mut hasher = ContentHasher::default();
        hasher.update(content);
        hasher.finish()
    }
}

impl Default for ContentHasher {
    fn default() -> Self {
        Self(blake3::Hasher::new_keyed(&KEY))
    }
}

impl ContentHasher {
    pub(crate) fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The hash of all pieces since the last one.
    pub(crate) fn finish(&mut self) -> ContentHash {
        let mut hash = ContentHash::default();
        self.0.finalize_xof().fill(&mut hash.0);
        self.0.reset();
        hash
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_that_of_the_content_however_it_comes_and_of_no_other() {
        let mut hasher = ContentHasher::default();
        for (pieces, other) in [(["", "abc"], "ab"), (["a", "bc"], "abcd"), (["ab", "c"], "")] {
            pieces.iter().for_each(|piece| hasher.update(piece.as_bytes()));
            let hash = hasher.finish();
            assert_eq!(hash, ContentHash::of(b"abc"));
            assert_ne!(hash, ContentHash::of(other.as_bytes()));
        }
    }

    #[test]
    fn nobody_else_can_compute_a_hash() {
        assert_ne!(ContentHash::of(b"abc").0, blake3::hash(b"abc").as_bytes()[..12]);
    }
}
