//! The logs of a function: those of all its pods, which the kubelet keeps.

use std::collections::HashSet;

use futures_util::{AsyncBufReadExt, Stream, StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{ListParams, LogParams},
    runtime::{WatchStreamExt, watcher},
};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};

use super::{ClusterFunctions, FUNCTION_LABEL};
use crate::{
    error::{KubernetesOperation as Operation, ProviderError},
    logs::LogMessage,
};

/// The age of the oldest log line if a query has neither a time nor a number of lines.
const DEFAULT_LOG_AGE: SignedDuration = SignedDuration::from_mins(5);

/// A namespace that is replaced by the functions' one.
const SYSTEM_NAMESPACE: &str = "kube-system";

/// A query for the log lines of a function's pods.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PodLogQuery {
    pub(crate) function: String,
    /// The namespace of the pods; empty for the functions' one.
    pub(crate) namespace: String,
    /// The time of the oldest log line to return.
    pub(crate) since: Option<Timestamp>,
    /// The number of existing lines to return of each pod, from the end; 0 for all.
    pub(crate) tail: i64,
    /// Whether to wait for more log lines and more pods.
    pub(crate) follow: bool,
}

impl ClusterFunctions {
    /// Starts to read the logs of a function's pods, and returns the channel that gets their lines; it ends after the
    /// last one, or, if the query follows the logs, at the deadline or when the receiver is dropped. Fails if there are
    /// no pods.
    pub(crate) async fn stream_pod_logs_or_fail_without_pods(
        &self,
        query: PodLogQuery,
        deadline: Instant,
    ) -> Result<mpsc::Receiver<LogMessage>, ProviderError> {
        let namespace = match query.namespace.as_str() {
            "" => &self.settings().function_namespace,
            given if given.eq_ignore_ascii_case(SYSTEM_NAMESPACE) => &self.settings().function_namespace,
            given => given,
        };
        let pods: Api<Pod> = Api::namespaced(self.0.client.clone(), namespace);
        let selector = format!("{FUNCTION_LABEL}={}", query.function);
        let existing = pods
            .list(&ListParams::default().labels(&selector))
            .await
            .map_err(ProviderError::kubernetes(Operation::ListPods, &query.function))?;
        if existing.items.is_empty() {
            return Err(ProviderError::NoInstances(query.function));
        }
        let (sender, receiver) = mpsc::channel(64);
        let existing = existing.items.into_iter().filter_map(|pod| pod.metadata.name);
        let parameters = log_parameters(&query, Timestamp::now());
        let names = pod_names(&pods, existing.collect(), query.follow.then_some(selector));
        let sent = send_logs_of_pods(pods, names.boxed(), query.function, parameters, sender.clone());
        tokio::spawn(async move {
            tokio::select! {
                _ = tokio::time::timeout_at(deadline, sent) => {}
                () = sender.closed() => {}
            }
        });
        Ok(receiver)
    }
}

/// Returns the parameters of the request for one pod's log. The container has the name of the function.
fn log_parameters(query: &PodLogQuery, now: Timestamp) -> LogParams {
    let tail_lines = (query.tail > 0).then_some(query.tail);
    let default_since = || now.checked_sub(DEFAULT_LOG_AGE).unwrap_or(now);
    let since = match query.since {
        None if tail_lines.is_some() => None,
        since => Some(since.unwrap_or_else(default_since)),
    };
    LogParams {
        container: Some(query.function.clone()),
        follow: query.follow,
        since_seconds: since.map(|since| now.duration_since(since).as_secs()),
        tail_lines,
        timestamps: true,
        ..LogParams::default()
    }
}

/// Returns the names of existing pods, and, with a selector, of those that are created later.
fn pod_names(
    pods: &Api<Pod>,
    existing: Vec<String>,
    selector: Option<String>,
) -> impl Stream<Item = String> + Send + use<> {
    let pods = pods.clone();
    let later = stream::iter(selector).flat_map(move |selector| {
        watcher(pods.clone(), watcher::Config::default().labels(&selector))
            .default_backoff()
            .applied_objects()
            .filter_map(async |pod| pod.ok()?.metadata.name)
            .boxed()
    });
    stream::iter(existing).chain(later)
}

