//! The solve of a build: its attempts on daemons, the request to BuildKit, and the log, metrics and spans of events.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use function_host::ErrorChain;
use function_host::policy::DefaultOrNoStepNetwork;
use function_host::trace::{self, Span};
use futures_util::future::try_join_all;

use super::Builder;
use super::call::{BuilderCall, wait_for_expiry};
use super::context::JobBuildContext;
use super::control_character;
use super::part::{SharedLog, SolvePart};
use super::retry::BuildRetries;
use crate::buildkit::{
    BuildEvent, BuildFailure, BuildJob, BuildToPlace, BuiltImageDigestCommitAndTimes, CredentialStore,
    DaemonPool, EarlierBuildReferenceAndCall, FaultyParty, JobError, KeyLease, ManifestLookup,
    PlacedBuildMaybeCancelled, PlacementHash, SOURCE_DATE_EPOCH, SessionServices, SolveAttributes,
    SolveOptions, find_built_image,
};
use crate::context::SourceContext;
use crate::error::Error;
use crate::function_id::FunctionId;
use crate::registry::{ImageName, RepositoryAccess, ScopeLimitedTenantCredentials};
use crate::report::{LineFormatter, LogSink};
use crate::request::{
    BuildConfig, BuildRequest, BuildSource, Frontend, ImageRef, ProvenanceMinOrMax, VerifiedSignature,
};
use crate::supersede::Registration;
use crate::trace::StepAndExportSpans;

/// The label with the commit of an image's source:
/// <https://github.com/opencontainers/image-spec/blob/main/annotations.md>.
const REVISION_LABEL: &str = "org.opencontainers.image.revision";

/// The largest number of times that a build gives way to the same build on another daemon.
const GIVE_WAY_COUNT_MAX: u32 = 4;

/// An attempt of a part of a build.
#[derive(Clone, Copy)]
struct Attempt<'a> {
    part: &'a SolvePart,
    /// The number of the attempt, from 1.
    number: u32,
}

/// What all parts of a build have in common.
#[derive(Clone, Copy)]
pub(super) struct Solve<'a> {
    /// The daemons.
    pub(super) pool: &'a DaemonPool,
    /// The request of the build.
    pub(super) request: &'a BuildRequest,
    /// The call of the build.
    pub(super) call: &'a BuilderCall<'a>,
    /// The registration among the builds of the function that the build deploys; `None` for a build that takes no part
    /// in supersession.
    pub(super) registration: Option<&'a Registration>,
}

impl Builder {
    /// Solves the image in `parts`, of which there is at least one, and pushes it unless the config skips that, with
    /// retries, within the time limits of the config and the call. Fails if a daemon knows a newer build of the
    /// function.
    pub(super) async fn solve_with_retries_and_push_unless_skipped(
        &self,
        solve: &Solve<'_>,
        parts: &[SolvePart],
        lines: &mut LineFormatter,
        log: &mut dyn LogSink,
    ) -> Result<BuiltImageDigestCommitAndTimes, Error> {
        let (request, call) = (solve.request, solve.call);
        let limit = call.build_time_limit(request.config.timeout);
        let span = trace::client_span("solve");
        let mut part_lines = Vec::new();
        let result = {
            let solving = span.run(async {
                match parts {
                    [whole] => self.solve_part(solve, whole, &span, lines, log).await,
                    parts => {
                        part_lines.extend(parts.iter().map(|_| lines.new_for_part()));
                        let built = self
                            .solve_all_parts(solve, parts, &span, &mut part_lines, log)
                            .await?;
                        self.join_and_push_index(request, call, built, lines, log).await
                    }
                }
            });
            tokio::select! {
                result = solving => result,
                limit = wait_for_expiry(limit) => Err(Error::TimeLimit { limit }),
                () = call.wait_until_shortly_before_shutdown_ends() => Err(Error::Interrupted),
            }
        };
        let result = result.map_err(|error| match error {
            Error::Failed(failure) => Error::Failed(control_character::add_control_character_location(
                failure, request,
            )),
            error => error,
        });
        for mut part in part_lines {
            let unfinished = part.take_unfinished_output();
            unfinished.into_iter().for_each(|line| log.push(line));
            lines.append_warnings_of_part(part);
        }
        lines
            .take_unfinished_output()
            .into_iter()
            .for_each(|line| log.push(line));
        // What explains a failure has the files of the context, which nothing else needs any more.
        for part in parts {
            let evidence = std::mem::take(&mut *part.lock_evidence());
            if matches!(result, Err(Error::Failed(_) | Error::TimeLimit { .. })) {
                call.lock_evidence().append(evidence);
            }
        }
        if let Err(error) = &result {
            span.mark_failed(call.trace_mask.mask_text(&ErrorChain(error).to_string()));
        }
        result
    }

