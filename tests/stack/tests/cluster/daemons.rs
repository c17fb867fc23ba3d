//! Builds on the chart's BuildKit daemons: how they are spread, and that an upgrade of the release loses none.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde_json::Value;
use slipway_stack::Cluster;

use crate::{
    chart,
    gateway::{GatewayClient, cluster_variable},
    kubectl_output,
    source::{Behaviour, FunctionSource, image_tar},
    wait_until,
};

/// The number of daemons among which builds are spread.
const DAEMONS: usize = 3;

/// The number of images that are built.
const IMAGES: usize = 12;

/// The repositories of these images, without the registry.
const REPOSITORIES: &str = "test/spread-";

/// The longest time until a build has begun on a daemon, or an upgrade has reached it.
const CONDITION_TIMEOUT: Duration = Duration::from_secs(60);

/// Arguments of kubectl that show when the first daemon's pod was asked to end.
const DELETION_OF_DAEMON: [&str; 6] = [
    "--namespace",
    "openfaas",
    "get",
    "pod",
    "slipway-buildkit-0",
    "--output=jsonpath={.metadata.deletionTimestamp}",
];

/// Values of the chart that give every pod of the release another annotation, so that an upgrade replaces it.
const REPLACE_ALL_PODS: [&str; 3] = [
    "builder.podAnnotations.replaced=yes",
    "deployer.podAnnotations.replaced=yes",
    "buildkit.podAnnotations.replaced=yes",
];

/// Runs `buildctl debug histories` in the pod of a daemon, and returns its output.
fn histories_of_daemon(cluster: &Cluster, daemon: usize, format: &str) -> String {
    let pod = format!("slipway-buildkit-{daemon}");
    let exec = ["--namespace", "openfaas", "exec", &pod, "--"];
    let histories = ["buildctl", "debug", "histories", "--format", format];
    kubectl_output(cluster, &[&exec[..], &histories].concat(), "")
}

/// Returns the names of the images of [`REPOSITORIES`] that a daemon has records of.
fn images_of_daemon(cluster: &Cluster, daemon: usize) -> BTreeSet<String> {
    let records = histories_of_daemon(cluster, daemon, "{{json .}}");
    let records = records
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let names = records.filter_map(|record| {
        let name = &record["record"]["Exporters"][0]["Attrs"]["name"];
        name.as_str().map(str::to_owned)
    });
    names.filter(|name| name.contains(REPOSITORIES)).collect()
}

pub(crate) async fn an_upgrade_that_replaces_all_pods_loses_no_running_build(
    cluster: &Cluster,
    gateway: &Arc<GatewayClient>,
) {
    let registry = cluster_variable(cluster, "REGISTRY");
    let source = FunctionSource {
        function: "upgraded",
        answer: "built",
        reports_version: false,
        behaviour: Behaviour::Serves,
    };
    let tar = source.tar_with_step(&registry, "sleep 30");
    let build = {
        let gateway = Arc::clone(gateway);
        tokio::spawn(async move { gateway.build(tar).await })
    };
    wait_until("a build runs", CONDITION_TIMEOUT, || {
        histories_of_daemon(cluster, 0, "{{.Type}}").contains("STARTED")
    })
    .await;

    let upgrade = {
        let cluster = cluster.clone();
        tokio::task::spawn_blocking(move || chart::install_with_values(&cluster, &REPLACE_ALL_PODS))
    };
    let daemon_ends = || !kubectl_output(cluster, &DELETION_OF_DAEMON, "").is_empty();
    wait_until("the daemon is asked to end", CONDITION_TIMEOUT, daemon_ends).await;
    assert!(!build.is_finished(), "the build has ended before the upgrade");

    let built = build.await.unwrap().json();
    assert_eq!(built["status"], "success", "{built:#}");
    assert_eq!(built["deployment"]["status"], "ready", "{built:#}");
    upgrade.await.unwrap();
    assert_eq!(gateway.call("upgraded").await.unwrap().body, "built");
    gateway.delete_function("upgraded").await;
}

pub(crate) async fn builds_use_all_daemons_and_return_to_theirs(cluster: &Cluster, gateway: &GatewayClient) {
    let registry = cluster_variable(cluster, "REGISTRY");
    chart::install_with_values(cluster, &[&format!("buildkit.replicas={DAEMONS}")]);
    for _ in 0..2 {
        for number in 0..IMAGES {
            let image = format!("{registry}/{REPOSITORIES}{number}:1");
            let built = gateway.build(image_tar(&registry, &image)).await.json();
            assert_eq!(built["status"], "success", "{built}");
        }
    }
    let images = std::array::from_fn::<_, DAEMONS, _>(|daemon| images_of_daemon(cluster, daemon));
    println!(
        "images of each daemon: {:?}",
        images.each_ref().map(BTreeSet::len)
    );
    assert!(images.iter().all(|images| !images.is_empty()), "{images:?}");
    // A daemon that accepts no connection for a moment, as on a machine that stalls, is left out for ten seconds.
    let log = ["--namespace", "openfaas-fn", "logs", "deployment/builder-fn"];
    let is_left_out = kubectl_output(cluster, &log, "").contains("does not answer and is left out");
    // An image that two daemons had built would be counted twice.
    let built = images.iter().map(BTreeSet::len).sum::<usize>();
    assert!(is_left_out || built == IMAGES, "{images:?}");
}
