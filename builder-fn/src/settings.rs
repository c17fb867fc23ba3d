//! The settings of the builder, read from the environment.
//!
//! Besides the host's own (`function_host`):
//!
//! | variable | default | meaning |
//! | --- | --- | --- |
//! | `buildkit_…` | | the connection to BuildKit: see `settings/daemon.rs` |
//! | `insecure` | `false` | whether registries speak plain HTTP, and `context.url`, `context.git` and `notify` may be
//! `http://` |
//! | `accept_sha1` | `true` | whether HMAC-SHA1 signatures, as of releases of faas-cli from before 2022, are accepted
//! too |
//! | `disable_hmac` | `false` | whether requests need no signature, because something in front of the builder
//! authorizes them |
//! | `max_body` | 1073741824 | limit on the body of a request, in bytes |
//! | `max_log` | 4194304 | limit on the log of a build, in bytes; of a longer log, the beginning and the end are kept |
//! | `max_entries` | 200000 | limit on the files, directories and links in a tar |
//! | `max_config` | 1048576 | limit on each of `com.openfaas.docker.config` and `com.openfaas.secrets`, in bytes |
//! | `queue_wait` | `0s` | how long a request waits for a slot while `max_inflight` builds run, before it is rejected |
//! | `queue_length` | 16 | limit on the requests of one tenant, or of all callers without a policy, that wait for a
//! slot |
//! | `spool_dir` | the system's directory for temporary files | where bodies larger than 256 KiB are spooled |
//! | `spool_limit` | 4294967296 | limit on the bytes of all verified bodies together, in memory and in files; copies of
//! logs count too |
//! | `unverified_senders` | 128 | limit on the bodies that are received at the same time, before their signatures are
//! verified |
//! | `unverified_memory` | 16777216 | limit on the memory of such bodies together, in bytes |
//! | `unverified_limit` | 1073741824 | limit on the files of such bodies together, in bytes; at least `max_body` |
//! | `receive_rate` | 65536 | lowest rate at which a body may arrive, in bytes per second |
//! | `receive_grace` | `10s` | how long a body may arrive more slowly |
//! | `compression` | `zstd` | compression of layers: `zstd`, `gzip` or `uncompressed` |
//! | `compression_level` | BuildKit's | from 1, the fastest, to 22 (`zstd`) or 9 (`gzip`) |
//! | `registry_config` | `registry-config` in `secret_mount_path` | a Docker `config.json`; the file may be missing |
//! | `credential_helpers` | those in `PATH` | directory of the helpers (`docker-credential-NAME`) that
//! `registry_config` names |
//! | `token_realms` | | hosts on which registries may have their token servers, besides their own |
//! | `allowed_frontends` | | images that a Dockerfile's `# syntax=` line may name, besides the built-in
//! `docker/dockerfile` |
//! | `max_age` | | limit on the age of a request whose config has `submittedAt` |
//! | `require_fresh` | `false` | whether a config without `submittedAt` is rejected; needs `max_age` |
//! | `sbom_generator` | | the image that generates SBOMs, for a config's `sbom` |
//! | `allowed_sources` | | private hosts, HOST or HOST:PORT, that builds may read from |
//! | `git_tokens` | | secrets with the operator's tokens for git repositories of contexts: a list of URL=SECRET |
//! | `status_tokens` | | secrets with the operator's tokens for the statuses of commits: a list of URL=SECRET |
//! | `retry_time` | `2m` | limit on the pauses between retries of a queued call's build, after failures of BuildKit or
//! a registry |
//! | `contexts_repository` | | the repository, REGISTRY/PATH, in which `POST /contexts` stores contexts |
//! | `records_repository` | | the repository, REGISTRY/PATH, in which records of builds are kept; needs the secret
//! `deploy-secret` |
//! | `cache_registry` | | the repository, REGISTRY/PATH, to which caches are exported after builds |
//! | `delete_contexts` | `false` | whether a stored context is deleted once it was built |
//! | `step_memory` | the daemon's | limit on the memory of one build step, in bytes |
//! | `step_cpus` | the daemon's | limit on the CPU time of one build step, in cores, such as `1.5` |
//! | `default_namespace` | `openfaas-fn` | the namespace of a function whose `deploy` names none |
//! | `build_secrets_private_key_path` | | file with the private key that build secrets are sealed to: 32 bytes in
//! base64, as written by `faas-cli secret keygen` |
//! | `policy_file` | | the JSON file with the tenants, their keys and rules, see [`function_host::policy`] |
//! | `protected_functions` | | functions that no build may deploy, besides Slipway's own |
//! | `protected_secrets` | | secrets that no function may use, besides those that Slipway uses |
//! | `builder_function` | `builder-fn` | the builder itself as a function, `NAME` or `NAME.NAMESPACE`, to whose queue
//! it submits calls again |
//! | `deployer` | `deployer-fn` | the function that deploys, `NAME` or `NAME.NAMESPACE` |
//! | `deploy_via` | `function` | how hand-overs reach it: `function`, `async-function` or `callback`, see [`DeployVia`] |
//! | `deploy_timeout` | `5m` | time limit of a hand-over with all its attempts and the wait for the deployer's answer |
//! | `hand_over_ttl` | `1h` | how long the deployer may accept a hand-over |
//! | `page_lifetime` | `24h` | how long a link to the page of a build is valid |
//! | `page_url` | | the address at which browsers reach the builder, such as
//! `https://gateway.example/function/builder-fn` |
//! | `enable_lchown` | | accepted and ignored: nothing is extracted |
//!
//! Traces have settings of their own: `OTEL_…`, see [`function_host::trace`].
//!
//! Secrets: `payload-secret` (unless `disable_hmac` or `policy_file`), `deploy-secret` (for `deploy`),
//! `registry-config`.