    /// Solves the parts of a split build at the same time, each with a formatter of its own. Ends all of them with the
    /// first one that fails.
    async fn solve_all_parts(
        &self,
        solve: &Solve<'_>,
        parts: &[SolvePart],
        span: &Span,
        part_lines: &mut [LineFormatter],
        log: &mut dyn LogSink,
    ) -> Result<Vec<BuiltImageDigestCommitAndTimes>, Error> {
        let log = Mutex::new(log);
        let log = &log;
        let solving = parts.iter().zip(part_lines).map(|(part, lines)| {
            Box::pin(async move {
                self.solve_part(solve, part, span, lines, &mut SharedLog(log))
                    .await
            })
        });
        try_join_all(solving).await
    }

    /// Solves one part of a build, with retries.
    async fn solve_part(
        &self,
        solve: &Solve<'_>,
        part: &SolvePart,
        span: &Span,
        lines: &mut LineFormatter,
        log: &mut dyn LogSink,
    ) -> Result<BuiltImageDigestCommitAndTimes, Error> {
        let call = solve.call;
        let step_counter = self.metrics.step_counter();
        let mut step_spans = StepAndExportSpans::new(span, call.trace_mask);
        let mut retries = BuildRetries::new(match call.is_asynchronous {
            true => self.settings.retry_time,
            false => Duration::ZERO,
        });
        let (first_attempt, recorded) = (call.accepted.attempt_number(), call.accepted.recorded_attempts());
        let mut given_way = 0;
        loop {
            if let Some(inputs) = call.inputs.filter(|_| !part.is_of_split_build()) {
                inputs.forget_steps_for_next_attempt();
            }
            let mut observe = |event: &BuildEvent| {
                if let Some(inputs) = call.inputs {
                    inputs.record_ended_step(event);
                }
                step_counter.count_step_that_first_ends(event);
                step_spans.record_event(event);
                part.lock_evidence().record_event(event);
            };
            let number = first_attempt + retries.current_attempt() - 1;
            let attempt = async {
                let placed = self
                    .place_attempt_unless_cancelled_or_superseded(solve, part, lines, log)
                    .await?;
                self.attempt_unless_built_on_another_daemon(
                    &placed,
                    solve,
                    Attempt { part, number },
                    &mut observe,
                    lines,
                    log,
                )
                .await
            };
            let error = match attempt.await {
                Ok(built) => return Ok(built),
                Err(error) => error,
            };
            if let Error::BuiltElsewhere { daemon } = &error
                && given_way < GIVE_WAY_COUNT_MAX
            {
                given_way += 1;
                tracing::info!(daemon, "another builder builds this call; following its build");
                let unfinished = lines.take_unfinished_output();
                unfinished.into_iter().for_each(|line| log.push(line));
                continue;
            }
            let attempt = retries.current_attempt();
            let Some(pause) = retries.begin_retry_and_return_pause_if_allowed(&error) else {
                return Err(error);
            };
            let unfinished = lines.take_unfinished_output();
            unfinished.into_iter().for_each(|line| log.push(line));
            let seconds = pause.as_secs_f64();
            log.push(lines.format_unrecorded_warning(&format!(
                "attempt {attempt} failed: {error}; the build is tried again in {seconds:.1} s"
            )));
            let text = call.trace_mask.mask_text(&ErrorChain(&error).to_string());
            tracing::warn!(attempt, seconds, error = %text, "a build is tried again");
            let begun = recorded + retries.current_attempt() - 1;
            call.accepted
                .update_unless_succeeded(|record| record.attempts = record.attempts.max(begun));
            tokio::time::sleep(pause).await;
        }
    }

