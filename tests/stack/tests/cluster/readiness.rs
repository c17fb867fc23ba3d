//! What the deployer reports of new versions that do not run, while a client calls the function: Kubernetes keeps the
//! old version, which answers in place of the new one.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use serde_json::{Value, json};
use slipway_stack::Cluster;
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

use crate::{
    chart,
    gateway::{Answer, GatewayClient, cluster_variable},
    source::{Behaviour, FunctionSource, requests},
};

/// The time in which a version has to be ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// The interval of a client's calls.
const CALL_INTERVAL: Duration = Duration::from_millis(100);

/// The answer of the version that works.
const GOOD_ANSWER: &str = "good";

/// A new version that does not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BrokenVersion {
    /// A built version, whose container does this.
    Built(Behaviour),
    /// A version whose image the registry does not have.
    CannotBePulled,
}

/// Versions that are never available, so that the old version stays.
const BROKEN_VERSIONS: [BrokenVersion; 3] = [
    BrokenVersion::Built(Behaviour::Crashes),
    BrokenVersion::Built(Behaviour::NeverListens),
    BrokenVersion::CannotBePulled,
];

/// One function, which gets one version that works and one that does not.
struct Case<'a> {
    gateway: &'a Arc<GatewayClient>,
    registry: String,
    function: String,
    /// Whether the function's answers name its version.
    reports_version: bool,
    broken: BrokenVersion,
    /// Whether the deployer may read Kubernetes.
    reads_kubernetes: bool,
}

pub(crate) async fn no_version_that_does_not_run_is_reported_ready_and_the_last_good_one_is_restored(
    cluster: &Cluster,
    gateway: &Arc<GatewayClient>,
) {
    let registry = cluster_variable(cluster, "REGISTRY");
    for reads_kubernetes in [true, false] {
        chart::install_with_values(
            cluster,
            &[
                &format!("deployer.readyTimeout={}s", READY_TIMEOUT.as_secs()),
                // Time for a slow machine to start the old version again.
                "deployer.env.rollback_timeout=60s",
                "deployer.timeout=2m",
                &format!("deployer.kubernetesReadiness={reads_kubernetes}"),
            ],
        );
        // Not all at once: the kubelet ends functions that do not answer its probes on a busy machine.
        for reports_version in [true, false] {
            // Only Kubernetes shows what a version did that answered before it died.
            let dies = reads_kubernetes.then_some(BrokenVersion::Built(Behaviour::Dies));
            let broken = BROKEN_VERSIONS.into_iter().chain(dies);
            let cases =
                broken.map(|broken| Case::new(gateway, &registry, reports_version, broken, reads_kubernetes));
            let cases = cases.collect::<Vec<_>>();
            join_all(cases.iter().map(Case::check)).await;
        }
    }
}

impl<'a> Case<'a> {
    fn new(
        gateway: &'a Arc<GatewayClient>,
        registry: &str,
        reports_version: bool,
        broken: BrokenVersion,
        reads_kubernetes: bool,
    ) -> Self {
        let kind = match broken {
            BrokenVersion::Built(Behaviour::Crashes) => "crashes",
            BrokenVersion::Built(Behaviour::Dies) => "dies",
            BrokenVersion::Built(_) => "silent",
            BrokenVersion::CannotBePulled => "missing",
        };
        let version = if reports_version { "named" } else { "unnamed" };
        let deployer = if reads_kubernetes { "seen" } else { "unseen" };
        Self {
            gateway,
            registry: registry.to_owned(),
            function: format!("{kind}-{version}-{deployer}"),
            reports_version,
            broken,
            reads_kubernetes,
        }
    }

