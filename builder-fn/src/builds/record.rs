//! What is known of one build.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::buildkit::{BuildState, ListedBuild, StepCounts};
use crate::request::time::format_rfc3339_nanos;
use crate::versions::Rollback;

/// The number of attempts that a process counts for one that stopped without recording its own: more than it can have
/// begun.
pub(super) const ATTEMPTS_OF_PROCESS_MAX: u32 = 16;

/// The state of a build, in the words of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BuildPhase {
    /// The request was accepted, and the build has no slot yet.
    Waiting,
    /// BuildKit builds the image.
    Running,
    /// The image is handed over to the deployer, whose answer is not there yet.
    Deploying,
    /// The build succeeded.
    Success,
    /// The request was rejected, or the build or its deployment failed.
    Failed,
    /// The build was cancelled.
    Cancelled,
    /// The build began, and what became of it or of its deployment is not known.
    Unknown,
}

impl BuildPhase {
    /// Returns whether the build is known to have ended.
    pub(crate) fn is_terminal(self) -> bool {
        matches!(self, Self::Success | Self::Failed | Self::Cancelled)
    }

    /// Returns the word for the state in the API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Deploying => "deploying",
            Self::Success => "success",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown",
        }
    }
}

/// What is known of one build.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BuildRecord {
    /// The ID of the call that the build belongs to.
    pub(crate) id: String,
    /// The state of the build.
    pub(crate) phase: BuildPhase,
    /// The image's name: as the caller wrote it in a record of this process, and in full in one from the history.
    pub(crate) image: Option<String>,
    /// The function that the build deploys, `NAME.NAMESPACE`.
    pub(crate) function: Option<String>,
    /// The time at which the source was submitted.
    pub(crate) submitted_at: Option<SystemTime>,
    /// The time at which the first attempt began.
    pub(crate) started_at: Option<SystemTime>,
    /// The time at which the build ended.
    pub(crate) ended_at: Option<SystemTime>,
    /// The number of times that the build was begun.
    pub(crate) attempts: u32,
    /// The counts of the steps of the last attempt.
    pub(crate) steps: Option<StepCounts>,
    /// The size of the tar with the context as it was received, in bytes; `None` if the request refers to its context.
    #[serde(default)]
    pub(crate) context_bytes: Option<u64>,
    /// The outcome: the fields of the answer to the build request, without its log, status, image, duration and page.
    pub(crate) outcome: Map<String, Value>,
    /// The reference of the build at BuildKit, without the number of an attempt.
    pub(crate) reference: Option<String>,
    /// What a rollback goes back to; `None` for a build.
    #[serde(default)]
    pub(crate) rollback: Option<Rollback>,
    /// The log of a rollback. That of a build is at BuildKit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) log: Vec<String>,
}

impl BuildRecord {
    /// Creates the record of a request that was just accepted.
    pub(crate) fn accepted(id: &str, submitted_at: SystemTime) -> Self {
        Self {
            id: id.to_owned(),
            phase: BuildPhase::Waiting,
            image: None,
            function: None,
            submitted_at: Some(submitted_at),
            started_at: None,
            ended_at: None,
            attempts: 0,
            steps: None,
            context_bytes: None,
            outcome: Map::new(),
            reference: None,
            rollback: None,
            log: Vec::new(),
        }
    }

    /// Returns how long the build took, or has taken at the time `now` if it goes on; `None` if it has not begun, or if
    /// its end is not known.
    pub(crate) fn time_from_first_attempt_to_end_or_now(&self, now: SystemTime) -> Option<Duration> {
        let until = match self.phase {
            BuildPhase::Waiting | BuildPhase::Running | BuildPhase::Deploying => now,
            BuildPhase::Success | BuildPhase::Failed | BuildPhase::Cancelled | BuildPhase::Unknown => {
                self.ended_at?
            }
        };
        Some(until.duration_since(self.started_at?).unwrap_or_default())
    }

