//! Runs a rollback, and records its log and its outcome.

use std::time::Duration;

use function_host::{Context, Shutdown, trace};
use serde_json::{Value, json};
use tracing::Instrument;

use super::permit::RollbackPermit;
use crate::answer::{Answer, AnswerImageAndSeconds};
use crate::build::{BuildResult, DeploymentTenantAndLimits};
use crate::builds::{BuildPhase, RecordedDelivery, outcome_fields_kept_in_record};
use crate::error::Error;
use crate::function_id::FunctionId;
use crate::hand_over::{DeployedVersion, DeploymentOutcome, DryRunDocument, DryRunOutcome, RetriedFailures};
use crate::handler::BuilderApi;
use crate::redact::{SecretMask, TraceMask};
use crate::report::{LineFormatter, LogSink, SuccessOrFailedStatus};
use crate::supersede::{Submission, Supersession};
use crate::versions::{FunctionVersion, VersionState};

/// The limit on the log of a rollback, in lines. Each has a length limit of its own.
const LOG_LINES_MAX: usize = 200;

/// The time before the end of the process that is left for recording the outcome.
const TIME_LEFT_FOR_RECORDING_OUTCOME: Duration = Duration::from_secs(2);

/// A rollback that was accepted and is to be run.
pub(super) struct AcceptedRollback {
    /// The name of the tenant, if the builder has a policy.
    pub(super) tenant: Option<String>,
    /// The function, with its tenant.
    pub(super) function: FunctionId,
    /// The version to deploy.
    pub(super) version: FunctionVersion,
    /// The order of the builds of the function.
    pub(super) supersession: Supersession,
    /// The record of the rollback.
    pub(super) accepted: RecordedDelivery,
    /// The permit to run.
    pub(super) permit: RollbackPermit,
    /// What could not be checked before.
    pub(super) warning: Option<String>,
    /// What has to run for the choice of the version to be right; `None` if the caller chose the version.
    pub(super) expected: Option<ExpectedRunningVersions>,
}

/// The versions of which one runs if the choice of the last good version is right: the records may miss a version, or
/// have one that another client has replaced.
#[derive(Clone, Debug)]
pub(super) struct ExpectedRunningVersions {
    /// The ID of the newest version.
    id: String,
    /// The images of which one runs.
    images: Vec<String>,
}

impl ExpectedRunningVersions {
    /// Returns those of `versions` of which one runs if no other version was deployed; `None` if there are no versions.
    /// The first is the newest.
    pub(super) fn of_versions_newest_first(versions: &[FunctionVersion]) -> Option<Self> {
        let newest = versions.first()?;
        // While it is deployed, or if it is not known whether it was, any version before it may run.
        let may_run = match newest.state {
            VersionState::Deploying | VersionState::Sent => versions,
            _ => std::slice::from_ref(newest),
        };
        Some(Self {
            id: newest.id.clone(),
            images: may_run.iter().map(|version| version.image.clone()).collect(),
        })
    }

    /// Fails if another version runs.
    fn check_no_other_is_deployed(&self, deployed: Option<&DeployedVersion>) -> Result<(), Error> {
        let Some(deployed) = deployed else {
            return Ok(());
        };
        if deployed.call_id.as_ref() == Some(&self.id) || self.images.contains(&deployed.image) {
            return Ok(());
        }
        let call = deployed.call_id.as_deref();
        let call = call.map_or_else(String::new, |call| format!(" of the call {call}"));
        let reason = format!(
            "the image {}{call} is deployed, which is not the newest version that is recorded, {}: nothing was changed; name the \
             version to go back to by its ID",
            deployed.image, self.id
        );
        Err(Error::DeploymentRefused(Box::new(DeploymentOutcome::refused(
            reason,
        ))))
    }
}

/// Writes the log of a rollback to its record.
struct RecordedLog<'a>(&'a RecordedDelivery);

impl LogSink for RecordedLog<'_> {
    fn push(&mut self, line: String) {
        self.0.update_unless_succeeded(|record| {
            if record.log.len() < LOG_LINES_MAX {
                record.log.push(line);
            }
        });
    }
}

impl BuilderApi {
    /// Runs a rollback in a task of its own, which the process waits for before it ends.
    pub(super) fn spawn_rollback(&self, rollback: AcceptedRollback, context: &Context) {
        let (api, threads) = (self.clone(), self.threads.clone());
        let shutdown = context.shutdown().clone();
        let work = shutdown.begin_background_work();
        let running = async move {
            let _work = work;
            threads
                .run(async move { api.run_rollback(rollback, &shutdown).await })
                .await;
        };
        tokio::spawn(trace::in_current_span(running.in_current_span()));
    }

