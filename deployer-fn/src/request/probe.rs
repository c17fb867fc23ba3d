//! The probe: the request that checks that a function works, by default `GET /_/health`.

use std::fmt;
use std::time::Duration;

use function_host::duration;
use function_host::http::uri::PathAndQuery;
use function_host::http::{Method, StatusCode, Uri};
use serde::{Deserialize, Serialize};

use super::fields::JsonFieldReader;
use crate::function::FunctionAddress;

/// The default path of a probe: the health path of the function host and of OpenFaaS's watchdogs.
const DEFAULT_PROBE_PATH: &str = "/_/health";
/// The longest timeout of a probe: the community edition's gateway does not wait longer.
const PROBE_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// The most bytes of path and query of a probe's request to the gateway, `/function/NAME[.NAMESPACE]` included.
/// Web servers that accept less than 8 KiB are rare, and no probe needs as much.
const PROBE_URL_MAX_BYTES: usize = 4096;
/// The largest number of successes in a row that a probe may demand: more would not prove more.
const CONSECUTIVE_SUCCESSES_MAX: u64 = 20;

/// A probe: a request to a function, and the responses that count as success.
///
/// It is stored with its version, so that a restored version is checked as it was when it was deployed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredProbe", into = "StoredProbe")]
pub struct ReadinessProbe {
    /// Path and query of the probe, relative to the function.
    pub(crate) path: PathAndQuery,
    /// The HTTP method of the probe; `GET` if the hand-over names none.
    pub(crate) method: Method,
    /// The request body of the probe; may be empty.
    pub(crate) body: String,
    /// The one response status that counts as success; any 2xx if absent.
    pub(crate) expected_status: Option<StatusCode>,
    /// The timeout of one response to the probe; the setting `gateway_timeout` if absent.
    pub(crate) timeout: Option<Duration>,
    /// The number of successful responses in a row after which the function counts as ready.
    pub(crate) successes: u32,
}

impl Default for ReadinessProbe {
    fn default() -> Self {
        Self {
            path: PathAndQuery::from_static(DEFAULT_PROBE_PATH),
            method: Method::GET,
            body: String::new(),
            expected_status: None,
            timeout: None,
            successes: 1,
        }
    }
}

impl ReadinessProbe {
    /// Returns path and query of the probe's request to the gateway.
    pub(crate) fn gateway_path(&self, function: &FunctionAddress) -> String {
        format!("{}{}", function.call_path(), self.path)
    }

    /// Fails unless the probe's path below that of `function` is valid in a URL and not too long. An error is the rest
    /// of a sentence that begins with the path's name.
    pub(super) fn check_gateway_path(&self, function: &FunctionAddress) -> Result<(), String> {
        let address = self.gateway_path(function);
        check_address_length(&address)?;
        match address.parse::<Uri>() {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("makes an invalid address, {address:?}: {error}")),
        }
    }

    /// Returns whether a response with this status counts as a success of the probe.
    pub(crate) fn accepts_status(&self, status: StatusCode) -> bool {
        self.expected_status
            .map_or_else(|| status.is_success(), |expected| status == expected)
    }

    /// Reads the object `probe` of a hand-over, and reports every problem.
    pub(super) fn read_probe(fields: &mut JsonFieldReader<'_>) -> Self {
        let mut probe = Self::default();
        if let Some(text) = fields.read_possibly_empty_string("path") {
            match parse_probe_path(&text) {
                Ok(path) => probe.path = path,
                Err(problem) => fields.add_problem("path", problem),
            }
        }
        if let Some(text) = fields.read_possibly_empty_string("method") {
            match parse_any_http_method(&text) {
                Ok(method) => probe.method = method,
                Err(problem) => fields.add_problem("method", problem),
            }
        }
        probe.body = fields.read_possibly_empty_string("body").unwrap_or_default();
        if let Some(number) = fields.read_whole_number("expectedStatus") {
            match u16::try_from(number).map(StatusCode::from_u16) {
                Ok(Ok(status)) => probe.expected_status = Some(status),
                _ => fields.add_problem("expectedStatus", "must be an HTTP status from 100 to 999"),
            }
        }
        if let Some(text) = fields.read_possibly_empty_string("timeout") {
            match duration::parse_duration(&text) {
                Ok(time) if !time.is_zero() && time <= PROBE_TIMEOUT_MAX => probe.timeout = Some(time),
                _ => fields.add_problem("timeout", "must be a duration of at most 1m, such as \"5s\""),
            }
        }
        if let Some(number) = fields.read_whole_number("successes") {
            match number {
                1..=CONSECUTIVE_SUCCESSES_MAX => probe.successes = number.try_into().unwrap_or(1),
                _ => fields.add_problem(
                    "successes",
                    format!("must be from 1 to {CONSECUTIVE_SUCCESSES_MAX}"),
                ),
            }
        }
        fields.report_unread_fields_as_problems();
        probe
    }
}

