//! Runs the build of one request, and records, counts, traces and logs its outcome.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use function_host::{Context, ErrorChain, Secret, trace};

use super::{AdmittedBuildRequest, BuildExchange, BuilderApi};
use crate::answer::{Answer, AnswerImageAndSeconds};
use crate::build::{BuildResult, BuilderCall};
use crate::buildkit::BuildReference;
use crate::buildkit::SecretStore;
use crate::builds::{BuildPhase, LinkSigner, RecordKey, outcome_fields_kept_in_record};
use crate::error::{Error, ErrorKind, STATUS_TOKEN_SECRET_NAME};
use crate::inputs::{BuildInputs, InputsRecorder};
use crate::metrics::{CANCELLED_OUTCOME, SUPERSEDED_OUTCOME};
use crate::notify::{CommitState, CommitStatusReceiver, ResultReceiver};
use crate::redact::{SecretMask, TraceMask};
use crate::report::{LineFormatter, LogSink, SuccessOrFailedStatus};
use crate::request::{BuildRequest, BuildSource, VerifiedSignature, is_full_commit_hash};
use crate::sealed::BuildSecrets;

/// The pause before a build is handed back for the second time, after the registry has failed. Every further pause is
/// twice as long.
const FIRST_PAUSE_BETWEEN_HAND_BACKS: Duration = Duration::from_millis(500);

/// The longest pause before a build is handed back again.
const LONGEST_PAUSE_BETWEEN_HAND_BACKS: Duration = Duration::from_secs(8);