mod daemon;
mod pages;

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use function_host::env::SettingsParser;
use function_host::policy::{KeySecretReader, Policy, PolicyFile, ReservedNames};
use function_host::prometheus::IntGauge;
use function_host::registry::AdditionalTokenHosts;
use function_host::signature;
use function_host::unverified::{UnverifiedBudget, UnverifiedLimits};
use function_host::{ErrorChain, Secrets};

use crate::build::BuildSettings;
use crate::buildkit::{DaemonPool, StepLimits};
use crate::builds::PageSettings;
use crate::compression::{CompressionFormat, LayerCompression};
use crate::context::{self, ArchiveLimits, SpoolQuota};
use crate::docker_config::{CredentialHelpers, DockerConfig};
use crate::hand_over::{self, DeployVia, HandOverSettings};
use crate::operator_tokens::OperatorTokenSecretNames;
use crate::registry::OperatorRepository;
use crate::remote_context::StoredContextRepositorySettings;
use crate::request::{
    self, AllowedFrontends, FreshnessLimit, ImageRef, RequestLimits, UnverifiedBodyResources,
};
use crate::sealed::SealKeyFile;
use crate::slots::BuildSlots;
use crate::sources::AllowedPrivateHosts;
use crate::tenants::TenantResources;
use daemon::DaemonSettings;
use pages::read_page_settings;

/// The name of the secret that requests are signed with on a builder without a policy.
pub(crate) const PAYLOAD_SECRET_NAME: &str = "payload-secret";

/// The name of the secret with the credentials for registries.
const REGISTRY_SECRET_NAME: &str = "registry-config";

/// The lowest valid `unverified_memory`, in bytes: room for the largest body in memory, and for two batches of another.
const UNVERIFIED_MEMORY_MIN: u64 = 1 << 20;

/// The default namespace of functions: OpenFaaS's own default.
const DEFAULT_FUNCTION_NAMESPACE: &str = "openfaas-fn";

