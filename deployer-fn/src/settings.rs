//! The deployer's settings, beside those of the function host.

use std::path::PathBuf;
use std::time::Duration;

use function_host::duration;
use function_host::env::SettingsParser;
use function_host::policy::{PolicyFile, ReservedNames};
use function_host::registry::AdditionalTokenHosts;
use function_host::unverified::UnverifiedLimits;
use function_host::{ErrorChain, Secrets, signature};

use crate::kubernetes::{Kubernetes, KubernetesReaderAsServiceAccount};
use crate::request::check_namespace;
use crate::rollout::RolloutPartTimeouts;
use crate::tenancy::DEPLOY_KEY_SECRET;

/// The default of `ready_timeout`. With the rollback it is less than a minute, after which the community
/// edition's gateway ends a call by default.
const DEFAULT_READY_TIMEOUT: Duration = Duration::from_secs(35);

/// The part of `exec_timeout` that is reserved for a last read of the function's state, and for the response.
const RESPONSE_TIME_RESERVE: Duration = Duration::from_secs(5);

/// The default of `default_namespace`: the namespace that providers use for a function without one.
const DEFAULT_NAMESPACE: &str = "openfaas-fn";

/// The default of `token_mount_path`: the directory in which OpenFaaS's own programs look for a service
/// account's token.
const DEFAULT_TOKEN_MOUNT_PATH: &str = "/var/secrets/tokens";

/// The default limits on hand-overs whose signature is not verified yet. A hand-over usually has a few KiB.
const DEFAULT_UNVERIFIED_LIMITS: UnverifiedLimits = UnverifiedLimits {
    senders: 64,
    memory: 4 << 20,
    disk: 0,
    rate: 64 << 10,
    grace: Duration::from_secs(10),
};

/// The deployer's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `ready_timeout`: the time from the end of the queue until the function answers. The host's
    /// `exec_timeout` bounds it, too.
    pub(crate) ready_timeout: Duration,
    /// `gateway_timeout`: the time for one read from the gateway or one probe. `rollback_timeout`: the time to restore
    /// the previous version after the new one has failed. `settling_time`: the time for which a new version has to stay
    /// up.
    pub timeouts: RolloutPartTimeouts,
    /// `kubernetes_readiness`: the Kubernetes API that shows whether a new version runs. `None` if the setting is off,
    /// or the deployer has no service account.
    pub(crate) kubernetes: Option<Kubernetes>,
    /// `default_namespace`: the namespace in which the provider has functions whose hand-over names none.
    pub(crate) default_namespace: String,
    /// `check_image`: whether the image is looked up in its registry before anything is changed.
    pub check_image: bool,
    /// `insecure`: whether registries speak plain HTTP.
    pub(crate) insecure: bool,
    /// `token_realms`: the hosts that registries may have their token servers on, besides their own.
    pub(crate) token_realms: AdditionalTokenHosts,
    /// `platform`: the platform that functions run on, `os/architecture`.
    pub(crate) platform: String,
    /// `token_mount_path`: the directory with the service account's token, which is exchanged for one of the gateway's.
    pub token_mount_path: PathBuf,
    /// `public_url`: the gateway's address for callers, for the URL in the outcome. By default the URL has the
    /// gateway's address that the deployer itself uses.
    pub(crate) public_url: Option<String>,
    /// `unverified_senders`, `unverified_memory`, `receive_rate` and `receive_grace`: the limits on hand-overs whose
    /// signature is not verified yet.
    pub unverified: UnverifiedLimits,
    /// `policy_file`: the policy; without it, there is one tenant, which may do everything that is not reserved.
    pub policy: Option<PolicyFile>,
    /// `protected_functions` and `protected_secrets`, besides what is always reserved.
    pub(crate) reserved: ReservedNames,
}

