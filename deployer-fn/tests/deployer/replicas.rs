//! Tests of several deployers on one gateway: newer builds that wait in one process, and processes that know
//! nothing of each other.

use std::time::Duration;

use deployer_fn::{DeploymentStatus as Status, Fault, Outcome, Successor, SuccessorReceiver};
use fastrand::Rng;
use tokio::time::{Instant, sleep};

use crate::fake::{FakeGateway, Provider};
use crate::scenarios::{Process, answering, build, image};

const PROVIDERS: [Provider; 3] = [Provider::Kubernetes, Provider::Faasd, Provider::Rolling];
const SEQUENCES: u64 = 40;
const ROUNDS: usize = 4;

fn call(number: u64) -> Option<Successor> {
    let call_id = Some(format!("call-{number}"));
    Some(Successor { call_id })
}

/// Deploys build 2, and lets build 3 arrive after some seconds.
async fn deploy_until_build_3_waits(fake: &FakeGateway, process: &Process, behaviour: &str) -> Outcome {
    let (announcer, succession) = SuccessorReceiver::channel(None);
    let older = build(2, behaviour);
    let arrival = async {
        sleep(Duration::from_secs(5)).await;
        announcer.send_replace(call(3));
    };
    let (outcome, ()) = tokio::join!(process.deploy_before(fake, &older, &succession), arrival);
    outcome
}

