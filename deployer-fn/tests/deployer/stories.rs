//! Whole deployments against a gateway with state: each story is told for every kind of provider.

use std::time::Duration;

use deployer_fn::outcome::{Fault, Outcome, Running, Status};
use deployer_fn::request::{FunctionSpec, HandOver, PinnedImage, Probe};
use deployer_fn::rollout::{Deadline, Ground, Limits, Memory, rollout};
use function_host::Shutdown;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::fake::{Fake, Manners, Mishap};

const ALL: [Manners; 3] = [Manners::Kubernetes, Manners::Faasd, Manners::Good];

/// The build with this number of an image that does this.
pub(crate) fn build(number: u64, does: &str) -> HandOver {
    HandOver {
        spec: FunctionSpec {
            service: "hello".to_owned(),
            image: PinnedImage::parse(&image(number, does)).unwrap(),
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
        built_at: Some(Timestamp::from_second(1_700_000_000 + number as i64).unwrap()),
        probe: Probe::default(),
        unknown: vec![],
    }
}

pub(crate) fn image(number: u64, does: &str) -> String {
    format!("registry.example/hello-{does}@sha256:{number:064x}")
}

/// A deployer process: it forgets everything when it is started anew.
pub(crate) struct Process(Memory);

impl Process {
    pub(crate) fn start() -> Self {
        Self(Memory::default())
    }

    pub(crate) async fn deploy(&self, fake: &Fake, hand_over: &HandOver) -> Outcome {
        let (_trigger, shutdown) = Shutdown::new();
        let deadline = Deadline::new(Duration::from_secs(50), None, shutdown);
        let ground = Ground {
            transport: fake,
            limits: &Limits::default(),
            memory: &self.0,
        };
        rollout(&ground, hand_over, vec![], &deadline, String::new()).await
    }

    /// `None` where the process was killed.
    pub(crate) async fn deploy_until_killed(&self, fake: &Fake, hand_over: &HandOver) -> Option<Outcome> {
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
fn assert_said(outcome: &Outcome, words: &str) {
    assert!(
        outcome.reasons.iter().any(|reason| reason.contains(words)),
        "{words:?}: {outcome:#?}"
    );
}

/// The number of the build that answers; `None` where none does.
pub(crate) fn answering(fake: &Fake) -> Option<u64> {
    let deployment = fake.answers("hello")?;
    Some(deployment["envVars"]["BUILD"].as_str()?.parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn created_updated_and_delivered_again() {
    for manners in ALL {
        let (fake, process) = (Fake::new(manners), Process::start());
        let created = process.deploy(&fake, &build(1, "good")).await;
        assert_ended(&created, Status::Ready, None);
        assert_eq!(created.previous_image, None);
        let updated = process.deploy(&fake, &build(2, "good")).await;
        assert_ended(&updated, Status::Ready, None);
        assert_eq!(updated.previous_image, Some(image(1, "good")));
        assert_eq!(answering(&fake), Some(2));

        let changes = fake.changes();
        let again = process.deploy(&fake, &build(2, "good")).await;
        assert_ended(&again, Status::Ready, None);
        assert!(!again.changed);
        assert_eq!(fake.changes(), changes);
    }
}

#[tokio::test(start_paused = true)]
async fn what_does_not_run_is_replaced_by_what_did_with_its_environment() {
    for manners in ALL {
        for does in ["missing", "silent", "crash", "bad"] {
            let fake = Fake::new(manners);
            let process = Process::start();
            assert_ended(
                &process.deploy(&fake, &build(1, "good")).await,
                Status::Ready,
                None,
            );
            // It is in no memory what was good.
            let process = Process::start();
            let outcome = process.deploy(&fake, &build(2, does)).await;
            // In the last case the provider itself has tried it, and kept the old one.
            let expected = match (manners, does) {
                (Manners::Good, "silent") => Status::Refused,
                _ => Status::RolledBack,
            };
            assert_eq!(outcome.status, expected, "{manners:?} {does} {outcome:#?}");
            assert_eq!(answering(&fake), Some(1), "{manners:?} {does}");
            let runs = Running::Function {
                image: image(1, "good"),
                available_replicas: 1,
            };
            assert_eq!(outcome.running, runs, "{manners:?} {does}");
            let put_back = fake.deployment("hello").unwrap();
            assert_eq!(put_back["envVars"]["BUILD"], "1");

            // The same again, also to a new process: it is known to fail.
            let changes = fake.changes();
            for process in [process, Process::start()] {
                let again = process.deploy(&fake, &build(2, does)).await;
                assert_eq!(again.status, expected, "{manners:?} {does} {again:#?}");
                if !(manners == Manners::Good && matches!(does, "missing" | "silent")) {
                    assert_eq!(fake.changes(), changes, "{manners:?} {does}");
                    assert_eq!(again.previous_image, outcome.previous_image);
                }
            }
            // A newer one is none the worse for it.
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
async fn a_first_version_that_does_not_run_is_removed() {
    for manners in ALL {
        for does in ["silent", "crash", "bad"] {
            let fake = Fake::new(manners);
            let outcome = Process::start().deploy(&fake, &build(1, does)).await;
            assert_ended(&outcome, Status::RolledBack, Some(Fault::Caller));
            assert_eq!(outcome.running, Running::Nothing);
            assert_eq!(fake.deployment("hello"), None, "{manners:?} {does}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_is_told_at_once_and_nothing_is_changed() {
    for manners in ALL {
        let (fake, process) = (Fake::new(manners), Process::start());
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
        assert_said(&outcome, "no namespace \"nowhere\"");
        assert_eq!((fake.changes(), answering(&fake)), (changes, Some(1)));
    }
}

#[tokio::test(start_paused = true)]
async fn an_older_build_never_replaces_a_newer_one() {
    for manners in ALL {
        let fake = Fake::new(manners);
        Process::start().deploy(&fake, &build(5, "good")).await;
        let outcome = Process::start().deploy(&fake, &build(4, "good")).await;
        assert_ended(&outcome, Status::Refused, Some(Fault::Caller));
        assert_said(&outcome, "a newer build has been deployed");
        assert_said(&outcome, "call-5");
        assert_eq!(answering(&fake), Some(5));
    }
}

#[tokio::test(start_paused = true)]
async fn a_function_of_somebody_elses_is_put_back_as_far_as_it_is_seen() {
    for manners in [Manners::Kubernetes, Manners::Faasd] {
        let fake = Fake::new(manners);
        // Otherwise its answers would be taken for the new one's: it does not tell its version (pitfall 26).
        fake.without_overlap();
        fake.put(
            json!({"service": "hello", "image": "registry.example/hello-good:1",
            "envVars": {"BUILD": "0"}, "annotations": {"topic": "x"}, "secrets": ["api-key"]}),
        );
        let outcome = Process::start().deploy(&fake, &build(1, "crash")).await;
        assert_ended(&outcome, Status::RolledBack, Some(Fault::Caller));
        let put_back = fake.deployment("hello").unwrap();
        assert_eq!(put_back["image"], "registry.example/hello-good:1");
        assert_eq!(put_back["annotations"]["topic"], "x");
        assert_eq!(put_back["secrets"], json!(["api-key"]));
        if manners == Manners::Kubernetes {
            assert_said(&outcome, "environment variables may have been lost");
            assert_eq!(put_back["envVars"], Value::Null);
        } else {
            assert_eq!(put_back["envVars"]["BUILD"], "0");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_good_one_is_put_back_also_when_the_current_one_never_was() {
    for manners in ALL {
        let (fake, process) = (Fake::new(manners), Process::start());
        process.deploy(&fake, &build(1, "good")).await;
        // Killed while it watches the bad one, and not called again for it.
        fake.kill_at(Some((7, true)));
        assert!(
            process
                .deploy_until_killed(&fake, &build(2, "bad"))
                .await
                .is_none()
        );
        fake.kill_at(None);
        assert_eq!(answering(&fake).filter(|_| manners != Manners::Kubernetes), None);

        let outcome = Process::start().deploy(&fake, &build(3, "crash")).await;
        assert_ended(&outcome, Status::RolledBack, Some(Fault::Caller));
        assert_eq!(answering(&fake), Some(1), "{manners:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_function_that_lost_its_service_is_made_anew() {
    let (fake, process) = (Fake::new(Manners::Kubernetes), Process::start());
    process.deploy(&fake, &build(1, "good")).await;
    fake.lose_service("hello");
    let outcome = process.deploy(&fake, &build(2, "good")).await;
    assert_ended(&outcome, Status::Ready, None);
    assert_eq!(answering(&fake), Some(2));
}

#[tokio::test(start_paused = true)]
async fn an_update_that_kubernetes_does_not_make_leaves_the_old_one() {
    let (fake, process) = (Fake::new(Manners::Kubernetes), Process::start());
    process.deploy(&fake, &build(1, "good")).await;
    let mut impossible = build(2, "good");
    impossible.spec.constraints = vec!["impossible".to_owned()];
    let outcome = process.deploy(&fake, &impossible).await;
    assert_ended(&outcome, Status::RolledBack, Some(Fault::Platform));
    assert_said(
        &outcome,
        "PUT with 200 and no text, but the provider did not take",
    );
    assert_eq!(answering(&fake), Some(1));
}

#[tokio::test(start_paused = true)]
async fn somebody_elses_newer_deployment_is_left_alone() {
    let (fake, process) = (Fake::new(Manners::Faasd), Process::start());
    process.deploy(&fake, &build(1, "good")).await;
    let bad = build(2, "bad");
    let deployment = process.deploy(&fake, &bad);
    let meddler = async {
        // While the bad one is watched.
        tokio::time::sleep(Duration::from_secs(20)).await;
        fake.put(
            json!({"service": "hello", "image": "registry.example/hello-good:9", "envVars": {"BUILD": "9"}}),
        );
    };
    let (outcome, ()) = tokio::join!(deployment, meddler);
    assert_eq!(outcome.status, Status::Failed, "{outcome:#?}");
    assert_said(&outcome, "somebody else has deployed");
    assert_eq!(answering(&fake), Some(9));
}

#[tokio::test(start_paused = true)]
async fn a_mishap_at_any_single_step_does_not_keep_a_good_version_from_running() {
    for manners in ALL {
        for mishap in [
            Mishap::Refused,
            Mishap::LostBefore,
            Mishap::LostAfter,
            Mishap::Status(502),
            Mishap::Status(503),
            Mishap::Status(429),
            Mishap::Html,
            Mishap::Slow,
        ] {
            for step in 0..9 {
                let (fake, process) = (Fake::new(manners), Process::start());
                process.deploy(&fake, &build(1, "good")).await;
                fake.mishaps(std::iter::repeat_n(Mishap::None, step).chain([mishap]));
                let outcome = process.deploy(&fake, &build(2, "good")).await;
                let told = format!("{manners:?} {mishap:?} at {step}: {outcome:#?}");
                // An update that is not answered until the time is up cannot be waited for any longer.
                match outcome.status {
                    // A page with status 200 in place of the function's own answer is a good answer.
                    Status::Ready if mishap == Mishap::Html && manners == Manners::Kubernetes => {}
                    Status::Ready => assert_eq!(answering(&fake), Some(2), "{told}"),
                    Status::RolledBack => {
                        assert_eq!((mishap, answering(&fake)), (Mishap::Slow, Some(1)), "{told}");
                    }
                    _ => panic!("{told}"),
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn killed_at_each_step_and_called_again_it_finishes() {
    for manners in ALL {
        for (does, step, acted) in (0..14).flat_map(|step| {
            ["good", "crash"]
                .into_iter()
                .flat_map(move |does| [(does, step, false), (does, step, true)])
        }) {
            let fake = Fake::new(manners);
            Process::start().deploy(&fake, &build(1, "good")).await;
            fake.kill_at(Some((step, acted)));
            let first = Process::start().deploy_until_killed(&fake, &build(2, does)).await;
            fake.kill_at(None);
            let outcome = Process::start().deploy(&fake, &build(2, does)).await;
            let told = format!("{manners:?} {does} {step} {acted}: {first:?} {outcome:#?}");
            if does == "good" {
                assert_eq!(
                    (outcome.status, answering(&fake)),
                    (Status::Ready, Some(2)),
                    "{told}"
                );
            } else {
                assert_eq!(
                    (outcome.status, answering(&fake)),
                    (Status::RolledBack, Some(1)),
                    "{told}"
                );
            }
        }
    }
}
