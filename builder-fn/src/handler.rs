//! The builder's HTTP interface: its routes, and a build request's path through the crate.

mod context_upload;

use std::sync::Arc;
use std::time::SystemTime;

use function_host::http::{HeaderMap, Method};
use function_host::policy::{Policy, TenantName};
use function_host::secret::SecretError;
use function_host::{Body, Context, Error as HostError, ErrorChain, Handler, Request, Response, trace};
use tokio::time::Instant;
use tracing::Instrument;

use crate::accept;
use crate::answer::{self, Answer, AnswerFields};
use crate::build::{Builder, BuilderCall};
use crate::build_threads::BuildThreads;
use crate::buildkit::BuildReference;
use crate::builds::{AcceptedBuild, BuildPhase, BuildsRoute, RecordKey, outcome_fields};
use crate::error::{Error, ErrorKind};
use crate::hand_over::DeployVia;
use crate::metrics::{CANCELLED_OUTCOME, Metrics, SUPERSEDED_OUTCOME};
use crate::notify::{Notifier, Receiver};
use crate::redact::{SecretMask, TraceMask};
use crate::report::{BoundedLog, BuildStatus, LineFormatter, LogFeed, LogSink, StreamFormat, stream_records};
use crate::request::{
    self, BuildRequest, RequestHead, RequestLimits, SignatureCheck, SignatureKeys, TENANT_HEADER,
    VerifiedSignature,
};
use crate::sealed::{BuildSecrets, SealKey};
use crate::settings::{PAYLOAD_SECRET_NAME, SignatureSettings};
use crate::slots::{QueueAdmission, SlotRefused};

/// The builder's HTTP interface, except probes and metrics, which the host serves.
#[derive(Clone, Debug)]
pub struct BuilderApi {
    /// The builder of images, which is given authentic requests only.
    pub builder: Builder,
    /// Limits on build requests.
    pub limits: RequestLimits,
    /// Settings for which signatures of requests are accepted.
    pub signatures: SignatureSettings,
    /// The limit on the log of a build, in bytes.
    pub max_log: usize,
    /// The key that callers seal secrets to, if the builder has one.
    pub seal_key: Option<SealKey>,
    /// The builder's metrics.
    pub metrics: Metrics,
    /// The sender of results to the URLs that configs name.
    pub notifier: Notifier,
    /// The threads that builds run on.
    pub threads: BuildThreads,
}

impl Handler for BuilderApi {
    async fn call(&self, request: Request, context: Context) -> Result<Response, HostError> {
        let (method, route) = match request.uri().path() {
            // The gateway strips the function's own path; faas-cli appends /build to a host.
            "/" => (Method::POST, "/"),
            "/build" => (Method::POST, "/build"),
            "/contexts" => (Method::POST, "/contexts"),
            "/publickey" => (Method::GET, "/publickey"),
            path => {
                if let Some(route) = BuildsRoute::parse(path) {
                    let (head, _) = request.into_parts();
                    return Ok(self.answer_question(route, &head, &context).await);
                }
                return Ok(answer::not_found_response(
                    "nothing is here; builds are sent to POST /build, and GET /builds/ID asks about one",
                ));
            }
        };
        if request.method() != method {
            return Ok(answer::method_not_allowed_response(method.as_str()));
        }
        trace::set_route_of_current_request(route);
        Ok(match route {
            "/publickey" => self.answer_public_key(request.headers()),
            "/contexts" => self.answer_context_upload(request, context).await,
            _ => self.answer_build(request, context).await,
        })
    }
}

/// A build request that is being answered.
#[derive(Clone)]
struct BuildExchange {
    context: Context,
    arrived: Instant,
    /// The format of a streamed answer; `None` if the answer is sent as a whole.
    format: Option<StreamFormat>,
    /// Whether the call came from the gateway's queue. Its build goes on if the caller disconnects.
    is_asynchronous: bool,
}

