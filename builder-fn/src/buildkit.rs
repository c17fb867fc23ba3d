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

pub use address::{Address, AddressError};
pub use connection::{ConnectError, Connection, Daemon, Dial, Dialing, Io};
pub use failure::{Failure, Fault};
pub use job::{Job, JobError, Limits, Solved};
pub use solve::Solve;
pub use status::{Event, Events};

/// The largest message that BuildKit's own client and daemon accept; tonic's default of 4 MiB is less.
const MAX_MESSAGE: usize = 16 << 20;
