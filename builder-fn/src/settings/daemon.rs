//! Reads the settings of the connection to BuildKit: its address and TLS.
//!
//! | variable | default | meaning |
//! | --- | --- | --- |
//! | `buildkit_url` | required | the address of the daemon, `unix://PATH` or `tcp://HOST:PORT`, or several, separated
//! by commas |
//! | `buildkit_server_name` | the host of the address | the name that the daemons' certificates must be valid for |
//! | `buildkit_ca` | `buildkit-ca` | the secret with the certificate of the authority that signed the daemon's
//! certificate |
//! | `buildkit_cert`, `buildkit_key` | `buildkit-cert`, `buildkit-key` | the secrets with the builder's own certificate
//! and key |
//! | `buildkit_plaintext` | `false` | whether `tcp://` to another machine may do without TLS |
//! | `buildkit_any_version` | `false` | whether tenants may share a daemon that is old or does not report its version |
//!
//! Each of several addresses is one daemon. The host name of a single address may have several IP addresses, each of
//! which is a daemon then. `PLATFORM=` before an address binds its daemon to a platform; of the daemons that are bound
//! to the same platforms, a single address counts as such.
//!
//! `tcp://` uses TLS if the server's name or one of the three secrets is set, or if there is a secret `buildkit-ca`.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use function_host::Secrets;
use function_host::env::SettingsParser;
use rustls::pki_types::ServerName;

use crate::buildkit::{
    Daemon, DaemonAddress, DaemonAtIp, DaemonGroup, DaemonPool, HostResolverForOneAddressFamily, Platform,
    TlsDialer, TlsSecrets,
};
use crate::tenants::DaemonFactory;

/// The settings of the connections to daemons: the builder's own, and those that a policy names for tenants.
pub(super) struct DaemonSettings {
    /// The builder's daemons.
    pub(super) pool: DaemonPool,
    /// Whether a connection to one of the builder's daemons is unencrypted and leaves this machine.
    pub(super) is_exposed: bool,
    /// Whether tenants may share a daemon of any version.
    pub(super) allows_any_version: bool,
    /// Creates handles of the daemons that a policy names, whose connections use the same TLS secrets.
    pub(super) daemon_factory: DaemonFactory,
}

/// The address of a daemon, with the platforms that it is bound to: none, for a daemon that builds for every platform
/// that no other one is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BoundAddress {
    address: DaemonAddress,
    platforms: BTreeSet<Platform>,
}

/// The TLS settings of connections to daemons, and whether a connection may be unencrypted.
#[derive(Clone)]
struct TlsSecretsAndPlaintextPermission {
    /// The secrets of TLS; `None` if connections do not use it.
    tls: Option<TlsSecrets>,
    /// Whether a connection to another machine may be unencrypted.
    allows_plaintext: bool,
}

