//! The host's own settings, documented at [`run_with`](crate::run_with).

use std::time::Duration;

use http::HeaderValue;

use crate::env::SettingsParser;

/// The default limit on the number of headers of a request. Memory for this many is reserved for each request. Go, in
/// which the gateway is written, limits only the size of all headers.
const DEFAULT_MAX_HEADER_COUNT: usize = 256;

/// The default limit on the size of a request's head, in bytes. Programs in Go accept 1 MiB, nginx and Apache 8 to 32
/// KiB. Every connection may hold this much without a request.
const DEFAULT_MAX_HEADER_BYTES: usize = 64 << 10;

/// The default limit on the number of connections that wait for a request. Callers are the gateway and other functions,
/// which keep their connections, so the limit only has to stop a flood.
const DEFAULT_MAX_CONNECTIONS: usize = 2048;

/// The host's own settings.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) port: u16,
    pub(crate) metrics_port: u16,
    pub(crate) read_timeout: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) exec_timeout: Option<Duration>,
    pub(crate) healthcheck_interval: Duration,
    pub(crate) max_inflight: Option<usize>,
    pub(crate) max_headers: usize,
    pub(crate) max_header_bytes: usize,
    /// The number of connections that may wait for a request.
    pub(crate) max_connections: usize,
    /// The version of the function, which the host sends with every response.
    pub(crate) version: Option<HeaderValue>,
}

impl Settings {
    /// Reads the host's own settings; problems are added to `parser`.
    pub(crate) fn read(parser: &mut SettingsParser<'_>) -> Self {
        let (port, metrics_port) = (parser.number("port", 8080), parser.number("metrics_port", 8081));
        if port == metrics_port && port != 0 {
            parser.add_problem("metrics_port", "should differ from port");
        }
        let exec_timeout = parser.duration("exec_timeout", Duration::ZERO);
        let max_inflight = parser.number("max_inflight", 0_usize);
        Self {
            port,
            metrics_port,
            read_timeout: read_nonzero_timeout_default_10_s(parser, "read_timeout"),
            write_timeout: read_nonzero_timeout_default_10_s(parser, "write_timeout"),
            exec_timeout: (!exec_timeout.is_zero()).then_some(exec_timeout),
            healthcheck_interval: parser.duration("healthcheck_interval", Duration::from_secs(5)),
            max_inflight: (max_inflight > 0).then_some(max_inflight),
            max_headers: parser.parse_or_default("max_headers", DEFAULT_MAX_HEADER_COUNT, parse_max_headers),
            max_header_bytes: parser.parse_or_default(
                "max_header_bytes",
                DEFAULT_MAX_HEADER_BYTES,
                parse_max_header_bytes,
            ),
            max_connections: parser.parse_or_default("max_connections", DEFAULT_MAX_CONNECTIONS, |text| {
                let number = text.parse().ok().filter(|number| *number > 0);
                number.ok_or("should be a number, at least 1")
            }),
            version: parser.parse_or_default("slipway_version", None, |text| {
                let wrong = |_| "should have visible ASCII characters only";
                HeaderValue::from_str(text).map(Some).map_err(wrong)
            }),
        }
    }
}

/// Parses the setting `max_headers`, a number from 1 to 10000.
fn parse_max_headers(text: &str) -> Result<usize, &'static str> {
    let number = text.parse().ok().filter(|number| (1..=10_000).contains(number));
    number.ok_or("should be a number from 1 to 10000")
}

/// Parses the setting `max_header_bytes`, a number from 8192 to 1048576.
fn parse_max_header_bytes(text: &str) -> Result<usize, &'static str> {
    // hyper's smallest buffer has 8 KiB.
    let allowed = 8192..=(1 << 20);
    let number = text.parse().ok().filter(|number| allowed.contains(number));
    number.ok_or("should be a number of bytes from 8192 to 1048576")
}

/// Reads a timeout that must not be zero; its default is 10 s.
///
/// In OpenFaaS's own programs, zero means no timeout. A client could then hold a connection forever.
fn read_nonzero_timeout_default_10_s(parser: &mut SettingsParser<'_>, name: &str) -> Duration {
    let timeout = parser.duration(name, Duration::from_secs(10));
    if timeout.is_zero() {
        parser.add_problem(name, "should be more than 0s");
    }
    timeout
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_settings_that_are_not_set_have_their_defaults() {
        let mut parser = SettingsParser::new(&[]);
        let settings = Settings::read(&mut parser);
        assert!(parser.fail_if_problems().is_ok());
        assert_eq!((settings.port, settings.metrics_port), (8080, 8081));
        assert_eq!((settings.exec_timeout, settings.max_inflight), (None, None));
        assert_eq!((settings.max_headers, settings.max_header_bytes), (256, 65536));
        assert_eq!(settings.max_connections, 2048);
    }

    #[test]
    fn zero_timeouts_two_equal_ports_and_malformed_values_are_rejected() {
        let variables = [
            ("port", "8081"),
            ("read_timeout", "0"),
            ("write_timeout", "0s"),
            ("max_inflight", "-1"),
            ("max_headers", "0"),
            ("max_header_bytes", "8191"),
            ("max_connections", "0"),
            ("slipway_version", "one\ntwo"),
        ];
        let mut parser = SettingsParser::new(&variables);
        Settings::read(&mut parser);
        let problems = parser.fail_if_problems().unwrap_err();
        let names: Vec<_> = problems.0.iter().map(|problem| problem.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "metrics_port",
                "max_inflight",
                "read_timeout",
                "write_timeout",
                "max_headers",
                "max_header_bytes",
                "max_connections",
                "slipway_version"
            ]
        );
    }
}
