//! The hosts that the builder itself connects to for a caller: registries, servers with contexts, receivers of results,
//! and the APIs of forges.
//!
//! The builder sees more than the daemon does: what a name resolves to. A host is checked as it is written, and its
//! addresses again when a connection is made ([`ConnectionRule::address_check`]).

use std::net::IpAddr;
use std::sync::Arc;

use function_host::{AddressCheck, BoxError, HttpClient, Secrets};

use super::AllowedPrivateHosts;
use super::host::Host;

/// The addresses to which the builder may connect for a host that a caller names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionRule {
    /// Any address: the setting `allowed_sources` names the host.
    Any,
    /// Any address but those of metadata services and link-local ones: the operator has credentials for the host, and
    /// so knows it.
    Known,
    /// Public addresses only.
    Public,
}

impl ConnectionRule {
    /// Returns the check of the addresses that a name is resolved to; `None` if any address is allowed.
    pub(crate) fn address_check(self) -> Option<AddressCheck> {
        let kind_of: fn(&Host) -> Option<&'static str> = match self {
            Self::Any => return None,
            Self::Known => |host| {
                host.is_metadata_or_link_local()
                    .then_some("a link-local address or a metadata service")
            },
            Self::Public => Host::private_kind,
        };
        Some(Arc::new(move |address| {
            let host = match address {
                IpAddr::V4(address) => Host::V4(address),
                IpAddr::V6(address) => Host::V6(address),
            };
            kind_of(&host).map_or(Ok(()), Err)
        }))
    }

    /// Creates an HTTP client that connects as the rule says. It trusts the system's certificates and those in the
    /// secret `gateway-ca`. With `may_lack_certificates`, it may trust none, for servers without TLS.
    ///
    /// # Errors
    /// Fails if the certificates cannot be read, or there are none to trust.
    pub(crate) fn http_client(
        self,
        secrets: &Secrets,
        may_lack_certificates: bool,
    ) -> Result<HttpClient, BoxError> {
        let trusting = HttpClient::trusting_system_and_gateway_certificates(secrets, self.address_check());
        trusting.or_else(|error| match may_lack_certificates {
            true => HttpClient::trusting_no_certificate(self.address_check()),
            false => Err(error),
        })
    }
}

impl AllowedPrivateHosts {
    /// Returns to which addresses the builder may connect for `host`, as a URL has it, and `port`: more
    /// of them if the operator has credentials for the host.
    ///
    /// # Errors
    /// Fails if it may not connect at all. The text names the host and the reason.
    pub(crate) fn connection_rule(
        &self,
        host: &str,
        port: u16,
        operator_has_credentials: bool,
    ) -> Result<ConnectionRule, String> {
        let host = Host::parse_with_ipv6_in_brackets(host).map_err(|error| format!("the host {error}"))?;
        if self.allows_host(&host, port) {
            return Ok(ConnectionRule::Any);
        }
        let kind = match operator_has_credentials {
            true => host
                .is_metadata_or_link_local()
                .then_some("a link-local address or a metadata service"),
            false => host.private_kind(),
        };
        match kind {
            Some(kind) => Err(format!(
                "{host} is {kind}, to which the builder does not connect, unless its setting allowed_sources names it"
            )),
            None if operator_has_credentials => Ok(ConnectionRule::Known),
            None => Ok(ConnectionRule::Public),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_reached_at_public_addresses_unless_the_operator_knows_or_allows_it() {
        let allowed: AllowedPrivateHosts = "10.1.1.1:5000,files.internal".parse().unwrap();
        for (host, port, is_known, expected) in [
            ("example.com", 443, false, Ok(ConnectionRule::Public)),
            ("example.com", 443, true, Ok(ConnectionRule::Known)),
            ("10.1.1.1", 5000, false, Ok(ConnectionRule::Any)),
            ("10.1.1.1", 443, false, Err("a private address")),
            ("10.1.1.1", 443, true, Ok(ConnectionRule::Known)),
            ("files.internal", 8443, false, Ok(ConnectionRule::Any)),
            ("registry", 443, false, Err("without a public address")),
            ("registry", 443, true, Ok(ConnectionRule::Known)),
            ("169.254.169.254", 80, true, Err("a metadata service")),
            ("127.0.0.1", 443, false, Err("a loopback address")),
            ("0x7f.1", 443, true, Err("four decimal numbers")),
        ] {
            let rule = allowed.connection_rule(host, port, is_known);
            match expected {
                Ok(expected) => assert_eq!(rule, Ok(expected), "{host}"),
                Err(text) => assert!(
                    rule.as_ref().is_err_and(|error| error.contains(text)),
                    "{host}: {rule:?}"
                ),
            }
        }
    }

    #[test]
    fn the_public_rule_denies_private_addresses_the_known_rule_only_metadata_and_link_local_ones() {
        let denies = |rule: ConnectionRule, address: &str| {
            rule.address_check()
                .is_some_and(|check| check(address.parse().unwrap()).is_err())
        };
        for (address, by_public, by_known) in [
            ("93.184.216.34", false, false),
            ("10.0.0.1", true, false),
            ("127.0.0.1", true, false),
            ("100.64.0.1", true, false),
            ("169.254.169.254", true, true),
            ("100.100.100.200", true, true),
            ("::1", true, false),
            ("::ffff:127.0.0.1", true, false),
            ("64:ff9b::a00:1", true, false),
            ("fd00:ec2::254", true, true),
            ("fe80::1", true, true),
            ("2606:4700::1", false, false),
        ] {
            assert_eq!(denies(ConnectionRule::Public, address), by_public, "{address}");
            assert_eq!(denies(ConnectionRule::Known, address), by_known, "{address}");
            assert!(!denies(ConnectionRule::Any, address), "{address}");
        }
    }

    /// What a name looks like does not tell what it is resolved to, and that may change between two requests.
    #[tokio::test]
    async fn a_name_that_is_resolved_to_a_private_address_is_not_connected_to() {
        use function_host::ExchangeError;
        use function_host::http::Request;
        use http_body_util::{BodyExt, Empty};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://localhost:{}/", listener.local_addr().unwrap().port());
        let mut request = Request::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
        *request.uri_mut() = url.parse().unwrap();
        let client = ConnectionRule::Public
            .http_client(&Secrets::new("/nowhere"), true)
            .unwrap();

        let sent = client.send(request, std::time::Duration::from_secs(60)).await;

        let Err(ExchangeError::Denied(denied)) = sent else {
            panic!("{sent:?}");
        };
        assert_eq!(
            (denied.host.as_str(), denied.kind),
            ("localhost", "a loopback address")
        );
        let connected = tokio::select! {
            biased;
            _ = listener.accept() => true,
            () = std::future::ready(()) => false,
        };
        assert!(!connected);
    }
}
