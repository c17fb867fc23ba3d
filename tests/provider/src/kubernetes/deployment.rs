//! The Deployment of a function, new or updated, from a request.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{
            Container, ContainerPort, EnvVar, ExecAction, HTTPGetAction, PodSpec, PodTemplateSpec, Probe,
            ResourceRequirements, Secret,
        },
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};

use super::{FUNCTION_LABEL, FUNCTION_PORT, resources, validation, volumes};
use crate::{
    error::ProviderError,
    model::{FunctionDeployment, NameValueMap},
};

/// The environment variable with the process that a watchdog starts.
pub(super) const PROCESS_VARIABLE: &str = "fprocess";

/// The label that makes every update a new version.
const UID_LABEL: &str = "uid";

/// The label with the number of replicas of a new version.
const MIN_REPLICAS_LABEL: &str = "com.openfaas.scale.min";

/// The user of functions that must not have the one of their image.
const NONROOT_USER: i64 = 12000;

/// The timing of both probes of the Community Edition, in seconds.
const PROBE_INITIAL_DELAY_SECONDS: i32 = 2;
const PROBE_PERIOD_SECONDS: i32 = 2;
const PROBE_TIMEOUT_SECONDS: i32 = 1;

/// Settings of the provider that apply to the pods of all functions.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ProbeAndUserOptions {
    /// Whether probes use HTTP, and not a file.
    pub(super) http_probe: bool,
    /// Whether functions run as [`NONROOT_USER`].
    pub(super) set_nonroot_user: bool,
}

/// What a request changes in an existing Deployment.
#[derive(Debug)]
pub(super) struct DeploymentUpdate<'a> {
    pub(super) request: &'a FunctionDeployment,
    pub(super) annotations: &'a NameValueMap,
    pub(super) resources: ResourceRequirements,
    pub(super) secrets: &'a [Secret],
    /// The value of the label `uid`.
    pub(super) uid: String,
}