/// The builder's parsed settings, in the groups in which they are used.
#[derive(Debug)]
pub struct Settings {
    /// The BuildKit daemons that build.
    pub pool: DaemonPool,
    /// Whether a connection to a daemon leaves the machine and is not encrypted.
    pub is_exposed: bool,
    /// Whether tenants may share a daemon that is old or does not report its version.
    pub allows_any_buildkit_version: bool,
    /// The operator's credentials for registries, from the secret `registry-config`; empty if the secret is missing.
    pub credentials: DockerConfig,
    /// The hosts that registry tokens may be fetched from, besides those of the registries.
    pub token_realms: AdditionalTokenHosts,
    /// The registry credentials and the BuildKit daemons of tenants, if there is a policy.
    pub tenants: TenantResources,
    /// The settings for stored contexts.
    pub stored_contexts: StoredContextRepositorySettings,
    /// The settings that apply to every build.
    pub build: BuildSettings,
    /// Limits on build requests.
    pub requests: RequestLimitSettings,
    /// Settings for which signatures of requests are accepted.
    pub signatures: AcceptedSignatureSettings,
    /// The slots of builds that may run at the same time, and the queue for them.
    pub slots: BuildSlots,
    /// The settings for the hand-over to the deployer.
    pub deployer: HandOverSettings,
    /// The limit on the log of a build, in bytes.
    pub max_log: usize,
    /// The private key that build secrets are sealed to.
    pub seal_key: Option<SealKeyFile>,
    /// Settings for the pages of builds.
    pub pages: PageSettings,
    /// The builder's own name as a function.
    pub own_function: String,
}

/// Limits on a build request, and where its body is spooled.
#[derive(Clone, Debug)]
pub struct RequestLimitSettings {
    /// The limit on a request's body, in bytes.
    max_body: u64,
    /// The limit on the number of entries of the tar.
    max_entries: usize,
    /// The limit on the config and on the envelope of secrets, in bytes.
    max_config: usize,
    /// The directory of the files that store request bodies too large for memory.
    spool_dir: PathBuf,
    /// The limit on all verified bodies together, in bytes.
    spool_limit: u64,
    /// The limits on bodies whose signatures have not been verified.
    unverified: UnverifiedLimits,
    /// The frontends that Dockerfiles may name.
    frontends: AllowedFrontends,
    /// The limit on the age of a request.
    freshness: FreshnessLimit,
    /// The names that no deployment may use.
    reserved: ReservedNames,
}

/// Settings for which signatures of requests are accepted.
#[derive(Clone, Debug, Default)]
pub struct AcceptedSignatureSettings {
    /// Whether requests need no signature.
    pub disable_hmac: bool,
    /// Whether HMAC-SHA1 signatures are accepted too.
    pub accept_sha1: bool,
    /// The policy, whose tenants' keys alone sign requests; without one, `payload-secret` does.
    pub policy: Option<PolicyFile>,
    /// The reader of the secrets with the tenants' keys.
    pub key_reader: KeySecretReader,
}

