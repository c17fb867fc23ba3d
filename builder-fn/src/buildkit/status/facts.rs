//! The facts about an attempt's steps that its log does not have: cached results, failures, transfers, pushes.
//!
//! The names of steps repeat what callers wrote, with the values of arguments in it, so secrets are masked in them
//! first.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex, VertexStatus};

use super::reader::to_system_time_clamped;
use crate::redact::SecretMask;

/// The most steps of which facts are kept. BuildKit's own limit is higher.
const KEPT_STEPS_MAX: usize = 1000;

/// The most parts of steps of which facts are kept.
const KEPT_STEP_PARTS_MAX: usize = 100;

/// The longest name that is kept, in bytes: what a page shows of it. The name of a step with a here-document has the
/// whole document.
const STEP_NAME_BYTES_MAX: usize = 512;

/// The beginning of the name of the step that transfers the context.
const CONTEXT_STEP_NAME_PREFIX: &str = "[internal] load build context";

/// The beginnings of the names of the parts of steps that are kept: those of the export.
const KEPT_STEP_PART_NAME_PREFIXES: [&str; 3] = ["exporting layers", "pushing layers", "pushing manifest"];

/// A step, or a part of the export, as the daemon last reported it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepOrExportPartFacts {
    /// The digest that identifies the step in its build.
    pub digest: String,
    /// The name of the step, such as `[2/3] RUN make`, with secrets masked, and cut.
    pub name: String,
    /// The time at which the step began; `None` for one that waits.
    pub started: Option<SystemTime>,
    /// The time at which the step ended.
    pub ended: Option<SystemTime>,
    /// Whether the result came from the cache.
    pub cached: bool,
    /// Whether the step failed.
    pub failed: bool,
}

/// The facts about the steps of one attempt.
#[derive(Clone, Debug, Default)]
pub struct AttemptFacts {
    mask: SecretMask,
    steps: Vec<StepOrExportPartFacts>,
    positions: HashMap<String, usize>,
    /// Parts of steps, such as the push of layers.
    parts: Vec<StepOrExportPartFacts>,
    /// The digests of the steps that transfer the context.
    context_steps: HashSet<String>,
    /// The bytes of the context that were sent, by the IDs of the transfers.
    sent: HashMap<String, u64>,
}

