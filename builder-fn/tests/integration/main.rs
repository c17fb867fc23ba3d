//! builder-fn against a BuildKit daemon that lives in the test: what no real one does on demand, it does.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may"
)]

mod daemon;
mod files;
mod job;
mod redelivery;