impl Settings {
    /// Reads all settings of the builder. If any is invalid, `parser` has the problems, and the result must not
    /// be used.
    ///
    /// `max_inflight` is the host's setting.
    pub fn read(parser: &mut SettingsParser<'_>, secrets: &Secrets, max_inflight: Option<usize>) -> Self {
        let DaemonSettings {
            pool,
            is_exposed,
            allows_any_version: allows_any_buildkit_version,
            daemon_factory,
        } = daemon::read_daemon_settings(parser, secrets);
        let credentials = read_docker_config(parser, secrets);
        let token_realms =
            parser.parse_or_default("token_realms", AdditionalTokenHosts::default(), str::parse);
        let build = read_build_settings(parser);
        let tenants = TenantResources::new(
            secrets.clone(),
            build.insecure,
            token_realms.clone(),
            credentials.helpers().clone(),
            daemon_factory,
        );
        let deployer = parser.parse_or_default(
            "deployer",
            "deployer-fn".to_owned(),
            parse_function_with_optional_namespace,
        );
        let mut settings = Self {
            pool,
            is_exposed,
            allows_any_buildkit_version,
            credentials,
            token_realms,
            tenants,
            stored_contexts: read_stored_context_settings(parser),
            build,
            requests: RequestLimitSettings::read_limits_and_check_spool_folder(parser),
            signatures: AcceptedSignatureSettings::read_accepted_signature_settings(parser, secrets),
            slots: read_build_slots(parser, max_inflight),
            deployer: HandOverSettings {
                function: deployer,
                via: parser.parse_or_default("deploy_via", DeployVia::default(), str::parse),
                timeout: parser.duration("deploy_timeout", Duration::from_secs(300)),
                hand_over_ttl: read_hand_over_ttl(parser),
            },
            max_log: parser.parse_or_default("max_log", 4 << 20, parse_max_log_bytes),
            seal_key: read_seal_key(parser),
            pages: read_page_settings(parser),
            own_function: parser.parse_or_default(
                "builder_function",
                "builder-fn".to_owned(),
                parse_function_with_optional_namespace,
            ),
        };
        parser.flag("enable_lchown", false);
        if settings.signatures.policy.is_some()
            && settings.requests.spool_limit / 2 < settings.requests.max_body
        {
            parser.add_problem(
                "spool_limit",
                "should be at least twice max_body with policy_file, because a tenant uses at most as much as it leaves free",
            );
        }
        settings.check_records_deploy_secret_and_overlap(parser, secrets);
        settings.check_overlap_of_caches(parser);
        settings.report_unreadable_operator_tokens(parser, secrets);
        settings.reserve_names_of_slipway_itself(parser, secrets);
        settings.check_tenants_daemons(parser);
        settings
    }

    /// Reports the daemons of tenants whose addresses cannot be used.
    fn check_tenants_daemons(&self, parser: &mut SettingsParser<'_>) {
        let Some(policy) = &self.signatures.policy else {
            return;
        };
        for tenant in policy.reload_if_changed().tenants() {
            if let Err(problem) = self.tenants.daemon(tenant) {
                parser.add_problem("policy_file", format!("cannot be used: {problem}"));
            }
        }
    }

    /// Reports a repository for records that cannot be used.
    fn check_records_deploy_secret_and_overlap(&self, parser: &mut SettingsParser<'_>, secrets: &Secrets) {
        let Some(records) = &self.build.records_repository else {
            return;
        };
        if !secrets.exists(hand_over::DEPLOY_SECRET_NAME) {
            let problem = format!(
                "needs the secret {}, with which records are sealed",
                hand_over::DEPLOY_SECRET_NAME
            );
            parser.add_problem("records_repository", problem);
        }
        let contexts = self.stored_contexts.repository.as_ref();
        if contexts.is_some_and(|contexts| contexts.overlaps(records)) {
            let problem = "should be another repository than contexts_repository, and neither in the other";
            parser.add_problem("records_repository", problem);
        }
    }

    /// Reports a repository for caches that overlaps another one of the builder.
    fn check_overlap_of_caches(&self, parser: &mut SettingsParser<'_>) {
        let Some(caches) = &self.build.cache_repository else {
            return;
        };
        for (name, other) in [
            ("records_repository", &self.build.records_repository),
            ("contexts_repository", &self.stored_contexts.repository),
        ] {
            if other.as_ref().is_some_and(|other| other.overlaps(caches)) {
                let problem = format!("should be another repository than {name}, and neither in the other");
                parser.add_problem("cache_registry", problem);
            }
        }
    }

    /// Reports tokens of the operator that cannot be read.
    fn report_unreadable_operator_tokens(&self, parser: &mut SettingsParser<'_>, secrets: &Secrets) {
        for (setting, tokens) in [
            ("git_tokens", &self.build.git_tokens),
            ("status_tokens", &self.build.status_tokens),
        ] {
            for name in tokens.secret_names() {
                if let Err(error) = secrets.read_secret(name) {
                    parser.add_problem(setting, format!("cannot be used: {}", ErrorChain(&error)));
                }
            }
        }
    }

