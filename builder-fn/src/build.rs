//! Runs one build, from an authentic request to its end: dry run of the deployment, registration among the builds of
//! its function, slot, solve with push, and hand-over.

mod cache_export;
mod call;
mod context;
mod control_character;
mod deploy;
mod dry_run;
mod evidence;
mod explanation;
mod index;
mod part;
mod retry;
mod shared_daemon;
mod solve;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use function_host::trace;
use tokio::time::Instant;

use crate::buildkit::{
    CredentialStore, DaemonPool, ManifestLookup, SharedKeyPool, StepLimits, TimeoutsForLastEvents,
};
use crate::builds::{BuildPhase, BuildRecords};
use crate::compression::LayerCompression;
use crate::error::Error;
use crate::hand_over::{Deployer, DeploymentOutcome, DeploymentStatus};
use crate::metrics::Metrics;
use crate::operator_tokens::OperatorTokenSecretNames;
use crate::registry::{ImageName, OperatorRepository};
use crate::remote_context::RemoteContexts;
use crate::report::{LineFormatter, LogSink};
use crate::request::{BuildRequest, BuildSource};
use crate::slots::{BuildSlot, BuildSlots};
use crate::sources::AllowedPrivateHosts;
use crate::supersede::{Registration, Submission, Supersession};
use crate::tenants::TenantResources;

pub use cache_export::CacheExports;
pub(crate) use call::BuilderCall;
use call::wait_for_expiry;
pub(crate) use deploy::DeploymentTenantAndLimits;
use part::SolvePart;
pub use shared_daemon::SharedDaemonRule;
use solve::Solve;

/// The operator's settings that apply to every build.
#[derive(Clone, Debug, Default)]
pub struct BuildSettings {
    /// Whether registries speak plain HTTP, and git repositories, `context.url` and `notify` may do without TLS.
    pub insecure: bool,
    /// The compression of layers if a build's config names none.
    pub compression: LayerCompression,
    /// The image that generates SBOMs. Without one, a config with `sbom` is rejected.
    pub sbom_generator: Option<String>,
    /// The namespace of a function whose deployment names none.
    pub default_namespace: String,
    /// The private hosts that builds may read from.
    pub allowed_sources: AllowedPrivateHosts,
    /// The limits on what one step of a build may use.
    pub step_limits: StepLimits,
    /// The limit on the sum of the pauses before retries of a queued call's build, after failures of the platform. With
    /// zero, the default, there are no retries.
    pub retry_time: Duration,
    /// The names of the secrets with the operator's tokens for git repositories that contexts are read from.
    pub git_tokens: OperatorTokenSecretNames,
    /// The names of the secrets with the operator's tokens for the statuses of commits.
    pub status_tokens: OperatorTokenSecretNames,
    /// The repository for records of builds, which no build pushes to or reads from.
    pub records_repository: Option<OperatorRepository>,
    /// The repository for caches, which are exported after builds and imported by later ones. No build names it.
    pub cache_repository: Option<OperatorRepository>,
}

/// Builds, pushes and deploys images. Clones share all state: slots, keys, records and metrics.
#[derive(Clone, Debug)]
pub struct Builder {
    /// The BuildKit daemons that build.
    pub pool: DaemonPool,
    /// The operator's credentials for registries, which builds without a tenant pull and push with.
    pub credentials: Arc<dyn CredentialStore>,
    /// The lookup of pushed images in their registries.
    pub manifests: Arc<dyn ManifestLookup>,
    /// The registry clients and daemons of tenants, created when first needed. Without a policy there are no tenants.
    pub tenants: TenantResources,
    /// The contexts that requests refer to.
    pub contexts: RemoteContexts,
    /// The operator's settings for every build.
    pub settings: BuildSettings,
    /// The pool of keys under which BuildKit keeps transferred contexts.
    pub keys: SharedKeyPool,
    /// The client that sends dry runs and hand-overs to the deployer.
    pub deployer: Deployer,
    /// The timeouts for the last events of a build, and for the outcome of a build that another delivery began.
    pub timeouts: TimeoutsForLastEvents,
    /// The slots that limit how many builds run at the same time.
    pub slots: BuildSlots,
    /// The registry of the builds on the pool, in which newer builds of a function end older ones.
    pub supersession: Supersession,
    /// The records of this process's builds.
    pub records: BuildRecords,
    /// The rule for daemons that several tenants share.
    pub shared_daemons: SharedDaemonRule,
    /// The exports of caches to the registry.
    pub cache_exports: CacheExports,
    /// The builder's metrics.
    pub metrics: Metrics,
}

