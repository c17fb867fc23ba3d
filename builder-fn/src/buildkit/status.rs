//! The status of a build: what its steps do, while they do it.
//!
//! [`follow`] opens BuildKit's `Control.Status`, and an [`EventReader`] turns its responses into [`Event`]s. BuildKit
//! repeats itself: it sends a step again whenever anything about it changes, reports steps that merely wait, and sends
//! progress many times a second. The reader is the one place that remembers earlier responses, so the consumers of
//! events keep no memory of steps.

mod reader;

use std::time::SystemTime;

use bollard_buildkit_proto::moby::buildkit::v1::{StatusRequest, StatusResponse};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use tonic::Status;

use super::Connection;

pub(super) use reader::EventReader;

/// A change in a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A step of the build (a vertex of its graph) began.
    StepStarted {
        /// The digest of the step.
        digest: String,
        /// The name of the step, such as `[2/3] RUN make`.
        name: String,
        /// The time at which it began.
        at: SystemTime,
        /// Whether the step had ended before in the same build and runs again.
        is_rerun: bool,
    },
    /// A step ended. Of a step whose result was cached, this is often the only event.
    StepEnded {
        /// The digest of the step.
        digest: String,
        /// The name of the step, such as `[2/3] RUN make`.
        name: String,
        /// The time at which it began, if BuildKit sent one.
        started: Option<SystemTime>,
        /// The time at which it ended.
        ended: SystemTime,
        /// Whether its result came from the cache.
        cached: bool,
        /// The reason why it failed, without the prefix of a gRPC error; empty if it succeeded.
        error: String,
        /// Whether the step had ended before in the same build.
        is_rerun: bool,
    },
    /// Part of a step progressed. At most one event a second for each part, besides its first and its last.
    Progress {
        /// The name of the part, such as `exporting layers`.
        id: String,
        /// The amount that is complete, mostly in bytes; for some parts it stays 0.
        current: i64,
        /// The time of the progress.
        at: SystemTime,
        /// Whether the part is complete.
        done: bool,
        /// Whether the part was complete before in the same build.
        is_rerun: bool,
    },
    /// A step wrote output.
    Output {
        /// The digest of the step.
        step: String,
        /// 1 for standard output, 2 for standard error.
        stream: i64,
        /// The time of the write.
        at: SystemTime,
        /// The output: part of a line, or several lines.
        text: Vec<u8>,
    },
    /// A warning about the Dockerfile.
    Warning {
        /// The warning, in one line.
        text: String,
    },
}

/// The status responses of one build, in the daemon's order. Ends with the build.
pub(super) type Responses = BoxStream<'static, Result<StatusResponse, Status>>;

/// Follows the build `reference` from its beginning, even if it began before the call.
///
/// The daemon waits 6 s for a build that has not begun.
pub(super) fn follow(connection: &Connection, reference: String) -> Responses {
    let mut control = connection.control();
    let opened = async move {
        let responses = control
            .status(StatusRequest { r#ref: reference })
            .await?
            .into_inner();
        Ok::<_, Status>(responses)
    };
    stream::once(opened).try_flatten().fuse().boxed()
}

/// Returns `text` without the prefixes that Go's gRPC puts before an error's own text:
/// `rpc error: code = Unknown desc = `.
pub(super) fn without_rpc_prefix(mut text: &str) -> &str {
    while let Some((_, message)) = text
        .strip_prefix("rpc error: code = ")
        .and_then(|rest| rest.split_once(" desc = "))
    {
        text = message;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefixes_of_a_grpc_error_are_removed_from_the_beginning_only() {
        for (text, expected) in [
            ("rpc error: code = Unknown desc = no such file", "no such file"),
            (
                "rpc error: code = Unknown desc = rpc error: code = NotFound desc = no such file",
                "no such file",
            ),
            (
                "process \"echo rpc error: code = X desc = y\" failed",
                "process \"echo rpc error: code = X desc = y\" failed",
            ),
            ("rpc error: code = Unknown", "rpc error: code = Unknown"),
            ("", ""),
        ] {
            assert_eq!(without_rpc_prefix(text), expected);
        }
    }
}
