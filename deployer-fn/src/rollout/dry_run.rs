//! The rollout's dry run: checks what can be checked before the image is built, and changes nothing.

use std::time::Duration;

use function_host::ErrorChain;
use tracing::info;

use super::{Deadline, Rollout, RolloutContext, Timeouts};
use crate::gateway::{ReadError, Transport};
use crate::outcome::{DryRunOutcome, DryRunStatus};
use crate::request::DryRun;
use crate::version::{LastGood, Version};

/// The timeout of one request of a dry run. A build waits for the answer, and is not worth less if there is
/// none.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Checks a hand-over whose image is not built yet. `objections` are those that were found before.
///
/// It needs no turn: it neither changes the function nor waits for it. The order of builds is not checked, because it
/// is not final before the newer version has been seen to work.
pub(crate) async fn dry_run<T: Transport>(
    context: &RolloutContext<'_, T>,
    dry_run: &DryRun,
    mut objections: Vec<String>,
    deadline: &Deadline,
) -> DryRunOutcome {
    // Reads are not retried: the answer has to come soon.
    let timeouts = Timeouts {
        request: context.timeouts.request.min(REQUEST_TIMEOUT),
        read_retries: Duration::ZERO,
        ..*context.timeouts
    };
    let context = RolloutContext {
        timeouts: &timeouts,
        ..*context
    };
    let mut rollout = Rollout::new(&context, &dry_run.hand_over, deadline);
    let read = deadline.run(rollout.add_objections(&mut objections)).await;
    let trouble = match read {
        Some(Ok(())) => None,
        Some(Err(error)) => Some(ErrorChain(&error).to_string()),
        None => Some(deadline.reason()),
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
        warnings: dry_run.hand_over.warnings.clone(),
    };
    info!(status = ?outcome.status, reasons = ?outcome.reasons, "checked a hand-over before its build");
    outcome
}

impl<T: Transport> Rollout<'_, T> {
    /// Adds every objection to the hand-over that does not depend on the image or on other builds.
    async fn add_objections(&mut self, objections: &mut Vec<String>) -> Result<(), ReadError> {
        if let Some(objection) = self.missing_namespace().await? {
            objections.push(objection);
            // All further checks would read from that namespace.
            return Ok(());
        }
        self.check_secrets(objections).await?;
        let status = self.read_status(Duration::ZERO).await?;
        // Either of them may be the one to restore. Which one, only a probe shows.
        let deployed = status.as_ref().map(Version::deployed);
        let carried =
            status
                .as_ref()
                .and_then(|status| match LastGood::from_annotations(status.annotations()) {
                    Some(LastGood::Version(version)) => Some(*version),
                    _ => None,
                });
        let size = |version: &Version| {
            let last_good = LastGood::Version(Box::new(version.clone()));
            self.version.size_of_annotations(&last_good)
        };
        self.last_good = [deployed, carried].into_iter().flatten().max_by_key(size);
        self.check_size(objections);
        Ok(())
    }
}
