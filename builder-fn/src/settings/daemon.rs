//! Reads the settings of the connection to BuildKit: its address and TLS.
//!
//! | variable | default | meaning |
//! | --- | --- | --- |
//! | `buildkit_url` | required | the address of the daemon: `unix://PATH` or `tcp://HOST:PORT` |
//! | `buildkit_server_name` | the host of `buildkit_url` | the name that the daemon's certificate must be valid for |
//! | `buildkit_ca` | `buildkit-ca` | the secret with the certificate of the authority that signed the daemon's certificate |
//! | `buildkit_cert`, `buildkit_key` | `buildkit-cert`, `buildkit-key` | the secrets with the builder's own certificate and key |
//!
//! `tcp://` uses TLS if one of the last four variables is set, or if there is a secret `buildkit-ca`.

use std::net::IpAddr;
use std::path::PathBuf;

use function_host::Secrets;
use function_host::env::Parser;
use rustls::pki_types::ServerName;

use crate::buildkit::{Daemon, DaemonAddress, TlsDialer, TlsSecrets};

/// Reads the settings of the daemon, and returns whether the connection is exposed: unencrypted and not within
/// this machine.
pub(super) fn read_daemon_settings(parser: &mut Parser<'_>, secrets: &Secrets) -> (Daemon, bool) {
    let unset = || DaemonAddress::Unix(PathBuf::new());
    let address = match parser.required_text("buildkit_url").as_str() {
        "" => unset(),
        _ => parser.parse_or_default("buildkit_url", unset(), |text| text.parse::<DaemonAddress>()),
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
    // A socket needs no TLS. The commercial chart sets the server's name for a socket too.
    let DaemonAddress::Tcp { host, port } = &address else {
        return (Daemon::at(address), false);
    };
    let is_wanted = name.is_some() || authority.1 || certificate.1 || key.1 || secrets.exists(&authority.0);
    if !is_wanted {
        let is_exposed = !is_loopback_host(host);
        return (Daemon::at(address), is_exposed);
    }
    let name = name.unwrap_or_else(|| host.clone());
    let Ok(name) = ServerName::try_from(name) else {
        parser.add_problem("buildkit_server_name", "should be a host name or an IP address");
        return (Daemon::at(address), false);
    };
    let secrets = TlsSecrets {
        secrets: secrets.clone(),
        authority: authority.0,
        certificate: certificate.0,
        key: key.0,
    };
    if let Err(error) = secrets.check_usable() {
        parser.add_problem("buildkit_url", format!("cannot use TLS: {error}"));
    }
    let tls = TlsDialer {
        host: host.clone(),
        port: *port,
        name,
        secrets,
    };
    (Daemon::with_dialer(address.to_string(), tls), false)
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
        let mut parser = Parser::new(&strings);
        let (_, is_exposed) = read_daemon_settings(&mut parser, &Secrets::new(folder.path()));
        parser
            .finish()
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
            assert_eq!(
                is_exposed_with(&[("buildkit_url", url)], &[]),
                Ok(is_exposed),
                "{url}"
            );
        }
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
