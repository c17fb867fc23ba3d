//! Tests sequences of deployments on a gateway that keeps state, each for every kind of provider.

use std::time::Duration;

use deployer_fn::{
    Deadline, DeploymentStatus as Status, Fault, FunctionSpec, HandOver, Outcome, PinnedImage, Probe,
    RolloutContext, RolloutHistory, Running, Successor, SuccessorReceiver, Timeouts, rollout,
};
use function_host::Shutdown;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::fake::{Disruption, FakeGateway, Provider};

const PROVIDERS: [Provider; 3] = [Provider::Kubernetes, Provider::Faasd, Provider::Rolling];

/// Returns the hand-over of the build with this number, whose image has this behaviour. Higher numbers are
/// newer builds.
pub(crate) fn build(number: u64, behaviour: &str) -> HandOver {
    HandOver {
        spec: FunctionSpec {
            service: "hello".to_owned(),
            image: PinnedImage::parse(&image(number, behaviour)).unwrap(),
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
        call_id: Some(format!("call-{number}")),
        submitted_at: Some(Timestamp::from_second(1_700_000_000 + number as i64).unwrap()),
        // A build that was submitted later may end earlier.
        built_at: Some(Timestamp::from_second(1_700_001_000 - number as i64).unwrap()),
        expires_at: None,
        probe: Probe::default(),
        warnings: vec![],
    }
}

pub(crate) fn image(number: u64, behaviour: &str) -> String {
    format!("registry.example/hello-{behaviour}@sha256:{number:064x}")
}

/// A process of the deployer, with a history of its own.
#[derive(Clone)]
pub(crate) struct Process(RolloutHistory);

impl Process {
    pub(crate) fn start() -> Self {
        Self(RolloutHistory::default())
    }

    pub(crate) async fn deploy(&self, fake: &FakeGateway, hand_over: &HandOver) -> Outcome {
        self.deploy_before(fake, hand_over, &SuccessorReceiver::none())
            .await
    }

    /// Deploys a hand-over, and yields to the newer build that is announced.
    pub(crate) async fn deploy_before(
        &self,
        fake: &FakeGateway,
        hand_over: &HandOver,
        succession: &SuccessorReceiver,
    ) -> Outcome {
        let (_trigger, shutdown) = Shutdown::new();
        let deadline = Deadline::new(Duration::from_secs(50), None, shutdown);
        let context = RolloutContext {
            transport: fake,
            timeouts: &Timeouts::default(),
            default_namespace: "openfaas-fn",
            history: &self.0,
            succession,
        };
        rollout(&context, hand_over, vec![], &deadline, String::new()).await
    }

    /// Deploys a hand-over until the end; returns `None` if the process is killed before.
    pub(crate) async fn deploy_until_killed(
        &self,
        fake: &FakeGateway,
        hand_over: &HandOver,
    ) -> Option<Outcome> {
        tokio::select! {
            outcome = self.deploy(fake, hand_over) => Some(outcome),
            () = fake.killed() => None,
        }
    }
}

#[track_caller]
fn assert_ended(outcome: &Outcome, status: Status, fault: Option<Fault>) {
    assert_eq!((outcome.status, outcome.fault), (status, fault), "{outcome:#?}");
}

#[track_caller]
fn assert_reason(outcome: &Outcome, text: &str) {
    assert!(
        outcome.reasons.iter().any(|reason| reason.contains(text)),
        "no reason contains {text:?}: {outcome:#?}"
    );
}

/// Returns the number of the build that answers calls; `None` if no build answers.
pub(crate) fn answering(fake: &FakeGateway) -> Option<u64> {
    let deployment = fake.answering_deployment("hello")?;
    Some(deployment["envVars"]["BUILD"].as_str()?.parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_function_is_created_and_updated_and_a_repeated_delivery_changes_nothing() {
    for provider in PROVIDERS {
        let (fake, process) = (FakeGateway::new(provider), Process::start());
        let created = process.deploy(&fake, &build(1, "good")).await;
        assert_ended(&created, Status::Ready, None);
        assert_eq!(created.previous_image, None);
        let updated = process.deploy(&fake, &build(2, "good")).await;
        assert_ended(&updated, Status::Ready, None);
        assert_eq!(updated.previous_image, Some(image(1, "good")));
        assert_eq!(answering(&fake), Some(2));

        let changes = fake.changes();
        let repeated = process.deploy(&fake, &build(2, "good")).await;
        assert_ended(&repeated, Status::Ready, None);
        assert!(!repeated.changed);
        assert_eq!(fake.changes(), changes);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_version_is_replaced_by_the_previous_one_with_its_environment() {
    for provider in PROVIDERS {
        for behaviour in ["missing", "silent", "crash", "bad"] {
            let fake = FakeGateway::new(provider);
            let process = Process::start();
            assert_ended(
                &process.deploy(&fake, &build(1, "good")).await,
                Status::Ready,
                None,
            );
            // A new process does not remember which version was good.
            let process = Process::start();
            let outcome = process.deploy(&fake, &build(2, behaviour)).await;
            // The rolling provider starts the new version itself, and rejects one that does not listen.
            let expected = match (provider, behaviour) {
                (Provider::Rolling, "silent") => Status::Refused,
                _ => Status::RolledBack,
            };
            assert_eq!(outcome.status, expected, "{provider:?} {behaviour} {outcome:#?}");
            assert_eq!(answering(&fake), Some(1), "{provider:?} {behaviour}");
            let runs = Running::Function {
                image: image(1, "good"),
                available_replicas: 1,
            };
            assert_eq!(outcome.running, runs, "{provider:?} {behaviour}");
            let restored = fake.deployment("hello").unwrap();
            assert_eq!(restored["envVars"]["BUILD"], "1");

            // A repeated delivery is known to fail, also to a new process.
            let changes = fake.changes();
            for process in [process, Process::start()] {
                let repeated = process.deploy(&fake, &build(2, behaviour)).await;
                assert_eq!(
                    repeated.status, expected,
                    "{provider:?} {behaviour} {repeated:#?}"
                );
                if !(provider == Provider::Rolling && matches!(behaviour, "missing" | "silent")) {
                    assert_eq!(fake.changes(), changes, "{provider:?} {behaviour}");
                    assert_eq!(repeated.previous_image, outcome.previous_image);
                }
            }
            // A newer build is not affected.
            assert_ended(
                &Process::start().deploy(&fake, &build(3, "good")).await,
                Status::Ready,
                None,
            );
            assert_eq!(answering(&fake), Some(3));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_version_that_does_not_run_is_deleted() {
    for provider in PROVIDERS {
        for behaviour in ["silent", "crash", "bad"] {
            let fake = FakeGateway::new(provider);
            let outcome = Process::start().deploy(&fake, &build(1, behaviour)).await;
            assert_ended(&outcome, Status::RolledBack, Some(Fault::Caller));
            assert_eq!(outcome.running, Running::Nothing);
            assert_eq!(fake.deployment("hello"), None, "{provider:?} {behaviour}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn missing_secrets_and_namespaces_are_refused_without_a_change() {
    for provider in PROVIDERS {
        let (fake, process) = (FakeGateway::new(provider), Process::start());
        process.deploy(&fake, &build(1, "good")).await;
        let changes = fake.changes();
        let mut wrong = build(2, "good");
        wrong.spec.secrets.extend(["one".to_owned(), "two".to_owned()]);
        let outcome = process.deploy(&fake, &wrong).await;
        assert_ended(&outcome, Status::Refused, Some(Fault::Caller));
        assert_eq!(outcome.reasons.len(), 2, "{outcome:#?}");
        wrong.spec.namespace = Some("nowhere".to_owned());
        let outcome = process.deploy(&fake, &wrong).await;
        assert_ended(&outcome, Status::Refused, Some(Fault::Caller));
        assert_reason(&outcome, "namespace \"nowhere\" does not exist");
        assert_eq!((fake.changes(), answering(&fake)), (changes, Some(1)));
    }
}

#[tokio::test(start_paused = true)]
async fn an_older_build_never_replaces_a_newer_one() {
    for provider in PROVIDERS {
        let fake = FakeGateway::new(provider);
        Process::start().deploy(&fake, &build(5, "good")).await;
        let outcome = Process::start().deploy(&fake, &build(4, "good")).await;
        assert_ended(&outcome, Status::Refused, Some(Fault::Caller));
        assert_reason(&outcome, "a newer build is deployed");
        let by = Some("call-5".to_owned());
        assert_eq!(outcome.superseded_by, Some(Successor { call_id: by }));
        assert_eq!(answering(&fake), Some(5));
    }
}

/// Returns a hand-over of a builder before `submittedAt`, whose build ended at this second.
fn of_old_builder(number: u64, ended: i64) -> HandOver {
    HandOver {
        submitted_at: None,
        built_at: Some(Timestamp::from_second(1_700_000_000 + ended).unwrap()),
        ..build(number, "good")
    }
}

#[tokio::test(start_paused = true)]
async fn builders_of_different_releases_are_ordered_by_the_end_of_the_build() {
    let ended = |number, ended| HandOver {
        submitted_at: build(number, "good").submitted_at,
        ..of_old_builder(number, ended)
    };
    for (deployed, handed_over, replaced) in [
        // Annotations of an earlier release.
        (of_old_builder(1, 100), ended(2, 101), true),
        (of_old_builder(2, 100), ended(1, 99), false),
        // A builder of an earlier release.
        (ended(1, 100), of_old_builder(2, 101), true),
        (ended(2, 100), of_old_builder(1, 99), false),
        (of_old_builder(2, 100), of_old_builder(1, 99), false),
        // Of one release, the end of the build does not matter.
        (ended(1, 100), ended(2, 99), true),
        (ended(2, 99), ended(1, 100), false),
    ] {
        let fake = FakeGateway::new(Provider::Kubernetes);
        Process::start().deploy(&fake, &deployed).await;
        let outcome = Process::start().deploy(&fake, &handed_over).await;
        let status = if replaced { Status::Ready } else { Status::Refused };
        assert_eq!(outcome.status, status, "{deployed:?} {handed_over:?}");
        assert_eq!(outcome.superseded_by.is_some(), !replaced);
    }
}

/// A clock that was ahead once must not lock the function.
#[tokio::test(start_paused = true)]
async fn a_deployed_version_from_the_future_is_replaced() {
    let fake = FakeGateway::new(Provider::Kubernetes);
    let ahead = |minutes| Timestamp::now() + SignedDuration::from_mins(minutes);
    let of = |number, at| HandOver {
        submitted_at: Some(at),
        built_at: None,
        ..build(number, "good")
    };
    Process::start().deploy(&fake, &of(1, ahead(6))).await;
    let outcome = Process::start().deploy(&fake, &of(2, ahead(0))).await;
    assert_ended(&outcome, Status::Ready, None);
    // Within the bound, it orders.
    let outcome = Process::start().deploy(&fake, &of(3, ahead(-1))).await;
    assert_ended(&outcome, Status::Refused, Some(Fault::Caller));
}

#[tokio::test(start_paused = true)]
async fn a_function_not_deployed_by_slipway_is_restored_from_its_status() {
    for provider in [Provider::Kubernetes, Provider::Faasd] {
        let fake = FakeGateway::new(provider);
        // Otherwise its answers would be taken for the new version's, as they have no version header
        // (docs/pitfalls.md#old-replicas-count-as-available).
        fake.without_overlap();
        fake.deploy_directly(
            json!({"service": "hello", "image": "registry.example/hello-good:1",
            "envVars": {"BUILD": "0"}, "annotations": {"topic": "x"}, "secrets": ["api-key"]}),
        );
        let outcome = Process::start().deploy(&fake, &build(1, "crash")).await;
        assert_ended(&outcome, Status::RolledBack, Some(Fault::Caller));
        let restored = fake.deployment("hello").unwrap();
        assert_eq!(restored["image"], "registry.example/hello-good:1");
        assert_eq!(restored["annotations"]["topic"], "x");
        assert_eq!(restored["secrets"], json!(["api-key"]));
        if provider == Provider::Kubernetes {
            assert_reason(&outcome, "environment variables may have been lost");
            assert_eq!(restored["envVars"], Value::Null);
        } else {
            assert_eq!(restored["envVars"]["BUILD"], "0");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_good_version_is_restored_even_if_the_deployed_one_never_was_good() {
    for provider in PROVIDERS {
        let (fake, process) = (FakeGateway::new(provider), Process::start());
        process.deploy(&fake, &build(1, "good")).await;
        // Killed while it watches the bad version, whose hand-over is not delivered again.
        fake.kill_at(Some((7, true)));
        assert!(
            process
                .deploy_until_killed(&fake, &build(2, "bad"))
                .await
                .is_none()
        );
        fake.kill_at(None);
        // On Kubernetes the old version may still answer.
        if provider != Provider::Kubernetes {
            assert_eq!(answering(&fake), None);
        }

        let outcome = Process::start().deploy(&fake, &build(3, "crash")).await;
        assert_ended(&outcome, Status::RolledBack, Some(Fault::Caller));
        assert_eq!(answering(&fake), Some(1), "{provider:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_function_without_its_service_is_created_again() {
    let (fake, process) = (FakeGateway::new(Provider::Kubernetes), Process::start());
    process.deploy(&fake, &build(1, "good")).await;
    fake.lose_service("hello");
    let outcome = process.deploy(&fake, &build(2, "good")).await;
    assert_ended(&outcome, Status::Ready, None);
    assert_eq!(answering(&fake), Some(2));
}

#[tokio::test(start_paused = true)]
async fn an_update_that_kubernetes_ignores_leaves_the_old_version() {
    let (fake, process) = (FakeGateway::new(Provider::Kubernetes), Process::start());
    process.deploy(&fake, &build(1, "good")).await;
    let mut impossible = build(2, "good");
    impossible.spec.constraints = vec!["impossible".to_owned()];
    let outcome = process.deploy(&fake, &impossible).await;
    assert_ended(&outcome, Status::RolledBack, Some(Fault::Platform));
    assert_reason(
        &outcome,
        "PUT with 200 and no text, but the provider did not take",
    );
    assert_eq!(answering(&fake), Some(1));
}

#[tokio::test(start_paused = true)]
async fn another_clients_deployment_in_the_meantime_is_kept() {
    let (fake, process) = (FakeGateway::new(Provider::Faasd), Process::start());
    process.deploy(&fake, &build(1, "good")).await;
    let bad = build(2, "bad");
    let deployment = process.deploy(&fake, &bad);
    let other_client = async {
        // While the bad version is watched.
        tokio::time::sleep(Duration::from_secs(20)).await;
        fake.deploy_directly(
            json!({"service": "hello", "image": "registry.example/hello-good:9", "envVars": {"BUILD": "9"}}),
        );
    };
    let (outcome, ()) = tokio::join!(deployment, other_client);
    assert_eq!(outcome.status, Status::Failed, "{outcome:#?}");
    assert_reason(&outcome, "another client has deployed");
    assert_eq!(answering(&fake), Some(9));
}

#[tokio::test(start_paused = true)]
async fn after_a_panic_the_state_is_reported_and_the_next_hand_over_works() {
    for provider in PROVIDERS {
        for (behaviour, request) in (1..10).flat_map(|request| [("good", request), ("crash", request)]) {
            let (fake, process) = (FakeGateway::new(provider), Process::start());
            process.deploy(&fake, &build(1, "good")).await;
            fake.panic_at(Some(request));
            let outcome = process.deploy(&fake, &build(2, behaviour)).await;
            fake.panic_at(None);
            let story = format!("{provider:?} {behaviour} {request}: {outcome:#?}");
            if outcome
                .reasons
                .iter()
                .any(|reason| reason.contains("by a defect"))
            {
                assert_eq!(
                    (outcome.status, outcome.fault),
                    (Status::Failed, Some(Fault::Platform)),
                    "{story}"
                );
                let deployed = fake.deployment("hello");
                let image = deployed.as_ref().and_then(|deployed| deployed["image"].as_str());
                let reported = match &outcome.running {
                    Running::Function { image, .. } => Some(image.as_str()),
                    Running::Nothing => None,
                    Running::Unknown => panic!("{story}"),
                };
                assert_eq!(reported, image, "{story}");
            } else {
                // The rollout had fewer requests.
                assert!(request > 3, "{story}");
            }
            let outcome = process.deploy(&fake, &build(3, "good")).await;
            assert_ended(&outcome, Status::Ready, None);
            assert_eq!(answering(&fake), Some(3));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_be_the_old_versions_answer_is_not_reported_as_ready() {
    for behaviour in ["missing", "silent", "crash", "good"] {
        let fake = FakeGateway::new(Provider::Kubernetes).without_versions();
        let process = Process::start();
        let created = process.deploy(&fake, &build(1, "good")).await;
        assert_ended(&created, Status::Ready, None);

        let outcome = process.deploy(&fake, &build(2, behaviour)).await;
        assert_ended(&outcome, Status::Unverified, None);
        assert_reason(&outcome, "its answers have no header X-Slipway-Version");
        assert_reason(&outcome, "the provider faas-netes may keep the old version");
        assert!(outcome.changed);

        // Delivered again, it changes nothing and gives the same outcome.
        for process in [process, Process::start()] {
            let repeated = process.deploy(&fake, &build(2, behaviour)).await;
            assert_ended(&repeated, Status::Unverified, None);
            assert!(!repeated.changed);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_unverified_version_never_becomes_the_one_to_restore() {
    for restarts in [false, true] {
        let fake = FakeGateway::new(Provider::Kubernetes).without_versions();
        let mut process = Process::start();
        process.deploy(&fake, &build(1, "good")).await;
        for number in 2..5 {
            if restarts {
                process = Process::start();
            }
            let outcome = process.deploy(&fake, &build(number, "crash")).await;
            assert_ended(&outcome, Status::Unverified, None);
        }
        // The old version does not answer any more, so that the new one's failure shows.
        fake.without_overlap();
        let outcome = process.deploy(&fake, &build(5, "bad")).await;
        assert_ended(&outcome, Status::RolledBack, Some(Fault::Caller));
        assert_eq!(fake.deployment("hello").unwrap()["image"], image(1, "good"));
        assert_eq!(answering(&fake), Some(1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_older_build_does_not_replace_an_unverified_one() {
    let fake = FakeGateway::new(Provider::Kubernetes).without_versions();
    Process::start().deploy(&fake, &build(1, "good")).await;
    Process::start().deploy(&fake, &build(3, "good")).await;
    let outcome = Process::start().deploy(&fake, &build(2, "good")).await;
    assert_ended(&outcome, Status::Refused, Some(Fault::Caller));
    assert!(!outcome.changed);
    assert_eq!(answering(&fake), Some(3));
}

#[tokio::test(start_paused = true)]
async fn a_build_older_than_the_newest_submission_of_the_deployed_version_is_refused() {
    for provider in PROVIDERS {
        let (fake, process) = (FakeGateway::new(provider), Process::start());
        process.deploy(&fake, &build(1, "good")).await;
        // The source of build 1 again, for example because a change was undone: the same image.
        let mut undone = build(1, "good");
        undone.call_id = Some("call-3".to_owned());
        undone.submitted_at = build(3, "good").submitted_at;
        let outcome = process.deploy(&fake, &undone).await;
        assert_ended(&outcome, Status::Ready, None);
        assert!(!outcome.changed);

        let outcome = process.deploy(&fake, &build(2, "good")).await;
        assert_ended(&outcome, Status::Refused, Some(Fault::Caller));
        let newer = outcome.superseded_by.and_then(|newer| newer.call_id);
        assert_eq!(newer.as_deref(), Some("call-3"));
        assert_eq!(answering(&fake), Some(1));

        let outcome = process.deploy(&fake, &build(4, "good")).await;
        assert_ended(&outcome, Status::Ready, None);
        assert_eq!(answering(&fake), Some(4));
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_is_verified_by_a_provider_that_replaces_before_it_answers() {
    for provider in [Provider::Faasd, Provider::Rolling] {
        let fake = FakeGateway::new(provider).without_versions();
        let process = Process::start();
        process.deploy(&fake, &build(1, "good")).await;
        let outcome = process.deploy(&fake, &build(2, "good")).await;
        assert_ended(&outcome, Status::Ready, None);
        let outcome = process.deploy(&fake, &build(3, "bad")).await;
        assert_ended(&outcome, Status::RolledBack, Some(Fault::Caller));
        assert_eq!(answering(&fake), Some(2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_good_version_runs_whichever_single_request_is_disrupted() {
    for provider in PROVIDERS {
        for disruption in [
            Disruption::Unreachable,
            Disruption::LostBefore,
            Disruption::LostAfter,
            Disruption::Status(502),
            Disruption::Status(503),
            Disruption::Status(429),
            Disruption::Html,
            Disruption::Unanswered,
        ] {
            for step in 0..9 {
                let (fake, process) = (FakeGateway::new(provider), Process::start());
                process.deploy(&fake, &build(1, "good")).await;
                fake.disrupt(std::iter::repeat_n(Disruption::None, step).chain([disruption]));
                let outcome = process.deploy(&fake, &build(2, "good")).await;
                let story = format!("{provider:?} {disruption:?} at {step}: {outcome:#?}");
                // There is no time left to wait for an update that is not answered until the deadline.
                match outcome.status {
                    // A web page with status 200 in place of the function's answer satisfies the probe.
                    Status::Unverified if disruption == Disruption::Html => {
                        assert_eq!(provider, Provider::Kubernetes, "{story}");
                    }
                    Status::Ready => assert_eq!(answering(&fake), Some(2), "{story}"),
                    Status::RolledBack => {
                        assert_eq!(
                            (disruption, answering(&fake)),
                            (Disruption::Unanswered, Some(1)),
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
    for provider in PROVIDERS {
        for (behaviour, step, acted) in (0..14).flat_map(|step| {
            ["good", "crash"]
                .into_iter()
                .flat_map(move |behaviour| [(behaviour, step, false), (behaviour, step, true)])
        }) {
            let fake = FakeGateway::new(provider);
            Process::start().deploy(&fake, &build(1, "good")).await;
            fake.kill_at(Some((step, acted)));
            let first = Process::start()
                .deploy_until_killed(&fake, &build(2, behaviour))
                .await;
            fake.kill_at(None);
            let outcome = Process::start().deploy(&fake, &build(2, behaviour)).await;
            let story = format!("{provider:?} {behaviour} {step} {acted}: {first:?} {outcome:#?}");
            if behaviour == "good" {
                assert_eq!(
                    (outcome.status, answering(&fake)),
                    (Status::Ready, Some(2)),
                    "{story}"
                );
            } else {
                assert_eq!(
                    (outcome.status, answering(&fake)),
                    (Status::RolledBack, Some(1)),
                    "{story}"
                );
            }
        }
    }
}