/// The result of a finished build.
#[derive(Clone, Debug)]
pub(crate) struct BuildResult {
    /// The digest of the image's manifest, or of the index of several platforms, `sha256:…`; `None` if BuildKit
    /// reported none.
    pub(crate) digest: Option<String>,
    /// The commit of the context, if it is from a git repository.
    pub(crate) commit: Option<String>,
    /// The outcome of the deployment, if the config has `deploy`.
    pub(crate) deployment: Option<DeploymentOutcome>,
}

impl BuildResult {
    /// Returns whether the deployer rejected the finished build because it knows a newer one of the function.
    pub(crate) fn was_superseded_at_deployment(&self) -> bool {
        self.deployment
            .as_ref()
            .is_some_and(|deployment| deployment.status == DeploymentStatus::Superseded)
    }
}

impl Builder {
    /// Builds the image of `request`, and pushes and deploys it as its config says. Writes the build's progress to
    /// `log`, also if it fails; `lines` collects the warnings.
    ///
    /// Dropping the future cancels the solve in BuildKit.
    ///
    /// # Errors
    /// Fails if there is no image in the end, or none with a known digest to deploy. A failed deployment is not an
    /// error: the image exists.
    pub(crate) async fn build_image_and_attempt_deployment(
        &self,
        request: &BuildRequest,
        call: &BuilderCall<'_>,
        lines: &mut LineFormatter,
        log: &mut dyn LogSink,
    ) -> Result<BuildResult, Error> {
        let config = &request.config;
        self.reject_operator_repositories(request)?;
        if config.sbom && self.settings.sbom_generator.is_none() {
            return Err(Error::NoSbomGenerator);
        }
        let deployment = match &config.deploy {
            Some(deploy) => Some((self.deployer.signer()?, deploy)),
            None => None,
        };
        // Before the registration, so that a build that is refused supersedes no other.
        if let Some((signer, deploy)) = &deployment
            && !call.is_dry_run_done.load(Ordering::Relaxed)
        {
            // The dry run waits for the deployer, and the index needs no memory meanwhile.
            request.source.drop_large_index();
            dry_run::fail_if_dry_run_refuses_deployment(signer, deploy, request, call, lines, log).await?;
            call.is_dry_run_done.store(true, Ordering::Relaxed);
        }
        let (pool, supersession) = self.pool_and_supersession_registry(request)?;
        // Before the registration too.
        let parts = pool.split_by_platform(&config.platforms)?;
        let parts = SolvePart::of_build(parts, &call.reference);
        let registration = self.register_and_supersede_older_unless_opted_out(&supersession, request, call);
        let _watched = call.accepted.watch_cancellations_of_any_build(&pool);
        let solving = async {
            let _slot = self
                .wait_for_slot_until_time_limit_or_shutdown(request, call)
                .await?;
            request.source.restore_index().await?;
            call.accepted.update_unless_succeeded(|record| {
                record.phase = BuildPhase::Running;
                record.started_at = Some(SystemTime::now());
                record.attempts += 1;
            });
            let solve = Solve {
                pool: &pool,
                request,
                call,
                registration: registration.as_ref(),
            };
            self.solve_with_retries_and_push_unless_skipped(&solve, &parts, lines, log)
                .await
        };
        let superseded = async {
            match &registration {
                Some(registration) => registration.wait_until_superseded().await,
                None => std::future::pending().await,
            }
        };
        // If a cancellation or a newer build comes first, the wait for a slot or the solve is dropped.
        let solved = tokio::select! {
            biased;
            () = call.accepted.wait_until_cancelled() => Err(Error::Cancelled),
            newer = superseded => Err(newer.into()),
            solved = solving => solved,
        }?;
        // From here on the deployer decides which version is newer. The registration still ends older builds.
        let deployment = match deployment {
            Some((signer, _)) => {
                call.accepted.set_phase_unless_succeeded(BuildPhase::Deploying);
                let handing_over =
                    self.hand_over_image_with_failure_as_outcome(&signer, request, &solved, call, lines, log);
                Some(handing_over.await?)
            }
            None => None,
        };
        if let BuildSource::Referenced(context) = &request.source {
            self.contexts.delete_built_if_configured(context).await;
        }
        Ok(BuildResult {
            digest: solved.digest,
            commit: solved.commit,
            deployment,
        })
    }

