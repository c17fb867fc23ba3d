//! Tests of several deployers on one gateway: newer builds that wait in one process, and processes that know
//! nothing of each other.

use std::time::Duration;

use deployer_fn::{
    DeploymentOutcome, DeploymentStatus as Status, FaultyParty, SuccessorCallId, SuccessorReceiver,
};
use fastrand::Rng;
use tokio::time::{Instant, sleep};

use crate::fake::{FakeGateway, ProviderKind};
use crate::scenarios::{SimulatedDeployer, answering_build_number, hand_over_of_build, image_of_build};

const TESTED_PROVIDERS: [ProviderKind; 3] = [
    ProviderKind::Kubernetes,
    ProviderKind::Faasd,
    ProviderKind::Rolling,
];
/// The number of random histories for each provider; each has its own seed.
const RANDOM_HISTORIES_PER_PROVIDER: u64 = 40;
/// The number of times in a history that two or three replicas deploy at the same time.
const DEPLOYMENT_ROUNDS_PER_HISTORY: usize = 4;

fn some_successor_with_call_number(number: u64) -> Option<SuccessorCallId> {
    let call_id = Some(format!("call-{number}"));
    Some(SuccessorCallId { call_id })
}

/// Deploys build 2, and announces to it after 7 s that build 3 waits; returns the outcome of build 2.
async fn deploy_build_2_and_announce_build_3_after_7_s(
    fake: &FakeGateway,
    process: &SimulatedDeployer,
    behaviour_of_build_2: &str,
) -> DeploymentOutcome {
    let (announcer, succession) = SuccessorReceiver::channel_with_successor(None);
    let older = hand_over_of_build(2, behaviour_of_build_2);
    let arrival = async {
        sleep(Duration::from_secs(7)).await;
        announcer.send_replace(some_successor_with_call_number(3));
    };
    let (outcome, ()) = tokio::join!(
        process.deploy_yielding_to_announced_successor(fake, &older, &succession),
        arrival
    );
    outcome
}