impl BuildExchange {
    /// Returns the fields of an answer now, with the time since the request arrived.
    fn answer_fields<'a>(&self, image: Option<&'a str>) -> AnswerFields<'a> {
        AnswerFields {
            image,
            seconds: self.arrived.elapsed().as_secs_f64(),
        }
    }

    /// Logs the failure of a request before its build, and answers it.
    fn log_and_answer_rejection(&self, error: &Error, image: Option<&str>) -> Response {
        let fields = self.answer_fields(image);
        log_build_failure(error, fields, &SecretMask::default());
        let answer = Answer::from_error(error, fields);
        match self.format.filter(|_| error.may_stream()) {
            Some(format) => answer.into_streamed_response(format),
            None => answer.into_response(),
        }
    }
}

impl BuilderApi {
    /// Answers with the public key for build secrets: that of the tenant that the request names, if there is a policy. A
    /// name is not looked up in the policy, so that the answer does not reveal which tenants there are.
    fn answer_public_key(&self, headers: &HeaderMap) -> Response {
        let Some(key) = &self.seal_key else {
            return answer::not_found_response(
                "this builder has no key for sealed secrets (build_secrets_private_key_path)",
            );
        };
        let named = headers.get(TENANT_HEADER).map(|value| {
            String::from_utf8_lossy(value.as_bytes())
                .trim()
                .parse::<TenantName>()
        });
        let tenant = match named.transpose() {
            Ok(tenant) => tenant.filter(|_| self.signatures.policy.is_some()),
            Err(error) => {
                return answer::not_found_response(&format!("the tenant in X-Slipway-Tenant {error}"));
            }
        };
        match key.public_key_answer(tenant.as_ref()) {
            Ok(key) => answer::public_key_response(&key),
            Err(error) => {
                let error = Error::from(error);
                tracing::error!(error = %ErrorChain(&error), "public key unavailable");
                Answer::from_error(&error, AnswerFields::default()).into_response()
            }
        }
    }