/// Sends the lines of every pod, each once, until all logs have ended.
async fn send_logs_of_pods(
    pods: Api<Pod>,
    mut names: stream::BoxStream<'static, String>,
    function: String,
    parameters: LogParams,
    sender: mpsc::Sender<LogMessage>,
) {
    let mut readers = JoinSet::new();
    let mut seen = HashSet::new();
    while let Some(pod) = names.next().await {
        if !seen.insert(pod.clone()) {
            continue;
        }
        let (pods, function, parameters, sender) =
            (pods.clone(), function.clone(), parameters.clone(), sender.clone());
        readers.spawn(async move {
            if let Err(error) = send_log_of_pod(&pods, &pod, &function, &parameters, &sender).await {
                tracing::warn!(
                    pod,
                    error = &error as &dyn std::error::Error,
                    "cannot read the log of a pod"
                );
            }
        });
    }
    readers.join_all().await;
}

/// Sends the lines of one pod's log. A line keeps its line feed.
async fn send_log_of_pod(
    pods: &Api<Pod>,
    pod: &str,
    function: &str,
    parameters: &LogParams,
    sender: &mpsc::Sender<LogMessage>,
) -> Result<(), ProviderError> {
    let log = pods
        .log_stream(pod, parameters)
        .await
        .map_err(ProviderError::kubernetes(Operation::ReadLog, pod))?;
    let mut lines = std::pin::pin!(log.lines());
    while let Some(line) = lines
        .try_next()
        .await
        .map_err(ProviderError::io_error("read the log of", pod))?
    {
        let Some((timestamp, text)) = parse_log_line(&line) else {
            continue;
        };
        let message = LogMessage {
            name: function.to_owned(),
            namespace: String::new(),
            instance: pod.to_owned(),
            timestamp,
            text: format!("{text}\n"),
        };
        if sender.send(message).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Splits a line of a log into its time and its text; returns `None` if it does not begin with a time.
fn parse_log_line(line: &str) -> Option<(Timestamp, &str)> {
    let (time, text) = line.split_once(' ').unwrap_or((line, ""));
    Some((time.parse().ok()?, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters_of_query(since: Option<&str>, tail: i64) -> LogParams {
        let query = PodLogQuery {
            function: "hello".into(),
            namespace: String::new(),
            since: since.map(|since| since.parse().unwrap()),
            tail,
            follow: false,
        };
        log_parameters(&query, "2025-01-01T12:00:00Z".parse().unwrap())
    }

    #[test]
    fn only_a_query_without_time_and_number_of_lines_asks_for_the_last_five_minutes() {
        for (since, tail, expected) in [
            (None, 0, (Some(300), None)),
            (None, -1, (Some(300), None)),
            (None, 7, (None, Some(7))),
            (Some("2025-01-01T11:59:00Z"), 0, (Some(60), None)),
            (Some("2025-01-01T11:59:00Z"), 7, (Some(60), Some(7))),
        ] {
            let parameters = parameters_of_query(since, tail);
            assert_eq!(
                (parameters.since_seconds, parameters.tail_lines),
                expected,
                "{since:?} {tail}"
            );
        }
    }

    #[test]
    fn a_log_line_begins_with_its_time() {
        let (time, text) = parse_log_line("2025-01-01T12:00:00.123456789Z a b").unwrap();
        assert_eq!(
            (time.to_string().as_str(), text),
            ("2025-01-01T12:00:00.123456789Z", "a b")
        );
        assert_eq!(parse_log_line("2025-01-01T12:00:00Z").unwrap().1, "");
        assert_eq!(parse_log_line("no time"), None);
    }
}
