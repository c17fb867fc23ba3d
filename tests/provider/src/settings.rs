//! Settings of the provider, from flags or environment variables of the same names.
//!
//! Settings that faasd has too have its names (`sock`, `service_timeout`, `secret_mount_path`). Durations are
//! Go's (`1m30s`, `500ms`), or whole seconds.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, ValueEnum};

use crate::{error::ProviderError, model::NameValueMap};

/// The annotation with a function's own update strategy: `rolling`, `recreate` or `deferred`. With it, a test can
/// use all strategies on one provider without affecting other functions.
const UPDATE_STRATEGY_ANNOTATION: &str = "dev.slipway.update-strategy";

/// Settings of the provider.
#[derive(Args, Clone, Debug)]
pub struct ProviderSettings {
    /// Address of the REST API and the function proxy.
    #[arg(long, env = "listen_address", default_value = "10.62.0.1:8081")]
    pub(crate) listen_address: SocketAddr,

    /// The path of containerd's socket.
    #[arg(long, env = "sock", default_value = "/run/containerd/containerd.sock")]
    pub(crate) sock: PathBuf,

    /// The containerd namespace of functions whose requests name none.
    #[arg(long, env = "function_namespace", default_value = "openfaas-fn")]
    pub(crate) function_namespace: String,

    /// The name of containerd's snapshotter.
    #[arg(long, env = "snapshotter", default_value = "overlayfs")]
    pub(crate) snapshotter: String,

    /// The directory for logs, network leases and the mounted files of functions.
    #[arg(long, env = "state_dir", default_value = "/var/lib/slipway-dev")]
    pub(crate) state_dir: PathBuf,

    /// The directory for secrets, with one directory for each namespace. Default: `secrets` under the state
    /// directory.
    #[arg(long, env = "secrets_dir")]
    pub(crate) secrets_dir: Option<PathBuf>,

    /// The directory with the API's credentials: files `basic-auth-user` and `basic-auth-password`.
    #[arg(long, env = "secret_mount_path", default_value = "/run/secrets")]
    pub(crate) secret_mount_path: PathBuf,

    /// A Docker `config.json` with registry credentials (`auths` only: no credential helpers).
    #[arg(long, env = "registry_config")]
    pub(crate) registry_config: Option<PathBuf>,

    /// Registries (`host:port`, comma-separated) that use plain HTTP.
    #[arg(long, env = "plain_http_registries", value_delimiter = ',')]
    pub(crate) plain_http_registries: Vec<String>,

    /// The directory of the CNI plugins.
    #[arg(long, env = "cni_bin_dir", default_value = "/usr/lib/cni")]
    pub(crate) cni_bin_dir: PathBuf,

    /// The directory to which the CNI configuration is written, for inspection only. Default: `cni/net.d` under
    /// the state directory.
    #[arg(long, env = "cni_conf_dir")]
    pub(crate) cni_conf_dir: Option<PathBuf>,

    /// The name of the bridge of the functions' network.
    #[arg(long, env = "bridge", default_value = "openfaas0")]
    pub(crate) bridge: String,

    /// The subnet of the functions; the host has its first address.
    #[arg(long, env = "subnet", default_value = "10.62.0.0/16")]
    pub(crate) subnet: String,

    /// Name servers for functions. Default: those of `/etc/resolv.conf` that are not loopback addresses.
    #[arg(long, env = "nameservers", value_delimiter = ',')]
    pub(crate) nameservers: Vec<IpAddr>,

    /// Additional lines for the functions' `/etc/hosts`: `name=address`, comma-separated.
    #[arg(long, env = "extra_hosts", value_delimiter = ',', value_parser = parse_name_equals_address)]
    pub(crate) extra_hosts: Vec<(String, IpAddr)>,

    /// The parent of the functions' cgroups.
    #[arg(long, env = "cgroup_parent", default_value = "/slipway-dev")]
    pub(crate) cgroup_parent: String,

    /// The strategy with which functions are updated. The annotation `dev.slipway.update-strategy` overrides
    /// this for one function.
    #[arg(long, env = "update_strategy", value_enum, default_value_t = UpdateStrategy::Rolling)]
    pub(crate) update_strategy: UpdateStrategy,

    /// The timeout of a call of a function, and of a stream of logs.
    #[arg(long, env = "service_timeout", default_value = "60s", value_parser = parse_duration)]
    pub(crate) service_timeout: Duration,

    /// The timeout of pulling an image.
    #[arg(long, env = "pull_timeout", default_value = "5m", value_parser = parse_duration)]
    pub(crate) pull_timeout: Duration,

    /// The time for an updated function to accept connections before the update fails.
    #[arg(long, env = "ready_timeout", default_value = "30s", value_parser = parse_duration)]
    pub(crate) ready_timeout: Duration,

    /// The time for a replaced function to finish its calls, and then the time between SIGTERM and SIGKILL.
    #[arg(long, env = "grace_period", default_value = "30s", value_parser = parse_duration)]
    pub(crate) grace_period: Duration,
}

/// The strategy for updating a function, and for restarting it when it ends by itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum UpdateStrategy {
    /// The provider starts the new version beside the old one, and routes calls to it once it listens; a failed
    /// update changes nothing. A function that ends by itself is restarted.
    Rolling,
    /// The provider deletes the old version, then creates the new one, as faasd 0.19 does, so that a failed
    /// update leaves no running function. A function counts as available once its process runs, and is not
    /// restarted when it ends by itself.
    Recreate,
    /// As faas-netes does: accepts an update and reports the new version at once, while the old version keeps
    /// answering, and counts as available, until the new one listens; if it never does, for ever. A function
    /// that ends by itself is restarted.
    Deferred,
}

