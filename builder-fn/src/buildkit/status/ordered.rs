//! The log of one attempt of a build, in an order that is the same for every reader.
//!
//! BuildKit gives every reader of a build's status its own grouping: between two reads, it collects updates by their
//! IDs, sorts them by time, and separates steps, progress and output. What all readers get alike are the contents: the
//! pieces of output with their times, and when each step began and ended. The events are therefore sorted by these
//! times.
//!
//! A piece of output gets its time just before BuildKit queues it, and the queue keeps its order. So an event is held
//! until events from one second later are there, or, while the build runs, until nothing came for a second. Left out is
//! what depends on the reader: progress, which BuildKit thins out; and the ends of steps that it makes up when a build
//! is cancelled. Warnings have no time, and are the last events.
//!
//! Steps that BuildKit reports as cached, with the times of other steps, are ends without a beginning: their place
//! among the other events depends on the reader, and no log line may come of them.
//!
//! BuildKit splits a batch of updates with more than 1 MiB of output into several responses (`client/status.go`): the
//! first one has all the steps and progress of the batch, the following ones only output, whose times may be much
//! earlier. A reader who comes late gets a whole log in few batches. So the times of steps and progress in such a batch
//! count as seen only once the whole batch is there.
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

use super::reader::{time_or_epoch, to_system_time_clamped};
use super::seen_warnings::SeenWarnings;
use super::{AttemptFacts, BuildEvent, StatusResponseStream, open_build_status_stream, without_rpc_prefix};
use crate::buildkit::Connection;
use crate::redact::SecretMask;

/// The time for which an event is held, so that events with earlier times can come before it.
const EVENT_HOLD_TIME: Duration = Duration::from_secs(1);

/// The limit on the memory of held events, in bytes. Above it, the earliest event is passed on.
const HELD_BYTES_MAX: usize = 8 << 20;

/// The memory of an event besides its text, in bytes, roughly.
const EVENT_OVERHEAD_BYTES: usize = 256;

/// The size of output above which BuildKit splits a batch of updates, in bytes: BuildKit `client/status.go`.
const SPLIT_BYTES: usize = 1 << 20;

/// The limit on the remembered beginnings and ends of steps, beyond which events of steps are left out.
const REMEMBERED_TIMES_MAX: usize = 100_000;

/// The error with which BuildKit marks the steps of a cancelled build: Go's `context.Canceled`.
const CANCELLED_STEP_ERROR: &str = "context canceled";

/// A reader of the events of one attempt, sorted by their times.
pub struct OrderedLogWithoutProgress {
    responses: StatusResponseStream,
    order: EventSorter,
    /// The facts about the steps, if they were asked for.
    facts: Option<AttemptFacts>,
    /// Whether the attempt had ended before its log was opened, so that a pause in the log is the daemon's.
    is_recorded: bool,
    has_ended: bool,
}

/// The place of an event: its time, its rank among events of one time, its step, and the order of arrival.
type EventKey = (SystemTime, u8, Arc<str>, u64);

/// The events that are held until they can be sorted.
#[derive(Default)]
struct EventSorter {
    held: BTreeMap<EventKey, BuildEvent>,
    held_bytes: usize,
    /// The latest time that was seen, without those of a split batch's steps and progress.
    latest: Option<SystemTime>,
    /// The last batch, if BuildKit has split it.
    split: Option<SplitBatch>,
    arrived: u64,
    digests: HashMap<String, Arc<str>>,
    /// The beginnings and ends of steps that were seen.
    seen: HashSet<(Arc<str>, SystemTime, bool)>,
    seen_warnings: SeenWarnings,
    warnings: Vec<BuildEvent>,
}

/// A batch of updates that BuildKit has split into several responses.
#[derive(Default)]
struct SplitBatch {
    /// The latest time of the batch's steps and progress.
    latest: Option<SystemTime>,
    /// Whether there was a response without output, which is the last one of a batch. In the log of an ended build, a
    /// batch is split again, and there may be more responses.
    may_be_over: bool,
}

impl Connection {
    /// Opens the log of the running or finished attempt `reference`, from its beginning.
    pub fn open_log(&self, reference: &str) -> OrderedLogWithoutProgress {
        OrderedLogWithoutProgress {
            responses: open_build_status_stream(self, reference.to_owned()),
            order: EventSorter::default(),
            facts: None,
            is_recorded: false,
            has_ended: false,
        }
    }
}

