//! What became of each submission, by the evidence of BuildKit, the registry, the provider and the queue.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::Value;

use super::{journal::RoutedTraffic, platform::SoakPlatform, submission::Submission};
use crate::buildctl::Buildctl;

/// The evidence of what became of a submission.
#[derive(Debug, Clone, Default)]
pub(super) struct SubmissionEvidence {
    pub(super) call_id: String,
    pub(super) function: String,
    pub(super) version: usize,
    /// The number of times that the queue delivered the call, also while no builder received it.
    pub(super) deliveries: usize,
    /// The number of results that the queue posted.
    pub(super) callbacks: usize,
    /// The number of posted results that report a success.
    pub(super) successful_callbacks: usize,
    /// Whether a builder has accepted the call: one knows it, or BuildKit has built it.
    pub(super) is_accepted: bool,
    /// The number of builds without an error in BuildKit's history.
    pub(super) builds: usize,
    /// The digest that the tag names in the registry.
    pub(super) digest: Option<String>,
    /// The image's name by digest, as hand-overs have it; empty if the image was not pushed.
    pub(super) image: String,
    /// The number of requests that may have changed the function to this image.
    pub(super) deployments: usize,
    /// Whether a newer build of the function took its place.
    pub(super) is_superseded: bool,
    /// The state of the build and its error, as a builder reports them.
    pub(super) report: String,
}

/// The verdict on a submission: what it counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SubmissionVerdict {
    /// The image was pushed, and the function was changed to it.
    Finished,
    /// A newer build of the function took its place.
    Superseded,
    /// A builder had accepted the call, and it was not finished.
    Lost,
    /// The queue spent the call: no builder has accepted it.
    Spent,
}

impl SubmissionEvidence {
    /// Returns what the submission counts as.
    pub(super) fn verdict(&self) -> SubmissionVerdict {
        match () {
            () if self.digest.is_some() && self.deployments > 0 => SubmissionVerdict::Finished,
            () if self.is_superseded => SubmissionVerdict::Superseded,
            () if self.is_accepted => SubmissionVerdict::Lost,
            () => SubmissionVerdict::Spent,
        }
    }

    /// Returns whether the image was built more than once.
    pub(super) fn is_built_more_than_once(&self) -> bool {
        self.builds > 1
    }

    /// Returns whether the function was changed to the image more than once.
    pub(super) fn is_changed_to_more_than_once(&self) -> bool {
        self.deployments > 1
    }
}

/// Collects the evidence of all submissions, before their functions are removed.
pub(super) async fn collect_evidence(
    platform: &SoakPlatform,
    submissions: &[Submission],
) -> Result<Vec<SubmissionEvidence>> {
    let buildctl = Buildctl::of_stack_daemon_without_credentials(&platform.testbed)?;
    let events = tokio::task::spawn_blocking(move || buildctl.history_events()).await??;
    let builds = successful_build_counts_by_image(&events);
    let mut all = Vec::new();
    for submission in submissions {
        let registry = &platform.testbed.registry;
        let manifest = registry
            .get_manifest(&submission.repository, &submission.tag)
            .await?;
        let digest = manifest.map(|manifest| manifest.digest);
        let (status, answer) = platform.ask_about_build(&submission.call_id).await?;
        let builds = builds.get(&submission.image).copied().unwrap_or_default();
        let mut evidence = SubmissionEvidence {
            call_id: submission.call_id.clone(),
            function: submission.function.clone(),
            version: submission.version,
            is_accepted: status == 200 || builds > 0 || digest.is_some(),
            builds,
            digest,
            is_superseded: answer["supersededBy"].is_string(),
            report: match status {
                200 => format!(
                    "{} {}",
                    text_or_empty(&answer["state"]),
                    text_or_empty(&answer["error"])
                ),
                _ => format!("{status} {}", text_or_empty(&answer["error"])),
            },
            ..SubmissionEvidence::default()
        };
        evidence.image = image_by_digest_or_empty(submission, evidence.digest.as_deref());
        evidence.set_counts_from_routed_traffic(&platform.router.traffic());
        all.push(evidence);
    }
    distrust_unproved_supersession(&mut all);
    Ok(all)
}

/// Takes back that a newer build took the place of a submission, unless a newer version of the function was deployed.
fn distrust_unproved_supersession(all: &mut [SubmissionEvidence]) {
    let mut newest = BTreeMap::new();
    for evidence in all.iter().filter(|evidence| evidence.deployments > 0) {
        let version = newest.entry(evidence.function.clone()).or_default();
        *version = evidence.version.max(*version);
    }
    for evidence in all {
        let newest = newest.get(&evidence.function).copied().unwrap_or_default();
        evidence.is_superseded &= newest > evidence.version;
    }
}

