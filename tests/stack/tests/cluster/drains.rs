//! Pods that are evicted, as a drain of their node does, and pods that are killed, while builds run and wait in the queue.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;
use slipway_stack::Cluster;

use crate::{
    actors::{self, BAIT, address_of},
    chart,
    gateway::{GatewayClient, cluster_variable},
    kubectl, kubectl_output, output_of,
    source::{shell_image, tar_of},
    wait_until,
};

/// The number of builds in a scenario: one runs, and the others wait in the queue.
const BUILDS: usize = 3;

/// The seconds that the step of a build takes, in which a pod ends.
const STEP_SECONDS: u32 = 8;

/// The longest time until all builds of a scenario have ended: a builder that resumes a build waits for 20 s first.
const BUILDS_TIMEOUT: Duration = Duration::from_secs(300);

/// How pods end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// By the eviction API, as `kubectl drain` does.
    Evicted,
    /// By `kubectl delete --force --grace-period=0`.
    Killed,
}

/// A part of the release or of the platform, whose pods end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Builder,
    /// The daemon that runs the first build.
    Daemon,
    /// One build only, which runs: a gateway that is killed answers calls with 404 for a moment, because its provider is
    /// gone before it is, and the Community queue-worker gives such a call up (docs/operations.md).
    Gateway,
}

impl Part {
    fn builds(self) -> usize {
        match self {
            Self::Builder | Self::Daemon => BUILDS,
            Self::Gateway => 1,
        }
    }
}

const SCENARIOS: [(Part, Ending); 5] = [
    (Part::Daemon, Ending::Evicted),
    (Part::Builder, Ending::Evicted),
    (Part::Daemon, Ending::Killed),
    (Part::Builder, Ending::Killed),
    (Part::Gateway, Ending::Killed),
];

pub(crate) async fn no_queued_build_is_lost_or_built_twice_when_pods_end(
    cluster: &Cluster,
    gateway: &GatewayClient,
) {
    let registry = cluster_variable(cluster, "REGISTRY");
    let bait = address_of(cluster, BAIT);
    chart::upgrade_with(
        cluster,
        &json!({
            "builder": { "records": { "repository": format!("{registry}/records") } },
            "buildkit": { "replicas": 2 },
            "networkPolicy": { "allowedToBuilds": [format!("{bait}/32")] },
        }),
    );
    for (part, ending) in SCENARIOS {
        let started = std::time::Instant::now();
        let scenario = format!("{part:?}-{ending:?}").to_lowercase();
        let builds: Vec<_> = (0..part.builds())
            .map(|number| format!("{scenario}-{number}"))
            .collect();
        for build in &builds {
            let image = format!("{registry}/test/{build}:1");
            // The last thing that a step does is a request that the bait's log has.
            let dockerfile = format!(
                "FROM {}\nRUN sleep {STEP_SECONDS}; printf 'GET /{build} HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {bait} 80 | grep HTTP\n",
                shell_image(&registry)
            );
            let tar = tar_of(&json!({ "image": image }), &dockerfile, &[]);
            let queued = gateway.queue_build(tar).await;
            assert_eq!(queued.status, 202, "{queued:?}");
        }
        let mut daemon = None;
        let first = format!("/{} HTTP", builds[0]);
        wait_until("the first build runs", BUILDS_TIMEOUT, || {
            daemon = daemon_with_process(cluster, &first);
            daemon.is_some()
        })
        .await;
        end(cluster, part, ending, &daemon.unwrap());

        let is_pushed = |build: &String| {
            let url = format!("http://{registry}/v2/test/{build}/manifests/1");
            let status = ["--head", "--output", "/dev/null", "--write-out", "%{http_code}"];
            let accept = [
                "--header",
                "Accept: application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json",
                &url,
            ];
            actors::curl_in_pod(cluster, actors::OUTSIDER, &[&status[..], &accept].concat()) == "200"
        };
        wait_until(
            &format!("{scenario}: all images are pushed"),
            BUILDS_TIMEOUT,
            || builds.iter().all(is_pushed),
        )
        .await;
        println!(
            "{scenario}: {} builds within {:?}",
            builds.len(),
            started.elapsed()
        );
    }
    // At the end, because a second attempt might begin late.
    let steps = completed_steps(cluster);
    println!("completed steps: {steps:?}");
    let builds = SCENARIOS.iter().map(|(part, _)| part.builds()).sum::<usize>();
    assert_eq!(steps.len(), builds, "{steps:?}");
    assert!(steps.values().all(|count| *count == 1), "{steps:?}");
}

/// Returns the number of the daemon in whose pod a process has this text in its arguments.
fn daemon_with_process(cluster: &Cluster, text: &str) -> Option<String> {
    let (first, rest) = text.split_at(1);
    let script = format!(
        "for at in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$at; echo; done 2>/dev/null | grep '[{first}]{rest}'"
    );
    (0..2)
        .map(|number| format!("slipway-buildkit-{number}"))
        .find(|pod| {
            let exec = ["--namespace", "openfaas", "exec", "--stdin", pod, "--", "sh"];
            output_of(&mut kubectl(cluster, &exec), &script).status.success()
        })
}

/// Ends the pods of a part.
fn end(cluster: &Cluster, part: Part, ending: Ending, daemon: &str) {
    let of_release = |label: &str| {
        let get = [
            "get",
            "pods",
            "--all-namespaces",
            "--field-selector=status.phase=Running",
            "--output=jsonpath={.items[0].metadata.namespace}/{.items[0].metadata.name}",
            "--selector",
            label,
        ];
        kubectl_output(cluster, &get, "")
    };
    let pod = match part {
        Part::Builder => of_release("faas_function=builder-fn,pod-template-hash"),
        Part::Daemon => format!("openfaas/{daemon}"),
        Part::Gateway => of_release("app=gateway"),
    };
    let (namespace, name) = pod.split_once('/').unwrap();
    match ending {
        Ending::Evicted => {
            let eviction = json!({
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": { "name": name, "namespace": namespace },
            });
            let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/eviction");
            kubectl_output(
                cluster,
                &["create", "--raw", &path, "--filename=-"],
                &eviction.to_string(),
            );
        }
        Ending::Killed => {
            let delete = [
                "--namespace",
                namespace,
                "delete",
                "pod",
                name,
                "--force",
                "--grace-period=0",
            ];
            kubectl_output(cluster, &delete, "");
        }
    }
}

/// Returns how often the step of each build was completed, by the log of the bait's server.
fn completed_steps(cluster: &Cluster) -> BTreeMap<String, usize> {
    let log = kubectl_output(cluster, &["logs", "bait"], "");
    let mut steps = BTreeMap::new();
    let builds = log.lines().filter_map(|line| line.split_once("url:/"));
    for (_, build) in builds.filter(|(_, build)| build.contains("-evicted-") || build.contains("-killed-")) {
        *steps.entry(build.trim().to_owned()).or_default() += 1;
    }
    steps
}
