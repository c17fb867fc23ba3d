//! References: the names of builds at the daemon.

use std::fmt;

use sha2::{Digest, Sha256};

/// The reference of a build: its name at the daemon, which refuses to run two builds of one name at a time.
///
/// The deliveries of one call have the same reference. Only lower-case letters and digits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reference {
    text: String,
    of_signature: bool,
}

impl Reference {
    /// Derives the reference of a build from the id of its call and the signature of its request.
    ///
    /// The signature is part of it, so that a call id that was chosen badly, or by somebody else, never leads to the build
    /// of another body.
    pub fn of_call(call_id: &str, signature: &str) -> Self {
        Self {
            text: hash(&[call_id, "\0", signature]),
            of_signature: false,
        }
    }

    /// Derives the reference of a build from the signature of its request alone, so that the daemon remembers the
    /// signature.
    pub fn of_signature(signature: &str) -> Self {
        Self {
            // No call id begins with a NUL.
            text: hash(&["\0signature\0", signature]),
            of_signature: true,
        }
    }

    /// Creates a random reference that no other build has, for requests without a signature.
    pub fn unique() -> Self {
        Self {
            text: uuid::Uuid::new_v4().simple().to_string(),
            of_signature: false,
        }
    }

    /// Returns whether the reference was derived from a signature alone, so that other calls of the same request share
    /// it.
    pub(super) fn is_of_signature(&self) -> bool {
        self.of_signature
    }

    /// Returns the name of the build's attempt number `attempt`, from 1 on. The first has the reference itself.
    pub(super) fn attempt_name(&self, attempt: u32) -> String {
        match attempt {
            1 => self.text.clone(),
            _ => format!("{}-{attempt}", self.text),
        }
    }
}

fn hash(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    hex::encode(&hash.finalize()[..16])
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_of_one_call_have_the_same_reference() {
        let reference = Reference::of_call("id", "sha256=12");
        assert_eq!(reference, Reference::of_call("id", "sha256=12"));
        // The references of earlier releases: a call may be delivered again after an update.
        assert_eq!(reference.to_string(), "13fc06ff068afcb6d809f99d45dd1d2d");
        assert_ne!(reference, Reference::of_call("id", "sha256=13"), "another body");
        assert_ne!(reference, Reference::of_call("di", "sha256=12"), "another call");
        assert_ne!(
            Reference::unique(),
            Reference::unique(),
            "nothing says that the body is the same"
        );
    }

    #[test]
    fn the_reference_of_a_signature_is_no_calls() {
        let reference = Reference::of_signature("sha256=12");
        assert_eq!(reference, Reference::of_signature("sha256=12"));
        for call_id in ["", "id", "signature"] {
            assert_ne!(
                reference.to_string(),
                Reference::of_call(call_id, "sha256=12").to_string()
            );
        }
    }

    #[test]
    fn every_attempt_has_its_own_name() {
        let reference = Reference::of_signature("sha256=12");
        assert_eq!(reference.attempt_name(1), reference.to_string());
        assert_eq!(reference.attempt_name(2), format!("{reference}-2"));
    }
}
