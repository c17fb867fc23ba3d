//! What the environment says.
//!
//! Besides those of the host (`function_host`):
//!
//! | variable | default | what |
//! | --- | --- | --- |
//! | `buildkit_…` | | the way to the daemon: see `settings/daemon.rs` |
//! | `insecure` | `false` | registries speak plain HTTP |
//! | `accept_sha1` | `true` | requests may be signed with HMAC-SHA1, as by releases of faas-cli from before 2022 |
//! | `disable_hmac` | `false` | requests need no signature, because something in front of the builder decides |
//! | `max_body` | 1073741824 | largest body of a request in bytes |
//! | `max_log` | 4194304 | how much of a build's log is told, in bytes; of a longer one its beginning and its end |
//! | `max_entries` | 200000 | most files, folders and links in a tar |
//! | `max_config` | 1048576 | largest `com.openfaas.docker.config` and `com.openfaas.secrets` in bytes |
//! | `queue_wait` | `0s` | how long a call waits for a place where `max_inflight` builds run, before it is refused |
//! | `queue_length` | 16 | how many calls wait at a time |
//! | `spool_dir` | the system's folder for temporary files | where a body larger than 256 KiB waits |
//! | `spool_limit` | 4294967296 | bytes that all bodies may take together, in memory and in files |
//! | `compression` | `zstd` | how layers are compressed: `zstd`, `gzip` or `uncompressed` |
//! | `compression_level` | BuildKit's | from 1, the quickest, to 22 (`zstd`) or 9 (`gzip`) |
//! | `registry_config` | `registry-config` in `secret_mount_path` | a Docker `config.json`; may be missing |
//! | `credential_helpers` | those in `PATH` | the folder with the helpers (`docker-credential-NAME`) that `registry_config` names |
//! | `allowed_frontends` | | images that a Dockerfile's `# syntax=` line may name besides the built-in `docker/dockerfile` |
//! | `sbom_generator` | | the image that makes the list of an image's content, for `sbom` |
//! | `build_secrets_private_key_path` | | a private key that build secrets are sealed to, 32 bytes in base64, as `faas-cli secret keygen` makes it |
//! | `deployer` | `deployer-fn` | the function that deploys, `NAME` or `NAME.NAMESPACE` |
//! | `deploy_via` | `function` | by which way: `function`, `async-function`, or `callback`, see [`Via`] |
//! | `deploy_timeout` | `5m` | how long a deployment may take |
//! | `enable_lchown` | | accepted and without effect: nothing is extracted |
//!
//! Traces have settings of their own: `OTEL_…`, see [`function_host::trace`].
//!
//! Secrets: `payload-secret` (unless `disable_hmac`), `deploy-secret` (for `deploy`), `registry-config`.

mod daemon;

use std::path::{Path, PathBuf};
use std::time::Duration;

use function_host::env::Parser;
use function_host::{ErrorChain, Secrets};

use crate::buildkit::Daemon;
use crate::chain::Via;
use crate::compression::{Compression, Format};
use crate::context::{self, ArchiveLimits};
use crate::docker_config::DockerConfig;
use crate::places::Places;
use crate::request::{AllowedFrontends, ImageRef};
use crate::sealed::SealKey;

/// The secret that requests are signed with.
pub const PAYLOAD_SECRET: &str = "payload-secret";

/// The secret with credentials for registries.
pub const REGISTRY_SECRET: &str = "registry-config";

/// The settings, parsed.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The daemon.
    pub daemon: Daemon,
    /// Whether the way to it leads over a network and is not secured.
    pub is_exposed: bool,
    /// Whether registries speak plain HTTP.
    pub insecure: bool,
    /// Whether requests need no signature.
    pub disable_hmac: bool,
    /// Whether a request may be signed with HMAC-SHA1.
    pub accept_sha1: bool,
    /// Largest body of a request, in bytes.
    pub max_body: u64,
    /// How much of a build's log is told, in bytes.
    pub max_log: usize,
    /// Most entries of a tar.
    pub max_entries: usize,
    /// Largest configuration and envelope of secrets, in bytes.
    pub max_config: usize,
    /// How many builds run and wait.
    pub places: Places,
    /// Whether the host leaves `max_inflight` to us.
    pub limits_itself: bool,
    /// What build secrets are sealed to.
    pub seal: Option<SealKey>,
    /// Where bodies wait.
    pub spool_dir: PathBuf,
    /// Bytes that bodies may take together.
    pub spool_limit: u64,
    /// How layers are compressed, where a build does not say it.
    pub compression: Compression,
    /// A Docker `config.json`. It may be missing.
    pub registry_config: PathBuf,
    /// The folder with credential helpers.
    pub credential_helpers: Option<PathBuf>,
    /// Which frontends Dockerfiles may name.
    pub allowed_frontends: AllowedFrontends,
    /// The image that lists what is in an image.
    pub sbom_generator: Option<String>,
    /// The function that deploys.
    pub deployer: String,
    /// By which way it is reached.
    pub deploy_via: Via,
    /// How long a deployment may take.
    pub deploy_timeout: Duration,
}

