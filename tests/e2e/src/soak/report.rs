//! The report of a soak test: a table, JSON, and whether everything that was accepted was done once.

use std::{fmt, time::Duration};

use serde_json::{Value, json};

use super::{
    Fault,
    evidence::{SubmissionEvidence, SubmissionVerdict},
};

/// The columns of the table, with the width of each.
const COLUMNS: [(&str, usize); 13] = [
    ("fault", 12),
    ("submitted", 9),
    ("deliveries", 10),
    ("accepted", 8),
    ("built", 5),
    ("deployed", 8),
    ("superseded", 10),
    ("lost", 4),
    ("built 2x", 8),
    ("deployed 2x", 11),
    ("spent", 5),
    ("first, all", 16),
    ("took", 6),
];

/// The report of all phases.
#[derive(Debug, Default)]
pub struct SoakReport {
    pub(super) phases: Vec<PhaseReport>,
}

/// The report of one phase: submissions, and one fault among them.
#[derive(Debug)]
pub(super) struct PhaseReport {
    pub(super) fault: Fault,
    pub(super) evidence: Vec<SubmissionEvidence>,
    /// The outage and the recovery from each occurrence of the fault, in order.
    pub(super) recoveries: Vec<OutageAndRecoveryTimes>,
    /// A description of each function that does not serve the page of its newest deployed version.
    pub(super) wrong_pages: Vec<String>,
    /// The number of submissions that the gateway did not accept at first, and that were sent again.
    pub(super) sent_again: usize,
    /// Whether the phase was ended because nothing happened any more.
    pub(super) has_stalled: bool,
    pub(super) took: Duration,
}

/// The time for which a part was away, and the times that the platform took to recover.
#[derive(Debug, Clone, Copy)]
pub(super) struct OutageAndRecoveryTimes {
    /// The time for which the part was away, until it was ready again.
    pub(super) outage: Duration,
    /// The time from the part's return to the next deployment; `None` if there was none.
    pub(super) first: Option<Duration>,
    /// The time from the fault to the deployment of the last call that had been delivered when the fault came and was
    /// not finished then; `None` if there was no such call.
    pub(super) all: Option<Duration>,
}

impl SoakReport {
    /// Returns what was lost, built twice or deployed twice, and what else should not have happened; empty if nothing.
    pub fn violations(&self) -> Vec<String> {
        self.phases.iter().flat_map(PhaseReport::violations).collect()
    }

    /// Returns the report as JSON.
    pub fn to_json(&self) -> Value {
        let phases: Vec<_> = self.phases.iter().map(PhaseReport::to_json).collect();
        json!({ "phases": phases, "violations": self.violations() })
    }
}

impl PhaseReport {
    fn count(&self, is_counted: impl Fn(&SubmissionEvidence) -> bool) -> usize {
        self.evidence
            .iter()
            .filter(|evidence| is_counted(evidence))
            .count()
    }

    fn count_verdict(&self, verdict: SubmissionVerdict) -> usize {
        self.count(|evidence| evidence.verdict() == verdict)
    }

    fn violations(&self) -> Vec<String> {
        let fault = self.fault.name();
        let mut violations = Vec::new();
        for evidence in &self.evidence {
            let SubmissionEvidence { call_id, report, .. } = evidence;
            let mut add = |what: &str| violations.push(format!("{fault}: {call_id} {what}: {report}"));
            match evidence.verdict() {
                SubmissionVerdict::Lost => add("was accepted and is lost"),
                SubmissionVerdict::Spent if !self.fault.leaves_nobody_to_accept_calls() => {
                    add("was spent by the queue, although there was a builder");
                }
                // What the queue spends while the gateway is away reaches no builder.
                SubmissionVerdict::Spent if evidence.deliveries > 0 => {
                    add("was delivered to a builder, and no builder knows it");
                }
                _ => {}
            }
            let is_built_to_its_end = evidence.digest.is_some() && !evidence.is_superseded;
            if self.fault == Fault::None && is_built_to_its_end && evidence.deliveries < 2 {
                add("was not delivered twice: its build took less than ack_wait");
            }
            if evidence.is_built_more_than_once() {
                add(&format!("was built {} times", evidence.builds));
            }
            if evidence.is_changed_to_more_than_once() {
                add(&format!("was deployed {} times", evidence.deployments));
            }
        }
        let wrong = self.wrong_pages.iter();
        violations.extend(wrong.map(|page| format!("{fault}: {page}")));
        if self.has_stalled {
            violations.push(format!(
                "{fault}: the phase was ended after {:.0} s, because nothing happened any more",
                self.took.as_secs_f64()
            ));
        }
        if self.recoveries.len() < self.fault.occurrences() {
            violations.push(format!(
                "{fault}: the fault did not happen: the builds ended before"
            ));
        }
        violations
    }

