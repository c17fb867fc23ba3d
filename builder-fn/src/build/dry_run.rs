//! The first step of a build with `deploy`: the deployer's dry run, before the build takes a slot.

use function_host::trace;
use serde_json::{Map, Value};

use super::call::{BuilderCall, wait_for_expiry};
use crate::error::Error;
use crate::hand_over::{DryRunDocument, DryRunOutcome, HandOverSigner};
use crate::report::{LineFormatter, LogSink};
use crate::request::BuildRequest;

/// Asks the deployer whether it would deploy the image, unless hand-overs go through callbacks. If the deployer gives
/// no answer, adds a warning and succeeds.
///
/// # Errors
/// Fails if the deployer would refuse the hand-over, the call's time ends, or a shutdown is about to end the process.
pub(super) async fn fail_if_dry_run_refuses_deployment(
    signer: &HandOverSigner<'_>,
    deploy: &Map<String, Value>,
    request: &BuildRequest,
    call: &BuilderCall<'_>,
    lines: &mut LineFormatter,
    log: &mut dyn LogSink,
) -> Result<(), Error> {
    let config = &request.config;
    let tag = config.image.to_string();
    let dry_run = DryRunDocument::new(
        &tag,
        request.tenant().map(|tenant| tenant.name().as_str()),
        call.id,
        request.submitted_at.at,
        deploy,
        config.probe.as_ref(),
    );
    let span = trace::span("dry run");
    let outcome = tokio::select! {
        outcome = span.run(signer.ask_for_dry_run_unless_callback(&dry_run)) => outcome,
        limit = wait_for_expiry(call.build_time_limit(None)) => return Err(Error::TimeLimit { limit }),
        () = call.wait_until_shortly_before_shutdown_ends() => return Err(Error::Interrupted),
    };
    match outcome {
        DryRunOutcome::Unsupported => Ok(()),
        DryRunOutcome::Accepted { warnings, .. } => {
            warnings
                .iter()
                .for_each(|warning| log.push(lines.record_warning_and_return_line(warning)));
            Ok(())
        }
        DryRunOutcome::Refused(deployment) => {
            span.mark_failed(call.trace_mask.mask_text(&deployment.reasons_in_one_line()));
            Err(Error::DeploymentRefused(deployment))
        }
        DryRunOutcome::Unanswered { reason } => {
            span.mark_failed(call.trace_mask.mask_text(&reason));
            log.push(lines.record_warning_and_return_line(&format!(
                "\"deploy\" and \"probe\" could not be checked before the build: {reason}"
            )));
            Ok(())
        }
    }
}