impl Settings {
    /// Reads all of them. What is wrong is in `parser` then, and nothing here is to be used.
    ///
    /// `max_inflight` is the host's setting.
    pub fn read(parser: &mut Parser<'_>, secrets: &Secrets, max_inflight: Option<usize>) -> Self {
        let (daemon, is_exposed) = daemon::read(parser, secrets);
        let places = places(parser, max_inflight);
        let settings = Self {
            daemon,
            is_exposed,
            insecure: parser.flag("insecure", false),
            disable_hmac: parser.flag("disable_hmac", false),
            accept_sha1: parser.flag("accept_sha1", true),
            max_body: parser.number("max_body", 1 << 30),
            max_log: parser.parse("max_log", 4 << 20, max_log),
            max_entries: parser.number("max_entries", ArchiveLimits::default().entries),
            max_config: parser.number("max_config", ArchiveLimits::default().small_file),
            limits_itself: places.is_some(),
            places: places.unwrap_or_default(),
            seal: parser
                .text("build_secrets_private_key_path")
                .map(|path| SealKey::at(Path::new(&path))),
            spool_dir: parser
                .text("spool_dir")
                .map_or_else(std::env::temp_dir, PathBuf::from),
            spool_limit: parser.number("spool_limit", 4 << 30),
            compression: compression(parser),
            registry_config: parser
                .text("registry_config")
                .map_or_else(|| secrets.directory().join(REGISTRY_SECRET), PathBuf::from),
            credential_helpers: parser.text("credential_helpers").map(PathBuf::from),
            allowed_frontends: parser.parse("allowed_frontends", AllowedFrontends::default(), str::parse),
            sbom_generator: parser.parse("sbom_generator", None, |name| {
                ImageRef::parse(name)
                    .map(|image| Some(image.to_string()))
                    .map_err(|error| format!("should be an image: {error}"))
            }),
            deployer: parser.parse("deployer", "deployer-fn".to_owned(), function_name),
            deploy_via: parser.parse("deploy_via", Via::default(), str::parse),
            deploy_timeout: parser.duration("deploy_timeout", Duration::from_secs(300)),
        };
        parser.flag("enable_lchown", false);
        if let Some(Err(error)) = settings.seal.as_ref().map(SealKey::public) {
            let what = format!("cannot be used: {}", ErrorChain(&error));
            parser.problem("build_secrets_private_key_path", what);
        }
        if !settings.spool_dir.is_dir() {
            let what = format!(
                "should name a folder, and {} is none",
                settings.spool_dir.display()
            );
            parser.problem("spool_dir", what);
        } else if let Err(error) = context::check_spool(&settings.spool_dir) {
            parser.problem(
                "spool_dir",
                format!("should name a folder to write to: {}", ErrorChain(&error)),
            );
        }
        if settings.spool_limit < settings.max_body {
            parser.problem(
                "spool_limit",
                "should be at least max_body, so that one body fits",
            );
        }
        if let Some(folder) = settings
            .credential_helpers
            .as_ref()
            .filter(|folder| !folder.is_dir())
        {
            let what = format!("should name a folder, and {} is none", folder.display());
            parser.problem("credential_helpers", what);
        }
        if let Err(error) = DockerConfig::at(&settings.registry_config).check() {
            parser.problem("registry_config", format!("cannot be used: {error}"));
        }
        if !settings.disable_hmac
            && let Err(error) = secrets.read(PAYLOAD_SECRET)
        {
            parser.problem("disable_hmac", format!("is not set, and {error}"));
        }
        settings
    }
}

/// Below a certain size the remarks about what is left out would be more than what is told.
fn max_log(text: &str) -> Result<usize, &'static str> {
    let number = text.parse().ok().filter(|bytes| *bytes >= 16 << 10);
    number.ok_or("should be a number of bytes, 16384 or more")
}

fn compression(parser: &mut Parser<'_>) -> Compression {
    let format = parser.parse("compression", Format::Zstd, str::parse);
    let level = parser.parse("compression_level", None, |text| {
        // What is no whole number is no level of any format.
        let level = Some(text.parse().unwrap_or(u64::MAX));
        Compression::new(format, level).map(|compression| compression.level)
    });
    Compression { format, level }
}

