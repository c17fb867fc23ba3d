//! The log of one attempt of a build, in an order that is the same for every reader.
//!
//! BuildKit gives every reader of a build's status its own grouping: between two reads, it collects updates by their IDs,
//! sorts them by time, and separates steps, progress and output. What all readers get alike are the contents: the
//! pieces of output with their times, and when each step began and ended. The events are therefore sorted by these times.
//!
//! A piece of output gets its time just before BuildKit queues it, and the queue keeps its order. So an event is held
//! until events from one second later are there, or until nothing came for a second. Left out is what depends on the
//! reader: progress, which BuildKit thins out; steps that it reports as cached with the times of other steps; and the
//! ends of steps that it makes up when a build is cancelled. Warnings have no time, and are the last events.
//!
//! There is one exception. A build that joins a step which another build has already begun gets its earlier output when
//! it joins, with the original times. A reader who was there before gets it where it arrived, and one who comes later
//! gets it where it belongs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex};
use futures_util::StreamExt;
use tonic::Status;

use super::reader::{time_or_epoch, to_system_time};
use super::{AttemptFacts, BuildEvent, StatusResponseStream, follow_build_status, without_rpc_prefix};
use crate::buildkit::Connection;
use crate::redact::SecretMask;

/// The time for which an event is held, so that events with earlier times can come before it.
const EVENT_HOLD_TIME: Duration = Duration::from_secs(1);

/// The limit on the memory of held events, in bytes. Above it, the earliest event is passed on.
const HELD_BYTES_MAX: usize = 8 << 20;

/// The memory of an event besides its text, in bytes, roughly.
const EVENT_OVERHEAD_BYTES: usize = 256;

/// The limit on the remembered beginnings and ends of steps, beyond which events of steps are left out.
const REMEMBERED_TIMES_MAX: usize = 100_000;

/// The error with which BuildKit marks the steps of a cancelled build: Go's `context.Canceled`.
const CANCELLED_STEP_ERROR: &str = "context canceled";

/// A reader of the events of one attempt, sorted by their times.
pub struct OrderedLog {
    responses: StatusResponseStream,
    order: EventSorter,
    /// The facts about the steps, if they were asked for.
    facts: Option<AttemptFacts>,
    has_ended: bool,
}

/// The place of an event: its time, its rank among events of one time, its step, and the order of arrival.
type EventKey = (SystemTime, u8, Arc<str>, u64);

/// The events that are held until they can be sorted.
#[derive(Default)]
struct EventSorter {
    held: BTreeMap<EventKey, BuildEvent>,
    held_bytes: usize,
    /// The latest time that was seen.
    latest: Option<SystemTime>,
    arrived: u64,
    digests: HashMap<String, Arc<str>>,
    /// The beginnings and ends of steps that were seen.
    seen: HashSet<(Arc<str>, SystemTime, bool)>,
    warnings: Vec<BuildEvent>,
}

impl Connection {
    /// Opens the log of the running or finished attempt `reference`, from its beginning.
    pub fn open_log(&self, reference: &str) -> OrderedLog {
        OrderedLog {
            responses: follow_build_status(self, reference.to_owned()),
            order: EventSorter::default(),
            facts: None,
            has_ended: false,
        }
    }
}

impl OrderedLog {
    /// Waits for the next events, in order; `None` after the last one. Dropping the future loses nothing.
    ///
    /// # Errors
    /// Fails if the daemon does not know the attempt, or is lost.
    pub async fn next_events(&mut self) -> Result<Option<Vec<BuildEvent>>, Status> {
        while !self.has_ended {
            let events = match tokio::time::timeout(EVENT_HOLD_TIME, self.responses.next()).await {
                Err(_) => self.order.take_all(),
                Ok(Some(response)) => {
                    let response = response?;
                    if let Some(facts) = &mut self.facts {
                        facts.add_response(&response);
                    }
                    self.order.add_response(response);
                    self.order.take_ready()
                }
                Ok(None) => {
                    self.has_ended = true;
                    let mut events = self.order.take_all();
                    events.append(&mut self.order.warnings);
                    events
                }
            };
            if !events.is_empty() {
                return Ok(Some(events));
            }
        }
        Ok(None)
    }

    /// Keeps facts about the steps, in whose names `mask` masks secrets.
    pub(crate) fn with_facts(mut self, mask: SecretMask) -> Self {
        self.facts = Some(AttemptFacts::empty_with_mask(mask));
        self
    }

    /// Returns the facts about the steps, as far as the daemon's answer was read; none unless they were asked for.
    pub(crate) fn into_facts(self) -> AttemptFacts {
        self.facts.unwrap_or_default()
    }
}