    /// Creates the record of a call's build from its attempts in BuildKit's history, in the order in which they began;
    /// `None` without attempts. `is_cancellation_requested` says whether somebody asked to cancel it.
    pub(crate) fn from_history(
        id: &str,
        attempts: &[ListedBuild],
        is_cancellation_requested: bool,
    ) -> Option<Self> {
        let last = deciding_attempt(attempts)?;
        let lasts = last_attempts_of_parts(attempts);
        let is_split = part_in_attempt_name(&last.reference).is_some();
        let function = last.attributes.function.as_ref();
        let phase = match last.state {
            BuildState::Running => BuildPhase::Running,
            BuildState::Failed if last.is_cancelled && is_cancellation_requested => BuildPhase::Cancelled,
            BuildState::Failed => BuildPhase::Failed,
            // Nor the index of the parts.
            BuildState::Succeeded if is_split => BuildPhase::Unknown,
            // The history does not have the deployment.
            BuildState::Succeeded if function.is_some() => BuildPhase::Unknown,
            BuildState::Succeeded => BuildPhase::Success,
        };
        let mut outcome = Map::new();
        if let Some(digest) = last
            .digest
            .as_ref()
            .filter(|digest| !digest.is_empty() && !is_split)
        {
            outcome.insert("digest".into(), json!(digest));
        }
        if let Some(commit) = &last.attributes.commit {
            outcome.insert("commit".into(), json!(commit));
        }
        match (&last.error, phase) {
            (_, BuildPhase::Cancelled) => {
                outcome.insert("error".into(), json!("cancelled"));
            }
            (Some(_), _) if last.is_cancelled => {
                let error = "the build was given up: its caller disconnected, a newer build replaced it, or its builder stopped";
                outcome.insert("error".into(), json!(error));
            }
            (Some(error), _) => {
                outcome.insert("error".into(), json!(error));
            }
            (None, BuildPhase::Unknown) if is_split => {
                let error = "the images of all platforms were built, and BuildKit's history does not say whether they were \
                             joined to one image";
                outcome.insert("error".into(), json!(error));
            }
            (None, BuildPhase::Unknown) => {
                let error =
                    "the image was built, and BuildKit's history does not say what became of its deployment";
                outcome.insert("error".into(), json!(error));
            }
            (None, _) => {}
        }
        Some(Self {
            id: id.to_owned(),
            phase,
            image: last.image.clone(),
            function: function.map(|function| function.without_tenant()),
            submitted_at: Some(last.attributes.submitted_at),
            started_at: attempts.iter().filter_map(|attempt| attempt.started_at).min(),
            ended_at: lasts.iter().map(|attempt| attempt.ended_at).max().flatten(),
            attempts: known_attempt_count(attempts),
            steps: (last.state != BuildState::Running)
                .then(|| lasts.iter().map(|attempt| attempt.steps).sum()),
            context_bytes: None,
            outcome,
            reference: Some(base_reference(&last.reference).to_owned()),
            rollback: None,
            log: Vec::new(),
        })
    }

    /// Returns whether the build succeeded.
    pub(crate) fn is_success(&self) -> bool {
        self.phase == BuildPhase::Success
    }

    /// Converts the record to the answer of `GET /builds/ID`.
    pub(crate) fn to_json(&self) -> Value {
        let mut answer = self.outcome.clone();
        let mut set = |key: &str, value: Value| answer.insert(key.to_owned(), value);
        set("id", json!(self.id));
        set("state", json!(self.phase));
        set("attempts", json!(self.attempts));
        if let Some(image) = &self.image {
            set("image", json!(image));
        }
        if let Some(function) = &self.function {
            set("function", json!(function));
        }
        if let Some(rollback) = &self.rollback {
            set("rollback", json!(rollback));
        }
        for (key, time) in [
            ("submittedAt", self.submitted_at),
            ("startedAt", self.started_at),
            ("endedAt", self.ended_at),
        ] {
            if let Some(time) = time {
                set(key, json!(format_rfc3339_nanos(time)));
            }
        }
        if let Some(StepCounts {
            total,
            completed,
            cached,
        }) = self.steps
        {
            set(
                "steps",
                json!({"total": total, "completed": completed, "cached": cached}),
            );
        }
        if let Some(bytes) = self.context_bytes {
            set("context", json!({"bytes": bytes}));
        }
        Value::Object(answer)
    }

