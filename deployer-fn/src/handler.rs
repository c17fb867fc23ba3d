//! The function's handler: receives a signed hand-over, runs its deployment, and answers with the outcome.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use function_host::http::{HeaderValue, Method, StatusCode, header};
use function_host::policy::{KeySecretReader, Policy, PolicyFile, Tenant};
use function_host::registry::LoginsCache;
use function_host::unverified::UnverifiedBudget;
use function_host::{Context, Handler, Request, Response, Secrets, reply, trace};
use jiff::Timestamp;
use tokio::time::Instant;
use tracing::{Instrument, info};

use crate::answer::{self, HandOverResult};
use crate::build_times::TimesOfBuild;
use crate::error::HandOverRejectionOrPanic;
use crate::function::{FunctionAddress, FunctionId};
use crate::gateway::{self, CachingTokenExchanger, HttpGatewaySender};
use crate::metrics::DeploymentMetrics;
use crate::outcome::{DeploymentOutcome, DeploymentStatus, DryRunOutcome};
use crate::queue::DeploymentQueue;
use crate::registry::{PULL_CONFIG_SECRET, RegistryImageCheck};
use crate::request::{self, DryRunRequest, HandOver, PinnedImage, ReceivedHandOver, SIGNATURE_HEADER};
use crate::rollout::{self, RolloutContext, RolloutDeadline, RolloutHistory};
use crate::settings::Settings;
use crate::succession::SuccessorReceiver;
use crate::tenancy::{self, Signer};

/// The timeout of the lookup of an image in its registry, for all its requests together.
const IMAGE_LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// The timeout of a dry run, for all its requests together.
const DRY_RUN_TIMEOUT: Duration = Duration::from_secs(5);

/// The handler of the deployer function: deploys the images of signed hand-overs.
///
/// A rollout that has begun continues when its caller disconnects: a gateway that stops waiting must not leave a
/// function half-deployed. It ends by its own timeouts, or with the process. Its outcome is then in the log, and in
/// the answer to the next delivery of the same hand-over.
#[derive(Clone, Debug)]
pub struct Deployer {
    settings: Arc<Settings>,
    queue: DeploymentQueue,
    history: RolloutHistory,
    metrics: DeploymentMetrics,
    exchange: CachingTokenExchanger,
    /// The parsed registry logins, by the name of their secret.
    logins: Arc<Mutex<BTreeMap<String, Arc<LoginsCache>>>>,
    key_reader: KeySecretReader,
    unverified: UnverifiedBudget,
}

impl Deployer {
    /// Creates a deployer with these settings. Secrets and the gateway come with each request.
    #[must_use]
    pub fn new(settings: Settings, metrics: DeploymentMetrics) -> Self {
        let exchange = CachingTokenExchanger::new(Secrets::new(&settings.token_mount_path));
        if let Some(policy) = &settings.policy {
            policy.show_validity_in(metrics.policy_valid_gauge());
        }
        let unverified = UnverifiedBudget::new(settings.unverified);
        unverified.show_use_in_metrics(metrics.unverified_metrics());
        Self {
            metrics,
            unverified,
            settings: Arc::new(settings),
            queue: DeploymentQueue::default(),
            history: RolloutHistory::default(),
            exchange,
            logins: Arc::default(),
            key_reader: KeySecretReader::default(),
        }
    }

    /// Receives the hand-over in a request, and deploys it in a task of its own; a dry run is only checked.
    async fn handle_hand_over(
        &self,
        request: Request,
        context: &Context,
    ) -> Result<HandOverResult, HandOverRejectionOrPanic> {
        let (received, tenant) = self.receive_accept_and_find_tenant(request, context).await?;
        let hand_over = received.hand_over();
        if !hand_over.warnings.is_empty() {
            info!(warnings = ?hand_over.warnings, "the hand-over has fields that are ignored or misspelt");
        }
        let objections = hand_over.time_problems(Timestamp::now());
        match received {
            ReceivedHandOver::DryRun(dry_run) => Ok(HandOverResult::DryRun(
                self.check_dry_run_against_gateway(&dry_run, tenant.as_deref(), objections, context)
                    .await,
            )),
            ReceivedHandOver::HandOver(hand_over) => {
                let outcome = self
                    .deploy_in_task(hand_over, tenant, objections, context)
                    .await?;
                Ok(HandOverResult::Deployment(Box::new(outcome)))
            }
        }
    }

    /// Checks a hand-over whose image is not built yet, and deploys nothing. `objections` were found before.
    async fn check_dry_run_against_gateway(
        &self,
        dry_run: &DryRunRequest,
        tenant: Option<&Tenant>,
        objections: Vec<String>,
        context: &Context,
    ) -> DryRunOutcome {
        let transport = HttpGatewaySender::new(context.gateway(), context.secrets(), &self.exchange);
        let succession = SuccessorReceiver::without_successor();
        let rollout_context = self.rollout_context(&transport, tenant, &succession);
        let deadline = RolloutDeadline::new(DRY_RUN_TIMEOUT, context.deadline(), context.shutdown().clone());
        let check =
            rollout::check_all_but_image_and_build_order(&rollout_context, dry_run, objections, &deadline);
        trace::span("dry run").run(check).await
    }

