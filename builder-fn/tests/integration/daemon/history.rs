//! The build history of a fake daemon: running builds, records of finished ones, and the clients that listen.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::google::rpc::Status as RpcStatus;
use bollard_buildkit_proto::moby::buildkit::v1::*;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status};

type HistoryEventSender = mpsc::UnboundedSender<Result<BuildHistoryEvent, Status>>;

/// A fake of BuildKit's build history (`solver/llbsolver/history`). Clones share the history.
#[derive(Clone, Default)]
pub(crate) struct FakeHistory(Arc<Mutex<HistoryState>>);

#[derive(Default)]
struct HistoryState {
    active: HashMap<String, BuildHistoryRecord>,
    finished: Vec<BuildHistoryRecord>,
    listeners: Vec<HistoryEventSender>,
    behaviour: HistoryBehaviour,
    /// The number of records that were decoded so far to answer requests for events: all of them for each, unless it
    /// asks for running builds only.
    count_of_records_daemon_decoded: usize,
}

/// The way in which the fake history answers its clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum HistoryBehaviour {
    /// The history answers as BuildKit's does.
    #[default]
    Kept,
    /// The history rejects every request, like a daemon without a history.
    Unimplemented,
    /// The history never answers a request.
    Silent,
    /// The history answers a request for which it decodes its records after this time.
    SlowToDecode(Duration),
}

/// A running build in the fake history. Dropping it before its end records it as cancelled, as BuildKit does for a
/// client that left.
pub(crate) struct RunningBuildInHistory {
    history: FakeHistory,
    record: Option<BuildHistoryRecord>,
}