/// Reads the settings of the connection to BuildKit, and checks that the secrets of TLS, if it is used, are usable.
pub(super) fn read_daemon_settings(parser: &mut SettingsParser<'_>, secrets: &Secrets) -> DaemonSettings {
    let addresses = match parser.required_text("buildkit_url").as_str() {
        "" => Vec::new(),
        _ => parser.parse_or_default("buildkit_url", Vec::new(), parse_daemon_addresses),
    };
    let name = parser.optional_text("buildkit_server_name");
    // Returns the name of a secret, and whether the variable sets it.
    let mut secret = |variable: &str, default: &str| {
        let given = parser.optional_text(variable);
        let is_given = given.is_some();
        let name = given.unwrap_or_else(|| default.to_owned());
        if let Err(error) = secrets.path(&name) {
            parser.add_problem(variable, format!("should be the name of a secret: {error}"));
        }
        (name, is_given)
    };
    let authority = secret("buildkit_ca", "buildkit-ca");
    let (certificate, key) = (
        secret("buildkit_cert", "buildkit-cert"),
        secret("buildkit_key", "buildkit-key"),
    );
    let is_wanted = name.is_some() || authority.1 || certificate.1 || key.1 || secrets.exists(&authority.0);
    let transport = TlsSecretsAndPlaintextPermission {
        tls: is_wanted.then(|| TlsSecrets {
            secrets: secrets.clone(),
            authority: authority.0,
            certificate: certificate.0,
            key: key.0,
        }),
        allows_plaintext: parser.flag("buildkit_plaintext", false),
    };
    // A socket needs no TLS. The commercial chart sets the server's name for a socket too.
    if addresses
        .iter()
        .any(|bound| matches!(bound.address, DaemonAddress::Tcp { .. }))
        && let Some(tls) = &transport.tls
        && let Err(error) = tls.check_usable()
    {
        parser.add_problem("buildkit_url", format!("cannot use TLS: {error}"));
    }
    let is_exposed = addresses
        .iter()
        .any(|bound| transport.is_unencrypted_to_another_machine(&bound.address));
    // Stands for a pool that cannot be made, and is never used: the problem ends the start.
    let unusable_pool = || Daemon::at(DaemonAddress::Unix(PathBuf::new())).into();
    let pool = match addresses.is_empty() {
        // Reported already.
        true => unusable_pool(),
        false => transport
            .create_pool(&addresses, name)
            .unwrap_or_else(|(variable, problem)| {
                parser.add_problem(variable, problem);
                unusable_pool()
            }),
    };
    DaemonSettings {
        pool,
        is_exposed,
        allows_any_version: parser.flag("buildkit_any_version", false),
        daemon_factory: Arc::new(move |text| {
            let addresses = parse_daemon_addresses(text)?;
            transport
                .create_pool(&addresses, None)
                .map_err(|(_, problem)| problem)
        }),
    }
}

/// Parses the addresses of daemons, which are separated by commas, each with or without `PLATFORM=` before it. An
/// address with several platforms is there several times.
///
/// # Errors
/// Fails with what is wrong. The text follows the name of the setting, and names the address if there are several.
fn parse_daemon_addresses(text: &str) -> Result<Vec<BoundAddress>, String> {
    let parts: Vec<_> = text.split(',').map(str::trim).collect();
    let mut addresses: Vec<BoundAddress> = Vec::new();
    for part in &parts {
        let (platform, address) = match part.split_once('=') {
            // The path of a socket may have the character too.
            Some((platform, address)) if !platform.contains("://") => (Some(platform.trim()), address.trim()),
            _ => (None, *part),
        };
        let address = address
            .parse::<DaemonAddress>()
            .map_err(|error| match parts.len() {
                1 => error.to_string(),
                _ => format!("{error}; it has {part:?}"),
            })?;
        let platform = platform
            .map(|name| {
                Platform::parse(name).ok_or_else(|| {
                    format!(
                        "should have a platform before the =, as in linux/arm64=tcp://buildkit-arm64:1234; it has {part:?}"
                    )
                })
            })
            .transpose()?;
        match addresses.iter_mut().find(|known| known.address == address) {
            None => addresses.push(BoundAddress {
                address,
                platforms: platform.into_iter().collect(),
            }),
            Some(known) => {
                let is_new = !known.platforms.is_empty()
                    && platform.is_some_and(|platform| known.platforms.insert(platform));
                if !is_new {
                    return Err(format!(
                        "should have each daemon once, or once for each of its platforms; it has {part:?} twice"
                    ));
                }
            }
        }
    }
    Ok(addresses)
}

/// Returns the addresses in groups of those that are bound to the same platforms, in the order in which they are given.
fn group_by_platforms(addresses: &[BoundAddress]) -> Vec<(BTreeSet<Platform>, Vec<DaemonAddress>)> {
    let mut groups: Vec<(BTreeSet<Platform>, Vec<DaemonAddress>)> = Vec::new();
    for BoundAddress { address, platforms } in addresses {
        match groups.iter_mut().find(|(known, _)| known == platforms) {
            Some((_, group)) => group.push(address.clone()),
            None => groups.push((platforms.clone(), vec![address.clone()])),
        }
    }
    groups
}