    /// Reserves the names that the settings give to the deployer, the builder and the builder's secrets.
    fn reserve_names_of_slipway_itself(&mut self, parser: &mut SettingsParser<'_>, secrets: &Secrets) {
        let reserved = &mut self.requests.reserved;
        reserved.reserve_function_in_every_namespace(&self.deployer.function);
        reserved.reserve_function_in_every_namespace(&self.own_function);
        let tokens = [&self.build.git_tokens, &self.build.status_tokens];
        for name in tokens
            .into_iter()
            .flat_map(OperatorTokenSecretNames::secret_names)
        {
            reserved.reserve_secret(name);
        }
        for setting in ["buildkit_ca", "buildkit_cert", "buildkit_key"] {
            if let Some(name) = parser.optional_text(setting) {
                reserved.reserve_secret(&name);
            }
        }
        for setting in ["registry_config", "build_secrets_private_key_path"] {
            let path = parser.optional_text(setting).map(PathBuf::from);
            let name = path
                .as_deref()
                .and_then(|path| path.strip_prefix(secrets.directory()).ok());
            if let Some(name) = name.and_then(Path::to_str) {
                reserved.reserve_secret(name);
            }
        }
    }
}

impl RequestLimitSettings {
    /// Reads the limits on requests, and checks that the spool's folder is writable.
    fn read_limits_and_check_spool_folder(parser: &mut SettingsParser<'_>) -> Self {
        let max_body = parser.number("max_body", 1 << 30);
        let settings = Self {
            max_body,
            max_entries: parser.number("max_entries", ArchiveLimits::default().entries),
            max_config: parser.number("max_config", ArchiveLimits::default().small_file),
            spool_dir: parser
                .optional_text("spool_dir")
                .map_or_else(std::env::temp_dir, PathBuf::from),
            spool_limit: parser.number("spool_limit", 4 << 30),
            unverified: read_unverified_limits(parser, max_body),
            frontends: parser.parse_or_default("allowed_frontends", AllowedFrontends::default(), str::parse),
            freshness: read_freshness_limit(parser),
            reserved: ReservedNames::built_in_and_from_settings(parser),
        };
        if !settings.spool_dir.is_dir() {
            let problem = format!(
                "should name a directory; {} is not one",
                settings.spool_dir.display()
            );
            parser.add_problem("spool_dir", problem);
        } else if let Err(error) = context::check_spool_folder_writable(&settings.spool_dir) {
            let problem = format!("should name a writable directory: {}", ErrorChain(&error));
            parser.add_problem("spool_dir", problem);
        }
        if settings.spool_limit < settings.max_body {
            parser.add_problem(
                "spool_limit",
                "should be at least max_body, so that one body fits",
            );
        }
        settings
    }

    /// Returns the limit on the disk space of copies of logs, in bytes: an eighth of the spool beyond the largest body.
    pub fn log_copies_limit(&self) -> u64 {
        self.spool_limit.saturating_sub(self.max_body) / 8
    }

    /// Returns the limits on requests that these settings set. `spooled_bytes_gauge` mirrors the bytes of spooled
    /// verified bodies and fetched contexts.
    pub fn into_request_limits(self, spooled_bytes_gauge: IntGauge) -> RequestLimits {
        let quota = SpoolQuota::new(self.spool_limit, spooled_bytes_gauge);
        let mut limits = RequestLimits::new(self.max_body, self.spool_dir, quota);
        limits.unverified = UnverifiedBodyResources::new(UnverifiedBudget::new(self.unverified));
        limits.frontends = self.frontends;
        limits.freshness = self.freshness;
        limits.reserved = Arc::new(self.reserved);
        limits
            .archive
            .set_entry_limit_and_raise_index_limit(self.max_entries);
        limits.archive.small_file = self.max_config;
        limits
    }
}

