//! Fuzzes the hint for a failure: texts of BuildKit and of programs, a Dockerfile and an ignore file.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(
    dead_code,
    unused_imports,
    reason = "each target uses one of the harness's functions"
)]
#[path = "../../builder-fn/tests/integration/harness/mod.rs"]
mod harness;

fuzz_target!(|bytes: &[u8]| harness::check_hint(bytes));
