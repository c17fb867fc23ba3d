//! The solve of a build: the request to BuildKit, and the log, metrics and spans of its events.

use std::sync::Arc;

use function_host::policy::StepNetwork;
use function_host::{ErrorChain, trace};
use tokio::time::Instant;

use super::Builder;
use super::call::{BuilderCall, wait_for_expiry};
use super::control_character;
use crate::buildkit::{
    BuildJob, BuiltImage, CacheExport, CredentialStore, Daemon, KeyLease, ManifestLookup, SOURCE_DATE_EPOCH,
    SessionServices, SolveAttributes, SolveOptions, find_built_image,
};
use crate::context::SourceContext;
use crate::error::Error;
use crate::function_id::FunctionId;
use crate::registry::{ImageName, RepositoryAccess, TenantCredentials};
use crate::remote_context::ContextError;
use crate::report::{LineFormatter, LogSink};
use crate::request::{
    BuildConfig, BuildRequest, BuildSource, CacheToItem, Frontend, ImageRef, PreparedContext, ProvenanceMode,
    VerifiedSignature,
};
use crate::sources::SourceRules;
use crate::supersede::Registration;
use crate::trace::StepSpans;

impl Builder {
    /// Solves and pushes the image, within the time limits of the config and the call, unless the daemon knows
    /// a newer build.
    pub(super) async fn solve_and_push(
        &self,
        daemon: &Daemon,
        request: &BuildRequest,
        call: &BuilderCall<'_>,
        registration: Option<&Registration>,
        lines: &mut LineFormatter,
        log: &mut dyn LogSink,
    ) -> Result<BuiltImage, Error> {
        let limit = call.build_time_limit(request.config.timeout);
        let step_counter = self.metrics.step_counter();
        let span = trace::client_span("solve");
        let mut step_spans = StepSpans::new(&span, call.trace_mask);
        let solving = span.run(async {
            let connection = daemon.connect_despite_restart().await?;
            if let Some(registration) = registration {
                registration.check_history(&connection).await?;
                if !registration.sees_other_builders() {
                    log.push(lines.record_warning(
                        "BuildKit's history could not be read: a newer build at another builder may not end this one",
                    ));
                }
            }
            let context = match self.prepare_context(request, lines, log).await {
                Ok(context) => context,
                // An earlier delivery may have built the context, which was deleted after that.
                Err(Error::Context(error)) if matches!(*error, ContextError::NotFound { .. }) => {
                    let on_event =
                        |event| lines.format_event(event).into_iter().for_each(|line| log.push(line));
                    let built = find_built_image(&connection, &call.reference, self.timeouts, on_event).await;
                    return built.ok_or(Error::Context(error));
                }
                Err(error) => return Err(error),
            };
            let job = self.create_job(request, &context, call).await?;
            let on_event = |event| {
                step_counter.count_event(&event);
                step_spans.record_event(&event);
                lines.format_event(event).into_iter().for_each(|line| log.push(line));
            };
            Ok(job.run_to_outcome(&connection, on_event).await?)
        });
        let result = tokio::select! {
            result = solving => result,
            limit = wait_for_expiry(limit) => Err(Error::TimeLimit { limit }),
            () = call.wait_for_interruption() => Err(Error::Interrupted),
        };
        let result = result.map_err(|error| match error {
            Error::Failed(failure) => Error::Failed(control_character::add_control_character_location(
                failure, request,
            )),
            error => error,
        });
        lines
            .take_unfinished_output()
            .into_iter()
            .for_each(|line| log.push(line));
        if let Err(error) = &result {
            span.mark_failed(call.trace_mask.mask_text(&ErrorChain(error).to_string()));
        }
        result
    }

    /// Returns the context of a request, which is fetched if the request refers to it.
    async fn prepare_context(
        &self,
        request: &BuildRequest,
        lines: &mut LineFormatter,
        log: &mut dyn LogSink,
    ) -> Result<PreparedContext, Error> {
        let referenced = match &request.source {
            BuildSource::Received(context) => return Ok(context.clone()),
            BuildSource::Referenced(referenced) => referenced,
        };
        let step = format!("[context] fetch {}", referenced.reference);
        let start = Instant::now();
        log.push(lines.step_started(&step));
        let span = trace::client_span("fetch context");
        let fetching = async {
            let tar = self.contexts.fetch(referenced).await?;
            let bytes = tar.len();
            let prepared = referenced.rules.prepare_fetched(tar).await;
            Ok((prepared.map_err(ContextError::Unusable)?, bytes))
        };
        let fetched: Result<_, ContextError> = span.run(fetching).await;
        log.push(lines.step_ended(&step, start.elapsed()));
        match fetched {
            Ok(((context, warnings), bytes)) => {
                span.set_attribute("slipway.context.bytes", i64::try_from(bytes).unwrap_or(i64::MAX));
                tracing::info!(context = %referenced.reference, bytes, "fetched a context");
                warnings
                    .iter()
                    .for_each(|warning| log.push(lines.record_warning(warning)));
                Ok(context)
            }
            Err(error) => {
                let error = Error::from(error);
                crate::trace::mark_receive_failed(&span, &error);
                Err(error)
            }
        }
    }

