//! A client for BuildKit's gRPC API: one connection for each build, which carries Session, Solve and Status.
//!
//! A [`Daemon`] is the address of a BuildKit daemon, a [`DaemonPool`] has one or several, and a [`Connection`] is one
//! connection to a daemon. [`SessionServices`]
//! answer the daemon's questions while it builds, and a [`BuildJob`] runs all three calls as one group that begins and
//! ends together.

mod address;
mod attributes;
mod cancellation;
mod connection;
mod dial;
mod failure;
mod git_context;
mod history;
mod job;
mod manifest_lookup;
mod outcome;
mod platform;
mod pool;
mod reference;
mod session;
mod shared_key;
mod solve;
mod status;
mod tls;
mod version;

pub use address::{DaemonAddress, DaemonAddressError};
pub use attributes::SolveAttributes;
pub use cancellation::Cancellation;
pub use connection::{ConnectError, Connection, Daemon};
pub use dial::{ByteStream, DialFuture, Dialer};
pub use failure::{BuildFailure, FaultyParty};
pub use git_context::{CommitHashOnlyOrWithCheckout, GitContextSource};
pub(crate) use history::HistoryChange;
pub use history::{BuildState, HistoryListing, KnownBuild, ListedBuild, SealedSecrets, StepCounts};
pub use job::{BuildJob, EarlierBuildReferenceAndCall, JobError, TimeoutsForLastEvents, find_built_image};
pub use manifest_lookup::{INDEX_MEDIA_TYPE, ImageLayerSize, ManifestLookup};
pub use outcome::BuiltImageDigestCommitAndTimes;
pub use platform::Platform;
pub(crate) use pool::{
    BuildPart, BuildToPlace, DaemonAtIp, DaemonGroup, EligibleDaemons, HostResolverForOneAddressFamily,
    NoDaemonForPlatform, PlacedBuildMaybeCancelled,
};
pub use pool::{
    ChosenAndPreferredDaemon, DaemonHashAndBuildCount, DaemonPool, DaemonResolver,
    KnownAndAnsweringDaemonCounts, PlacementHash, PoolMetrics, ResolveFuture, busy_threshold, choose_daemon,
};
pub use reference::BuildReference;
#[cfg(test)]
pub(crate) use session::NamedSecretsWithValueX;
pub use session::{
    CheckPolicyRequest, CheckPolicyResponse, CredentialStore, DecisionResponse, Denial, DenyMessage,
    FileSync, RegistryCredentials, RegistryError, SecretStore, SessionServices, SourceCheck, SourceDecision,
    TokenRequest,
};
pub use shared_key::{KeyLease, SharedKeyPool};
pub use solve::{CacheExport, SOURCE_DATE_EPOCH, SolveOptions, StepLimits};
pub use status::{AttemptFacts, BuildEvent, OrderedLogWithoutProgress, StepOrExportPartFacts};
pub use tls::TlsError;
pub(crate) use tls::{TlsDialer, TlsSecrets};
pub use version::{BuildkitVersion, LOWEST_SHARED_BUILDKIT_RELEASE};

/// The largest message that BuildKit's own client and daemon accept, in bytes; tonic's default is 4 MiB.
const MAX_GRPC_MESSAGE_BYTES: usize = 16 << 20;

/// The HTTP/2 flow-control window of one stream: the bytes that the daemon may send before the builder reads them.
///
/// Nearly all that the daemon sends are small frames: requests for the files of a context, all at once. h2 closes a
/// connection whose unread small frames exceed a budget: half of the connection's window, at 256 bytes a frame. A
/// window of 64 KiB for each stream holds 7,000 of the smallest requests, so the daemon has to wait before the budget
/// is spent, and its connection is not closed.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 64 << 10;

/// The HTTP/2 flow-control window of one connection to the daemon, in bytes. It sets the budget: see
/// [`HTTP2_STREAM_WINDOW_BYTES`].
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