/// Places of our own, where calls are to wait for them.
fn places(parser: &mut Parser<'_>, max_inflight: Option<usize>) -> Option<Places> {
    let wait = parser.duration("queue_wait", Duration::ZERO);
    let queue = parser.number("queue_length", 16_usize);
    if wait.is_zero() {
        return None;
    }
    let Some(limit) = max_inflight else {
        parser.problem(
            "queue_wait",
            "needs max_inflight, which says how many builds run at a time",
        );
        return None;
    };
    Some(Places::new(limit, wait, queue))
}

fn function_name(text: &str) -> Result<String, &'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    match text.bytes().all(allowed) && text.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        true => Ok(text.to_owned()),
        false => Err("should be the name of a function, NAME or NAME.NAMESPACE"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use function_host::env::Problems;

    use super::*;

    fn read(variables: &[(&str, &str)], secret: Option<&str>) -> Result<Settings, Problems> {
        let folder = tempfile::tempdir().expect("folder");
        if let Some(secret) = secret {
            std::fs::write(folder.path().join(PAYLOAD_SECRET), secret).expect("write");
        }
        let strings: HashMap<&str, &str> = variables.iter().copied().collect();
        let mut parser = Parser::new(&strings);
        let settings = Settings::read(&mut parser, &Secrets::new(folder.path()), None);
        parser.finish().map(|()| settings)
    }

    #[test]
    fn an_address_and_a_secret_are_enough() {
        let settings = read(&[("buildkit_url", "tcp://buildkit:1234")], Some("key")).expect("settings");

        assert_eq!(settings.daemon.name(), "tcp://buildkit:1234");
        assert!(settings.is_exposed);
        assert_eq!((settings.insecure, settings.disable_hmac), (false, false));
        assert_eq!((settings.max_body, settings.max_log), (1 << 30, 4 << 20));
        assert_eq!(settings.spool_limit, 4 << 30);
        assert_eq!(settings.compression, Compression::default());
        assert_eq!(settings.deployer, "deployer-fn");
        assert!(settings.registry_config.ends_with(REGISTRY_SECRET));
    }

    #[test]
    fn everything_that_is_wrong_is_named_at_once() {
        let problems = read(
            &[
                ("buildkit_url", "http://buildkit"),
                ("insecure", "perhaps"),
                ("max_body", "-1"),
                ("max_log", "1024"),
                ("build_secrets_private_key_path", "/proc/version"),
                ("spool_dir", "/nowhere/at/all"),
                ("deployer", "../system/functions"),
                ("deploy_timeout", "soon"),
                ("max_entries", "many"),
                ("max_config", "1k"),
                ("queue_wait", "5m"),
                ("deploy_via", "carrier pigeon"),
                ("registry_config", "/proc/version"),
                ("credential_helpers", "/nowhere/at/all"),
                ("allowed_frontends", "team/Upper"),
                ("sbom_generator", "a b"),
                ("spool_limit", "7"),
                ("compression", "gzip"),
                ("compression_level", "12"),
            ],
            Some(" \n"),
        )
        .expect_err("all of it is wrong");

        let text = problems.to_string();
        for part in [
            "buildkit_url should be unix://PATH or tcp://HOST:PORT",
            "insecure should be",
            "max_body should be",
            "build_secrets_private_key_path cannot be used: ",
            "max_log should be a number of bytes, 16384 or more",
            "spool_dir should name a folder",
            "deployer should be the name",
            "credential_helpers should name a folder",
            "allowed_frontends should be images",
            "sbom_generator should be an image",
            "deploy_timeout",
            "spool_limit should be at least max_body",
            "compression_level should be a whole number from 1 to 9 for gzip",
            "max_entries should be",
            "max_config should be",
            "queue_wait needs max_inflight",
            "deploy_via should be function, async-function or callback",
            "registry_config cannot be used: ",
            "disable_hmac is not set, and secret payload-secret is empty",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert_eq!(problems.0.len(), 19);
    }

    #[test]
    fn calls_wait_where_they_are_told_to_and_there_is_a_limit() {
        let read = |variables: &[(&str, &str)]| {
            let strings: HashMap<&str, &str> = variables.iter().copied().collect();
            let mut parser = Parser::new(&strings);
            let places = places(&mut parser, Some(1));
            parser.finish().map(|()| places)
        };
        assert!(read(&[]).expect("settings").is_none(), "the host limits");
        let places = read(&[("queue_wait", "1m"), ("queue_length", "0")])
            .expect("settings")
            .expect("places");
        let _one = places.admit().expect("room");
        assert!(places.full());
    }

    #[test]
    fn without_signatures_no_secret_is_needed() {
        read(
            &[("buildkit_url", "unix:///run/b.sock"), ("disable_hmac", "true")],
            None,
        )
        .expect("settings");

        let problems =
            read(&[("buildkit_url", "unix:///run/b.sock")], None).expect_err("the secret is missing");
        assert!(
            problems.to_string().contains("payload-secret is missing"),
            "{problems}"
        );
    }
}
