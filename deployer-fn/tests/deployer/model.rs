//! Tests random sequences of deployments, disruptions, kills and restarts against a model: the newest good
//! version that was handed over answers, or the one before it, and the outcome says which.

use std::collections::BTreeSet;

use deployer_fn::{DeploymentOutcome, DeploymentStatus as Status, RunningState};
use fastrand::Rng;

use crate::fake::{DisruptionOrNone, FakeGateway, ProviderKind};
use crate::scenarios::{SimulatedDeployer, answering_build_number, hand_over_of_build, image_of_build};

/// The number of random sequences in a test, for each provider; each has its own seed.
const SEQUENCES_PER_PROVIDER: u64 = 60;
const DEPLOYMENTS_PER_SEQUENCE: usize = 12;

const POSSIBLE_DISRUPTIONS: [DisruptionOrNone; 7] = [
    DisruptionOrNone::Unreachable,
    DisruptionOrNone::LostBefore,
    DisruptionOrNone::LostAfter,
    DisruptionOrNone::Status(502),
    DisruptionOrNone::Status(503),
    DisruptionOrNone::Status(429),
    DisruptionOrNone::Unanswered,
];

/// A random sequence of deployments, and what the model knows of it.
struct DeploymentSequence {
    fake: FakeGateway,
    process: SimulatedDeployer,
    rng: Rng,
    provider: ProviderKind,
    /// The behaviour of each build in the sequence.
    builds: Vec<&'static str>,
    /// The builds that may answer now; `None` for no function.
    may_answer: BTreeSet<Option<u64>>,
    /// The steps of the sequence so far, for the message of a failure.
    steps: Vec<String>,
}

impl DeploymentSequence {
    fn new(provider: ProviderKind, seed: u64) -> Self {
        Self {
            fake: FakeGateway::new(provider),
            process: SimulatedDeployer::start(),
            rng: Rng::with_seed(seed),
            provider,
            builds: Vec::new(),
            may_answer: [None].into(),
            steps: Vec::new(),
        }
    }

    /// Picks a new build for the next step, or sometimes one that was delivered before.
    fn pick_new_or_earlier_build(&mut self) -> u64 {
        if !self.builds.is_empty() && self.rng.u8(..4) == 0 {
            return self.rng.u64(1..=self.builds.len() as u64);
        }
        let behaviour = match self.rng.u8(..8) {
            0..4 => "good",
            4 => "bad",
            5 => "crash",
            6 => "silent",
            _ => "missing",
        };
        self.builds.push(behaviour);
        self.builds.len() as u64
    }

    /// Returns the behaviour of the build with this number.
    fn behaviour_of_build(&self, number: u64) -> &'static str {
        self.builds[number as usize - 1]
    }

    /// Deploys a build while requests are disrupted, or until the deployer is killed.
    async fn deploy_with_disruptions_or_kill(&mut self, number: u64) {
        let behaviour = self.behaviour_of_build(number);
        // A version is lost with the process if faasd has deleted it for an image that it then could not pull, and
        // the process ends before it is restored: it is stored nowhere else.
        let may_kill = !(self.provider == ProviderKind::Faasd && behaviour == "missing");
        if may_kill && self.rng.bool() {
            self.fake
                .kill_deployer_at_request(Some((self.rng.usize(..16), self.rng.bool())));
        } else {
            let disruptions: Vec<_> = (0..self.rng.usize(1..14))
                .map(|_| match self.rng.u8(..3) {
                    0 => POSSIBLE_DISRUPTIONS[self.rng.usize(..POSSIBLE_DISRUPTIONS.len())],
                    _ => DisruptionOrNone::None,
                })
                .collect();
            self.fake.replace_disruptions_of_next_requests(disruptions);
        }
        let outcome = self
            .process
            .deploy_until_killed(&self.fake, &hand_over_of_build(number, behaviour))
            .await;
        self.fake.kill_deployer_at_request(None);
        self.fake.replace_disruptions_of_next_requests([]);
        let ended = outcome.as_ref().map(|outcome| (outcome.status, &outcome.reasons));
        self.steps.push(format!(
            "disrupted, {number} ({behaviour}) ends {ended:?}; {:?} answers",
            answering_build_number(&self.fake)
        ));
        if outcome.is_none() {
            self.process = SimulatedDeployer::start();
        }
        // Whether a good build runs now is not known, unless a newer one certainly does.
        if behaviour == "good" && self.may_answer.iter().all(|other| *other <= Some(number)) {
            self.may_answer.insert(Some(number));
        }
    }

    /// Deploys a build without disruptions, and compares the outcome with the model.
    async fn deploy_and_assert_as_in_model(&mut self, number: u64, step: &str) {
        let behaviour = self.behaviour_of_build(number);
        let outcome = self
            .process
            .deploy(&self.fake, &hand_over_of_build(number, behaviour))
            .await;
        let answering = answering_build_number(&self.fake);
        let story = format!(
            "{:#?}\n{step}: build {number} is {behaviour}, {answering:?} answers, allowed are {:?}: {outcome:#?}",
            self.steps, self.may_answer
        );
        self.steps.push(format!(
            "{number} ({behaviour}) ends {:?}; {answering:?} answers",
            outcome.status
        ));
        assert_ne!(
            outcome.status,
            Status::Unverified,
            "every function names its version: {story}"
        );
        match outcome.status {
            Status::Ready => {
                assert_eq!((behaviour, answering), ("good", Some(number)), "{story}");
                let oldest = self.may_answer.iter().min().copied().flatten();
                assert!(oldest <= Some(number), "an older build has replaced it: {story}");
                self.may_answer = [Some(number)].into();
            }
            Status::RolledBack | Status::Refused => {
                assert!(self.may_answer.contains(&answering), "{story}");
                let older = self.may_answer.iter().any(|other| *other > Some(number));
                assert!(
                    behaviour != "good" || older,
                    "a good version does not run: {story}"
                );
                self.may_answer = [answering].into();
            }
            // Only if there never was a version to restore.
            Status::Failed | Status::Unverified => {
                assert!(behaviour != "good" && self.may_answer.contains(&None), "{story}");
                assert_eq!(answering, None, "{story}");
            }
        }
        self.assert_reports_answering_image(&outcome, answering, &story);
    }

    /// Asserts that the outcome names the image that answers.
    fn assert_reports_answering_image(
        &self,
        outcome: &DeploymentOutcome,
        answering: Option<u64>,
        story: &str,
    ) {
        let reported = match &outcome.running {
            RunningState::Function { image, .. } => Some(image.clone()),
            RunningState::Nothing | RunningState::Unknown => None,
        };
        match answering {
            Some(number) => assert_eq!(
                reported,
                Some(image_of_build(number, self.behaviour_of_build(number))),
                "{story}"
            ),
            None => assert_ne!(outcome.status, Status::Ready, "{story}"),
        }
    }
}

