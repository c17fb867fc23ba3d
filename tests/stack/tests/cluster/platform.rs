//! Attacks on the platform by somebody with a signing key, without a policy, and by a pod that reaches NATS.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use slipway_stack::Cluster;

use crate::{
    actors::{OUTSIDER, address_of_labelled},
    gateway::{GatewayClient, cluster_variable},
    kubectl, kubectl_output, output_of,
    source::{Behaviour, FunctionSource, requests},
    wait_until,
};

/// The secrets of the platform and of Slipway that no function may use.
const PROTECTED_SECRETS: [&str; 4] = ["basic-auth", "deploy-secret", "payload-secret", "registry-config"];

/// The longest time until the queue-worker has delivered a message.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);

/// The client under whose name a pod publishes in NATS Streaming.
const CLIENT: &str = "attacker";

pub(crate) async fn a_key_without_a_policy_changes_neither_the_platform_nor_reads_its_secrets(
    cluster: &Cluster,
    gateway: &GatewayClient,
) {
    let registry = cluster_variable(cluster, "REGISTRY");
    let source = FunctionSource {
        function: "reader",
        answer: "read",
        reports_version: false,
        behaviour: Behaviour::Serves,
    };
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": "open-secret", "namespace": "openfaas-fn" },
        "stringData": { "open-secret": "open" },
    });
    kubectl_output(cluster, &["apply", "--filename=-"], &secret.to_string());
    let before = functions(cluster);
    let deploy = async |more: Value| {
        let mut deploy = json!({ "service": "reader", "requests": requests() });
        crate::hostile::merge(&mut deploy, more);
        gateway.build(source.tar_that_deploys(&registry, &deploy)).await
    };
    for service in ["builder-fn", "deployer-fn"] {
        let answer = deploy(json!({ "service": service })).await;
        assert!(matches!(answer.status, 400..=422), "{service}: {answer:?}");
        assert!(answer.body.contains(service), "{answer:?}");
    }
    for secret in PROTECTED_SECRETS {
        let answer = deploy(json!({ "secrets": [secret] })).await;
        assert!(matches!(answer.status, 400..=422), "{secret}: {answer:?}");
        assert!(answer.body.contains(secret), "{answer:?}");
    }
    assert_eq!(functions(cluster), before);
    // A secret that nobody protects works.
    let answer = deploy(json!({ "secrets": ["open-secret"] })).await.json();
    assert_eq!(answer["deployment"]["status"], "ready", "{answer:#}");
    gateway.delete_function("reader").await;
}

/// Returns the functions of the cluster with their images and secrets.
fn functions(cluster: &Cluster) -> String {
    let columns = "--output=custom-columns=NAME:.metadata.name,IMAGE:.spec.template.spec.containers[*].image,\
                   VOLUMES:.spec.template.spec.volumes";
    kubectl_output(
        cluster,
        &["--namespace", "openfaas-fn", "get", "deployments", columns],
        "",
    )
}

pub(crate) async fn a_message_that_a_pod_puts_into_nats_deploys_nothing(cluster: &Cluster) {
    let hand_over = json!({
        "version": 1,
        "service": "forged",
        "image": "cluster.slipway.invalid/tools:1",
        "namespace": "openfaas-fn",
    });
    publish(cluster, "deployer-fn", &hand_over.to_string());
    // The message did arrive, and the deployer has rejected it.
    wait_until("the forged call is rejected", DELIVERY_TIMEOUT, || {
        let log = ["--namespace", "openfaas", "logs", "deployment/queue-worker"];
        kubectl_output(cluster, &log, "").contains("Invoked: deployer-fn [401]")
    })
    .await;
    assert!(!functions(cluster).contains("forged"));
}

/// Publishes a call of a function in NATS Streaming, as the gateway does, from a pod without a role.
fn publish(cluster: &Cluster, function: &str, body: &str) {
    let nats = address_of_labelled(cluster, "openfaas", "app=nats");
    let connect = [field(1, CLIENT.as_bytes()), field(2, b"heartbeats.of.attacker")].concat();
    let answer = exchange(cluster, &nats, "_STAN.discover.faas-cluster", &connect);
    let at = answer.find("_STAN.pub.").unwrap_or_else(|| panic!("{answer}"));
    let prefix = answer[at..]
        .split(|character: char| character.is_control())
        .next();
    let call = json!({
        "Header": { "Content-Type": ["application/json"] },
        "Host": "gateway",
        "Body": BASE64.encode(body),
        "Method": "POST",
        "Path": "/",
        "QueryString": "",
        "Function": function,
        "QueueName": "faas-request",
        "CallbackUrl": null,
    });
    let message = [
        field(1, CLIENT.as_bytes()),
        field(2, b"forged-1"),
        field(3, b"faas-request"),
        field(5, call.to_string().as_bytes()),
    ];
    let subject = format!("{}.faas-request", prefix.unwrap());
    exchange(cluster, &nats, &subject, &message.concat());
}

/// Returns a field of a protobuf message with bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        field.push((length & 0x7f | 0x80) as u8);
        length >>= 7;
    }
    field.push(length as u8);
    [&field, bytes].concat()
}

/// Publishes a message in NATS from a pod without a role, and returns what comes back within two seconds.
fn exchange(cluster: &Cluster, nats: &str, subject: &str, message: &[u8]) -> String {
    let mut bytes = format!(
        "CONNECT {{\"verbose\":false}}\r\nSUB answers.to.attacker 1\r\nPUB {subject} answers.to.attacker {}\r\n",
        message.len()
    )
    .into_bytes();
    bytes.extend(message);
    bytes.extend(b"\r\n");
    let script = format!(
        "(echo {} | base64 -d; sleep 2) | nc -w 5 {nats} 4222\n",
        BASE64.encode(bytes)
    );
    let (namespace, pod) = OUTSIDER.split_once('/').unwrap();
    let exec = ["--namespace", namespace, "exec", "--stdin", pod, "--", "sh"];
    let output = output_of(&mut kubectl(cluster, &exec), &script);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