    /// Leases a shared key for the transfer of the context.
    ///
    /// A build with `SOURCE_DATE_EPOCH` wants the same image whatever was built before. In a folder that BuildKit keeps from
    /// an earlier transfer, a directory has the time at which a file in it was last replaced, so such a build gets a key
    /// under which BuildKit has nothing.
    async fn lease_shared_key(
        &self,
        request: &BuildRequest,
        files: &Arc<SourceContext>,
    ) -> Result<Arc<KeyLease>, Error> {
        if request.config.build_args.contains_key(SOURCE_DATE_EPOCH) {
            return Ok(Arc::new(self.keys.lease_single_use()));
        }
        // The name of a tenant has no slash, so no two tenants share a key, whatever their images are called.
        let tenant = request.tenant().map(|tenant| format!("{}/", tenant.name()));
        let image = format!(
            "{}{}",
            tenant.unwrap_or_default(),
            request.config.image.without_tag()
        );
        let (keys, context) = (self.keys.clone(), files.clone());
        // Files that look like those of an earlier build are read and hashed.
        let lease = tokio::task::spawn_blocking(move || keys.lease_for_image(&image, &context)).await;
        lease.map(Arc::new).map_err(|_| Error::Interrupted)
    }

    /// Returns the attributes with which the build's solve describes its request in BuildKit.
    pub(super) fn solve_attributes(&self, request: &BuildRequest, call: &BuilderCall<'_>) -> SolveAttributes {
        let namespace = &self.settings.default_namespace;
        let deploy = request.config.deploy.as_ref();
        let function = deploy.and_then(|deploy| FunctionId::from_deploy_config(deploy, namespace));
        SolveAttributes {
            call_id: call.id.to_owned(),
            signature: request
                .signature
                .as_ref()
                .map(VerifiedSignature::sha256_fingerprint),
            submitted_at: request.submitted_at.at,
            function: function.map(|function| match request.tenant() {
                Some(tenant) => function.of_tenant(tenant.name()),
                None => function,
            }),
            supersede: request.config.supersede,
        }
    }

    async fn create_job(
        &self,
        request: &BuildRequest,
        context: &PreparedContext,
        call: &BuilderCall<'_>,
    ) -> Result<BuildJob, Error> {
        let lease = self.lease_shared_key(request, &context.files).await?;
        let tenant = request.tenant();
        let access = repository_access(&request.config);
        let (credentials, manifests): (Arc<dyn CredentialStore>, Arc<dyn ManifestLookup>) = match tenant {
            Some(tenant) => {
                let registries = self.tenants.registries(tenant);
                let credentials = TenantCredentials {
                    registries: registries.clone(),
                    access: access.clone(),
                };
                (Arc::new(credentials), registries)
            }
            None => (self.credentials.clone(), self.manifests.clone()),
        };
        let sources = SourceRules {
            tenant: tenant.cloned(),
            allowed: self.settings.allowed_sources.clone(),
            sbom_generator: self.settings.sbom_generator.clone(),
            stored_contexts: self.contexts.stored.repository.clone(),
            access,
        };
        let services = SessionServices::new()
            .with_health()
            .with_source_check(Arc::new(sources))
            .with_files(context.files.clone(), lease.clone())
            .with_credentials(credentials)
            .with_secrets(Arc::new(call.secrets.clone()));
        let config = &request.config;
        let settings = &self.settings;
        let solve = SolveOptions {
            reference: call.reference.clone(),
            attributes: Some(self.solve_attributes(request, call)),
            names: [&config.image]
                .into_iter()
                .chain(&config.tags)
                .map(ToString::to_string)
                .collect(),
            push: !config.skip_push,
            insecure: settings.insecure,
            dockerfile: config.dockerfile.clone(),
            target: config.target.clone(),
            build_args: config.build_args.clone(),
            labels: config.labels.clone(),
            platforms: config.platforms.clone(),
            no_cache: config.no_cache,
            cache_from: config.cache_from.iter().map(ToString::to_string).collect(),
            cache_to: config.cache_to.iter().map(to_cache_export).collect(),
            named_frontend: context.frontend == Frontend::Named,
            provenance: config.provenance.map(|provenance| match provenance {
                ProvenanceMode::Min => "min",
                ProvenanceMode::Max => "max",
            }),
            sbom_generator: settings.sbom_generator.clone().filter(|_| config.sbom),
            compression: config.compression.unwrap_or(settings.compression),
            tenant: tenant.map(|tenant| tenant.name().to_string()),
            no_network: tenant.is_some_and(|tenant| tenant.step_network() == StepNetwork::None),
            step_limits: settings.step_limits,
        };
        Ok(BuildJob {
            services,
            shared_key: lease,
            solve,
            manifests,
            timeouts: self.timeouts,
        })
    }
}

/// Returns the repositories that a build uses because its config names them. Those that its Dockerfile names are added when
/// the daemon asks about them.
fn repository_access(config: &BuildConfig) -> RepositoryAccess {
    let access = RepositoryAccess::default();
    let name = |image: &ImageRef| ImageName::parse(&image.without_tag());
    let exports = config.cache_to.iter().map(|cache| &cache.image);
    let pushed = [&config.image].into_iter().chain(&config.tags).chain(exports);
    pushed.filter_map(name).for_each(|image| access.allow_push(image));
    let imports = config.cache_from.iter();
    imports
        .filter_map(name)
        .for_each(|image| access.allow_pull(image));
    access
}

fn to_cache_export(cache: &CacheToItem) -> CacheExport {
    CacheExport {
        name: cache.image.to_string(),
        max: cache.max,
        ignore_error: cache.ignore_error,
    }
}