impl fmt::Display for ReadinessProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

/// The form in which a probe is stored in annotations.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredProbe {
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

impl From<ReadinessProbe> for StoredProbe {
    fn from(probe: ReadinessProbe) -> Self {
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

impl TryFrom<StoredProbe> for ReadinessProbe {
    type Error = String;

    fn try_from(stored: StoredProbe) -> Result<Self, String> {
        Ok(Self {
            path: parse_probe_path(&stored.path)?,
            method: parse_any_http_method(&stored.method)?,
            body: stored.body,
            expected_status: stored
                .expected_status
                .map(StatusCode::from_u16)
                .transpose()
                .map_err(|error| error.to_string())?,
            timeout: stored.timeout_ms.map(Duration::from_millis),
            successes: stored.successes.max(1),
        })
    }
}

/// Fails if a path is longer than [`PROBE_URL_MAX_BYTES`].
fn check_address_length(address: &str) -> Result<(), String> {
    if address.len() <= PROBE_URL_MAX_BYTES {
        return Ok(());
    }
    Err(format!(
        "makes an address of {} bytes, and {PROBE_URL_MAX_BYTES} are allowed",
        address.len()
    ))
}

/// Parses the path and query of a probe. Fails if it could lead the gateway to another function or host.
fn parse_probe_path(text: &str) -> Result<PathAndQuery, String> {
    check_address_length(text)?;
    let invalid = || format!("must be a path that begins with a slash, without \"..\" and \"#\": {text:?}");
    // Two slashes at the beginning would make the gateway take the first segment for a host.
    // What follows a "#" would silently be dropped.
    if !text.starts_with('/')
        || text.starts_with("//")
        || text.contains('#')
        || text.split(['/', '?']).any(|part| part == "..")
    {
        return Err(invalid());
    }
    text.parse().map_err(|_| invalid())
}

fn parse_any_http_method(text: &str) -> Result<Method, String> {
    Method::from_bytes(text.as_bytes()).map_err(|_| format!("must be an HTTP method: {text:?}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::request::fields::ProblemsAndWarnings;

    fn read_probe_json(probe: Value) -> Result<ReadinessProbe, Vec<String>> {
        let Value::Object(object) = probe else { panic!() };
        let mut remarks = ProblemsAndWarnings::default();
        let probe = ReadinessProbe::read_probe(&mut JsonFieldReader::new("probe", object, &mut remarks));
        let problems = remarks.problems;
        if problems.is_empty() {
            Ok(probe)
        } else {
            Err(problems)
        }
    }

    #[test]
    fn a_probe_without_a_path_uses_the_health_path() {
        let probe = read_probe_json(json!({})).unwrap();
        assert_eq!(probe, ReadinessProbe::default());
        assert_eq!(probe.to_string(), "GET /_/health");
        assert!(probe.accepts_status(StatusCode::NO_CONTENT) && !probe.accepts_status(StatusCode::FOUND));
    }

    #[test]
    fn a_probe_is_unchanged_after_it_is_stored_and_read_back() {
        let probe = read_probe_json(
            json!({"path": "/orders?dry=1", "method": "POST", "body": "{}", "expectedStatus": 202,
            "timeout": "1.5s", "successes": 3}),
        )
        .unwrap();
        assert!(probe.accepts_status(StatusCode::ACCEPTED) && !probe.accepts_status(StatusCode::OK));
        assert_eq!(probe.timeout, Some(Duration::from_millis(1500)));
        let stored = serde_json::to_string(&probe).unwrap();
        assert_eq!(serde_json::from_str::<ReadinessProbe>(&stored).unwrap(), probe);
        assert!(serde_json::from_str::<ReadinessProbe>(&stored.replace("/orders", "orders")).is_err());
    }

    #[test]
    fn all_problems_of_a_probe_are_reported_at_once() {
        let problems = read_probe_json(
            json!({"path": "health", "method": "GET it", "expectedStatus": 7, "timeout": "2h", "successes": 0,
            "retries": 1}),
        )
        .unwrap_err();
        assert_eq!(problems.len(), 6, "{problems:#?}");
        for path in [
            "//host/x",
            "/../system/functions",
            "/a b",
            "/a#b",
            &"/a".repeat(32_765),
        ] {
            assert!(read_probe_json(json!({"path": path})).is_err(), "{path}");
        }
    }
}