impl AcceptedSignatureSettings {
    /// Reads the settings of signatures, and checks the policy and the secrets with keys.
    fn read_accepted_signature_settings(parser: &mut SettingsParser<'_>, secrets: &Secrets) -> Self {
        let settings = Self {
            disable_hmac: parser.flag("disable_hmac", false),
            accept_sha1: parser.flag("accept_sha1", true),
            policy: read_policy_file(parser),
            key_reader: KeySecretReader::default(),
        };
        if let Some(policy) = &settings.policy {
            settings.report_policy_conflicts_and_unfit_readable_keys(
                &policy.reload_if_changed(),
                parser,
                secrets,
            );
        } else if !settings.disable_hmac {
            if let Err(error) = secrets.read_secret(PAYLOAD_SECRET_NAME) {
                parser.add_problem("disable_hmac", format!("is not set, and {error}"));
            }
            signature::report_unfit_keys_of_readable_secret(parser, secrets, PAYLOAD_SECRET_NAME);
        }
        signature::report_unfit_keys_of_readable_secret(parser, secrets, hand_over::DEPLOY_SECRET_NAME);
        settings
    }

    /// Reports settings that contradict a policy, and unfit keys in the readable secrets that it names. A secret that
    /// cannot be read is only logged: it locks out its tenant alone.
    fn report_policy_conflicts_and_unfit_readable_keys(
        &self,
        policy: &Policy,
        parser: &mut SettingsParser<'_>,
        secrets: &Secrets,
    ) {
        if self.disable_hmac {
            parser.add_problem(
                "disable_hmac",
                "should be false with policy_file: a request's signature tells its tenant",
            );
        }
        if parser.optional_text("allowed_frontends").is_some() {
            parser.add_problem(
                "allowed_frontends",
                "should be left out with policy_file, whose tenants have frontends of their own (tenants.NAME.frontends)",
            );
        }
        for name in policy.tenants().flat_map(|tenant| tenant.key_secrets()) {
            signature::report_unfit_keys_of_readable_secret(parser, secrets, name);
            self.key_reader.read_usable_key_secret_or_log(secrets, name);
        }
    }
}

/// Reads the policy that the setting `policy_file` names; returns `None` if it names none.
fn read_policy_file(parser: &mut SettingsParser<'_>) -> Option<PolicyFile> {
    parser.parse_or_default("policy_file", None, |path| {
        PolicyFile::open(path)
            .map(Some)
            .map_err(|error| format!("should name a valid policy: {}", ErrorChain(&error)))
    })
}

/// Parses the limits on bodies whose signatures have not been verified.
fn read_unverified_limits(parser: &mut SettingsParser<'_>, max_body: u64) -> UnverifiedLimits {
    let defaults = request::default_unverified_limits(max_body);
    let limits = UnverifiedLimits {
        senders: parser.number("unverified_senders", defaults.senders),
        memory: parser.number("unverified_memory", defaults.memory),
        disk: parser.number("unverified_limit", defaults.disk),
        rate: parser.number("receive_rate", defaults.rate),
        grace: parser.duration("receive_grace", defaults.grace),
    };
    if limits.senders == 0 {
        parser.add_problem("unverified_senders", "should be at least 1");
    }
    if limits.memory < UNVERIFIED_MEMORY_MIN {
        let problem =
            format!("should be at least {UNVERIFIED_MEMORY_MIN}, so that a piece of each body fits");
        parser.add_problem("unverified_memory", problem);
    }
    if limits.disk < max_body {
        parser.add_problem(
            "unverified_limit",
            "should be at least max_body, so that one body fits",
        );
    }
    if limits.grace.is_zero() {
        parser.add_problem(
            "receive_grace",
            "should be longer than 0s, so that a body can begin to arrive",
        );
    }
    limits
}

/// Parses the settings `max_age` and `require_fresh`.
fn read_freshness_limit(parser: &mut SettingsParser<'_>) -> FreshnessLimit {
    let max_age = parser.duration("max_age", Duration::ZERO);
    let is_required = parser.flag("require_fresh", false);
    if max_age.is_zero() {
        if is_required {
            parser.add_problem(
                "require_fresh",
                "needs max_age, which says how old a request may be",
            );
        }
        return FreshnessLimit::Unlimited;
    }
    FreshnessLimit::Limited { max_age, is_required }
}

