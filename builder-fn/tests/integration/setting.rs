//! The setting of a test: a builder with secrets and a fake daemon, and signed tars.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use builder_fn::build::{BuildSettings, Builder, CacheExports, SharedDaemonRule};
use builder_fn::build_threads::OptionalBuildThreads;
use builder_fn::buildkit::{DaemonPool, TimeoutsForLastEvents};
use builder_fn::builds::{
    BuildRecords, LeaseTimes, PageSettings, RecordStore, RecordStoreAccess, STORED_BODY_MAX_BYTES,
};
use builder_fn::context::SpoolQuota;
use builder_fn::docker_config::CredentialHelpers;
use builder_fn::hand_over::{DeployVia, Deployer, HandOverSettings};
use builder_fn::handler::BuilderApi;
use builder_fn::metrics::Metrics;
use builder_fn::notify::{NotificationMemory, Notifier};
use builder_fn::registry::{OperatorRepository, Registries};
use builder_fn::remote_context::{
    ContextUploadConcurrencyLimit, RemoteContexts, StoredContextRepositorySettings,
};
use builder_fn::request::{FreshnessLimit, RequestLimits};
use builder_fn::rollback::RollbackPermits;
use builder_fn::sealed::SealKeyFile;
use builder_fn::settings::AcceptedSignatureSettings;
use builder_fn::slots::BuildSlots;
use builder_fn::sources::AllowedPrivateHosts;
use builder_fn::supersede::Supersession;
use builder_fn::tenants::TenantResources;
use function_host::http::Method;
use function_host::policy::PolicyFile;
use function_host::prometheus::Registry;
use function_host::registry::AdditionalTokenHosts;
use function_host::signature::{HmacKeys, sign_body};
use function_host::{
    Body, Bytes, Context, Gateway, Handler, Request, Response, ResponseBody, Secret, Secrets, Shutdown,
    ShutdownTrigger,
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::job::{FixedAnswerManifestLookup, OneRegistryCredentials};
use crate::new_pool_of_buildkit_shared_keys;

/// The ID of the call that requests belong to, unless a test sets another.
pub(crate) const CALL_ID: &str = "call-1";

/// The key in the builder's `payload-secret`.
pub(crate) const PAYLOAD_KEY: &str = "payload key";

/// The limit on request bodies in tests, in bytes.
const MAX_BODY_BYTES: u64 = 1 << 20;

/// The limit on build logs in tests, in bytes.
const MAX_LOG_BYTES: usize = 1 << 20;

/// A builder under test, with its secrets and the context of its calls. Clones share secrets, daemons and metrics.
#[derive(Clone)]
pub(crate) struct TestBuilder {
    api: BuilderApi,
    context: Context,
    secrets: Arc<tempfile::TempDir>,
    trigger: Arc<ShutdownTrigger>,
}

/// An answer of the builder: its status, and its body, which is JSON or, for a 429, the text as a string.
#[derive(Debug)]
pub(crate) struct AnswerStatusAndBody {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

impl TestBuilder {
    /// Creates a builder with the daemons `pool`, and with a gateway that refuses connections and is tried once.
    pub(crate) fn new(pool: impl Into<DaemonPool>) -> Self {
        Self::with_gateway(pool, "http://127.0.0.1:9").with_deploy_timeout(Duration::from_millis(500))
    }

    /// Creates a builder with the daemons `pool`, and with the gateway at `gateway`.
    pub(crate) fn with_gateway(pool: impl Into<DaemonPool>, gateway: &str) -> Self {
        let pool = pool.into();
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join("payload-secret"), format!("{PAYLOAD_KEY}\n")).expect("secret");
        let secrets = Secrets::new(folder.path());
        let gateway = Gateway::new(gateway, secrets.clone()).expect("gateway");
        let (trigger, shutdown) = Shutdown::new();
        let deployer = Deployer {
            gateway: gateway.clone(),
            secrets: secrets.clone(),
            settings: HandOverSettings {
                function: "deployer-fn".into(),
                via: DeployVia::default(),
                timeout: Duration::from_secs(60),
                hand_over_ttl: Duration::from_secs(3600),
            },
        };
        let metrics = Metrics::register(&Registry::new()).expect("metrics");
        pool.set_metrics_if_unset(metrics.pool());
        let tenants = TenantResources::new(
            secrets.clone(),
            true,
            AdditionalTokenHosts::default(),
            CredentialHelpers::default(),
            Arc::new(|_| Err("is not in this test".to_owned())),
        );
        let builder = Builder {
            contexts: RemoteContexts {
                credentials: Arc::new(OneRegistryCredentials),
                tenants: tenants.clone(),
                secrets: secrets.clone(),
                insecure: true,
                token_realms: AdditionalTokenHosts::default(),
                allowed: AllowedPrivateHosts::default(),
                stored: StoredContextRepositorySettings::default(),
                uploads: ContextUploadConcurrencyLimit::default(),
            },
            supersession: Supersession::new(pool.clone()),
            pool,
            credentials: Arc::new(OneRegistryCredentials),
            manifests: Arc::new(FixedAnswerManifestLookup::Present),
            tenants,
            settings: BuildSettings {
                insecure: true,
                default_namespace: "openfaas-fn".into(),
                ..BuildSettings::default()
            },
            keys: new_pool_of_buildkit_shared_keys(),
            deployer,
            timeouts: TimeoutsForLastEvents::default(),
            slots: BuildSlots::unlimited_except_for_tenants(),
            records: BuildRecords::default(),
            shared_daemons: SharedDaemonRule::default(),
            cache_exports: CacheExports::default(),
            metrics: metrics.clone(),
        };
        let quota = SpoolQuota::new(u64::MAX, metrics.spool_bytes_gauge());
        let notifier = Notifier {
            allowed: AllowedPrivateHosts::default(),
            insecure: true,
            secrets: secrets.clone(),
            metrics: metrics.notifications(),
            room: NotificationMemory::default(),
        };
        let api = BuilderApi {
            builder,
            notifier,
            limits: RequestLimits {
                copied_body: STORED_BODY_MAX_BYTES,
                ..RequestLimits::new(MAX_BODY_BYTES, folder.path(), quota)
            },
            signatures: AcceptedSignatureSettings {
                disable_hmac: false,
                accept_sha1: true,
                ..AcceptedSignatureSettings::default()
            },
            max_log: MAX_LOG_BYTES,
            seal_key: None,
            metrics,
            threads: OptionalBuildThreads::default(),
            pages: PageSettings::default(),
            own_function: "builder-fn".into(),
            rollbacks: RollbackPermits::default(),
        };
        Self {
            api,
            context: Context::new(CALL_ID, secrets, gateway, shutdown),
            secrets: Arc::new(folder),
            trigger: Arc::new(trigger),
        }
    }

    /// Returns the same builder, with requests sent as part of the call `call_id`.
    pub(crate) fn with_call_id(&self, call_id: &str) -> Self {
        let context = &self.context;
        Self {
            context: Context::new(
                call_id,
                context.secrets().clone(),
                context.gateway().clone(),
                context.shutdown().clone(),
            ),
            ..self.clone()
        }
    }

    /// Sets the maximum age of requests whose config has `submittedAt`.
    pub(crate) fn with_max_age_of_requests_with_submitted_at(mut self, max_age: Duration) -> Self {
        self.api.limits.freshness = FreshnessLimit::Limited {
            max_age,
            is_required: false,
        };
        self
    }

    /// Limits the log to `max_log` bytes.
    pub(crate) fn with_max_log_bytes(mut self, max_log: usize) -> Self {
        self.api.max_log = max_log;
        self
    }

    /// Gives the builder a policy, whose secrets with keys are written by [`write_secret`](Self::write_secret).
    pub(crate) fn with_policy(mut self, policy: &Value) -> Self {
        self.write_secret("policy.json", &policy.to_string());
        let file = PolicyFile::open(self.secrets.path().join("policy.json")).expect("a policy");
        self.api.builder.shared_daemons.policy = Some(file.clone());
        self.api.signatures.policy = Some(file);
        self
    }

    /// Lets tenants share a daemon that is old or does not report its version.
    pub(crate) fn with_shared_daemons_of_any_version(mut self) -> Self {
        self.api.builder.shared_daemons.allows_any_version = true;
        self
    }

    /// Lets pages wait for the log of a build for up to a minute, because the machine may be busy.
    pub(crate) fn with_one_minute_log_wait_for_pages(mut self) -> Self {
        self.api.pages.log_wait = Duration::from_secs(60);
        self
    }

    /// Sets the time for which links to pages are valid.
    pub(crate) fn with_page_link_lifetime(mut self, lifetime: Duration) -> Self {
        self.api.pages.lifetime = lifetime;
        self
    }

    /// Lets everybody build and ask.
    pub(crate) fn with_signatures_disabled(mut self) -> Self {
        self.api.signatures.disable_hmac = true;
        self
    }

    /// Names the private hosts from which contexts may be fetched, and to which notifications may be sent.
    pub(crate) fn with_private_hosts_for_contexts_and_notifications(mut self, hosts: &str) -> Self {
        self.api.builder.contexts.allowed = hosts.parse().expect("hosts");
        self.api.notifier.allowed = hosts.parse().expect("hosts");
        self
    }

    /// Exports caches to this repository.
    pub(crate) fn with_cache_registry(mut self, repository: &str) -> Self {
        self.api.builder.settings.cache_repository = OperatorRepository::parse(repository);
        self
    }

    /// Waits until `count` exports of caches have ended with this result.
    pub(crate) async fn wait_for_cache_exports(&self, result: &str, count: u64) {
        let ended = async {
            while self.api.metrics.cache_exports(result) < count {
                tokio::task::yield_now().await;
            }
        };
        crate::complete_or_panic(ended).await;
    }

    /// Names the secrets with the operator's tokens for git repositories.
    pub(crate) fn with_git_tokens(mut self, token_secrets: &str) -> Self {
        self.api.builder.settings.git_tokens = token_secrets.parse().expect("names of secrets");
        self
    }

    /// Names the secrets with the operator's tokens for the statuses of commits.
    pub(crate) fn with_status_tokens(mut self, token_secrets: &str) -> Self {
        self.api.builder.settings.status_tokens = token_secrets.parse().expect("names of secrets");
        self
    }

    /// Lets the builder use TLS only.
    pub(crate) fn with_tls_only(mut self) -> Self {
        self.api.builder.contexts.insecure = false;
        self.api.notifier.insecure = false;
        self.api.builder.settings.insecure = false;
        self
    }

    /// Names the repository for stored contexts, and whether they are deleted after their build.
    pub(crate) fn with_stored_contexts(mut self, repository: &str, deletes_built: bool) -> Self {
        self.api.builder.contexts.stored = StoredContextRepositorySettings {
            repository: OperatorRepository::parse(repository),
            deletes_built,
        };
        self
    }

    /// Keeps the records of builds in `repository`, of a registry without authentication. Builders of one test share
    /// them.
    ///
    /// A builder that has gone is noticed only if it has handed its builds back.
    pub(crate) fn with_record_store(self, repository: &str) -> Self {
        self.with_leases(repository, Duration::from_secs(3600))
    }

    /// Keeps the records of builds in `repository`. Builders that have gone are noticed after `stale_after`.
    pub(crate) fn with_leases(self, repository: &str, stale_after: Duration) -> Self {
        self.with_record_store_and_times(
            repository,
            LeaseTimes {
                stale_after,
                settle: Duration::from_millis(10),
                search: Duration::from_millis(10),
                ..LeaseTimes::default()
            },
        )
    }

    /// Keeps the records of builds in `repository`, with these times, and writes the secret `deploy-secret`.
    pub(crate) fn with_record_store_and_times(mut self, repository: &str, times: LeaseTimes) -> Self {
        self.write_secret("deploy-secret", "the key of the deployer\n");
        let repository = OperatorRepository::parse(repository).expect("a repository");
        let access = RecordStoreAccess {
            repository: repository.clone(),
            credentials: Arc::new(OneRegistryCredentials),
            secrets: self.context.secrets().clone(),
            insecure: true,
            token_realms: AdditionalTokenHosts::default(),
            times,
        };
        let store = RecordStore::new(access, self.api.metrics.record_writes());
        self.api.builder.settings.records_repository = Some(repository);
        self.api.builder.records = BuildRecords::also_kept_in_store(store);
        self
    }

    /// Deletes the records that will be beyond the limits when the time `later` has passed.
    pub(crate) async fn sweep_records_as_if_after(&self, later: Duration) {
        let store = self.api.builder.records.store().expect("a record store");
        let now = SystemTime::now() + later;
        crate::complete_or_panic(store.sweep(&[None], now)).await;
    }

    /// Copies the logs that are being read. Call this after [`with_record_store`](Self::with_record_store).
    pub(crate) fn with_log_copies(self) -> Self {
        let spool = &self.api.limits.spool;
        self.api
            .builder
            .records
            .copy_logs_to_unless_limit_is_zero(spool, 64 << 20);
        self
    }

    /// Returns the bytes of all verified bodies and fetched contexts, and of copies of logs.
    pub(crate) fn spooled_bytes(&self) -> i64 {
        self.api.metrics.spool_bytes_gauge().get()
    }

    /// Sets how registries answer lookups of manifests.
    pub(crate) fn with_manifest_lookup(mut self, manifests: FixedAnswerManifestLookup) -> Self {
        self.api.builder.manifests = Arc::new(manifests);
        self
    }

    /// Lets the builder ask the registries that images name, which have no authentication, for manifests.
    pub(crate) fn with_manifests_in_registries(mut self) -> Self {
        self.api.builder.manifests = Arc::new(Registries {
            credentials: Arc::new(OneRegistryCredentials),
            secrets: self.context.secrets().clone(),
            insecure: true,
            token_realms: AdditionalTokenHosts::default(),
        });
        self
    }

    /// Sets the build slots of the builder.
    pub(crate) fn with_slots(mut self, slots: BuildSlots) -> Self {
        self.api.builder.slots = slots;
        self
    }

    /// Sets the time for retries after failures of the platform.
    pub(crate) fn with_retry_time(mut self, retry_time: Duration) -> Self {
        self.api.builder.settings.retry_time = retry_time;
        self
    }

    /// Waits until `count` notifications have ended with this outcome.
    pub(crate) async fn wait_for_notifications(&self, outcome: &str, count: u64) {
        let ended = async {
            while self.api.metrics.notifications().count(outcome) < count {
                tokio::task::yield_now().await;
            }
        };
        crate::complete_or_panic(ended).await;
    }

    /// Waits until the slots, and the places to wait for one, are taken.
    pub(crate) async fn wait_until_slots_and_queue_are_full(&self) {
        // A body is verified on another thread, which nothing here could wait for.
        while !self.api.builder.slots.is_full_for_every_tenant() {
            tokio::task::yield_now().await;
        }
    }

    /// Sets the way in which the builder's hand-overs reach the deployer.
    pub(crate) fn with_deploy_via(mut self, via: DeployVia) -> Self {
        self.api.builder.deployer.settings.via = via;
        self
    }

    /// Sets the time limit of a hand-over with all its attempts.
    pub(crate) fn with_deploy_timeout(mut self, timeout: Duration) -> Self {
        self.api.builder.deployer.settings.timeout = timeout;
        self
    }

    /// Sets the deadline of the call, which is the end of its `exec_timeout`.
    pub(crate) fn with_deadline(mut self, deadline: Instant) -> Self {
        self.context = self.context.with_reported_deadline(deadline);
        self
    }

    /// Writes a secret of the builder.
    pub(crate) fn write_secret(&self, name: &str, content: &str) {
        std::fs::write(self.secrets.path().join(name), content).expect("secret");
    }

    /// Gives the builder a private key for sealed secrets.
    pub(crate) fn with_seal_key(mut self, base64_private_key: &str) -> Self {
        self.write_secret("build-secrets-key", base64_private_key);
        let path = self.secrets.path().join("build-secrets-key");
        self.api.seal_key = Some(SealKeyFile::at(&path));
        self
    }

    /// Copies no bodies, as if all were too large.
    pub(crate) fn without_body_copies(mut self) -> Self {
        self.api.limits.copied_body = 0;
        self
    }

    /// Starts a task that resumes builds of builders that have gone and renews this builder's sign of life, until it is
    /// aborted. It ends at once without a record store.
    pub(crate) fn renew_sign_of_life_and_resume_builds_of_others(&self) -> AbortOnDropHandle<()> {
        let resuming = self
            .api
            .clone()
            .renew_sign_of_life_and_resume_builds_of_others(self.context.clone());
        AbortOnDropHandle::new(tokio::spawn(resuming))
    }

    /// Begins the shutdown of the process, which ends at `deadline`.
    pub(crate) fn begin_shutdown(&self, deadline: Instant) {
        self.trigger.begin(deadline);
    }

    /// Waits until the process would exit: no build goes on without a request.
    pub(crate) async fn wait_until_background_work_ended(&self) {
        crate::complete_or_panic(self.trigger.wait_until_background_work_ended()).await;
    }

    pub(crate) async fn send_request(&self, request: Request) -> Response {
        self.api
            .call(request, self.context.clone())
            .await
            .expect("an answer")
    }

    /// Sends a signed build request with `tar`, and returns its streamed answer.
    pub(crate) async fn send_streamed_build(&self, tar: Vec<u8>, accept: &'static str) -> StreamedRecords {
        let response = self.send_streamed_build_unread(tar, accept).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], accept);
        StreamedRecords(response.into_body())
    }

    /// Sends a signed build request with `tar` that asks for a stream, and returns its response.
    pub(crate) async fn send_streamed_build_unread(&self, tar: Vec<u8>, accept: &'static str) -> Response {
        let signature = sign_body(&hmac_keys(PAYLOAD_KEY), &tar);
        let mut request = build_request_with_signature(tar, Some(&signature));
        let accept_value = accept.parse().expect("header");
        request.headers_mut().insert("accept", accept_value);
        self.send_request(request).await
    }

    /// Sends a signed build request with `tar`, and returns its answer.
    pub(crate) async fn send_signed_build(&self, tar: Vec<u8>) -> AnswerStatusAndBody {
        AnswerStatusAndBody::from_json_response_or_text_of_429(self.send_signed_build_unread(tar).await).await
    }

    /// Sends a build request with `tar` that is signed with `payload_key`, and names the tenant `tenant` if there is
    /// one.
    pub(crate) async fn send_build_signed_with(
        &self,
        payload_key: &str,
        tenant: Option<&str>,
        tar: Vec<u8>,
    ) -> AnswerStatusAndBody {
        let signature = sign_body(&hmac_keys(payload_key), &tar);
        let mut request = build_request_with_signature(tar, Some(&signature));
        if let Some(tenant) = tenant {
            let tenant = tenant.parse().expect("header");
            request.headers_mut().insert("x-slipway-tenant", tenant);
        }
        AnswerStatusAndBody::from_json_response_or_text_of_429(self.send_request(request).await).await
    }

    /// Sends a signed build request with `tar`, and returns its response with an unread body.
    pub(crate) async fn send_signed_build_unread(&self, tar: Vec<u8>) -> Response {
        let signature = sign_body(&hmac_keys(PAYLOAD_KEY), &tar);
        self.send_request(build_request_with_signature(tar, Some(&signature)))
            .await
    }
}