    fn to_json(&self) -> Value {
        let evidence = self.evidence.iter().map(|evidence| {
            json!({
                "callId": evidence.call_id,
                "function": evidence.function,
                "version": evidence.version,
                "deliveries": evidence.deliveries,
                "callbacks": evidence.callbacks,
                "successfulCallbacks": evidence.successful_callbacks,
                "builds": evidence.builds,
                "digest": evidence.digest,
                "deployments": evidence.deployments,
                "verdict": format!("{:?}", evidence.verdict()).to_lowercase(),
                "report": evidence.report,
            })
        });
        let recoveries = self.recoveries.iter().map(|recovery| {
            json!({
                "outageSeconds": recovery.outage.as_secs_f64(),
                "firstSeconds": recovery.first.map(|time| time.as_secs_f64()),
                "allSeconds": recovery.all.map(|time| time.as_secs_f64()),
            })
        });
        json!({
            "fault": self.fault.name(),
            "submitted": self.evidence.len(),
            "deliveries": self.evidence.iter().map(|evidence| evidence.deliveries).sum::<usize>(),
            "deliveredOnce": self.count(|evidence| evidence.deliveries == 1),
            "accepted": self.count(|evidence| evidence.is_accepted),
            "built": self.count(|evidence| evidence.digest.is_some()),
            "deployed": self.count(|evidence| evidence.deployments > 0),
            "superseded": self.count_verdict(SubmissionVerdict::Superseded),
            "lost": self.count_verdict(SubmissionVerdict::Lost),
            "builtTwice": self.count(SubmissionEvidence::is_built_more_than_once),
            "deployedTwice": self.count(SubmissionEvidence::is_changed_to_more_than_once),
            "spent": self.count_verdict(SubmissionVerdict::Spent),
            "withSuccessfulCallback": self.count(|evidence| evidence.successful_callbacks > 0),
            "sentAgain": self.sent_again,
            "stalled": self.has_stalled,
            "wrongPages": self.wrong_pages,
            "recoveries": recoveries.collect::<Vec<_>>(),
            "seconds": self.took.as_secs_f64(),
            "submissions": evidence.collect::<Vec<_>>(),
        })
    }

    fn table_cells(&self) -> [String; COLUMNS.len()] {
        let deliveries = self.evidence.iter().map(|evidence| evidence.deliveries);
        let recoveries: Vec<_> = self
            .recoveries
            .iter()
            .map(|recovery| {
                format!(
                    "{}, {}",
                    format_seconds_or_dash(recovery.first),
                    format_seconds_or_dash(recovery.all)
                )
            })
            .collect();
        [
            self.fault.name().to_owned(),
            self.evidence.len().to_string(),
            deliveries.sum::<usize>().to_string(),
            self.count(|evidence| evidence.is_accepted).to_string(),
            self.count(|evidence| evidence.digest.is_some()).to_string(),
            self.count(|evidence| evidence.deployments > 0).to_string(),
            self.count_verdict(SubmissionVerdict::Superseded).to_string(),
            self.count_verdict(SubmissionVerdict::Lost).to_string(),
            self.count(SubmissionEvidence::is_built_more_than_once)
                .to_string(),
            self.count(SubmissionEvidence::is_changed_to_more_than_once)
                .to_string(),
            self.count_verdict(SubmissionVerdict::Spent).to_string(),
            recoveries.join("; "),
            format_seconds_or_dash(Some(self.took)),
        ]
    }
}

