//! The function: a signed hand-over comes in, an outcome goes out.

use std::sync::Arc;
use std::time::Duration;

use function_host::http::{HeaderValue, Method, StatusCode, header};
use function_host::signature::HmacKeys;
use function_host::{Context, Handler, Request, Response, Secrets, reply, trace};
use tokio::time::Instant;
use tracing::{Instrument, info, warn};

use crate::answer;
use crate::error::{Error, chain};
use crate::gateway::{Bearer, Exchange};
use crate::metrics::Metrics;
use crate::outcome::{Outcome, Status};
use crate::policy::{Policy, Rules};
use crate::registry::Images;
use crate::request::{self, HandOver, SIGNATURE_HEADER};
use crate::rollout::{Deadline, Ground, Memory, rollout};
use crate::settings::Settings;
use crate::turns::Turns;

/// The secret with the key of hand-overs: one key a line while they are rotated.
pub const KEY_SECRET: &str = "deploy-secret";

/// How long registries may take to say whether they have an image.
const REGISTRY_ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// Deploys what is handed over.
///
/// A rollout that has begun goes on when its caller goes away: a gateway that gave up waiting must not leave a function
/// half-way. It ends by its own limits, or with the process. What it came to is then in the log, and in the answer to the
/// same hand-over delivered again.
#[derive(Clone, Debug)]
pub struct Deployer {
    settings: Arc<Settings>,
    turns: Turns,
    memory: Memory,
    metrics: Metrics,
    exchange: Exchange,
}

impl Deployer {
    /// A deployer with these settings. Secrets and gateway come with each request.
    #[must_use]
    pub fn new(settings: Settings, metrics: Metrics) -> Self {
        let exchange = Exchange::new(Secrets::new(&settings.token_mount_path));
        Self {
            metrics,
            settings: Arc::new(settings),
            turns: Turns::default(),
            memory: Memory::default(),
            exchange,
        }
    }

    async fn deploy(&self, request: Request, context: &Context) -> Result<Outcome, Error> {
        let keys = read_keys(context.secrets(), &self.settings.policy)?;
        let (head, body) = request.into_parts();
        let signature = head
            .headers
            .get(SIGNATURE_HEADER)
            .map(HeaderValue::to_str)
            .and_then(Result::ok);
        let receiving = trace::span("receive");
        let received = receiving.run(request::receive(body, signature, &keys)).await;
        if let Err(error) = &received {
            receiving.mark_failed(error);
        }
        drop(receiving);
        let (mut hand_over, rules) = received?;
        rules.fill_in(&mut hand_over);
        let objections = rules.objections(&hand_over);
        if !hand_over.unknown.is_empty() {
            info!(fields = ?hand_over.unknown, "the hand-over has fields that are not known here");
        }
        let span = tracing::info_span!(
            "deployment",
            function = hand_over.spec.service,
            build = hand_over.call_id.as_deref().unwrap_or_default(),
        );
        let told = trace::span("deployment");
        told.set("slipway.function", hand_over.spec.service.clone());
        told.set("slipway.image", hand_over.spec.image.to_string());
        let rollout = self.rollout(hand_over, objections, context.clone());
        let rollout = async move {
            let outcome = told.run(rollout).await;
            told.set("slipway.status", outcome.status.name());
            told.set("slipway.changed", outcome.changed);
            if outcome.status != Status::Ready {
                told.mark_failed(outcome.reasons.join("; "));
            }
            outcome
        };
        tokio::spawn(rollout.instrument(span))
            .await
            .map_err(Error::Broken)
    }

    fn rollout(
        &self,
        hand_over: HandOver,
        objections: Vec<String>,
        context: Context,
    ) -> impl Future<Output = Outcome> + Send + use<> {
        let Self {
            settings,
            turns,
            memory,
            metrics,
            exchange,
        } = self.clone();
        async move {
            let mut objections = objections;
            let _under_way = metrics.begun();
            let (name, namespace) = (&hand_over.spec.service, hand_over.spec.namespace.as_deref());
            let begun = Instant::now();
            let function = (hand_over.spec.namespace.clone(), name.clone());
            let turn = turns.wait(function, hand_over.built_at);
            let _turn = trace::span("queue").run(turn).await;
            let waited = begun.elapsed();
            let deadline = Deadline::with_reserve(
                settings.ready_timeout,
                settings.limits.rollback,
                context.deadline(),
                context.shutdown().clone(),
            );
            if settings.check_image {
                let images = Images::new(
                    context.secrets().clone(),
                    settings.insecure,
                    settings.platform.clone(),
                );
                let image = &hand_over.spec.image;
                let step = trace::span("check image");
                let objection = step.run(images.objection(image, REGISTRY_ANSWERS_WITHIN)).await;
                if let Some(objection) = &objection {
                    step.mark_failed(objection);
                }
                objections.extend(objection);
            }
            let url = match (&settings.public_url, namespace) {
                (Some(base), Some(namespace)) => format!("{base}/function/{name}.{namespace}"),
                (Some(base), None) => format!("{base}/function/{name}"),
                (None, namespace) => context.gateway().function_url(name, namespace),
            };
            let ground = Ground {
                transport: &Bearer::new(context.gateway(), context.secrets(), &exchange),
                limits: &settings.limits,
                memory: &memory,
            };
            let mut outcome = rollout(&ground, &hand_over, objections, &deadline, url).await;
            outcome.durations.queue = waited;
            metrics.ended(&outcome);
            outcome
        }
    }
}

impl Handler for Deployer {
    async fn call(&self, request: Request, context: Context) -> Result<Response, function_host::Error> {
        if request.uri().path() != "/" {
            return Ok(reply::message(
                StatusCode::NOT_FOUND,
                "deployments are posted to /\n",
            ));
        }
        if request.method() != Method::POST {
            let mut response = reply::message(StatusCode::METHOD_NOT_ALLOWED, "deployments are posted\n");
            response
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("POST"));
            return Ok(response);
        }
        trace::set_route("/");
        Ok(answer::response(&self.deploy(request, &context).await))
    }
}

/// The keys that hand-overs may be signed with, each with its rules. A further key whose secret is missing is no reason
/// to refuse what is signed with another.
fn read_keys<'p>(secrets: &Secrets, policy: &'p Policy) -> Result<Vec<(HmacKeys, &'p Rules)>, Error> {
    let secret = secrets.read(KEY_SECRET).map_err(Error::Key)?;
    let first = HmacKeys::new(&secret).ok_or(Error::NoKey { name: KEY_SECRET })?;
    let mut keys = vec![(first, &policy.rules)];
    for (name, rules) in &policy.keys {
        match secrets.read(name).map(|secret| HmacKeys::new(&secret)) {
            Ok(Some(key)) => keys.push((key, rules)),
            Ok(None) => warn!(secret = name, "a secret of the policy has no key in it"),
            Err(error) => warn!(error = chain(&error), "a key of the policy cannot be read"),
        }
    }
    Ok(keys)
}