impl AttemptFacts {
    /// Creates facts of which none is known yet, with the mask of the build's secrets.
    pub(crate) fn empty_with_mask(mask: SecretMask) -> Self {
        Self {
            mask,
            ..Self::default()
        }
    }

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
        if vertex.name.starts_with(CONTEXT_STEP_NAME_PREFIX) && self.context_steps.len() < KEPT_STEP_PARTS_MAX
        {
            self.context_steps.insert(vertex.digest.clone());
        }
        let facts = StepOrExportPartFacts {
            digest: vertex.digest.clone(),
            name: self.masked_and_cut_name(&vertex.name),
            started: vertex.started.as_ref().map(to_system_time_clamped),
            ended: vertex.completed.as_ref().map(to_system_time_clamped),
            cached: vertex.cached,
            failed: !vertex.error.is_empty(),
        };
        match self.positions.get(&vertex.digest) {
            Some(position) => {
                if let Some(known) = self.steps.get_mut(*position) {
                    // A step that runs again began when it first did.
                    let started = known.started.or(facts.started);
                    *known = StepOrExportPartFacts { started, ..facts };
                }
            }
            None if self.steps.len() < KEPT_STEPS_MAX => {
                self.positions.insert(vertex.digest.clone(), self.steps.len());
                self.steps.push(facts);
            }
            None => {}
        }
    }

    fn add_status(&mut self, status: &VertexStatus) {
        if self.context_steps.contains(&status.vertex) && status.id.starts_with("transferring") {
            let current = u64::try_from(status.current).unwrap_or_default();
            let has_room = self.sent.len() < KEPT_STEP_PARTS_MAX;
            match self.sent.get_mut(&status.id) {
                Some(sent) => *sent = current.max(*sent),
                None if has_room => drop(self.sent.insert(status.id.clone(), current)),
                None => {}
            }
        }
        if !KEPT_STEP_PART_NAME_PREFIXES
            .iter()
            .any(|kept| status.id.starts_with(kept))
        {
            return;
        }
        let facts = StepOrExportPartFacts {
            digest: status.vertex.clone(),
            name: self.masked_and_cut_name(&status.id),
            started: status.started.as_ref().map(to_system_time_clamped),
            ended: status.completed.as_ref().map(to_system_time_clamped),
            ..StepOrExportPartFacts::default()
        };
        let is_same =
            |part: &StepOrExportPartFacts| (&part.digest, &part.name) == (&facts.digest, &facts.name);
        match self.parts.iter().position(is_same) {
            Some(position) => {
                if let Some(known) = self.parts.get_mut(position) {
                    *known = facts;
                }
            }
            None if self.parts.len() < KEPT_STEP_PARTS_MAX => self.parts.push(facts),
            None => {}
        }
    }

    /// Returns the name as it may be shown: masked as a whole, and then cut at [`STEP_NAME_BYTES_MAX`].
    fn masked_and_cut_name(&self, name: &str) -> String {
        let masked = self.mask.mask_text(name);
        masked[..masked.floor_char_boundary(STEP_NAME_BYTES_MAX)].to_owned()
    }

    /// Takes the steps, in the order in which the daemon reported them.
    pub fn take_steps(&mut self) -> Vec<StepOrExportPartFacts> {
        self.positions.clear();
        std::mem::take(&mut self.steps)
    }

    /// Returns the parts of the export: the layers, and the push of layers and manifests.
    pub fn export_parts(&self) -> &[StepOrExportPartFacts] {
        &self.parts
    }

    /// Returns the bytes of the context that were sent to the daemon; `None` if none were, or the daemon reported none.
    pub fn sent_context_bytes_if_reported(&self) -> Option<u64> {
        (!self.sent.is_empty()).then(|| self.sent.values().sum())
    }
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
        let mut facts = AttemptFacts::default();
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
        assert_eq!(facts.sent_context_bytes_if_reported(), Some(250));
        assert_eq!(
            facts.steps.iter().map(|step| step.cached).collect::<Vec<_>>(),
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
    fn secrets_are_masked_in_names_even_where_they_are_cut() {
        let secret = "the value of a secret";
        let mut facts = AttemptFacts::empty_with_mask(SecretMask::new([secret.as_bytes()]));
        let across_the_cut = format!("RUN {}{secret} more", "x".repeat(STEP_NAME_BYTES_MAX - 10));
        let vertex = |digest: &str, name: String| Vertex {
            digest: digest.into(),
            error: format!("process {name} failed"),
            name,
            ..Vertex::default()
        };
        facts.add_response(&StatusResponse {
            vertexes: vec![
                vertex("a", format!("[1/2] RUN echo {secret}")),
                vertex("b", across_the_cut),
            ],
            statuses: vec![status("a", &format!("pushing manifest for registry/{secret}"), 0)],
            ..StatusResponse::default()
        });
        let names: Vec<_> = facts
            .steps
            .iter()
            .chain(facts.export_parts())
            .map(|step| &step.name)
            .collect();
        assert_eq!(names[0], "[1/2] RUN echo ***");
        assert_eq!(names[2], "pushing manifest for registry/***");
        let shown = format!("{:?}", facts.steps);
        assert!(!shown.contains("the value"), "{shown}");
        assert!(facts.steps.iter().all(|step| step.failed));
    }

    #[test]
    fn facts_of_a_hostile_build_are_bounded() {
        let mut facts = AttemptFacts::default();
        let vertexes = (0..KEPT_STEPS_MAX + 10).map(|number| Vertex {
            digest: number.to_string(),
            name: "é".repeat(STEP_NAME_BYTES_MAX),
            ..Vertex::default()
        });
        let statuses =
            (0..KEPT_STEP_PARTS_MAX + 10).map(|number| status("x", &format!("pushing layers {number}"), -1));
        facts.add_response(&StatusResponse {
            vertexes: vertexes.collect(),
            statuses: statuses.collect(),
            ..StatusResponse::default()
        });
        assert_eq!(
            (facts.steps.len(), facts.export_parts().len()),
            (KEPT_STEPS_MAX, KEPT_STEP_PARTS_MAX)
        );
        assert!(
            facts
                .steps
                .iter()
                .all(|step| step.name.len() <= STEP_NAME_BYTES_MAX)
        );
    }
}