    /// Converts the record of an ended build to the terminal record of its log, with the number `seq`.
    pub(crate) fn to_terminal_record(&self, seq: u64) -> Map<String, Value> {
        let mut record = self.outcome.clone();
        record.insert("seq".into(), json!(seq));
        if let Some(image) = &self.image {
            record.insert("image".into(), json!(image));
        }
        if let Some(rollback) = &self.rollback {
            record.insert("rollback".into(), json!(rollback));
        }
        let status = match self.phase {
            BuildPhase::Success => "success",
            _ => "failed",
        };
        record.insert("status".into(), json!(status));
        let took = self.started_at.zip(self.ended_at);
        let took = took.and_then(|(started, ended)| ended.duration_since(started).ok());
        record.insert(
            "duration".into(),
            json!((took.unwrap_or_default().as_secs_f64() * 1000.0).round() / 1000.0),
        );
        record
    }
}

/// Returns the reference of a build, from the name of one of its attempts.
pub(crate) fn base_reference(attempt_name: &str) -> &str {
    attempt_name
        .split_once('-')
        .map_or(attempt_name, |(base, _)| base)
}

/// Returns the number of an attempt, from 1: that which its builder has given it, or else that in its name.
pub(crate) fn attempt_number_by_attribute_or_name(attempt: &ListedBuild) -> u64 {
    match attempt.attributes.attempt {
        Some(number) => number.into(),
        None => number_in_attempt_name(&attempt.reference),
    }
}

/// The distance between the numbers of the first log sections of two parts: more than the attempts of one can have.
const LOG_SECTIONS_PER_PART: u64 = 1000;

/// Returns the number of the section of a build's log that an attempt has, from 1: the attempts of the first part of a
/// split build come first, then those of the second one. Without parts, it is the number of the attempt.
pub(crate) fn log_section(attempt: &ListedBuild) -> u64 {
    let part = part_in_attempt_name(&attempt.reference).unwrap_or(1);
    let number = attempt_number_by_attribute_or_name(attempt);
    (part - 1) * LOG_SECTIONS_PER_PART + number.min(LOG_SECTIONS_PER_PART - 1)
}

/// Returns whether an attempt is of a later part of a split build than the first `attempts`, which have not all been
/// successful in the end.
pub(crate) fn follows_unfinished_part(attempt: &ListedBuild, attempts: &[ListedBuild]) -> bool {
    let part = |attempt: &ListedBuild| part_in_attempt_name(&attempt.reference).unwrap_or(1);
    let own = part(attempt);
    let lasts = last_attempts_of_parts(attempts);
    (1..own).any(|earlier| {
        let last = lasts.iter().find(|last| part(last) == earlier);
        last.is_none_or(|last| last.state != BuildState::Succeeded)
    })
}

/// Returns the attempt whose end is that of the build, among those in the order of their logs: of the last ones of each
/// part, one that runs, or else the one that failed first, if not because another one did, or else the last one.
pub(crate) fn deciding_attempt(attempts: &[ListedBuild]) -> Option<&ListedBuild> {
    let lasts = last_attempts_of_parts(attempts);
    let find = |is_wanted: &dyn Fn(&ListedBuild) -> bool| {
        let found = lasts.iter().filter(|attempt| is_wanted(attempt));
        found.min_by_key(|attempt| attempt.ended_at).copied()
    };
    find(&|attempt| attempt.state == BuildState::Running)
        .or_else(|| find(&|attempt| attempt.state == BuildState::Failed && !attempt.is_cancelled))
        .or_else(|| find(&|attempt| attempt.state == BuildState::Failed))
        .or(lasts.last().copied())
}