/// Uses functions that do not name their version, on a provider that keeps the old one until the new one is
/// ready.
#[tokio::test(start_paused = true)]
async fn only_a_version_that_was_seen_to_work_is_reported_ready_or_restored() {
    for seed in 0..SEQUENCES_PER_PROVIDER {
        let fake = FakeGateway::new(ProviderKind::Kubernetes).omit_versions_in_answers();
        let mut sequence = DeploymentSequence::new(ProviderKind::Kubernetes, seed);
        sequence.fake = fake.clone();
        for step in 0..DEPLOYMENTS_PER_SEQUENCE {
            let number = sequence.pick_new_or_earlier_build();
            let behaviour = sequence.behaviour_of_build(number);
            let outcome = sequence
                .process
                .deploy(&fake, &hand_over_of_build(number, behaviour))
                .await;
            let answering = answering_build_number(&fake);
            let story = format!(
                "seed {seed}, step {step}: {:#?}\n{number} ({behaviour}): {outcome:#?}; {answering:?} answers",
                sequence.steps
            );
            match outcome.status {
                Status::Ready => assert_eq!((behaviour, answering), ("good", Some(number)), "{story}"),
                Status::RolledBack => {
                    let restored = fake.last_set_deployment("hello");
                    let number =
                        restored.map(|restored| restored["envVars"]["BUILD"].as_str().unwrap().parse());
                    let restored = number.map(|number| sequence.behaviour_of_build(number.unwrap()));
                    assert!(restored.is_none_or(|restored| restored == "good"), "{story}");
                }
                Status::Unverified => assert!(answering.is_some(), "{story}"),
                Status::Refused => {}
                Status::Failed => panic!("{story}"),
            }
            sequence
                .steps
                .push(format!("{number} ({behaviour}) ends {:?}", outcome.status));
            if sequence.rng.u8(..4) == 0 {
                sequence.process = SimulatedDeployer::start();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_newest_good_version_runs_and_is_reported_whatever_fails() {
    for provider in [
        ProviderKind::Kubernetes,
        ProviderKind::Faasd,
        ProviderKind::Rolling,
    ] {
        for seed in 0..SEQUENCES_PER_PROVIDER {
            let mut sequence = DeploymentSequence::new(provider, seed);
            for step in 0..DEPLOYMENTS_PER_SEQUENCE {
                let number = sequence.pick_new_or_earlier_build();
                let step = format!("{provider:?}, seed {seed}, step {step}");
                if sequence.rng.u8(..3) == 0 {
                    sequence.deploy_with_disruptions_or_kill(number).await;
                    // A queue delivers it again, or does not.
                    if sequence.rng.u8(..3) == 0 {
                        continue;
                    }
                }
                sequence.deploy_and_assert_as_in_model(number, &step).await;
                if sequence.rng.u8(..4) == 0 {
                    sequence.process = SimulatedDeployer::start();
                }
            }
        }
    }
}
