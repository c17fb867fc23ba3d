//! Conversion of status responses into events, without repeated ones.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex, VertexStatus};

use super::seen_warnings::SeenWarnings;
use super::{BuildEvent, without_rpc_prefix};

/// The limit on the steps, and on the parts of steps, that are remembered for one build. Events of further ones may
/// repeat.
const REMEMBERED_STEPS_MAX: usize = 10_000;

/// The limit on the failed steps that are remembered for one build. One failure cancels the other steps, so there are
/// never many.
const REMEMBERED_FAILURES_MAX: usize = 32;

/// The shortest time between two progress events of one part of a step.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// A reader that converts the status responses of one build into events, and remembers its steps.
#[derive(Debug, Default)]
pub(in crate::buildkit) struct EventReader {
    steps: HashMap<String, StepState>,
    progress: HashMap<String, ProgressState>,
    failed: Vec<FailedStep>,
    warnings: SeenWarnings,
}

/// The last known state of a step.
#[derive(Clone, Copy, Debug)]
struct StepState {
    started: Option<SystemTime>,
    completed: Option<SystemTime>,
    /// Whether the step has ever ended.
    has_ended: bool,
}

/// The last reported progress of a part of a step.
#[derive(Clone, Copy, Debug)]
struct ProgressState {
    at: SystemTime,
    current: i64,
    done: bool,
    /// Whether the part of the step has ever been complete.
    was_done: bool,
}

/// A failed step's name and error.
#[derive(Debug)]
struct FailedStep {
    name: String,
    error: String,
}

impl EventReader {
    /// Converts a status response into its new events: steps, then progress, then output, then warnings.
    pub(in crate::buildkit) fn read_new_events(&mut self, response: StatusResponse) -> Vec<BuildEvent> {
        let mut events = Vec::new();
        events.extend(
            response
                .vertexes
                .into_iter()
                .filter_map(|vertex| self.step_event_if_new(vertex)),
        );
        events.extend(
            response
                .statuses
                .into_iter()
                .filter_map(|status| self.progress_event_if_new(status)),
        );
        events.extend(response.logs.into_iter().map(|log| BuildEvent::Output {
            step: log.vertex,
            stream: log.stream,
            at: time_or_epoch(log.timestamp.as_ref()),
            text: log.msg,
        }));
        let warnings = response.warnings.into_iter();
        events.extend(warnings.filter_map(|warning| self.warnings.take_new(warning)));
        events
    }

    /// Returns the name of the failed step whose error is part of `message`.
    ///
    /// Steps that were cancelled because of the failure have other errors.
    pub(in crate::buildkit) fn find_failed_step(&self, message: &str) -> Option<&str> {
        let step = self
            .failed
            .iter()
            .find(|step| message.contains(step.error.as_str()))?;
        Some(&step.name)
    }

    /// Forgets all failed steps, before the same build is attempted again.
    pub(in crate::buildkit) fn forget_failures(&mut self) {
        self.failed.clear();
    }

    /// Records the state of a step, and returns the event for its start or its end, unless it was returned before.
    fn step_event_if_new(&mut self, vertex: Vertex) -> Option<BuildEvent> {
        self.remember_failure(&vertex);
        let started = vertex.started.as_ref().map(to_system_time_clamped);
        let completed = vertex.completed.as_ref().map(to_system_time_clamped);
        if started.is_none() && completed.is_none() {
            return None;
        }
        let before = self.steps.get(&vertex.digest).copied();
        if before.is_some_and(|before| (before.started, before.completed) == (started, completed)) {
            return None;
        }
        let is_rerun = before.is_some_and(|before| before.has_ended);
        let state = StepState {
            started,
            completed,
            has_ended: is_rerun || completed.is_some(),
        };
        store_within_limit(&mut self.steps, &vertex.digest, state);
        let Vertex {
            digest,
            name,
            cached,
            error,
            ..
        } = vertex;
        match (started, completed) {
            (started, Some(ended)) => Some(BuildEvent::StepEnded {
                digest,
                name,
                started,
                ended,
                cached,
                error: without_rpc_prefix(&error).to_owned(),
                is_rerun,
            }),
            (Some(at), None) => Some(BuildEvent::StepStarted {
                digest,
                name,
                at,
                is_rerun,
            }),
            (None, None) => None,
        }
    }

    /// Remembers a step that failed, up to the limit.
    fn remember_failure(&mut self, vertex: &Vertex) {
        if !vertex.error.is_empty() && self.failed.len() < REMEMBERED_FAILURES_MAX {
            self.failed.push(FailedStep {
                name: vertex.name.clone(),
                error: vertex.error.clone(),
            });
        }
    }