    /// Returns the context that rollouts work with: the gateway, the timeouts and the history.
    fn rollout_context<'a>(
        &'a self,
        transport: &'a HttpGatewaySender<'a>,
        tenant: Option<&'a Tenant>,
        succession: &'a SuccessorReceiver,
    ) -> RolloutContext<'a, HttpGatewaySender<'a>> {
        RolloutContext {
            transport,
            kubernetes: self.settings.kubernetes.as_ref(),
            timeouts: &self.settings.timeouts,
            default_namespace: &self.settings.default_namespace,
            history: &self.history,
            tenant,
            succession,
        }
    }

    /// Deploys a hand-over in a task of its own, which continues if the caller disconnects.
    async fn deploy_in_task(
        &self,
        hand_over: HandOver,
        tenant: Option<Arc<Tenant>>,
        objections: Vec<String>,
        context: &Context,
    ) -> Result<DeploymentOutcome, HandOverRejectionOrPanic> {
        let function = hand_over
            .spec
            .function_address()
            .identity(&self.settings.default_namespace);
        let log_span = tracing::info_span!(
            "deployment",
            function = %function,
            build = hand_over.call_id.as_deref().unwrap_or_default(),
        );
        let span = trace::span("deployment");
        span.set_attribute("slipway.function", function.to_string());
        span.set_attribute("slipway.image", hand_over.spec.image.to_string());
        let (deployer, context) = (self.clone(), context.clone());
        let deployment = async move {
            let outcome = span
                .run(deployer.deploy(&hand_over, tenant.as_deref(), function, objections, &context))
                .await;
            span.set_attribute("slipway.status", outcome.status.as_str());
            span.set_attribute("slipway.changed", outcome.changed);
            if !matches!(
                outcome.status,
                DeploymentStatus::Ready | DeploymentStatus::Unverified
            ) {
                span.mark_failed(outcome.reasons.join("; "));
            }
            outcome
        };
        tokio::spawn(deployment.instrument(log_span))
            .await
            .map_err(HandOverRejectionOrPanic::Panicked)
    }

    /// Receives and verifies a hand-over, counts the request as accepted, and checks its tenant's rules. Returns the
    /// hand-over with its tenant, which is `None` without a policy.
    async fn receive_accept_and_find_tenant(
        &self,
        request: Request,
        context: &Context,
    ) -> Result<(ReceivedHandOver, Option<Arc<Tenant>>), HandOverRejectionOrPanic> {
        let policy = self.settings.policy.as_ref().map(PolicyFile::reload_if_changed);
        let policy = policy.as_deref();
        let keys = tenancy::read_builder_and_usable_tenant_keys(context.secrets(), policy, &self.key_reader)?;
        let keys: Vec<_> = keys.iter().map(|(key, signer)| (key.clone(), signer)).collect();
        let (head, body) = request.into_parts();
        let signature = head
            .headers
            .get(SIGNATURE_HEADER)
            .map(HeaderValue::to_str)
            .and_then(Result::ok);
        let span = trace::span("receive");
        let received = request::receive_hand_over(body, signature, &keys, &self.unverified);
        let received = span.run(received).await;
        let checked = received.and_then(|(mut received, signer)| {
            context.accept()?;
            let tenant = self.find_tenant_and_check_rules(&mut received, signer, policy)?;
            Ok((received, tenant))
        });
        if let Err(error) = &checked {
            span.mark_failed(error);
        }
        checked
    }

    /// Finds the tenant of a verified hand-over, completes the hand-over with its name and default limits, and checks
    /// its rules.
    fn find_tenant_and_check_rules(
        &self,
        received: &mut ReceivedHandOver,
        signer: &Signer,
        policy: Option<&Policy>,
    ) -> Result<Option<Arc<Tenant>>, HandOverRejectionOrPanic> {
        let dry_run = received.is_dry_run();
        let hand_over = received.hand_over_mut();
        let tenant = tenancy::find_tenant(signer, hand_over.tenant.as_deref(), policy);
        let tenant = tenant.map_err(|problem| HandOverRejectionOrPanic::Invalid {
            problems: vec![problem],
            dry_run,
        })?;
        if let Some(tenant) = &tenant {
            hand_over.tenant = Some(tenant.name().to_string());
            tenancy::apply_default_limits(tenant, &mut hand_over.spec);
        }
        let checked = tenancy::check_rules(received, tenant.as_deref(), &self.settings.reserved);
        checked.map_err(|violations| {
            if !dry_run {
                self.metrics.record_refused_before_rollout();
            }
            HandOverRejectionOrPanic::Forbidden { violations, dry_run }
        })?;
        Ok(tenant)
    }

    /// Checks the image, waits for other deployments of the function, rolls out the hand-over, and records the outcome
    /// in the metrics.
    async fn deploy(
        &self,
        hand_over: &HandOver,
        tenant: Option<&Tenant>,
        function: FunctionId,
        mut objections: Vec<String>,
        context: &Context,
    ) -> DeploymentOutcome {
        let _in_progress = self.metrics.count_in_progress_until_dropped();
        objections.extend(
            self.find_image_objection_if_check_is_on(&hand_over.spec.image, tenant, context)
                .await,
        );
        // Another deployment does not yield to one that is rejected, nor to one of a tenant that may not change the
        // function.
        let times = match objections.is_empty()
            && self
                .tenant_may_create_or_change_readable_function(hand_over, tenant, context)
                .await
        {
            true => hand_over.build_times(),
            false => TimesOfBuild::default(),
        };
        let queued = Instant::now();
        let permit = self
            .queue
            .acquire_permit(function, times, hand_over.call_id.clone());
        let permit = trace::span("queue").run(permit).await;
        let waited = queued.elapsed();
        // The time in the queue is not the new version's: a rollout continues after its caller has gone.
        let request_deadline = context.deadline().map(|at| at + waited);
        let deadline = RolloutDeadline::with_reserve_before_request_deadline(
            self.settings.ready_timeout,
            self.settings.timeouts.rollback,
            request_deadline,
            context.shutdown().clone(),
        );
        let transport = HttpGatewaySender::new(context.gateway(), context.secrets(), &self.exchange);
        let rollout_context = self.rollout_context(&transport, tenant, permit.successor_receiver());
        let url = self.function_url(&hand_over.spec.function_address(), context);
        let mut outcome =
            rollout::roll_out_hand_over(&rollout_context, hand_over, objections, &deadline, url).await;
        outcome.durations.queue = waited;
        self.metrics.record_outcome(&outcome);
        outcome
    }

    /// Reads the function's state from the gateway, and returns whether the tenant may change the function. It may
    /// create a missing one, but not change one whose state cannot be read. Always true without a tenant.
    async fn tenant_may_create_or_change_readable_function(
        &self,
        hand_over: &HandOver,
        tenant: Option<&Tenant>,
        context: &Context,
    ) -> bool {
        if tenant.is_none() {
            return true;
        }
        let transport = HttpGatewaySender::new(context.gateway(), context.secrets(), &self.exchange);
        let function = hand_over.spec.function_address();
        match gateway::read_function(&transport, &function, self.settings.timeouts.request).await {
            Ok(None) => true,
            Ok(Some(status)) => tenancy::objection_to_change(tenant, &status).is_none(),
            Err(_) => false,
        }
    }

    /// Looks the image up in its registry, unless that is switched off, and returns why it cannot be deployed. `None`
    /// if it can, or if the lookup fails.
    async fn find_image_objection_if_check_is_on(
        &self,
        image: &PinnedImage,
        tenant: Option<&Tenant>,
        context: &Context,
    ) -> Option<String> {
        let settings = &self.settings;
        if !settings.check_image {
            return None;
        }
        let config_secret = tenant
            .and_then(Tenant::pull_config_secret)
            .unwrap_or(PULL_CONFIG_SECRET);
        let lookup = RegistryImageCheck {
            secrets: context.secrets().clone(),
            config_secret: config_secret.to_owned(),
            logins: self.logins_cache_of_secret(config_secret),
            insecure: settings.insecure,
            token_realms: settings.token_realms.clone(),
            platform: settings.platform.clone(),
        };
        let span = trace::span("check image");
        let objection = span
            .run(lookup.find_objection_if_lookup_succeeds(image, IMAGE_LOOKUP_TIMEOUT))
            .await;
        if let Some(objection) = &objection {
            span.mark_failed(objection);
        }
        objection
    }

    /// Returns the cache of the registry logins in the secret with this name, which all deployments share.
    fn logins_cache_of_secret(&self, config_secret: &str) -> Arc<LoginsCache> {
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        let cache = logins
            .entry(config_secret.to_owned())
            .or_insert_with(|| Arc::new(LoginsCache::new(config_secret)));
        Arc::clone(cache)
    }

    /// Returns the function's URL for callers.
    fn function_url(&self, function: &FunctionAddress, context: &Context) -> String {
        match &self.settings.public_url {
            Some(base) => format!("{base}{}", function.call_path()),
            None => context
                .gateway()
                .function_url(&function.name, function.namespace.as_deref()),
        }
    }
}

impl Handler for Deployer {
    async fn call(&self, request: Request, context: Context) -> Result<Response, function_host::Error> {
        if request.uri().path() != "/" {
            return Ok(reply::message(
                StatusCode::NOT_FOUND,
                "hand-overs are posted to /\n",
            ));
        }
        if request.method() != Method::POST {
            let mut response =
                reply::message(StatusCode::METHOD_NOT_ALLOWED, "hand-overs are sent with POST\n");
            response
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("POST"));
            return Ok(response);
        }
        trace::set_route_of_current_request("/");
        Ok(answer::log_rejection_or_error_and_respond(
            &self.handle_hand_over(request, &context).await,
        ))
    }
}
