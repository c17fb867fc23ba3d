//! How a function is asked whether it works: `/_/health` unless the caller knows better.

use std::fmt;
use std::time::Duration;

use function_host::duration;
use function_host::http::uri::PathAndQuery;
use function_host::http::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::fields::Fields;

/// Where a function says that it lives: the function host, and the watchdogs before it, answer 200 here.
const HEALTH: &str = "/_/health";
/// The longest that one answer may take: the gateway of the community waits no longer either.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// More would prove nothing that so many did not.
const SUCCESSES_MAX: u64 = 20;

/// One question to a function, and what is a good answer.
///
/// Kept with the version that it belongs to, so that a version that is put back is asked as it was asked before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Probe {
    /// Path and query, from the function's own root.
    pub path: PathAndQuery,
    /// The method.
    pub method: Method,
    /// The body; empty for none.
    pub body: String,
    /// The one good status; any 2xx where absent.
    pub expected_status: Option<StatusCode>,
    /// How long one answer may take, where it is not the deployer's own limit.
    pub timeout: Option<Duration>,
    /// How many good answers in a row it takes.
    pub successes: u32,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            path: PathAndQuery::from_static(HEALTH),
            method: Method::GET,
            body: String::new(),
            expected_status: None,
            timeout: None,
            successes: 1,
        }
    }
}

impl Probe {
    /// Whether this status is a good answer.
    #[must_use]
    pub fn accepts(&self, status: StatusCode) -> bool {
        self.expected_status
            .map_or_else(|| status.is_success(), |expected| status == expected)
    }

    /// Takes `probe` of a hand-over apart.
    pub(super) fn read(fields: &mut Fields<'_>) -> Self {
        let mut probe = Self::default();
        if let Some(text) = fields.text("path") {
            match path(&text) {
                Ok(path) => probe.path = path,
                Err(reason) => fields.complain("path", reason),
            }
        }
        if let Some(text) = fields.text("method") {
            match method(&text) {
                Ok(method) => probe.method = method,
                Err(reason) => fields.complain("method", reason),
            }
        }
        probe.body = fields.text("body").unwrap_or_default();
        if let Some(number) = fields.number("expectedStatus") {
            match u16::try_from(number).map(StatusCode::from_u16) {
                Ok(Ok(status)) => probe.expected_status = Some(status),
                _ => fields.complain("expectedStatus", "is not an HTTP status"),
            }
        }
        if let Some(text) = fields.text("timeout") {
            match duration::parse(&text) {
                Ok(time) if !time.is_zero() && time <= TIMEOUT_MAX => probe.timeout = Some(time),
                _ => fields.complain("timeout", "has to be a duration of at most 1m, such as \"5s\""),
            }
        }
        if let Some(number) = fields.number("successes") {
            match number {
                1..=SUCCESSES_MAX => probe.successes = number.try_into().unwrap_or(1),
                _ => fields.complain("successes", format!("has to be from 1 to {SUCCESSES_MAX}")),
            }
        }
        fields.refuse_rest();
        probe
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// A probe as it is kept.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    path: String,
    method: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    body: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    successes: u32,
}

impl From<Probe> for Written {
    fn from(probe: Probe) -> Self {
        Self {
            path: probe.path.to_string(),
            method: probe.method.to_string(),
            body: probe.body,
            expected_status: probe.expected_status.map(|status| status.as_u16()),
            timeout_ms: probe
                .timeout
                .map(|time| time.as_millis().try_into().unwrap_or(u64::MAX)),
            successes: probe.successes,
        }
    }
}

impl TryFrom<Written> for Probe {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        Ok(Self {
            path: path(&written.path)?,
            method: method(&written.method)?,
            body: written.body,
            expected_status: written
                .expected_status
                .map(StatusCode::from_u16)
                .transpose()
                .map_err(|error| error.to_string())?,
            timeout: written.timeout_ms.map(Duration::from_millis),
            successes: written.successes.max(1),
        })
    }
}

fn path(text: &str) -> Result<PathAndQuery, String> {
    let wrong = || format!("has to begin with a slash and be the path of an address: {text:?}");
    // What begins with two slashes would be a host to the gateway.
    if !text.starts_with('/') || text.starts_with("//") || text.split(['/', '?']).any(|part| part == "..") {
        return Err(wrong());
    }
    text.parse().map_err(|_| wrong())
}

fn method(text: &str) -> Result<Method, String> {
    Method::from_bytes(text.as_bytes()).map_err(|_| format!("is not a method: {text:?}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(probe: Value) -> Result<Probe, Vec<String>> {
        let Value::Object(object) = probe else { panic!() };
        let mut problems = Vec::new();
        let probe = Probe::read(&mut Fields::new("probe", object, &mut problems));
        if problems.is_empty() {
            Ok(probe)
        } else {
            Err(problems)
        }
    }

    #[test]
    fn a_probe_without_words_is_the_health_path() {
        let probe = read(json!({})).unwrap();
        assert_eq!(probe, Probe::default());
        assert_eq!(probe.to_string(), "GET /_/health");
        assert!(probe.accepts(StatusCode::NO_CONTENT) && !probe.accepts(StatusCode::FOUND));
    }

    #[test]
    fn a_probe_is_kept_as_it_was_asked_for() {
        let probe = read(
            json!({"path": "/orders?dry=1", "method": "POST", "body": "{}", "expectedStatus": 202,
            "timeout": "1.5s", "successes": 3}),
        )
        .unwrap();
        assert!(probe.accepts(StatusCode::ACCEPTED) && !probe.accepts(StatusCode::OK));
        assert_eq!(probe.timeout, Some(Duration::from_millis(1500)));
        let kept = serde_json::to_string(&probe).unwrap();
        assert_eq!(serde_json::from_str::<Probe>(&kept).unwrap(), probe);
        assert!(serde_json::from_str::<Probe>(&kept.replace("/orders", "orders")).is_err());
    }

    #[test]
    fn every_wrong_field_of_a_probe_is_named() {
        let problems = read(
            json!({"path": "health", "method": "GET it", "expectedStatus": 7, "timeout": "2h", "successes": 0,
            "retries": 1}),
        )
        .unwrap_err();
        assert_eq!(problems.len(), 6, "{problems:#?}");
        for path in ["//host/x", "/../system/functions", "/a b"] {
            assert!(read(json!({"path": path})).is_err(), "{path}");
        }
    }
}