impl EventSorter {
    /// Holds the steps and the output in a response, and keeps its warnings for the end.
    fn add_response(&mut self, response: StatusResponse) {
        for vertex in response.vertexes {
            self.add_step(vertex);
        }
        for status in &response.statuses {
            self.latest = self.latest.max(status.timestamp.as_ref().map(to_system_time));
        }
        for log in response.logs {
            let at = time_or_epoch(log.timestamp.as_ref());
            let digest = self.intern(&log.vertex);
            self.held_bytes += log.msg.len();
            self.hold(
                at,
                1,
                digest,
                BuildEvent::Output {
                    step: log.vertex,
                    stream: log.stream,
                    at,
                    text: log.msg,
                },
            );
        }
        self.warnings
            .extend(response.warnings.into_iter().map(|warning| BuildEvent::Warning {
                text: String::from_utf8_lossy(&warning.short).into_owned(),
            }));
    }

    /// Holds the beginning and the end of a step, unless they are known or made up by BuildKit. BuildKit may leave the
    /// beginning out and send only the end.
    fn add_step(&mut self, vertex: Vertex) {
        let Some(started) = vertex.started.as_ref().map(to_system_time) else {
            return;
        };
        let completed = vertex.completed.as_ref().map(to_system_time);
        let digest = self.intern(&vertex.digest);
        if completed == Some(started) {
            return;
        }
        if self.remember_if_new_and_within_limit(&digest, started, false) {
            let event = BuildEvent::StepStarted {
                digest: vertex.digest.clone(),
                name: vertex.name.clone(),
                at: started,
                is_rerun: false,
            };
            self.hold(started, 0, digest.clone(), event);
        }
        let Some(ended) = completed.filter(|_| !vertex.error.ends_with(CANCELLED_STEP_ERROR)) else {
            return;
        };
        if self.remember_if_new_and_within_limit(&digest, ended, true) {
            let event = BuildEvent::StepEnded {
                digest: vertex.digest,
                name: vertex.name,
                started: Some(started),
                ended,
                cached: vertex.cached,
                error: without_rpc_prefix(&vertex.error).to_owned(),
                is_rerun: false,
            };
            self.hold(ended, 2, digest, event);
        }
    }

    /// Remembers the beginning or the end of a step. Returns `false` if it is known, or too many are remembered.
    fn remember_if_new_and_within_limit(&mut self, digest: &Arc<str>, at: SystemTime, is_end: bool) -> bool {
        self.seen.len() < REMEMBERED_TIMES_MAX && self.seen.insert((digest.clone(), at, is_end))
    }

    /// Holds an event until it is sorted; `rank` orders events of one time: beginnings, output, ends.
    fn hold(&mut self, at: SystemTime, rank: u8, digest: Arc<str>, event: BuildEvent) {
        self.latest = self.latest.max(Some(at));
        self.arrived += 1;
        self.held_bytes += EVENT_OVERHEAD_BYTES;
        self.held.insert((at, rank, digest, self.arrived), event);
    }

    /// Returns a shared copy of a step's digest.
    fn intern(&mut self, digest: &str) -> Arc<str> {
        if let Some(known) = self.digests.get(digest) {
            return known.clone();
        }
        let text: Arc<str> = digest.into();
        if self.digests.len() < REMEMBERED_TIMES_MAX {
            self.digests.insert(digest.to_owned(), text.clone());
        }
        text
    }

    /// Takes the events before which no other can come any more, and the earliest ones beyond the memory limit.
    fn take_ready(&mut self) -> Vec<BuildEvent> {
        let Some(end) = self.latest.and_then(|latest| latest.checked_sub(EVENT_HOLD_TIME)) else {
            return Vec::new();
        };
        let mut events = Vec::new();
        while let Some(first) = self.held.first_entry()
            && (first.key().0 <= end || self.held_bytes > HELD_BYTES_MAX)
        {
            let event = first.remove();
            self.held_bytes -= EVENT_OVERHEAD_BYTES;
            if let BuildEvent::Output { text, .. } = &event {
                self.held_bytes -= text.len();
            }
            events.push(event);
        }
        events
    }

