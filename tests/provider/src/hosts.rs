//! The files with which functions resolve names: `/etc/hosts` and `/etc/resolv.conf`.

use std::{fs, net::IpAddr, path::PathBuf};

use crate::{error::ProviderError, settings::ProviderSettings};

/// The paths of the files that are mounted into every function, for its resolver.
pub(crate) struct ResolverFiles {
    pub(crate) resolv_conf: PathBuf,
    pub(crate) hosts: PathBuf,
}

/// Writes the functions' `resolv.conf` and `hosts` to the state directory.
pub(crate) fn write_resolver_files(settings: &ProviderSettings) -> Result<ResolverFiles, ProviderError> {
    let servers = match settings.nameservers.as_slice() {
        [] => reachable_name_servers(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
        given => given.to_vec(),
    };
    let resolv_conf = settings.state_dir.join("resolv.conf");
    let hosts = settings.state_dir.join("hosts");
    let server_lines: String = servers
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    let extra_lines = settings
        .extra_hosts
        .iter()
        .map(|(name, address)| format!("{address}\t{name}\n"));
    let host_lines: String = std::iter::once("127.0.0.1\tlocalhost\n".to_owned())
        .chain(extra_lines)
        .collect();
    for (path, lines) in [(&resolv_conf, server_lines), (&hosts, host_lines)] {
        fs::write(path, lines).map_err(ProviderError::io_error("write", path))?;
    }
    let absolute = |path: PathBuf| fs::canonicalize(&path).map_err(ProviderError::io_error("resolve", &path));
    Ok(ResolverFiles {
        resolv_conf: absolute(resolv_conf)?,
        hosts: absolute(hosts)?,
    })
}

/// Returns the name servers that a function can reach. Inside a function, a loopback address is the function
/// itself.
fn reachable_name_servers(resolv_conf_text: &str) -> Vec<IpAddr> {
    let values = resolv_conf_text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = values.filter_map(|value| value.trim().parse().ok());
    addresses
        .filter(|address: &IpAddr| !address.is_loopback())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_name_servers_are_left_out_of_a_functions_resolv_conf() {
        let file = "# made by hand\nnameserver 127.0.0.53\nnameserver 10.0.2.3\nsearch lan\nnameserver ::1\n";
        assert_eq!(reachable_name_servers(file), [IpAddr::from([10, 0, 2, 3])]);
    }
}
