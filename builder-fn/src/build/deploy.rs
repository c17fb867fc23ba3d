//! The last step of a build: the hand-over of its image, within the time that the call has.

use std::time::SystemTime;

use function_host::trace;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::call::{BuilderCall, wait_for_expiry};
use crate::buildkit::BuiltImage;
use crate::error::Error;
use crate::hand_over::{Deployment, DeploymentStatus, HandOver, HandOverSigner, RetriedFailures};
use crate::report::{LineFormatter, LogSink};
use crate::request::{BuildRequest, SubmissionTimeSource, SubmittedAt};

/// Returns the time at which the source of the image was submitted.
///
/// A delivery whose only time is its arrival has the time of the delivery that built the image: a redelivery must not
/// make the image look newer.
fn image_submission_time(request: &BuildRequest, built: &BuiltImage) -> SystemTime {
    let SubmittedAt { at, source } = request.submitted_at;
    match (source, built.submitted_at) {
        (SubmissionTimeSource::Arrival, Some(first)) => first,
        _ => at,
    }
}

/// Hands the image over to the deployer, and returns the outcome of the deployment, also a failed one. The log and the
/// trace show the deployment as a step of the build.
///
/// # Errors
/// Fails if BuildKit did not report the image's digest, or another builder has to repeat the hand-over.
pub(super) async fn hand_over_image(
    signer: &HandOverSigner<'_>,
    deploy: &Map<String, Value>,
    request: &BuildRequest,
    built: &BuiltImage,
    call: &BuilderCall<'_>,
    lines: &LineFormatter,
    log: &mut dyn LogSink,
) -> Result<Deployment, Error> {
    let config = &request.config;
    let digest = built.digest.as_deref().ok_or(Error::NoDigest)?;
    let image = config.image.with_digest(digest);
    let now = SystemTime::now();
    let hand_over = HandOver {
        image: &image,
        tag: &config.image.to_string(),
        tenant: request.tenant().map(|tenant| tenant.name().as_str()),
        call_id: call.id,
        submitted_at: image_submission_time(request, built),
        // A redelivered call must not make its image look newer.
        built_at: built.completed_at.unwrap_or(now),
        expires_at: now.checked_add(signer.hand_over_ttl()).unwrap_or(now),
        deploy,
        probe: config.probe.as_ref(),
    };
    let function = deploy.get("service").and_then(Value::as_str).unwrap_or_default();
    let step = format!("[deploy] {function}");
    let start = Instant::now();
    log.push(lines.step_started(&step));
    let span = trace::span("deploy");
    span.set_attribute("slipway.function", function.to_owned());
    let retried = match call.is_asynchronous {
        true => RetriedFailures::DeliveryAndPlatform,
        false => RetriedFailures::Delivery,
    };
    let on_retry = |reason: &str| {
        log.push(
            lines.format_unrecorded_warning(&format!("the hand-over failed and is sent again: {reason}")),
        );
    };
    let deployment = tokio::select! {
        deployment = span.run(signer.hand_over(&hand_over, retried, on_retry)) => deployment,
        _ = wait_for_expiry(call.build_time_limit(None)) => Deployment::failed(
            "the call's time limit was reached before the deployment's outcome was known".into(),
        ),
        () = call.wait_for_interruption() => match call.is_continued_elsewhere() {
            // The deployer deploys an image once, however often it is handed over.
            true => return Err(Error::Interrupted),
            false => Deployment::failed(
                "the builder is shutting down, and the deployment's outcome was not known yet".into(),
            ),
        },
    };
    log.push(lines.step_ended(&step, start.elapsed()));
    if matches!(
        deployment.status,
        DeploymentStatus::Rejected | DeploymentStatus::Failed
    ) {
        span.mark_failed(call.trace_mask.mask_text(&deployment.reasons_in_one_line()));
    }
    Ok(deployment)
}