impl fmt::Display for SoakReport {
    /// Formats the report as a table in Markdown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let write_row = |f: &mut fmt::Formatter<'_>, cells: &[String]| {
            for (cell, (_, width)) in cells.iter().zip(COLUMNS) {
                write!(f, "| {cell:<width$} ")?;
            }
            writeln!(f, "|")
        };
        write_row(f, &COLUMNS.map(|(name, _)| name.to_owned()))?;
        write_row(f, &COLUMNS.map(|(_, width)| "-".repeat(width)))?;
        self.phases
            .iter()
            .try_for_each(|phase| write_row(f, &phase.table_cells()))
    }
}

fn format_seconds_or_dash(time: Option<Duration>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{:.0} s", time.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished_evidence() -> SubmissionEvidence {
        SubmissionEvidence {
            call_id: "call".to_owned(),
            deliveries: 2,
            is_accepted: true,
            builds: 1,
            digest: Some("sha256:1".to_owned()),
            deployments: 1,
            ..SubmissionEvidence::default()
        }
    }

    fn report_of_finished_and(fault: Fault, evidence: SubmissionEvidence) -> SoakReport {
        let recovery = OutageAndRecoveryTimes {
            outage: Duration::from_secs(2),
            first: Some(Duration::from_secs(3)),
            all: None,
        };
        let phase = PhaseReport {
            fault,
            evidence: vec![finished_evidence(), evidence],
            recoveries: vec![recovery; fault.occurrences()],
            wrong_pages: Vec::new(),
            sent_again: 0,
            has_stalled: false,
            took: Duration::from_secs(60),
        };
        SoakReport { phases: vec![phase] }
    }

    #[test]
    fn what_is_lost_or_done_twice_is_a_violation() {
        assert_eq!(
            report_of_finished_and(Fault::Nats, finished_evidence()).violations(),
            Vec::<String>::new()
        );
        for evidence in [
            SubmissionEvidence {
                deployments: 0,
                ..finished_evidence()
            },
            SubmissionEvidence {
                deployments: 2,
                ..finished_evidence()
            },
            SubmissionEvidence {
                builds: 2,
                ..finished_evidence()
            },
        ] {
            let report = report_of_finished_and(Fault::Nats, evidence);
            assert_eq!(report.violations().len(), 1, "{report:?}");
        }
    }

    #[test]
    fn without_a_fault_a_build_that_was_delivered_only_once_is_a_violation() {
        let delivered_once = SubmissionEvidence {
            deliveries: 1,
            ..finished_evidence()
        };
        for (fault, violations) in [(Fault::None, 1), (Fault::Nats, 0)] {
            let report = report_of_finished_and(fault, delivered_once.clone());
            assert_eq!(report.violations().len(), violations, "{report:?}");
        }
    }

    #[test]
    fn the_queue_may_spend_calls_only_while_the_gateway_is_away() {
        let spent = SubmissionEvidence::default();
        assert_eq!(
            report_of_finished_and(Fault::Gateway, spent.clone())
                .violations()
                .len(),
            0
        );
        let delivered = SubmissionEvidence {
            deliveries: 1,
            ..spent.clone()
        };
        for (fault, evidence) in [(Fault::Builder, spent), (Fault::Gateway, delivered)] {
            let report = report_of_finished_and(fault, evidence);
            assert_eq!(report.violations().len(), 1, "{report:?}");
        }
    }

    #[test]
    fn a_fault_that_did_not_happen_is_a_violation() {
        let mut report = report_of_finished_and(Fault::Nats, finished_evidence());
        report.phases[0].recoveries.clear();
        assert_eq!(report.violations().len(), 1);
    }

    #[test]
    fn a_phase_in_which_nothing_happened_any_more_is_a_violation() {
        let mut report = report_of_finished_and(Fault::Nats, finished_evidence());
        report.phases[0].has_stalled = true;
        assert_eq!(report.violations().len(), 1);
    }

    #[test]
    fn the_table_has_a_row_for_each_phase() {
        let table = report_of_finished_and(Fault::Nats, finished_evidence()).to_string();
        let rows: Vec<_> = table.lines().collect();
        assert_eq!(rows.len(), 3, "{table}");
        assert!(rows[2].starts_with("| nats         | 2         | 4 "), "{table}");
        assert!(rows[2].contains("| 3 s, -"), "{table}");
        assert_eq!(rows[0].len(), rows[2].len(), "{table}");
    }
}
