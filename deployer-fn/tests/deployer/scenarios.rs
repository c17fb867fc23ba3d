//! Tests sequences of deployments on a gateway that keeps state, most of them for every kind of provider.

use std::time::Duration;

use deployer_fn::{
    DeploymentOutcome, DeploymentStatus as Status, FaultyParty, FunctionSpec, HandOver, Kubernetes,
    KubernetesReader, PinnedImage, ReadinessProbe, RolloutContext, RolloutDeadline, RolloutHistory,
    RolloutPartTimeouts, RunningState, SuccessorCallId, SuccessorReceiver, roll_out_hand_over,
};
use function_host::Shutdown;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::fake::{DisruptionOrNone, FakeGateway, ProviderKind};

const TESTED_PROVIDERS: [ProviderKind; 3] = [
    ProviderKind::Kubernetes,
    ProviderKind::Faasd,
    ProviderKind::Rolling,
];

/// Returns the hand-over of the build with this number, whose image has this behaviour. Higher numbers are
/// newer builds.
pub(crate) fn hand_over_of_build(number: u64, behaviour: &str) -> HandOver {
    HandOver {
        spec: FunctionSpec {
            service: "hello".to_owned(),
            image: PinnedImage::parse_pinned(&image_of_build(number, behaviour)).unwrap(),
            namespace: None,
            env_process: None,
            env_vars: [("BUILD".to_owned(), number.to_string())].into(),
            constraints: vec![],
            secrets: vec!["api-key".to_owned()],
            labels: Default::default(),
            annotations: Default::default(),
            limits: None,
            requests: None,
            read_only_root_filesystem: true,
        },
        tag: None,
        tenant: None,
        call_id: Some(format!("call-{number}")),
        submitted_at: Some(Timestamp::from_second(1_700_000_000 + number as i64).unwrap()),
        // A build that was submitted later may end earlier.
        built_at: Some(Timestamp::from_second(1_700_001_000 - number as i64).unwrap()),
        expires_at: None,
        probe: ReadinessProbe::default(),
        warnings: vec![],
    }
}

pub(crate) fn image_of_build(number: u64, behaviour: &str) -> String {
    format!("registry.example/hello-{behaviour}@sha256:{number:064x}")
}

/// A stand-in for a process of the deployer: a history of rollouts of its own, and Kubernetes if it may read that.
#[derive(Clone)]
pub(crate) struct SimulatedDeployer(RolloutHistory, Option<Kubernetes>);

impl SimulatedDeployer {
    pub(crate) fn start() -> Self {
        Self(RolloutHistory::default(), None)
    }

    /// Starts a process that reads from this Kubernetes.
    pub(crate) fn start_with_kubernetes(kubernetes: impl KubernetesReader + 'static) -> Self {
        Self(RolloutHistory::default(), Some(Kubernetes::new(kubernetes)))
    }

    pub(crate) async fn deploy(&self, fake: &FakeGateway, hand_over: &HandOver) -> DeploymentOutcome {
        self.deploy_yielding_to_announced_successor(fake, hand_over, &SuccessorReceiver::without_successor())
            .await
    }

    /// Deploys a hand-over, which yields to a newer build once `succession` announces one.
    pub(crate) async fn deploy_yielding_to_announced_successor(
        &self,
        fake: &FakeGateway,
        hand_over: &HandOver,
        succession: &SuccessorReceiver,
    ) -> DeploymentOutcome {
        let (_trigger, shutdown) = Shutdown::new();
        let deadline = RolloutDeadline::new(Duration::from_secs(50), None, shutdown);
        let context = RolloutContext {
            transport: fake,
            kubernetes: self.1.as_ref(),
            timeouts: &RolloutPartTimeouts::default(),
            default_namespace: "openfaas-fn",
            history: &self.0,
            tenant: None,
            succession,
        };
        roll_out_hand_over(&context, hand_over, vec![], &deadline, String::new()).await
    }

    /// Deploys a hand-over until the end; returns `None` if the process is killed before.
    pub(crate) async fn deploy_until_killed(
        &self,
        fake: &FakeGateway,
        hand_over: &HandOver,
    ) -> Option<DeploymentOutcome> {
        tokio::select! {
            outcome = self.deploy(fake, hand_over) => Some(outcome),
            () = fake.wait_until_kill_is_due() => None,
        }
    }
}

