//! The last step of a build: the hand-over of its image, within the time that the call has. A rollback is nothing else.

use std::time::{Duration, SystemTime};

use function_host::{Shutdown, trace};
use serde_json::Value;
use tokio::time::Instant;

use super::Builder;
use super::call::{self, BuilderCall, wait_for_expiry};
use crate::buildkit::BuiltImageDigestCommitAndTimes;
use crate::builds::DeploymentRecording;
use crate::error::Error;
use crate::hand_over::{
    DeploymentOutcome, DeploymentStatus, HandOverDocument, HandOverSigner, RetriedFailures,
};
use crate::redact::TraceMask;
use crate::report::{LineFormatter, LogSink};
use crate::request::{BuildRequest, SubmissionTimeSource, SubmittedAt};
use crate::versions::{FunctionVersion, VersionState};

/// The call that deploys a version.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeploymentTenantAndLimits<'a> {
    /// The name of the tenant, if the builder has a policy.
    pub(crate) tenant: Option<&'a str>,
    /// The time for the deployment.
    pub(crate) time_limit: Option<Duration>,
    /// Announces that the process ends.
    pub(crate) shutdown: &'a Shutdown,
    /// The failures after which the hand-over is sent again.
    pub(crate) retried: RetriedFailures,
    /// Whether another builder repeats the hand-over if this process ends before the outcome is known.
    pub(crate) is_repeated: bool,
    /// The mask for secrets and build arguments in traces.
    pub(crate) trace_mask: &'a TraceMask,
}

/// Returns the time at which the source of the image was submitted.
///
/// A delivery whose only time is its arrival has the time of the delivery that built the image: a redelivery must not
/// make the image look newer.
fn image_submission_time(request: &BuildRequest, built: &BuiltImageDigestCommitAndTimes) -> SystemTime {
    let SubmittedAt { at, source } = request.submitted_at;
    match (source, built.submitted_at) {
        (SubmissionTimeSource::Arrival, Some(first)) => first,
        _ => at,
    }
}

impl Builder {
    /// Hands the built image over to the deployer, as the config's `deploy` says, and returns the outcome of the
    /// deployment, also a failed one.
    ///
    /// # Errors
    /// Fails if BuildKit did not report the image's digest, or another builder has to repeat the hand-over.
    pub(super) async fn hand_over_image_with_failure_as_outcome(
        &self,
        signer: &HandOverSigner<'_>,
        request: &BuildRequest,
        built: &BuiltImageDigestCommitAndTimes,
        call: &BuilderCall<'_>,
        lines: &LineFormatter,
        log: &mut dyn LogSink,
    ) -> Result<DeploymentOutcome, Error> {
        let config = &request.config;
        let digest = built.digest.as_deref().ok_or(Error::NoDigest)?;
        let function = self
            .function_of(request)
            .map(|function| function.without_tenant());
        let version = FunctionVersion {
            id: call.id.to_owned(),
            // Without a name there is no function to roll back either. The deployer refuses it.
            function: function.unwrap_or_default(),
            state: VersionState::Deploying,
            submitted_at: image_submission_time(request, built),
            // A redelivered call must not make its image look newer.
            built_at: built.completed_at.unwrap_or_else(SystemTime::now),
            image: config.image.with_digest(digest),
            tag: config.image.to_string(),
            commit: built.commit.clone(),
            deploy: config.deploy.clone().unwrap_or_default(),
            probe: config.probe.clone(),
            rollback: None,
        };
        let deploying = DeploymentTenantAndLimits {
            tenant: request.tenant().map(|tenant| tenant.name().as_str()),
            time_limit: call.build_time_limit(None),
            shutdown: call.shutdown,
            retried: match call.is_asynchronous {
                true => RetriedFailures::DeliveryAndPlatform,
                false => RetriedFailures::Delivery,
            },
            is_repeated: call.is_continued_elsewhere_if_process_ends(),
            trace_mask: call.trace_mask,
        };
        self.deploy_version(signer, version, deploying, lines, log).await
    }

    /// Hands a version over to the deployer, and returns the outcome of the deployment, also a failed one. The log and
    /// the trace show the deployment as a step. The version is recorded beside that.
    ///
    /// # Errors
    /// Fails if another builder has to repeat the hand-over.
    pub(crate) async fn deploy_version(
        &self,
        signer: &HandOverSigner<'_>,
        version: FunctionVersion,
        call: DeploymentTenantAndLimits<'_>,
        lines: &LineFormatter,
        log: &mut dyn LogSink,
    ) -> Result<DeploymentOutcome, Error> {
        let now = SystemTime::now();
        let hand_over = HandOverDocument {
            image: &version.image,
            tag: &version.tag,
            tenant: call.tenant,
            call_id: &version.id,
            submitted_at: version.submitted_at,
            built_at: version.built_at,
            expires_at: now.checked_add(signer.hand_over_ttl()).unwrap_or(now),
            deploy: &version.deploy,
            probe: version.probe.as_ref(),
        };
        let function = version.deploy.get("service").and_then(Value::as_str);
        let function = function.unwrap_or_default();
        let step = format!("[deploy] {function}");
        let start = Instant::now();
        log.push(lines.format_own_step_start(&step));
        let span = trace::span("deploy");
        span.set_attribute("slipway.function", function.to_owned());
        let on_retry = |reason: &str| {
            log.push(
                lines.format_unrecorded_warning(&format!("the hand-over failed and is sent again: {reason}")),
            );
        };
        let recording = match self.records.store() {
            Some(store) => store.begin_recording_deployment_unless_crowded(
                call.tenant.map(str::to_owned),
                version.clone(),
                call.shutdown.begin_background_work(),
            ),
            None => DeploymentRecording::none(),
        };
        let deployment = tokio::select! {
            deployment = span.run(signer.hand_over_or_enclose_for_callback(&hand_over, call.retried, on_retry)) => deployment,
            _ = wait_for_expiry(call.time_limit) => DeploymentOutcome::failed(
                "the call's time limit was reached before the deployment's outcome was known".into(),
            ),
            () = call::wait_until_shortly_before_shutdown_ends(call.shutdown) => match call.is_repeated {
                // The deployer deploys an image once, however often it is handed over.
                true => return Err(Error::Interrupted),
                false => DeploymentOutcome::failed(
                    "the builder is shutting down, and the deployment's outcome was not known yet".into(),
                ),
            },
        };
        // A version of which it is not known whether it runs stays one that is being deployed.
        if let Some(state) = VersionState::of_deployment_if_certain(&deployment) {
            recording.finish(state);
        }
        log.push(lines.format_own_step_end(&step, start.elapsed()));
        if matches!(
            deployment.status,
            DeploymentStatus::Rejected | DeploymentStatus::Failed
        ) {
            span.mark_failed(call.trace_mask.mask_text(&deployment.reasons_in_one_line()));
        }
        Ok(deployment)
    }
}
