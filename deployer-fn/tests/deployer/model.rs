//! Random sequences of deployments, faults, kills and restarts, against what may be true after each: what answers is the
//! newest good version that was asked for, or the one before, and the report says which.

use std::collections::BTreeSet;

use deployer_fn::outcome::{Outcome, Running, Status};
use fastrand::Rng;

use crate::fake::{Fake, Manners, Mishap};
use crate::stories::{Process, answering, build, image};

const SEQUENCES: u64 = 60;
const DEPLOYMENTS: usize = 12;

const MISHAPS: [Mishap; 7] = [
    Mishap::Refused,
    Mishap::LostBefore,
    Mishap::LostAfter,
    Mishap::Status(502),
    Mishap::Status(503),
    Mishap::Status(429),
    Mishap::Slow,
];

/// What is known of a sequence.
struct World {
    fake: Fake,
    process: Process,
    rng: Rng,
    manners: Manners,
    /// What each build does.
    built: Vec<&'static str>,
    /// Which builds may answer now; `None` for nothing.
    may_answer: BTreeSet<Option<u64>>,
    /// What has happened, to be read where it ends badly.
    story: Vec<String>,
}

impl World {
    fn new(manners: Manners, seed: u64) -> Self {
        Self {
            fake: Fake::new(manners),
            process: Process::start(),
            rng: Rng::with_seed(seed),
            manners,
            built: Vec::new(),
            may_answer: [None].into(),
            story: Vec::new(),
        }
    }

    /// The next build, or sometimes one that was delivered before.
    fn pick(&mut self) -> u64 {
        if !self.built.is_empty() && self.rng.u8(..4) == 0 {
            return self.rng.u64(1..=self.built.len() as u64);
        }
        let does = match self.rng.u8(..8) {
            0..4 => "good",
            4 => "bad",
            5 => "crash",
            6 => "silent",
            _ => "missing",
        };
        self.built.push(does);
        self.built.len() as u64
    }

    fn does(&self, number: u64) -> &'static str {
        self.built[number as usize - 1]
    }

    async fn disturbed(&mut self, number: u64) {
        let does = self.does(number);
        // The one thing that is lost with the process: what faasd has removed for an image that it then could not pull, when
        // the process ends before that is put back. There is nowhere left where it could be read.
        let may_kill = !(self.manners == Manners::Faasd && does == "missing");
        if may_kill && self.rng.bool() {
            self.fake.kill_at(Some((self.rng.usize(..16), self.rng.bool())));
        } else {
            let mishaps: Vec<_> = (0..self.rng.usize(1..14))
                .map(|_| match self.rng.u8(..3) {
                    0 => MISHAPS[self.rng.usize(..MISHAPS.len())],
                    _ => Mishap::None,
                })
                .collect();
            self.fake.mishaps(mishaps);
        }
        let outcome = self
            .process
            .deploy_until_killed(&self.fake, &build(number, does))
            .await;
        self.fake.kill_at(None);
        self.fake.mishaps([]);
        let ended = outcome.as_ref().map(|outcome| (outcome.status, &outcome.reasons));
        self.story.push(format!(
            "disturbed, {number} ({does}) ends {ended:?}; {:?} answers",
            answering(&self.fake)
        ));
        if outcome.is_none() {
            self.process = Process::start();
        }
        // Whether it was brought to run is open now, where it can be.
        if does == "good" && self.may_answer.iter().all(|other| *other <= Some(number)) {
            self.may_answer.insert(Some(number));
        }
    }

    async fn undisturbed(&mut self, number: u64, told: &str) {
        let does = self.does(number);
        let outcome = self.process.deploy(&self.fake, &build(number, does)).await;
        let answering = answering(&self.fake);
        let told = format!(
            "{:#?}\n{told}: build {number} is {does}, {answering:?} answers, of {:?}: {outcome:#?}",
            self.story, self.may_answer
        );
        self.story.push(format!(
            "{number} ({does}) ends {:?}; {answering:?} answers",
            outcome.status
        ));
        match outcome.status {
            Status::Ready => {
                assert_eq!((does, answering), ("good", Some(number)), "{told}");
                let newest = self.may_answer.iter().min().copied().flatten();
                assert!(newest <= Some(number), "an older one has replaced it: {told}");
                self.may_answer = [Some(number)].into();
            }
            Status::RolledBack | Status::Refused => {
                assert!(self.may_answer.contains(&answering), "{told}");
                let older = self.may_answer.iter().any(|other| *other > Some(number));
                assert!(does != "good" || older, "a good version does not run: {told}");
                self.may_answer = [answering].into();
            }
            // Only where there never was anything that could be put back.
            Status::Failed => {
                assert!(does != "good" && self.may_answer.contains(&None), "{told}");
                assert_eq!(answering, None, "{told}");
            }
        }
        self.told_truly(&outcome, answering, &told);
    }

    /// The report names the image that answers.
    fn told_truly(&self, outcome: &Outcome, answering: Option<u64>, told: &str) {
        match (&outcome.running, answering) {
            (Running::Function { image: named, .. }, Some(number)) => {
                assert_eq!(*named, image(number, self.does(number)), "{told}");
            }
            (_, None) => assert_ne!(outcome.status, Status::Ready, "{told}"),
            (other, Some(_)) => {
                let something = matches!(other, Running::Function { .. });
                assert!(something, "{other:?}, and something runs: {told}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_a_good_version_runs_and_is_told() {
    for manners in [Manners::Kubernetes, Manners::Faasd, Manners::Good] {
        for seed in 0..SEQUENCES {
            let mut world = World::new(manners, seed);
            for step in 0..DEPLOYMENTS {
                let number = world.pick();
                let told = format!("{manners:?}, seed {seed}, step {step}");
                if world.rng.u8(..3) == 0 {
                    world.disturbed(number).await;
                    // Delivered again, as a queue does it; or forgotten.
                    if world.rng.u8(..3) == 0 {
                        continue;
                    }
                }
                world.undisturbed(number, &told).await;
                if world.rng.u8(..4) == 0 {
                    world.process = Process::start();
                }
            }
        }
    }
}