#[track_caller]
fn assert_status_and_fault(outcome: &DeploymentOutcome, status: Status, fault: Option<FaultyParty>) {
    assert_eq!((outcome.status, outcome.fault), (status, fault), "{outcome:#?}");
}

#[track_caller]
fn assert_reason_contains(outcome: &DeploymentOutcome, text: &str) {
    assert!(
        outcome.reasons.iter().any(|reason| reason.contains(text)),
        "no reason contains {text:?}: {outcome:#?}"
    );
}

/// Returns the number of the build that answers calls with 200; `None` if none does.
pub(crate) fn answering_build_number(fake: &FakeGateway) -> Option<u64> {
    let deployment = fake.deployment_answering_with_200("hello")?;
    Some(deployment["envVars"]["BUILD"].as_str()?.parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_function_is_created_and_updated_and_a_repeated_delivery_changes_nothing() {
    for provider in TESTED_PROVIDERS {
        let (fake, process) = (FakeGateway::new(provider), SimulatedDeployer::start());
        let created = process.deploy(&fake, &hand_over_of_build(1, "good")).await;
        assert_status_and_fault(&created, Status::Ready, None);
        assert_eq!(created.previous_image, None);
        let updated = process.deploy(&fake, &hand_over_of_build(2, "good")).await;
        assert_status_and_fault(&updated, Status::Ready, None);
        assert_eq!(updated.previous_image, Some(image_of_build(1, "good")));
        assert_eq!(answering_build_number(&fake), Some(2));

        let changes = fake.change_request_count();
        let repeated = process.deploy(&fake, &hand_over_of_build(2, "good")).await;
        assert_status_and_fault(&repeated, Status::Ready, None);
        assert!(!repeated.changed);
        assert_eq!(fake.change_request_count(), changes);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_version_is_replaced_by_the_previous_one_with_its_environment() {
    for provider in TESTED_PROVIDERS {
        for behaviour in ["missing", "silent", "crash", "bad"] {
            let fake = FakeGateway::new(provider);
            let process = SimulatedDeployer::start();
            assert_status_and_fault(
                &process.deploy(&fake, &hand_over_of_build(1, "good")).await,
                Status::Ready,
                None,
            );
            // A new process does not remember which version was good.
            let process = SimulatedDeployer::start();
            let outcome = process.deploy(&fake, &hand_over_of_build(2, behaviour)).await;
            // The rolling provider starts the new version itself, and rejects one that does not listen.
            let expected = match (provider, behaviour) {
                (ProviderKind::Rolling, "silent") => Status::Refused,
                _ => Status::RolledBack,
            };
            assert_eq!(outcome.status, expected, "{provider:?} {behaviour} {outcome:#?}");
            assert_eq!(answering_build_number(&fake), Some(1), "{provider:?} {behaviour}");
            let runs = RunningState::Function {
                image: image_of_build(1, "good"),
                available_replicas: 1,
            };
            assert_eq!(outcome.running, runs, "{provider:?} {behaviour}");
            let restored = fake.last_set_deployment("hello").unwrap();
            assert_eq!(restored["envVars"]["BUILD"], "1");

            // A repeated delivery is known to fail, also to a new process.
            let changes = fake.change_request_count();
            for process in [process, SimulatedDeployer::start()] {
                let repeated = process.deploy(&fake, &hand_over_of_build(2, behaviour)).await;
                assert_eq!(
                    repeated.status, expected,
                    "{provider:?} {behaviour} {repeated:#?}"
                );
                if !(provider == ProviderKind::Rolling && matches!(behaviour, "missing" | "silent")) {
                    assert_eq!(fake.change_request_count(), changes, "{provider:?} {behaviour}");
                    assert_eq!(repeated.previous_image, outcome.previous_image);
                }
            }
            // A newer build is not affected.
            assert_status_and_fault(
                &SimulatedDeployer::start()
                    .deploy(&fake, &hand_over_of_build(3, "good"))
                    .await,
                Status::Ready,
                None,
            );
            assert_eq!(answering_build_number(&fake), Some(3));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_version_that_does_not_run_is_deleted() {
    for provider in TESTED_PROVIDERS {
        for behaviour in ["silent", "crash", "bad"] {
            let fake = FakeGateway::new(provider);
            let outcome = SimulatedDeployer::start()
                .deploy(&fake, &hand_over_of_build(1, behaviour))
                .await;
            assert_status_and_fault(&outcome, Status::RolledBack, Some(FaultyParty::Caller));
            assert_eq!(outcome.running, RunningState::Nothing);
            assert_eq!(
                fake.last_set_deployment("hello"),
                None,
                "{provider:?} {behaviour}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn missing_secrets_and_namespaces_are_refused_without_a_change() {
    for provider in TESTED_PROVIDERS {
        let (fake, process) = (FakeGateway::new(provider), SimulatedDeployer::start());
        process.deploy(&fake, &hand_over_of_build(1, "good")).await;
        let mut wrong = hand_over_of_build(2, "good");
        wrong.spec.secrets.extend(["one".to_owned(), "two".to_owned()]);
        let changes = fake.change_request_count();
        let outcome = process.deploy(&fake, &wrong).await;
        assert_status_and_fault(&outcome, Status::Refused, Some(FaultyParty::Caller));
        assert!(!outcome.changed, "{outcome:#?}");
        if provider == ProviderKind::Kubernetes {
            // It does not list all secrets, so only its answer to the update shows that one does not exist.
            assert_reason_contains(&outcome, "secrets \"one\" not found");
        } else {
            assert_eq!(outcome.reasons.len(), 2, "{outcome:#?}");
            assert_eq!(fake.change_request_count(), changes);
        }
        let changes = fake.change_request_count();
        wrong.spec.namespace = Some("nowhere".to_owned());
        let outcome = process.deploy(&fake, &wrong).await;
        assert_status_and_fault(&outcome, Status::Refused, Some(FaultyParty::Caller));
        assert_reason_contains(&outcome, "namespace \"nowhere\" does not exist");
        assert_eq!(
            (fake.change_request_count(), answering_build_number(&fake)),
            (changes, Some(1))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_older_build_does_not_replace_a_newer_one_that_works() {
    for provider in TESTED_PROVIDERS {
        let fake = FakeGateway::new(provider);
        SimulatedDeployer::start()
            .deploy(&fake, &hand_over_of_build(5, "good"))
            .await;
        let outcome = SimulatedDeployer::start()
            .deploy(&fake, &hand_over_of_build(4, "good"))
            .await;
        assert_status_and_fault(&outcome, Status::Refused, Some(FaultyParty::Caller));
        assert_reason_contains(&outcome, "a newer build is deployed");
        let by = Some("call-5".to_owned());
        assert_eq!(outcome.superseded_by, Some(SuccessorCallId { call_id: by }));
        assert_eq!(answering_build_number(&fake), Some(5));
    }
}

/// Returns the hand-over of a build with the behaviour `good` by a builder whose release sent no `submittedAt`; the
/// build ended `build_end_seconds` seconds after a fixed time.
fn good_hand_over_without_submitted_at(number: u64, build_end_seconds: i64) -> HandOver {
    HandOver {
        submitted_at: None,
        built_at: Some(Timestamp::from_second(1_700_000_000 + build_end_seconds).unwrap()),
        ..hand_over_of_build(number, "good")
    }
}

#[tokio::test(start_paused = true)]
async fn builds_are_ordered_by_submission_if_both_builders_send_it_and_else_by_the_build_end() {
    let ended = |number, ended| HandOver {
        submitted_at: hand_over_of_build(number, "good").submitted_at,
        ..good_hand_over_without_submitted_at(number, ended)
    };
    for (deployed, handed_over, replaced) in [
        // Annotations of an earlier release.
        (good_hand_over_without_submitted_at(1, 100), ended(2, 101), true),
        (good_hand_over_without_submitted_at(2, 100), ended(1, 99), false),
        // A builder of an earlier release.
        (ended(1, 100), good_hand_over_without_submitted_at(2, 101), true),
        (ended(2, 100), good_hand_over_without_submitted_at(1, 99), false),
        (
            good_hand_over_without_submitted_at(2, 100),
            good_hand_over_without_submitted_at(1, 99),
            false,
        ),
        // Of one release, the end of the build does not matter.
        (ended(1, 100), ended(2, 99), true),
        (ended(2, 99), ended(1, 100), false),
    ] {
        let fake = FakeGateway::new(ProviderKind::Kubernetes);
        SimulatedDeployer::start().deploy(&fake, &deployed).await;
        let outcome = SimulatedDeployer::start().deploy(&fake, &handed_over).await;
        let status = if replaced { Status::Ready } else { Status::Refused };
        assert_eq!(outcome.status, status, "{deployed:?} {handed_over:?}");
        assert_eq!(outcome.superseded_by.is_some(), !replaced);
    }
}

/// A clock that was ahead once must not lock the function.
#[tokio::test(start_paused = true)]
async fn only_a_version_dated_more_than_five_minutes_ahead_is_replaced_by_an_older_build() {
    let fake = FakeGateway::new(ProviderKind::Kubernetes);
    let ahead = |minutes| Timestamp::now() + SignedDuration::from_mins(minutes);
    let of = |number, at| HandOver {
        submitted_at: Some(at),
        built_at: None,
        ..hand_over_of_build(number, "good")
    };
    SimulatedDeployer::start().deploy(&fake, &of(1, ahead(6))).await;
    let outcome = SimulatedDeployer::start().deploy(&fake, &of(2, ahead(0))).await;
    assert_status_and_fault(&outcome, Status::Ready, None);
    // Within the bound, it orders.
    let outcome = SimulatedDeployer::start().deploy(&fake, &of(3, ahead(-1))).await;
    assert_status_and_fault(&outcome, Status::Refused, Some(FaultyParty::Caller));
}

#[tokio::test(start_paused = true)]
async fn a_function_not_deployed_by_slipway_is_restored_from_its_status() {
    for provider in [ProviderKind::Kubernetes, ProviderKind::Faasd] {
        let fake = FakeGateway::new(provider);
        // Otherwise its answers would be taken for the new version's, as they have no version header
        // (docs/pitfalls.md#old-replicas-count-as-available).
        fake.stop_old_version_before_new_is_up();
        fake.deploy_without_deployer(
            json!({"service": "hello", "image": "registry.example/hello-good:1",
            "envVars": {"BUILD": "0"}, "annotations": {"topic": "x"}, "secrets": ["api-key"]}),
        );
        let outcome = SimulatedDeployer::start()
            .deploy(&fake, &hand_over_of_build(1, "crash"))
            .await;
        assert_status_and_fault(&outcome, Status::RolledBack, Some(FaultyParty::Caller));
        let restored = fake.last_set_deployment("hello").unwrap();
        assert_eq!(restored["image"], "registry.example/hello-good:1");
        assert_eq!(restored["annotations"]["topic"], "x");
        assert_eq!(restored["secrets"], json!(["api-key"]));
        if provider == ProviderKind::Kubernetes {
            assert_reason_contains(&outcome, "environment variables may have been lost");
            assert_eq!(restored["envVars"], Value::Null);
        } else {
            assert_eq!(restored["envVars"]["BUILD"], "0");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_good_version_is_restored_even_if_the_deployed_one_never_was_good() {
    for provider in TESTED_PROVIDERS {
        let (fake, process) = (FakeGateway::new(provider), SimulatedDeployer::start());
        process.deploy(&fake, &hand_over_of_build(1, "good")).await;
        // Killed while it watches the bad version, whose hand-over is not delivered again.
        fake.kill_deployer_at_request(Some((7, true)));
        assert!(
            process
                .deploy_until_killed(&fake, &hand_over_of_build(2, "bad"))
                .await
                .is_none()
        );
        fake.kill_deployer_at_request(None);
        // On Kubernetes the old version may still answer.
        if provider != ProviderKind::Kubernetes {
            assert_eq!(answering_build_number(&fake), None);
        }

        let outcome = SimulatedDeployer::start()
            .deploy(&fake, &hand_over_of_build(3, "crash"))
            .await;
        assert_status_and_fault(&outcome, Status::RolledBack, Some(FaultyParty::Caller));
        assert_eq!(answering_build_number(&fake), Some(1), "{provider:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_function_that_lost_its_kubernetes_service_is_deployed_again() {
    let (fake, process) = (
        FakeGateway::new(ProviderKind::Kubernetes),
        SimulatedDeployer::start(),
    );
    process.deploy(&fake, &hand_over_of_build(1, "good")).await;
    fake.remove_kubernetes_service("hello");
    let outcome = process.deploy(&fake, &hand_over_of_build(2, "good")).await;
    assert_status_and_fault(&outcome, Status::Ready, None);
    assert_eq!(answering_build_number(&fake), Some(2));
}

#[tokio::test(start_paused = true)]
async fn an_update_that_kubernetes_ignores_leaves_the_old_version() {
    let (fake, process) = (
        FakeGateway::new(ProviderKind::Kubernetes),
        SimulatedDeployer::start(),
    );
    process.deploy(&fake, &hand_over_of_build(1, "good")).await;
    let mut impossible = hand_over_of_build(2, "good");
    impossible.spec.constraints = vec!["impossible".to_owned()];
    let outcome = process.deploy(&fake, &impossible).await;
    assert_status_and_fault(&outcome, Status::RolledBack, Some(FaultyParty::Platform));
    assert_reason_contains(
        &outcome,
        "PUT with 200 and no text, but the provider did not take",
    );
    assert_eq!(answering_build_number(&fake), Some(1));
}

#[tokio::test(start_paused = true)]
async fn another_clients_deployment_in_the_meantime_is_kept() {
    let (fake, process) = (FakeGateway::new(ProviderKind::Faasd), SimulatedDeployer::start());
    process.deploy(&fake, &hand_over_of_build(1, "good")).await;
    let bad = hand_over_of_build(2, "bad");
    let deployment = process.deploy(&fake, &bad);
    let other_client = async {
        // While the bad version is watched.
        tokio::time::sleep(Duration::from_secs(20)).await;
        fake.deploy_without_deployer(
            json!({"service": "hello", "image": "registry.example/hello-good:9", "envVars": {"BUILD": "9"}}),
        );
    };
    let (outcome, ()) = tokio::join!(deployment, other_client);
    assert_eq!(outcome.status, Status::Failed, "{outcome:#?}");
    assert_reason_contains(&outcome, "another client has deployed");
    assert_eq!(answering_build_number(&fake), Some(9));
}

#[tokio::test(start_paused = true)]
async fn after_a_panic_in_a_rollout_what_runs_is_reported_and_the_next_hand_over_works() {
    for provider in TESTED_PROVIDERS {
        for (behaviour, request) in (1..10).flat_map(|request| [("good", request), ("crash", request)]) {
            let (fake, process) = (FakeGateway::new(provider), SimulatedDeployer::start());
            process.deploy(&fake, &hand_over_of_build(1, "good")).await;
            fake.panic_deployer_at_request(Some(request));
            let outcome = process.deploy(&fake, &hand_over_of_build(2, behaviour)).await;
            fake.panic_deployer_at_request(None);
            let story = format!("{provider:?} {behaviour} {request}: {outcome:#?}");
            if outcome
                .reasons
                .iter()
                .any(|reason| reason.contains("by a defect"))
            {
                assert_eq!(
                    (outcome.status, outcome.fault),
                    (Status::Failed, Some(FaultyParty::Platform)),
                    "{story}"
                );
                let deployed = fake.last_set_deployment("hello");
                let image = deployed.as_ref().and_then(|deployed| deployed["image"].as_str());
                let reported = match &outcome.running {
                    RunningState::Function { image, .. } => Some(image.as_str()),
                    RunningState::Nothing => None,
                    RunningState::Unknown => panic!("{story}"),
                };
                assert_eq!(reported, image, "{story}");
            } else {
                // The rollout had fewer requests.
                assert!(request > 3, "{story}");
            }
            let outcome = process.deploy(&fake, &hand_over_of_build(3, "good")).await;
            assert_status_and_fault(&outcome, Status::Ready, None);
            assert_eq!(answering_build_number(&fake), Some(3));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_may_be_the_old_versions_is_not_reported_as_ready() {
    for behaviour in ["missing", "silent", "crash", "good"] {
        let fake = FakeGateway::new(ProviderKind::Kubernetes).omit_versions_in_answers();
        let process = SimulatedDeployer::start();
        let created = process.deploy(&fake, &hand_over_of_build(1, "good")).await;
        assert_status_and_fault(&created, Status::Ready, None);

        let outcome = process.deploy(&fake, &hand_over_of_build(2, behaviour)).await;
        assert_status_and_fault(&outcome, Status::Unverified, None);
        assert_reason_contains(&outcome, "its answers have no header X-Slipway-Version");
        assert_reason_contains(&outcome, "the provider faas-netes may keep the old version");
        assert!(outcome.changed);

        // Delivered again, it changes nothing and gives the same outcome.
        for process in [process, SimulatedDeployer::start()] {
            let repeated = process.deploy(&fake, &hand_over_of_build(2, behaviour)).await;
            assert_status_and_fault(&repeated, Status::Unverified, None);
            assert!(!repeated.changed);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_unverified_version_never_becomes_the_one_to_restore() {
    for restarts in [false, true] {
        let fake = FakeGateway::new(ProviderKind::Kubernetes).omit_versions_in_answers();
        let mut process = SimulatedDeployer::start();
        process.deploy(&fake, &hand_over_of_build(1, "good")).await;
        for number in 2..5 {
            if restarts {
                process = SimulatedDeployer::start();
            }
            let outcome = process.deploy(&fake, &hand_over_of_build(number, "crash")).await;
            assert_status_and_fault(&outcome, Status::Unverified, None);
        }
        // The old version does not answer any more, so that the new one's failure shows.
        fake.stop_old_version_before_new_is_up();
        let outcome = process.deploy(&fake, &hand_over_of_build(5, "bad")).await;
        assert_status_and_fault(&outcome, Status::RolledBack, Some(FaultyParty::Caller));
        assert_eq!(
            fake.last_set_deployment("hello").unwrap()["image"],
            image_of_build(1, "good")
        );
        assert_eq!(answering_build_number(&fake), Some(1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_older_build_does_not_replace_an_unverified_one() {
    let fake = FakeGateway::new(ProviderKind::Kubernetes).omit_versions_in_answers();
    SimulatedDeployer::start()
        .deploy(&fake, &hand_over_of_build(1, "good"))
        .await;
    SimulatedDeployer::start()
        .deploy(&fake, &hand_over_of_build(3, "good"))
        .await;
    let outcome = SimulatedDeployer::start()
        .deploy(&fake, &hand_over_of_build(2, "good"))
        .await;
    assert_status_and_fault(&outcome, Status::Refused, Some(FaultyParty::Caller));
    assert!(!outcome.changed);
    assert_eq!(answering_build_number(&fake), Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_build_older_than_the_newest_submission_of_the_deployed_version_is_refused() {
    for provider in TESTED_PROVIDERS {
        let (fake, process) = (FakeGateway::new(provider), SimulatedDeployer::start());
        process.deploy(&fake, &hand_over_of_build(1, "good")).await;
        // The source of build 1 again, for example because a change was undone: the same image.
        let mut undone = hand_over_of_build(1, "good");
        undone.call_id = Some("call-3".to_owned());
        undone.submitted_at = hand_over_of_build(3, "good").submitted_at;
        let outcome = process.deploy(&fake, &undone).await;
        assert_status_and_fault(&outcome, Status::Ready, None);
        assert!(!outcome.changed);

        let outcome = process.deploy(&fake, &hand_over_of_build(2, "good")).await;
        assert_status_and_fault(&outcome, Status::Refused, Some(FaultyParty::Caller));
        let newer = outcome.superseded_by.and_then(|newer| newer.call_id);
        assert_eq!(newer.as_deref(), Some("call-3"));
        assert_eq!(answering_build_number(&fake), Some(1));

        let outcome = process.deploy(&fake, &hand_over_of_build(4, "good")).await;
        assert_status_and_fault(&outcome, Status::Ready, None);
        assert_eq!(answering_build_number(&fake), Some(4));
    }
}

#[tokio::test(start_paused = true)]
async fn if_functions_name_no_version_updates_are_verified_on_providers_that_replace_before_answering() {
    for provider in [ProviderKind::Faasd, ProviderKind::Rolling] {
        let fake = FakeGateway::new(provider).omit_versions_in_answers();
        let process = SimulatedDeployer::start();
        process.deploy(&fake, &hand_over_of_build(1, "good")).await;
        let outcome = process.deploy(&fake, &hand_over_of_build(2, "good")).await;
        assert_status_and_fault(&outcome, Status::Ready, None);
        let outcome = process.deploy(&fake, &hand_over_of_build(3, "bad")).await;
        assert_status_and_fault(&outcome, Status::RolledBack, Some(FaultyParty::Caller));
        assert_eq!(answering_build_number(&fake), Some(2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_working_version_runs_at_the_end_whichever_single_request_is_disrupted() {
    for provider in TESTED_PROVIDERS {
        for disruption in [
            DisruptionOrNone::Unreachable,
            DisruptionOrNone::LostBefore,
            DisruptionOrNone::LostAfter,
            DisruptionOrNone::Status(502),
            DisruptionOrNone::Status(503),
            DisruptionOrNone::Status(429),
            DisruptionOrNone::Html,
            DisruptionOrNone::Unanswered,
        ] {
            for step in 0..9 {
                let (fake, process) = (FakeGateway::new(provider), SimulatedDeployer::start());
                process.deploy(&fake, &hand_over_of_build(1, "good")).await;
                fake.replace_disruptions_of_next_requests(
                    std::iter::repeat_n(DisruptionOrNone::None, step).chain([disruption]),
                );
                let outcome = process.deploy(&fake, &hand_over_of_build(2, "good")).await;
                let story = format!("{provider:?} {disruption:?} at {step}: {outcome:#?}");
                // There is no time left to wait for an update that is not answered until the deadline.
                match outcome.status {
                    // A web page with status 200 in place of the function's answer satisfies the probe.
                    Status::Unverified if disruption == DisruptionOrNone::Html => {
                        assert_eq!(provider, ProviderKind::Kubernetes, "{story}");
                    }
                    Status::Ready => assert_eq!(answering_build_number(&fake), Some(2), "{story}"),
                    Status::RolledBack => {
                        assert_eq!(
                            (disruption, answering_build_number(&fake)),
                            (DisruptionOrNone::Unanswered, Some(1)),
                            "{story}"
                        );
                    }
                    _ => panic!("{story}"),
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_deployer_killed_at_any_step_finishes_with_the_next_delivery() {
    for provider in TESTED_PROVIDERS {
        for (behaviour, step, acted) in (0..14).flat_map(|step| {
            ["good", "crash"]
                .into_iter()
                .flat_map(move |behaviour| [(behaviour, step, false), (behaviour, step, true)])
        }) {
            let fake = FakeGateway::new(provider);
            SimulatedDeployer::start()
                .deploy(&fake, &hand_over_of_build(1, "good"))
                .await;
            fake.kill_deployer_at_request(Some((step, acted)));
            let first = SimulatedDeployer::start()
                .deploy_until_killed(&fake, &hand_over_of_build(2, behaviour))
                .await;
            fake.kill_deployer_at_request(None);
            let outcome = SimulatedDeployer::start()
                .deploy(&fake, &hand_over_of_build(2, behaviour))
                .await;
            let story = format!("{provider:?} {behaviour} {step} {acted}: {first:?} {outcome:#?}");
            if behaviour == "good" {
                assert_eq!(
                    (outcome.status, answering_build_number(&fake)),
                    (Status::Ready, Some(2)),
                    "{story}"
                );
            } else {
                assert_eq!(
                    (outcome.status, answering_build_number(&fake)),
                    (Status::RolledBack, Some(1)),
                    "{story}"
                );
            }
        }
    }
}