    async fn run_rollback(&self, rollback: AcceptedRollback, shutdown: &Shutdown) {
        let AcceptedRollback {
            tenant,
            function,
            version,
            supersession,
            accepted,
            permit,
            warning,
            expected,
        } = rollback;
        let to = version.rollback.as_ref().map_or("", |rollback| &rollback.to);
        tracing::info!(function = %function, to, image = version.image, "rollback started");
        let span = trace::span("rollback");
        span.set_attribute("slipway.function", function.to_string());
        // Builds that were handed in before and have no image yet are of no use any more.
        let _registration = supersession.register(Submission {
            function: function.clone(),
            call_id: version.id.clone(),
            submitted_at: version.submitted_at,
        });
        let mut lines = LineFormatter::new(SecretMask::default());
        let mut log = RecordedLog(&accepted);
        log.push(lines.format_own_step_start(&format!("[rollback] {} to {to}", version.function)));
        if let Some(warning) = warning {
            log.push(lines.record_warning_and_return_line(&warning));
        }
        let deployed = self.deploy_earlier_version(
            &version,
            expected.as_ref(),
            tenant.as_deref(),
            shutdown,
            &mut lines,
            &mut log,
        );
        let result = span.run(deployed).await;
        let fields = AnswerImageAndSeconds::default();
        let mut answer = match result {
            Ok(result) => Answer::from_built(result, fields),
            Err(error) => Answer::from_error(&error, fields),
        };
        answer.report.warnings = lines.into_warnings();
        if answer.report.error.is_some() {
            // The texts of a build speak of its image.
            let deployment = answer.report.deployment.as_ref();
            answer.report.error = Some(describe_failure(deployment, answer.report.error.take()));
        }
        let phase = match answer.report.status {
            SuccessOrFailedStatus::Success => BuildPhase::Success,
            SuccessOrFailedStatus::Failed => BuildPhase::Failed,
        };
        tracing::info!(function = %function, to, state = phase.as_str(), "rollback ended");
        let mut outcome = outcome_fields_kept_in_record(&answer.report);
        outcome.insert("digest".into(), json!(version.digest_or_empty()));
        drop(permit);
        let written = accepted.record_end_if_success_or_last_delivery(phase, outcome);
        tokio::select! {
            () = written.wait_up_to_10_seconds() => {}
            end = shutdown.wait_until_begun() => {
                tokio::time::sleep_until(end.checked_sub(TIME_LEFT_FOR_RECORDING_OUTCOME).unwrap_or(end)).await;
            }
        }
    }

    /// Asks the deployer whether it would deploy the version today, and has it deployed.
    async fn deploy_earlier_version(
        &self,
        version: &FunctionVersion,
        expected: Option<&ExpectedRunningVersions>,
        tenant: Option<&str>,
        shutdown: &Shutdown,
        lines: &mut LineFormatter,
        log: &mut dyn LogSink,
    ) -> Result<BuildResult, Error> {
        let signer = self.builder.deployer.signer()?;
        let dry_run = DryRunDocument::new(
            &version.tag,
            tenant,
            &version.id,
            version.submitted_at,
            &version.deploy,
            version.probe.as_ref(),
        );
        match signer.ask_for_dry_run_unless_callback(&dry_run).await {
            DryRunOutcome::Unsupported => {}
            DryRunOutcome::Accepted { warnings, deployed } => {
                for warning in &warnings {
                    log.push(lines.record_warning_and_return_line(warning));
                }
                if let Some(expected) = expected {
                    expected.check_no_other_is_deployed(deployed.as_ref())?;
                }
            }
            DryRunOutcome::Refused(refused) => return Err(Error::DeploymentRefused(refused)),
            DryRunOutcome::Unanswered { reason } => {
                log.push(lines.record_warning_and_return_line(&format!(
                    "the version could not be checked before its deployment: {reason}"
                )));
            }
        }
        let call = DeploymentTenantAndLimits {
            tenant,
            time_limit: None,
            shutdown,
            // Nobody but this builder tries again.
            retried: RetriedFailures::DeliveryAndPlatform,
            is_repeated: false,
            trace_mask: &TraceMask::default(),
        };
        let deployment = self
            .builder
            .deploy_version(&signer, version.clone(), call, lines, log)
            .await?;
        Ok(BuildResult {
            digest: Some(version.digest_or_empty().to_owned()),
            commit: version.commit.clone(),
            deployment: Some(deployment),
        })
    }
}

/// Returns the error of a rollback whose deployment failed.
fn describe_failure(deployment: Option<&Value>, error: Option<String>) -> String {
    let reasons = deployment.and_then(|deployment| deployment["reasons"].as_array());
    let reasons: Vec<_> = reasons.into_iter().flatten().filter_map(Value::as_str).collect();
    match reasons.is_empty() {
        false => format!("the version was not deployed again: {}", reasons.join("; ")),
        true => error.unwrap_or_default(),
    }
}
