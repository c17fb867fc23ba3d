//! Any bytes as a tar, in pieces of any size.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code, unused_imports, reason = "one target uses one of them")]
#[path = "../../builder-fn/tests/integration/harness/mod.rs"]
mod harness;

fuzz_target!(|bytes: &[u8]| harness::index(bytes));
