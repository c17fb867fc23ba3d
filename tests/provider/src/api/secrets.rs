//! The route `/system/secrets`. Secrets' values can be written, never read.

use axum::{
    Json,
    body::Bytes,
    extract::{Query, State},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

use super::{
    answer::{ErrorResponse, Operation},
    functions::{NamespaceQuery, resolve_namespace},
};
use crate::{
    error::Error,
    functions::Functions,
    model::{SecretName, nullable},
};

/// A secret in a request (`Secret`). `rawValue` is bytes in base64 and takes precedence over `value`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Secret {
    #[serde(deserialize_with = "nullable")]
    name: String,
    #[serde(deserialize_with = "nullable")]
    namespace: String,
    #[serde(deserialize_with = "nullable")]
    value: String,
    #[serde(deserialize_with = "nullable")]
    raw_value: String,
}

impl Secret {
    fn read(body: &Bytes) -> Result<Self, Error> {
        serde_json::from_slice(body).map_err(Error::Json)
    }

    fn bytes(&self) -> Result<Vec<u8>, Error> {
        if self.raw_value.is_empty() {
            return Ok(self.value.clone().into_bytes());
        }
        STANDARD
            .decode(&self.raw_value)
            .map_err(|_| Error::Invalid("rawValue is not base64".to_owned()))
    }
}

pub(super) async fn list(
    State(functions): State<Functions>,
    Query(query): Query<NamespaceQuery>,
) -> Result<Json<Vec<SecretName>>, ErrorResponse> {
    let listed = async {
        let namespace = resolve_namespace(&functions, query.namespace).await?;
        let names = functions.secrets().names(&namespace)?;
        let named = |name| SecretName {
            name,
            namespace: namespace.clone(),
        };
        Ok(Json(names.into_iter().map(named).collect()))
    };
    listed.await.map_err(Operation::Secret.failed())
}

pub(super) async fn set(State(functions): State<Functions>, body: Bytes) -> Result<(), ErrorResponse> {
    let set = async {
        let secret = Secret::read(&body)?;
        let namespace = resolve_namespace(&functions, secret.namespace.clone()).await?;
        functions
            .secrets()
            .set(&namespace, &secret.name, &secret.bytes()?)
    };
    set.await.map_err(Operation::Secret.failed())
}

/// Deletes a secret. faasd reads the namespace from the query, faas-cli sends it in the body; both work here,
/// and the query takes precedence.
pub(super) async fn delete(
    State(functions): State<Functions>,
    Query(query): Query<NamespaceQuery>,
    body: Bytes,
) -> Result<(), ErrorResponse> {
    let deleted = async {
        let secret = Secret::read(&body)?;
        let given = if query.namespace.is_empty() {
            secret.namespace
        } else {
            query.namespace
        };
        let namespace = resolve_namespace(&functions, given).await?;
        functions.secrets().delete(&namespace, &secret.name)
    };
    deleted.await.map_err(Operation::Secret.failed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(json: &'static str) -> Result<Vec<u8>, Error> {
        Secret::read(&Bytes::from(json))?.bytes()
    }

    #[test]
    fn a_raw_value_is_base64_and_takes_precedence() {
        assert_eq!(bytes(r#"{"name":"a","value":"v"}"#).unwrap(), b"v");
        assert_eq!(
            bytes(r#"{"name":"a","value":"v","rawValue":"AAH/"}"#).unwrap(),
            [0, 1, 255]
        );
        assert_eq!(
            bytes(r#"{"name":"a","value":"v","rawValue":null}"#).unwrap(),
            b"v"
        );
        assert!(bytes(r#"{"name":"a","rawValue":"?"}"#).is_err());
    }
}