    /// Fails if the request names the repository for records or that for caches, or one below them, as an image, a tag,
    /// a cache or a context.
    fn reject_operator_repositories(&self, request: &BuildRequest) -> Result<(), Error> {
        let config = &request.config;
        let (records, caches) = (&self.settings.records_repository, &self.settings.cache_repository);
        let has = |repository: &Option<OperatorRepository>, image: &ImageName| {
            repository
                .as_ref()
                .is_some_and(|repository| repository.is_or_contains(image))
        };
        let exports = config.cache_to.iter().map(|cache| &cache.image);
        let used = [&config.image].into_iter().chain(&config.tags).chain(exports);
        let used = used
            .chain(&config.cache_from)
            .filter_map(|image| ImageName::parse_with_registry(&image.without_tag()));
        let context = match &request.source {
            BuildSource::Referenced(referenced) => referenced.reference.image().cloned(),
            BuildSource::Received(_) | BuildSource::Git(_) => None,
        };
        for image in used.chain(context) {
            if has(records, &image) {
                return Err(Error::RecordsRepository { image });
            }
            if has(caches, &image) {
                return Err(Error::CacheRepository { image });
            }
        }
        Ok(())
    }

    /// Returns the daemons that a request may be built on, and the supersession of the builds on them: the tenant's
    /// own, if it has daemons, or the operator's.
    fn pool_and_supersession_registry(
        &self,
        request: &BuildRequest,
    ) -> Result<(DaemonPool, Supersession), Error> {
        let own = match request.tenant() {
            Some(tenant) => self.tenants.daemon(tenant).map_err(Error::TenantDaemon)?,
            None => None,
        };
        Ok(match own {
            Some(own) => (own.pool, own.supersession),
            None => (self.pool.clone(), self.supersession.clone()),
        })
    }

    /// Registers a build that deploys among those of its function. Returns `None` for a build without deployment, or
    /// whose config opts out.
    fn register_and_supersede_older_unless_opted_out(
        &self,
        supersession: &Supersession,
        request: &BuildRequest,
        call: &BuilderCall<'_>,
    ) -> Option<Registration> {
        let function = self
            .solve_attributes_without_commit_and_attempt(request, call)
            .supersession_group()?
            .clone();
        Some(supersession.register(Submission {
            function,
            call_id: call.id.to_owned(),
            submitted_at: request.submitted_at.at,
        }))
    }

    /// Waits for a build slot, until the call's time ends or a shutdown interrupts it. A request that has to wait keeps
    /// no large index meanwhile.
    ///
    /// # Errors
    /// Fails with [`Error::StaysAccepted`] if there is no slot in time for a build that can be resumed.
    async fn wait_for_slot_until_time_limit_or_shutdown(
        &self,
        request: &BuildRequest,
        call: &BuilderCall<'_>,
    ) -> Result<BuildSlot, Error> {
        let start = Instant::now();
        let span = trace::span("queue");
        let mut waiting = pin!(call.admission.wait_for_slot());
        let slot = tokio::select! {
            biased;
            slot = &mut waiting => Some(slot),
            () = std::future::ready(()) => None,
        };
        let waiting = async {
            match slot {
                Some(slot) => slot,
                None => {
                    request.source.drop_large_index();
                    waiting.await
                }
            }
        };
        let slot = tokio::select! {
            biased;
            () = call.wait_for_shutdown_to_hand_back() => Err(Error::Interrupted),
            // Before the slot: there is no time left for a build.
            () = call.wait_until_shortly_before_shutdown_ends() => Err(Error::Interrupted),
            slot = waiting => slot.map_err(Error::from),
            limit = wait_for_expiry(call.build_time_limit(None)) => Err(Error::TimeLimit { limit }),
        };
        let slot = slot.map_err(|error| match error {
            Error::Busy { .. } | Error::TimeLimit { .. }
                if call.accepted.can_be_resumed_once_handed_back() =>
            {
                Error::StaysAccepted
            }
            error => error,
        });
        match &slot {
            Ok(_) => self.metrics.observe_slot_wait(start.elapsed()),
            Err(error) => span.mark_failed(error),
        }
        slot
    }
}
