//! Short hashes of file contents, which tell different contents apart.

use std::fmt;
use std::sync::OnceLock;

/// The key of this process's content hashes, which is never shown.
static CONTENT_HASH_KEY: OnceLock<[u8; 32]> = OnceLock::new();

/// Sets the key of content hashes, so that hashes of processes with the same key can be compared. Without effect once a
/// content was hashed: its key stays. Without a call, the key is random.
pub fn set_content_hash_key_if_unset(key: [u8; 32]) {
    let _ = CONTENT_HASH_KEY.set(key);
}

fn content_hash_key() -> &'static [u8; 32] {
    CONTENT_HASH_KEY.get_or_init(|| {
        // 244 random bits, hashed to the length of a key.
        let random = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()];
        *blake3::hash(&random.map(uuid::Uuid::into_bytes).concat()).as_bytes()
    })
}

/// Returns a name for the key of content hashes, which does not reveal it. Hashes under keys with different names
/// cannot be compared.
pub(crate) fn content_hash_key_name() -> String {
    ContentHash::of(b"slipway: the name of this key").to_hex()
}

/// A hash of a file's content, for comparisons. Files with the same hash have the same content.
///
/// It is 96 bits of BLAKE3 under a key that only this process has, or that is derived from a secret of the operator's;
/// hashes under different keys cannot be compared. There is one for each file of a context and one for each file that
/// is remembered, so it is no longer than necessary. 96 bits are enough: without the key and without seeing a hash,
/// nobody can search for a collision, which leaves chance. Contents are compared only if everything else that is known
/// of two files is equal, and then two different contents have the same hash with a probability of 2⁻⁹⁶.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ContentHash(pub [u8; 12]);

/// A hasher for the content of a file that arrives in pieces.
#[derive(Clone)]
pub(crate) struct ContentHasher(blake3::Hasher);

impl ContentHash {
    /// Returns the hash of `content`.
    pub fn of(content: &[u8]) -> Self {
        let mut hasher = ContentHasher::default();
        hasher.hash_piece(content);
        hasher.finish_and_reset()
    }

    /// Returns the hash in hexadecimal digits.
    pub(crate) fn to_hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Default for ContentHasher {
    fn default() -> Self {
        Self(blake3::Hasher::new_keyed(content_hash_key()))
    }
}

impl ContentHasher {
    /// Adds the next piece of the content.
    pub(crate) fn hash_piece(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// Returns the hash of all pieces, and resets the hasher for the next file.
    pub(crate) fn finish_and_reset(&mut self) -> ContentHash {
        let mut hash = ContentHash::default();
        self.0.finalize_xof().fill(&mut hash.0);
        self.0.reset();
        hash
    }
}

impl fmt::Debug for ContentHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key.
        f.write_str("ContentHasher")
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
    fn a_content_hash_depends_on_the_content_and_not_on_its_pieces() {
        let mut hasher = ContentHasher::default();
        for (pieces, other) in [(["", "abc"], "ab"), (["a", "bc"], "abcd"), (["ab", "c"], "")] {
            pieces
                .iter()
                .for_each(|piece| hasher.hash_piece(piece.as_bytes()));
            let hash = hasher.finish_and_reset();
            assert_eq!(hash, ContentHash::of(b"abc"));
            assert_ne!(hash, ContentHash::of(other.as_bytes()));
        }
    }

    #[test]
    fn a_content_hash_differs_from_the_hash_without_the_processs_key() {
        assert_ne!(ContentHash::of(b"abc").0, blake3::hash(b"abc").as_bytes()[..12]);
    }
}
