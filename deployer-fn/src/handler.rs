//! The function's handler: receives a signed hand-over, runs its deployment, and answers with the outcome.

use std::sync::Arc;
use std::time::Duration;

use function_host::ErrorChain;
use function_host::http::{HeaderValue, Method, StatusCode, header};
use function_host::registry::LoginsCache;
use function_host::signature::HmacKeys;
use function_host::unverified::UnverifiedBudget;
use function_host::{Context, Handler, Request, Response, Secrets, reply, trace};
use jiff::Timestamp;
use tokio::time::Instant;
use tracing::{Instrument, info, warn};

use crate::answer::{self, HandOverResult};
use crate::build_times::BuildTimes;
use crate::error::HandOverError;
use crate::function::{FunctionAddress, FunctionId};
use crate::gateway::{HttpGatewaySender, TokenExchange};
use crate::metrics::DeploymentMetrics;
use crate::outcome::{DeploymentOutcome, DeploymentStatus, DryRunOutcome};
use crate::policy::{KEY_SECRET, Policy, Rules};
use crate::queue::DeploymentQueue;
use crate::registry::{PULL_CONFIG_SECRET, RegistryImageCheck};
use crate::request::{self, DryRunRequest, HandOver, PinnedImage, ReceivedHandOver, SIGNATURE_HEADER};
use crate::rollout::{self, RolloutContext, RolloutDeadline, RolloutHistory};
use crate::settings::Settings;
use crate::succession::SuccessorReceiver;

/// Timeout of all requests to a registry for finding out whether it has an image.
const IMAGE_LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Timeout of a whole dry run.
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
    exchange: TokenExchange,
    logins: Arc<LoginsCache>,
    unverified: UnverifiedBudget,
}

impl Deployer {
    /// Makes a deployer with these settings. Secrets and the gateway come with each request.
    #[must_use]
    pub fn new(settings: Settings, metrics: DeploymentMetrics) -> Self {
        let exchange = TokenExchange::new(Secrets::new(&settings.token_mount_path));
        Self {
            metrics,
            unverified: UnverifiedBudget::new(settings.unverified),
            settings: Arc::new(settings),
            queue: DeploymentQueue::default(),
            history: RolloutHistory::default(),
            exchange,
            logins: Arc::new(LoginsCache::new(PULL_CONFIG_SECRET)),
        }
    }

    /// Receives the hand-over in a request, and deploys it in a task of its own; a dry run is only checked.
    async fn handle_hand_over(
        &self,
        request: Request,
        context: &Context,
    ) -> Result<HandOverResult, HandOverError> {
        let (mut received, rules) = self.receive_with_rules(request, context).await?;
        rules.apply_defaults(&mut received.hand_over_mut().spec);
        let hand_over = received.hand_over();
        if !hand_over.warnings.is_empty() {
            info!(warnings = ?hand_over.warnings, "the hand-over has fields that are ignored or misspelt");
        }
        let mut objections = hand_over.time_problems(Timestamp::now());
        objections.extend(rules.violations(&hand_over.spec, received.image_for_rules()));
        match received {
            ReceivedHandOver::DryRun(dry_run) => Ok(HandOverResult::DryRun(
                self.check_dry_run(&dry_run, objections, context).await,
            )),
            ReceivedHandOver::HandOver(hand_over) => {
                let outcome = self.deploy_in_task(hand_over, objections, context).await?;
                Ok(HandOverResult::Deployment(Box::new(outcome)))
            }
        }
    }

    /// Checks a hand-over whose image is not built yet.
    async fn check_dry_run(
        &self,
        dry_run: &DryRunRequest,
        objections: Vec<String>,
        context: &Context,
    ) -> DryRunOutcome {
        let transport = HttpGatewaySender::new(context.gateway(), context.secrets(), &self.exchange);
        let succession = SuccessorReceiver::without_successor();
        let rollout_context = self.rollout_context(&transport, &succession);
        let deadline = RolloutDeadline::new(DRY_RUN_TIMEOUT, context.deadline(), context.shutdown().clone());
        let check = rollout::check_without_deploying(&rollout_context, dry_run, objections, &deadline);
        trace::span("dry run").run(check).await
    }

