//! The route `/system/logs`: streams the lines of a function's log as NDJSON: those that exist and, if asked to follow,
//! each new one as soon as it is written.

use std::time::{Duration, SystemTime};

use axum::{
    body::{Body, Bytes},
    extract::{Query, State},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use http::{StatusCode, header};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    functions::FunctionStore,
    key::FunctionKey,
    logs::{LogMessage, LogQuery},
};

/// The age of the oldest log line in an answer if the request has no `since`, or one in the future; the same as
/// faasd's.
const DEFAULT_LOG_AGE: Duration = Duration::from_secs(300);

/// The query parameters of a request for logs, all of them as text.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LogParameters {
    pub(super) name: String,
    pub(super) namespace: String,
    instance: String,
    pub(super) tail: String,
    pub(super) since: String,
    follow: String,
}

impl LogParameters {
    /// Returns whether the answer waits for more lines; a malformed value counts as false.
    pub(super) fn is_followed(&self) -> bool {
        matches!(self.follow.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True")
    }

    /// Parses the query parameters as faas-provider does; returns `None` if a number, a time or a name is
    /// malformed.
    fn parse_log_query(self, default_namespace: &str, now: Timestamp) -> Option<LogQuery> {
        let tail: i64 = if self.tail.is_empty() {
            0
        } else {
            self.tail.parse().ok()?
        };
        let default_since = now.checked_sub(DEFAULT_LOG_AGE).unwrap_or(Timestamp::UNIX_EPOCH);
        let since = match self.since.as_str() {
            "" => default_since,
            given => Some(given.parse().ok()?)
                .filter(|since| *since < now)
                .unwrap_or(default_since),
        };
        let namespace = if self.namespace.is_empty() {
            default_namespace
        } else {
            &self.namespace
        };
        // These two become part of a path.
        let is_name = |text: &str| !text.contains('/') && !text.starts_with('.');
        if !is_name(&self.name) || !is_name(namespace) {
            return None;
        }
        let follow = self.is_followed();
        Some(LogQuery {
            function: FunctionKey::new(self.name, namespace),
            instance: Some(self.instance).filter(|instance| !instance.is_empty()),
            since,
            tail: tail.try_into().unwrap_or(0),
            follow,
        })
    }
}

/// Answers with the lines of a function's log, and follows it at most until the service timeout; answers with 422 to a
/// malformed request. A function without logs, or that does not exist, gets an empty answer.
pub(super) async fn stream_logs_or_answer_422(
    State(functions): State<FunctionStore>,
    Query(parameters): Query<LogParameters>,
) -> Response {
    let settings = functions.settings();
    let now = Timestamp::try_from(SystemTime::now()).unwrap_or_default();
    let Some(query) = parameters.parse_log_query(&settings.function_namespace, now) else {
        return (
            StatusCode::UNPROCESSABLE_ENTITY,
            "could not parse the log request\n",
        )
            .into_response();
    };
    let lines = functions
        .logs()
        .stream_messages(query, Instant::now() + settings.service_timeout);
    let body = Body::from_stream(ReceiverStream::new(lines).map(|message| json_line(&message)));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

/// Returns a message as a line of NDJSON.
pub(super) fn json_line(message: &LogMessage) -> Result<Bytes, serde_json::Error> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_at_fixed_time(parameters: LogParameters) -> Option<LogQuery> {
        parameters.parse_log_query("openfaas-fn", "2025-01-01T12:00:00Z".parse().unwrap())
    }

    fn hello_parameters() -> LogParameters {
        LogParameters {
            name: "hello".into(),
            ..Default::default()
        }
    }

    #[test]
    fn without_since_the_query_asks_for_the_last_five_minutes() {
        let query = parse_at_fixed_time(hello_parameters()).unwrap();
        assert_eq!(query.since.to_string(), "2025-01-01T11:55:00Z");
        assert_eq!((query.tail, query.follow, query.instance), (0, false, None));
        assert_eq!(query.function, FunctionKey::new("hello", "openfaas-fn"));
    }

    #[test]
    fn since_may_have_any_time_zone_offset() {
        let query = parse_at_fixed_time(LogParameters {
            since: "2025-01-01T12:30:00+02:00".into(),
            ..hello_parameters()
        })
        .unwrap();
        assert_eq!(query.since.to_string(), "2025-01-01T10:30:00Z");
    }

    #[test]
    fn malformed_numbers_times_and_names_are_rejected_but_a_malformed_follow_is_false() {
        assert!(
            parse_at_fixed_time(LogParameters {
                tail: "some".into(),
                ..hello_parameters()
            })
            .is_none()
        );
        assert!(
            parse_at_fixed_time(LogParameters {
                since: "yesterday".into(),
                ..hello_parameters()
            })
            .is_none()
        );
        assert!(
            parse_at_fixed_time(LogParameters {
                name: "../hello".into(),
                ..hello_parameters()
            })
            .is_none()
        );
        assert!(
            !parse_at_fixed_time(LogParameters {
                follow: "maybe".into(),
                ..hello_parameters()
            })
            .unwrap()
            .follow
        );
        assert_eq!(
            parse_at_fixed_time(LogParameters {
                tail: "-1".into(),
                ..hello_parameters()
            })
            .unwrap()
            .tail,
            0
        );
    }
}