impl fmt::Display for BoundAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.platforms.is_empty() {
            return write!(f, "{}", self.address);
        }
        let entries: Vec<_> = self
            .platforms
            .iter()
            .map(|platform| format!("{platform}={}", self.address))
            .collect();
        f.write_str(&entries.join(","))
    }
}

impl TlsSecretsAndPlaintextPermission {
    /// Returns whether a connection to `address` is unencrypted and leaves this machine.
    fn is_unencrypted_to_another_machine(&self, address: &DaemonAddress) -> bool {
        match address {
            DaemonAddress::Tcp { host, .. } => self.tls.is_none() && !is_loopback_host(host),
            DaemonAddress::Unix(_) => false,
        }
    }

    /// Creates the pool of the daemons at `addresses`, whose certificates are for `name`, or for the hosts of the
    /// addresses. Of daemons that are bound to the same platforms, a single host name is looked up again and again.
    ///
    /// # Errors
    /// Fails with the setting that is wrong, and the problem.
    fn create_pool(
        &self,
        addresses: &[BoundAddress],
        name: Option<String>,
    ) -> Result<DaemonPool, (&'static str, String)> {
        let groups = group_by_platforms(addresses)
            .iter()
            .map(|(platforms, addresses)| self.create_group(platforms, addresses, name.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        let names: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        DaemonPool::of_groups(names.join(","), groups)
            .ok_or_else(|| ("buildkit_url", "should have at least one daemon".to_owned()))
    }

    /// Creates the group of the daemons at `addresses`, which are bound to `platforms`.
    fn create_group(
        &self,
        platforms: &BTreeSet<Platform>,
        addresses: &[DaemonAddress],
        name: Option<String>,
    ) -> Result<DaemonGroup, (&'static str, String)> {
        if let [address @ DaemonAddress::Tcp { host, port }] = addresses
            && host.parse::<IpAddr>().is_err()
        {
            let by_name =
                self.create_handle_if_encrypted_or_plaintext_allowed(address.clone(), name.clone())?;
            let by_name = by_name.bound_to(platforms.clone());
            let (security, port) = (self.clone(), *port);
            let name = name.unwrap_or_else(|| host.clone());
            let fallback = by_name.clone();
            let platforms = platforms.clone();
            let at_ip: DaemonAtIp = Arc::new(move |ip| {
                let address = DaemonAddress::Tcp {
                    host: ip.to_string(),
                    port,
                };
                let daemon = security.create_handle_with_tls_name(&address, name.clone());
                match daemon {
                    Ok(daemon) => daemon.bound_to(platforms.clone()),
                    // The name was valid for the daemon by its host name.
                    Err(_) => fallback.clone(),
                }
            });
            return Ok(DaemonGroup::Resolved(HostResolverForOneAddressFamily {
                host: host.clone(),
                by_name,
                at_ip,
            }));
        }
        let daemons = addresses
            .iter()
            .map(|address| {
                let daemon =
                    self.create_handle_if_encrypted_or_plaintext_allowed(address.clone(), name.clone())?;
                Ok(daemon.bound_to(platforms.clone()))
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(DaemonGroup::Fixed(daemons))
    }

    /// Returns a handle of the daemon at `address`, whose certificate is for `server_name`, or for its host.
    ///
    /// # Errors
    /// Fails with the setting that is wrong, and the problem.
    fn create_handle_if_encrypted_or_plaintext_allowed(
        &self,
        address: DaemonAddress,
        server_name: Option<String>,
    ) -> Result<Daemon, (&'static str, String)> {
        if self.is_unencrypted_to_another_machine(&address) && !self.allows_plaintext {
            return Err((
                "buildkit_url",
                "should use TLS: over plain TCP, anybody on the network can build, and can read and change what is built; \
                 set buildkit_ca, buildkit_cert and buildkit_key, or buildkit_plaintext=true"
                    .to_owned(),
            ));
        }
        let server_name = server_name.unwrap_or_else(|| match &address {
            DaemonAddress::Tcp { host, .. } => host.clone(),
            DaemonAddress::Unix(_) => String::new(),
        });
        self.create_handle_with_tls_name(&address, server_name)
    }

    /// Returns a handle of the daemon at `address`, which uses TLS with the server name `tls_name` if there are secrets
    /// for it and the address is no socket's.
    ///
    /// # Errors
    /// Fails if `tls_name` is not a valid server name and needed.
    fn create_handle_with_tls_name(
        &self,
        address: &DaemonAddress,
        tls_name: String,
    ) -> Result<Daemon, (&'static str, String)> {
        let (DaemonAddress::Tcp { host, port }, Some(secrets)) = (address, &self.tls) else {
            return Ok(Daemon::at(address.clone()));
        };
        let name = ServerName::try_from(tls_name).map_err(|_| {
            let problem = "should be a host name or an IP address";
            ("buildkit_server_name", problem.to_owned())
        })?;
        let tls = TlsDialer {
            host: host.clone(),
            port: *port,
            name,
            secrets: secrets.clone(),
        };
        Ok(Daemon::with_dialer(address.to_string(), tls))
    }
}

fn is_loopback_host(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Returns whether the connection with these settings is exposed, or the problems.
    fn is_exposed_with(variables: &[(&str, &str)], files: &[(&str, &str)]) -> Result<bool, String> {
        let folder = tempfile::tempdir().expect("folder");
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).expect("write");
        }
        let strings: HashMap<&str, &str> = variables.iter().copied().collect();
        let mut parser = SettingsParser::new(&strings);
        let is_exposed = read_daemon_settings(&mut parser, &Secrets::new(folder.path())).is_exposed;
        parser
            .fail_if_problems()
            .map(|()| is_exposed)
            .map_err(|problems| problems.to_string())
    }

    #[test]
    fn a_tcp_connection_without_tls_is_exposed_unless_its_host_is_loopback() {
        for (url, is_exposed) in [
            ("tcp://buildkit:1234", true),
            ("tcp://10.0.0.1:1234", true),
            ("tcp://127.0.0.1:1234", false),
            ("tcp://[::1]:1234", false),
            ("tcp://localhost:1234", false),
            ("unix:///run/buildkitd.sock", false),
        ] {
            let plaintext = ("buildkit_plaintext", "true");
            assert_eq!(
                is_exposed_with(&[("buildkit_url", url), plaintext], &[]),
                Ok(is_exposed),
                "{url}"
            );
            let without = is_exposed_with(&[("buildkit_url", url)], &[]);
            assert_eq!(without.is_err(), is_exposed, "{url}: {without:?}");
            if let Err(error) = without {
                assert!(
                    error.contains("buildkit_url should use TLS")
                        && error.contains("buildkit_plaintext=true"),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn one_exposed_daemon_among_several_makes_the_connection_exposed() {
        let urls = "tcp://127.0.0.1:1234, unix:///run/buildkitd.sock,tcp://buildkit:1234";
        let error = is_exposed_with(&[("buildkit_url", urls)], &[]).expect_err("plain TCP");
        assert!(error.contains("buildkit_url should use TLS"), "{error}");
        let plaintext = ("buildkit_plaintext", "true");
        assert_eq!(
            is_exposed_with(&[("buildkit_url", urls), plaintext], &[]),
            Ok(true)
        );
    }

    #[test]
    fn an_invalid_address_among_several_is_named() {
        for (urls, expected) in [
            (
                "tcp://a:1,b:1",
                r#"should be unix://PATH or tcp://HOST:PORT; it has "b:1""#,
            ),
            (
                "tcp://a:1,",
                r#"should be unix://PATH or tcp://HOST:PORT; it has """#,
            ),
            (
                "tcp://a:1,tcp://b:1,tcp://a:1",
                r#"should have each daemon once, or once for each of its platforms; it has "tcp://a:1" twice"#,
            ),
            (
                "tcp://a:1,linux/arm64=tcp://a:1",
                r#"should have each daemon once, or once for each of its platforms; it has "linux/arm64=tcp://a:1" twice"#,
            ),
            (
                "arm64=tcp://a:1,linux/arm64/v8=tcp://a:1",
                r#"should have each daemon once, or once for each of its platforms; it has "linux/arm64/v8=tcp://a:1" twice"#,
            ),
            (
                "linux=tcp://a:1",
                r#"should have a platform before the =, as in linux/arm64=tcp://buildkit-arm64:1234; it has "linux=tcp://a:1""#,
            ),
            (
                "tcp://a",
                "should have a host and a port, as in tcp://buildkit:1234",
            ),
        ] {
            assert_eq!(parse_daemon_addresses(urls), Err(expected.to_owned()), "{urls}");
        }
        assert_eq!(
            parse_daemon_addresses("tcp://a:1, tcp://b:1").map(|found| found.len()),
            Ok(2)
        );
    }

    #[test]
    fn addresses_are_bound_to_the_platforms_before_them_and_a_socket_may_have_the_sign_in_its_path() {
        let text =
            "tcp://a:1, linux/arm64=tcp://b:1,arm=tcp://b:1,linux/arm64 = tcp://c:1,unix:///run/a=b.sock";
        let addresses = parse_daemon_addresses(text).expect("addresses");
        let names: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "tcp://a:1",
                "linux/arm/v7=tcp://b:1,linux/arm64=tcp://b:1",
                "linux/arm64=tcp://c:1",
                "unix:///run/a=b.sock"
            ]
        );
        assert_eq!(parse_daemon_addresses(&names.join(",")), Ok(addresses.clone()));
        let groups: Vec<_> = group_by_platforms(&addresses)
            .iter()
            .map(|(_, group)| group.len())
            .collect();
        assert_eq!(groups, [2, 1, 1]);
    }

    #[test]
    fn a_tenants_daemon_over_plain_tcp_is_rejected_as_the_builders_own_is() {
        let strings = HashMap::from([("buildkit_url", "unix:///run/buildkitd.sock")]);
        let mut parser = SettingsParser::new(&strings);
        let folder = tempfile::tempdir().expect("folder");
        let daemon_factory = read_daemon_settings(&mut parser, &Secrets::new(folder.path())).daemon_factory;
        daemon_factory("unix:///run/acme.sock").expect("a socket");
        daemon_factory("tcp://127.0.0.1:1").expect("this machine");
        let error = daemon_factory("tcp://acme-buildkit:1234").expect_err("plain TCP");
        assert!(error.starts_with("should use TLS"), "{error}");
        daemon_factory("acme-buildkit").expect_err("no address");
    }

    #[test]
    fn any_tls_setting_or_secret_enables_tls_and_needs_a_usable_authority() {
        let url = ("buildkit_url", "tcp://127.0.0.1:1234");
        for (setting, files) in [
            (Some(("buildkit_server_name", "buildkit")), &[][..]),
            (Some(("buildkit_cert", "mine")), &[]),
            (Some(("buildkit_ca", "ours")), &[]),
            (None, &[("buildkit-ca", "no certificate")]),
        ] {
            let variables: Vec<_> = [url].into_iter().chain(setting).collect();
            let error = is_exposed_with(&variables, files).expect_err("there is no usable authority");
            assert!(error.contains("buildkit_url cannot use TLS: secret "), "{error}");
        }
    }

    #[test]
    fn tls_settings_are_ignored_for_a_unix_socket() {
        let variables = [
            ("buildkit_url", "unix:///run/buildkitd.sock"),
            ("buildkit_server_name", "127.0.0.1"),
        ];
        assert_eq!(is_exposed_with(&variables, &[]), Ok(false));
    }

    #[test]
    fn invalid_server_names_and_secret_names_are_rejected_with_their_setting() {
        let url = ("buildkit_url", "tcp://buildkit:1234");
        let error =
            is_exposed_with(&[url, ("buildkit_server_name", "a b")], &[]).expect_err("an invalid name");
        assert!(
            error.contains("buildkit_server_name should be a host name"),
            "{error}"
        );
        let error = is_exposed_with(&[url, ("buildkit_key", "../key")], &[]).expect_err("an invalid name");
        assert!(
            error.contains("buildkit_key should be the name of a secret"),
            "{error}"
        );
    }
}
