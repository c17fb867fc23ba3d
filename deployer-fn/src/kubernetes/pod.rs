//! What keeps a pod from being available, by its status and its events.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Event, Pod};

use super::assessment::{DetailToRead, Obstacle, VersionState, VersionStateAndDetailToRead};
use crate::outcome::FaultyParty;
use crate::text::as_bounded_line;

/// Texts in a kubelet's message on a pull that say that the registry has no such image for this node.
const MISSING_IMAGE_TEXTS: [&str; 4] = [
    "not found",
    "manifest unknown",
    "name unknown",
    "no match for platform",
];

/// Texts in a kubelet's message on a pull that say that the registry does not let the node read the image.
const DENIED_PULL_TEXTS: [&str; 4] = ["unauthorized", "denied", "forbidden", "authorization failed"];

/// Texts in a kubelet's message on a start that say that the same start would fail again. Others may pass, such as a
/// node that is too busy.
const LASTING_START_FAILURES: [&str; 6] = [
    "not found",
    "couldn't find key",
    "no such file or directory",
    "permission denied",
    "exec format error",
    "is not a directory",
];

/// The beginning of a kubelet's message on a failed liveness probe. After some, it ends the container.
const LIVENESS_FAILURE_PREFIX: &str = "Liveness probe failed";

/// Returns what keeps a pod from being available. The pod is not ready, and is not being deleted.
pub(super) fn assess_unready_pod(pod: &Pod) -> VersionStateAndDetailToRead {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    let unscheduled =
        conditions.find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(condition) = unscheduled {
        let message = as_bounded_line(condition.message.as_deref().unwrap_or_default());
        let reason = format!("no node takes the pod: {message}");
        return VersionStateAndDetailToRead::pending(Obstacle::of_platform(reason));
    }
    let containers = status.into_iter().flat_map(|status| {
        let init = status.init_container_statuses.iter().flatten();
        init.chain(status.container_statuses.iter().flatten())
    });
    let problems = containers.filter(|container| !container.ready);
    let problem = problems
        .filter_map(|container| assess_unready_container(pod, container))
        .next();
    problem.unwrap_or_else(|| {
        let phase = status.and_then(|status| status.reason.as_deref().or(status.phase.as_deref()));
        let reason = match phase {
            Some("Running") => "the pod runs and is not ready".to_owned(),
            Some(phase) => format!("the pod is not ready ({})", as_bounded_line(phase)),
            None => "the pod is not ready".to_owned(),
        };
        VersionStateAndDetailToRead::pending(Obstacle::of_unknown_fault(reason))
            .with_detail(events_to_read(pod))
    })
}

/// Returns what keeps a container from being ready; `None` if its status gives no reason.
fn assess_unready_container(pod: &Pod, container: &ContainerStatus) -> Option<VersionStateAndDetailToRead> {
    let state = container.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref()?;
        let message = as_bounded_line(waiting.message.as_deref().unwrap_or_default());
        return match reason {
            "ErrImagePull" | "ImagePullBackOff" | "RegistryUnavailable" => Some(
                assess_pull_failure_by_message(pod, &as_bounded_line(&container.image), &message),
            ),
            "InvalidImageName" | "ErrImageNeverPull" => {
                Some(VersionStateAndDetailToRead::stuck(Obstacle::of_caller(format!(
                    "the image {} cannot be pulled: {reason}: {message}",
                    container.image
                ))))
            }
            "CreateContainerConfigError" | "RunContainerError" if start_failure_lasts(&message) => {
                Some(VersionStateAndDetailToRead::stuck(Obstacle::of_caller(format!(
                    "the container cannot be started: {reason}: {message}"
                ))))
            }
            "CrashLoopBackOff" => Some(assess_crash_loop(pod, container)),
            "ContainerCreating" | "PodInitializing" => None,
            _ => Some(VersionStateAndDetailToRead::pending(Obstacle::of_unknown_fault(
                format!("the container waits: {reason}: {message}"),
            ))),
        };
    }
    if state.terminated.is_some() && container.restart_count > 0 {
        return Some(assess_crash_loop(pod, container));
    }
    let ended = state.terminated.as_ref().map(|ended| (ended, false));
    let ended = ended.or_else(|| Some((termination_of_previous_run(container)?, true)));
    let (ended, has_restarted) = ended?;
    let reason = match has_restarted {
        true => format!(
            "the container {}, and was started again",
            describe_container_end(pod, container, ended)
        ),
        false => format!("the container {}", describe_container_end(pod, container, ended)),
    };
    let log = log_to_read(pod, container, has_restarted, Some(ended));
    Some(VersionStateAndDetailToRead::pending(Obstacle::of_caller(reason)).with_detail(log))
}

fn assess_pull_failure_by_message(pod: &Pod, image: &str, message: &str) -> VersionStateAndDetailToRead {
    let reason = format!("the image {image} cannot be pulled: {message}");
    // Without names of images and addresses, which may have any word in them.
    let words = message.split(' ').filter(|word| !word.contains('/'));
    let text = words.collect::<Vec<_>>().join(" ").to_lowercase();
    let says = |texts: &[&str]| texts.iter().any(|known| text.contains(known));
    match () {
        () if says(&MISSING_IMAGE_TEXTS) => VersionStateAndDetailToRead::stuck(Obstacle::of_caller(reason)),
        // The node's credentials may have expired.
        () if says(&DENIED_PULL_TEXTS) => VersionStateAndDetailToRead::stuck(Obstacle::of_platform(reason)),
        // Before Kubernetes 1.32, the cause is in an event only.
        () => VersionStateAndDetailToRead::pending(Obstacle::of_platform(reason))
            .with_detail(events_to_read(pod)),
    }
}

