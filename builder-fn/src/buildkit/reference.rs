//! References: the names of builds at the daemon.

use std::fmt;

use sha2::{Digest, Sha256};

/// The reference of a build: its name at the daemon, which refuses to run two builds of one name at a time.
///
/// The deliveries of one signed call have the same reference. Only lower-case letters and digits, and `-pN` for a part
/// of a split build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildReference {
    text: String,
    of_signature: bool,
}

impl BuildReference {
    /// Derives the reference of a build from the id of its call and the signature of its request.
    ///
    /// The signature is part of it, so that a call id that was chosen badly, or by somebody else, never leads to the
    /// build of another body.
    pub fn for_call_and_signature(call_id: &str, signature: &str) -> Self {
        Self {
            text: first_16_sha256_bytes_as_hex(&[call_id, "\0", signature]),
            of_signature: false,
        }
    }

    /// Derives the reference of a build from the signature of its request alone, so that the daemon remembers the
    /// signature.
    pub fn for_signature_of_any_call(signature: &str) -> Self {
        Self {
            // No call id begins with a NUL.
            text: first_16_sha256_bytes_as_hex(&["\0signature\0", signature]),
            of_signature: true,
        }
    }

    /// Creates a random reference that no other build has, for requests without a signature.
    pub fn random() -> Self {
        Self {
            text: uuid::Uuid::new_v4().simple().to_string(),
            of_signature: false,
        }
    }

    /// Returns the reference of the part number `number`, from 1, of this build, if it is split.
    pub(crate) fn of_part(&self, number: u32) -> Self {
        Self {
            text: part_name(&self.text, number),
            of_signature: self.of_signature,
        }
    }

    /// Returns whether the reference was derived from a signature alone, so that other calls of the same request share
    /// it.
    pub(super) fn is_for_signature_alone(&self) -> bool {
        self.of_signature
    }

    /// Returns the number of the attempt of this build that has the name `name`; `None` if it is another build's.
    pub(super) fn attempt_number(&self, name: &str) -> Option<u32> {
        match name.strip_prefix(&self.text)? {
            "" => Some(1),
            rest => rest.strip_prefix('-')?.parse().ok().filter(|number| *number > 1),
        }
    }

    /// Returns the name of the build's attempt number `attempt`, from 1 on. The first has the reference itself.
    pub(super) fn attempt_name(&self, attempt: u32) -> String {
        match attempt {
            1 => self.text.clone(),
            _ => format!("{}-{attempt}", self.text),
        }
    }
}

/// Returns the name of the part number `number`, from 1, of the build `reference`.
pub(super) fn part_name(reference: &str, number: u32) -> String {
    format!("{reference}-p{number}")
}

/// Returns the first 16 bytes of the SHA-256 of the joined parts, in hex.
fn first_16_sha256_bytes_as_hex(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    hex::encode(&hash.finalize()[..16])
}

impl fmt::Display for BuildReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_of_one_call_have_the_same_build_reference() {
        let reference = BuildReference::for_call_and_signature("id", "sha256=12");
        assert_eq!(
            reference,
            BuildReference::for_call_and_signature("id", "sha256=12")
        );
        // The references of earlier releases: a call may be delivered again after an update.
        assert_eq!(reference.to_string(), "13fc06ff068afcb6d809f99d45dd1d2d");
        assert_ne!(
            reference,
            BuildReference::for_call_and_signature("id", "sha256=13"),
            "another body"
        );
        assert_ne!(
            reference,
            BuildReference::for_call_and_signature("di", "sha256=12"),
            "another call"
        );
        assert_ne!(
            BuildReference::random(),
            BuildReference::random(),
            "nothing says that the body is the same"
        );
    }

    #[test]
    fn a_build_reference_for_a_signature_alone_differs_from_that_of_any_call() {
        let reference = BuildReference::for_signature_of_any_call("sha256=12");
        assert_eq!(reference, BuildReference::for_signature_of_any_call("sha256=12"));
        for call_id in ["", "id", "signature"] {
            assert_ne!(
                reference.to_string(),
                BuildReference::for_call_and_signature(call_id, "sha256=12").to_string()
            );
        }
    }

    #[test]
    fn the_attempts_of_a_part_are_no_attempts_of_the_build_or_of_another_part() {
        let reference = BuildReference::for_signature_of_any_call("sha256=12");
        let (first, second) = (reference.of_part(1), reference.of_part(2));
        assert_eq!(first.attempt_name(1), format!("{reference}-p1"));
        assert_eq!(first.attempt_number(&format!("{reference}-p1-3")), Some(3));
        assert_eq!(second.attempt_number(&first.attempt_name(1)), None);
        assert_eq!(reference.attempt_number(&first.attempt_name(1)), None);
        assert_eq!(reference.of_part(11).attempt_number(&first.attempt_name(1)), None);
        assert_eq!(first.attempt_number(&reference.of_part(11).attempt_name(1)), None);
        assert!(first.is_for_signature_alone());
    }

    #[test]
    fn every_attempt_of_a_build_has_its_own_name() {
        let reference = BuildReference::for_signature_of_any_call("sha256=12");
        assert_eq!(reference.attempt_name(1), reference.to_string());
        assert_eq!(reference.attempt_name(2), format!("{reference}-2"));
        for number in [1, 2, 16] {
            assert_eq!(
                reference.attempt_number(&reference.attempt_name(number)),
                Some(number)
            );
        }
        for other in [
            String::new(),
            format!("{reference}-"),
            format!("{reference}-x"),
            format!("{reference}-1"),
            format!("{reference}2"),
            format!("2-{reference}"),
        ] {
            assert_eq!(reference.attempt_number(&other), None, "{other}");
        }
    }
}
