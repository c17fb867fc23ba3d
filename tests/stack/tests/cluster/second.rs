//! A second release beside the first one, whose daemon has a small disk, and the test that the chart brings along.

use std::{
    fs::File,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use slipway_stack::Cluster;

use crate::{
    actors::address_of_service,
    chart,
    gateway::{GatewayClient, cluster_variable},
    kubectl, kubectl_output, output_of, run,
    source::{Behaviour, FunctionSource, shell_image, tar_of},
    wait_until,
};

/// The name of the second release, and of its daemon's pod.
const RELEASE: &str = "second";
const DAEMON: &str = "second-slipway-buildkit-0";
const BUILDER: &str = "second-builder";

/// The size of its daemon's disk: an eighth of it is more than the step below writes between two looks of the guard.
const DISK_BYTES: u64 = 3 << 30;

/// The directory of the node with the cluster's volumes.
const VOLUMES: &str = "/var/lib/volumes";

/// The longest time until the disk is mounted.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(60);

/// A step that fills the disk, and one of a neighbour that writes little meanwhile.
const FILLING: &str =
    "RUN while dd if=/dev/zero bs=1M count=32 2>/dev/null >>/large; do sleep 0.2; done; exit 7";
const MODEST: &str = "RUN n=0; while [ $n -lt 200 ]; do dd if=/dev/urandom of=/$n bs=64k count=1 2>/dev/null || exit 1; \
                      sleep 0.1; n=$((n + 1)); done; echo right";

pub(crate) async fn two_releases_share_a_namespace_and_a_step_that_fills_the_disk_ends(
    cluster: &Cluster,
    gateway: &GatewayClient,
) {
    let started = Instant::now();
    mount_small_disk(cluster).await;
    chart::install_release(
        cluster,
        RELEASE,
        &json!({
            "builder": { "name": BUILDER },
            "deployer": { "name": "second-deployer" },
            "buildkit": { "persistence": { "storageClass": "small", "size": "2Gi" } },
            "protectedFunctions": ["builder-fn", "deployer-fn"],
        }),
    );
    let registry = cluster_variable(cluster, "REGISTRY");
    let source = |function, answer| FunctionSource {
        function,
        answer,
        reports_version: false,
        behaviour: Behaviour::Serves,
    };
    let [first, second] = [source("of-first", "first"), source("of-second", "second")];
    let (by_first, by_second) = tokio::join!(
        gateway.build(first.tar(&registry)),
        gateway.build_at(BUILDER, second.tar(&registry)),
    );
    for (answer, source) in [(by_first, first), (by_second, second)] {
        let built = answer.json();
        assert_eq!(built["deployment"]["status"], "ready", "{built:#}");
        let answer = gateway.call(source.function).await.unwrap();
        assert_eq!(answer.body, source.answer);
        gateway.delete_function(source.function).await;
    }
    println!("two releases: {:?}", started.elapsed());

    let image = |name: &str, step: &str| {
        let config =
            json!({ "image": format!("{registry}/test/{name}:1"), "noCache": true, "skipPush": true });
        tar_of(
            &config,
            &format!("FROM {}\n{step}\n", shell_image(&registry)),
            &[],
        )
    };
    let (filling, modest) = tokio::join!(
        gateway.build_at(BUILDER, image("filling", FILLING)),
        gateway.build_at(BUILDER, image("modest", MODEST)),
    );
    let log = kubectl_output(cluster, &["--namespace", "openfaas", "logs", DAEMON], "");
    println!("the step that fills the disk: {}", filling.status);
    assert_ne!(filling.status, 200, "{filling:?}");
    let line = "guard: ending a build step that has written most to a disk that is nearly full";
    assert_eq!(log.matches(line).count(), 1, "{filling:?} {log}");
    assert_eq!(modest.status, 200, "{modest:?}");
    assert!(modest.body.contains("right"), "{modest:?}");
    let restarts = "--output=jsonpath={.status.containerStatuses[0].restartCount}";
    let get = ["--namespace", "openfaas", "get", "pod", DAEMON, restarts];
    assert_eq!(kubectl_output(cluster, &get, ""), "0");
    // The daemon works on.
    let next = gateway.build_at(BUILDER, image("next", "RUN true")).await;
    assert_eq!(next.status, 200, "{next:?}");

    chart::uninstall_release(cluster, RELEASE);
    remove_small_disk(cluster);
}

pub(crate) async fn the_test_of_the_chart_succeeds(cluster: &Cluster, client: &GatewayClient) {
    let registry = cluster_variable(cluster, "REGISTRY");
    // Debian's static busybox resolves no names.
    let gateway = address_of_service(cluster, "openfaas", "gateway");
    chart::upgrade_with(
        cluster,
        &json!({
            "gateway": { "url": format!("http://{gateway}:8080") },
            "sample": { "repository": format!("{registry}/samples"), "baseImage": shell_image(&registry) },
        }),
    );
    let mut helm = Command::new(cluster.programs_directory().join("helm"));
    helm.env("KUBECONFIG", cluster.kubeconfig());
    helm.args(["test", "slipway", "--namespace", "openfaas"]);
    let output = run(&mut helm, "");
    assert!(output.contains("Succeeded"), "{output}");
    client.delete_function("slipway-sample").await;
}

/// Makes a file system in an image among the cluster's volumes, and mounts it there: a privileged pod does, because the
/// mounts of the node are the cluster's own.
async fn mount_small_disk(cluster: &Cluster) {
    let image = cluster.dir.root.join("data/volumes/small.img");
    File::create(&image).unwrap().set_len(DISK_BYTES).unwrap();
    run(
        Command::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0"])
            .arg(&image),
        "",
    );
    let mounting = "mkdir -p /volumes/small && mount -o loop /volumes/small.img /volumes/small && \
                    mkdir -p /volumes/small/data && chmod 777 /volumes/small/data && touch /mounted; \
                    trap 'umount /volumes/small; exit 0' TERM; sleep 1000000 & wait";
    let mount = |name: &str, path: &str| json!({ "name": name, "hostPath": { "path": path } });
    let objects: [Value; 3] = [
        json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": { "name": "small" },
            "provisioner": "kubernetes.io/no-provisioner",
        }),
        json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": { "name": "small" },
            "spec": {
                "storageClassName": "small",
                "capacity": { "storage": "2Gi" },
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": { "path": format!("{VOLUMES}/small/data") },
            },
        }),
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": "small-disk", "namespace": "default" },
            "spec": {
                "terminationGracePeriodSeconds": 20,
                "automountServiceAccountToken": false,
                "containers": [{
                    "name": "main",
                    "image": "cluster.slipway.invalid/tools:1",
                    "imagePullPolicy": "Never",
                    "command": ["sh", "-c", mounting],
                    "securityContext": { "privileged": true },
                    "volumeMounts": [
                        { "name": "volumes", "mountPath": "/volumes", "mountPropagation": "Bidirectional" },
                        { "name": "devices", "mountPath": "/dev" },
                    ],
                }],
                "volumes": [mount("volumes", VOLUMES), mount("devices", "/dev")],
            },
        }),
    ];
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    kubectl_output(cluster, &["apply", "--filename=-"], &list.to_string());
    wait_until("the small disk is mounted", MOUNT_TIMEOUT, || {
        let mounted = ["exec", "small-disk", "--", "ls", "/mounted"];
        output_of(&mut kubectl(cluster, &mounted), "").status.success()
    })
    .await;
}

fn remove_small_disk(cluster: &Cluster) {
    let claim = "state-second-slipway-buildkit-0";
    for object in [
        ["--namespace=openfaas", "persistentvolumeclaim", claim],
        ["--namespace=default", "persistentvolume", "small"],
        ["--namespace=default", "storageclass", "small"],
        ["--namespace=default", "pod", "small-disk"],
    ] {
        let [namespace, kind, name] = object;
        kubectl_output(cluster, &[namespace, "delete", kind, name, "--timeout=120s"], "");
    }
}