    /// Chooses a daemon for one attempt and connects to it. Fails if the history of a daemon shows that the call was
    /// cancelled or superseded.
    async fn place_attempt_unless_cancelled_or_superseded(
        &self,
        solve: &Solve<'_>,
        part: &SolvePart,
        lines: &mut LineFormatter,
        log: &mut dyn LogSink,
    ) -> Result<PlacedBuildMaybeCancelled, Error> {
        let (request, call) = (solve.request, solve.call);
        let tenant = request.tenant().map_or("", |tenant| tenant.name().as_str());
        let cancellation = call.accepted.to_cancellation();
        let placed = solve.pool.place_build(BuildToPlace {
            image: PlacementHash::of(&[tenant, &request.config.image.without_tag()]),
            reference: &part.reference,
            call: &cancellation,
            daemons: &part.daemons,
        });
        // Boxed, because the futures of several connections are large, and the stack of a thread is not.
        let placed = Box::pin(placed).await?;
        let tenant = request.tenant().map(AsRef::as_ref);
        self.shared_daemons
            .check_daemon(tenant, self.pool.address_for_messages(), &placed.connection)
            .await?;
        // A request to cancel the call, which another builder took before this delivery.
        if placed.is_cancelled {
            return Err(Error::Cancelled);
        }
        if let Some(registration) = solve.registration {
            registration.check_not_superseded_in_histories().await?;
            if !registration.last_reads_of_answering_histories_did_not_fail() {
                log.push(lines.record_warning_and_return_line(
                    "BuildKit's history could not be read: a newer build at another builder may not end this one",
                ));
            }
        }
        Ok(placed)
    }

    /// Attempts the solve once on its daemon. If another daemon runs the same build, and has precedence, leaves it to
    /// that one, and fails.
    async fn attempt_unless_built_on_another_daemon(
        &self,
        placed: &PlacedBuildMaybeCancelled,
        solve: &Solve<'_>,
        attempt: Attempt<'_>,
        observe: &mut (dyn FnMut(&BuildEvent) + Send),
        lines: &mut LineFormatter,
        log: &mut dyn LogSink,
    ) -> Result<BuiltImageDigestCommitAndTimes, Error> {
        let attempt = tokio::select! {
            biased;
            built = self.prepare_context_and_solve_or_find_earlier_image(placed, solve, attempt, observe, lines, log) => built,
            daemon = placed.wait_until_run_by_daemon_with_precedence(&attempt.part.reference) => Err(Error::BuiltElsewhere { daemon }),
        };
        if let Err(Error::Lost(_)) = &attempt {
            placed.make_daemon_lookup_due_after_loss().await;
        }
        attempt
    }