impl SubmissionEvidence {
    fn set_counts_from_routed_traffic(&mut self, traffic: &RoutedTraffic) {
        self.deliveries = traffic.deliveries_of(&self.call_id).count();
        self.deployments = traffic.possible_changes_to(&self.image).count();
        let callbacks = traffic.callbacks.iter();
        for callback in callbacks.filter(|callback| callback.call_id == self.call_id) {
            self.callbacks += 1;
            self.successful_callbacks += usize::from(callback.status == 200);
        }
    }
}

/// Returns the image's name by digest; empty if the image was not pushed.
fn image_by_digest_or_empty(submission: &Submission, digest: Option<&str>) -> String {
    let name = submission.image.strip_suffix(&format!(":{}", submission.tag));
    match (name, digest) {
        (Some(name), Some(digest)) => format!("{name}@{digest}"),
        _ => String::new(),
    }
}

/// Returns the number of builds without an error in BuildKit's history, by the name of the pushed image.
fn successful_build_counts_by_image(events: &[Value]) -> BTreeMap<String, usize> {
    let mut records = BTreeMap::new();
    for record in events.iter().map(|event| &event["record"]) {
        let is_complete = record["CompletedAt"].is_object() && record["error"].is_null();
        if let Some(reference) = record["Ref"].as_str().filter(|_| is_complete) {
            records.insert(reference, record);
        }
    }
    let mut builds = BTreeMap::new();
    for record in records.values() {
        let exporters = record["Exporters"].as_array().into_iter().flatten();
        let names = exporters.filter_map(|exporter| exporter["Attrs"]["name"].as_str());
        for name in names.flat_map(|names| names.split(',')) {
            *builds.entry(name.to_owned()).or_default() += 1;
        }
    }
    builds
}

fn text_or_empty(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(reference: &str, names: &str, error: Value, completed: Value) -> Value {
        json!({ "record": {
            "Ref": reference, "error": error, "CompletedAt": completed,
            "Exporters": [{ "Type": "image", "Attrs": { "name": names } }],
        } })
    }

    #[test]
    fn builds_are_counted_by_image_and_only_if_they_completed_without_an_error() {
        let done = json!({ "seconds": 1 });
        let events = [
            event("one", "registry/a:1", Value::Null, done.clone()),
            event("one", "registry/a:1", Value::Null, done.clone()),
            event("two", "registry/a:1,registry/a:latest", Value::Null, done.clone()),
            event("failed", "registry/a:1", json!({ "code": 2 }), done),
            event("running", "registry/a:1", Value::Null, Value::Null),
            json!({ "type": 3 }),
        ];
        let builds = successful_build_counts_by_image(&events);
        assert_eq!(builds.get("registry/a:1"), Some(&2), "{builds:?}");
        assert_eq!(builds.get("registry/a:latest"), Some(&1), "{builds:?}");
    }

    #[test]
    fn a_submission_is_superseded_only_if_a_newer_version_was_deployed() {
        let evidence = |version, deployments| SubmissionEvidence {
            function: "a".to_owned(),
            version,
            deployments,
            is_accepted: true,
            is_superseded: version == 1,
            ..SubmissionEvidence::default()
        };
        let mut proved = [evidence(1, 0), evidence(2, 1)];
        distrust_unproved_supersession(&mut proved);
        assert_eq!(proved[0].verdict(), SubmissionVerdict::Superseded);
        let mut unproved = [evidence(1, 0), evidence(2, 0)];
        distrust_unproved_supersession(&mut unproved);
        assert_eq!(unproved[0].verdict(), SubmissionVerdict::Lost);
    }

    #[test]
    fn a_call_that_a_builder_accepted_and_did_not_finish_is_lost_and_not_spent() {
        let evidence = SubmissionEvidence::default();
        assert_eq!(evidence.verdict(), SubmissionVerdict::Spent);
        let accepted = SubmissionEvidence {
            is_accepted: true,
            ..evidence
        };
        assert_eq!(accepted.verdict(), SubmissionVerdict::Lost);
        let built = SubmissionEvidence {
            digest: Some("sha256:1".to_owned()),
            builds: 1,
            ..accepted
        };
        assert_eq!(built.verdict(), SubmissionVerdict::Lost, "it is not deployed");
        let superseded = SubmissionEvidence {
            is_superseded: true,
            ..built.clone()
        };
        assert_eq!(superseded.verdict(), SubmissionVerdict::Superseded);
        let deployed = SubmissionEvidence {
            deployments: 1,
            ..built
        };
        assert_eq!(deployed.verdict(), SubmissionVerdict::Finished);
        assert!(!deployed.is_built_more_than_once() && !deployed.is_changed_to_more_than_once());
    }
}
