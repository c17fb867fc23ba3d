//! Pods that attack, pods that show what can be reached, and a server that an attacker looks for.

use std::time::Duration;

use serde_json::{Value, json};
use slipway_stack::Cluster;

use crate::{kubectl_output, wait_until};

/// The image with a shell and curl.
const TOOLS_IMAGE: &str = "cluster.slipway.invalid/tools:1";

/// The image with buildctl and openssl.
const BUILDKIT_IMAGE: &str = "cluster.slipway.invalid/buildkit:1";

/// The addresses of clouds' metadata services. The cluster has no IPv6, so fd00:ec2::254 is not among them.
pub(crate) const METADATA_ADDRESSES: [&str; 5] = [
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "168.63.129.16",
    "100.100.100.200",
];

/// A pod without a role in the platform, with a token of Kubernetes.
pub(crate) const OUTSIDER: &str = "default/outsider";
/// A pod in the namespace of the gateway.
pub(crate) const PLATFORM: &str = "openfaas/platform";
/// A pod with the label of the builder, and the builder's certificate.
pub(crate) const BUILDERS_DOUBLE: &str = "openfaas-fn/builders-double";
/// A pod with the label of the deployer.
pub(crate) const DEPLOYERS_DOUBLE: &str = "openfaas-fn/deployers-double";
/// A pod of the functions' namespace without a label, and with the builder's certificate.
pub(crate) const NEIGHBOUR: &str = "openfaas-fn/neighbour";
/// A pod with a web server, which also has the addresses of metadata services.
pub(crate) const BAIT: &str = "default/bait";
/// A pod that routes these addresses to [`BAIT`], as the network of a cloud does.
const ROUTER: &str = "default/router";

/// The pods that take part in the tests, besides the router, which needs the address of one of them.
const ACTORS: [&str; 6] = [
    OUTSIDER,
    PLATFORM,
    BUILDERS_DOUBLE,
    DEPLOYERS_DOUBLE,
    NEIGHBOUR,
    BAIT,
];

/// The port of the bait's server that redirects to a metadata service.
pub(crate) const REDIRECTING_PORT: u16 = 8081;

/// Answers each request on its connection with a redirect.
const REDIRECT: &str = r#"#!/bin/sh
end=$(printf '\r')
while read -r line && [ "$line" != "$end" ]; do :; done
printf 'HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/index.html\r\nContent-Length: 0\r\nConnection: close\r\n\r\n'
"#;

/// Creates all pods, and waits until they run and the addresses of metadata services lead to the bait.
pub(crate) async fn create(cluster: &Cluster) {
    let sleeping = "sleep 1000000";
    let addresses = METADATA_ADDRESSES.join(" ");
    let serving = format!(
        "for at in {addresses}; do ip address add $at/32 dev lo; done; mkdir -p /www; echo bait >/www/index.html; \
         printf '%s' \"$REDIRECT\" >/redirect; chmod 755 /redirect; httpd -f -vv -p 80 -h /www & \
         exec nc -ll -p {REDIRECTING_PORT} -e /redirect"
    );
    let mut bait = pod(BAIT, TOOLS_IMAGE, &serving, json!({}));
    let container = &mut bait["spec"]["containers"][0];
    container["securityContext"] = json!({ "capabilities": { "add": ["NET_ADMIN"] } });
    container["env"] = json!([{ "name": "REDIRECT", "value": REDIRECT }]);
    let with_certificate = |mut pod: Value| {
        let spec = &mut pod["spec"];
        spec["volumes"] =
            json!([{ "name": "tls", "secret": { "secretName": "slipway-buildkit-client-tls" } }]);
        spec["containers"][0]["volumeMounts"] = json!([{ "name": "tls", "mountPath": "/tls" }]);
        pod
    };
    let double = |name, image, of: &str| pod(name, image, sleeping, json!({ "faas_function": of }));
    let mut outsider = pod(OUTSIDER, TOOLS_IMAGE, sleeping, json!({}));
    outsider["spec"]["automountServiceAccountToken"] = json!(true);
    let pods = [
        outsider,
        pod(PLATFORM, TOOLS_IMAGE, sleeping, json!({})),
        with_certificate(double(BUILDERS_DOUBLE, BUILDKIT_IMAGE, "builder-fn")),
        double(DEPLOYERS_DOUBLE, TOOLS_IMAGE, "deployer-fn"),
        with_certificate(pod(NEIGHBOUR, BUILDKIT_IMAGE, sleeping, json!({}))),
        bait,
    ];
    apply(cluster, &pods);
    wait_until_running(cluster, &ACTORS);

    let bait = address_of(cluster, BAIT);
    let routing =
        format!("for at in {addresses}; do ip route replace $at/32 via {bait} || exit 1; done; {sleeping}");
    let mut router = pod(ROUTER, TOOLS_IMAGE, &routing, json!({}));
    router["spec"]["hostNetwork"] = json!(true);
    router["spec"]["containers"][0]["securityContext"] = json!({ "capabilities": { "add": ["NET_ADMIN"] } });
    apply(cluster, &[router]);
    wait_until_running(cluster, &[ROUTER]);
    wait_until(
        "the bait answers at all its addresses",
        Duration::from_secs(60),
        || {
            let answers = METADATA_ADDRESSES.map(|at| {
                curl_in_pod(cluster, OUTSIDER, &[&format!("http://{at}/index.html")]).contains("bait")
            });
            answers.iter().all(|answers| *answers)
        },
    )
    .await;
}