fn read_build_settings(parser: &mut SettingsParser<'_>) -> BuildSettings {
    BuildSettings {
        insecure: parser.flag("insecure", false),
        compression: read_compression(parser),
        sbom_generator: parser.parse_or_default("sbom_generator", None, |name| {
            ImageRef::parse(name)
                .map(|image| Some(image.to_string()))
                .map_err(|error| format!("should be an image: {error}"))
        }),
        default_namespace: parser.parse_or_default(
            "default_namespace",
            DEFAULT_FUNCTION_NAMESPACE.to_owned(),
            parse_namespace,
        ),
        allowed_sources: parser.parse_or_default(
            "allowed_sources",
            AllowedPrivateHosts::default(),
            str::parse,
        ),
        git_tokens: parser.parse_or_default("git_tokens", OperatorTokenSecretNames::default(), str::parse),
        status_tokens: parser.parse_or_default(
            "status_tokens",
            OperatorTokenSecretNames::default(),
            str::parse,
        ),
        step_limits: StepLimits {
            memory: parser.parse_or_default("step_memory", None, parse_step_memory_to_some_bytes),
            millicpus: parser.parse_or_default("step_cpus", None, parse_cores_to_some_thousandths),
        },
        retry_time: parser.duration("retry_time", Duration::from_secs(120)),
        records_repository: parser.parse_or_default("records_repository", None, |name| {
            OperatorRepository::parse(name)
                .map(Some)
                .ok_or("should be a repository without a tag, like registry.example.com/slipway/records")
        }),
        cache_repository: parser.parse_or_default("cache_registry", None, |name| {
            OperatorRepository::parse(name)
                .map(Some)
                .ok_or("should be a repository without a tag, like registry.example.com/slipway/caches")
        }),
    }
}

/// Parses the settings `contexts_repository` and `delete_contexts`.
fn read_stored_context_settings(parser: &mut SettingsParser<'_>) -> StoredContextRepositorySettings {
    let settings = StoredContextRepositorySettings {
        repository: parser.parse_or_default("contexts_repository", None, |name| {
            OperatorRepository::parse(name)
                .map(Some)
                .ok_or("should be a repository without a tag, like registry.example.com/slipway/contexts")
        }),
        deletes_built: parser.flag("delete_contexts", false),
    };
    if settings.deletes_built && settings.repository.is_none() {
        parser.add_problem(
            "delete_contexts",
            "needs contexts_repository, in which contexts are stored",
        );
    }
    settings
}

/// Parses the setting `step_memory`: a number of bytes, at least 8 MiB. runc starts no process with less memory.
fn parse_step_memory_to_some_bytes(text: &str) -> Result<Option<NonZeroU64>, &'static str> {
    let bytes = text.parse().ok().filter(|bytes| *bytes >= 8 << 20);
    match bytes.and_then(NonZeroU64::new) {
        Some(bytes) => Ok(Some(bytes)),
        None => Err("should be a number of bytes, 8388608 or more"),
    }
}

/// Parses the setting `step_cpus`, a number of cores with up to three decimals, and returns it in thousandths of a
/// core.
fn parse_cores_to_some_thousandths(text: &str) -> Result<Option<NonZeroU64>, &'static str> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let thousandths = (is_number(whole) && is_number(fraction) && fraction.len() <= 3)
        .then(|| format!("{whole}{fraction:0<3}").parse().ok())
        .flatten();
    // The kernel accepts no quota under a hundredth of a period.
    match thousandths
        .filter(|number| *number >= 10)
        .and_then(NonZeroU64::new)
    {
        Some(number) => Ok(Some(number)),
        None => Err("should be a number of cores, 0.01 or more, such as 1.5"),
    }
}

/// Parses the name of a Kubernetes namespace.
fn parse_namespace(text: &str) -> Result<String, &'static str> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match text.bytes().all(allowed) && (1..=63).contains(&text.len()) {
        true => Ok(text.to_owned()),
        false => Err("should be a namespace: lower-case letters, digits and hyphens"),
    }
}