impl ProviderSettings {
    /// Creates the directories for state and secrets and makes their paths absolute, because containers refer
    /// to them.
    pub(crate) fn with_state_and_secrets_directories_created(mut self) -> Result<Self, ProviderError> {
        let absolute = |directory: PathBuf| {
            fs::create_dir_all(&directory).map_err(ProviderError::io_error("create", &directory))?;
            directory
                .canonicalize()
                .map_err(ProviderError::io_error("resolve", &directory))
        };
        let secrets_dir = self.secrets_dir();
        self.state_dir = absolute(self.state_dir)?;
        self.secrets_dir = Some(absolute(secrets_dir)?);
        Ok(self)
    }

    /// Returns the update strategy of a function with these annotations.
    pub(crate) fn strategy_for(&self, annotations: &NameValueMap) -> UpdateStrategy {
        let requested = annotations.get(UPDATE_STRATEGY_ANNOTATION);
        let own = requested.and_then(|text| UpdateStrategy::from_str(text, false).ok());
        own.unwrap_or(self.update_strategy)
    }

    /// Returns the directory for functions' secrets.
    pub(crate) fn secrets_dir(&self) -> PathBuf {
        self.secrets_dir
            .clone()
            .unwrap_or_else(|| self.state_dir.join("secrets"))
    }

    /// Returns the directory to which the CNI configuration is written.
    pub(crate) fn cni_conf_dir(&self) -> PathBuf {
        self.cni_conf_dir
            .clone()
            .unwrap_or_else(|| self.state_dir.join("cni/net.d"))
    }

    /// Returns the parent directory of the `/tmp` of functions with a read-only root.
    pub(crate) fn scratch_dir(&self) -> PathBuf {
        self.state_dir.join("tmp")
    }

    /// Returns the directory for the functions' logs.
    pub(crate) fn logs_dir(&self) -> PathBuf {
        self.state_dir.join("logs")
    }
}

/// Parses a duration in Go's notation, such as `1m30s`, or in whole seconds.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let signed: jiff::SignedDuration = text
        .parse()
        .map_err(|_| "not a duration; use one like 1m30s or 500ms")?;
    signed
        .try_into()
        .map_err(|_| "a duration cannot be negative".to_owned())
}

/// Parses a line for `/etc/hosts` that is written `name=address`.
fn parse_name_equals_address(text: &str) -> Result<(String, IpAddr), String> {
    let (name, address) = text.split_once('=').ok_or("not an alias; use name=address")?;
    let address = address
        .parse()
        .map_err(|_| format!("{address:?} is not an IP address"))?;
    Ok((name.to_owned(), address))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct SettingsLine {
        #[command(flatten)]
        settings: ProviderSettings,
    }

    fn settings_with_flags(flags: &[&str]) -> ProviderSettings {
        SettingsLine::try_parse_from([&["provider"], flags].concat())
            .unwrap()
            .settings
    }

    #[test]
    fn settings_that_are_not_set_have_defaults() {
        let settings = settings_with_flags(&[]);
        assert_eq!(settings.function_namespace, "openfaas-fn");
        assert_eq!(settings.service_timeout, Duration::from_secs(60));
        assert_eq!(settings.update_strategy, UpdateStrategy::Rolling);
        assert_eq!(
            settings.secrets_dir(),
            PathBuf::from("/var/lib/slipway-dev/secrets")
        );
    }

    #[test]
    fn an_annotation_overrides_the_strategy_of_one_function() {
        let settings = settings_with_flags(&[]);
        let annotated =
            |text: &str| NameValueMap::from([(UPDATE_STRATEGY_ANNOTATION.to_owned(), text.to_owned())]);
        assert_eq!(
            settings.strategy_for(&NameValueMap::new()),
            UpdateStrategy::Rolling
        );
        assert_eq!(
            settings.strategy_for(&annotated("recreate")),
            UpdateStrategy::Recreate
        );
        assert_eq!(
            settings.strategy_for(&annotated("unknown")),
            UpdateStrategy::Rolling
        );
        assert_eq!(
            settings.strategy_for(&annotated("deferred")),
            UpdateStrategy::Deferred
        );
        let recreate = settings_with_flags(&["--update-strategy", "recreate"]);
        assert_eq!(
            recreate.strategy_for(&annotated("rolling")),
            UpdateStrategy::Rolling
        );
    }

    #[test]
    fn durations_in_settings_are_gos_or_whole_seconds() {
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("20"), Ok(Duration::from_secs(20)));
        assert!(parse_duration("soon").is_err());
        assert!(parse_duration("-1s").is_err());
    }

    #[test]
    fn lists_in_settings_are_separated_by_commas() {
        let settings = settings_with_flags(&[
            "--plain-http-registries",
            "a:5000,b:80",
            "--extra-hosts",
            "gateway=10.62.0.1",
        ]);
        assert_eq!(settings.plain_http_registries, ["a:5000", "b:80"]);
        assert_eq!(
            settings.extra_hosts,
            [("gateway".to_owned(), [10, 62, 0, 1].into())]
        );
    }
}
