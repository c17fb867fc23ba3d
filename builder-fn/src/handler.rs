//! The builder's HTTP interface: its routes, and a build request's path through the crate.

mod context_upload;
mod resubmit;
mod resume;
mod run;

use std::sync::Arc;
use std::time::SystemTime;

use function_host::http::{HeaderMap, Method};
use function_host::policy::{Policy, TenantName};
use function_host::secret::SecretError;
use function_host::{Body, Context, Error as HostError, ErrorChain, Handler, Request, Response, trace};
use tokio::time::Instant;
use tracing::Instrument;

use crate::accept;
use crate::answer::{self, Answer, AnswerImageAndSeconds};
use crate::build::Builder;
use crate::build_threads::OptionalBuildThreads;
use crate::builds::{
    BuildPhase, BuildsRoute, PageSettings, RecordKey, RecordedDelivery, ResumableRequestHead,
    outcome_fields_kept_in_record,
};
use crate::error::Error;
use crate::hand_over::DeployVia;
use crate::metrics::Metrics;
use crate::notify::Notifier;
use crate::redact::SecretMask;
use crate::report::{BoundedLog, LogFeed, StreamFormat, stream_records};
use crate::request::{
    self, BuildRequest, RequestHead, RequestLimits, SignatureCheck, SignatureKeys, TENANT_HEADER,
};
use crate::rollback::{FunctionRoute, RollbackPermits};
use crate::sealed::SealKeyFile;
use crate::settings::{AcceptedSignatureSettings, PAYLOAD_SECRET_NAME};
use crate::slots::{QueueAdmission, SlotRefused};
use resubmit::ResubmissionHeaders;
use run::log_build_failure;

/// The builder's HTTP interface, except probes and metrics, which the host serves.
#[derive(Clone, Debug)]
pub struct BuilderApi {
    /// The builder of images, which is given authentic requests only.
    pub builder: Builder,
    /// Limits on build requests.
    pub limits: RequestLimits,
    /// Settings for which signatures of requests are accepted.
    pub signatures: AcceptedSignatureSettings,
    /// The limit on the log of a build, in bytes.
    pub max_log: usize,
    /// The key that callers seal secrets to, if the builder has one.
    pub seal_key: Option<SealKeyFile>,
    /// The builder's metrics.
    pub metrics: Metrics,
    /// The sender of results to the URLs that configs name.
    pub notifier: Notifier,
    /// The threads that builds run on.
    pub threads: OptionalBuildThreads,
    /// Settings for the pages of builds, and for the links to them.
    pub pages: PageSettings,
    /// The builder's own name as a function, to whose queue it submits calls again that it cannot finish.
    pub own_function: String,
    /// The rollbacks that run.
    pub rollbacks: RollbackPermits,
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
                    return Ok(self
                        .authenticate_and_answer_builds_request(route, &head, &context)
                        .await);
                }
                if let Some(route) = FunctionRoute::parse(path) {
                    let (head, _) = request.into_parts();
                    return Ok(self
                        .authenticate_and_answer_function_request(route, &head, &context)
                        .await);
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
    /// Whether the request arrived after the shutdown had begun. It is accepted only if it can be handed back.
    arrived_during_shutdown: bool,
    /// The format of a streamed answer; `None` if the answer is sent as a whole.
    format: Option<StreamFormat>,
    /// Whether the call came from the gateway's queue. Its build goes on if the caller disconnects.
    is_asynchronous: bool,
    /// The headers with which a queued call is submitted again; `None` for one that the record store has, and for
    /// others.
    resubmission_headers: Option<ResubmissionHeaders>,
}

/// A build request that was received and admitted.
struct AdmittedBuildRequest {
    request: BuildRequest,
    admission: QueueAdmission,
    accepted: RecordedDelivery,
    /// The data, besides the body, with which the build is resumed; `None` if the request is not signed.
    resumable: Option<ResumableRequestHead>,
}

impl BuildExchange {
    /// Returns whether the build goes on without its caller.
    fn is_asynchronous_without_stream(&self) -> bool {
        self.is_asynchronous && self.format.is_none()
    }

