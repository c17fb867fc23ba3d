//! BuildKit's gRPC client: one connection a build, which carries Session, Solve and Status.
//!
//! A [`Daemon`] is where to connect, a [`Connection`] is one connection to it, a [`Session`](session::Session) is
//! what the daemon may ask of us while it builds, and a [`Job`] is all three calls as one group that begins and ends
//! together.

mod address;
mod connection;
mod failure;
mod history;
mod job;
pub mod session;
mod solve;
mod status;
mod tls;

pub use address::{Address, AddressError};
pub use connection::{ConnectError, Connection, Daemon, Dial, Dialing, Io};
pub use failure::{Failure, Fault};
pub use job::{Job, JobError, Limits, Solved};
pub use solve::{CacheExport, SOURCE_DATE_EPOCH, Solve};
pub use status::{Event, Events};
pub use tls::{TlsAddress, TlsFault, TlsSecrets};

/// The largest message that BuildKit's own client and daemon accept; tonic's default of 4 MiB is less.
const MAX_MESSAGE: usize = 16 << 20;

/// Bytes that the daemon may send ahead of what is read, on one stream and on all of a connection.
///
/// Nearly all that it sends are small frames: requests for files, all of a context at once. h2 closes a connection
/// with more unread small frames than its budget allows, which is half of the connection's window at 256 bytes a
/// frame. A stream's window of 64 KiB has room for 7,000 of the smallest requests, so that the budget is never spent
/// before the daemon has to wait: it is asked to wait, and not sent away.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 16 << 20;