    /// Records the progress of a part of a step, and returns an event if the part began, completed, began again, or
    /// progressed after [`PROGRESS_INTERVAL`].
    fn progress_event_if_new(&mut self, status: VertexStatus) -> Option<BuildEvent> {
        let at = time_or_epoch(status.timestamp.as_ref());
        let (current, done) = (status.current, status.completed.is_some());
        let before = self.progress.get(&status.id).copied();
        if let Some(before) = before {
            let is_soon = at
                .duration_since(before.at)
                .is_ok_and(|since| since < PROGRESS_INTERVAL);
            let is_repeated = match (before.done, done) {
                (false, false) => is_soon || before.current == current,
                (true, true) => true,
                _ => false,
            };
            if is_repeated {
                return None;
            }
        }
        let is_rerun = before.is_some_and(|before| before.was_done);
        let state = ProgressState {
            at,
            current,
            done,
            was_done: is_rerun || done,
        };
        store_within_limit(&mut self.progress, &status.id, state);
        Some(BuildEvent::Progress {
            id: status.id,
            current,
            at,
            done,
            is_rerun,
        })
    }
}

/// Stores `state` under `key`, unless the key is new and `states` is full.
fn store_within_limit<T>(states: &mut HashMap<String, T>, key: &str, state: T) {
    if let Some(known) = states.get_mut(key) {
        *known = state;
    } else if states.len() < REMEMBERED_STEPS_MAX {
        states.insert(key.to_owned(), state);
    }
}

/// Converts a protobuf timestamp to a `SystemTime`; a missing one becomes the epoch.
pub(super) fn time_or_epoch(timestamp: Option<&Timestamp>) -> SystemTime {
    timestamp.map_or(SystemTime::UNIX_EPOCH, to_system_time_clamped)
}

/// Converts a protobuf timestamp to a `SystemTime`; a time before 1970 becomes the epoch.
pub(super) fn to_system_time_clamped(timestamp: &Timestamp) -> SystemTime {
    let seconds = u64::try_from(timestamp.seconds).unwrap_or_default();
    let nanos = u32::try_from(timestamp.nanos).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos.min(999_999_999))
}

#[cfg(test)]
mod tests {
    use bollard_buildkit_proto::moby::buildkit::v1::{VertexLog, VertexWarning};

    use super::*;

    const NO_EVENTS: [BuildEvent; 0] = [];

    fn timestamp_at_ms(milliseconds: i64) -> Timestamp {
        Timestamp {
            seconds: milliseconds / 1000,
            nanos: i32::try_from(milliseconds % 1000).expect("small") * 1_000_000,
        }
    }