    /// Answers `POST /build`: receives the request, and builds before it answers, or while it streams the answer.
    async fn answer_build(&self, request: Request, context: Context) -> Response {
        let arrived = Instant::now();
        // Before reading the body, so that a rejected caller does not upload it.
        if let Err(error) = self.check_before_reading_body(&context) {
            return Answer::from_error(&error, AnswerFields::default()).into_response();
        }
        let (head, body) = request.into_parts();
        let request_head = RequestHead::new(&head.headers, SystemTime::now());
        let exchange = BuildExchange {
            context,
            arrived,
            format: accept::negotiate_stream_format(&head.headers),
            is_asynchronous: request_head.is_asynchronous,
        };
        let (request, admission, accepted) = match self
            .receive_build_request(body, request_head, &exchange.context)
            .await
        {
            Ok(received) => received,
            Err(error) => return exchange.log_and_answer_rejection(&error, None),
        };
        match exchange.format {
            None if exchange.is_asynchronous => {
                let (api, threads) = (self.clone(), self.threads.clone());
                let build = async move {
                    let build = async move {
                        api.build_then_answer(&request, &exchange, &admission, accepted)
                            .await
                    };
                    threads.run(build).await
                };
                // A task of its own: dropping this future does not end it.
                let build = tokio::spawn(trace::in_current_span(build.in_current_span()));
                match build.await {
                    Ok(response) => response,
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        // The runtime shuts down, and nobody reads the answer.
                        Err(_) => std::future::pending().await,
                    },
                }
            }
            None => {
                let api = self.clone();
                let build = async move {
                    api.build_then_answer(&request, &exchange, &admission, accepted)
                        .await
                };
                self.threads.run(build).await
            }
            Some(_) if self.is_deployed_by_callback(&request) => exchange
                .log_and_answer_rejection(&Error::StreamedHandOver, Some(&request.config.image_as_given)),
            Some(format) => self.stream_answer_while_building(format, request, exchange, admission, accepted),
        }
    }

    /// Fails if the builder is shutting down, or has no place now for a request, whoever sends it.
    fn check_before_reading_body(&self, context: &Context) -> Result<(), Error> {
        if context.shutdown().has_begun() {
            return Err(Error::Draining);
        }
        Ok(self.builder.slots.check_not_full()?)
    }

    /// Reads the request's body, verifies the signature, admits the request and parses it.
    async fn receive_build_request(
        &self,
        body: Body,
        head: RequestHead,
        context: &Context,
    ) -> Result<(BuildRequest, QueueAdmission, AcceptedBuild), Error> {
        let span = trace::span("receive");
        let receiving = async {
            let check = self.read_signature_check(&head, context)?;
            let body = request::receive_body(body, &head, &check, &self.limits).await?;
            let key = RecordKey {
                tenant: body.tenant_name(),
                id: context.call_id().to_owned(),
            };
            let accepted = self.builder.records.accept(key, head.arrived);
            let admitting = async {
                context
                    .accept()
                    .map_err(|full| SlotRefused { limit: full.limit })?;
                // After the signature, so that nobody without a key takes a place, and before anything else is done with the
                // body.
                let admission = self.builder.slots.admit(body.slot_owner())?;
                let request = body.into_build_request(head, &self.limits).await?;
                Ok((request, admission))
            };
            match admitting.await {
                Ok((request, admission)) => Ok((request, admission, accepted)),
                Err(error) => {
                    let answer = Answer::from_error(&error, AnswerFields::default());
                    accepted.end(BuildPhase::Failed, outcome_fields(&answer.report));
                    Err(error)
                }
            }
        };
        let received = span.run(receiving).await;
        match &received {
            Ok((request, ..)) => span.set_attribute(
                "slipway.request.bytes",
                i64::try_from(request.body_bytes).unwrap_or(i64::MAX),
            ),
            Err(error) => crate::trace::mark_receive_failed(&span, error),
        }
        received
    }

    /// Returns whether the request's config has `deploy` and the setting `deploy_via` is `callback`.
    fn is_deployed_by_callback(&self, request: &BuildRequest) -> bool {
        request.config.deploy.is_some() && self.builder.deployer.settings.via == DeployVia::Callback
    }

    /// Runs the build, and answers after it.
    async fn build_then_answer(
        &self,
        request: &BuildRequest,
        exchange: &BuildExchange,
        admission: &QueueAdmission,
        accepted: AcceptedBuild,
    ) -> Response {
        let mut log = BoundedLog::new(self.max_log);
        let mut answer = self
            .run_build(request, exchange, admission, accepted, &mut log)
            .await;
        answer.report.log = Some(log.into_lines(&mut answer.report.warnings));
        self.notify_of_result(request, &exchange.context, &answer).await;
        answer.into_response()
    }

    /// Answers immediately with a stream, and builds while the caller reads it.
    fn stream_answer_while_building(
        &self,
        format: StreamFormat,
        request: BuildRequest,
        exchange: BuildExchange,
        admission: QueueAdmission,
        accepted: AcceptedBuild,
    ) -> Response {
        let if_panicked =
            answer::report_of_panicked_build(exchange.context.call_id(), &request.config.image_as_given);
        let feed = LogFeed::new(self.max_log);
        let (api, mut log) = (self.clone(), feed.clone());
        let arrived = exchange.arrived;
        let threads = self.threads.clone();
        let build = async move {
            let build = async move {
                let answer = api
                    .run_build(&request, &exchange, &admission, accepted, &mut log)
                    .await;
                api.notify_of_result(&request, &exchange.context, &answer).await;
                answer.report
            };
            threads.run(build).await
        };
        answer::streamed_response(format, stream_records(format, feed, arrived, build, if_panicked))
    }

    /// Runs the build of an authentic request and returns its answer, without the log.
    async fn run_build(
        &self,
        request: &BuildRequest,
        exchange: &BuildExchange,
        admission: &QueueAdmission,
        accepted: AcceptedBuild,
        log: &mut dyn LogSink,
    ) -> Answer {
        let image = request.config.image_as_given.as_str();
        let context = &exchange.context;
        let signature = request.signature.as_ref().map(VerifiedSignature::as_str);
        let reference = match signature {
            Some(signature) if request.is_single_use => BuildReference::for_signature(signature),
            Some(signature) => BuildReference::for_call_and_signature(context.call_id(), signature),
            None => BuildReference::random(),
        };
        tracing::info!(image, %reference, bytes = request.body_bytes, "build started");
        let in_flight = self.metrics.start_build(request.body_bytes);
        let span = trace::span("build");
        span.set_attribute("slipway.image", image.to_owned());
        span.set_attribute("slipway.reference", reference.to_string());
        let secrets = self.open_sealed_secrets(request);
        let mask = secrets
            .as_ref()
            .map(|secrets| secrets.mask().clone())
            .unwrap_or_default();
        let trace_mask = match span.is_recording() {
            true => TraceMask::new(mask.clone(), &request.config.build_args),
            false => TraceMask::default(),
        };
        accepted.set_mask(mask.clone());
        let function = self.builder.function_of(request);
        accepted.update(|record| {
            record.image = Some(image.to_owned());
            record.function = function.map(|function| function.without_tenant());
            record.submitted_at = Some(request.submitted_at.at);
            record.reference = Some(reference.to_string());
        });
        let mut lines = LineFormatter::new(mask.clone());
        for warning in &request.warnings {
            log.push(lines.record_warning(warning));
        }
        let ready = self.check_notify_url(request).and(secrets);
        let result = match ready {
            Ok(secrets) => {
                let call = BuilderCall {
                    id: context.call_id(),
                    reference,
                    deadline: context.deadline(),
                    shutdown: context.shutdown(),
                    secrets,
                    trace_mask: &trace_mask,
                    admission,
                    is_asynchronous: exchange.is_asynchronous,
                    accepted: &accepted,
                };
                span.run(self.builder.build_and_deploy(request, &call, &mut lines, log))
                    .await
            }
            Err(error) => Err(error),
        };
        let fields = exchange.answer_fields(Some(image));
        let is_cancelled = matches!(result, Err(Error::Cancelled));
        let mut answer = match result {
            Ok(built) => {
                let digest = built.digest.as_deref().unwrap_or_default();
                let deployment = built
                    .deployment
                    .as_ref()
                    .map(|deployment| deployment.status.as_str());
                let seconds = fields.seconds;
                tracing::info!(image, digest, deployment, seconds, "build succeeded");
                in_flight.end_with_outcome(match built.is_superseded() {
                    true => SUPERSEDED_OUTCOME,
                    false => "success",
                });
                span.set_attribute("slipway.digest", digest.to_owned());
                Answer::from_built(built, fields).with_secrets_masked(&mask)
            }
            Err(error) => {
                log_build_failure(&error, fields, &mask);
                in_flight.end_with_outcome(outcome_label(error.kind()));
                span.set_attribute("error.type", outcome_label(error.kind()));
                span.mark_failed(trace_mask.mask_text(&ErrorChain(&error).to_string()));
                Answer::from_error(&error, fields).with_secrets_masked(&mask)
            }
        };
        answer.report.warnings = lines.into_warnings();
        let phase = match answer.report.status {
            BuildStatus::Success => BuildPhase::Success,
            BuildStatus::Failed if is_cancelled => BuildPhase::Cancelled,
            BuildStatus::Failed => BuildPhase::Failed,
        };
        accepted.end(phase, outcome_fields(&answer.report));
        answer
    }

    /// Checks that the result of the build may be sent where the config says.
    fn check_notify_url(&self, request: &BuildRequest) -> Result<(), Error> {
        let Some(url) = &request.config.notify else {
            return Ok(());
        };
        let tenant = request.tenant().map(AsRef::as_ref);
        self.notifier.check_url(url, tenant).map_err(Error::Notify)
    }

    /// Sends the result of a build where its config says. A rejected URL is sent nothing.
    async fn notify_of_result(&self, request: &BuildRequest, context: &Context, answer: &Answer) {
        let Some(url) = &request.config.notify else {
            return;
        };
        let Some(body) = answer
            .notification_body()
            .filter(|_| self.check_notify_url(request).is_ok())
        else {
            return;
        };
        let receiver = Receiver {
            url: url.clone(),
            tenant: request.tenant().cloned(),
            keys: request
                .signature
                .as_ref()
                .map(|signature| signature.keys().clone()),
        };
        let sending = self
            .notifier
            .send_result(receiver, context.call_id(), body, context.shutdown());
        sending.await;
    }

    /// Opens the sealed secrets of a request; a request without them has no secrets.
    fn open_sealed_secrets(&self, request: &BuildRequest) -> Result<BuildSecrets, Error> {
        match (&request.sealed_secrets, &self.seal_key) {
            (None, _) => Ok(BuildSecrets::default()),
            (Some(_), None) => Err(Error::NoSealKey),
            (Some(sealed), Some(key)) => {
                let tenant = request.tenant().map(|tenant| tenant.name());
                Ok(key.open_envelope(sealed, tenant)?)
            }
        }
    }

    /// Returns the check of a request's signature. Reads the secrets for each request, so that a rotated secret is used
    /// immediately.
    pub(crate) fn read_signature_check(
        &self,
        head: &RequestHead,
        context: &Context,
    ) -> Result<SignatureCheck, Error> {
        if let Some(policy) = &self.signatures.policy {
            return Ok(self.signature_check_of_tenants(&policy.current_policy(), head, context));
        }
        if self.signatures.disable_hmac {
            return Ok(SignatureCheck::Disabled);
        }
        let secret = context
            .secrets()
            .read_secret(PAYLOAD_SECRET_NAME)
            .map_err(Error::PayloadSecret)?;
        let empty = || SecretError::Empty {
            name: PAYLOAD_SECRET_NAME.to_owned(),
        };
        let keys = SignatureKeys::new(&secret, self.signatures.accept_sha1)
            .ok_or_else(|| Error::PayloadSecret(empty()))?;
        Ok(SignatureCheck::Required(keys))
    }

    /// Returns the check of a signature by the keys of the policy's tenants, or of the one that the request names.
    fn signature_check_of_tenants(
        &self,
        policy: &Policy,
        head: &RequestHead,
        context: &Context,
    ) -> SignatureCheck {
        let named = head.tenant.as_deref();
        let tenants = policy
            .tenants()
            .filter(|tenant| named.is_none_or(|named| tenant.name().as_str() == named));
        let names = tenants.flat_map(|tenant| tenant.key_secrets().iter().map(move |name| (tenant, name)));
        let read = |name: &str| self.signatures.key_reader.read_keys(context.secrets(), name);
        let secrets = names.filter_map(|(tenant, name)| Some((Arc::clone(tenant), read(name)?)));
        SignatureCheck::Required(SignatureKeys::of_tenants(secrets, self.signatures.accept_sha1))
    }
}