    async fn check(&self) {
        let function = &self.function;
        let good = self.deploy_built(GOOD_ANSWER, Behaviour::Serves).await;
        assert_eq!(good["status"], "ready", "{function}: {good:#}");
        let good_image = self.gateway.image_of(function).await;

        // The old version stays while no pod of the new one is available.
        let is_available_at_first = self.broken == BrokenVersion::Built(Behaviour::Dies);
        let client = (!is_available_at_first)
            .then(|| RepeatedCalls::start(Arc::clone(self.gateway), function.clone()));
        let started = Instant::now();
        let outcome = match self.broken {
            BrokenVersion::Built(behaviour) => self.deploy_built("broken", behaviour).await,
            BrokenVersion::CannotBePulled => self.deploy_missing_image().await,
        };
        let elapsed = started.elapsed();
        let calls = match client {
            Some(client) => client.stop().await,
            None => 0,
        };
        println!(
            "{function}: {} after {elapsed:.1?}, {calls} calls of the old version: {} {}",
            outcome["status"], outcome["durations"], outcome["reasons"]
        );

        let fails_at_once = [
            BrokenVersion::Built(Behaviour::Crashes),
            BrokenVersion::CannotBePulled,
        ];
        if self.reads_kubernetes && fails_at_once.contains(&self.broken) {
            let watched = outcome["durations"]["watch"].as_f64().unwrap();
            assert!(watched < READY_TIMEOUT.as_secs_f64(), "{function}: {outcome:#}");
        }
        if self.reads_kubernetes || self.reports_version {
            assert_eq!(outcome["status"], "rolled_back", "{function}: {outcome:#}");
        } else {
            assert_eq!(outcome["status"], "unverified", "{function}: {outcome:#}");
            self.check_that_failure_of_another_version_restores(&good_image)
                .await;
        }
        assert_eq!(
            self.gateway.image_of(function).await,
            good_image,
            "{function}: {outcome:#}"
        );
        assert_eq!(
            self.gateway.call(function).await.unwrap(),
            good_answer(),
            "{function}"
        );
        self.gateway.delete_function(function).await;
    }

    /// Deploys a version that fails in any case, after one of which it is not known whether it runs.
    async fn check_that_failure_of_another_version_restores(&self, good_image: &str) {
        let unverified = self.gateway.image_of(&self.function).await;
        assert_ne!(unverified, good_image, "{}", self.function);
        // The image works, and the probe demands another answer.
        let probe = json!({ "expectedStatus": 418 });
        let outcome = self
            .hand_over(good_image, probe, json!({ "another": "version" }))
            .await;
        assert_eq!(outcome["status"], "rolled_back", "{}: {outcome:#}", self.function);
        assert_eq!(
            outcome["previousImage"],
            unverified.as_str(),
            "{}: {outcome:#}",
            self.function
        );
    }

    /// Builds and deploys a version, and returns the outcome of the deployment.
    async fn deploy_built(&self, answer: &str, behaviour: Behaviour) -> Value {
        let source = FunctionSource {
            function: &self.function,
            answer,
            reports_version: self.reports_version,
            behaviour,
        };
        let built = self.gateway.build(source.tar(&self.registry)).await.json();
        assert!(built["deployment"].is_object(), "{}: {built:#}", self.function);
        built["deployment"].clone()
    }

    async fn deploy_missing_image(&self) -> Value {
        let image = format!(
            "{}/test/{}@sha256:{}",
            self.registry,
            self.function,
            "0".repeat(64)
        );
        self.hand_over(&image, json!({}), json!({})).await
    }

    /// Hands an image over to the deployer, and returns the outcome of the deployment.
    async fn hand_over(&self, image: &str, probe: Value, variables: Value) -> Value {
        let deploy = json!({ "service": self.function, "envVars": variables, "requests": requests() });
        let hand_over = json!({ "image": image, "deploy": deploy, "probe": probe });
        self.gateway.hand_over(&hand_over).await.json()
    }
}

fn good_answer() -> Answer {
    Answer {
        status: 200,
        body: GOOD_ANSWER.to_owned(),
    }
}

/// A client that calls a function ten times a second, and demands the answer of the version that works.
struct RepeatedCalls {
    stop: oneshot::Sender<()>,
    calls: JoinHandle<usize>,
}

impl RepeatedCalls {
    fn start(gateway: Arc<GatewayClient>, function: String) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let calls = tokio::spawn(async move {
            let mut interval = tokio::time::interval(CALL_INTERVAL);
            let mut calls = Vec::new();
            loop {
                tokio::select! {
                    _ = interval.tick() => {
                        let (gateway, function) = (Arc::clone(&gateway), function.clone());
                        // A slow answer does not delay the next call.
                        calls.push(tokio::spawn(async move { gateway.call(&function).await }));
                    }
                    _ = &mut stopped => break,
                }
            }
            let count = calls.len();
            for (number, call) in calls.into_iter().enumerate() {
                let answer = call.await.unwrap();
                assert_eq!(
                    answer.unwrap(),
                    good_answer(),
                    "{function}: call {number} of {count}"
                );
            }
            count
        });
        Self { stop, calls }
    }

    /// Stops the calls, and returns how many there were; fails if one of them had another answer.
    async fn stop(self) -> usize {
        self.stop.send(()).unwrap();
        self.calls.await.unwrap()
    }
}
