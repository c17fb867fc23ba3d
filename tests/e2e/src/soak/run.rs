//! The course of a soak test: one phase for each fault.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use tokio::task::JoinHandle;

use super::{
    Fault, SoakOptions, SoakReport,
    evidence::{SubmissionEvidence, collect_evidence},
    journal::RoutedTraffic,
    platform::SoakPlatform,
    queue,
    report::{OutageAndRecoveryTimes, PhaseReport},
    submission::{Submission, submissions_of_phase, submit_all_and_count_resent},
};

/// The interval at which the phase looks at what other processes have done.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// The time without any progress after which a phase ends, whatever is unfinished. A builder counts as gone after 20 s,
/// and retries pause for at most 30 s.
const STALL_TIMEOUT: Duration = Duration::from_secs(240);

/// The number of times in a row that everything has to look finished: the queue is idle for a moment between two calls.
const IDLE_POLLS_UNTIL_ENDED: usize = 8;

/// Runs a soak test, reports its progress to `progress`, and writes the logs of builders and deployer to `logs_folder`.
///
/// # Errors
/// Fails if the platform cannot be started, or no evidence be collected. What is lost or done twice is in the report.
pub async fn run_soak(
    options: &SoakOptions,
    logs_folder: Option<&Path>,
    progress: impl Fn(&str),
) -> Result<SoakReport> {
    let mut platform = SoakPlatform::remove_earlier_stack_and_start(options).await?;
    let report = run_phases(&mut platform, options, &progress).await;
    let written = logs_folder.map_or(Ok(()), |folder| platform.write_builder_and_deployer_logs(folder));
    platform.stop_all_and_remove_stack().await?;
    written.context("writing the logs")?;
    report
}

async fn run_phases(
    platform: &mut SoakPlatform,
    options: &SoakOptions,
    progress: &impl Fn(&str),
) -> Result<SoakReport> {
    let mut report = SoakReport::default();
    let run = format!("r{}", Timestamp::now().as_second());
    for fault in &options.faults {
        progress(&format!("{}: {} submissions", fault.name(), options.submissions));
        let submissions = submissions_of_phase(platform, options, *fault, &run)?;
        let phase = Phase::start(platform, options, *fault, &submissions, progress);
        let phase = phase.disturb_and_report().await?;
        report.phases.push(phase);
        let functions = submissions.iter().map(|submission| submission.function.as_str());
        platform
            .remove_functions(functions.take(options.functions))
            .await?;
        progress(&report.to_string());
    }
    Ok(report)
}

/// A phase in progress.
struct Phase<'a, P> {
    platform: &'a mut SoakPlatform,
    options: &'a SoakOptions,
    fault: Fault,
    submissions: &'a [Submission],
    progress: &'a P,
    began: Instant,
    submitting: Option<JoinHandle<Result<usize>>>,
    sent_again: usize,
    killed_workers: usize,
    /// The beginning and the end of each occurrence of the fault.
    occurrences: Vec<(Instant, Instant)>,
}

impl<'a, P: Fn(&str)> Phase<'a, P> {
    /// Clears the router's record of traffic, and begins to send the submissions of a phase.
    fn start(
        platform: &'a mut SoakPlatform,
        options: &'a SoakOptions,
        fault: Fault,
        submissions: &'a [Submission],
        progress: &'a P,
    ) -> Self {
        *platform.router.traffic() = RoutedTraffic::default();
        let submitting = submit_all_and_count_resent(
            platform.testbed.queued.clone(),
            platform.router.callback_url(),
            submissions.to_vec(),
        );
        Self {
            platform,
            options,
            fault,
            submissions,
            progress,
            began: Instant::now(),
            submitting: Some(tokio::spawn(submitting)),
            sent_again: 0,
            killed_workers: 0,
            occurrences: Vec::new(),
        }
    }

    /// Disturbs the builds, waits until all of them have ended, and reports what became of them.
    async fn disturb_and_report(mut self) -> Result<PhaseReport> {
        let has_stalled = self.disturb_until_ended_and_get_has_stalled().await?;
        if let Some(submitting) = self.submitting.take() {
            submitting.abort();
        }
        let took = self.began.elapsed();
        let evidence = collect_evidence(self.platform, self.submissions).await?;
        let wrong_pages = self.describe_functions_with_wrong_page(&evidence).await?;
        Ok(PhaseReport {
            fault: self.fault,
            recoveries: self.outage_and_recovery_times(&evidence),
            evidence,
            wrong_pages,
            sent_again: self.sent_again,
            has_stalled,
            took,
        })
    }

