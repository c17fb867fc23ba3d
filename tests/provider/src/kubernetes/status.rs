//! The status of a function, from its Deployment alone.
//!
//! Neither pods nor ReplicaSets are read. The image is therefore the one of the last update, while the available
//! replicas may all be of an older version, and no failure of a pod is reported.

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Container, PodSpec},
};

use super::{deployment::PROCESS_VARIABLE, resources::function_resources, volumes};
use crate::model::{FunctionStatus, NameValueMap};

/// Returns the status of a Deployment as a function's; `None` if it has no containers. Of the environment it has only
/// the process of the watchdog.
pub(super) fn status_none_if_deployment_has_no_containers(deployment: &Deployment) -> Option<FunctionStatus> {
    let spec = deployment.spec.as_ref()?;
    let pod = spec.template.spec.as_ref()?;
    let container = pod.containers.first()?;
    let metadata = spec.template.metadata.clone().unwrap_or_default();
    let name = deployment.metadata.name.clone().unwrap_or_default();
    let available = deployment
        .status
        .as_ref()
        .and_then(|status| status.available_replicas);
    let resources = container.resources.as_ref();
    Some(FunctionStatus {
        image: container.image.clone().unwrap_or_default(),
        namespace: deployment.metadata.namespace.clone().unwrap_or_default(),
        env_process: process_of_container(container),
        env_vars: NameValueMap::new(),
        constraints: Vec::new(),
        secrets: secret_names(pod, &name),
        labels: metadata.labels.unwrap_or_default(),
        annotations: metadata.annotations,
        limits: function_resources(resources.and_then(|resources| resources.limits.as_ref())),
        requests: function_resources(resources.and_then(|resources| resources.requests.as_ref())),
        read_only_root_filesystem: false,
        replicas: replica_count(spec.replicas),
        available_replicas: replica_count(available),
        created_at: deployment
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(jiff::Timestamp::UNIX_EPOCH, |time| time.0),
        name,
    })
}

fn replica_count(count: Option<i32>) -> u64 {
    count.unwrap_or(0).try_into().unwrap_or(0)
}

/// Returns the last value of the watchdog's variable, or an empty text.
fn process_of_container(container: &Container) -> String {
    let variables = container.env.iter().flatten();
    let process = variables.rev().find(|variable| variable.name == PROCESS_VARIABLE);
    process
        .and_then(|variable| variable.value.clone())
        .unwrap_or_default()
}

/// Returns the sorted names of the secrets with which images are pulled, and of those in the function's own volume.
fn secret_names(pod: &PodSpec, function: &str) -> Vec<String> {
    let volume_name = volumes::secrets_volume_name(function);
    let volume = pod
        .volumes
        .iter()
        .flatten()
        .find(|volume| volume.name == volume_name);
    let sources = volume
        .and_then(|volume| volume.projected.as_ref()?.sources.as_ref())
        .into_iter()
        .flatten();
    let mounted = sources.filter_map(|source| Some(source.secret.as_ref()?.name.clone()));
    let pull_secrets = pod.image_pull_secrets.iter().flatten();
    let mut names: Vec<String> = pull_secrets
        .map(|secret| secret.name.clone())
        .chain(mounted)
        .collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Returns the status of a Deployment with these parts, as JSON.
    fn status_of(container: Value, pod: Value, status: Value) -> Value {
        let mut pod = pod;
        pod["containers"] = json!([container]);
        let deployment = json!({
            "metadata": {
                "name": "hello",
                "namespace": "openfaas-fn",
                "creationTimestamp": "2025-01-01T12:00:00Z",
                "annotations": {"deployment.kubernetes.io/revision": "2"},
            },
            "spec": {
                "replicas": 1,
                "selector": {},
                "template": {"metadata": {"labels": {"faas_function": "hello"}}, "spec": pod},
            },
            "status": status,
        });
        let deployment = serde_json::from_value(deployment).unwrap();
        serde_json::to_value(status_none_if_deployment_has_no_containers(&deployment).unwrap()).unwrap()
    }

    #[test]
    fn a_status_of_a_sparse_deployment_has_null_annotations_and_omits_empty_fields() {
        assert_eq!(
            status_of(json!({"name": "hello", "image": "hello:2"}), json!({}), json!({})),
            json!({
                "name": "hello",
                "image": "hello:2",
                "namespace": "openfaas-fn",
                "labels": {"faas_function": "hello"},
                "annotations": null,
                "replicas": 1,
                "createdAt": "2025-01-01T12:00:00Z",
            })
        );
    }

    #[test]
    fn a_status_has_process_secrets_and_limits_but_no_variables_or_read_only_root() {
        let pod = json!({
            "imagePullSecrets": [{"name": "registry"}],
            "volumes": [
                {"name": "other", "projected": {"sources": [{"secret": {"name": "not-listed"}}]}},
                {"name": "hello-projected-secrets", "projected": {"sources": [
                    {"secret": {"name": "key"}},
                    {"secret": {"name": "a-key"}},
                ]}},
            ],
        });
        let env = json!([{"name": "fprocess", "value": "cat"}, {"name": "secret-value", "value": "x"}]);
        let limits = json!({"limits": {"memory": "64Mi"}});
        for (container, pod, field, expected) in [
            (json!({"env": env}), json!({}), "envProcess", json!("cat")),
            (json!({"env": env}), json!({}), "envVars", Value::Null),
            (json!({}), pod, "secrets", json!(["a-key", "key", "registry"])),
            (
                json!({"resources": limits}),
                json!({}),
                "limits",
                json!({"memory": "64Mi", "cpu": "0"}),
            ),
            (json!({"resources": limits}), json!({}), "requests", Value::Null),
            (
                json!({"securityContext": {"readOnlyRootFilesystem": true}}),
                json!({}),
                "readOnlyRootFilesystem",
                Value::Null,
            ),
        ] {
            let mut container = container;
            container["name"] = json!("hello");
            let status = status_of(container, pod, json!({}));
            assert_eq!(status[field], expected, "{field}");
        }
    }

    #[test]
    fn replicas_of_an_older_version_are_available_and_its_failures_are_not_reported() {
        let failing = json!({
            "replicas": 2,
            "updatedReplicas": 1,
            "availableReplicas": 1,
            "unavailableReplicas": 1,
            "conditions": [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}],
        });
        let status = status_of(json!({"name": "hello", "image": "hello:2"}), json!({}), failing);
        assert_eq!(
            (&status["image"], &status["availableReplicas"]),
            (&json!("hello:2"), &json!(1))
        );
        assert!(!status.to_string().contains("Progress"), "{status}");
    }
}
