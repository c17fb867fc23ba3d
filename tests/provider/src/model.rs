//! The JSON types of the REST API, field by field as in faas-provider's `types` package.
//!
//! Go omits zero fields with `omitempty` and reads `null` as absent; so do these types.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};

/// A map of names to values, for environments, labels and annotations.
pub(crate) type NameValueMap = BTreeMap<String, String>;

/// A request to create or update a function (`FunctionDeployment`).
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct FunctionDeployment {
    #[serde(deserialize_with = "deserialize_null_as_default")]
    pub(crate) service: String,
    #[serde(deserialize_with = "deserialize_null_as_default")]
    pub(crate) image: String,
    #[serde(
        deserialize_with = "deserialize_null_as_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub(crate) namespace: String,
    #[serde(
        deserialize_with = "deserialize_null_as_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub(crate) env_process: String,
    #[serde(
        deserialize_with = "deserialize_null_as_default",
        skip_serializing_if = "NameValueMap::is_empty"
    )]
    pub(crate) env_vars: NameValueMap,
    #[serde(
        deserialize_with = "deserialize_null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) constraints: Vec<String>,
    #[serde(
        deserialize_with = "deserialize_null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub(crate) secrets: Vec<String>,
    #[serde(deserialize_with = "deserialize_null_as_default")]
    pub(crate) labels: NameValueMap,
    #[serde(deserialize_with = "deserialize_null_as_default")]
    pub(crate) annotations: NameValueMap,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limits: Option<FunctionResources>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) requests: Option<FunctionResources>,
    #[serde(
        deserialize_with = "deserialize_null_as_default",
        skip_serializing_if = "is_false"
    )]
    pub(crate) read_only_root_filesystem: bool,
}

/// Memory and CPU as Kubernetes quantities (`FunctionResources`).
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub(crate) struct FunctionResources {
    #[serde(
        deserialize_with = "deserialize_null_as_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub(crate) memory: String,
    #[serde(
        deserialize_with = "deserialize_null_as_default",
        skip_serializing_if = "String::is_empty"
    )]
    pub(crate) cpu: String,
}

/// The status of a function (`FunctionStatus`).
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FunctionStatus {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) env_process: String,
    #[serde(skip_serializing_if = "NameValueMap::is_empty")]
    pub(crate) env_vars: NameValueMap,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) constraints: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) secrets: Vec<String>,
    pub(crate) labels: NameValueMap,
    /// `None` is `null`: faas-netes returns that for a function without annotations, which it has not made itself.
    pub(crate) annotations: Option<NameValueMap>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limits: Option<FunctionResources>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) requests: Option<FunctionResources>,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) read_only_root_filesystem: bool,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) replicas: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) available_replicas: u64,
    pub(crate) created_at: Timestamp,
}

/// A request to delete a function (`DeleteFunctionRequest`).
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct DeleteFunctionRequest {
    #[serde(deserialize_with = "deserialize_null_as_default")]
    pub(crate) function_name: String,
    #[serde(deserialize_with = "deserialize_null_as_default")]
    pub(crate) namespace: String,
}

/// A request to scale a function (`ScaleServiceRequest`).
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ScaleServiceRequest {
    #[serde(deserialize_with = "deserialize_null_as_default")]
    pub(crate) service_name: String,
    #[serde(deserialize_with = "deserialize_null_as_default")]
    pub(crate) replicas: u64,
    #[serde(deserialize_with = "deserialize_null_as_default")]
    pub(crate) namespace: String,
}

/// The identity of the provider (`ProviderInfo`).
#[derive(Debug, Serialize)]
pub(crate) struct ProviderInfo {
    pub(crate) provider: &'static str,
    pub(crate) version: VersionInfo,
    pub(crate) orchestration: &'static str,
}

/// The provider's release (`VersionInfo`).
#[derive(Debug, Serialize)]
pub(crate) struct VersionInfo {
    pub(crate) sha: &'static str,
    pub(crate) release: &'static str,
}

/// The name of a secret in an answer (`Secret` without its value).
#[derive(Debug, Serialize)]
pub(crate) struct SecretNameAndNamespace {
    pub(crate) name: String,
    pub(crate) namespace: String,
}

/// Deserializes a value, with `null` as the type's default value.
pub(crate) fn deserialize_null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_deployment_from_faas_cli_is_parsed() {
        let text = r#"{"service":"hello","image":"reg:5000/hello:1","network":"","envProcess":"cat",
            "envVars":{"a":"b"},"constraints":null,"secrets":["key"],"labels":{"l":"1"},"annotations":{},
            "limits":{"memory":"128Mi"},"requests":null,"readOnlyRootFilesystem":true}"#;
        let deployment: FunctionDeployment = serde_json::from_str(text).unwrap();
        assert_eq!(deployment.service, "hello");
        assert_eq!(deployment.env_vars["a"], "b");
        assert_eq!(deployment.secrets, ["key"]);
        assert_eq!(deployment.limits.unwrap().memory, "128Mi");
        assert!(deployment.requests.is_none());
        assert!(deployment.read_only_root_filesystem);
    }

    #[test]
    fn a_stored_deployment_is_read_back_unchanged() {
        let deployment = FunctionDeployment {
            service: "hello".into(),
            labels: NameValueMap::from([("a".into(), "b".into())]),
            ..Default::default()
        };
        let stored = serde_json::to_vec(&deployment).unwrap();
        assert_eq!(
            serde_json::from_slice::<FunctionDeployment>(&stored).unwrap(),
            deployment
        );
    }

    #[test]
    fn a_status_omits_the_fields_that_go_omits() {
        let status = FunctionStatus {
            name: "hello".into(),
            image: "docker.io/library/hello:latest".into(),
            namespace: "openfaas-fn".into(),
            env_process: String::new(),
            env_vars: NameValueMap::new(),
            constraints: vec![],
            secrets: vec![],
            labels: NameValueMap::new(),
            annotations: Some(NameValueMap::new()),
            limits: None,
            requests: None,
            read_only_root_filesystem: false,
            replicas: 0,
            available_replicas: 0,
            created_at: "2025-01-02T03:04:05.5Z".parse().unwrap(),
        };
        assert_eq!(
            serde_json::to_value(&status).unwrap(),
            json!({"name": "hello", "image": "docker.io/library/hello:latest", "namespace": "openfaas-fn",
                   "labels": {}, "annotations": {}, "createdAt": "2025-01-02T03:04:05.5Z"})
        );
    }
}
