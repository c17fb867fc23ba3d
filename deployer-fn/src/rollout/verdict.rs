//! The verdict on a rollout: the one place where the findings of its phases become a status and a fault.

use crate::outcome::{DeploymentStatus, FaultyParty, SuccessorCallId};

/// The findings of one or more phases of a rollout: the reasons in order, and the fault, if one was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    fault: Option<FaultyParty>,
    reasons: Vec<String>,
}

impl Findings {
    /// Makes findings with a fault and its reason.
    pub(super) fn new(fault: FaultyParty, reason: impl Into<String>) -> Self {
        Self::of_fault(fault).with_further_reason(reason)
    }

    /// Makes findings with a fault, for which a later phase gives the reason.
    pub(super) fn of_fault(fault: FaultyParty) -> Self {
        Self {
            fault: Some(fault),
            reasons: Vec::new(),
        }
    }

    /// Returns the findings with one more reason.
    pub(super) fn with_further_reason(mut self, reason: impl Into<String>) -> Self {
        self.reasons.push(reason.into());
        self
    }

    /// Returns the findings followed by those of a later phase. If that phase found a fault, its fault replaces
    /// the earlier one: it knows more.
    pub(super) fn followed_by(mut self, later: Self) -> Self {
        self.fault = later.fault.or(self.fault);
        self.reasons.extend(later.reasons);
        self
    }

    /// Returns the fault of the findings, if there is one.
    pub(super) fn faulty_party(&self) -> Option<FaultyParty> {
        self.fault
    }

    /// Returns the reasons of the findings.
    pub(super) fn reasons(&self) -> &[String] {
        &self.reasons
    }
}

impl From<Vec<String>> for Findings {
    fn from(reasons: Vec<String>) -> Self {
        Self { fault: None, reasons }
    }
}

/// The result of restoring the previous version after a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RestorationResult {
    /// The restoration was not tried, because the process ends.
    ShuttingDown,
    /// The new version was found to run after all.
    NewVersionReady,
    /// The previous version runs again; or there is no function if there was none before.
    Restored,
    /// The restoration ended because another client has deployed the function in the meantime.
    Overtaken,
    /// The restoration was left to a newer build, which waits or is deployed.
    Superseded(SuccessorCallId),
    /// The restoration exceeded its timeout.
    TimedOut,
}

/// The verdict on a rollout: status, fault and reasons of its outcome.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) status: DeploymentStatus,
    pub(super) fault: Option<FaultyParty>,
    pub(super) reasons: Vec<String>,
    pub(super) superseded_by: Option<SuccessorCallId>,
}

impl Verdict {
    /// Makes a verdict with the reasons in `findings`.
    fn new(status: DeploymentStatus, fault: Option<FaultyParty>, findings: Findings) -> Self {
        Self {
            status,
            fault,
            reasons: findings.reasons,
            superseded_by: None,
        }
    }

    /// Makes the verdict that the new version runs, with the reasons in `findings` and without a fault.
    pub(super) fn ready(findings: Findings) -> Self {
        Self::new(DeploymentStatus::Ready, None, findings)
    }

    /// Makes the verdict that the function answers, but perhaps with the previous version.
    pub(super) fn unverified(findings: Findings) -> Self {
        Self::new(DeploymentStatus::Unverified, None, findings)
    }

    /// Makes the verdict that the hand-over is refused because `successor`, a newer build, supersedes it.
    pub(super) fn superseded(successor: SuccessorCallId, findings: Findings) -> Self {
        Self {
            superseded_by: Some(successor),
            ..Self::refused_by_fault_of_caller(findings)
        }
    }

    /// Makes the verdict that the hand-over is refused, by the caller's fault.
    pub(super) fn refused_by_fault_of_caller(findings: Findings) -> Self {
        Self::new(DeploymentStatus::Refused, Some(FaultyParty::Caller), findings)
    }

    /// Makes the verdict that the new version does not run, and the previous one does. The fault is the platform's if
    /// no phase found another.
    pub(super) fn rolled_back(findings: Findings) -> Self {
        let fault = findings.fault.or(Some(FaultyParty::Platform));
        Self::new(DeploymentStatus::RolledBack, fault, findings)
    }