/// Returns the last attempt of each part of a build, or the last one if it is not split, in the order of their logs.
pub(crate) fn last_attempts_of_parts(attempts: &[ListedBuild]) -> Vec<&ListedBuild> {
    let mut lasts: Vec<&ListedBuild> = Vec::new();
    for attempt in attempts {
        let part = part_in_attempt_name(&attempt.reference);
        match lasts.last_mut() {
            Some(last) if part_in_attempt_name(&last.reference) == part => *last = attempt,
            _ => lasts.push(attempt),
        }
    }
    lasts
}

/// Returns the number of a build's attempts that are known of: at least those in the history, which lacks those during
/// which BuildKit was killed. One builder numbers its attempts without a gap, and those that resume its build go on
/// beyond [`ATTEMPTS_OF_PROCESS_MAX`].
fn known_attempt_count(attempts: &[ListedBuild]) -> u32 {
    let numbers = attempts
        .iter()
        .filter_map(|attempt| u32::try_from(attempt_number_by_attribute_or_name(attempt)).ok());
    let counted = numbers.filter(|number| *number <= ATTEMPTS_OF_PROCESS_MAX).max();
    let of_part = |part: &ListedBuild| {
        let part = part_in_attempt_name(&part.reference);
        let attempts = attempts.iter();
        attempts
            .filter(|attempt| part_in_attempt_name(&attempt.reference) == part)
            .count()
    };
    let listed = attempts.iter().map(of_part).max().unwrap_or_default();
    counted
        .unwrap_or_default()
        .max(u32::try_from(listed).unwrap_or(u32::MAX))
}

/// Returns the number in the name of an attempt, from 1.
fn number_in_attempt_name(attempt_name: &str) -> u64 {
    let number = attempt_name
        .rsplit_once('-')
        .and_then(|(_, number)| number.parse().ok());
    number.filter(|number| *number > 0).unwrap_or(1)
}