    /// Prepares the context and attempts the solve once. Passes its events to `observe`, and their lines to the log. If
    /// the context is gone or its commit cannot be looked up, returns the image that an earlier delivery built, if any.
    async fn prepare_context_and_solve_or_find_earlier_image(
        &self,
        placed: &PlacedBuildMaybeCancelled,
        solve: &Solve<'_>,
        attempt: Attempt<'_>,
        observe: &mut (dyn FnMut(&BuildEvent) + Send),
        lines: &mut LineFormatter,
        log: &mut dyn LogSink,
    ) -> Result<BuiltImageDigestCommitAndTimes, Error> {
        let (request, call, part) = (solve.request, solve.call, attempt.part);
        let connection = &placed.connection;
        // The files of the attempt before go first: there may be no room for both.
        part.lock_evidence().clear();
        // Boxed, because the futures of a fetch and of a lookup are large, and the stack of a thread is not.
        let preparing = Box::pin(self.prepare_context(connection, request, call, lines, log));
        let prepared = match (&part.shared_context, &request.source) {
            // Each daemon reads a repository itself: with the operator's token, only the one that looks up the commit has it.
            (Some(_), BuildSource::Git(_)) | (None, _) => preparing.await,
            (Some(shared), _) => shared.get_or_try_init(|| preparing).await.cloned(),
        };
        let context = match prepared {
            Ok(context) => context,
            // An earlier delivery may have built the context, which was deleted after that.
            Err(error) if is_context_gone_or_commit_lookup_failed(&error, request) => {
                let on_event = |event| lines.log_event(event, log);
                let earlier = EarlierBuildReferenceAndCall {
                    reference: &part.reference,
                    first_attempt: placed.first_attempt,
                    call_id: call.id,
                };
                let finding = find_built_image(connection, earlier, self.timeouts, on_event);
                return finding.await?.ok_or(error);
            }
            Err(error) => return Err(error),
        };
        part.lock_evidence().begin_attempt(match &context {
            JobBuildContext::Files(context) => Some(context.files.clone()),
            JobBuildContext::Git { .. } => None,
        });
        let mut job = BuildJob {
            first_attempt: placed.first_attempt,
            ..self
                .lease_key_and_create_job(request, &context, call, attempt)
                .await?
        };
        let cache = self.cache_name(request, part);
        let mut imports_cache = false;
        if let Some(cache) = &cache
            && self
                .should_import_cache(request, connection.daemon(), cache)
                .await
        {
            imports_cache = true;
            job.solve.cache_from.push(cache.clone());
        }
        // With the import: what the daemon found there, it may have by reference only.
        let export = cache
            .as_ref()
            .filter(|_| job.solve.push)
            .map(|cache| self.finished_solve(connection, &job, request, &context, call, cache.clone()));
        let on_event = |event| {
            observe(&event);
            lines.log_event(event, log);
        };
        let outcome = job.run_to_outcome(connection, on_event).await;
        if let Ok(image) = &outcome
            && let Some(cache) = &cache
        {
            if !imports_cache {
                self.cache_exports.record_known(connection.daemon(), cache);
            }
            // An earlier delivery has exported its own.
            call.lock_finished_solves()
                .extend(export.filter(|_| image.completed_at.is_none()));
        }
        outcome.map_err(|error| blame_platform_if_ref_moved(error, request).into())
    }

    /// Leases a shared key, under which BuildKit keeps the transferred context.
    ///
    /// A build with `SOURCE_DATE_EPOCH` wants the same image whatever was built before. In a folder that BuildKit keeps
    /// from an earlier transfer, a directory has the time at which a file in it was last replaced, so such a build gets
    /// a key under which BuildKit has nothing.
    async fn lease_key_of_image_or_single_use_with_source_date_epoch(
        &self,
        request: &BuildRequest,
        files: &Arc<SourceContext>,
    ) -> Result<Arc<KeyLease>, Error> {
        if request.config.build_args.contains_key(SOURCE_DATE_EPOCH) {
            return Ok(Arc::new(self.keys.lease_single_use()));
        }
        let image = shared_key_image(request);
        let (keys, context) = (self.keys.clone(), files.clone());
        // Files that look like those of an earlier build are read and hashed.
        let lease =
            tokio::task::spawn_blocking(move || keys.lease_for_image_blocking(&image, &context)).await;
        lease.map(Arc::new).map_err(|_| Error::Interrupted)
    }

    /// Returns the registries that the images of a request are pushed to, with the credentials for them.
    pub(super) fn manifests_for(&self, request: &BuildRequest) -> Arc<dyn ManifestLookup> {
        match request.tenant() {
            Some(tenant) => self.tenants.registries_with_own_credentials(tenant),
            None => self.manifests.clone(),
        }
    }

