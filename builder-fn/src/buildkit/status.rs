//! What happens in a build, as it happens.

use std::pin::Pin;
use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::{StatusRequest, StatusResponse};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tonic::Status;

use super::Connection;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A step of the build (a vertex of its graph) began or ended, or was there already.
    Step {
        /// Identifies the step.
        digest: String,
        /// Such as `[2/3] RUN make`.
        name: String,
        /// When it began.
        started: Option<SystemTime>,
        /// When it ended.
        completed: Option<SystemTime>,
        /// Whether its result was there already.
        cached: bool,
        /// Why it failed; empty when it did not.
        error: String,
    },
    /// Part of a step moved on.
    Progress {
        /// Such as `exporting layers`.
        id: String,
        /// Bytes mostly, or just 0.
        current: i64,
        /// When.
        at: SystemTime,
        /// Whether that was all of it.
        done: bool,
    },
    /// A step wrote something.
    Output {
        /// Identifies the step.
        step: String,
        /// 1 for its standard output, 2 for its standard error.
        stream: i64,
        /// When.
        at: SystemTime,
        /// Any part of a line, or several.
        text: Vec<u8>,
    },
    /// Something about the Dockerfile that works, but better were otherwise.
    Warning {
        /// In one line.
        text: String,
    },
}

/// The events of one build, in the order of the daemon. Ends with the build.
pub type Events = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

/// Follows the build `reference`: from its beginning, also when it began earlier. The daemon waits 6 s for it to begin.
pub(super) fn follow(connection: &Connection, reference: String) -> Events {
    let mut control = connection.control();
    let opened = async move {
        let responses = control
            .status(StatusRequest { r#ref: reference })
            .await?
            .into_inner();
        Ok::<_, Status>(responses)
    };
    let responses = stream::once(opened).try_flatten();
    let events = responses.map_ok(|response| stream::iter(events(response)).map(Ok));
    Box::pin(events.try_flatten().fuse())
}

fn events(response: StatusResponse) -> Vec<Event> {
    let steps = response.vertexes.into_iter().map(|vertex| Event::Step {
        digest: vertex.digest,
        name: vertex.name,
        started: vertex.started.as_ref().map(time),
        completed: vertex.completed.as_ref().map(time),
        cached: vertex.cached,
        error: vertex.error,
    });
    let progress = response.statuses.into_iter().map(|status| Event::Progress {
        at: status.timestamp.as_ref().map_or(SystemTime::UNIX_EPOCH, time),
        id: status.id,
        current: status.current,
        done: status.completed.is_some(),
    });
    let output = response.logs.into_iter().map(|log| Event::Output {
        step: log.vertex,
        stream: log.stream,
        at: log.timestamp.as_ref().map_or(SystemTime::UNIX_EPOCH, time),
        text: log.msg,
    });
    let warnings = response.warnings.into_iter().map(|warning| Event::Warning {
        text: String::from_utf8_lossy(&warning.short).into_owned(),
    });
    steps.chain(progress).chain(output).chain(warnings).collect()
}

/// Times before 1970 are none that a build has.
fn time(timestamp: &Timestamp) -> SystemTime {
    let seconds = u64::try_from(timestamp.seconds).unwrap_or_default();
    let nanos = u32::try_from(timestamp.nanos).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos.min(999_999_999))
}

#[cfg(test)]
mod tests {
    use bollard_buildkit_proto::moby::buildkit::v1::{Vertex, VertexLog, VertexStatus, VertexWarning};

    use super::*;

    fn at(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp { seconds, nanos: 5 })
    }

    #[test]
    fn one_response_becomes_steps_then_progress_then_output_then_warnings() {
        let response = StatusResponse {
            vertexes: vec![Vertex {
                digest: "sha256:1".into(),
                name: "[1/1] RUN".into(),
                started: at(1),
                ..Vertex::default()
            }],
            statuses: vec![VertexStatus {
                id: "exporting layers".into(),
                current: 7,
                timestamp: at(2),
                ..VertexStatus::default()
            }],
            logs: vec![VertexLog {
                vertex: "sha256:1".into(),
                stream: 2,
                msg: b"hi\n".into(),
                timestamp: at(3),
            }],
            warnings: vec![VertexWarning {
                short: b"lower case".into(),
                ..VertexWarning::default()
            }],
        };

        let when = |seconds| SystemTime::UNIX_EPOCH + Duration::new(seconds, 5);
        assert_eq!(
            events(response),
            [
                Event::Step {
                    digest: "sha256:1".into(),
                    name: "[1/1] RUN".into(),
                    started: Some(when(1)),
                    completed: None,
                    cached: false,
                    error: String::new()
                },
                Event::Progress {
                    id: "exporting layers".into(),
                    current: 7,
                    at: when(2),
                    done: false
                },
                Event::Output {
                    step: "sha256:1".into(),
                    stream: 2,
                    at: when(3),
                    text: b"hi\n".into()
                },
                Event::Warning {
                    text: "lower case".into()
                },
            ]
        );
    }

    #[test]
    fn a_time_that_cannot_be_is_not_a_panic() {
        assert_eq!(
            time(&Timestamp {
                seconds: -1,
                nanos: -1
            }),
            SystemTime::UNIX_EPOCH
        );
        assert!(
            time(&Timestamp {
                seconds: 0,
                nanos: i32::MAX
            }) < SystemTime::UNIX_EPOCH + Duration::from_secs(1)
        );
    }
}
