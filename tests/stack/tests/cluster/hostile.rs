//! Attacks by build steps on the chart's daemon, and by pods on the ports of the release, with each layer of protection
//! alone and with both.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde_json::{Value, json};
use slipway_stack::Cluster;

use crate::{
    actors::{
        self, BAIT, BUILDERS_DOUBLE, DEPLOYERS_DOUBLE, METADATA_ADDRESSES, OUTSIDER, PLATFORM, address_of,
        address_of_labelled, address_of_service,
    },
    certificates::only_the_builder_with_its_certificate_reaches_the_daemon,
    chart,
    gateway::{GatewayClient, cluster_variable},
    kubectl_output,
    probe::{PROBES, report_of_probe, script_of_probes},
    reach::{Target, names_of, reached_by_pod, reached_in_output, script_that_tries},
    step::{GatedBuild, PORT_OF_VICTIMS_STEP, Tenant, in_pod_of_daemon},
    tenants::add_from_metadata_services,
    wait_until,
};

/// The longest time until the firewall of the cluster follows the policies of an upgrade.
const POLICY_TIMEOUT: Duration = Duration::from_secs(60);

/// The layers that keep build steps from addresses of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layers {
    /// The network of steps with its firewall, and the network policies.
    Both,
    /// The network of steps with its firewall.
    FirewallAlone,
    /// The network policies. Steps use the network of the daemon's pod.
    PoliciesAlone,
}

impl Layers {
    fn values(self) -> Value {
        match self {
            Self::Both => json!({}),
            Self::FirewallAlone => json!({ "networkPolicy": { "enabled": false } }),
            Self::PoliciesAlone => json!({ "buildkit": { "stepNetwork": "daemon" } }),
        }
    }
}

/// The tenants of the tests. Their keys are in the secrets `NAME-payload`.
#[derive(Debug, Clone)]
pub(crate) struct Tenants {
    pub(crate) victim: Tenant,
    pub(crate) mallory: Tenant,
}

impl Tenants {
    /// Creates the tenants' secrets.
    pub(crate) fn create(cluster: &Cluster) -> Self {
        let registry = cluster_variable(cluster, "REGISTRY");
        let tenant = |name: &'static str| {
            let key = format!("the-key-of-{name}");
            let secret = json!({
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": { "name": format!("{name}-payload"), "namespace": "openfaas-fn" },
                "stringData": { "key": key },
            });
            kubectl_output(cluster, &["apply", "--filename=-"], &secret.to_string());
            Tenant {
                name,
                key,
                registry: registry.clone(),
            }
        };
        Self {
            victim: tenant("victim"),
            mallory: tenant("mallory"),
        }
    }

    /// Returns values of the chart with a policy for the tenants, and with the bait as a server that the operator
    /// opens for builds.
    pub(crate) fn values(&self, cluster: &Cluster) -> Value {
        let bait = address_of(cluster, BAIT);
        let rules = |tenant: &Tenant| {
            json!({
                "keys": [format!("{}-payload", tenant.name)],
                "push": [format!("{}/{}/", tenant.registry, tenant.name)],
                "read": {
                    "images": [format!("{}/test/", tenant.registry)],
                    "http": [format!("http://{bait}/"), format!("http://{bait}:{}/", actors::REDIRECTING_PORT)],
                },
            })
        };
        let secret = |tenant: &Tenant| json!({ "name": format!("{}-payload", tenant.name), "key": "key" });
        json!({
            "policy": { "tenants": { "victim": rules(&self.victim), "mallory": rules(&self.mallory) } },
            "secrets": { "tenants": {
                "victim-payload": secret(&self.victim),
                "mallory-payload": secret(&self.mallory),
            } },
            "builder": { "allowedSources": [bait] },
            "networkPolicy": { "allowedToBuilds": [format!("{bait}/32")] },
        })
    }
}

/// What an attacker's step tries to reach, by where it can be reached from.
struct Targets {
    /// What pods without a role reach.
    of_outsiders: Vec<Target>,
    /// What pods in the gateway's namespace reach.
    of_platform: Vec<Target>,
    /// What a pod with the builder's label reaches.
    of_builder: Vec<Target>,
    /// What the daemon's own pod reaches.
    of_daemon: Vec<Target>,
    /// What the victim's step itself reaches.
    of_victim: Vec<Target>,
    /// What the operator opens for builds.
    opened: Vec<Target>,
}

