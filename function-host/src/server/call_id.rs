//! Call ids, taken from the caller's header or generated.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderMap, HeaderName, HeaderValue};

/// The name of the header with the call id, in requests and responses.
pub(crate) const CALL_ID_HEADER: HeaderName = HeaderName::from_static("x-call-id");

/// The length of the longest call id that is accepted from a caller, in bytes. The call id is in every log
/// line.
const MAX_CALL_ID_BYTES: usize = 128;

/// A generator of call ids: random UUIDs, as the gateway generates them.
///
/// The random bits are keyed hashes of a counter, with the random keys of the standard library. So an id costs no
/// system call, and generating it cannot fail.
#[derive(Debug, Default)]
pub(crate) struct CallIdGenerator {
    keys: [RandomState; 2],
    next: AtomicU64,
}

impl CallIdGenerator {
    /// Returns the call id of a request: the caller's, if it is printable ASCII of 1 to 128 bytes, or else a new one.
    pub(crate) fn callers_id_or_new(&self, headers: &HeaderMap) -> HeaderValue {
        match headers.get(CALL_ID_HEADER) {
            Some(id) if is_loggable(id) => id.clone(),
            _ => self.generate(),
        }
    }

    /// Returns a new random UUID.
    fn generate(&self) -> HeaderValue {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let [high, low] = self.keys.each_ref().map(|key| key.hash_one(number));
        let id = uuid::Builder::from_random_bytes(((u128::from(high) << 64) | u128::from(low)).to_be_bytes());
        let mut buffer = uuid::Uuid::encode_buffer();
        let text: &str = id.into_uuid().hyphenated().encode_lower(&mut buffer);
        HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("none"))
    }
}

/// Returns whether a call id from a caller may be in a log: printable ASCII, which blanks are too and tabs are not, of
/// 1 to 128 bytes.
fn is_loggable(id: &HeaderValue) -> bool {
    let is_printable = |byte: &u8| *byte == b' ' || byte.is_ascii_graphic();
    (1..=MAX_CALL_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(is_printable)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn headers_with_call_id(call_id: &str) -> HeaderMap {
        HeaderMap::from_iter([(CALL_ID_HEADER, HeaderValue::from_str(call_id).unwrap())])
    }

    #[test]
    fn a_callers_id_that_cannot_be_logged_is_replaced() {
        let ids = CallIdGenerator::default();
        assert_eq!(
            ids.callers_id_or_new(&headers_with_call_id("build/7 of a")),
            "build/7 of a"
        );
        for given in [
            String::new(),
            "ü".to_owned(),
            "a\tb".to_owned(),
            "x".repeat(MAX_CALL_ID_BYTES + 1),
        ] {
            let id = ids.callers_id_or_new(&headers_with_call_id(&given));
            assert!(uuid::Uuid::parse_str(id.to_str().unwrap()).is_ok(), "{given}");
        }
    }

    #[test]
    fn generated_call_ids_are_unique_random_uuids() {
        let (one, other) = (CallIdGenerator::default(), CallIdGenerator::default());
        let generated: HashSet<_> = (0..1000)
            .flat_map(|_| [one.generate(), other.generate()])
            .map(|id| id.to_str().unwrap().to_owned())
            .collect();
        assert_eq!(generated.len(), 2000);
        for id in &generated {
            assert_eq!(uuid::Uuid::parse_str(id).unwrap().get_version_num(), 4, "{id}");
        }
    }
}