/// Returns the number of the part of a split build that an attempt is of, from 1; `None` if the build is not split.
fn part_in_attempt_name(attempt_name: &str) -> Option<u64> {
    let (_, rest) = attempt_name.split_once('-')?;
    let part = rest.split_once('-').map_or(rest, |(part, _)| part);
    part.strip_prefix('p')?.parse().ok().filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buildkit::{Daemon, DaemonAddress, SealedSecrets, SolveAttributes};

    #[test]
    fn a_build_takes_time_until_its_end_or_until_now_while_it_goes_on_and_an_unknown_end_is_not_now() {
        use BuildPhase::{Cancelled, Deploying, Failed, Running, Success, Unknown, Waiting};
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for (phase, started, ended, taken) in [
            (Waiting, None, None, None),
            (Running, Some(10), None, Some(90)),
            (Deploying, Some(10), Some(20), Some(90)),
            (Success, Some(10), Some(20), Some(10)),
            (Failed, None, Some(20), None),
            (Cancelled, Some(10), Some(20), Some(10)),
            (Unknown, Some(10), Some(20), Some(10)),
            (Unknown, Some(10), None, None),
        ] {
            let record = BuildRecord {
                phase,
                started_at: started.map(at),
                ended_at: ended.map(at),
                ..BuildRecord::accepted("a", at(0))
            };
            let expected = taken.map(Duration::from_secs);
            assert_eq!(
                record.time_from_first_attempt_to_end_or_now(at(100)),
                expected,
                "{phase:?} {ended:?}"
            );
        }
    }

    /// Returns an attempt of a build in a daemon's history.
    fn listed(reference: &str, state: BuildState, ended_at: u64) -> ListedBuild {
        let attributes = SolveAttributes {
            call_id: "a".into(),
            signature: None,
            tenant: None,
            submitted_at: SystemTime::UNIX_EPOCH,
            function: None,
            supersede: true,
            commit: None,
            attempt: None,
        };
        let is_failed = state == BuildState::Failed;
        ListedBuild {
            daemon: Daemon::at(DaemonAddress::Unix("/socket".into())),
            reference: reference.into(),
            attributes,
            image: None,
            state,
            is_cancelled: false,
            error: is_failed.then(|| format!("the error of {reference}")),
            digest: (state == BuildState::Succeeded).then(|| format!("sha256:{reference}")),
            started_at: Some(SystemTime::UNIX_EPOCH),
            ended_at: (state != BuildState::Running)
                .then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(ended_at)),
            steps: StepCounts {
                total: 2,
                completed: 1,
                cached: 1,
            },
            secrets: SealedSecrets::None,
        }
    }

    fn record_of(attempts: &[ListedBuild]) -> BuildRecord {
        BuildRecord::from_history("a", attempts, false).expect("attempts")
    }

    #[test]
    fn a_split_build_runs_while_a_part_does_and_fails_by_the_part_that_failed_itself() {
        use BuildState::{Failed, Running, Succeeded};
        let cancelled = |reference: &str, ended_at| ListedBuild {
            is_cancelled: true,
            ..listed(reference, Failed, ended_at)
        };
        let running = [listed("0a-p1", Succeeded, 3), listed("0a-p2", Running, 0)];
        assert_eq!(record_of(&running).phase, BuildPhase::Running);

        let failed = [cancelled("0a-p1", 5), listed("0a-p2", Failed, 6)];
        let record = record_of(&failed);
        assert_eq!(record.phase, BuildPhase::Failed);
        assert_eq!(record.outcome["error"], "the error of 0a-p2");

        let retried = [
            listed("0a-p1", Failed, 1),
            listed("0a-p1-2", Succeeded, 4),
            listed("0a-p2", Succeeded, 3),
        ];
        let record = record_of(&retried);
        assert_eq!(
            (record.phase, record.attempts, record.outcome.get("digest")),
            (BuildPhase::Unknown, 2, None),
            "the index is in no history"
        );
        assert_eq!(record.steps.expect("steps").total, 4);
        assert_eq!(record.ended_at, retried[1].ended_at);
        assert_eq!(record.reference.as_deref(), Some("0a"));
    }

    #[test]
    fn the_log_of_a_split_build_has_the_attempts_of_one_part_after_those_of_the_other() {
        use BuildState::{Failed, Running, Succeeded};
        let attempts = [
            listed("0a-p1", Failed, 1),
            listed("0a-p1-2", Succeeded, 2),
            listed("0a-p2", Running, 0),
        ];
        let sections: Vec<_> = attempts.iter().map(log_section).collect();
        assert_eq!(sections, [1, 2, 1001]);
        assert_eq!(log_section(&listed("0a-3", Running, 0)), 3);
        for (known, waits) in [
            (&attempts[..1], true),
            (&attempts[..2], false),
            (&attempts[2..], true),
        ] {
            assert_eq!(follows_unfinished_part(&attempts[2], known), waits);
        }
        assert!(!follows_unfinished_part(&attempts[1], &attempts));
    }

    #[test]
    fn an_attempts_name_has_the_builds_reference_and_the_attempts_number() {
        for (name, base, part, number) in [
            ("0a1b", "0a1b", None, 1),
            ("0a1b-2", "0a1b", None, 2),
            ("0a1b-16", "0a1b", None, 16),
            ("0a1b-p1", "0a1b", Some(1), 1),
            ("0a1b-p12-3", "0a1b", Some(12), 3),
        ] {
            let found = (
                base_reference(name),
                part_in_attempt_name(name),
                number_in_attempt_name(name),
            );
            assert_eq!(found, (base, part, number));
        }
    }
}
