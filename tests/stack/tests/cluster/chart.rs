//! The chart on the cluster: installed as its README says, it turns source into a function that answers.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use slipway_stack::Cluster;

use crate::{
    gateway::{GatewayClient, cluster_variable},
    kubectl_output, run,
    source::{Behaviour, FunctionSource, shell_tar},
};

/// The values that differ from the chart's: the cluster's own images and registry, and a small machine.
const VALUES_FILE: &str = "tests/stack/tests/cluster/values.yaml";

/// The function that the test builds.
const FUNCTION: &str = "hello";

fn repository_root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    root.unwrap().to_owned()
}

/// Creates the secrets that the chart's README names, installs the chart, and waits until its pods are ready.
pub(crate) fn install(cluster: &Cluster) {
    create_secrets(cluster);
    install_with_values(cluster, &[]);
}

/// Installs the chart, or upgrades its release, with these values besides those of the file, and waits until its pods
/// are ready.
pub(crate) fn install_with_values(cluster: &Cluster, values: &[&str]) {
    upgrade_or_install(cluster, "slipway", values, "");
}

/// Upgrades the release with these values, an object, besides those of the file, and waits until its pods are ready.
pub(crate) fn upgrade_with(cluster: &Cluster, values: &Value) {
    upgrade_or_install(cluster, "slipway", &[], &values.to_string());
}

/// Installs a further release of this name with these values, an object, besides those of the file, and waits until its
/// pods are ready.
pub(crate) fn install_release(cluster: &Cluster, release: &str, values: &Value) {
    upgrade_or_install(cluster, release, &[], &values.to_string());
}

/// Removes a release, and waits until its pods are gone.
pub(crate) fn uninstall_release(cluster: &Cluster, release: &str) {
    let mut helm = Command::new(cluster.programs_directory().join("helm"));
    helm.env("KUBECONFIG", cluster.kubeconfig());
    helm.args(["uninstall", release, "--namespace", "openfaas"]);
    helm.args(["--wait", "--timeout", "10m"]);
    run(&mut helm, "");
}

fn upgrade_or_install(cluster: &Cluster, release: &str, values: &[&str], more: &str) {
    let mut helm = Command::new(cluster.programs_directory().join("helm"));
    helm.current_dir(repository_root())
        .env("KUBECONFIG", cluster.kubeconfig());
    helm.args(["upgrade", "--install", release, "chart/slipway"]);
    helm.args(["--namespace", "openfaas", "--values", VALUES_FILE]);
    if !more.is_empty() {
        helm.args(["--values", "-"]);
    }
    helm.args(values.iter().flat_map(|value| ["--set", value]));
    helm.args(["--wait", "--timeout", "10m"]);
    run(&mut helm, more);
}

pub(crate) async fn the_chart_turns_source_into_a_function_that_answers(
    cluster: &Cluster,
    gateway: &GatewayClient,
) {
    let registry = cluster_variable(cluster, "REGISTRY");
    let built = gateway.build(shell_tar(&registry)).await.json();
    assert_eq!(built["status"], "success", "{built}");

    let version = |answer| FunctionSource {
        function: FUNCTION,
        answer,
        reports_version: false,
        behaviour: Behaviour::Serves,
    };
    let built = gateway.build(version("built").tar(&registry)).await.json();
    assert_eq!(built["status"], "success", "{built}");
    assert_eq!(built["deployment"]["status"], "ready", "{built}");
    let answer = gateway.call(FUNCTION).await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "built"));
    let first = gateway.image_of(FUNCTION).await;
    assert!(
        first.starts_with(&format!("{registry}/test/{FUNCTION}")) && first.contains("@sha256:"),
        "{first}"
    );

    let queued = gateway.queue_build(version("queued").tar(&registry)).await;
    assert_eq!(queued.status, 202, "{queued:?}");
    gateway.wait_for_answer(FUNCTION, "queued").await;
    assert_ne!(gateway.image_of(FUNCTION).await, first);
}

/// Creates the secrets that the chart's README names.
fn create_secrets(cluster: &Cluster) {
    let read = |name: &str| fs::read_to_string(cluster_variable(cluster, name)).unwrap();
    let secret = |name: &str, values: Value| {
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "name": name, "namespace": "openfaas-fn" },
            "stringData": values,
        })
    };
    let secrets = [
        secret(
            "payload-secret",
            json!({ "payload-secret": read("PAYLOAD_SECRET") }),
        ),
        secret("deploy-secret", json!({ "deploy-secret": read("DEPLOY_SECRET") })),
        secret("registry-config", json!({ "registry-config": "{\"auths\":{}}" })),
        secret(
            "basic-auth",
            json!({
                "basic-auth-user": cluster_variable(cluster, "OPENFAAS_USER"),
                "basic-auth-password": cluster_variable(cluster, "OPENFAAS_PASSWORD"),
            }),
        ),
    ];
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": secrets });
    kubectl_output(cluster, &["apply", "--filename=-"], &list.to_string());
}

/// The kinds of objects that the chart makes, other than the volume claims of its StatefulSet.
const KINDS_OF_CHART: &str = "deployments,statefulsets,cronjobs,jobs,services,configmaps,secrets,serviceaccounts,roles,\
                              rolebindings,networkpolicies,poddisruptionbudgets";

pub(crate) async fn uninstalling_leaves_only_volume_claims_secrets_and_functions(
    cluster: &Cluster,
    gateway: &GatewayClient,
) {
    let names = |kinds: &str, selector: &[&str]| {
        let get = ["get", kinds, "--all-namespaces", "--output=name"];
        kubectl_output(cluster, &[&get[..], selector].concat(), "")
    };
    let of_release = ["--selector=app.kubernetes.io/instance=slipway"];
    let installed = names(KINDS_OF_CHART, &of_release);
    for kind in KINDS_OF_CHART.split(',').filter(|kind| *kind != "jobs") {
        let kind = kind.trim_end_matches("ies").trim_end_matches('s');
        assert!(installed.contains(kind), "{kind} is missing in {installed}");
    }

    uninstall_release(cluster, "slipway");
    assert_eq!(names(KINDS_OF_CHART, &of_release), "");
    assert!(names("persistentvolumeclaims", &of_release).contains("state-slipway-buildkit-0"));
    let secrets = names("secrets", &["--field-selector=metadata.namespace=openfaas-fn"]);
    for name in ["payload-secret", "deploy-secret", "registry-config", "basic-auth"] {
        assert!(secrets.contains(name), "{name} is missing in {secrets}");
    }
    assert_eq!(gateway.call(FUNCTION).await.unwrap().body, "queued");
}