    /// Returns the function that a request deploys, with its tenant; `None` if the request deploys nothing.
    pub(crate) fn function_of(&self, request: &BuildRequest) -> Option<FunctionId> {
        let namespace = &self.settings.default_namespace;
        let function = FunctionId::from_deploy_config(request.config.deploy.as_ref()?, namespace)?;
        Some(match request.tenant() {
            Some(tenant) => function.of_tenant(tenant.name()),
            None => function,
        })
    }

    /// Returns the attributes with which the build's solve describes its request in BuildKit, without the commit
    /// and the attempt.
    pub(super) fn solve_attributes_without_commit_and_attempt(
        &self,
        request: &BuildRequest,
        call: &BuilderCall<'_>,
    ) -> SolveAttributes {
        SolveAttributes {
            call_id: call.id.to_owned(),
            signature: request
                .signature
                .as_ref()
                .map(VerifiedSignature::sha256_fingerprint),
            tenant: request.tenant().map(|tenant| tenant.name().to_string()),
            submitted_at: request.submitted_at.at,
            function: self.function_of(request),
            supersede: request.config.supersede,
            commit: None,
            attempt: None,
        }
    }

    /// Creates the services of a session of the build, without its files. It may read and write `cache`.
    pub(super) fn session_services_without_files(
        &self,
        request: &BuildRequest,
        call: &BuilderCall<'_>,
        cache: Option<String>,
    ) -> SessionServices {
        let access = repository_access_named_in_config(&request.config);
        if let Some(cache) = cache.as_deref().and_then(ImageName::parse_with_registry) {
            access.allow_push(cache);
        }
        let credentials: Arc<dyn CredentialStore> = match request.tenant() {
            Some(tenant) => Arc::new(ScopeLimitedTenantCredentials {
                registries: self.tenants.registries_with_own_credentials(tenant),
                access: access.clone(),
            }),
            None => self.credentials.clone(),
        };
        let sources = self.source_rules(request, call, access);
        SessionServices::new()
            .with_health()
            .with_source_check_gating_later_files(Arc::new(sources))
            .with_credentials(credentials)
            .with_secrets_unless_empty(Arc::new(call.secrets.clone()))
    }

    /// Creates the job of an attempt from the request and the operator's settings, and leases its shared key.
    async fn lease_key_and_create_job(
        &self,
        request: &BuildRequest,
        context: &JobBuildContext,
        call: &BuilderCall<'_>,
        Attempt { part, number }: Attempt<'_>,
    ) -> Result<BuildJob, Error> {
        let lease = match context {
            JobBuildContext::Files(context) => {
                let lease = self
                    .lease_key_of_image_or_single_use_with_source_date_epoch(request, &context.files)
                    .await?;
                if let Some(inputs) = call.inputs {
                    inputs.request_file_listing_from_lease(lease.clone());
                }
                lease
            }
            // The session has no files.
            JobBuildContext::Git { .. } => Arc::new(self.keys.lease_single_use()),
        };
        let tenant = request.tenant();
        let manifests = self.manifests_for(request);
        let services = self.session_services_without_files(request, call, self.cache_name(request, part));
        let services = match context {
            JobBuildContext::Files(context) => services.with_files(context.files.clone(), lease.clone()),
            JobBuildContext::Git { .. } => services,
        };
        let config = &request.config;
        let settings = &self.settings;
        let solve = SolveOptions {
            reference: part.reference.clone(),
            attributes: Some(SolveAttributes {
                commit: context.commit().map(str::to_owned),
                attempt: Some(number),
                ..self.solve_attributes_without_commit_and_attempt(request, call)
            }),
            names: part.image_names(config),
            push: !config.skip_push,
            is_part_of_index: part.is_of_split_build(),
            exports_only_cache: false,
            insecure: settings.insecure,
            dockerfile: config.dockerfile.clone(),
            target: config.target.clone(),
            build_args: config.build_args.clone(),
            labels: labels_with_commit_unless_set(&config.labels, context.commit()),
            platforms: part.platforms.clone(),
            no_cache: config.no_cache,
            cache_from: part.cache_imports(config),
            cache_to: part.cache_exports(config),
            named_frontend: matches!(context, JobBuildContext::Files(context) if context.frontend == Frontend::Named),
            git_context: match context {
                JobBuildContext::Files(_) => None,
                JobBuildContext::Git { source, commit } => Some((source.clone(), commit.clone())),
            },
            provenance: config.provenance.map(|provenance| match provenance {
                ProvenanceMinOrMax::Min => "min",
                ProvenanceMinOrMax::Max => "max",
            }),
            sbom_generator: settings.sbom_generator.clone().filter(|_| config.sbom),
            compression: config.compression.unwrap_or(settings.compression),
            sealed_secrets: request.sealed_secrets.clone(),
            tenant: tenant.map(|tenant| tenant.name().to_string()),
            no_network: tenant.is_some_and(|tenant| tenant.step_network() == DefaultOrNoStepNetwork::None),
            step_limits: settings.step_limits,
        };
        Ok(BuildJob {
            services,
            shared_key: lease,
            solve,
            first_attempt: 1,
            manifests,
            timeouts: self.timeouts,
        })
    }
}

