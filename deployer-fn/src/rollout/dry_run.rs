//! The rollout's dry run: checks what can be checked before the image is built, and changes nothing.

use std::time::Duration;

use function_host::ErrorChain;
use tracing::info;

use super::{RolloutContext, RolloutDeadline, RolloutPartTimeouts, RunningRollout};
use crate::gateway::{GatewayReadError, GatewayRequestSender};
use crate::outcome::{DeployedImageAndCallId, DryRunOutcome, DryRunStatus};
use crate::request::DryRunRequest;
use crate::version::{FunctionVersion, LastGoodVersion};

/// The timeout of one request of a dry run. A build waits for the answer, and is not worth less if there is
/// none.
const DRY_RUN_REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Checks a hand-over whose image is not built yet, changes nothing, and returns the dry run's outcome. `objections`
/// are those that were found before.
///
/// It waits in no queue: it neither changes the function nor waits for it. The order of builds is not checked, because
/// it is not final before the newer version has been seen to work.
pub(crate) async fn check_all_but_image_and_build_order<T: GatewayRequestSender>(
    context: &RolloutContext<'_, T>,
    dry_run: &DryRunRequest,
    mut objections: Vec<String>,
    deadline: &RolloutDeadline,
) -> DryRunOutcome {
    // Reads are not retried: the answer has to come soon.
    let timeouts = RolloutPartTimeouts {
        request: context.timeouts.request.min(DRY_RUN_REQUEST_TIMEOUT),
        read_retries: Duration::ZERO,
        ..*context.timeouts
    };
    let context = RolloutContext {
        timeouts: &timeouts,
        ..*context
    };
    let mut rollout = RunningRollout::new(&context, &dry_run.hand_over, deadline);
    let mut warnings = dry_run.hand_over.warnings.clone();
    let read = deadline
        .run_until_deadline(rollout.add_objections_to_hand_over(&mut objections, &mut warnings))
        .await;
    let trouble = match read {
        Some(Ok(())) => None,
        Some(Err(error)) => Some(ErrorChain(&error).to_string()),
        None => Some(deadline.reason_passed()),
    };
    let status = match (objections.is_empty(), &trouble) {
        (false, _) => DryRunStatus::Refused,
        (true, None) => DryRunStatus::Accepted,
        (true, Some(_)) => DryRunStatus::Failed,
    };
    objections.extend(trouble.map(|trouble| format!("could not check everything: {trouble}")));
    let outcome = DryRunOutcome {
        dry_run: true,
        status,
        reasons: objections,
        warnings,
        deployed: rollout.before.as_ref().map(|status| DeployedImageAndCallId {
            image: status.image.clone(),
            call_id: FunctionVersion::of_deployed_function(status)
                .call_id()
                .map(str::to_owned),
        }),
    };
    info!(status = ?outcome.status, reasons = ?outcome.reasons, "checked a hand-over before its build");
    outcome
}

impl<T: GatewayRequestSender> RunningRollout<'_, T> {
    /// Adds the objections to the hand-over that do not depend on the image or on other builds, up to one that makes
    /// the others moot, and warnings of what may become one.
    async fn add_objections_to_hand_over(
        &mut self,
        objections: &mut Vec<String>,
        warnings: &mut Vec<String>,
    ) -> Result<(), GatewayReadError> {
        if let Some(objection) = self.objection_if_namespace_missing().await? {
            objections.push(objection);
            // All further checks would read from that namespace.
            return Ok(());
        }
        let unlisted = self.add_secret_objections_and_return_unlisted(objections).await?;
        warnings.extend(unlisted.iter().map(|name| {
            format!(
                "deploy.secrets: the provider does not list the secret {name:?}; if it does not exist, the deployment is \
                 refused"
            )
        }));
        let status = self.read_function_status_with_retries(Duration::ZERO).await?;
        if let Some(objection) = self.tenant_objection_to_change(status.as_ref()) {
            objections.push(objection);
            return Ok(());
        }
        // Either of them may be the one to restore. Which one, only a probe shows.
        let deployed = status.as_ref().map(FunctionVersion::of_deployed_function);
        let carried = status.as_ref().and_then(|status| {
            match LastGoodVersion::from_annotations(status.annotations()) {
                Some(LastGoodVersion::Version(version)) => Some(*version),
                _ => None,
            }
        });
        let size = |version: &FunctionVersion| {
            let last_good = LastGoodVersion::Version(Box::new(version.clone()));
            self.version.size_of_annotations(&last_good)
        };
        self.last_good = [deployed, carried].into_iter().flatten().max_by_key(size);
        self.before = status;
        self.add_annotation_size_objection(objections);
        Ok(())
    }
}
