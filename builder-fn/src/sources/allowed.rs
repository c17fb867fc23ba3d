//! The setting `allowed_sources`: private hosts that builds may read from.

use std::str::FromStr;

use super::host::Host;
use crate::host_port;

/// Private hosts that builds may read files, git repositories and images from, and that the builder itself fetches
/// contexts from and sends notifications to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedPrivateHosts(Vec<(Host, Option<u16>)>);

impl AllowedPrivateHosts {
    /// Returns whether the setting names this host, for this port or for every port.
    pub(super) fn allows_host(&self, host: &Host, port: u16) -> bool {
        self.0
            .iter()
            .any(|(allowed, at)| allowed == host && at.is_none_or(|at| at == port))
    }
}

impl FromStr for AllowedPrivateHosts {
    type Err = String;

    /// Parses a list of `HOST` or `HOST:PORT`, separated by commas. A host without a port stands for every port.
    fn from_str(text: &str) -> Result<Self, String> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let entries = entries.map(|entry| {
            let malformed =
                || format!("should be hosts, HOST or HOST:PORT, separated by commas, not {entry:?}");
            let (host, port) = host_port::split_host_with_brackets_and_port(entry).ok_or_else(malformed)?;
            Ok((
                Host::parse_with_ipv6_in_brackets(host).map_err(|_| malformed())?,
                port,
            ))
        });
        entries.collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_with_a_port_is_allowed_on_it_only_and_one_without_on_every_port() {
        let allowed: AllowedPrivateHosts = "Files.internal:8080, 10.1.2.3,[fd00::1]:443 ,".parse().unwrap();
        for (host, port, expected) in [
            ("files.internal", 8080, true),
            ("files.internal", 80, false),
            ("files.internal.", 8080, true),
            ("10.1.2.3", 1, true),
            ("10.1.2.4", 1, false),
            ("[fd00:0::1]", 443, true),
            ("[fd00::1]", 80, false),
        ] {
            let host = Host::parse_with_ipv6_in_brackets(host).unwrap();
            assert_eq!(allowed.allows_host(&host, port), expected, "{host} {port}");
        }
        for wrong in ["http://a", "a:b", "10.0.0.0/8", "0x7f.1", "a:99999", "*"] {
            assert!(wrong.parse::<AllowedPrivateHosts>().is_err(), "{wrong}");
        }
    }
}
