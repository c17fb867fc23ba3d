//! Fuzzes the receiving of a request's body, compressed or not.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(
    dead_code,
    unused_imports,
    reason = "each target uses one of the harness's functions"
)]
#[path = "../../builder-fn/tests/integration/harness/mod.rs"]
mod harness;

thread_local! {
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
}

fuzz_target!(|bytes: &[u8]| RUNTIME.with(|runtime| runtime.block_on(harness::check_receiving_of_request(bytes))));