impl OrderedLogWithoutProgress {
    /// Waits for the next events, in order; `None` after the last one. Dropping the future loses nothing.
    ///
    /// # Errors
    /// Fails if the daemon does not know the attempt, or is lost.
    pub async fn next_events(&mut self) -> Result<Option<Vec<BuildEvent>>, Status> {
        while !self.has_ended {
            let response = self.responses.next();
            let response = match self.is_recorded || self.order.is_within_batch() {
                true => Ok(response.await),
                false => tokio::time::timeout(EVENT_HOLD_TIME, response).await,
            };
            let events = match response {
                Err(_) => self.order.take_all_held(),
                Ok(Some(response)) => {
                    let response = response?;
                    if let Some(facts) = &mut self.facts {
                        facts.add_response(&response);
                    }
                    self.order.add_response(response);
                    self.order.take_ready_or_above_memory_limit()
                }
                Ok(None) => {
                    self.has_ended = true;
                    let mut events = self.order.take_all_held();
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

    /// Takes the attempt as ended if `has_attempt_ended`: then a pause of the daemon does not pass held events on, and
    /// their order does not depend on how fast the daemon sends them.
    pub(crate) fn treated_as_ended_if(self, has_attempt_ended: bool) -> Self {
        Self {
            is_recorded: has_attempt_ended,
            ..self
        }
    }

    /// Keeps facts about the steps, in whose names `mask` masks secrets.
    pub(crate) fn with_facts(mut self, mask: SecretMask) -> Self {
        self.facts = Some(AttemptFacts::empty_with_mask(mask));
        self
    }

    /// Returns the facts about the steps, as far as the daemon's answer was read; none unless they were asked for.
    pub(crate) fn into_facts_or_empty_if_not_collected(self) -> AttemptFacts {
        self.facts.unwrap_or_default()
    }
}

impl EventSorter {
    /// Holds the steps and the output in a response, and keeps its warnings for the end.
    fn add_response(&mut self, response: StatusResponse) {
        self.notice_split(&response);
        for vertex in response.vertexes {
            self.add_step(vertex);
        }
        for status in &response.statuses {
            let at = status.timestamp.as_ref().map(to_system_time_clamped);
            self.notice_time_of_steps(at);
        }
        for log in response.logs {
            let at = time_or_epoch(log.timestamp.as_ref());
            let digest = self.intern(&log.vertex);
            self.held_bytes += log.msg.len();
            self.latest = self.latest.max(Some(at));
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
        let warnings = response.warnings.into_iter();
        let new = warnings.filter_map(|warning| self.seen_warnings.take_new(warning));
        self.warnings.extend(new);
    }

    /// Notices whether a response is the first one of a split batch, a further one, or one of another batch.
    fn notice_split(&mut self, response: &StatusResponse) {
        if (!response.vertexes.is_empty() || !response.statuses.is_empty())
            && let Some(over) = self.split.take()
        {
            self.latest = self.latest.max(over.latest);
        }
        let output_bytes: usize = response.logs.iter().map(|log| log.msg.len()).sum();
        if output_bytes > SPLIT_BYTES && self.split.is_none() {
            self.split = Some(SplitBatch::default());
        }
        if let Some(split) = &mut self.split {
            split.may_be_over |= response.logs.is_empty();
        }
    }

    /// Returns whether the daemon has sent a part of a batch, and certainly sends another one.
    fn is_within_batch(&self) -> bool {
        self.split.as_ref().is_some_and(|split| !split.may_be_over)
    }

    /// Notices the time of a step or of progress.
    fn notice_time_of_steps(&mut self, at: Option<SystemTime>) {
        let latest = match &mut self.split {
            Some(split) => &mut split.latest,
            None => &mut self.latest,
        };
        *latest = (*latest).max(at);
    }

    /// Holds the beginning and the end of a step, unless they are known or made up by BuildKit. BuildKit may leave the
    /// beginning out and send only the end.
    fn add_step(&mut self, vertex: Vertex) {
        let Some(started) = vertex.started.as_ref().map(to_system_time_clamped) else {
            return;
        };
        let completed = vertex.completed.as_ref().map(to_system_time_clamped);
        let digest = self.intern(&vertex.digest);
        if completed == Some(started) {
            if vertex.cached && self.remember_if_new_and_within_limit(&digest, SystemTime::UNIX_EPOCH, true) {
                let event = BuildEvent::StepEnded {
                    digest: vertex.digest,
                    name: vertex.name,
                    started: None,
                    ended: started,
                    cached: true,
                    error: String::new(),
                    is_rerun: false,
                };
                self.hold(started, 2, digest, event);
            }
            return;
        }
        if self.remember_if_new_and_within_limit(&digest, started, false) {
            let event = BuildEvent::StepStarted {
                digest: vertex.digest.clone(),
                name: vertex.name.clone(),
                at: started,
                is_rerun: false,
            };
            self.notice_time_of_steps(Some(started));
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
            self.notice_time_of_steps(Some(ended));
            self.hold(ended, 2, digest, event);
        }
    }

    /// Remembers the beginning or the end of a step. Returns `false` if it is known, or too many are remembered.
    fn remember_if_new_and_within_limit(&mut self, digest: &Arc<str>, at: SystemTime, is_end: bool) -> bool {
        self.seen.len() < REMEMBERED_TIMES_MAX && self.seen.insert((digest.clone(), at, is_end))
    }

    /// Holds an event until it is sorted; `rank` orders events of one time: beginnings, output, ends.
    fn hold(&mut self, at: SystemTime, rank: u8, digest: Arc<str>, event: BuildEvent) {
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
    fn take_ready_or_above_memory_limit(&mut self) -> Vec<BuildEvent> {
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
    fn take_all_held(&mut self) -> Vec<BuildEvent> {
        self.held_bytes = 0;
        std::mem::take(&mut self.held).into_values().collect()
    }
}

#[cfg(test)]
mod tests;
