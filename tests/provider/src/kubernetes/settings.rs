//! Settings of the backend on Kubernetes, which have the names and defaults of faas-netes.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args};

use crate::settings::parse_duration;

/// Settings of the backend on Kubernetes. The flags and environment variables of faas-netes have the same names.
#[derive(Args, Clone, Debug)]
pub struct KubernetesSettings {
    /// The path of a kubeconfig. Default: the service account of this pod.
    #[arg(long, env = "KUBECONFIG")]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// The port of the REST API and the function proxy, on all addresses.
    #[arg(long, env = "port", default_value_t = 8080)]
    pub(crate) port: u16,

    /// The only namespace of functions.
    #[arg(long, env = "function_namespace", default_value = "openfaas-fn")]
    pub(crate) function_namespace: String,

    /// The timeout of a call of a function.
    #[arg(long, env = "read_timeout", default_value = "10s", value_parser = parse_duration)]
    pub(crate) read_timeout: Duration,

    /// The timeout of a stream of logs.
    #[arg(long, env = "write_timeout", default_value = "10s", value_parser = parse_duration)]
    pub(crate) write_timeout: Duration,

    /// Whether functions are probed over HTTP (`/_/health`), and not by the file `/tmp/.lock`.
    #[arg(long, env = "http_probe", default_value_t = false, action = ArgAction::Set)]
    pub(crate) http_probe: bool,

    /// Whether functions run as user 12000.
    #[arg(long, env = "set_nonroot_user", default_value_t = false, action = ArgAction::Set)]
    pub(crate) set_nonroot_user: bool,

    /// Whether the API requires credentials.
    #[arg(long, env = "basic_auth", default_value_t = false, action = ArgAction::Set)]
    pub(crate) basic_auth: bool,

    /// The directory with the API's credentials: files `basic-auth-user` and `basic-auth-password`.
    #[arg(long, env = "secret_mount_path", default_value = "/run/secrets")]
    pub(crate) secret_mount_path: PathBuf,

    /// Accepted for compatibility with faas-netes Community, which has no operator either.
    #[arg(long, hide = true, default_value_t = false, action = ArgAction::Set)]
    pub(crate) operator: bool,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct SettingsLine {
        #[command(flatten)]
        settings: KubernetesSettings,
    }

    #[test]
    fn settings_that_are_not_set_have_the_defaults_of_faas_netes() {
        let settings = SettingsLine::try_parse_from(["provider"]).unwrap().settings;
        assert_eq!(settings.port, 8080);
        assert_eq!(settings.function_namespace, "openfaas-fn");
        assert_eq!(settings.read_timeout, Duration::from_secs(10));
        assert!(!settings.http_probe && !settings.set_nonroot_user && !settings.basic_auth);
    }

    #[test]
    fn the_command_line_of_faas_netes_is_accepted() {
        let line = ["provider", "--operator=false", "--kubeconfig=/etc/kubeconfig"];
        let settings = SettingsLine::try_parse_from(line).unwrap().settings;
        assert_eq!(settings.kubeconfig, Some("/etc/kubeconfig".into()));
    }
}