#[tokio::test(start_paused = true)]
async fn an_older_build_that_is_not_ready_yields_to_a_newer_one_that_waits() {
    for (provider, older) in [
        (ProviderKind::Kubernetes, "missing"),
        (ProviderKind::Kubernetes, "silent"),
        (ProviderKind::Kubernetes, "bad"),
        (ProviderKind::Faasd, "silent"),
        (ProviderKind::Faasd, "bad"),
        (ProviderKind::Rolling, "crash"),
        (ProviderKind::Rolling, "bad"),
    ] {
        for (newer, status, runs) in [("good", Status::Ready, 3), ("bad", Status::RolledBack, 1)] {
            let (fake, process) = (FakeGateway::new(provider), SimulatedDeployer::start());
            process.deploy(&fake, &hand_over_of_build(1, "good")).await;
            let started = Instant::now();
            let outcome = deploy_build_2_and_announce_build_3_after_7_s(&fake, &process, older).await;
            let story = format!("{provider:?} {older} {newer}: {outcome:#?}");
            assert_eq!(outcome.status, Status::Refused, "{story}");
            assert_eq!(
                outcome.superseded_by,
                some_successor_with_call_number(3),
                "{story}"
            );
            assert_eq!(outcome.fault, Some(FaultyParty::Caller), "{story}");
            assert!(started.elapsed() < Duration::from_secs(10), "{story}");
            // It is not rolled back.
            assert_eq!(
                fake.last_set_deployment("hello").unwrap()["image"],
                image_of_build(2, older)
            );

            let outcome = process.deploy(&fake, &hand_over_of_build(3, newer)).await;
            let story = format!("{provider:?} {older} {newer}: {outcome:#?}");
            assert_eq!(
                (outcome.status, answering_build_number(&fake)),
                (status, Some(runs)),
                "{story}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_build_that_is_not_applied_yet_yields_to_a_newer_one_without_a_change() {
    let (fake, process) = (FakeGateway::new(ProviderKind::Faasd), SimulatedDeployer::start());
    process.deploy(&fake, &hand_over_of_build(1, "good")).await;
    let changes = fake.change_request_count();
    let (_announcer, succession) =
        SuccessorReceiver::channel_with_successor(some_successor_with_call_number(3));
    let outcome = process
        .deploy_yielding_to_announced_successor(&fake, &hand_over_of_build(2, "good"), &succession)
        .await;
    assert_eq!(
        (outcome.status, outcome.superseded_by),
        (Status::Refused, some_successor_with_call_number(3))
    );
    assert_eq!((outcome.changed, fake.change_request_count()), (false, changes));
}

#[tokio::test(start_paused = true)]
async fn a_build_that_is_ready_before_a_newer_one_is_announced_is_reported_ready() {
    for provider in TESTED_PROVIDERS {
        let (fake, process) = (FakeGateway::new(provider), SimulatedDeployer::start());
        process.deploy(&fake, &hand_over_of_build(1, "good")).await;
        let outcome = deploy_build_2_and_announce_build_3_after_7_s(&fake, &process, "good").await;
        assert_eq!(outcome.status, Status::Ready, "{outcome:#?}");
    }
}

/// If the newer build did not restore the older one's function, nobody would.
#[tokio::test(start_paused = true)]
async fn a_newer_build_that_is_not_deployed_restores_the_version_before_the_older_one_that_yielded() {
    let refused = |number| {
        let mut refused = hand_over_of_build(number, "good");
        refused.spec.secrets.push("unknown".to_owned());
        refused
    };
    for provider in TESTED_PROVIDERS {
        for existed in [true, false] {
            let (fake, process) = (FakeGateway::new(provider), SimulatedDeployer::start());
            if existed {
                process.deploy(&fake, &hand_over_of_build(1, "good")).await;
            }
            let outcome = deploy_build_2_and_announce_build_3_after_7_s(&fake, &process, "bad").await;
            assert_eq!(
                outcome.superseded_by,
                some_successor_with_call_number(3),
                "{provider:?} {outcome:#?}"
            );
            let outcome = process.deploy(&fake, &refused(3)).await;
            let story = format!("{provider:?} {existed}: {outcome:#?}");
            let expected = match provider {
                // Refused by the provider itself, while the older build is still applied.
                ProviderKind::Kubernetes => Status::RolledBack,
                _ => Status::Refused,
            };
            assert_eq!(outcome.status, expected, "{story}");
            assert_eq!(answering_build_number(&fake), existed.then_some(1), "{story}");
            assert_eq!(fake.last_set_deployment("hello").is_some(), existed, "{story}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn another_replicas_newer_build_is_neither_overwritten_nor_rolled_back() {
    for provider in TESTED_PROVIDERS {
        for older in ["good", "bad", "crash"] {
            // The newer build arrives before, while and after the older one is applied and watched.
            for delay in [0, 1, 2, 3, 4, 5, 10, 1000, 30_000, 55_000, 60_000] {
                let fake = FakeGateway::new(provider);
                SimulatedDeployer::start()
                    .deploy(&fake, &hand_over_of_build(1, "good"))
                    .await;
                let newer = async {
                    sleep(Duration::from_millis(delay)).await;
                    SimulatedDeployer::start()
                        .deploy(&fake, &hand_over_of_build(3, "good"))
                        .await
                };
                let older_build = hand_over_of_build(2, older);
                let process = SimulatedDeployer::start();
                let (older_outcome, newer_outcome) = tokio::join!(process.deploy(&fake, &older_build), newer);
                let story = format!("{provider:?} {older} {delay}: {older_outcome:#?} {newer_outcome:#?}");
                assert_eq!(newer_outcome.status, Status::Ready, "{story}");
                assert_eq!(answering_build_number(&fake), Some(3), "{story}");
                match older_outcome.status {
                    // It ended before.
                    Status::Ready => assert_eq!(older, "good", "{story}"),
                    Status::RolledBack => assert!(older != "good" && delay > 1000, "{story}"),
                    Status::Refused => assert_eq!(
                        older_outcome.superseded_by,
                        some_successor_with_call_number(3),
                        "{story}"
                    ),
                    Status::Failed | Status::Unverified => panic!("{story}"),
                }
            }
        }
    }
}

/// Runs random histories of replicas that deploy at the same time.
#[tokio::test(start_paused = true)]
async fn several_deployer_replicas_end_with_the_newest_build_that_works() {
    for provider in TESTED_PROVIDERS {
        for seed in 0..RANDOM_HISTORIES_PER_PROVIDER {
            let mut rng = Rng::with_seed(seed);
            let fake = FakeGateway::new(provider);
            let replicas = [
                SimulatedDeployer::start(),
                SimulatedDeployer::start(),
                SimulatedDeployer::start(),
            ];
            let mut number = 0;
            let mut newest_ready = None;
            let mut history = Vec::new();
            for round in 0..DEPLOYMENT_ROUNDS_PER_HISTORY {
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
                        (
                            number,
                            process
                                .deploy(&fake, &hand_over_of_build(number, behaviour))
                                .await,
                        )
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
                let answering = answering_build_number(&fake);
                let story = format!("{provider:?}, seed {seed}: {history:#?}, {answering:?} answers");
                if newest.1 == "good" {
                    assert_eq!(answering, Some(newest.0), "{story}");
                }
                assert!(answering >= newest_ready, "{story}");
            }
        }
    }
}