/// Reads `registry_config` and `credential_helpers`, and checks that the file, if it exists, can be used.
fn read_docker_config(parser: &mut SettingsParser<'_>, secrets: &Secrets) -> DockerConfig {
    let path = parser
        .optional_text("registry_config")
        .map_or_else(|| secrets.directory().join(REGISTRY_SECRET_NAME), PathBuf::from);
    let folder = parser.optional_text("credential_helpers").map(PathBuf::from);
    if let Some(folder) = folder.as_ref().filter(|folder| !folder.is_dir()) {
        let problem = format!("should name a directory; {} is not one", folder.display());
        parser.add_problem("credential_helpers", problem);
    }
    let config = DockerConfig::at(path);
    if let Err(error) = config.check_readable_if_present() {
        let problem = format!("cannot be used: {}", ErrorChain(&error));
        parser.add_problem("registry_config", problem);
    }
    config.with_helpers(CredentialHelpers {
        folder,
        ..CredentialHelpers::default()
    })
}

/// Reads `build_secrets_private_key_path`, and checks that the file has a key.
fn read_seal_key(parser: &mut SettingsParser<'_>) -> Option<SealKeyFile> {
    let path = parser.optional_text("build_secrets_private_key_path")?;
    let key = SealKeyFile::at(Path::new(&path));
    if let Err(error) = key.public_key_answer(None) {
        let problem = format!("cannot be used: {}", ErrorChain(&error));
        parser.add_problem("build_secrets_private_key_path", problem);
    }
    Some(key)
}

/// Parses the setting `max_log`: a number of bytes, at least 16 KiB. In a smaller log, the notices about dropped lines
/// would be longer than the log.
fn parse_max_log_bytes(text: &str) -> Result<usize, &'static str> {
    let number = text.parse().ok().filter(|bytes| *bytes >= 16 << 10);
    number.ok_or("should be a number of bytes, 16384 or more")
}

fn read_compression(parser: &mut SettingsParser<'_>) -> LayerCompression {
    let format = parser.parse_or_default("compression", CompressionFormat::Zstd, str::parse);
    let level = parser.parse_or_default("compression_level", None, |text| {
        // What is not a whole number is not a level of any format.
        let level = Some(text.parse().unwrap_or(u64::MAX));
        LayerCompression::new(format, level).map(|compression| compression.level)
    });
    LayerCompression { format, level }
}

/// Reads `queue_wait` and `queue_length`, and returns as many build slots as the host's `max_inflight` says, or
/// unlimited ones. Only requests whose signatures were verified take them.
fn read_build_slots(parser: &mut SettingsParser<'_>, max_inflight: Option<usize>) -> BuildSlots {
    let wait = parser.duration("queue_wait", Duration::ZERO);
    let queue_length = parser.number("queue_length", 16_usize);
    let Some(limit) = max_inflight else {
        if !wait.is_zero() {
            parser.add_problem(
                "queue_wait",
                "needs max_inflight, which says how many builds run at a time",
            );
        }
        return BuildSlots::unlimited_except_for_tenants();
    };
    BuildSlots::new(limit, wait, queue_length)
}

fn read_hand_over_ttl(parser: &mut SettingsParser<'_>) -> Duration {
    let ttl = parser.duration("hand_over_ttl", Duration::from_secs(3600));
    if ttl.is_zero() {
        parser.add_problem(
            "hand_over_ttl",
            "should be longer than 0s, so that hand-overs can arrive",
        );
    }
    ttl
}

/// Parses the name of a function, with or without its namespace.
fn parse_function_with_optional_namespace(text: &str) -> Result<String, &'static str> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    match text.bytes().all(is_allowed) && text.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        true => Ok(text.to_owned()),
        false => Err("should be the name of a function, NAME or NAME.NAMESPACE"),
    }
}

#[cfg(test)]
mod tests;