impl BuilderApi {
    /// Runs the build of an authentic request and returns its answer, without the log, and the request.
    pub(super) async fn run_build_and_record_outcome_without_notifying(
        &self,
        received: AdmittedBuildRequest,
        exchange: &BuildExchange,
        log: &mut dyn LogSink,
    ) -> (Answer, BuildRequest) {
        let AdmittedBuildRequest {
            mut request,
            admission,
            mut accepted,
            resumable,
        } = received;
        let image = request.config.image_as_given.as_str();
        let context = &exchange.context;
        let signature = request.signature.as_ref().map(VerifiedSignature::as_str);
        let reference = match signature {
            Some(signature) if request.is_single_use => BuildReference::for_signature_of_any_call(signature),
            Some(signature) => BuildReference::for_call_and_signature(context.call_id(), signature),
            None => BuildReference::random(),
        };
        tracing::info!(image, %reference, bytes = request.body_bytes, "build started");
        let in_flight = self.metrics.start_build(request.body_bytes);
        let span = trace::span("build");
        span.set_attribute("slipway.image", image.to_owned());
        span.set_attribute("slipway.reference", reference.to_string());
        let secrets = self.open_sealed_secrets(&request);
        let mask = secrets
            .as_ref()
            .map(|secrets| secrets.mask().clone())
            .unwrap_or_default();
        let trace_mask = match span.is_recording() {
            true => TraceMask::new(mask.clone(), &request.config.build_args),
            false => TraceMask::default(),
        };
        // Without it, nobody reads the log by this process's record.
        if secrets.is_ok() {
            accepted.set_mask(mask.clone());
        }
        let function = self.builder.function_of(&request);
        accepted.update_unless_succeeded(|record| {
            record.image = Some(image.to_owned());
            record.function = function.map(|function| function.without_tenant());
            record.submitted_at = Some(request.submitted_at.at);
            record.reference = Some(reference.to_string());
            record.context_bytes =
                matches!(request.source, BuildSource::Received(_)).then_some(request.body_bytes);
        });
        let mut lines = LineFormatter::new(mask.clone());
        for warning in &request.warnings {
            log.push(lines.record_warning_and_return_line(warning));
        }
        if exchange.is_asynchronous_without_stream() && !accepted.can_be_resumed_once_handed_back() {
            let body = request.body_copy.clone();
            // The answer of a build that is resumed reaches nobody who could hand its image over.
            let request = resumable
                .zip(body)
                .filter(|_| !self.is_deployed_by_callback(&request));
            if let Err(error) = accepted.store_acceptance_if_store_exists(request).await {
                tracing::warn!(error = %ErrorChain(&error), "could not record an accepted build in the registry");
                log.push(lines.record_warning_and_return_line(
                    "the build could not be recorded in the registry: it is lost if its builder stops",
                ));
            }
        }
        if accepted.can_be_resumed_once_handed_back() {
            request.body_copy = None;
        }
        let is_submitted_again = exchange.is_asynchronous_without_stream()
            && !accepted.can_be_resumed_once_handed_back()
            && self.is_resubmittable(&request, exchange);
        // A queued call that arrives during the shutdown is accepted if it can be handed back.
        let is_too_late = exchange.arrived_during_shutdown
            && exchange.is_asynchronous_without_stream()
            && !accepted.can_be_resumed_once_handed_back()
            && !is_submitted_again;
        let ready = match is_too_late {
            true => Err(Error::Draining),
            false => self.check_notify_url(&request).and(secrets),
        };
        let ready = ready.and_then(|secrets| {
            let receiver = self.commit_status_receiver(&request, &secrets, context)?;
            Ok((secrets, receiver))
        });
        let mut status = None;
        let mut hint = None;
        let inputs = self
            .builder
            .records
            .store()
            .map(|_| InputsRecorder::new(mask.clone(), &request.config.build_args));
        let result = match ready {
            Ok((secrets, receiver)) => {
                status = receiver.and_then(|receiver| {
                    self.notifier
                        .begin_commit_status_pending_if_commit_known(receiver, context.shutdown())
                });
                let call = BuilderCall {
                    id: context.call_id(),
                    reference,
                    deadline: context.deadline(),
                    shutdown: context.shutdown(),
                    secrets,
                    trace_mask: &trace_mask,
                    admission: &admission,
                    is_asynchronous: exchange.is_asynchronous,
                    accepted: &accepted,
                    is_submitted_again,
                    is_dry_run_done: AtomicBool::new(false),
                    failed_to_hand_back: AtomicBool::new(false),
                    evidence: Mutex::default(),
                    finished_solves: Mutex::default(),
                    inputs: inputs.as_ref(),
                };
                let result = span
                    .run(self.build_or_hand_back(&request, &call, exchange, &mut lines, log))
                    .await;
                if result.is_ok() {
                    let solves = std::mem::take(&mut *call.lock_finished_solves());
                    self.builder
                        .export_caches_in_background(solves, context.shutdown());
                }
                if let Err(error) = &result {
                    hint = self.builder.explain_failure(error, &request, &call, &mask).await;
                }
                result
            }
            Err(error) => Err(error),
        };
        let is_handed_back = matches!(
            result,
            Err(Error::HandedBack | Error::StaysAccepted | Error::SubmittedAgain)
        );
        let fields = exchange.image_and_seconds_so_far(Some(image));
        let is_cancelled = matches!(result, Err(Error::Cancelled));
        let kind = result.as_ref().err().map(Error::kind);
        let is_rejected_for_now = kind.is_some_and(ErrorKind::is_rejected_for_now);
        let mut answer = match result {
            Ok(built) => {
                let digest = built.digest.as_deref().unwrap_or_default();
                let deployment = built
                    .deployment
                    .as_ref()
                    .map(|deployment| deployment.status.as_log_word());
                let seconds = fields.seconds;
                tracing::info!(image, digest, deployment, seconds, "build succeeded");
                in_flight.end_with_outcome(match built.was_superseded_at_deployment() {
                    true => SUPERSEDED_OUTCOME,
                    false => "success",
                });
                span.set_attribute("slipway.digest", digest.to_owned());
                Answer::from_built(built, fields).with_secrets_masked_except_in_log_and_fixed_fields(&mask)
            }
            Err(error) => {
                log_build_failure(&error, fields, &mask);
                in_flight.end_with_outcome(outcome_label(error.kind()));
                span.set_attribute("error.type", outcome_label(error.kind()));
                span.mark_failed(trace_mask.mask_text(&ErrorChain(&error).to_string()));
                Answer::from_error(&error, fields)
                    .with_hint_if_missing(hint)
                    .with_secrets_masked_except_in_log_and_fixed_fields(&mask)
            }
        };
        answer.report.warnings = lines.into_warnings();
        if request.signature.is_some() {
            let links = LinkSigner::new(request.signature.as_ref(), &self.pages);
            answer.report.page = Some(links.address_of_build_page(context.call_id(), SystemTime::now()));
        }
        let phase = match answer.report.status {
            SuccessOrFailedStatus::Success => BuildPhase::Success,
            SuccessOrFailedStatus::Failed if is_cancelled => BuildPhase::Cancelled,
            SuccessOrFailedStatus::Failed => BuildPhase::Failed,
        };
        if is_handed_back {
            accepted.leave_to_other_processes();
            return (answer, request);
        }
        let outcome = outcome_fields_kept_in_record(&answer.report);
        let written = match is_rejected_for_now {
            true => accepted.reject_for_now(outcome),
            false => accepted.record_end_if_success_or_last_delivery(phase, outcome),
        };
        if let (Some(store), Some(inputs)) = (self.builder.records.store(), inputs)
            && inputs.has_ended_steps()
            && !is_rejected_for_now
        {
            let key = RecordKey {
                tenant: request.tenant().map(|tenant| tenant.name().to_string()),
                id: context.call_id().to_owned(),
            };
            let inputs = inputs.into_inputs(BuildInputs::of_config(&request.config));
            store.record_inputs_in_background_unless_crowded(
                key,
                inputs,
                context.shutdown().begin_background_work(),
            );
        }
        if exchange.is_asynchronous_without_stream() {
            written.wait_up_to_10_seconds().await;
        }
        if let Some(status) = status.filter(|_| !is_rejected_for_now) {
            let state = CommitState::of_phase_and_error_kind(phase, kind);
            let commit = answer.report.commit.as_deref();
            status
                .report_outcome_waiting_only_in_shutdown(state, commit, context.shutdown())
                .await;
        }
        (answer, request)
    }