#[tokio::test(start_paused = true)]
async fn an_older_build_that_is_not_ready_yields_to_a_newer_one_that_waits() {
    for (provider, older) in [
        (Provider::Kubernetes, "missing"),
        (Provider::Kubernetes, "silent"),
        (Provider::Kubernetes, "bad"),
        (Provider::Faasd, "silent"),
        (Provider::Faasd, "bad"),
        (Provider::Rolling, "crash"),
        (Provider::Rolling, "bad"),
    ] {
        for (newer, status, runs) in [("good", Status::Ready, 3), ("bad", Status::RolledBack, 1)] {
            let (fake, process) = (FakeGateway::new(provider), Process::start());
            process.deploy(&fake, &build(1, "good")).await;
            let started = Instant::now();
            let outcome = deploy_until_build_3_waits(&fake, &process, older).await;
            let story = format!("{provider:?} {older} {newer}: {outcome:#?}");
            assert_eq!(outcome.status, Status::Refused, "{story}");
            assert_eq!(outcome.superseded_by, call(3), "{story}");
            assert_eq!(outcome.fault, Some(Fault::Caller), "{story}");
            assert!(started.elapsed() < Duration::from_secs(10), "{story}");
            // It is not rolled back.
            assert_eq!(fake.deployment("hello").unwrap()["image"], image(2, older));

            let outcome = process.deploy(&fake, &build(3, newer)).await;
            let story = format!("{provider:?} {older} {newer}: {outcome:#?}");
            assert_eq!(
                (outcome.status, answering(&fake)),
                (status, Some(runs)),
                "{story}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_build_that_is_not_applied_yet_yields_without_a_change() {
    let (fake, process) = (FakeGateway::new(Provider::Faasd), Process::start());
    process.deploy(&fake, &build(1, "good")).await;
    let changes = fake.changes();
    let (_announcer, succession) = SuccessorReceiver::channel(call(3));
    let outcome = process.deploy_before(&fake, &build(2, "good"), &succession).await;
    assert_eq!(
        (outcome.status, outcome.superseded_by),
        (Status::Refused, call(3))
    );
    assert_eq!((outcome.changed, fake.changes()), (false, changes));
}

#[tokio::test(start_paused = true)]
async fn a_build_that_became_ready_in_time_does_not_yield() {
    for provider in PROVIDERS {
        let (fake, process) = (FakeGateway::new(provider), Process::start());
        process.deploy(&fake, &build(1, "good")).await;
        let outcome = deploy_until_build_3_waits(&fake, &process, "good").await;
        assert_eq!(outcome.status, Status::Ready, "{outcome:#?}");
    }
}

/// If the newer build did not restore the older one's function, nobody would.
#[tokio::test(start_paused = true)]
async fn a_newer_build_that_is_refused_restores_what_the_older_one_left() {
    let refused = |number| {
        let mut refused = build(number, "good");
        refused.spec.secrets.push("unknown".to_owned());
        refused
    };
    for provider in PROVIDERS {
        for existed in [true, false] {
            let (fake, process) = (FakeGateway::new(provider), Process::start());
            if existed {
                process.deploy(&fake, &build(1, "good")).await;
            }
            let outcome = deploy_until_build_3_waits(&fake, &process, "bad").await;
            assert_eq!(outcome.superseded_by, call(3), "{provider:?} {outcome:#?}");
            let outcome = process.deploy(&fake, &refused(3)).await;
            let story = format!("{provider:?} {existed}: {outcome:#?}");
            assert_eq!(outcome.status, Status::Refused, "{story}");
            assert_eq!(answering(&fake), existed.then_some(1), "{story}");
            assert_eq!(fake.deployment("hello").is_some(), existed, "{story}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn another_replicas_newer_build_is_neither_overwritten_nor_rolled_back() {
    for provider in PROVIDERS {
        for older in ["good", "bad", "crash"] {
            // The newer build arrives before, while and after the older one is applied and watched.
            for delay in [0, 1, 2, 3, 4, 5, 10, 1000, 30_000, 55_000, 60_000] {
                let fake = FakeGateway::new(provider);
                Process::start().deploy(&fake, &build(1, "good")).await;
                let newer = async {
                    sleep(Duration::from_millis(delay)).await;
                    Process::start().deploy(&fake, &build(3, "good")).await
                };
                let older_build = build(2, older);
                let process = Process::start();
                let (older_outcome, newer_outcome) = tokio::join!(process.deploy(&fake, &older_build), newer);
                let story = format!("{provider:?} {older} {delay}: {older_outcome:#?} {newer_outcome:#?}");
                assert_eq!(newer_outcome.status, Status::Ready, "{story}");
                assert_eq!(answering(&fake), Some(3), "{story}");
                match older_outcome.status {
                    // It ended before.
                    Status::Ready => assert_eq!(older, "good", "{story}"),
                    Status::RolledBack => assert!(older != "good" && delay > 1000, "{story}"),
                    Status::Refused => assert_eq!(older_outcome.superseded_by, call(3), "{story}"),
                    Status::Failed | Status::Unverified => panic!("{story}"),
                }
            }
        }
    }
}

/// Runs random histories of replicas that deploy at the same time.
#[tokio::test(start_paused = true)]
async fn replicas_end_with_the_newest_build_that_works() {
    for provider in PROVIDERS {
        for seed in 0..SEQUENCES {
            let mut rng = Rng::with_seed(seed);
            let fake = FakeGateway::new(provider);
            let replicas = [Process::start(), Process::start(), Process::start()];
            let mut number = 0;
            let mut newest_ready = None;
            let mut history = Vec::new();
            for round in 0..ROUNDS {
                let mut deployments = Vec::new();
                let mut newest = (0, "good");
                let first = rng.usize(..3);
                for replica in first..first + rng.usize(2..=3) {
                    number += 1;
                    let behaviour = ["good", "good", "bad", "crash"][rng.usize(..4)];
                    newest = (number, behaviour);
                    let delay = [5, 50, 20_000][rng.usize(..3)];
                    let delay = Duration::from_millis(rng.u64(..delay));
                    let (fake, process) = (fake.clone(), replicas[replica % 3].clone());
                    deployments.push(tokio::spawn(async move {
                        sleep(delay).await;
                        (number, process.deploy(&fake, &build(number, behaviour)).await)
                    }));
                    history.push(format!("round {round}: {number} is {behaviour}, after {delay:?}"));
                }
                for deployment in deployments {
                    let (number, outcome) = deployment.await.unwrap();
                    if outcome.status == Status::Ready {
                        newest_ready = newest_ready.max(Some(number));
                    }
                    history.push(format!(
                        "{number} ends {:?}: {:?}",
                        outcome.status, outcome.reasons
                    ));
                }
                let answering = answering(&fake);
                let story = format!("{provider:?}, seed {seed}: {history:#?}, {answering:?} answers");
                if newest.1 == "good" {
                    assert_eq!(answering, Some(newest.0), "{story}");
                }
                assert!(answering >= newest_ready, "{story}");
            }
        }
    }
}
