//! Builds that somebody asks about: their state, their log, and their cancellation.
//!
//! A [`BuildRecord`] is what is known of a build. This process keeps the records of its own builds ([`BuildRecords`]);
//! those of other builders, and of builders that have been restarted, are read from BuildKit's history, and from the
//! [record store](RecordStore) if there is one. The log of a build is always read from BuildKit, once for all who read
//! it at the time.
//!
//! Callers sign their questions; people follow a [link](page_link), and get [pages](pages).

mod authentication;
mod cancel;
mod difference;
mod filter;
mod log;
mod log_copies;
mod log_copy;
mod log_excerpt;
mod log_interruption;
mod log_readers;
mod log_sink;
mod lookup;
mod newest;
mod numbered_log;
mod page;
mod page_link;
mod page_query;
mod pages;
mod record;
mod records;
mod routes;
mod store;

pub(crate) use authentication::SIGNED_AT_HEADER;
pub(crate) use page_link::LinkSigner;
pub use page_link::PageSettings;
pub(crate) use record::{BuildPhase, BuildRecord};
pub use records::BuildRecords;
pub(crate) use records::{RecordKey, RecordedDelivery};
pub(crate) use routes::{BuildsRoute, outcome_fields_kept_in_record};
pub(crate) use store::{
    ClaimSearchState, ClaimedBuild, DeploymentRecording, RecordPlace, ResumableRequestHead, StoreError,
};
pub use store::{LeaseTimes, RecordStore, RecordStoreAccess, STORED_BODY_MAX_BYTES};