/// Returns the name under which the shared keys of a request's image are kept. The name of a tenant has no slash, so no
/// two tenants share a key, whatever their images are called.
pub(super) fn shared_key_image(request: &BuildRequest) -> String {
    let tenant = request.tenant().map(|tenant| format!("{}/", tenant.name()));
    format!(
        "{}{}",
        tenant.unwrap_or_default(),
        request.config.image.without_tag()
    )
}

/// Returns whether `error` says that the context is gone, or that its commit could not be looked up. An earlier
/// delivery of the call may have built it.
fn is_context_gone_or_commit_lookup_failed(error: &Error, request: &BuildRequest) -> bool {
    match error {
        Error::Context(error) => error.is_missing(),
        Error::Failed(_) => matches!(request.source, BuildSource::Git(_)),
        _ => false,
    }
}

/// Blames the platform for a failure because the ref of a git context has another commit than a moment before: the next
/// attempt looks it up again.
fn blame_platform_if_ref_moved(error: JobError, request: &BuildRequest) -> JobError {
    match error {
        JobError::Failed(failure)
            if matches!(request.source, BuildSource::Git(_))
                && failure.message.contains("expected checksum to match") =>
        {
            JobError::Failed(BuildFailure {
                fault: FaultyParty::Platform,
                ..failure
            })
        }
        error => error,
    }
}

/// Returns the labels of the image, with one for the commit of the context unless the config has it.
fn labels_with_commit_unless_set(
    labels: &BTreeMap<String, String>,
    commit: Option<&str>,
) -> BTreeMap<String, String> {
    let mut labels = labels.clone();
    if let Some(commit) = commit {
        labels
            .entry(REVISION_LABEL.to_owned())
            .or_insert_with(|| commit.to_owned());
    }
    labels
}

/// Returns the repositories that a build may pull from or push to because its config names them. Those that its
/// Dockerfile names are added when the daemon asks about them.
fn repository_access_named_in_config(config: &BuildConfig) -> RepositoryAccess {
    let access = RepositoryAccess::default();
    let name = |image: &ImageRef| ImageName::parse_with_registry(&image.without_tag());
    let exports = config.cache_to.iter().map(|cache| &cache.image);
    let pushed = [&config.image].into_iter().chain(&config.tags).chain(exports);
    pushed.filter_map(name).for_each(|image| access.allow_push(image));
    let imports = config.cache_from.iter();
    imports
        .filter_map(name)
        .for_each(|image| access.allow_pull(image));
    access
}