    /// Makes the verdict that the rollout failed, and neither version is known to run. The fault is the platform's if
    /// no phase found another.
    pub(super) fn failed(findings: Findings) -> Self {
        let fault = findings.fault.or(Some(FaultyParty::Platform));
        Self::new(DeploymentStatus::Failed, fault, findings)
    }

    /// Makes the verdict on a hand-over whose version did not come up, from the result of the restoration.
    pub(super) fn after_restoration(restoration: RestorationResult, findings: Findings) -> Self {
        match restoration {
            RestorationResult::NewVersionReady => Self::ready(findings),
            RestorationResult::Restored => Self::rolled_back(findings),
            RestorationResult::Superseded(successor) => Self::superseded(successor, findings),
            RestorationResult::ShuttingDown | RestorationResult::Overtaken | RestorationResult::TimedOut => {
                Self::failed(findings)
            }
        }
    }

    /// Makes the verdict on a hand-over that is older than the deployed version, when that version did not come up:
    /// from the result of restoring the one before it.
    pub(super) fn for_older_build_after_restoring_newer(
        newer: SuccessorCallId,
        restoration: RestorationResult,
        findings: Findings,
    ) -> Self {
        match restoration {
            RestorationResult::NewVersionReady => Self::ready(findings),
            RestorationResult::Superseded(successor) => Self::superseded(successor, findings),
            RestorationResult::Restored | RestorationResult::Overtaken | RestorationResult::ShuttingDown => {
                Self::superseded(newer, findings)
            }
            RestorationResult::TimedOut => Self::failed(findings),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_findings_the_latest_fault_counts_and_all_reasons_are_kept() {
        let none = Findings::default;
        let caller = || Findings::new(FaultyParty::Caller, "applied");
        let platform = || Findings::new(FaultyParty::Platform, "unreachable");
        for (findings, fault, reasons) in [
            (
                none().followed_by(caller()),
                Some(FaultyParty::Caller),
                vec!["applied"],
            ),
            (
                caller().followed_by(none().with_further_reason("crashed")),
                Some(FaultyParty::Caller),
                vec!["applied", "crashed"],
            ),
            (
                caller().followed_by(platform()),
                Some(FaultyParty::Platform),
                vec!["applied", "unreachable"],
            ),
            (
                platform().followed_by(caller()),
                Some(FaultyParty::Caller),
                vec!["unreachable", "applied"],
            ),
            (none(), None, vec![]),
        ] {
            assert_eq!(findings.faulty_party(), fault, "{findings:?}");
            assert_eq!(findings.reasons(), reasons, "{findings:?}");
        }
    }

    #[test]
    fn the_result_of_the_restoration_decides_the_deployment_status() {
        use DeploymentStatus::{Failed, Ready, Refused, RolledBack};
        for (restoration, of_this, of_newer) in [
            (RestorationResult::ShuttingDown, Failed, Refused),
            (RestorationResult::NewVersionReady, Ready, Ready),
            (RestorationResult::Restored, RolledBack, Refused),
            (RestorationResult::Overtaken, Failed, Refused),
            (
                RestorationResult::Superseded(SuccessorCallId { call_id: None }),
                Refused,
                Refused,
            ),
            (RestorationResult::TimedOut, Failed, Failed),
        ] {
            let findings = Findings::new(FaultyParty::Platform, "x");
            let verdict = Verdict::after_restoration(restoration.clone(), findings.clone());
            assert_eq!(verdict.status, of_this, "{restoration:?}");
            let verdict = Verdict::for_older_build_after_restoring_newer(
                SuccessorCallId { call_id: None },
                restoration.clone(),
                findings,
            );
            assert_eq!(verdict.status, of_newer, "{restoration:?}");
        }
    }

    #[test]
    fn every_verdict_but_ready_and_unverified_has_a_fault() {
        assert_eq!(
            Verdict::ready(Findings::of_fault(FaultyParty::Platform)).fault,
            None
        );
        assert_eq!(
            Verdict::unverified(Findings::of_fault(FaultyParty::Platform)).fault,
            None
        );
        assert_eq!(
            Verdict::refused_by_fault_of_caller(Findings::default()).fault,
            Some(FaultyParty::Caller)
        );
        assert_eq!(
            Verdict::rolled_back(Findings::of_fault(FaultyParty::Caller)).fault,
            Some(FaultyParty::Caller)
        );
        assert_eq!(
            Verdict::failed(Findings::default()).fault,
            Some(FaultyParty::Platform)
        );
    }
}
