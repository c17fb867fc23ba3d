//! The certificates between builder and daemon: who reaches the daemon with which, and their renewal beside a build.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use slipway_stack::Cluster;

use crate::{
    actors::{BUILDERS_DOUBLE, NEIGHBOUR, address_of},
    gateway::GatewayClient,
    hostile::Tenants,
    kubectl, kubectl_output, output_of,
    step::in_pod_of_daemon,
    wait_until,
};

/// The pod of the daemon.
const DAEMON: &str = "openfaas/slipway-buildkit-0";

/// The longest time until a renewed secret is in a pod. The kubelet looks about once a minute, and reads from a cache.
const SECRET_TIMEOUT: Duration = Duration::from_secs(240);

/// The longest time until the kubelet restarts a container whose probe fails three times, every 30 s.
const RESTART_TIMEOUT: Duration = Duration::from_secs(240);

/// Lists the daemon's workers with buildctl in three ways, in a pod with the builder's certificate in `/tls` and the
/// daemon's address in `$at`. Prints a line for each.
const LIST_WORKERS: &str = r#"
cd /tmp
printf '[req]\ndistinguished_name = subject\n[subject]\n' >request
openssl req -config request -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=forged \
    -keyout authority.key -out authority.crt 2>/dev/null || echo no authority
openssl req -config request -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=builder-fn \
    -keyout forged.key -out forged.csr 2>/dev/null || echo no request
openssl x509 -req -in forged.csr -CA authority.crt -CAkey authority.key -set_serial 1 -days 1 -out forged.crt 2>/dev/null ||
    echo no certificate
list() {
    name=$1
    shift
    if timeout 20 buildctl --timeout 5 --addr "tcp://$at:1234" "$@" debug workers >listed 2>error; then
        echo "LISTED $name $(head -c 20 listed | tr '\n' ' ')"
    else
        echo "REFUSED $name $(tr '\n' ' ' <error | tail -c 300)"
    fi
}
tls="--tlsservername slipway-buildkit.openfaas --tlscacert /tls/ca.crt"
list plain
list none $tls
list forged $tls --tlscert forged.crt --tlskey forged.key
list genuine $tls --tlscert /tls/tls.crt --tlskey /tls/tls.key
"#;

pub(crate) fn only_the_builder_with_its_certificate_reaches_the_daemon(cluster: &Cluster) {
    let address = address_of(cluster, DAEMON);
    let list = |pod: &str| {
        let (namespace, pod) = pod.split_once('/').unwrap();
        let exec = ["--namespace", namespace, "exec", "--stdin", pod, "--", "sh"];
        let output = kubectl_output(cluster, &exec, &format!("at={address}\n{LIST_WORKERS}"));
        println!("{pod}: {output}");
        output
    };
    let by_builder = list(BUILDERS_DOUBLE);
    for way in ["plain", "none", "forged"] {
        // The daemon ends the connection, at this or that moment of the exchange.
        let line = by_builder
            .lines()
            .find(|line| line.starts_with(&format!("REFUSED {way} ")));
        let is_refused = line.is_some_and(|line| !line.contains("deadline") && !line.contains("usage"));
        assert!(is_refused, "{way}: {by_builder}");
    }
    assert!(by_builder.contains("LISTED genuine ID"), "{by_builder}");
    // The network policy keeps out a pod that has the certificate and is not the builder.
    let by_neighbour = list(NEIGHBOUR);
    assert!(!by_neighbour.contains("LISTED"), "{by_neighbour}");
    assert!(by_neighbour.contains("REFUSED genuine"), "{by_neighbour}");
}

/// What is known of the daemon's container and its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DaemonState {
    /// The serial number of the certificate with which it answers.
    serial: String,
    restarts: u32,
}

impl DaemonState {
    fn of(cluster: &Cluster) -> Self {
        let address = address_of(cluster, DAEMON);
        let script = format!(
            "openssl s_client -connect {address}:1234 -CAfile /tls/ca.crt -cert /tls/tls.crt -key /tls/tls.key </dev/null \
             2>/dev/null | openssl x509 -noout -serial"
        );
        let exec = [
            "--namespace",
            "openfaas-fn",
            "exec",
            "--stdin",
            "builders-double",
            "--",
            "sh",
        ];
        let serial = output_of(&mut kubectl(cluster, &exec), &script).stdout;
        Self {
            serial: String::from_utf8_lossy(&serial).into_owned(),
            restarts: restarts_of_daemon(cluster),
        }
    }
}