/// Removes all pods, and the routes.
pub(crate) fn remove(cluster: &Cluster) {
    let addresses = METADATA_ADDRESSES.join(" ");
    let removing = format!("for at in {addresses}; do ip route delete $at/32; done");
    kubectl_output(cluster, &["exec", "router", "--", "sh", "-c", &removing], "");
    for pod in ACTORS.into_iter().chain([ROUTER]) {
        let (namespace, name) = pod.split_once('/').unwrap();
        let delete = ["--namespace", namespace, "delete", "pod", name, "--wait=false"];
        kubectl_output(cluster, &delete, "");
    }
}

/// Runs curl in a pod, and returns what it prints, whether it succeeded or not.
pub(crate) fn curl_in_pod(cluster: &Cluster, pod: &str, arguments: &[&str]) -> String {
    let (namespace, pod) = pod.split_once('/').unwrap();
    let exec = ["--namespace", namespace, "exec", pod, "--", "curl"];
    let curl = ["--silent", "--show-error", "--max-time", "4"];
    let mut command = crate::kubectl(cluster, &[&exec[..], &curl, arguments].concat());
    let output = crate::output_of(&mut command, "");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns the IP address of a pod. `pod` is `NAMESPACE/NAME`.
pub(crate) fn address_of(cluster: &Cluster, pod: &str) -> String {
    let (namespace, pod) = pod.split_once('/').unwrap();
    let address = "--output=jsonpath={.status.podIP}";
    let address = kubectl_output(
        cluster,
        &["--namespace", namespace, "get", "pod", pod, address],
        "",
    );
    assert!(!address.is_empty(), "{pod} has no address");
    address
}

/// Returns the IP address of the running pod with this label.
pub(crate) fn address_of_labelled(cluster: &Cluster, namespace: &str, label: &str) -> String {
    let get = [
        "--namespace",
        namespace,
        "get",
        "pods",
        "--selector",
        label,
        "--field-selector=status.phase=Running",
        "--output=jsonpath={.items[*].status.podIP}",
    ];
    let addresses = kubectl_output(cluster, &get, "");
    let address = addresses.split_whitespace().next();
    address.unwrap().to_owned()
}

/// Returns the address of a Service.
pub(crate) fn address_of_service(cluster: &Cluster, namespace: &str, name: &str) -> String {
    let address = "--output=jsonpath={.spec.clusterIP}";
    kubectl_output(
        cluster,
        &["--namespace", namespace, "get", "service", name, address],
        "",
    )
}

/// Returns the manifest of a pod that runs a command as root. It is never ready, so that no Service leads to it: some
/// have the label of a function.
fn pod(name: &str, image: &str, command: &str, labels: Value) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": labels },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "containers": [{
                "name": "main",
                "image": image,
                "imagePullPolicy": "Never",
                "command": ["sh", "-c", command],
                "readinessProbe": { "exec": { "command": ["false"] }, "periodSeconds": 3600 },
            }],
        },
    })
}

fn apply(cluster: &Cluster, objects: &[Value]) {
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    kubectl_output(cluster, &["apply", "--filename=-"], &list.to_string());
}

fn wait_until_running(cluster: &Cluster, pods: &[&str]) {
    for pod in pods {
        let (namespace, pod) = pod.split_once('/').unwrap();
        let pod = format!("pod/{pod}");
        let running = "--for=jsonpath={.status.phase}=Running";
        let wait = ["--namespace", namespace, "wait", running, &pod, "--timeout=120s"];
        kubectl_output(cluster, &wait, "");
    }
}