/// Returns whether a kubelet's message on a start says that the same start would fail again.
fn start_failure_lasts(message: &str) -> bool {
    LASTING_START_FAILURES.iter().any(|text| message.contains(text))
}

fn assess_crash_loop(pod: &Pod, container: &ContainerStatus) -> VersionStateAndDetailToRead {
    let state = container.state.as_ref();
    let now = state.and_then(|state| state.terminated.as_ref());
    let ended = now.or_else(|| termination_of_previous_run(container));
    let end = match ended {
        Some(ended) => describe_container_end(pod, container, ended),
        None => "does not stay up".to_owned(),
    };
    let reason = format!(
        "the container {end}, and was started {} times",
        i64::from(container.restart_count) + 1
    );
    let log = log_to_read(pod, container, now.is_none(), ended);
    VersionStateAndDetailToRead::stuck(Obstacle::of_caller(reason)).with_detail(log)
}

fn termination_of_previous_run(container: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    let last: &ContainerState = container.last_state.as_ref()?;
    last.terminated.as_ref()
}

/// Returns how a container ended, as the rest of a sentence.
fn describe_container_end(
    pod: &Pod,
    container: &ContainerStatus,
    ended: &ContainerStateTerminated,
) -> String {
    if ended.reason.as_deref() == Some("OOMKilled") {
        let limit = memory_limit_phrase(pod, &container.name).unwrap_or_default();
        return format!("was ended because it needed more memory than its limit{limit}");
    }
    let message = ended
        .message
        .as_deref()
        .map(as_bounded_line)
        .filter(|text| !text.is_empty());
    let message = message.map(|text| format!(" ({text})")).unwrap_or_default();
    match (ended.signal, ended.exit_code) {
        (Some(signal), _) if signal > 0 => format!("was ended by signal {signal}{message}"),
        // A shell reports the signal so.
        (_, code) if code > 128 => format!("ended with exit code {code}, signal {}{message}", code - 128),
        (_, code) => format!("ended with exit code {code}{message}"),
    }
}

fn memory_limit_phrase(pod: &Pod, container: &str) -> Option<String> {
    let mut containers = pod.spec.as_ref()?.containers.iter();
    let container = containers.find(|other| other.name == container)?;
    let limits = container.resources.as_ref()?.limits.as_ref()?;
    Some(format!(" of {}", limits.get("memory")?.0))
}

fn events_to_read(pod: &Pod) -> Option<DetailToRead> {
    let uid = pod.metadata.uid.clone()?;
    Some(DetailToRead::EventsOf { uid })
}

fn log_to_read(
    pod: &Pod,
    container: &ContainerStatus,
    previous: bool,
    ended: Option<&ContainerStateTerminated>,
) -> Option<DetailToRead> {
    Some(DetailToRead::LogOf {
        pod: pod.metadata.name.clone()?,
        container: container.name.clone(),
        previous,
        uid_if_probe_may_have_failed: match ended {
            Some(ended) if may_have_been_ended_by_kubelet(ended) => pod.metadata.uid.clone(),
            _ => None,
        },
    })
}

/// Returns whether a container ended as one does that the kubelet ends: after SIGTERM, in order or by the signal, or by
/// SIGKILL.
fn may_have_been_ended_by_kubelet(ended: &ContainerStateTerminated) -> bool {
    let signals = [9, 15];
    let signal = ended.signal.filter(|signal| *signal > 0);
    let signal = signal.or((ended.exit_code > 128).then_some(ended.exit_code - 128));
    let in_order = signal.is_none() && ended.exit_code == 0;
    let is_out_of_memory = ended.reason.as_deref() == Some("OOMKilled");
    !is_out_of_memory && (in_order || signal.is_some_and(|signal| signals.contains(&signal)))
}

/// Returns the message of the latest warning among the events of a pod; `None` if there is none.
pub(super) fn latest_warning_message(events: &[Event]) -> Option<String> {
    latest_warning_message_with_prefix(events, "")
}

/// Returns the message of the latest failure of a liveness probe among the events of a pod; `None` if there is none.
pub(super) fn latest_failure_of_liveness_probe(events: &[Event]) -> Option<String> {
    latest_warning_message_with_prefix(events, LIVENESS_FAILURE_PREFIX)
}

fn latest_warning_message_with_prefix(events: &[Event], prefix: &str) -> Option<String> {
    let warnings = events.iter().filter(|event| {
        let message = event.message.as_deref().unwrap_or_default();
        event.type_.as_deref() == Some("Warning") && message.starts_with(prefix)
    });
    let latest = warnings.max_by_key(|event| {
        let last = event.last_timestamp.as_ref().map(|time| time.0);
        last.or(event.event_time.as_ref().map(|time| time.0))
    })?;
    let message = as_bounded_line(latest.message.as_deref()?);
    (!message.is_empty()).then_some(message)
}

impl VersionStateAndDetailToRead {
    fn pending(obstacle: Obstacle) -> Self {
        Self {
            state: VersionState::Pending(obstacle),
            detail: None,
        }
    }

    fn stuck(obstacle: Obstacle) -> Self {
        Self {
            state: VersionState::Stuck(obstacle),
            detail: None,
        }
    }

    fn with_detail(self, detail: Option<DetailToRead>) -> Self {
        Self { detail, ..self }
    }
}

impl Obstacle {
    fn of_caller(reason: String) -> Self {
        Self {
            fault: Some(FaultyParty::Caller),
            reason,
        }
    }

    pub(super) fn of_platform(reason: String) -> Self {
        Self {
            fault: Some(FaultyParty::Platform),
            reason,
        }
    }
}
