//! What the gateway says of a function.
//!
//! Form: openfaas/faas-provider, `types/function_status.go`. Providers leave out what they do not keep (environment
//! variables on Kubernetes, processor limits on faasd).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

/// What of a status is also part of a deployment, under the same name.
const OF_A_DEPLOYMENT: [&str; 8] = [
    "envProcess",
    "envVars",
    "constraints",
    "secrets",
    "labels",
    "limits",
    "requests",
    "readOnlyRootFilesystem",
];
/// Labels that faas-netes makes itself, anew each time.
const MADE_BY_PROVIDERS: [&str; 2] = ["faas_function", "uid"];

static NO_NOTES: BTreeMap<String, String> = BTreeMap::new();

/// A function, as the provider sees it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FunctionStatus {
    /// The function's name.
    pub name: String,
    /// The image that it shall run. On Kubernetes it is the new one from the moment of an update on, while the old one
    /// still answers (pitfall 26).
    pub image: String,
    /// Where it runs.
    pub namespace: Option<String>,
    /// How many there shall be.
    pub replicas: u64,
    /// How many there are that can be called, of whatever version.
    pub available_replicas: u64,
    /// Annotations, where the provider keeps them.
    pub annotations: Option<BTreeMap<String, String>>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl FunctionStatus {
    /// Its annotations; none where the provider shows none.
    #[must_use]
    pub fn notes(&self) -> &BTreeMap<String, String> {
        self.annotations.as_ref().unwrap_or(&NO_NOTES)
    }

    /// A deployment that asks for what is seen here. It lacks what the provider does not show.
    #[must_use]
    pub fn as_deployment(&self) -> Map<String, Value> {
        let mut deployment = Map::new();
        deployment.insert("service".to_owned(), self.name.clone().into());
        deployment.insert("image".to_owned(), self.image.clone().into());
        if let Some(namespace) = &self.namespace {
            deployment.insert("namespace".to_owned(), namespace.clone().into());
        }
        for key in OF_A_DEPLOYMENT {
            if let Some(value) = self.rest.get(key).filter(|value| !value.is_null()) {
                deployment.insert(key.to_owned(), value.clone());
            }
        }
        if let Some(labels) = deployment.get_mut("labels").and_then(Value::as_object_mut) {
            for label in MADE_BY_PROVIDERS {
                labels.remove(label);
            }
        }
        let annotations: Map<String, Value> = self
            .notes()
            .iter()
            .filter(|(name, _)| !name.starts_with(crate::request::OWN_ANNOTATIONS))
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
    fn what_is_seen_of_a_function_can_be_asked_for_again() {
        let status: FunctionStatus = serde_json::from_value(json!({
            "name": "hello", "image": "r/hello:1", "namespace": "openfaas-fn", "replicas": 1, "availableReplicas": 1,
            "invocationCount": 7, "createdAt": "2026-01-01T00:00:00Z", "envProcess": "cat", "secrets": ["key"],
            "labels": {"faas_function": "hello", "uid": "3", "team": "a"}, "annotations": {"topic": "x"},
            "limits": {"memory": "128Mi"}, "constraints": null
        }))
        .unwrap();
        assert_eq!(
            Value::Object(status.as_deployment()),
            json!({"service": "hello", "image": "r/hello:1", "namespace": "openfaas-fn", "envProcess": "cat",
                "secrets": ["key"], "labels": {"team": "a"}, "annotations": {"topic": "x"},
                "limits": {"memory": "128Mi"}})
        );
    }
}