    fn time_at_ms(milliseconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds)
    }

    /// Returns a response with one step that began and ended at these times in milliseconds, as far as they are given.
    fn step_response_at_ms(started: Option<i64>, completed: Option<i64>) -> StatusResponse {
        let vertex = Vertex {
            digest: "sha256:1".into(),
            name: "[1/1] RUN".into(),
            started: started.map(timestamp_at_ms),
            completed: completed.map(timestamp_at_ms),
            ..Vertex::default()
        };
        StatusResponse {
            vertexes: vec![vertex],
            ..StatusResponse::default()
        }
    }

    fn started_event(milliseconds: u64, is_rerun: bool) -> BuildEvent {
        BuildEvent::StepStarted {
            digest: "sha256:1".into(),
            name: "[1/1] RUN".into(),
            at: time_at_ms(milliseconds),
            is_rerun,
        }
    }

    fn ended_event(start_ms: u64, end_ms: u64, is_rerun: bool) -> BuildEvent {
        BuildEvent::StepEnded {
            digest: "sha256:1".into(),
            name: "[1/1] RUN".into(),
            started: Some(time_at_ms(start_ms)),
            ended: time_at_ms(end_ms),
            cached: false,
            error: String::new(),
            is_rerun,
        }
    }

    fn progress_response(milliseconds: i64, current: i64, done: bool) -> StatusResponse {
        let status = VertexStatus {
            id: "exporting layers".into(),
            current,
            timestamp: Some(timestamp_at_ms(milliseconds)),
            completed: done.then(|| timestamp_at_ms(milliseconds)),
            ..VertexStatus::default()
        };
        StatusResponse {
            statuses: vec![status],
            ..StatusResponse::default()
        }
    }

    #[test]
    fn the_events_of_one_status_response_are_steps_then_progress_then_output_then_warnings() {
        let response = StatusResponse {
            logs: vec![VertexLog {
                vertex: "sha256:1".into(),
                stream: 2,
                msg: b"hi\n".into(),
                timestamp: Some(timestamp_at_ms(3)),
            }],
            warnings: vec![VertexWarning {
                short: b"lower case".into(),
                ..VertexWarning::default()
            }],
            statuses: progress_response(2, 7, false).statuses,
            ..step_response_at_ms(Some(1), None)
        };

        assert_eq!(
            EventReader::default().read_new_events(response),
            [
                started_event(1, false),
                BuildEvent::Progress {
                    id: "exporting layers".into(),
                    current: 7,
                    at: time_at_ms(2),
                    done: false,
                    is_rerun: false,
                },
                BuildEvent::Output {
                    step: "sha256:1".into(),
                    stream: 2,
                    at: time_at_ms(3),
                    text: b"hi\n".into()
                },
                BuildEvent::Warning {
                    text: "lower case".into()
                },
            ]
        );
    }

    #[test]
    fn a_step_that_is_sent_again_unchanged_is_reported_once() {
        let mut reader = EventReader::default();

        assert_eq!(
            reader.read_new_events(step_response_at_ms(None, None)),
            NO_EVENTS,
            "it merely waits"
        );
        assert_eq!(
            reader.read_new_events(step_response_at_ms(Some(0), None)),
            [started_event(0, false)]
        );
        assert_eq!(
            reader.read_new_events(step_response_at_ms(Some(0), None)),
            NO_EVENTS
        );
        assert_eq!(
            reader.read_new_events(step_response_at_ms(Some(0), Some(10))),
            [ended_event(0, 10, false)]
        );
        assert_eq!(
            reader.read_new_events(step_response_at_ms(Some(0), Some(10))),
            NO_EVENTS
        );
    }

    #[test]
    fn a_step_that_runs_again_is_reported_as_a_rerun() {
        let mut reader = EventReader::default();
        reader.read_new_events(step_response_at_ms(Some(0), Some(10)));

        assert_eq!(
            reader.read_new_events(step_response_at_ms(Some(20), None)),
            [started_event(20, true)]
        );
        assert_eq!(
            reader.read_new_events(step_response_at_ms(Some(20), Some(30))),
            [ended_event(20, 30, true)]
        );
    }

    #[test]
    fn progress_of_a_step_is_reported_at_its_beginning_each_second_and_at_its_end() {
        let mut reader = EventReader::default();
        let responses = (0..=30).map(|tenth| progress_response(tenth * 100, tenth, tenth == 30));
        let events = responses.flat_map(|response| reader.read_new_events(response));
        let reported: Vec<_> = events
            .map(|event| match event {
                BuildEvent::Progress { current, done, .. } => (current, done),
                other => panic!("not progress: {other:?}"),
            })
            .collect();

        assert_eq!(reported, [(0, false), (10, false), (20, false), (30, true)]);
        assert_eq!(
            reader.read_new_events(progress_response(3000, 30, true)),
            NO_EVENTS,
            "the end is reported once"
        );
        assert!(
            matches!(
                reader.read_new_events(progress_response(3000, 0, false))[..],
                [BuildEvent::Progress { is_rerun: true, .. }]
            ),
            "it begins again"
        );
        assert_eq!(
            reader.read_new_events(progress_response(9000, 0, false)),
            NO_EVENTS,
            "it has not moved"
        );
        assert_eq!(reader.read_new_events(progress_response(9001, 0, true)).len(), 1);
    }

    #[test]
    fn steps_beyond_the_limit_of_remembered_ones_are_reported_each_time_they_are_sent() {
        let mut reader = EventReader::default();
        let numbered = |number: usize| {
            let mut response = step_response_at_ms(Some(0), Some(1));
            response.vertexes[0].digest = number.to_string();
            response
        };
        for number in 0..=REMEMBERED_STEPS_MAX {
            assert_eq!(reader.read_new_events(numbered(number)).len(), 1);
        }

        assert_eq!(reader.read_new_events(numbered(0)).len(), 0);
        assert_eq!(
            reader.read_new_events(numbered(REMEMBERED_STEPS_MAX)).len(),
            1,
            "not remembered"
        );
        assert_eq!(reader.steps.len(), REMEMBERED_STEPS_MAX);
    }

    #[test]
    fn the_error_of_a_step_has_no_grpc_prefix_and_identifies_the_step_in_the_solves_message() {
        let mut reader = EventReader::default();
        let mut response = step_response_at_ms(Some(0), Some(1));
        response.vertexes[0].error = "rpc error: code = Unknown desc = no such file".into();

        let events = reader.read_new_events(response);

        assert!(matches!(&events[..], [BuildEvent::StepEnded { error, .. }] if error == "no such file"));
        let message = "failed to solve: rpc error: code = Unknown desc = no such file";
        assert_eq!(reader.find_failed_step(message), Some("[1/1] RUN"));
        assert_eq!(reader.find_failed_step("another failure"), None);
        reader.forget_failures();
        assert_eq!(reader.find_failed_step(message), None);
    }

    #[test]
    fn step_times_before_1970_or_out_of_range_are_clamped() {
        let negative = Timestamp {
            seconds: -1,
            nanos: -1,
        };
        assert_eq!(to_system_time_clamped(&negative), SystemTime::UNIX_EPOCH);
        let too_many_nanos = Timestamp {
            seconds: 0,
            nanos: i32::MAX,
        };
        assert!(to_system_time_clamped(&too_many_nanos) < SystemTime::UNIX_EPOCH + Duration::from_secs(1));
    }
}
