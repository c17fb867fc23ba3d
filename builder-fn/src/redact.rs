//! Masks secret values in logs, errors and traces.
//!
//! A build's log, its answer, its log lines in the operator's log and its trace all repeat text from outside: the output
//! of steps, BuildKit's errors, the deployer's reasons. Any of it may contain a secret, so all of it is masked here.
//!
//! Not masked are the names that identify a build: image, digest and function, which the config has in clear text.
//!
//! This module knows text and values only, and imports nothing from the rest of the crate.

mod mask;
mod needles;
mod trace;

pub(crate) use mask::SecretMask;
pub(crate) use trace::TraceMask;

/// The length, in bytes, of the shortest value that is masked anywhere in a text. Shorter values occur in
/// ordinary words: masking them would make half of every log unreadable.
const MIN_MASKED_BYTES: usize = 4;

/// The text that replaces a masked value.
const MASK_TEXT: &str = "***";
