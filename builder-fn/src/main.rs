//! Starts builder-fn: reads the settings, and connects its parts with the host.

use std::process::ExitCode;
use std::sync::Arc;

use builder_fn::build::{Builder, CacheExports, SharedDaemonRule};
use builder_fn::build_threads::OptionalBuildThreads;
use builder_fn::buildkit::{KnownAndAnsweringDaemonCounts, SharedKeyPool, TimeoutsForLastEvents};
use builder_fn::builds::{BuildRecords, LeaseTimes, RecordStore, RecordStoreAccess, STORED_BODY_MAX_BYTES};
use builder_fn::context::set_content_hash_key_if_unset;
use builder_fn::hand_over::Deployer;
use builder_fn::handler::BuilderApi;
use builder_fn::metrics::Metrics;
use builder_fn::notify::{NotificationMemory, Notifier};
use builder_fn::ready;
use builder_fn::registry::Registries;
use builder_fn::remote_context::{ContextUploadConcurrencyLimit, RemoteContexts};
use builder_fn::rollback::RollbackPermits;
use builder_fn::settings::Settings;
use builder_fn::supersede::Supersession;
use function_host::{App, Context, SetupContext, SetupError};
use tokio::sync::watch;

fn main() -> ExitCode {
    function_host::run_with(setup)
}

/// Reads the settings, starts the build threads and the background tasks (probing BuildKit, sweeping records, resuming
/// builds), and returns the app that serves the API.
async fn setup(context: SetupContext) -> Result<App, SetupError> {
    let mut parser = context.settings_parser_with_host_problems();
    let settings = Settings::read(&mut parser, context.secrets(), context.max_inflight());
    parser.fail_if_problems()?;

    if settings.is_exposed {
        tracing::warn!(
            daemon = settings.pool.address_for_messages(),
            "BuildKit is reached over the network without TLS: anybody who can reach it can build, and can read and change \
             what is built; set buildkit_ca, buildkit_cert and buildkit_key"
        );
    }
    let metrics = Metrics::register(context.metrics_registry())?;
    settings.pool.set_metrics_if_unset(metrics.pool());
    let (sender, daemons) = watch::channel(KnownAndAnsweringDaemonCounts::default());
    tokio::spawn(ready::probe_periodically(settings.pool.clone(), sender));
    if let Some(policy) = &settings.signatures.policy {
        policy.show_validity_in(metrics.policy_valid_gauge());
    }
    let credentials = Arc::new(settings.credentials);
    let store = settings.build.records_repository.clone().map(|repository| {
        let access = RecordStoreAccess {
            repository,
            credentials: credentials.clone(),
            secrets: context.secrets().clone(),
            insecure: settings.build.insecure,
            token_realms: settings.token_realms.clone(),
            times: LeaseTimes::default(),
        };
        RecordStore::new(access, metrics.record_writes())
    });
    if let Some(key) = store.as_ref().and_then(RecordStore::content_hash_key) {
        // Digests of files are compared across builders.
        set_content_hash_key_if_unset(key);
    }
    let contexts = RemoteContexts {
        credentials: credentials.clone(),
        tenants: settings.tenants.clone(),
        secrets: context.secrets().clone(),
        insecure: settings.build.insecure,
        token_realms: settings.token_realms.clone(),
        allowed: settings.build.allowed_sources.clone(),
        stored: settings.stored_contexts,
        uploads: ContextUploadConcurrencyLimit::default(),
    };
    let builder = Builder {
        contexts,
        manifests: Arc::new(Registries {
            credentials: credentials.clone(),
            secrets: context.secrets().clone(),
            insecure: settings.build.insecure,
            token_realms: settings.token_realms,
        }),
        supersession: Supersession::new(settings.pool.clone()),
        pool: settings.pool,
        credentials,
        tenants: settings.tenants,
        settings: settings.build,
        keys: SharedKeyPool::new(metrics.sent_bytes_counter()),
        deployer: Deployer {
            gateway: context.gateway().clone(),
            secrets: context.secrets().clone(),
            settings: settings.deployer,
        },
        timeouts: TimeoutsForLastEvents::default(),
        slots: settings.slots.clone(),
        records: store
            .clone()
            .map(BuildRecords::also_kept_in_store)
            .unwrap_or_default(),
        shared_daemons: SharedDaemonRule {
            policy: settings.signatures.policy.clone(),
            allows_any_version: settings.allows_any_buildkit_version,
        },
        cache_exports: CacheExports::default(),
        metrics: metrics.clone(),
    };
    let notifier = Notifier {
        allowed: builder.settings.allowed_sources.clone(),
        insecure: builder.settings.insecure,
        secrets: context.secrets().clone(),
        metrics: metrics.notifications(),
        room: NotificationMemory::default(),
    };
    let log_copies_limit = settings.requests.log_copies_limit();
    let mut limits = settings.requests.into_request_limits(metrics.spool_bytes_gauge());
    builder
        .records
        .copy_logs_to_unless_limit_is_zero(&limits.spool, log_copies_limit);
    limits.copied_body = STORED_BODY_MAX_BYTES;
    if let Some(store) = store {
        let policy = settings.signatures.policy.clone();
        tokio::spawn(store.sweep_periodically(move || {
            match &policy {
                Some(policy) => policy
                    .reload_if_changed()
                    .tenants()
                    .map(|tenant| Some(tenant.name().to_string()))
                    .collect(),
                None => vec![None],
            }
        }));
    }
    let api = BuilderApi {
        builder,
        notifier,
        limits,
        signatures: settings.signatures,
        max_log: settings.max_log,
        seal_key: settings.seal_key,
        metrics,
        threads: OptionalBuildThreads::start()?,
        pages: settings.pages,
        own_function: settings.own_function,
        rollbacks: RollbackPermits::default(),
    };
    let slots = settings.slots;
    api.limits
        .unverified
        .budget()
        .show_use_in_metrics(api.metrics.unverified());
    let (secrets, gateway) = (context.secrets().clone(), context.gateway().clone());
    let resuming = Context::new("", secrets, gateway, context.shutdown().clone());
    tokio::spawn(
        api.clone()
            .renew_sign_of_life_and_resume_builds_of_others(resuming),
    );
    let senders = api.limits.unverified.budget().limits().senders;
    // A request counts against `max_inflight` only once its signature has been verified.
    Ok(App::new(api)
        .leave_inflight_limit_to_handler()
        .handler_verifies_requests(senders)
        .with_name_in_traces("builder-fn")
        .ready_if({
            let daemons = daemons.clone();
            move || daemons.borrow().answering > 0
        })
        .ready_detail(move || ready::describe_pool(*daemons.borrow()))
        .ready_if(move || !slots.is_full_for_every_tenant())
        .also_healthy_at("/healthz")
        .also_ready_at("/ready"))
}
