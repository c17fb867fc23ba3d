//! Compares the documents with the code: settings, metrics, examples, links and paths.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on ends here"
)]

mod chart_values;
mod clients;
mod components;
mod installations;
mod markdown;
mod metrics;
mod pages;
mod repository;
mod settings;
