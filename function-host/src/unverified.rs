//! Budgets for bodies whose signature has not been verified.
//!
//! Whoever reaches a function's port can send it a body, and the signature of a body is known to be wrong only at its
//! end. All unverified bodies of a function therefore share one [`UnverifiedBudget`], of senders, memory and disk. A
//! sender is never rejected for arriving late, and waits for no others but displaced ones: once a part of the budget is
//! used up, a sender is *displaced*: the slowest one, or the one that holds the most memory. A small body that arrives
//! with its request is neither, and a large one that is sent fast stays as long as no others send as much as fast.
//!
//! ```
//! # use std::time::Duration;
//! # use function_host::Body;
//! # use function_host::unverified::{ReceiveError, UnverifiedBudget, UnverifiedLimits};
//! # async fn receive(budget: &UnverifiedBudget, body: Body) -> Result<(), ReceiveError> {
//! let mut sender = budget.admit();
//! let bytes = sender.collect(body, 1 << 20).await?;
//! // Verify the signature of `bytes`, and parse them after that.
//! drop(sender);
//! # Ok(())
//! # }
//! ```

mod budget;
mod metrics;
mod rate;
mod sender;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::duration;
use crate::env::SettingsParser;
use crate::request::BodyError;

pub use budget::UnverifiedBudget;
pub use metrics::UnverifiedMetrics;
pub use sender::UnverifiedSender;

/// The limits of an [`UnverifiedBudget`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnverifiedLimits {
    /// The largest number of senders at a time.
    pub senders: usize,
    /// The memory that all senders may hold together, in bytes.
    pub memory: u64,
    /// The disk space that all senders may hold together, in bytes.
    pub disk: u64,
    /// The lowest rate at which a sender may send, in bytes per second.
    pub rate: u64,
    /// The time for which a sender may be slower than `rate`, and the longest pause between two pieces of its body.
    pub grace: Duration,
}

impl UnverifiedLimits {
    /// Reads the settings `unverified_senders`, `unverified_memory`, `receive_rate` and `receive_grace`; `defaults` are
    /// for those that are not set, and for the disk space. Problems are added to `parser`.
    pub fn read_all_but_disk(parser: &mut SettingsParser<'_>, defaults: Self) -> Self {
        let limits = Self {
            senders: parser.number("unverified_senders", defaults.senders),
            memory: parser.number("unverified_memory", defaults.memory),
            rate: parser.number("receive_rate", defaults.rate),
            grace: parser.duration("receive_grace", defaults.grace),
            ..defaults
        };
        if limits.senders == 0 {
            parser.add_problem("unverified_senders", "should be at least 1");
        }
        if limits.grace.is_zero() {
            let problem = "should be longer than 0s, so that a body can begin to arrive";
            parser.add_problem("receive_grace", problem);
        }
        limits
    }
}

/// A kind of storage of which the senders in an [`UnverifiedBudget`] hold bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldResource {
    /// Memory, in bytes.
    Memory,
    /// Disk space, in bytes.
    Disk,
}

/// The reason why a sender was displaced: a part of the budget was used up, and this sender was the first to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DisplacedForOthers {
    /// The sender was the slowest, and another one arrived.
    #[error(
        "too many senders at a time: at most {limit} unverified bodies are received, and this one was the slowest"
    )]
    Senders {
        /// The limit on the number of senders.
        limit: usize,
    },
    /// The sender held the most memory, or would have with what it asked for, and more was needed.
    #[error("the unverified bodies need more than {limit} bytes of memory, and this one needed the most")]
    Memory {
        /// The limit on memory, in bytes.
        limit: u64,
    },
    /// The sender was the slowest of those with large bodies, and more disk space was needed.
    #[error(
        "the unverified bodies need more than {limit} bytes of disk space, and this one was the slowest of the large ones"
    )]
    Disk {
        /// The limit on disk space, in bytes.
        limit: u64,
    },
}

/// An error of receiving an unverified body.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError<E = BodyError> {
    /// The sender was displaced; a retry may succeed (status 429).
    #[error(transparent)]
    Displaced(#[from] DisplacedForOthers),
    /// The sender was slower than the lowest rate for too long (status 408).
    #[error("the body arrived at less than {rate} bytes a second for {}", duration::format_duration(*grace))]
    TooSlow {
        /// The lowest rate, in bytes per second.
        rate: u64,
        /// The time for which a sender may be slower than the lowest rate.
        grace: Duration,
    },
    /// The body could not be read.
    #[error(transparent)]
    Body(E),
}