    /// Returns where the status of the request's commit is set, with the token; `None` if the config sets none.
    fn commit_status_receiver(
        &self,
        request: &BuildRequest,
        secrets: &BuildSecrets,
        context: &Context,
    ) -> Result<Option<CommitStatusReceiver>, Error> {
        let Some(status) = &request.config.commit_status else {
            return Ok(None);
        };
        let mut status = status.clone();
        if let BuildSource::Git(git) = &request.source {
            let named = git
                .source
                .reference
                .clone()
                .filter(|named| is_full_commit_hash(named));
            status.commit = status.commit.or(named);
        } else if status.commit.is_none() {
            return Err(Error::NoStatusCommit);
        }
        let tenant = request.tenant().map(AsRef::as_ref);
        let project = status.project_api_url();
        self.notifier
            .check_url(project, tenant)
            .map_err(Error::CommitStatus)?;
        let tokens = &self.builder.settings.status_tokens;
        let token = match (
            secrets.secret(STATUS_TOKEN_SECRET_NAME),
            tokens.secret_name_for_project(&project.to_string(), tenant),
        ) {
            (Some(own), _) => Secret::new(own.trim_ascii()),
            (None, Some(name)) => context.secrets().read_secret(name).map_err(Error::StatusToken)?,
            (None, None) => {
                let project = Box::new(project.clone());
                return Err(Error::NoStatusToken { project });
            }
        };
        Ok(Some(CommitStatusReceiver {
            status,
            tenant: request.tenant().cloned(),
            token,
        }))
    }