    /// Returns the fields of an answer now, with the time since the request arrived.
    fn image_and_seconds_so_far<'a>(&self, image: Option<&'a str>) -> AnswerImageAndSeconds<'a> {
        AnswerImageAndSeconds {
            image,
            seconds: self.arrived.elapsed().as_secs_f64(),
        }
    }

    /// Logs the failure of a request before its build, and answers it.
    fn log_and_answer_rejection(&self, error: &Error, image: Option<&str>) -> Response {
        let fields = self.image_and_seconds_so_far(image);
        log_build_failure(error, fields, &SecretMask::default());
        let answer = Answer::from_error(error, fields);
        match self.format.filter(|_| error.may_be_sent_in_stream()) {
            Some(format) => answer.into_streamed_response(format),
            None => answer.into_json_response_or_text_429(),
        }
    }
}

impl BuilderApi {
    /// Answers with the public key for build secrets: that of the tenant that the request names, if there is a policy.
    /// A name is not looked up in the policy, so that the answer does not reveal which tenants there are.
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
                Answer::from_error(&error, AnswerImageAndSeconds::default()).into_json_response_or_text_429()
            }
        }
    }

    /// Answers `POST /build`: receives the request, and builds before it answers, or while it streams the answer.
    async fn answer_build(&self, request: Request, context: Context) -> Response {
        let arrived = Instant::now();
        // The checks come before reading the body, so that a rejected caller does not upload it.
        let (head, body) = request.into_parts();
        let request_head = RequestHead::new(&head.headers, SystemTime::now());
        let exchange = BuildExchange {
            arrived_during_shutdown: context.shutdown().has_begun(),
            context,
            arrived,
            format: accept::negotiate_stream_format(&head.headers),
            is_asynchronous: request_head.is_asynchronous,
            resubmission_headers: request_head
                .is_asynchronous
                .then(|| ResubmissionHeaders::of_queued_call(&head.headers)),
        };
        if let Err(error) = self.check_not_full_and_reject_waiting_callers_while_draining(&exchange) {
            return Answer::from_error(&error, AnswerImageAndSeconds::default())
                .into_json_response_or_text_429();
        }
        let received = match self
            .receive_admit_and_record_build_request(body, request_head, &exchange.context)
            .await
        {
            Ok(received) => received,
            Err(error) => return exchange.log_and_answer_rejection(&error, None),
        };
        match exchange.format {
            None if exchange.is_asynchronous => {
                let (api, threads) = (self.clone(), self.threads.clone());
                let work = exchange.context.shutdown().begin_background_work();
                let build = async move {
                    let _work = work;
                    let build = async move { api.build_then_answer(received, &exchange).await };
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
                let build = async move { api.build_then_answer(received, &exchange).await };
                self.threads.run(build).await
            }
            Some(_) if self.is_deployed_by_callback(&received.request) => {
                let image = received.request.config.image_as_given.as_str();
                exchange.log_and_answer_rejection(&Error::StreamedHandOver, Some(image))
            }
            Some(format) => self.stream_answer_while_building(format, received, exchange),
        }
    }

    /// Fails if the builder is shutting down and could not hand the build back, or has no place for any tenant's
    /// request.
    fn check_not_full_and_reject_waiting_callers_while_draining(
        &self,
        exchange: &BuildExchange,
    ) -> Result<(), Error> {
        // A queue that does not retry would lose the call. It is accepted, and handed back if it cannot be finished.
        if exchange.context.shutdown().has_begun() && !exchange.is_asynchronous_without_stream() {
            return Err(Error::Draining);
        }
        Ok(self.builder.slots.fail_if_full_for_every_tenant()?)
    }

    /// Reads the request's body, verifies the signature, begins the build's record, admits the request and parses it.
    async fn receive_admit_and_record_build_request(
        &self,
        body: Body,
        head: RequestHead,
        context: &Context,
    ) -> Result<AdmittedBuildRequest, Error> {
        let span = trace::span("receive");
        let receiving = async {
            let check = self.signature_check_from_secrets(&head, context)?;
            let body = request::receive_body(body, &head, &check, &self.limits).await?;
            let key = RecordKey {
                tenant: body.tenant_name(),
                id: context.call_id().to_owned(),
            };
            let accepted = self.builder.records.accept(key, head.arrived);
            let time_limit = context
                .deadline()
                .map(|deadline| deadline.saturating_duration_since(Instant::now()));
            // Only a signature distinguishes a resumed build from another one.
            let resumable = body
                .is_signed()
                .then(|| ResumableRequestHead::new(&head, time_limit));
            let admitting = async {
                context
                    .accept()
                    .map_err(|full| SlotRefused { limit: full.limit })?;
                // After the signature, so that nobody without a key takes a place, and before anything else is done
                // with the body.
                let admission = self.builder.slots.admit(body.slot_owner())?;
                let request = body.into_build_request(head, &self.limits).await?;
                Ok((request, admission))
            };
            match admitting.await {
                Ok((request, admission)) => Ok(AdmittedBuildRequest {
                    request,
                    admission,
                    accepted,
                    resumable,
                }),
                Err(error) => {
                    let answer = Answer::from_error(&error, AnswerImageAndSeconds::default());
                    match error.kind().is_rejected_for_now() {
                        true => accepted.reject_for_now(outcome_fields_kept_in_record(&answer.report)),
                        false => accepted.record_end_if_success_or_last_delivery(
                            BuildPhase::Failed,
                            outcome_fields_kept_in_record(&answer.report),
                        ),
                    };
                    Err(error)
                }
            }
        };
        let received = span.run(receiving).await;
        match &received {
            Ok(received) => span.set_attribute(
                "slipway.request.bytes",
                i64::try_from(received.request.body_bytes).unwrap_or(i64::MAX),
            ),
            Err(error) => crate::trace::mark_failed_without_frontend_name(&span, error),
        }
        received
    }

    /// Returns whether the request's config has `deploy` and the setting `deploy_via` is `callback`.
    fn is_deployed_by_callback(&self, request: &BuildRequest) -> bool {
        request.config.deploy.is_some() && self.builder.deployer.settings.via == DeployVia::Callback
    }

    /// Runs the build, sends its result to the URLs in the config, and answers.
    async fn build_then_answer(&self, received: AdmittedBuildRequest, exchange: &BuildExchange) -> Response {
        let mut log = BoundedLog::new(self.max_log);
        let (mut answer, request) =
            Box::pin(self.run_build_and_record_outcome_without_notifying(received, exchange, &mut log)).await;
        answer.report.log = Some(log.into_lines(&mut answer.report.warnings));
        self.notify_of_result_waiting_only_in_shutdown(&request, &exchange.context, &answer)
            .await;
        free_in_background(request);
        answer.into_json_response_or_text_429()
    }

    /// Answers immediately with a stream, and builds while the caller reads it.
    fn stream_answer_while_building(
        &self,
        format: StreamFormat,
        received: AdmittedBuildRequest,
        exchange: BuildExchange,
    ) -> Response {
        let image = &received.request.config.image_as_given;
        let if_panicked = answer::report_of_panicked_build(exchange.context.call_id(), image);
        let feed = LogFeed::new(self.max_log);
        let (api, mut log) = (self.clone(), feed.clone());
        let arrived = exchange.arrived;
        let threads = self.threads.clone();
        let build = async move {
            let build = async move {
                let (answer, request) = Box::pin(
                    api.run_build_and_record_outcome_without_notifying(received, &exchange, &mut log),
                )
                .await;
                api.notify_of_result_waiting_only_in_shutdown(&request, &exchange.context, &answer)
                    .await;
                free_in_background(request);
                answer.report
            };
            threads.run(build).await
        };
        answer::streamed_response(format, stream_records(format, feed, arrived, build, if_panicked))
    }

    /// Returns the check of a request's signature. Reads the secrets for each request, so that a rotated secret is used
    /// immediately.
    pub(crate) fn signature_check_from_secrets(
        &self,
        head: &RequestHead,
        context: &Context,
    ) -> Result<SignatureCheck, Error> {
        if let Some(policy) = &self.signatures.policy {
            return Ok(self.signature_check_of_tenants(&policy.reload_if_changed(), head, context));
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
        let read = |name: &str| {
            self.signatures
                .key_reader
                .read_usable_key_secret_or_log(context.secrets(), name)
        };
        let secrets = names.filter_map(|(tenant, name)| Some((Arc::clone(tenant), read(name)?)));
        SignatureCheck::Required(SignatureKeys::of_tenants(secrets, self.signatures.accept_sha1))
    }
}
/// Frees a request on another thread, so that its answer does not wait until the files of a large context are freed.
fn free_in_background(request: BuildRequest) {
    drop(tokio::task::spawn_blocking(move || drop(request)));
}