/// Returns the value of the metric label `outcome` for a kind of error.
fn outcome_label(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Unauthorized
        | ErrorKind::TooSlow
        | ErrorKind::Invalid
        | ErrorKind::Forbidden
        | ErrorKind::TooLarge
        | ErrorKind::Conflict
        | ErrorKind::DeploymentRejected
        | ErrorKind::NotOffered => "refused",
        ErrorKind::Superseded => SUPERSEDED_OUTCOME,
        ErrorKind::Cancelled => CANCELLED_OUTCOME,
        ErrorKind::BuildFailed => "failed",
        ErrorKind::Busy { .. } | ErrorKind::Displaced | ErrorKind::Draining => "busy",
        ErrorKind::NoSpace | ErrorKind::Platform => "platform",
    }
}

/// Logs the failure of a build or the rejection of its request, with the causes that the caller does not get: as an
/// error if the platform is at fault, and as information otherwise.
fn log_build_failure(error: &Error, fields: AnswerFields<'_>, mask: &SecretMask) {
    let text = ErrorChain(error).to_string();
    let text = mask.mask_text(&text);
    let AnswerFields { image, seconds } = fields;
    let image = image.unwrap_or_default();
    let outcome = outcome_label(error.kind());
    match error.kind() {
        ErrorKind::NoSpace | ErrorKind::Platform => {
            tracing::error!(image, outcome, seconds, error = %text, "build failed");
        }
        _ => tracing::info!(image, outcome, seconds, error = %text, "build failed"),
    }
}
