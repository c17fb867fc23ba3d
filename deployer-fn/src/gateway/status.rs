//! The state of a function, as the gateway returns it.
//!
//! Form: openfaas/faas-provider, `types/function_status.go`. Providers leave out what they do not store: environment
//! variables on Kubernetes, CPU limits on faasd.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::request::OWN_ANNOTATION_PREFIX;

/// Fields that a function's status and its deployment have under the same name.
const FIELDS_OF_STATUS_AND_DEPLOYMENT: [&str; 8] = [
    "envProcess",
    "envVars",
    "constraints",
    "secrets",
    "labels",
    "limits",
    "requests",
    "readOnlyRootFilesystem",
];
/// Labels that faas-netes adds by itself to each deployment.
const LABELS_ADDED_BY_PROVIDER: [&str; 2] = ["faas_function", "uid"];

/// The annotations of a function whose status has none.
static NO_ANNOTATIONS: BTreeMap<String, String> = BTreeMap::new();

/// The state of a function, as the gateway returns it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct FunctionStatus {
    /// The function's name.
    pub(crate) name: String,
    /// The image in the function's specification. On Kubernetes it is the new one from the moment of an update,
    /// while the old version still answers (docs/pitfalls.md#old-replicas-count-as-available).
    pub(crate) image: String,
    /// The function's namespace; `None` if the provider does not return one.
    pub(crate) namespace: Option<String>,
    /// The desired number of the function's replicas.
    pub(crate) replicas: u64,
    /// The number of the function's replicas that can be called, of any version.
    pub(crate) available_replicas: u64,
    annotations: Option<BTreeMap<String, String>>,
    /// All other fields of the function's status.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl FunctionStatus {
    /// Returns the function's annotations; an empty map if the provider does not return them.
    pub(crate) fn annotations(&self) -> &BTreeMap<String, String> {
        self.annotations.as_ref().unwrap_or(&NO_ANNOTATIONS)
    }

    /// Returns the time at which the provider created the function or its container, by its own clock; `None` if the
    /// provider does not return one.
    pub(crate) fn created_at(&self) -> Option<Timestamp> {
        let at = self.rest.get("createdAt")?.as_str()?.parse().ok()?;
        // Go's zero time stands for a time that is not known.
        (at > Timestamp::UNIX_EPOCH).then_some(at)
    }

    /// Returns a deployment that restores this state of the function. It lacks what the provider does not return, the
    /// labels that faas-netes adds, and the deployer's own annotations.
    pub(crate) fn to_deployment_without_own_annotations(&self) -> Map<String, Value> {
        let mut deployment = Map::new();
        deployment.insert("service".to_owned(), self.name.clone().into());
        deployment.insert("image".to_owned(), self.image.clone().into());
        if let Some(namespace) = &self.namespace {
            deployment.insert("namespace".to_owned(), namespace.clone().into());
        }
        for key in FIELDS_OF_STATUS_AND_DEPLOYMENT {
            if let Some(value) = self.rest.get(key).filter(|value| !value.is_null()) {
                deployment.insert(key.to_owned(), value.clone());
            }
        }
        if let Some(labels) = deployment.get_mut("labels").and_then(Value::as_object_mut) {
            for label in LABELS_ADDED_BY_PROVIDER {
                labels.remove(label);
            }
        }
        let annotations: Map<String, Value> = self
            .annotations()
            .iter()
            .filter(|(name, _)| !name.starts_with(OWN_ANNOTATION_PREFIX))
            .map(|(name, value)| (name.clone(), value.clone().into()))
            .collect();
        if !annotations.is_empty() {
            deployment.insert("annotations".to_owned(), annotations.into());
        }
        deployment
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_becomes_a_deployment_without_the_providers_own_labels() {
        let status: FunctionStatus = serde_json::from_value(json!({
            "name": "hello", "image": "r/hello:1", "namespace": "openfaas-fn", "replicas": 1, "availableReplicas": 1,
            "invocationCount": 7, "createdAt": "2026-01-01T00:00:00Z", "envProcess": "cat", "secrets": ["key"],
            "labels": {"faas_function": "hello", "uid": "3", "team": "a"}, "annotations": {"topic": "x"},
            "limits": {"memory": "128Mi"}, "constraints": null
        }))
        .unwrap();
        assert_eq!(
            Value::Object(status.to_deployment_without_own_annotations()),
            json!({"service": "hello", "image": "r/hello:1", "namespace": "openfaas-fn", "envProcess": "cat",
                "secrets": ["key"], "labels": {"team": "a"}, "annotations": {"topic": "x"},
                "limits": {"memory": "128Mi"}})
        );
    }
}