/// Returns how often the container of the daemon was restarted.
pub(crate) fn restarts_of_daemon(cluster: &Cluster) -> u32 {
    let restarts = "--output=jsonpath={.status.containerStatuses[0].restartCount}";
    let get = [
        "--namespace",
        "openfaas",
        "get",
        "pod",
        "slipway-buildkit-0",
        restarts,
    ];
    kubectl_output(cluster, &get, "").parse().unwrap()
}

pub(crate) async fn a_renewed_certificate_restarts_the_daemon_once_its_build_has_ended(
    cluster: &Cluster,
    gateway: &Arc<GatewayClient>,
    tenants: &Tenants,
) {
    let before = DaemonState::of(cluster);
    assert!(before.serial.starts_with("serial="), "{before:?}");
    let build = tenants
        .victim
        .start_gated_build(cluster, gateway, "gate-of-renewal")
        .await;

    run_renewal_as_if_certificates_were_due(cluster);
    // The kubelet brings the secret into the pod sooner if the pod changes.
    let annotate = [
        "--namespace",
        "openfaas",
        "annotate",
        "pod",
        "slipway-buildkit-0",
        "renewed=yes",
    ];
    kubectl_output(cluster, &annotate, "");
    let file = "openssl x509 -in /etc/buildkit-tls/tls.crt -noout -serial\n";
    wait_until(
        "the renewed certificate is in the daemon's pod",
        SECRET_TIMEOUT,
        || {
            let serial = in_pod_of_daemon(cluster, file);
            serial.starts_with("serial=") && serial != before.serial
        },
    )
    .await;

    // While a build runs, the probe succeeds and the daemon keeps its certificate.
    let alive = "sh /etc/buildkit/alive.sh >/dev/null 2>&1; echo $?\n";
    assert_eq!(in_pod_of_daemon(cluster, alive).trim(), "0");
    assert_eq!(DaemonState::of(cluster), before);
    build.finish().await;

    assert_eq!(in_pod_of_daemon(cluster, alive).trim(), "1");
    wait_until("the daemon has restarted", RESTART_TIMEOUT, || {
        restarts_of_daemon(cluster) > before.restarts
    })
    .await;
    // A build that arrives during the restart waits for the daemon.
    let answer = tenants
        .mallory
        .build(gateway, "after-renewal", &tenants.mallory.dockerfile("RUN true"))
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let after = DaemonState::of(cluster);
    assert_ne!(after.serial, before.serial);
    assert_eq!(after.restarts, before.restarts + 1);
    assert_eq!(in_pod_of_daemon(cluster, alive).trim(), "0");
    only_the_builder_with_its_certificate_reaches_the_daemon(cluster);
}

/// Runs the job that renews certificates, with a validity of ten years in place of one: then they have less than a
/// third of it left.
fn run_renewal_as_if_certificates_were_due(cluster: &Cluster) {
    let create = [
        "--namespace",
        "openfaas",
        "create",
        "job",
        "renew-now",
        "--from=cronjob/slipway-renewal",
        "--dry-run=client",
        "--output=json",
    ];
    let mut job: Value = serde_json::from_str(&kubectl_output(cluster, &create, "")).unwrap();
    let variables = &mut job["spec"]["template"]["spec"]["containers"][0]["env"];
    let variables = variables.as_array_mut().unwrap();
    let days = variables.iter_mut().find(|variable| variable["name"] == "DAYS");
    days.unwrap()["value"] = json!("3650");
    kubectl_output(cluster, &["apply", "--filename=-"], &job.to_string());
    let wait = [
        "--namespace",
        "openfaas",
        "wait",
        "--for=condition=Complete",
        "job/renew-now",
        "--timeout=180s",
    ];
    kubectl_output(cluster, &wait, "");
    let log = ["--namespace", "openfaas", "logs", "job/renew-now"];
    let log = kubectl_output(cluster, &log, "");
    assert_eq!(log.matches("renewed ").count(), 3, "{log}");
    kubectl_output(
        cluster,
        &["--namespace", "openfaas", "delete", "job", "renew-now"],
        "",
    );
}
