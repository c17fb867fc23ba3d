//! The facts about an attempt's steps that its log does not have: cached results, failures, transfers, pushes.

use std::collections::HashMap;
use std::time::SystemTime;

use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex, VertexStatus};

use super::reader::to_system_time;
use super::without_rpc_prefix;

/// The most steps of which facts are kept. BuildKit's own limit is higher.
const STEPS_MAX: usize = 1000;

/// The most parts of steps of which facts are kept.
const PARTS_MAX: usize = 100;

/// The longest name that is kept, in bytes. The name of a step with a here-document has the whole document.
const NAME_BYTES_MAX: usize = 4096;

/// The beginning of the name of the step that transfers the context.
const CONTEXT_STEP: &str = "[internal] load build context";

/// The beginnings of the names of the parts of steps that are kept: those of the export.
const KEPT_PARTS: [&str; 3] = ["exporting layers", "pushing layers", "pushing manifest"];

/// A step as the daemon last reported it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepFacts {
    /// The digest that identifies the step in its build.
    pub digest: String,
    /// The name of the step, such as `[2/3] RUN make`.
    pub name: String,
    /// The time at which the step began; `None` for one that waits.
    pub started: Option<SystemTime>,
    /// The time at which the step ended.
    pub ended: Option<SystemTime>,
    /// Whether the result came from the cache.
    pub cached: bool,
    /// The error of a failed step, without the prefix of a gRPC error; empty if it did not fail.
    pub error: String,
}

/// The facts about the steps of one attempt.
#[derive(Clone, Debug, Default)]
pub struct StatusFacts {
    steps: Vec<StepFacts>,
    positions: HashMap<String, usize>,
    /// Parts of steps, such as the push of layers.
    parts: Vec<StepFacts>,
    /// The bytes of the context that were sent, by the IDs of the transfers.
    sent: HashMap<String, u64>,
}

impl StatusFacts {
    /// Adds the facts in a response of the daemon. A step that is reported again replaces what was known of it.
    pub(super) fn add_response(&mut self, response: &StatusResponse) {
        for vertex in &response.vertexes {
            self.add_step(vertex);
        }
        for status in &response.statuses {
            self.add_status(status);
        }
    }

    fn add_step(&mut self, vertex: &Vertex) {
        let facts = StepFacts {
            digest: vertex.digest.clone(),
            name: cut_name(&vertex.name),
            started: vertex.started.as_ref().map(to_system_time),
            ended: vertex.completed.as_ref().map(to_system_time),
            cached: vertex.cached,
            error: cut_name(without_rpc_prefix(&vertex.error)),
        };
        match self.positions.get(&vertex.digest) {
            Some(position) => {
                if let Some(known) = self.steps.get_mut(*position) {
                    // A step that runs again began when it first did.
                    let started = known.started.or(facts.started);
                    *known = StepFacts { started, ..facts };
                }
            }
            None if self.steps.len() < STEPS_MAX => {
                self.positions.insert(vertex.digest.clone(), self.steps.len());
                self.steps.push(facts);
            }
            None => {}
        }
    }

    fn add_status(&mut self, status: &VertexStatus) {
        let of_context = self
            .positions
            .get(&status.vertex)
            .and_then(|position| self.steps.get(*position))
            .is_some_and(|step| step.name.starts_with(CONTEXT_STEP));
        if of_context && status.id.starts_with("transferring") {
            let current = u64::try_from(status.current).unwrap_or_default();
            if self.sent.len() < PARTS_MAX {
                let sent = self.sent.entry(status.id.clone()).or_default();
                *sent = current.max(*sent);
            }
        }
        if !KEPT_PARTS.iter().any(|kept| status.id.starts_with(kept)) {
            return;
        }
        let facts = StepFacts {
            digest: status.vertex.clone(),
            name: cut_name(&status.id),
            started: status.started.as_ref().map(to_system_time),
            ended: status.completed.as_ref().map(to_system_time),
            ..StepFacts::default()
        };
        let is_same = |part: &StepFacts| (&part.digest, &part.name) == (&facts.digest, &facts.name);
        match self.parts.iter().position(is_same) {
            Some(position) => {
                if let Some(known) = self.parts.get_mut(position) {
                    *known = facts;
                }
            }
            None if self.parts.len() < PARTS_MAX => self.parts.push(facts),
            None => {}
        }
    }

    /// Returns the steps, in the order in which the daemon reported them.
    pub fn steps(&self) -> &[StepFacts] {
        &self.steps
    }

    /// Returns the parts of the export: the layers, and the push of layers and manifests.
    pub fn export_parts(&self) -> &[StepFacts] {
        &self.parts
    }

    /// Returns the bytes of the context that were sent to the daemon; `None` if none were, or the daemon reported none.
    pub fn sent_context_bytes(&self) -> Option<u64> {
        (!self.sent.is_empty()).then(|| self.sent.values().sum())
    }
}

/// Cuts a name or an error at [`NAME_BYTES_MAX`].
fn cut_name(name: &str) -> String {
    name[..name.floor_char_boundary(NAME_BYTES_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use bollard_buildkit_proto::google::protobuf::Timestamp;

    use super::*;

    fn at(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp { seconds, nanos: 0 })
    }

    fn status(vertex: &str, id: &str, current: i64) -> VertexStatus {
        VertexStatus {
            vertex: vertex.into(),
            id: id.into(),
            current,
            started: at(2),
            completed: at(3),
            ..VertexStatus::default()
        }
    }

    #[test]
    fn facts_have_cached_steps_the_sent_context_and_the_push() {
        let vertex = |digest: &str, name: &str, cached| Vertex {
            digest: digest.into(),
            name: name.into(),
            started: at(1),
            completed: at(1),
            cached,
            ..Vertex::default()
        };
        let mut facts = StatusFacts::default();
        facts.add_response(&StatusResponse {
            vertexes: vec![
                vertex("a", "[internal] load build context", false),
                vertex("b", "[2/2] RUN make", true),
            ],
            statuses: vec![
                status("a", "transferring context:", 100),
                status("a", "transferring context:", 250),
                status("b", "transferring context:", 7),
                status("c", "pushing layers", 0),
                status("c", "sending tarball", 0),
            ],
            ..StatusResponse::default()
        });
        assert_eq!(facts.sent_context_bytes(), Some(250));
        assert_eq!(
            facts.steps().iter().map(|step| step.cached).collect::<Vec<_>>(),
            [false, true]
        );
        let parts: Vec<_> = facts
            .export_parts()
            .iter()
            .map(|part| part.name.as_str())
            .collect();
        assert_eq!(parts, ["pushing layers"]);
    }

    #[test]
    fn facts_of_a_hostile_build_are_bounded() {
        let mut facts = StatusFacts::default();
        let vertexes = (0..STEPS_MAX + 10).map(|number| Vertex {
            digest: number.to_string(),
            name: "é".repeat(NAME_BYTES_MAX),
            ..Vertex::default()
        });
        let statuses = (0..PARTS_MAX + 10).map(|number| status("x", &format!("pushing layers {number}"), -1));
        facts.add_response(&StatusResponse {
            vertexes: vertexes.collect(),
            statuses: statuses.collect(),
            ..StatusResponse::default()
        });
        assert_eq!(
            (facts.steps().len(), facts.export_parts().len()),
            (STEPS_MAX, PARTS_MAX)
        );
        assert!(facts.steps().iter().all(|step| step.name.len() <= NAME_BYTES_MAX));
    }
}
