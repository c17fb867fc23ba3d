//! builder-fn against a BuildKit daemon that lives in the test: what no real one does on demand, it does.
#![expect(clippy::expect_used, clippy::panic, reason = "a test may")]

mod api;
mod chain;
mod daemon;
mod files;
mod harness;
mod hostile;
mod job;
mod redelivery;
mod secrets;
mod setting;
mod streams;
mod traces;

use builder_fn::buildkit::SharedKeys;
use builder_fn::metrics::Metrics;
use function_host::prometheus::Registry;

fn shared_keys() -> SharedKeys {
    SharedKeys::new(Metrics::register(&Registry::new()).expect("metrics").sent_bytes())
}