    /// Builds and deploys the image of an accepted request. Hands the build back, to the record store or else to the
    /// queue, if it gets no slot in time or the shutdown interrupts it.
    ///
    /// A call whose acceptance the registry may have or not is not rejected: another builder would run it while its
    /// caller sends it again. It waits on until it is known to be handed back, or has ended.
    async fn build_or_hand_back(
        &self,
        request: &BuildRequest,
        call: &BuilderCall<'_>,
        exchange: &BuildExchange,
        lines: &mut LineFormatter,
        log: &mut dyn LogSink,
    ) -> Result<BuildResult, Error> {
        let mut pause = FIRST_PAUSE_BETWEEN_HAND_BACKS;
        loop {
            let built = self
                .builder
                .build_image_and_attempt_deployment(request, call, lines, log)
                .await;
            let handed_back = match built {
                Err(Error::Interrupted) if call.accepted.can_be_resumed_once_handed_back() => {
                    Error::HandedBack
                }
                Err(Error::StaysAccepted) => Error::StaysAccepted,
                Err(Error::Interrupted) if exchange.is_asynchronous_without_stream() => {
                    return Err(self
                        .submit_again_returning_error_of_delivery(request, call.accepted, exchange)
                        .await);
                }
                built => return built,
            };
            match call
                .accepted
                .hand_back_or_leave_resumable(call.shutdown.has_begun())
                .await
            {
                Ok(()) => return Err(handed_back),
                Err(error) => {
                    let error = ErrorChain(&error).to_string();
                    tracing::warn!(error, "could not hand a build back yet; it waits on");
                    call.failed_to_hand_back.store(true, Ordering::Relaxed);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE_BETWEEN_HAND_BACKS);
                }
            }
        }
    }

    /// Checks that the result of the build may be sent where the config says.
    fn check_notify_url(&self, request: &BuildRequest) -> Result<(), Error> {
        let Some(url) = &request.config.notify else {
            return Ok(());
        };
        let tenant = request.tenant().map(AsRef::as_ref);
        self.notifier.check_url(url, tenant).map_err(Error::Notify)
    }

    /// Sends the result of a build to the URL in the config's `notify`, unless the URL is not allowed or the answer is
    /// a 429, which is no result.
    pub(super) async fn notify_of_result_waiting_only_in_shutdown(
        &self,
        request: &BuildRequest,
        context: &Context,
        answer: &Answer,
    ) {
        let Some(url) = &request.config.notify else {
            return;
        };
        let Some(body) = answer
            .notification_body_unless_too_many_requests()
            .filter(|_| self.check_notify_url(request).is_ok())
        else {
            return;
        };
        let receiver = ResultReceiver {
            url: url.clone(),
            tenant: request.tenant().cloned(),
            keys: request
                .signature
                .as_ref()
                .map(|signature| signature.keys_of_signers_secret().clone()),
        };
        let sending = self.notifier.send_result_waiting_only_in_shutdown(
            receiver,
            context.call_id(),
            body,
            context.shutdown(),
        );
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
        ErrorKind::Busy { .. } | ErrorKind::Displaced | ErrorKind::Draining | ErrorKind::HandedBack => "busy",
        ErrorKind::NoSpace | ErrorKind::Platform => "platform",
    }
}

/// Logs the failure of a build or the rejection of its request, with the causes that the caller does not get: as an
/// error if the platform is at fault, and as information otherwise.
pub(super) fn log_build_failure(error: &Error, fields: AnswerImageAndSeconds<'_>, mask: &SecretMask) {
    let text = ErrorChain(error).to_string();
    let text = mask.mask_text(&text);
    let AnswerImageAndSeconds { image, seconds } = fields;
    let image = image.unwrap_or_default();
    let outcome = outcome_label(error.kind());
    match error.kind() {
        ErrorKind::NoSpace | ErrorKind::Platform => {
            tracing::error!(image, outcome, seconds, error = %text, "build failed");
        }
        _ => tracing::info!(image, outcome, seconds, error = %text, "build failed"),
    }
}
