//! What pods of the cluster can do.

use slipway_stack::Cluster;

use crate::{kubectl, kubectl_output, output_of};

/// The image with a shell and curl that every cluster has.
const TOOLS_IMAGE: &str = "cluster.slipway.invalid/tools:1";

/// Two pods with a shell; one of them serves a file on a volume, behind a Service.
fn manifests_of_pods_claim_and_service() -> String {
    let pod = |name: &str, command: &str, more: &str| {
        format!(
            r#"
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, labels: {{ app: {name} }} }}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {{ runAsUser: 1000, runAsGroup: 1000 }}
  containers:
  - name: main
    image: {TOOLS_IMAGE}
    imagePullPolicy: Never
    command: [sh, -c, "{command}"]
{more}
---
"#
        )
    };
    let volume = "    volumeMounts: [{ name: data, mountPath: /data }]\n  \
                  volumes: [{ name: data, persistentVolumeClaim: { claimName: data } }]";
    let server = pod(
        "server",
        "echo hello > /data/index.html; exec httpd -f -p 8080 -h /data",
        volume,
    );
    let client = pod("client", "sleep 100000", "");
    // Root in the pod is nobody on the node.
    let isolated = pod("isolated", "sleep 100000", "  hostUsers: false");
    format!(
        r#"{server}{client}{isolated}
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{ name: data }}
spec: {{ accessModes: [ReadWriteOnce], resources: {{ requests: {{ storage: 1Gi }} }} }}
---
apiVersion: v1
kind: Service
metadata: {{ name: server }}
spec: {{ selector: {{ app: server }}, ports: [{{ port: 80, targetPort: 8080 }}] }}
"#
    )
}

/// Runs curl in the pod `client` until it succeeds or has been tried for half a minute.
fn curl_in_client_pod_with_retries(cluster: &Cluster, arguments: &[&str]) -> String {
    let curl = [
        &[
            "exec",
            "client",
            "--",
            "curl",
            "--silent",
            "--show-error",
            "--fail",
        ][..],
        &[
            "--retry",
            "30",
            "--retry-all-errors",
            "--retry-delay",
            "1",
            "--max-time",
            "5",
        ],
        arguments,
    ];
    kubectl_output(cluster, &curl.concat(), "")
}

pub(crate) fn volumes_names_and_the_registry_work_in_pods(cluster: &Cluster) {
    kubectl_output(
        cluster,
        &["apply", "--filename=-"],
        &manifests_of_pods_claim_and_service(),
    );
    let wait = [
        "wait",
        "--for=condition=Ready",
        "pod/server",
        "pod/client",
        "pod/isolated",
        "--timeout=120s",
    ];
    kubectl_output(cluster, &wait, "");
    assert_eq!(
        curl_in_client_pod_with_retries(cluster, &["http://server"]),
        "hello\n"
    );
    let registry = "http://registry.registry.svc.cluster.local:5000/v2/_catalog";
    assert!(curl_in_client_pod_with_retries(cluster, &[registry]).contains("repositories"));
}

pub(crate) fn network_policies_are_enforced(cluster: &Cluster) {
    let policy = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: server }
spec:
  podSelector: { matchLabels: { app: server } }
  policyTypes: [Ingress]
  ingress: [{ from: [{ podSelector: { matchLabels: { may: call } } }] }]
"#;
    kubectl_output(cluster, &["apply", "--filename=-"], policy);
    let call = [
        "exec",
        "client",
        "--",
        "curl",
        "--silent",
        "--max-time",
        "2",
        "http://server",
    ];
    // The firewall follows the policy after a moment.
    let denied = (0..30).any(|_| !output_of(&mut kubectl(cluster, &call), "").status.success());
    assert!(denied, "the policy does not keep the client from the server");
    kubectl_output(cluster, &["label", "pod", "client", "may=call"], "");
    assert_eq!(
        curl_in_client_pod_with_retries(cluster, &["http://server"]),
        "hello\n"
    );
}