/// Creates the Deployment of a new function, which mounts all keys of the secrets.
pub(super) fn new_deployment(
    request: &FunctionDeployment,
    secrets: &[Secret],
    options: ProbeAndUserOptions,
) -> Result<Deployment, ProviderError> {
    let name = &request.service;
    let resources = resources::container_resources(request)?;
    let annotations = validation::annotations_of_request(&request.annotations)?;
    let function_label = || NameValueMap::from([(FUNCTION_LABEL.to_owned(), name.clone())]);

    let mut container = Container {
        name: name.clone(),
        ports: Some(vec![ContainerPort {
            name: Some("http".to_owned()),
            container_port: FUNCTION_PORT.into(),
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        ..Container::default()
    };
    set_image_env_resources_and_probes(&mut container, request, resources, options);
    let mut pod = PodSpec {
        containers: vec![container],
        node_selector: node_selector(&request.constraints),
        restart_policy: Some("Always".to_owned()),
        dns_policy: Some("ClusterFirst".to_owned()),
        ..PodSpec::default()
    };
    volumes::set_or_clear_read_only_root_of_first_container(&mut pod, request.read_only_root_filesystem);
    set_or_clear_user_of_first_container(&mut pod, options);
    volumes::mount_secrets_and_add_pull_secrets(&mut pod, name, secrets);

    Ok(Deployment {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(function_label()),
            annotations: Some(annotations.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(DeploymentSpec {
            replicas: Some(min_replicas_if_positive(&request.labels).unwrap_or(1)),
            revision_history_limit: Some(10),
            selector: LabelSelector {
                match_labels: Some(function_label()),
                ..LabelSelector::default()
            },
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_unavailable: Some(IntOrString::Int(0)),
                    max_surge: Some(IntOrString::Int(1)),
                }),
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    name: Some(name.clone()),
                    labels: Some(pod_labels_with_requested_over_own(
                        function_label(),
                        &request.labels,
                    )),
                    annotations: Some(annotations),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    })
}

impl DeploymentUpdate<'_> {
    /// Applies the update to a Deployment. The labels of the Deployment itself do not change, and the number of
    /// replicas only if the request names one.
    pub(super) fn apply(self, deployment: &mut Deployment, options: ProbeAndUserOptions) {
        let Self {
            request,
            annotations,
            resources,
            secrets,
            uid,
        } = self;
        deployment.metadata.annotations = Some(annotations.clone());
        let spec = deployment.spec.get_or_insert_default();
        if let Some(replicas) = min_replicas_if_positive(&request.labels) {
            spec.replicas = Some(replicas);
        }
        let own_labels = NameValueMap::from([
            (FUNCTION_LABEL.to_owned(), request.service.clone()),
            (UID_LABEL.to_owned(), uid),
        ]);
        let metadata = spec.template.metadata.get_or_insert_default();
        metadata.labels = Some(pod_labels_with_requested_over_own(own_labels, &request.labels));
        metadata.annotations = Some(annotations.clone());

        let pod = spec.template.spec.get_or_insert_default();
        pod.node_selector = node_selector(&request.constraints);
        if let Some(container) = pod.containers.first_mut() {
            set_image_env_resources_and_probes(container, request, resources, options);
        }
        volumes::set_or_clear_read_only_root_of_first_container(pod, request.read_only_root_filesystem);
        set_or_clear_user_of_first_container(pod, options);
        volumes::mount_secrets_and_add_pull_secrets(pod, &request.service, secrets);
    }
}

/// Sets what new and updated containers have in common.
fn set_image_env_resources_and_probes(
    container: &mut Container,
    request: &FunctionDeployment,
    resources: ResourceRequirements,
    options: ProbeAndUserOptions,
) {
    container.image = Some(request.image.clone());
    container.image_pull_policy = Some("Always".to_owned());
    container.env = Some(environment(request));
    container.resources = Some(resources);
    container.liveness_probe = Some(http_or_lock_file_probe(options));
    container.readiness_probe = Some(http_or_lock_file_probe(options));
}

/// Sets the user of a pod's first container, or removes the one that was set.
fn set_or_clear_user_of_first_container(pod: &mut PodSpec, options: ProbeAndUserOptions) {
    if let Some(container) = pod.containers.first_mut() {
        let context = container.security_context.get_or_insert_default();
        context.run_as_user = options.set_nonroot_user.then_some(NONROOT_USER);
    }
}

/// Returns the variables of a request, sorted by name.
fn environment(request: &FunctionDeployment) -> Vec<EnvVar> {
    let process = (!request.env_process.is_empty()).then_some((PROCESS_VARIABLE, &request.env_process));
    let variables = request
        .env_vars
        .iter()
        .map(|(name, value)| (name.as_str(), value));
    let mut environment: Vec<EnvVar> = process
        .into_iter()
        .chain(variables)
        .map(|(name, value)| EnvVar {
            name: name.to_owned(),
            value: Some(value.clone()),
            value_from: None,
        })
        .collect();
    environment.sort_by(|one, other| one.name.cmp(&other.name));
    environment
}

/// Returns the labels of pods. A request's labels take precedence, even over the one by which the pods are found.
fn pod_labels_with_requested_over_own(mut own: NameValueMap, requested: &NameValueMap) -> NameValueMap {
    own.extend(requested.clone());
    own
}

/// Returns the node labels of the constraints that have the form `KEY=VALUE`; others are ignored.
fn node_selector(constraints: &[String]) -> Option<BTreeMap<String, String>> {
    let pairs = constraints.iter().filter_map(|constraint| {
        let (key, value) = constraint.split_once('=')?;
        (!value.contains('=')).then(|| (key.to_owned(), value.to_owned()))
    });
    let selector: BTreeMap<_, _> = pairs.collect();
    (!selector.is_empty()).then_some(selector)
}

/// Returns the number of replicas that a request's labels name, if it is a positive number.
fn min_replicas_if_positive(labels: &NameValueMap) -> Option<i32> {
    let replicas: i32 = labels.get(MIN_REPLICAS_LABEL)?.parse().ok()?;
    (replicas > 0).then_some(replicas)
}

/// Returns the probe of readiness and of liveness, which are the same.
fn http_or_lock_file_probe(options: ProbeAndUserOptions) -> Probe {
    let over_http = || HTTPGetAction {
        path: Some("/_/health".to_owned()),
        port: IntOrString::Int(FUNCTION_PORT.into()),
        ..HTTPGetAction::default()
    };
    let by_file = || ExecAction {
        command: Some(vec!["cat".to_owned(), "/tmp/.lock".to_owned()]),
    };
    Probe {
        http_get: options.http_probe.then(over_http),
        exec: (!options.http_probe).then(by_file),
        initial_delay_seconds: Some(PROBE_INITIAL_DELAY_SECONDS),
        period_seconds: Some(PROBE_PERIOD_SECONDS),
        timeout_seconds: Some(PROBE_TIMEOUT_SECONDS),
        success_threshold: Some(1),
        failure_threshold: Some(3),
        ..Probe::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const HTTP: ProbeAndUserOptions = ProbeAndUserOptions {
        http_probe: true,
        set_nonroot_user: false,
    };

    fn request(fields: Value) -> FunctionDeployment {
        let mut request = json!({"service": "hello", "image": "hello:1"});
        request
            .as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        serde_json::from_value(request).unwrap()
    }

    fn secret(name: &str, kind: &str, keys: &[&str]) -> Secret {
        let data: serde_json::Map<_, _> = keys.iter().map(|key| ((*key).to_owned(), json!(""))).collect();
        serde_json::from_value(json!({"metadata": {"name": name}, "type": kind, "data": data})).unwrap()
    }

    fn created(fields: Value, secrets: &[Secret], options: ProbeAndUserOptions) -> Value {
        serde_json::to_value(new_deployment(&request(fields), secrets, options).unwrap()).unwrap()
    }

    fn updated(deployment: Value, fields: Value, secrets: &[Secret]) -> Value {
        let mut deployment = serde_json::from_value(deployment).unwrap();
        let request = request(fields);
        let update = DeploymentUpdate {
            request: &request,
            annotations: &validation::annotations_of_request(&request.annotations).unwrap(),
            resources: resources::container_resources(&request).unwrap(),
            secrets,
            uid: "7".to_owned(),
        };
        update.apply(&mut deployment, HTTP);
        serde_json::to_value(deployment).unwrap()
    }

    #[test]
    fn each_field_of_a_request_has_its_place_in_the_deployment() {
        let pod = "/spec/template/spec";
        let container = "/spec/template/spec/containers/0";
        for (fields, pointer, expected) in [
            (json!({}), "/metadata/name".to_owned(), json!("hello")),
            (json!({}), "/spec/replicas".to_owned(), json!(1)),
            (
                json!({}),
                "/spec/strategy/rollingUpdate".to_owned(),
                json!({"maxUnavailable": 0, "maxSurge": 1}),
            ),
            (json!({}), format!("{container}/image"), json!("hello:1")),
            (json!({}), format!("{container}/imagePullPolicy"), json!("Always")),
            (
                json!({}),
                format!("{container}/securityContext"),
                json!({"readOnlyRootFilesystem": false}),
            ),
            (
                json!({"labels": {"com.openfaas.scale.min": "3"}}),
                "/spec/replicas".to_owned(),
                json!(3),
            ),
            (
                json!({"labels": {"team": "red"}}),
                "/metadata/labels".to_owned(),
                json!({"faas_function": "hello"}),
            ),
            (
                json!({"labels": {"team": "red"}}),
                "/spec/selector/matchLabels".to_owned(),
                json!({"faas_function": "hello"}),
            ),
            (
                json!({"labels": {"team": "red"}}),
                "/spec/template/metadata/labels".to_owned(),
                json!({"faas_function": "hello", "team": "red"}),
            ),
            (
                json!({"annotations": {"a": "b"}}),
                "/spec/template/metadata/annotations".to_owned(),
                json!({"a": "b", "prometheus.io.scrape": "false"}),
            ),
            (
                json!({"constraints": ["disk=ssd", "malformed", "a=b=c"]}),
                format!("{pod}/nodeSelector"),
                json!({"disk": "ssd"}),
            ),
            (
                json!({"envVars": {"z": "1", "a": "2"}, "envProcess": "cat"}),
                format!("{container}/env"),
                json!([{"name": "a", "value": "2"}, {"name": "fprocess", "value": "cat"}, {"name": "z", "value": "1"}]),
            ),
            (
                json!({"limits": {"memory": "1Gi"}, "requests": {"cpu": "100m"}}),
                format!("{container}/resources"),
                json!({"limits": {"memory": "1Gi"}, "requests": {"cpu": "100m"}}),
            ),
            (
                json!({"readOnlyRootFilesystem": true}),
                format!("{container}/volumeMounts"),
                json!([{"name": "temp", "mountPath": "/tmp"}]),
            ),
            (
                json!({"readOnlyRootFilesystem": true}),
                format!("{pod}/volumes"),
                json!([{"name": "temp", "emptyDir": {}}]),
            ),
        ] {
            let deployment = created(fields.clone(), &[], HTTP);
            assert_eq!(
                deployment.pointer(&pointer),
                Some(&expected),
                "{fields} {pointer}"
            );
        }
    }

    #[test]
    fn probes_use_http_or_a_file_as_the_provider_is_set() {
        let probe_with = |options| {
            created(json!({}), &[], options)["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]
                .clone()
        };
        let over_http = probe_with(HTTP);
        assert_eq!(over_http["httpGet"], json!({"path": "/_/health", "port": 8080}));
        assert_eq!(over_http["exec"], Value::Null);
        let by_file = probe_with(ProbeAndUserOptions::default());
        assert_eq!(by_file["exec"]["command"], json!(["cat", "/tmp/.lock"]));
        assert_eq!(by_file["httpGet"], Value::Null);
    }

    #[test]
    fn functions_run_as_user_12000_if_set_nonroot_user_is_set() {
        let options = ProbeAndUserOptions {
            set_nonroot_user: true,
            ..HTTP
        };
        let deployment = created(json!({}), &[], options);
        let context = &deployment["spec"]["template"]["spec"]["containers"][0]["securityContext"];
        assert_eq!(context["runAsUser"], json!(12000));
    }

    #[test]
    fn secrets_are_mounted_or_used_to_pull_by_their_type() {
        let secrets = [
            secret("key", "Opaque", &["one", "two"]),
            secret(
                "registry",
                "kubernetes.io/dockerconfigjson",
                &[".dockerconfigjson"],
            ),
        ];
        let deployment = created(json!({}), &secrets, HTTP);
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "registry"}]));
        assert_eq!(
            pod["volumes"],
            json!([{"name": "hello-projected-secrets", "projected": {"sources": [{"secret": {
                "name": "key",
                "items": [{"key": "one", "path": "one"}, {"key": "two", "path": "two"}],
            }}]}}])
        );
        assert_eq!(
            pod["containers"][0]["volumeMounts"],
            json!([{"name": "hello-projected-secrets", "mountPath": "/var/openfaas/secrets", "readOnly": true}])
        );
    }

    #[test]
    fn an_update_keeps_the_volumes_and_containers_of_others() {
        let mut deployment = created(json!({}), &[], HTTP);
        let pod = &mut deployment["spec"]["template"]["spec"];
        pod["volumes"] = json!([{"name": "chart", "secret": {"secretName": "chart-secret"}}]);
        let sidecar = json!({"name": "sidecar", "image": "sidecar:1"});
        pod["containers"].as_array_mut().unwrap().push(sidecar);
        pod["containers"][0]["volumeMounts"] = json!([{"name": "chart", "mountPath": "/chart"}]);
        let key = [secret("key", "Opaque", &["key"])];

        let deployment = updated(deployment, json!({"image": "hello:2"}), &key);
        let pod = &deployment["spec"]["template"]["spec"];
        let names = |list: &Value| -> Vec<String> {
            let items = list.as_array().unwrap().iter();
            items
                .map(|item| item["name"].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(names(&pod["volumes"]), ["chart", "hello-projected-secrets"]);
        assert_eq!(names(&pod["containers"]), ["hello", "sidecar"]);
        assert_eq!(
            names(&pod["containers"][0]["volumeMounts"]),
            ["chart", "hello-projected-secrets"]
        );
        assert_eq!(
            names(&pod["containers"][1]["volumeMounts"]),
            ["hello-projected-secrets"]
        );
        assert_eq!(pod["containers"][0]["image"], json!("hello:2"));
        assert_eq!(pod["containers"][1]["image"], json!("sidecar:1"));
    }

    #[test]
    fn an_update_removes_what_the_request_leaves_out_except_replicas_and_secrets_for_pulling() {
        let registry = [secret("registry", "kubernetes.io/dockercfg", &[".dockercfg"])];
        let first = json!({
            "labels": {"old": "a", "com.openfaas.scale.min": "3"},
            "annotations": {"old": "a"},
            "envVars": {"old": "a"},
            "constraints": ["disk=ssd"],
            "limits": {"memory": "1Gi"},
            "readOnlyRootFilesystem": true,
        });
        let deployment = updated(created(first, &registry, HTTP), json!({}), &registry);
        assert_eq!(deployment["spec"]["replicas"], json!(3));
        let template = &deployment["spec"]["template"];
        assert_eq!(
            template["metadata"]["labels"],
            json!({"faas_function": "hello", "uid": "7"})
        );
        assert_eq!(
            template["metadata"]["annotations"],
            json!({"prometheus.io.scrape": "false"})
        );
        assert_eq!(template["spec"]["nodeSelector"], Value::Null);
        assert_eq!(template["spec"]["volumes"], json!([]));
        assert_eq!(template["spec"]["containers"][0]["env"], json!([]));
        assert_eq!(template["spec"]["containers"][0]["resources"], json!({}));
        // As faas-netes does, each update adds them again.
        let pull_secrets = json!([{"name": "registry"}, {"name": "registry"}]);
        assert_eq!(template["spec"]["imagePullSecrets"], pull_secrets);
    }
}
