//! The route `/system/secrets`. Secrets' values can be written, never read.

use axum::{
    Json,
    body::Bytes,
    extract::{Query, State},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::{
    answer::{ApiOperation, ErrorResponse},
    functions::{NamespaceParameters, resolve_namespace},
};
use crate::{
    error::ProviderError,
    functions::FunctionStore,
    model::{SecretNameAndNamespace, deserialize_null_as_default},
};

/// A secret in a request (`SecretRequest`). `rawValue` is bytes in base64 and takes precedence over `value`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct SecretRequest {
    #[serde(deserialize_with = "deserialize_null_as_default")]
    pub(super) name: String,
    #[serde(deserialize_with = "deserialize_null_as_default")]
    namespace: String,
    #[serde(deserialize_with = "deserialize_null_as_default")]
    value: String,
    #[serde(deserialize_with = "deserialize_null_as_default")]
    raw_value: String,
}

impl SecretRequest {
    fn from_json_body(body: &Bytes) -> Result<Self, ProviderError> {
        serde_json::from_slice(body).map_err(ProviderError::Json)
    }

    /// Returns the bytes of `rawValue`, or of `value` if that is empty.
    pub(super) fn value_bytes(&self) -> Result<Vec<u8>, ProviderError> {
        if self.raw_value.is_empty() {
            return Ok(self.value.clone().into_bytes());
        }
        STANDARD
            .decode(&self.raw_value)
            .map_err(|_| ProviderError::Invalid("rawValue is not base64".to_owned()))
    }
}

/// Answers with the names of the secrets of a namespace.
pub(super) async fn list_secrets(
    State(functions): State<FunctionStore>,
    Query(query): Query<NamespaceParameters>,
) -> Result<Json<Vec<SecretNameAndNamespace>>, ErrorResponse> {
    let listed = async {
        let namespace = resolve_namespace(&functions, query.namespace).await?;
        let names = functions.secrets().names_or_empty_if_no_namespace(&namespace)?;
        let named = |name| SecretNameAndNamespace {
            name,
            namespace: namespace.clone(),
        };
        Ok(Json(names.into_iter().map(named).collect()))
    };
    listed.await.map_err(ApiOperation::Secret.to_error_response())
}

/// Creates a secret or changes its value, for POST and PUT alike.
pub(super) async fn set_secret(
    State(functions): State<FunctionStore>,
    body: Bytes,
) -> Result<(), ErrorResponse> {
    let set = async {
        let secret = SecretRequest::from_json_body(&body)?;
        let namespace = resolve_namespace(&functions, secret.namespace.clone()).await?;
        functions
            .secrets()
            .set(&namespace, &secret.name, &secret.value_bytes()?)
    };
    set.await.map_err(ApiOperation::Secret.to_error_response())
}

/// Deletes a secret. faasd reads the namespace from the query, faas-cli sends it in the body; both work here,
/// and the query takes precedence.
pub(super) async fn delete_secret(
    State(functions): State<FunctionStore>,
    Query(query): Query<NamespaceParameters>,
    body: Bytes,
) -> Result<(), ErrorResponse> {
    let deleted = async {
        let secret = SecretRequest::from_json_body(&body)?;
        let given = if query.namespace.is_empty() {
            secret.namespace
        } else {
            query.namespace
        };
        let namespace = resolve_namespace(&functions, given).await?;
        functions.secrets().delete(&namespace, &secret.name)
    };
    deleted.await.map_err(ApiOperation::Secret.to_error_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value_bytes_of_json(json: &'static str) -> Result<Vec<u8>, ProviderError> {
        SecretRequest::from_json_body(&Bytes::from(json))?.value_bytes()
    }

    #[test]
    fn a_raw_value_is_base64_and_takes_precedence() {
        assert_eq!(value_bytes_of_json(r#"{"name":"a","value":"v"}"#).unwrap(), b"v");
        assert_eq!(
            value_bytes_of_json(r#"{"name":"a","value":"v","rawValue":"AAH/"}"#).unwrap(),
            [0, 1, 255]
        );
        assert_eq!(
            value_bytes_of_json(r#"{"name":"a","value":"v","rawValue":null}"#).unwrap(),
            b"v"
        );
        assert!(value_bytes_of_json(r#"{"name":"a","rawValue":"?"}"#).is_err());
    }
}