impl AnswerStatusAndBody {
    pub(crate) async fn from_json_response_or_text_of_429(response: Response) -> Self {
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("body").to_bytes();
        Self {
            status,
            // A 429 is plain text.
            body: match status {
                429 => Value::String(String::from_utf8_lossy(&body).into_owned()),
                _ => serde_json::from_slice(&body).expect("JSON"),
            },
        }
    }
}

/// The records of a streamed answer.
pub(crate) struct StreamedRecords(ResponseBody);

impl StreamedRecords {
    /// Reads the bytes of the streamed answer's next record, with its framing.
    pub(crate) async fn next_record_bytes(&mut self) -> Option<Bytes> {
        let frame = self.0.frame().await?.expect("no error");
        let bytes = frame.into_data().expect("data");
        assert!(bytes.len() < 64 << 10, "{} bytes", bytes.len());
        Some(bytes)
    }

    /// Reads the next record of an NDJSON stream.
    pub(crate) async fn next_record_json(&mut self) -> Option<Value> {
        let bytes = self.next_record_bytes().await?;
        let line = bytes.strip_suffix(b"\n").expect("a line");
        Some(serde_json::from_slice(line).expect("one JSON value"))
    }

    /// Reads the streamed answer to its end. Returns the remaining log lines and the terminal record.
    pub(crate) async fn read_lines_and_terminal_record(mut self) -> (Vec<String>, Value) {
        let mut lines = Vec::new();
        while let Some(mut record) = self.next_record_json().await {
            if record["status"] != "in_progress" {
                assert_eq!(
                    self.next_record_json().await,
                    None,
                    "nothing comes after {record}"
                );
                return (lines, record);
            }
            let log: Vec<String> = serde_json::from_value(record["log"].take()).expect("lines");
            lines.extend(log);
        }
        panic!("no terminal record after {lines:?}");
    }
}

pub(crate) fn hmac_keys(key: &str) -> HmacKeys {
    HmacKeys::new(&Secret::new(key)).expect("a key")
}

/// Returns a `POST /build` request with this body, and with this signature in its header, if there is one.
pub(crate) fn build_request_with_signature(body: impl Into<Body>, signature: Option<&str>) -> Request {
    let mut request = Request::new(body.into());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = "/build".parse().expect("path");
    if let Some(signature) = signature {
        let signature = signature.parse().expect("header");
        request.headers_mut().insert("x-build-signature", signature);
    }
    request
}

/// Returns the tar of a build request, with `config_changes` to a minimal config.
pub(crate) fn request_tar_with(config_changes: Value) -> Vec<u8> {
    let mut config = json!({"image": "registry:5000/hello:1"});
    for (key, value) in config_changes.as_object().expect("an object") {
        config[key] = value.clone();
    }
    let config = config.to_string();
    tar_with_files(&[
        ("com.openfaas.docker.config", config.as_bytes()),
        ("context/Dockerfile", b"FROM scratch\n"),
    ])
}

/// Returns a tar with the files `files`, as paths and contents.
pub(crate) fn tar_with_files(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, *content).expect("append");
    }
    tar.into_inner().expect("tar")
}
