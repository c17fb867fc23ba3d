//! The call id of a request: the caller's, or a new one.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderMap, HeaderName, HeaderValue};

pub(crate) const CALL_ID: HeaderName = HeaderName::from_static("x-call-id");

/// A call id of the caller's is taken up to this length; every line of the log carries it.
const MAX_LENGTH: usize = 128;

/// Where call ids come from.
///
/// New ones are random UUIDs as the gateway makes them: keyed hashes of a number, with keys that the standard library has
/// drawn. That costs no system call for each, and cannot fail.
#[derive(Debug, Default)]
pub(crate) struct CallIds {
    keys: [RandomState; 2],
    next: AtomicU64,
}

impl CallIds {
    /// The caller's id where it has one that can be logged, else a new one. It is visible ASCII.
    pub(crate) fn of(&self, headers: &HeaderMap) -> HeaderValue {
        match headers.get(CALL_ID) {
            Some(given) if (1..=MAX_LENGTH).contains(&given.len()) && given.to_str().is_ok() => given.clone(),
            _ => self.new_id(),
        }
    }

    fn new_id(&self) -> HeaderValue {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let [high, low] = self.keys.each_ref().map(|key| key.hash_one(number));
        let id = uuid::Builder::from_random_bytes(((u128::from(high) << 64) | u128::from(low)).to_be_bytes());
        let mut buffer = uuid::Uuid::encode_buffer();
        let text: &str = id.into_uuid().hyphenated().encode_lower(&mut buffer);
        HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("none"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn with(given: &str) -> HeaderMap {
        HeaderMap::from_iter([(CALL_ID, HeaderValue::from_str(given).unwrap())])
    }

    #[test]
    fn the_callers_id_is_taken_where_it_can_be_logged() {
        let ids = CallIds::default();
        assert_eq!(ids.of(&with("build/7 of a")), "build/7 of a");
        for given in [String::new(), "ü".to_owned(), "x".repeat(MAX_LENGTH + 1)] {
            let id = ids.of(&with(&given));
            assert!(uuid::Uuid::parse_str(id.to_str().unwrap()).is_ok(), "{given}");
        }
    }

    #[test]
    fn new_ids_are_uuids_of_their_own() {
        let (one, other) = (CallIds::default(), CallIds::default());
        let made: HashSet<_> = (0..1000)
            .flat_map(|_| [one.new_id(), other.new_id()])
            .map(|id| id.to_str().unwrap().to_owned())
            .collect();
        assert_eq!(made.len(), 2000);
        for id in &made {
            assert_eq!(uuid::Uuid::parse_str(id).unwrap().get_version_num(), 4, "{id}");
        }
    }
}