    /// Takes all held events, in order.
    fn take_all(&mut self) -> Vec<BuildEvent> {
        self.held_bytes = 0;
        std::mem::take(&mut self.held).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use bollard_buildkit_proto::google::protobuf::Timestamp;
    use bollard_buildkit_proto::moby::buildkit::v1::{VertexLog, VertexStatus};
    use proptest::prelude::*;

    use super::*;

    fn timestamp(milliseconds: i64) -> Timestamp {
        Timestamp {
            seconds: milliseconds / 1000,
            nanos: i32::try_from(milliseconds % 1000).expect("small") * 1_000_000,
        }
    }

    /// Returns a step that began and ended at these times in milliseconds.
    fn vertex(digest: &str, started_ms: i64, completed_ms: Option<i64>, error: &str) -> Vertex {
        Vertex {
            digest: digest.into(),
            name: format!("[{digest}]"),
            started: Some(timestamp(started_ms)),
            completed: completed_ms.map(timestamp),
            error: error.into(),
            ..Vertex::default()
        }
    }

    /// Returns a line of a step's output, written at this time in milliseconds.
    fn log(digest: &str, at_ms: i64) -> VertexLog {
        VertexLog {
            vertex: digest.into(),
            timestamp: Some(timestamp(at_ms)),
            stream: 1,
            msg: format!("{digest} {at_ms}\n").into(),
        }
    }

    /// One update of a build, as BuildKit queues it.
    #[derive(Clone, Debug)]
    enum Update {
        Step(Vertex),
        Log(VertexLog),
        Status(VertexStatus),
    }

    /// Returns the updates of two parallel steps, in BuildKit's order.
    fn updates_of_two_steps() -> Vec<Update> {
        let mut updates = vec![
            Update::Step(vertex("a", 0, None, "")),
            Update::Step(vertex("b", 20, None, "")),
        ];
        for tenth in 1..60_i64 {
            updates.push(Update::Log(log(
                if tenth % 3 == 0 { "b" } else { "a" },
                tenth * 100,
            )));
            updates.push(Update::Status(VertexStatus {
                id: "x".into(),
                timestamp: Some(timestamp(tenth * 100 + 1)),
                ..VertexStatus::default()
            }));
            if tenth == 30 {
                updates.push(Update::Step(vertex("a", 0, Some(3010), "")));
                updates.push(Update::Step(vertex("a", 3020, None, "")));
            }
        }
        updates.push(Update::Step(vertex("a", 3020, Some(5910), "exit code: 1")));
        updates
    }

    /// Returns one response with the updates, grouped by kind as BuildKit does.
    fn response_with(updates: &[Update]) -> StatusResponse {
        let mut response = StatusResponse::default();
        for update in updates {
            match update.clone() {
                Update::Step(vertex) => response.vertexes.push(vertex),
                Update::Log(log) => response.logs.push(log),
                Update::Status(status) => response.statuses.push(status),
            }
        }
        response
    }

    /// Returns the ordered events of `updates`, which are read in batches of these sizes, over and over.
    fn read_in_batches(updates: &[Update], sizes: &[usize]) -> Vec<BuildEvent> {
        let mut order = EventSorter::default();
        let mut events = Vec::new();
        let (mut rest, mut sizes) = (updates, sizes.iter().cycle());
        while !rest.is_empty() {
            let size = sizes.next().copied().unwrap_or(1).clamp(1, rest.len());
            let (batch, more) = rest.split_at(size);
            order.add_response(response_with(batch));
            events.extend(order.take_ready());
            rest = more;
        }
        events.extend(order.take_all());
        events
    }

    proptest! {
        #[test]
        fn the_order_of_a_log_does_not_depend_on_how_buildkit_groups_it(
            sizes in proptest::collection::vec(1_usize..40, 1..12),
            swaps in proptest::collection::vec(0_usize..100, 0..10),
        ) {
            let expected = read_in_batches(&updates_of_two_steps(), &[1]);
            let mut shuffled = updates_of_two_steps();
            for at in swaps {
                // Neighbours may overtake each other on their way.
                if at + 1 < shuffled.len() && matches!((&shuffled[at], &shuffled[at + 1]), (Update::Log(_) | Update::Status(_), Update::Log(_) | Update::Status(_))) {
                    shuffled.swap(at, at + 1);
                }
            }
            prop_assert_eq!(read_in_batches(&shuffled, &sizes), expected);
        }
    }

    #[test]
    fn a_beginning_that_buildkit_left_out_is_taken_from_the_end_of_the_step() {
        let all = [vertex("a", 0, None, ""), vertex("a", 0, Some(10), "")].map(Update::Step);
        assert_eq!(read_in_batches(&all, &[1]), read_in_batches(&all[1..], &[1]));
        assert_eq!(read_in_batches(&all, &[1]).len(), 2);
    }

    #[test]
    fn steps_without_a_duration_and_the_ends_of_cancelled_steps_are_left_out() {
        let updates = [
            vertex("cached", 5, Some(5), ""),
            vertex("cancelled", 6, Some(70), "context canceled"),
        ];
        let events = read_in_batches(&updates.map(Update::Step), &[1]);
        assert!(
            matches!(&events[..], [BuildEvent::StepStarted { digest, .. }] if digest == "cancelled"),
            "{events:?}"
        );
    }

    #[test]
    fn held_events_take_bounded_memory() {
        let mut order = EventSorter::default();
        let mut passed = 0;
        for _ in 0..64 {
            let mut response = StatusResponse::default();
            response.logs.push(VertexLog {
                msg: vec![b'x'; 1 << 20],
                ..log("a", 1000)
            });
            order.add_response(response);
            passed += order.take_ready().len();
            assert!(order.held_bytes <= HELD_BYTES_MAX);
        }
        assert!(passed > 50, "{passed}");
        order.take_all();
        assert_eq!(order.held_bytes, 0);
    }
}