impl Settings {
    /// Reads the deployer's settings. Problems are collected by `parser`.
    pub fn read(parser: &mut SettingsParser<'_>) -> Self {
        let timeouts = RolloutPartTimeouts::default();
        let positive = |text: &str| match duration::parse_duration(text) {
            Ok(Duration::ZERO) => Err("should be longer than 0s".to_owned()),
            other => other.map_err(|error| error.to_string()),
        };
        let settings = Self {
            ready_timeout: parser.parse_or_default("ready_timeout", DEFAULT_READY_TIMEOUT, positive),
            timeouts: RolloutPartTimeouts {
                request: parser.parse_or_default("gateway_timeout", timeouts.request, positive),
                rollback: parser.parse_or_default("rollback_timeout", timeouts.rollback, positive),
                stay_up: parser.parse_or_default("settling_time", timeouts.stay_up, |text| {
                    duration::parse_duration(text).map_err(|error| error.to_string())
                }),
                ..timeouts
            },
            kubernetes: read_kubernetes(parser),
            default_namespace: parser.parse_or_default(
                "default_namespace",
                DEFAULT_NAMESPACE.to_owned(),
                |text| check_namespace(text).map(|()| text.to_owned()),
            ),
            check_image: parser.flag("check_image", true),
            insecure: parser.flag("insecure", false),
            token_realms: parser.parse_or_default(
                "token_realms",
                AdditionalTokenHosts::default(),
                str::parse,
            ),
            platform: parser.parse_or_default("platform", platform_of_this_process(), |text| {
                match text.split_once('/') {
                    Some((os, rest)) if !os.is_empty() && !rest.is_empty() && !rest.contains('/') => {
                        Ok(text.to_owned())
                    }
                    _ => Err("should be like linux/amd64"),
                }
            }),
            token_mount_path: parser
                .optional_text("token_mount_path")
                .map_or_else(|| PathBuf::from(DEFAULT_TOKEN_MOUNT_PATH), PathBuf::from),
            public_url: parser.parse_or_default("public_url", None, |text| {
                if text.starts_with("http://") || text.starts_with("https://") {
                    Ok(Some(text.trim_end_matches('/').to_owned()))
                } else {
                    Err("should begin with http:// or https://")
                }
            }),
            unverified: UnverifiedLimits::read_all_but_disk(parser, DEFAULT_UNVERIFIED_LIMITS),
            policy: parser.parse_or_default("policy_file", None, |path| {
                PolicyFile::open(path)
                    .map(Some)
                    .map_err(|error| format!("should name a valid policy: {}", ErrorChain(&error)))
            }),
            reserved: ReservedNames::built_in_and_from_settings(parser),
        };
        if settings.timeouts.stay_up >= settings.ready_timeout {
            parser.add_problem(
                "settling_time",
                "should be shorter than ready_timeout, of which it is a part",
            );
        }
        // The host's own setting: the host reports one that is not a duration.
        let exec = parser
            .optional_text("exec_timeout")
            .and_then(|text| duration::parse_duration(&text).ok());
        let minimum = settings.ready_timeout + settings.timeouts.rollback + RESPONSE_TIME_RESERVE;
        if exec.is_some_and(|exec| !exec.is_zero() && exec < minimum) {
            let problem = format!(
                "should be at least {}: ready_timeout, rollback_timeout and 5s for the response",
                duration::format_duration(minimum)
            );
            parser.add_problem("exec_timeout", problem);
        }
        settings
    }
}

impl Settings {
    /// Adds a problem to `parser` for each secret for signatures that has an unusable key, so that it prevents the
    /// start. A secret that cannot be read is no problem here.
    pub fn report_unfit_signing_keys(&self, parser: &mut SettingsParser<'_>, secrets: &Secrets) {
        signature::report_unfit_keys_of_readable_secret(parser, secrets, DEPLOY_KEY_SECRET);
        let policy = self.policy.as_ref().map(PolicyFile::reload_if_changed);
        for tenant in policy.iter().flat_map(|policy| policy.tenants()) {
            for name in tenant.deploy_key_secrets() {
                signature::report_unfit_keys_of_readable_secret(parser, secrets, name);
            }
        }
    }
}