    /// Returns the context that rollouts work with: the gateway, the timeouts and the history.
    fn rollout_context<'a>(
        &'a self,
        transport: &'a HttpGatewaySender<'a>,
        succession: &'a SuccessorReceiver,
    ) -> RolloutContext<'a, HttpGatewaySender<'a>> {
        RolloutContext {
            transport,
            timeouts: &self.settings.timeouts,
            default_namespace: &self.settings.default_namespace,
            history: &self.history,
            succession,
        }
    }

    /// Deploys a hand-over in a task of its own, which continues if the caller disconnects.
    async fn deploy_in_task(
        &self,
        hand_over: HandOver,
        objections: Vec<String>,
        context: &Context,
    ) -> Result<DeploymentOutcome, HandOverError> {
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
                .run(deployer.deploy(&hand_over, function, objections, &context))
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
            .map_err(HandOverError::Panicked)
    }

    /// Receives and verifies a hand-over, and returns it with the rules of the key that it is signed with.
    async fn receive_with_rules(
        &self,
        request: Request,
        context: &Context,
    ) -> Result<(ReceivedHandOver, &Rules), HandOverError> {
        let keys = read_keys_with_rules(context.secrets(), &self.settings.policy)?;
        let (head, body) = request.into_parts();
        let signature = head
            .headers
            .get(SIGNATURE_HEADER)
            .map(HeaderValue::to_str)
            .and_then(Result::ok);
        let span = trace::span("receive");
        let received = request::receive_hand_over(body, signature, &keys, &self.unverified);
        let received = span.run(received).await;
        let accepted = received.and_then(|received| {
            context.accept()?;
            Ok(received)
        });
        if let Err(error) = &accepted {
            span.mark_failed(error);
        }
        accepted
    }

    /// Waits for other deployments of the function, checks the image, and rolls out the hand-over.
    async fn deploy(
        &self,
        hand_over: &HandOver,
        function: FunctionId,
        mut objections: Vec<String>,
        context: &Context,
    ) -> DeploymentOutcome {
        let _in_progress = self.metrics.begin_deployment();
        objections.extend(self.check_image(&hand_over.spec.image, context).await);
        // Another deployment does not yield to one that is rejected.
        let times = match objections.is_empty() {
            true => hand_over.build_times(),
            false => BuildTimes::default(),
        };
        let queued = Instant::now();
        let permit = self
            .queue
            .acquire_permit(function, times, hand_over.call_id.clone());
        let permit = trace::span("queue").run(permit).await;
        let waited = queued.elapsed();
        // The time in the queue is not the new version's: a rollout continues after its caller has gone.
        let request_deadline = context.deadline().map(|at| at + waited);
        let deadline = RolloutDeadline::with_reserve(
            self.settings.ready_timeout,
            self.settings.timeouts.rollback,
            request_deadline,
            context.shutdown().clone(),
        );
        let transport = HttpGatewaySender::new(context.gateway(), context.secrets(), &self.exchange);
        let rollout_context = self.rollout_context(&transport, permit.successor_receiver());
        let url = self.function_url(&hand_over.spec.function_address(), context);
        let mut outcome =
            rollout::roll_out_hand_over(&rollout_context, hand_over, objections, &deadline, url).await;
        outcome.durations.queue = waited;
        self.metrics.record_outcome(&outcome);
        outcome
    }

    /// Returns why the image cannot be deployed, if its registry says so.
    async fn check_image(&self, image: &PinnedImage, context: &Context) -> Option<String> {
        let settings = &self.settings;
        if !settings.check_image {
            return None;
        }
        let lookup = RegistryImageCheck {
            secrets: context.secrets().clone(),
            logins: Arc::clone(&self.logins),
            insecure: settings.insecure,
            token_realms: settings.token_realms.clone(),
            platform: settings.platform.clone(),
        };
        let span = trace::span("check image");
        let objection = span.run(lookup.find_objection(image, IMAGE_LOOKUP_TIMEOUT)).await;
        if let Some(objection) = &objection {
            span.mark_failed(objection);
        }
        objection
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
        Ok(answer::log_and_respond(
            &self.handle_hand_over(request, &context).await,
        ))
    }
}

/// Reads the keys that hand-overs may be signed with, each with its rules. If a further key of the policy
/// cannot be read, hand-overs that are signed with another one are not affected.
fn read_keys_with_rules<'p>(
    secrets: &Secrets,
    policy: &'p Policy,
) -> Result<Vec<(HmacKeys, &'p Rules)>, HandOverError> {
    let secret = secrets.read_secret(KEY_SECRET).map_err(HandOverError::Key)?;
    let first = HmacKeys::new(&secret).ok_or(HandOverError::NoKey { name: KEY_SECRET })?;
    let mut keys = vec![(first, &policy.rules)];
    for (name, rules) in &policy.keys {
        match secrets.read_secret(name).map(|secret| HmacKeys::new(&secret)) {
            Ok(Some(key)) => keys.push((key, rules)),
            Ok(None) => warn!(secret = name, "a secret of the policy has no signing key"),
            Err(error) => {
                warn!(secret = name, error = %ErrorChain(&error), "could not read a signing key of the policy")
            }
        }
    }
    Ok(keys)
}