impl FakeHistory {
    fn state(&self) -> MutexGuard<'_, HistoryState> {
        self.0.lock().expect("no panic")
    }

    /// Sets the way in which the history answers its clients.
    pub(crate) fn set_behaviour(&self, behaviour: HistoryBehaviour) {
        self.state().behaviour = behaviour;
    }

    /// Ends every client's stream of history events, as a restart of the daemon does.
    pub(crate) fn disconnect_listeners(&self) {
        self.state().listeners.clear();
    }

    /// Forgets the builds that run, as a daemon does that is killed: there will be no records of them.
    pub(crate) fn lose_running_builds(&self) {
        self.state().active.clear();
    }

    /// Returns the number of clients that listen to the history.
    pub(crate) fn listener_count(&self) -> usize {
        let mut state = self.state();
        state.listeners.retain(|listener| !listener.is_closed());
        state.listeners.len()
    }

    /// Records the start of a build in the history, unless its reference is taken.
    pub(crate) fn record_start(&self, request: &SolveRequest) -> Result<RunningBuildInHistory, Status> {
        let mut state = self.state();
        if state.active.contains_key(&request.r#ref) {
            return Err(Status::unknown(format!("job ID {} exists", request.r#ref)));
        }
        let record = BuildHistoryRecord {
            r#ref: request.r#ref.clone(),
            frontend: request.frontend.clone(),
            frontend_attrs: request.frontend_attrs.clone(),
            exporters: request.exporters.clone(),
            created_at: Some(current_timestamp()),
            ..BuildHistoryRecord::default()
        };
        state.active.insert(record.r#ref.clone(), record.clone());
        state.send_to_listeners(BuildHistoryEventType::Started, &record);
        Ok(RunningBuildInHistory {
            history: self.clone(),
            record: Some(record),
        })
    }

    /// Adds the record of a finished build to the history.
    pub(crate) fn add_finished_build(&self, record: BuildHistoryRecord, outcome: Result<&str, &Status>) {
        let record = finished_record(record, outcome);
        let mut state = self.state();
        state.finished.push(record.clone());
        state.send_to_listeners(BuildHistoryEventType::Complete, &record);
    }

    /// Answers a client of the history as BuildKit's `Listen` does: running builds, then the records that the filter
    /// allows, then events.
    pub(super) fn answer_listen_request(
        &self,
        request: &BuildHistoryRequest,
    ) -> Result<impl Stream<Item = Result<BuildHistoryEvent, Status>> + Send + use<>, Status> {
        let mut state = self.state();
        state.count_of_records_daemon_decoded += if request.active_only {
            0
        } else {
            state.finished.len()
        };
        let delay = match state.behaviour {
            HistoryBehaviour::Kept => Duration::ZERO,
            HistoryBehaviour::Unimplemented => {
                return Err(Status::unimplemented("unknown method ListenBuildHistory"));
            }
            HistoryBehaviour::Silent => return Ok(stream::pending().left_stream()),
            HistoryBehaviour::SlowToDecode(_) if request.active_only => Duration::ZERO,
            HistoryBehaviour::SlowToDecode(delay) => delay,
        };
        // The history of a daemon contains other builds too.
        let other = finished_record(
            BuildHistoryRecord {
                r#ref: "other".into(),
                ..BuildHistoryRecord::default()
            },
            Ok("sha256:00"),
        );
        let allows = |record: &&BuildHistoryRecord| {
            let mut filters = request.filter.iter();
            request.filter.is_empty()
                || filters.any(|filter| filter.split(',').all(|part| filter_allows(part, record)))
        };
        let active = state.active.values();
        let active = active.map(|record| history_event(BuildHistoryEventType::Started, record));
        let finished = [&other].into_iter().chain(&state.finished);
        let finished = finished
            .filter(|_| !request.active_only)
            .filter(allows)
            .map(|record| history_event(BuildHistoryEventType::Complete, record));
        let known: Vec<_> = active.chain(finished).map(Ok).collect();
        let (listener, events) = mpsc::unbounded_channel();
        if !request.early_exit {
            state.listeners.push(listener);
        }
        let events = UnboundedReceiverStream::new(events);
        let answers = stream::once(async move {
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            stream::iter(known)
        });
        Ok(answers.flatten().chain(events).right_stream())
    }
}

impl FakeHistory {
    /// Returns the number of records that the daemon itself decoded so far to answer requests for its history: all
    /// finished ones for each request that is not for running builds only, whatever its filter.
    pub(crate) fn count_of_records_daemon_decoded(&self) -> usize {
        self.state().count_of_records_daemon_decoded
    }

    /// Answers a request to change a record as BuildKit's `UpdateRef` does. Every request leaves the record as it is.
    pub(super) async fn answer_update_request_without_change(
        &self,
        request: &UpdateBuildHistoryRequest,
    ) -> Result<(), Status> {
        assert!(
            !(request.delete || request.finalize || request.pinned),
            "{request:?}"
        );
        let behaviour = self.state().behaviour;
        match behaviour {
            HistoryBehaviour::Kept | HistoryBehaviour::SlowToDecode(_) => {}
            HistoryBehaviour::Unimplemented => {
                return Err(Status::unimplemented("unknown method UpdateBuildHistory"));
            }
            HistoryBehaviour::Silent => std::future::pending().await,
        }
        let mut state = self.state();
        let reference = &request.r#ref;
        let found = state.finished.iter().find(|record| record.r#ref == *reference);
        match found.cloned() {
            Some(record) => {
                state.send_to_listeners(BuildHistoryEventType::Complete, &record);
                Ok(())
            }
            None => Err(Status::unknown(format!(
                "failed to retrieve ref {reference}: file does not exist"
            ))),
        }
    }
}

impl HistoryState {
    fn send_to_listeners(&mut self, kind: BuildHistoryEventType, record: &BuildHistoryRecord) {
        self.listeners
            .retain(|listener| listener.send(Ok(history_event(kind, record))).is_ok());
    }
}

impl RunningBuildInHistory {
    /// Records the outcome of the build. BuildKit makes no record of a solve whose reference was taken.
    pub(crate) fn record_outcome(mut self, outcome: Result<&str, &Status>) {
        match outcome {
            Err(status) if status.message().ends_with(" exists") => {
                if let Some(record) = self.record.take() {
                    self.history.state().active.remove(&record.r#ref);
                }
            }
            outcome => self.record_end(outcome),
        }
    }

    fn record_end(&mut self, outcome: Result<&str, &Status>) {
        if let Some(record) = self.record.take() {
            let was_lost = self.history.state().active.remove(&record.r#ref).is_none();
            if !was_lost {
                self.history.add_finished_build(record, outcome);
            }
        }
    }
}

impl Drop for RunningBuildInHistory {
    fn drop(&mut self) {
        self.record_end(Err(&Status::cancelled("context canceled")));
    }
}

fn finished_record(mut record: BuildHistoryRecord, outcome: Result<&str, &Status>) -> BuildHistoryRecord {
    record.completed_at = Some(current_timestamp());
    match outcome {
        Ok(digest) => {
            let descriptor = Descriptor {
                digest: digest.into(),
                ..Descriptor::default()
            };
            record.result = Some(BuildResultInfo {
                results: [(0, descriptor)].into(),
                ..BuildResultInfo::default()
            });
        }
        Err(status) => {
            record.error = Some(RpcStatus {
                code: status.code().into(),
                message: status.message().into(),
                details: Vec::new(),
            });
        }
    }
    record
}

/// Returns whether one part of a history filter allows a finished build: BuildKit `solver/llbsolver/history/filter.go`.
fn filter_allows(filter: &str, record: &BuildHistoryRecord) -> bool {
    if let Some(reference) = filter.strip_prefix("ref==") {
        return record.r#ref == reference;
    }
    if let Some(status) = filter.strip_prefix("status==") {
        let state = match &record.error {
            None => "completed",
            Some(error) if error.code == i32::from(Code::Cancelled) => "canceled",
            Some(_) => "error",
        };
        return state == status;
    }
    if let Some(time) = filter.strip_prefix("completedAt>=") {
        let since: jiff::Timestamp = time.parse().expect("RFC 3339");
        return record
            .completed_at
            .as_ref()
            .is_some_and(|at| at.seconds >= since.as_second());
    }
    panic!("the fake daemon does not know the filter {filter:?}");
}

fn history_event(kind: BuildHistoryEventType, record: &BuildHistoryRecord) -> BuildHistoryEvent {
    BuildHistoryEvent {
        r#type: kind.into(),
        record: Some(record.clone()),
    }
}

fn current_timestamp() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970");
    Timestamp {
        seconds: since.as_secs().try_into().expect("not too far"),
        nanos: since.subsec_nanos().try_into().expect("below a second"),
    }
}