/// Returns the Kubernetes API of the pod's service account, unless `kubernetes_readiness` is false or there is none.
fn read_kubernetes(parser: &mut SettingsParser<'_>) -> Option<Kubernetes> {
    if !parser.flag("kubernetes_readiness", true) {
        return None;
    }
    // The variables that Kubernetes sets in every container.
    let host = parser.optional_text("KUBERNETES_SERVICE_HOST");
    let port = parser.optional_text("KUBERNETES_SERVICE_PORT");
    match KubernetesReaderAsServiceAccount::of_pod_if_it_has_service_account(host.as_deref(), port.as_deref())
    {
        Ok(reader) => reader.map(Kubernetes::new),
        Err(error) => {
            let problem = format!(
                "needs the certificate of the Kubernetes API, which cannot be used: {}; or should be false",
                ErrorChain(&*error)
            );
            parser.add_problem("kubernetes_readiness", problem);
            None
        }
    }
}

/// Returns `linux/` with the architecture of this process, as registries name it.
fn platform_of_this_process() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("linux/{architecture}")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_default_timeouts_fit_within_the_gateways_default_timeout() {
        let empty: [(&str, &str); 0] = [];
        let mut parser = SettingsParser::new(&empty);
        let settings = Settings::read(&mut parser);
        parser.fail_if_problems().unwrap();
        assert!(settings.ready_timeout + settings.timeouts.rollback < Duration::from_secs(60));
        assert_eq!(settings.public_url, None);
    }

    #[test]
    fn settings_that_are_set_replace_the_defaults() {
        let given = [
            ("ready_timeout", "2m"),
            ("gateway_timeout", "5"),
            ("public_url", "https://fn.example/"),
        ];
        let mut parser = SettingsParser::new(&given);
        let settings = Settings::read(&mut parser);
        parser.fail_if_problems().unwrap();
        assert_eq!(settings.ready_timeout, Duration::from_secs(120));
        assert_eq!(settings.timeouts.request, Duration::from_secs(5));
        assert_eq!(settings.public_url.as_deref(), Some("https://fn.example"));
    }

    #[test]
    fn timeouts_that_exceed_exec_timeout_are_rejected() {
        for (exec, fits) in [("59s", false), ("60s", true), ("0s", true), ("6m", true)] {
            let given = [("exec_timeout", exec)];
            let mut parser = SettingsParser::new(&given);
            Settings::read(&mut parser);
            assert_eq!(parser.fail_if_problems().is_ok(), fits, "{exec}");
        }
        let given = [("ready_timeout", "5m"), ("exec_timeout", "5m20s")];
        let mut parser = SettingsParser::new(&given);
        Settings::read(&mut parser);
        let problem = parser.fail_if_problems().unwrap_err().to_string();
        assert!(
            problem.contains("exec_timeout should be at least 5m25s"),
            "{problem}"
        );
    }

    #[test]
    fn every_readable_secret_with_an_unfit_signing_key_is_named() {
        let directory = tempfile::tempdir().unwrap();
        for (name, content) in [
            ("deploy-secret", "short"),
            ("team-a", "-----BEGIN PRIVATE KEY-----"),
            ("team-b", "a key of 17 bytes"),
            (
                "policy",
                r#"{"tenants": {"a": {"deployKeys": ["team-a", "team-b", "missing"]}}}"#,
            ),
        ] {
            fs::write(directory.path().join(name), content).unwrap();
        }
        let policy = directory.path().join("policy");
        let given = [("policy_file", policy.to_str().unwrap())];
        let mut parser = SettingsParser::new(&given);
        let settings = Settings::read(&mut parser);
        settings.report_unfit_signing_keys(&mut parser, &Secrets::new(directory.path()));
        let problems = parser.fail_if_problems().unwrap_err();
        let names: Vec<_> = problems.0.iter().map(|problem| &*problem.name).collect();
        assert_eq!(names, ["secret deploy-secret", "secret team-a"]);
    }

    #[test]
    fn all_wrong_settings_are_reported_at_once() {
        let given = [
            ("ready_timeout", "0s"),
            ("gateway_timeout", "soon"),
            ("settling_time", "35s"),
            ("public_url", "fn.example"),
            ("policy_file", "/nowhere/policy.json"),
            ("platform", "amd64"),
            ("default_namespace", "OpenFaaS"),
            ("insecure", "perhaps"),
            ("token_realms", "https://auth.example/token"),
        ];
        let mut parser = SettingsParser::new(&given);
        Settings::read(&mut parser);
        assert_eq!(parser.fail_if_problems().unwrap_err().0.len(), 9);
    }
}
