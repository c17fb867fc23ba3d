//! The probe: the request that checks that a function works, by default `GET /_/health`.

use std::fmt;
use std::time::Duration;

use function_host::duration;
use function_host::http::uri::PathAndQuery;
use function_host::http::{Method, StatusCode, Uri};
use serde::{Deserialize, Serialize};

use super::fields::Fields;
use crate::function::FunctionAddress;

/// The default path of a probe: the health path of the function host and of OpenFaaS's watchdogs.
const HEALTH_PATH: &str = "/_/health";
/// The longest timeout of a probe: the community edition's gateway does not wait longer.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// The most bytes of path and query of a probe's request to the gateway, `/function/NAME[.NAMESPACE]` included.
/// Web servers that accept less than 8 KiB are rare, and no probe needs as much.
const ADDRESS_MAX: usize = 4096;
/// The largest number of successes in a row that a probe may demand: more would not prove more.
const SUCCESSES_MAX: u64 = 20;

/// A probe: a request to a function, and the responses that count as success.
///
/// It is stored with its version, so that a restored version is checked as it was when it was deployed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredProbe", into = "StoredProbe")]
pub struct Probe {
    /// Path and query of the probe, relative to the function.
    pub(crate) path: PathAndQuery,
    /// The HTTP method of the probe.
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

impl Default for Probe {
    fn default() -> Self {
        Self {
            path: PathAndQuery::from_static(HEALTH_PATH),
            method: Method::GET,
            body: String::new(),
            expected_status: None,
            timeout: None,
            successes: 1,
        }
    }
}

impl Probe {
    /// Returns path and query of the probe's request to the gateway.
    pub(crate) fn address(&self, function: &FunctionAddress) -> String {
        format!("{}{}", function.path(), self.path)
    }

    /// Checks that this probe of `function` is a valid request. An error is the rest of a sentence that begins
    /// with the path's name.
    pub(super) fn check_address(&self, function: &FunctionAddress) -> Result<(), String> {
        let address = self.address(function);
        check_length(&address)?;
        match address.parse::<Uri>() {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("makes an invalid address, {address:?}: {error}")),
        }
    }

    /// Returns whether a response with this status counts as a success of the probe.
    pub(crate) fn accepts(&self, status: StatusCode) -> bool {
        self.expected_status
            .map_or_else(|| status.is_success(), |expected| status == expected)
    }

    /// Reads the object `probe` of a hand-over, and reports every problem.
    pub(super) fn read(fields: &mut Fields<'_>) -> Self {
        let mut probe = Self::default();
        if let Some(text) = fields.read_string("path") {
            match path(&text) {
                Ok(path) => probe.path = path,
                Err(problem) => fields.report("path", problem),
            }
        }
        if let Some(text) = fields.read_string("method") {
            match method(&text) {
                Ok(method) => probe.method = method,
                Err(problem) => fields.report("method", problem),
            }
        }
        probe.body = fields.read_string("body").unwrap_or_default();
        if let Some(number) = fields.read_number("expectedStatus") {
            match u16::try_from(number).map(StatusCode::from_u16) {
                Ok(Ok(status)) => probe.expected_status = Some(status),
                _ => fields.report("expectedStatus", "must be an HTTP status from 100 to 999"),
            }
        }
        if let Some(text) = fields.read_string("timeout") {
            match duration::parse_duration(&text) {
                Ok(time) if !time.is_zero() && time <= TIMEOUT_MAX => probe.timeout = Some(time),
                _ => fields.report("timeout", "must be a duration of at most 1m, such as \"5s\""),
            }
        }
        if let Some(number) = fields.read_number("successes") {
            match number {
                1..=SUCCESSES_MAX => probe.successes = number.try_into().unwrap_or(1),
                _ => fields.report("successes", format!("must be from 1 to {SUCCESSES_MAX}")),
            }
        }
        fields.reject_unknown();
        probe
    }
}

impl fmt::Display for Probe {
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

impl From<Probe> for StoredProbe {
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

impl TryFrom<StoredProbe> for Probe {
    type Error = String;

    fn try_from(stored: StoredProbe) -> Result<Self, String> {
        Ok(Self {
            path: path(&stored.path)?,
            method: method(&stored.method)?,
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

fn check_length(address: &str) -> Result<(), String> {
    if address.len() <= ADDRESS_MAX {
        return Ok(());
    }
    Err(format!(
        "makes an address of {} bytes, and {ADDRESS_MAX} are allowed",
        address.len()
    ))
}

fn path(text: &str) -> Result<PathAndQuery, String> {
    check_length(text)?;
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

fn method(text: &str) -> Result<Method, String> {
    Method::from_bytes(text.as_bytes()).map_err(|_| format!("must be an HTTP method: {text:?}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::request::fields::Remarks;

    fn read(probe: Value) -> Result<Probe, Vec<String>> {
        let Value::Object(object) = probe else { panic!() };
        let mut remarks = Remarks::default();
        let probe = Probe::read(&mut Fields::new("probe", object, &mut remarks));
        let problems = remarks.problems;
        if problems.is_empty() {
            Ok(probe)
        } else {
            Err(problems)
        }
    }

    #[test]
    fn a_probe_defaults_to_the_health_path() {
        let probe = read(json!({})).unwrap();
        assert_eq!(probe, Probe::default());
        assert_eq!(probe.to_string(), "GET /_/health");
        assert!(probe.accepts(StatusCode::NO_CONTENT) && !probe.accepts(StatusCode::FOUND));
    }

    #[test]
    fn a_stored_probe_is_the_same_probe() {
        let probe = read(
            json!({"path": "/orders?dry=1", "method": "POST", "body": "{}", "expectedStatus": 202,
            "timeout": "1.5s", "successes": 3}),
        )
        .unwrap();
        assert!(probe.accepts(StatusCode::ACCEPTED) && !probe.accepts(StatusCode::OK));
        assert_eq!(probe.timeout, Some(Duration::from_millis(1500)));
        let stored = serde_json::to_string(&probe).unwrap();
        assert_eq!(serde_json::from_str::<Probe>(&stored).unwrap(), probe);
        assert!(serde_json::from_str::<Probe>(&stored.replace("/orders", "orders")).is_err());
    }

    #[test]
    fn all_problems_of_a_probe_are_reported_at_once() {
        let problems = read(
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
            assert!(read(json!({"path": path})).is_err(), "{path}");
        }
    }
}
