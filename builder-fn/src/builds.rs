//! Builds that somebody asks about: their state, their log, and their cancellation.
//!
//! A [`BuildRecord`] is what is known of a build. This process keeps the records of its own builds ([`BuildRecords`]);
//! those of other builders, and of builders that have been restarted, are read from BuildKit's history. The log of a build
//! is always read from BuildKit.

mod authentication;
mod cancel;
mod filter;
mod log;
mod lookup;
mod record;
mod records;
mod routes;

pub(crate) use record::{BuildPhase, BuildRecord};
pub use records::BuildRecords;
pub(crate) use records::{AcceptedBuild, RecordKey};
pub(crate) use routes::{BuildsRoute, outcome_fields};