impl Targets {
    fn of_cluster(cluster: &Cluster, victim: &GatedBuild) -> Self {
        let node = cluster.node_address().to_string();
        let gateway = address_of_labelled(cluster, "openfaas", "app=gateway");
        let nats = address_of_labelled(cluster, "openfaas", "app=nats");
        let service = |namespace, name| address_of_service(cluster, namespace, name);
        let mut of_outsiders = vec![
            Target::new("gateway-service", service("openfaas", "gateway"), 8080),
            Target::new("gateway-pod", &gateway, 8080),
            Target::new("gateway-node-port", &node, 31112),
            Target::new("provider-pod", &gateway, 8081),
            Target::new("nats-service", service("openfaas", "nats"), 4222),
            Target::new("nats-pod", nats, 4222),
            Target::new("registry-service", service("registry", "registry"), 5000),
            Target::new(
                "registry-pod",
                address_of_labelled(cluster, "registry", "app=registry"),
                5000,
            ),
            Target::new("api-service", service("default", "kubernetes"), 443),
            Target::new("api-node", &node, 6443),
            Target::new("kubelet", &node, 10250),
        ];
        let metadata = METADATA_ADDRESSES.map(|at| Target::new(format!("metadata-{at}"), at, 80));
        of_outsiders.extend(metadata);
        let mut of_platform = Vec::new();
        for function in ["builder-fn", "deployer-fn"] {
            let pod = address_of_labelled(
                cluster,
                "openfaas-fn",
                &format!("faas_function={function},pod-template-hash"),
            );
            of_platform.extend([
                Target::new(
                    format!("{function}-service"),
                    service("openfaas-fn", function),
                    8080,
                ),
                Target::new(format!("{function}-pod"), &pod, 8080),
                Target::new(format!("{function}-metrics"), &pod, 8081),
            ]);
        }
        let daemon = address_of(cluster, "openfaas/slipway-buildkit-0");
        let steps = victim.addresses_on_which_it_listens();
        let steps = steps
            .iter()
            .map(|at| Target::new(format!("victims-step-at-{at}"), at, PORT_OF_VICTIMS_STEP));
        Self {
            of_outsiders,
            of_platform,
            of_builder: vec![Target::new("daemon-pod", daemon, 1234)],
            of_daemon: vec![
                Target::new("daemon-loopback", "127.0.0.1", 1234),
                Target::new("daemon-bridge", "198.18.0.1", 1234),
            ],
            of_victim: steps.collect(),
            opened: vec![Target::new("opened", address_of(cluster, BAIT), 80)],
        }
    }

    fn all(&self) -> Vec<Target> {
        [
            &self.of_outsiders[..],
            &self.of_platform,
            &self.of_builder,
            &self.of_daemon,
            &self.of_victim,
            &self.opened,
        ]
        .concat()
    }
}

/// Runs the attacks by a step beside a running step of a victim, and the attacks on ports and by `ADD`, with these layers
/// of protection.
pub(crate) async fn a_build_reaches_nothing_of_the_cluster_with(
    layers: Layers,
    cluster: &Cluster,
    gateway: &Arc<GatewayClient>,
    tenants: &Tenants,
) {
    let mut values = tenants.values(cluster);
    merge(&mut values, layers.values());
    chart::upgrade_with(cluster, &values);
    attack_by_step(cluster, gateway, tenants, layers).await;
    let is_egress_filtered = layers != Layers::FirewallAlone;
    add_from_metadata_services(cluster, gateway, tenants, is_egress_filtered).await;
    if is_egress_filtered {
        only_the_builder_with_its_certificate_reaches_the_daemon(cluster);
    }
}

/// Runs the attacks by a step beside a running step of the victim.
async fn attack_by_step(cluster: &Cluster, gateway: &Arc<GatewayClient>, tenants: &Tenants, layers: Layers) {
    let victim = tenants
        .victim
        .start_gated_build(cluster, gateway, "gate-of-the-victim")
        .await;
    let targets = Targets::of_cluster(cluster, &victim);

    // Everything is there, and is reached from where it may be.
    let controls = [
        (OUTSIDER, &targets.of_outsiders),
        (PLATFORM, &targets.of_platform),
        (BUILDERS_DOUBLE, &targets.of_builder),
        (OUTSIDER, &targets.opened),
    ];
    for (pod, targets) in controls {
        wait_until("what may be reached is reached", POLICY_TIMEOUT, || {
            let missing = &names_of(targets) - &reached_by_pod(cluster, pod, targets);
            println!("not reached by {pod} yet: {missing:?}");
            missing.is_empty()
        })
        .await;
    }
    let output = in_pod_of_daemon(cluster, &script_that_tries(&targets.of_daemon));
    let by_daemon = reached_in_output(&output, &targets.of_daemon);
    // Steps in the daemon's network have no bridge.
    let has_bridge = layers != Layers::PoliciesAlone;
    assert!(by_daemon.contains("daemon-loopback"), "{by_daemon:?}");
    assert_eq!(by_daemon.contains("daemon-bridge"), has_bridge, "{by_daemon:?}");
    if layers != Layers::FirewallAlone {
        keep_pods_out(cluster, &targets).await;
    }

    let all = targets.all();
    let script = format!("{}{}", script_of_probes(), script_that_tries(&all));
    let output = tenants.mallory.run_in_step(gateway, "attack", &script).await;
    for line in output.lines().filter_map(|line| line.strip_prefix("l: ")) {
        println!("{layers:?}: {line}");
    }
    for probe in PROBES {
        let (code, text) = report_of_probe(&output, probe.name);
        // In the daemon's network, the names of its sockets are visible; their files are not.
        let is_visible = layers == Layers::PoliciesAlone && probe.name == "daemon-by-socket-names";
        assert_eq!(
            code == "0",
            probe.is_control || is_visible,
            "{layers:?}: {}: {code} {text}",
            probe.name
        );
    }
    let mut expected = names_of(&targets.opened);
    if layers == Layers::PoliciesAlone {
        // Policies know pods: this step has the daemon's network, with its loopback device and its registry. TLS
        // protects the daemon's port.
        let daemons = [
            "daemon-loopback",
            "daemon-pod",
            "registry-service",
            "registry-pod",
        ];
        expected.extend(daemons.map(str::to_owned));
        expected.extend(names_of(&targets.of_victim));
    } else {
        // A step of its own network has another loopback device, and its own address.
        assert!(!targets.of_victim.is_empty());
    }
    assert_eq!(reached_in_output(&output, &all), expected, "{layers:?}: {output}");
    assert_users_and_processes_are_the_pods_own(cluster, &output);
    victim.finish().await;
}