    /// Kills queue-workers and lets the fault happen as builds end, and returns once all builds have ended. Returns
    /// whether it gave up because nothing happened any more.
    async fn disturb_until_ended_and_get_has_stalled(&mut self) -> Result<bool> {
        let (mut idle_polls, mut last_progress, mut progressed_at) = (0, 0, Instant::now());
        loop {
            self.join_submitting_if_finished().await?;
            self.kill_and_restart_worker_after_next_deployment().await?;
            self.let_fault_happen_when_due().await?;
            let now = self.platform.router.traffic().event_count();
            if now != last_progress {
                (last_progress, progressed_at) = (now, Instant::now());
            }
            idle_polls = match self.is_all_submitted_and_queue_empty() {
                true => idle_polls + 1,
                false => 0,
            };
            if idle_polls >= IDLE_POLLS_UNTIL_ENDED {
                if self.are_all_builds_ended_or_unknown().await {
                    return Ok(false);
                }
                idle_polls = 0;
            }
            if progressed_at.elapsed() > STALL_TIMEOUT {
                (self.progress)("nothing has happened for a long time");
                return Ok(true);
            }
            // Other processes send no events to this one.
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn join_submitting_if_finished(&mut self) -> Result<()> {
        if self.submitting.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(submitting) = self.submitting.take()
        {
            self.sent_again = submitting.await??;
            (self.progress)(&format!(
                "all submitted after {:.0} s, {} of them more than once",
                self.began.elapsed().as_secs_f64(),
                self.sent_again
            ));
        }
        Ok(())
    }

    /// Kills the next queue-worker when enough functions are deployed, while a delivery is in progress, and starts it
    /// again.
    async fn kill_and_restart_worker_after_next_deployment(&mut self) -> Result<()> {
        let due = {
            let traffic = self.platform.router.traffic();
            let is_early = traffic.deployed_image_count() <= self.killed_workers;
            !is_early && traffic.has_delivery_in_progress()
        };
        if due && self.killed_workers < self.options.killed_workers {
            self.platform
                .workers
                .kill_running_worker_modulo_count(self.killed_workers)?;
            self.platform
                .workers
                .start_missing_and_wait_until_all_listen()
                .await?;
            self.killed_workers += 1;
        }
        Ok(())
    }

    /// Lets the fault happen once a quarter of the submissions are deployed, and for the second time once half of them
    /// are.
    async fn let_fault_happen_when_due(&mut self) -> Result<()> {
        let number = self.occurrences.len();
        let deployed = self.platform.router.traffic().deployed_image_count();
        if number >= self.fault.occurrences() || deployed < self.submissions.len() * (number + 1) / 4 {
            return Ok(());
        }
        (self.progress)(&format!("{}: fault {}", self.fault.name(), number + 1));
        let began = Instant::now();
        self.fault.happen(self.platform, number).await?;
        self.occurrences.push((began, Instant::now()));
        (self.progress)(&format!("{}: fault {} is over", self.fault.name(), number + 1));
        Ok(())
    }

    /// Returns whether everything is submitted, and no call is in the queue or being delivered.
    fn is_all_submitted_and_queue_empty(&self) -> bool {
        self.submitting.is_none()
            && !self.platform.router.traffic().has_delivery_in_progress()
            // NATS may be away for a moment.
            && queue::has_workers_and_all_are_idle(self.platform.stack()).unwrap_or(false)
    }

    /// Returns whether each submission's build has ended, or is unknown, according to the first builder that runs.
    /// Without an answer, a build has not ended.
    async fn are_all_builds_ended_or_unknown(&self) -> bool {
        for submission in self.submissions {
            let answer = self.platform.ask_about_build(&submission.call_id).await;
            let has_ended = match &answer {
                Ok((404, _)) => true,
                Ok((_, build)) => matches!(build["state"].as_str(), Some("success" | "failed" | "cancelled")),
                Err(_) => false,
            };
            if !has_ended {
                return false;
            }
        }
        true
    }

    /// Describes the functions that do not serve the page of their newest deployed version.
    async fn describe_functions_with_wrong_page(
        &self,
        evidence: &[SubmissionEvidence],
    ) -> Result<Vec<String>> {
        let mut newest = BTreeMap::new();
        for (submission, evidence) in self.submissions.iter().zip(evidence) {
            if evidence.deployments > 0 {
                // In the order of their versions.
                newest.insert(&submission.function, submission);
            }
        }
        let mut wrong = Vec::new();
        for (function, submission) in newest {
            let (status, page) = self
                .platform
                .testbed
                .functions
                .get_function_page(function)
                .await?;
            if (status, page.as_str()) != (200, submission.page.as_str()) {
                wrong.push(format!(
                    "{function} answers {status} {page:?} instead of {:?}",
                    submission.page
                ));
            }
        }
        Ok(wrong)
    }

    /// Returns how long the platform took to recover from each occurrence of the fault.
    fn outage_and_recovery_times(&self, evidence: &[SubmissionEvidence]) -> Vec<OutageAndRecoveryTimes> {
        let traffic = self.platform.router.traffic();
        let deployed: Vec<_> = evidence
            .iter()
            .filter_map(|evidence| {
                let times = traffic
                    .possible_changes_to(&evidence.image)
                    .map(|change| change.at);
                Some((evidence.call_id.as_str(), times.min()?))
            })
            .collect();
        let recovery = |&(began, ended): &(Instant, Instant)| {
            let after = |since: Instant, at: Instant| at.checked_duration_since(since);
            let first = deployed.iter().filter_map(|(_, at)| after(ended, *at)).min();
            let was_delivered = |call_id: &str| {
                let mut deliveries = traffic.deliveries_of(call_id);
                deliveries.any(|delivery| delivery.began < began)
            };
            let interrupted = deployed.iter().filter(|(call_id, _)| was_delivered(call_id));
            OutageAndRecoveryTimes {
                outage: ended.duration_since(began),
                first,
                all: interrupted.filter_map(|(_, at)| after(began, *at)).max(),
            }
        };
        self.occurrences.iter().map(recovery).collect()
    }
}
