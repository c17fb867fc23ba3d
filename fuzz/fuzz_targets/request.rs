//! Any bytes as the body of a request, packed or not.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code, unused_imports, reason = "one target uses one of them")]
#[path = "../../builder-fn/tests/integration/harness/mod.rs"]
mod harness;

thread_local! {
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
}

fuzz_target!(|bytes: &[u8]| RUNTIME.with(|runtime| runtime.block_on(harness::request(bytes))));
