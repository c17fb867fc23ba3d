//! The host's own settings. [`crate::run_with`] documents them.

use std::time::Duration;

use http::HeaderValue;

use crate::env::Parser;

/// The host's settings, parsed.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) port: u16,
    pub(crate) metrics_port: u16,
    pub(crate) read_timeout: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) exec_timeout: Option<Duration>,
    pub(crate) healthcheck_interval: Duration,
    pub(crate) max_inflight: Option<usize>,
    /// Which version of the function this is, for its answers.
    pub(crate) version: Option<HeaderValue>,
}

impl Settings {
    pub(crate) fn read(parser: &mut Parser<'_>) -> Self {
        let (port, metrics_port) = (parser.number("port", 8080), parser.number("metrics_port", 8081));
        if port == metrics_port && port != 0 {
            parser.problem("metrics_port", "should not be the port of the function");
        }
        let exec_timeout = parser.duration("exec_timeout", Duration::ZERO);
        let max_inflight = parser.number("max_inflight", 0_usize);
        Self {
            port,
            metrics_port,
            read_timeout: some_time(parser, "read_timeout"),
            write_timeout: some_time(parser, "write_timeout"),
            exec_timeout: (!exec_timeout.is_zero()).then_some(exec_timeout),
            healthcheck_interval: parser.duration("healthcheck_interval", Duration::from_secs(5)),
            max_inflight: (max_inflight > 0).then_some(max_inflight),
            version: parser.parse("slipway_version", None, |text| {
                let wrong = |_| "should have visible ASCII characters only";
                HeaderValue::from_str(text).map(Some).map_err(wrong)
            }),
        }
    }
}

/// A limit that there has to be. For OpenFaaS's own programs 0 means none, and a client could then wait for ever.
fn some_time(parser: &mut Parser<'_>, name: &str) -> Duration {
    let time = parser.duration(name, Duration::from_secs(10));
    if time.is_zero() {
        parser.problem(name, "should be more than 0s");
    }
    time
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_has_its_default() {
        let mut parser = Parser::new(&[]);
        let settings = Settings::read(&mut parser);
        assert!(parser.finish().is_ok());
        assert_eq!((settings.port, settings.metrics_port), (8080, 8081));
        assert_eq!((settings.exec_timeout, settings.max_inflight), (None, None));
    }

    #[test]
    fn limits_that_are_none_or_contradict_are_refused() {
        let strings = [
            ("port", "8081"),
            ("read_timeout", "0"),
            ("write_timeout", "0s"),
            ("max_inflight", "-1"),
            ("slipway_version", "one\ntwo"),
        ];
        let mut parser = Parser::new(&strings);
        Settings::read(&mut parser);
        let problems = parser.finish().unwrap_err();
        let names: Vec<_> = problems.0.iter().map(|problem| problem.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "metrics_port",
                "max_inflight",
                "read_timeout",
                "write_timeout",
                "slipway_version"
            ]
        );
    }
}
