//! A client for BuildKit's gRPC API: one connection for each build, which carries Session, Solve and Status.
//!
//! A [`Daemon`] is the address of a BuildKit daemon, and a [`Connection`] is one connection to it. [`Services`] answer
//! the daemon's questions while it builds, and a [`Job`] runs all three calls as one group that begins and ends
//! together.

mod address;
mod attributes;
mod connection;
mod dial;
mod failure;
mod history;
mod job;
mod manifest_store;
mod outcome;
mod reference;
mod session;
mod shared_key;
mod solve;
mod status;
mod tls;

pub use address::{Address, AddressError};
pub use attributes::Attributes;
pub use connection::{ConnectError, Connection, Daemon};
pub use dial::{Dial, DialFuture, Io};
pub use failure::{Failure, Fault};
pub use history::{BuildState, KnownBuild};
pub use job::{EventTimeouts, Job, JobError};
pub use manifest_store::ManifestStore;
pub use outcome::BuiltImage;
pub use reference::Reference;
pub use session::{CredentialStore, FileSync, RegistryCredentials, SecretStore, Services};
pub use shared_key::{KeyLease, SharedKeys};
pub use solve::{CacheExport, SOURCE_DATE_EPOCH, SolveOptions};
pub use status::Event;
pub use tls::TlsError;
pub(crate) use tls::{TlsDialer, TlsSecrets};

/// The largest message that BuildKit's own client and daemon accept, in bytes; tonic's default is 4 MiB.
const MAX_MESSAGE: usize = 16 << 20;

/// The HTTP/2 flow-control window of one stream: the bytes that the daemon may send before the builder reads them.
///
/// Nearly all that the daemon sends are small frames: requests for the files of a context, all at once. h2 closes a
/// connection whose unread small frames exceed a budget: half of the connection's window, at 256 bytes a frame. A window
/// of 64 KiB for each stream holds 7,000 of the smallest requests, so the daemon has to wait before the budget is spent,
/// and its connection is not closed.
const STREAM_WINDOW: u32 = 64 << 10;

/// The HTTP/2 flow-control window of one connection to the daemon, in bytes. It sets the budget: see [`STREAM_WINDOW`].
const CONNECTION_WINDOW: u32 = 16 << 20;
