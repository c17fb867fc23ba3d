//! Tests of the compiled command: its standard output, standard error and exit status.
//!
//! What a real stack shows is in `tests/e2e`. Here a local server stands in for gateway and builder where the real ones
//! cannot fail on demand: cut connections, and answers of a broken platform.

#![expect(clippy::expect_used, reason = "a test that cannot continue fails here")]

mod builds;
mod cached_steps;
mod difference;
mod facts;
mod fake_builder;
mod generated;
mod memory;
mod newcomer;
mod policy_check;
mod progress_forms;
mod project;
mod pseudo_terminal;
mod rollback;
mod survival;
mod terminal;
mod up;
mod upload;
