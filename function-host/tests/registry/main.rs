//! Tests of `function_host::registry`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on ends here"
)]

mod client;
mod logins;
mod server;
