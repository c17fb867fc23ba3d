//! The deployer's settings, besides those of the function host.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use function_host::duration;
use function_host::env::Parser;

use crate::policy::Policy;
use crate::rollout::Limits;

/// The gateway of the community ends a call after a minute, wherever nothing else is set: the answer is given before,
/// with what was there before put back where that was needed.
const DEFAULT_READY_TIMEOUT: Duration = Duration::from_secs(35);

/// What is left of `exec_timeout` for a last look at what runs, and the answer.
const TO_ANSWER: Duration = Duration::from_secs(5);

/// Where OpenFaaS's own programs look for a service account's token.
const TOKEN_MOUNT_PATH: &str = "/var/secrets/tokens";

/// The deployer's settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `ready_timeout`: how long a function may take from the hand-over until it answers. Bounded by the host's
    /// `exec_timeout`, too.
    pub ready_timeout: Duration,
    /// `gateway_timeout`: how long the gateway may take for one question. `rollback_timeout`: how long it may take, after that,
    /// to put back what was there before.
    pub limits: Limits,
    /// `check_image`: whether the registry is asked for the image before anything is changed.
    pub check_image: bool,
    /// `insecure`: whether registries speak plain HTTP.
    pub insecure: bool,
    /// `platform`: what functions run on, `os/architecture`.
    pub platform: String,
    /// `token_mount_path`: where a service account's token is, to be exchanged for the gateway's.
    pub token_mount_path: PathBuf,
    /// `public_url`: the gateway's address as callers know it, for the URL in the outcome. Where it is not set, the URL is the
    /// one by which the deployer itself would call the function.
    pub public_url: Option<String>,
    /// `policy_file`: the path of a file with what may be deployed; without it, everything.
    pub policy: Policy,
}

impl Settings {
    /// Reads them; what is wrong is remembered by `parser`.
    pub fn read(parser: &mut Parser<'_>) -> Self {
        let limits = Limits::default();
        let some_time = |text: &str| match duration::parse(text) {
            Ok(Duration::ZERO) => Err("should be longer than nothing".to_owned()),
            other => other.map_err(|error| error.to_string()),
        };
        let settings = Self {
            ready_timeout: parser.parse("ready_timeout", DEFAULT_READY_TIMEOUT, some_time),
            limits: Limits {
                request: parser.parse("gateway_timeout", limits.request, some_time),
                rollback: parser.parse("rollback_timeout", limits.rollback, some_time),
                ..limits
            },
            check_image: parser.flag("check_image", true),
            insecure: parser.flag("insecure", false),
            platform: parser.parse("platform", own_platform(), |text| match text.split_once('/') {
                Some((os, rest)) if !os.is_empty() && !rest.is_empty() && !rest.contains('/') => {
                    Ok(text.to_owned())
                }
                _ => Err("should be like linux/amd64"),
            }),
            token_mount_path: parser
                .text("token_mount_path")
                .map_or_else(|| PathBuf::from(TOKEN_MOUNT_PATH), PathBuf::from),
            public_url: parser.parse("public_url", None, |text| {
                if text.starts_with("http://") || text.starts_with("https://") {
                    Ok(Some(text.trim_end_matches('/').to_owned()))
                } else {
                    Err("should begin with http:// or https://")
                }
            }),
            policy: parser.parse("policy_file", Policy::default(), |path| {
                let text = fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))?;
                Policy::parse(&text).map_err(|error| format!("is not a policy: {error}"))
            }),
        };
        // The host's own; it complains itself of one that is none.
        let exec = parser
            .text("exec_timeout")
            .and_then(|text| duration::parse(&text).ok());
        let least = settings.ready_timeout + settings.limits.rollback + TO_ANSWER;
        if exec.is_some_and(|exec| !exec.is_zero() && exec < least) {
            let what = format!(
                "should be at least {}: ready_timeout, rollback_timeout and 5s for the answer",
                duration::format(least)
            );
            parser.problem("exec_timeout", what);
        }
        settings
    }
}

/// The one that this process runs on, as registries name it.
fn own_platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("linux/{architecture}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_defaults_that_suit_a_gateway_without_settings() {
        let empty: [(&str, &str); 0] = [];
        let mut parser = Parser::new(&empty);
        let settings = Settings::read(&mut parser);
        parser.finish().unwrap();
        assert!(settings.ready_timeout + settings.limits.rollback < Duration::from_secs(60));
        assert_eq!(settings.public_url, None);
    }

    #[test]
    fn settings_are_read_as_they_are_written() {
        let given = [
            ("ready_timeout", "2m"),
            ("gateway_timeout", "5"),
            ("public_url", "https://fn.example/"),
        ];
        let mut parser = Parser::new(&given);
        let settings = Settings::read(&mut parser);
        parser.finish().unwrap();
        assert_eq!(settings.ready_timeout, Duration::from_secs(120));
        assert_eq!(settings.limits.request, Duration::from_secs(5));
        assert_eq!(settings.public_url.as_deref(), Some("https://fn.example"));
    }

    #[test]
    fn limits_that_do_not_fit_into_the_hosts_are_refused() {
        for (exec, fits) in [("59s", false), ("60s", true), ("0s", true), ("6m", true)] {
            let given = [("exec_timeout", exec)];
            let mut parser = Parser::new(&given);
            Settings::read(&mut parser);
            assert_eq!(parser.finish().is_ok(), fits, "{exec}");
        }
        let given = [("ready_timeout", "5m"), ("exec_timeout", "5m20s")];
        let mut parser = Parser::new(&given);
        Settings::read(&mut parser);
        let problem = parser.finish().unwrap_err().to_string();
        assert!(
            problem.contains("exec_timeout should be at least 5m25s"),
            "{problem}"
        );
    }

    #[test]
    fn all_wrong_settings_are_named() {
        let given = [
            ("ready_timeout", "0s"),
            ("gateway_timeout", "soon"),
            ("public_url", "fn.example"),
            ("policy_file", "/nowhere/policy.json"),
            ("platform", "amd64"),
            ("insecure", "perhaps"),
        ];
        let mut parser = Parser::new(&given);
        Settings::read(&mut parser);
        assert_eq!(parser.finish().unwrap_err().0.len(), 6);
    }
}