/// Asserts that pods reach only those ports of the release that the policies open for them.
async fn keep_pods_out(cluster: &Cluster, targets: &Targets) {
    let forbidden = [&targets.of_platform[..], &targets.of_builder].concat();
    for pod in [OUTSIDER, actors::NEIGHBOUR] {
        wait_until("what is closed is not reached", POLICY_TIMEOUT, || {
            let reached = reached_by_pod(cluster, pod, &forbidden);
            println!("reached by {pod}: {reached:?}");
            reached.is_empty()
        })
        .await;
    }
    assert_eq!(
        reached_by_pod(cluster, PLATFORM, &targets.of_builder),
        BTreeSet::new()
    );
    // The deployer calls the gateway and the Kubernetes API, and no other pod.
    let gateway = targets.of_outsiders.iter();
    let gateway: Vec<_> = gateway
        .filter(|target| target.name.starts_with("gateway-pod"))
        .cloned()
        .collect();
    let tried = [&gateway[..], &targets.opened, &targets.of_builder].concat();
    wait_until(
        "the deployer reaches the gateway and no other pod",
        POLICY_TIMEOUT,
        || {
            let reached = reached_by_pod(cluster, DEPLOYERS_DOUBLE, &tried);
            println!("reached by {DEPLOYERS_DOUBLE}: {reached:?}");
            reached == names_of(&gateway)
        },
    )
    .await;
}

/// Asserts that root of a step and of the daemon's pod is another user on the node, that a step has processes of its
/// own, and that neither has a token of Kubernetes.
fn assert_users_and_processes_are_the_pods_own(cluster: &Cluster, output_of_step: &str) {
    let (_, users_of_step) = report_of_probe(output_of_step, "control-of-users");
    let (_, namespace_of_step) = report_of_probe(output_of_step, "control-of-process-namespace");
    let daemon = in_pod_of_daemon(
        cluster,
        "cat /proc/self/uid_map; readlink /proc/self/ns/pid; ls /var/run/secrets/kubernetes.io; echo $?\n",
    );
    let lines: Vec<_> = daemon.lines().collect();
    let [users_of_daemon, namespace_of_daemon, no_token] = lines[..] else {
        panic!("{daemon}");
    };
    for users in [users_of_daemon, users_of_step] {
        let numbers: Vec<u32> = users
            .split_whitespace()
            .map(|number| number.parse().unwrap())
            .collect();
        let [0, first_on_node, count] = numbers[..] else {
            panic!("{users}");
        };
        assert!(first_on_node >= 65536 && count <= 65536, "{users}");
    }
    assert_ne!(no_token, "0");
    assert!(namespace_of_daemon.starts_with("pid:["), "{namespace_of_daemon}");
    assert!(namespace_of_step.starts_with("pid:["), "{namespace_of_step}");
    assert_ne!(namespace_of_step, namespace_of_daemon);
    // A pod with a token has it there.
    let list = ["exec", "outsider", "--", "ls", "/var/run/secrets/kubernetes.io"];
    assert!(kubectl_output(cluster, &list, "").contains("serviceaccount"));
}

/// Merges JSON objects: members of `more` are added to `values`, or replace what is there.
pub(crate) fn merge(values: &mut Value, more: Value) {
    match (values, more) {
        (Value::Object(values), Value::Object(more)) => {
            for (name, value) in more {
                merge(values.entry(name).or_insert(Value::Null), value);
            }
        }
        (values, more) => *values = more,
    }
}
