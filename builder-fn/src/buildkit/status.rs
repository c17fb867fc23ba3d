//! The status of a build: events of its steps, from BuildKit's Status stream.
//!
//! [`open_build_status_stream`] opens BuildKit's `Control.Status`, and an [`EventReader`] turns its responses into
//! [`BuildEvent`]s. BuildKit repeats itself: it sends a step again whenever anything about it changes, reports steps
//! that merely wait, and sends progress many times a second. The reader is the one place that remembers earlier
//! responses, so the consumers of events keep no memory of steps.

mod facts;
mod ordered;
mod reader;
mod seen_warnings;

use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::moby::buildkit::v1::{StatusRequest, StatusResponse};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use tonic::Status;

use super::Connection;

pub use facts::{AttemptFacts, StepOrExportPartFacts};
pub use ordered::OrderedLogWithoutProgress;
pub(super) use reader::EventReader;

/// The pause before the next attempt to subscribe to a build that the daemon has not begun.
const PAUSE_FOR_BUILD_TO_BEGIN: Duration = Duration::from_millis(200);

/// An event of a running or finished build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildEvent {
    /// A build step (a vertex of the build's graph) began.
    StepStarted {
        /// The digest that identifies the step in its build.
        digest: String,
        /// The name of the step, such as `[2/3] RUN make`.
        name: String,
        /// The time at which the step began.
        at: SystemTime,
        /// Whether the step had already ended once in the same build and runs again.
        is_rerun: bool,
    },
    /// A build step ended. For a step with a cached result, this is often the only event.
    StepEnded {
        /// The digest that identifies the step in its build.
        digest: String,
        /// The name of the step, such as `[2/3] RUN make`.
        name: String,
        /// The time at which the step began, if BuildKit sent one.
        started: Option<SystemTime>,
        /// The time at which the step ended.
        ended: SystemTime,
        /// Whether the result of the step came from the cache.
        cached: bool,
        /// The error of a failed step, without the prefix of a gRPC error; empty if the step succeeded.
        error: String,
        /// Whether the step had already ended once in the same build.
        is_rerun: bool,
    },
    /// A part of a step progressed. Besides its first and its last event, each part has at most one a second.
    Progress {
        /// The name of the step's part, such as `exporting layers`.
        id: String,
        /// The amount of the part that is complete, mostly in bytes; for some parts it stays 0.
        current: i64,
        /// The time at which BuildKit measured the progress.
        at: SystemTime,
        /// Whether the part of the step is complete.
        done: bool,
        /// Whether the part of the step was complete before in the same build.
        is_rerun: bool,
    },
    /// A build step wrote output.
    Output {
        /// The digest that identifies the step in its build.
        step: String,
        /// The number of the output stream: 1 for standard output, 2 for standard error.
        stream: i64,
        /// The time at which the step wrote the output.
        at: SystemTime,
        /// The bytes of the output: a part of a line, or several lines.
        text: Vec<u8>,
    },
    /// Slipway's own warning: something about the result could not be checked.
    Unsure {
        /// The warning, in one line.
        text: String,
    },
    /// BuildKit warned about the Dockerfile.
    Warning {
        /// The text of the warning, in one line.
        text: String,
    },
}

/// The stream of one build's status responses, in the daemon's order. It ends with the build.
pub(super) type StatusResponseStream = BoxStream<'static, Result<StatusResponse, Status>>;

/// Subscribes to the status of the build `reference`, from the beginning of the build.
///
/// The daemon waits 6 s for a build that has not begun.
pub(super) fn open_build_status_stream(connection: &Connection, reference: String) -> StatusResponseStream {
    let mut control = connection.control_client();
    let opened = async move {
        let responses = control
            .status(StatusRequest { r#ref: reference })
            .await?
            .into_inner();
        Ok::<_, Status>(responses)
    };
    stream::once(opened).try_flatten().fuse().boxed()
}

/// Subscribes, after a pause of 200 ms, to the status of a build that the daemon had not begun when it was last asked,
/// from the beginning of the build.
pub(super) fn open_build_status_stream_after_pause(
    connection: &Connection,
    reference: String,
) -> StatusResponseStream {
    let responses = open_build_status_stream(connection, reference);
    let paused = async move {
        tokio::time::sleep(PAUSE_FOR_BUILD_TO_BEGIN).await;
        Ok::<_, Status>(responses)
    };
    stream::once(paused).try_flatten().fuse().boxed()
}

/// Strips from `text` the prefixes that Go's gRPC puts before the text of an error: `rpc error: code = Unknown desc =
/// `.
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
    fn grpc_error_prefixes_are_removed_from_the_beginning_of_a_text_only() {
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
