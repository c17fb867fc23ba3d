//! The address of a BuildKit daemon, as the environment names it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The address of a BuildKit daemon: `unix:///run/buildkit/buildkitd.sock` or `tcp://buildkit.openfaas:1234`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DaemonAddress {
    /// The path of the daemon's Unix socket.
    Unix(PathBuf),
    /// The TCP host and port of the daemon.
    Tcp {
        /// The daemon's host name or IP address; an IPv6 address without its brackets.
        host: String,
        /// The daemon's TCP port, which has no default.
        port: u16,
    },
}

/// The reason why the address of a daemon is invalid. The texts follow the name of the setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DaemonAddressError {
    /// The scheme of the address is neither `unix` nor `tcp`.
    #[error("should be unix://PATH or tcp://HOST:PORT")]
    Scheme,
    /// The socket path after `unix://` is missing or not absolute.
    #[error("should have an absolute path, as in unix:///run/buildkit/buildkitd.sock")]
    Path,
    /// The host or the port after `tcp://` is missing or invalid.
    #[error("should have a host and a port, as in tcp://buildkit:1234")]
    HostPort,
}

impl FromStr for DaemonAddress {
    type Err = DaemonAddressError;

    fn from_str(text: &str) -> Result<Self, DaemonAddressError> {
        if let Some(path) = text.strip_prefix("unix://") {
            return match path.starts_with('/') && path.len() > 1 {
                true => Ok(Self::Unix(path.into())),
                false => Err(DaemonAddressError::Path),
            };
        }
        let rest = text.strip_prefix("tcp://").ok_or(DaemonAddressError::Scheme)?;
        let authority: http::uri::Authority = rest
            .trim_end_matches('/')
            .parse()
            .map_err(|_| DaemonAddressError::HostPort)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        match authority.port_u16() {
            Some(port) if !host.is_empty() && !authority.as_str().contains('@') => Ok(Self::Tcp {
                host: host.into(),
                port,
            }),
            _ => Err(DaemonAddressError::HostPort),
        }
    }
}

impl fmt::Display for DaemonAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp_address(host: &str, port: u16) -> DaemonAddress {
        DaemonAddress::Tcp {
            host: host.into(),
            port,
        }
    }

    #[test]
    fn unix_and_tcp_daemon_addresses_are_parsed_and_formatted_as_they_were_written() {
        for (text, address) in [
            (
                "unix:///run/buildkit/buildkitd.sock",
                DaemonAddress::Unix("/run/buildkit/buildkitd.sock".into()),
            ),
            ("tcp://10.62.0.1:1234", tcp_address("10.62.0.1", 1234)),
            (
                "tcp://buildkit.openfaas:1234",
                tcp_address("buildkit.openfaas", 1234),
            ),
            ("tcp://[::1]:1234", tcp_address("::1", 1234)),
        ] {
            let parsed: DaemonAddress = text.parse().expect(text);
            assert_eq!(parsed, address);
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn an_invalid_daemon_address_is_rejected_with_what_it_lacks() {
        for (text, error) in [
            ("", DaemonAddressError::Scheme),
            ("buildkit:1234", DaemonAddressError::Scheme),
            ("http://buildkit:1234", DaemonAddressError::Scheme),
            ("unix://", DaemonAddressError::Path),
            ("unix://run/buildkitd.sock", DaemonAddressError::Path),
            ("tcp://buildkit", DaemonAddressError::HostPort),
            ("tcp://:1234", DaemonAddressError::HostPort),
            ("tcp://a b:1", DaemonAddressError::HostPort),
            ("tcp://user@buildkit:1", DaemonAddressError::HostPort),
            ("tcp://buildkit:99999", DaemonAddressError::HostPort),
        ] {
            assert_eq!(text.parse::<DaemonAddress>(), Err(error), "{text}");
        }
    }
}
