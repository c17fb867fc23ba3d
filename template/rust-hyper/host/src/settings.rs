//! The host's own settings.
//!
//! | variable | default | what |
//! | --- | --- | --- |
//! | `port` | 8080 | where the function is served |
//! | `metrics_port` | 8081 | where `/metrics` is |
//! | `read_timeout` | `10s` | how long a client may take for a request's head, and between two pieces of its body |
//! | `write_timeout` | `10s` | how long a client may take nothing of a response |
//! | `exec_timeout` | `0s` | how long a handler may take until it has answered; 0: no limit |
//! | `healthcheck_interval` | `5s` | how long the function goes on after SIGTERM before it stops listening |
//! | `max_inflight` | 0 | requests at a time; 0: no limit |
//! | `secret_mount_path` | `/var/openfaas/secrets` | the directory of secrets |
//! | `gateway_url` | `http://gateway.openfaas:8080` | the gateway |
//! | `log_format` | `json` | `json` or `text` |
//! | `log_level` | `info` | `error`, `warn`, `info`, `debug`, `trace`, or directives of `tracing` |

use std::time::Duration;

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
}

impl Settings {
    pub(crate) fn read(parser: &mut Parser<'_>) -> Self {
        let ten = Duration::from_secs(10);
        let exec_timeout = parser.duration("exec_timeout", Duration::ZERO);
        let max_inflight = parser.number("max_inflight", 0_usize);
        Self {
            port: parser.number("port", 8080),
            metrics_port: parser.number("metrics_port", 8081),
            read_timeout: parser.duration("read_timeout", ten),
            write_timeout: parser.duration("write_timeout", ten),
            exec_timeout: (!exec_timeout.is_zero()).then_some(exec_timeout),
            healthcheck_interval: parser.duration("healthcheck_interval", Duration::from_secs(5)),
            max_inflight: (max_inflight > 0).then_some(max_inflight),
        }
    }
}
