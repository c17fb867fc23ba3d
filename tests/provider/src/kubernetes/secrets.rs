//! The secrets of functions, as Secrets of the cluster.
//!
//! Only those with the label of OpenFaaS are listed. Every other operation, and functions, use any Secret of the
//! namespace.

use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::api::{DeleteParams, ListParams, PostParams};

use super::ClusterFunctions;
use crate::{
    error::{KubernetesOperation as Operation, ProviderError},
    model::NameValueMap,
};

/// The label of secrets that the API creates and lists, and its value.
const SECRET_LABEL: (&str, &str) = ("app.kubernetes.io/managed-by", "openfaas");

impl ClusterFunctions {
    /// Returns the names of the labelled secrets.
    pub(crate) async fn list_names_of_labelled_secrets(&self) -> Result<Vec<String>, ProviderError> {
        let labelled = ListParams::default().labels(&format!("{}={}", SECRET_LABEL.0, SECRET_LABEL.1));
        let secrets = self
            .api::<Secret>()
            .list(&labelled)
            .await
            .map_err(ProviderError::kubernetes(Operation::ListSecrets, ""))?;
        let names = secrets
            .items
            .into_iter()
            .filter_map(|secret| secret.metadata.name);
        Ok(names.collect())
    }

    /// Creates a labelled secret whose only key is its name.
    pub(crate) async fn create_secret(&self, name: &str, value: Vec<u8>) -> Result<(), ProviderError> {
        check_secret_name_not_empty(name)?;
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(NameValueMap::from([(
                    SECRET_LABEL.0.to_owned(),
                    SECRET_LABEL.1.to_owned(),
                )])),
                ..ObjectMeta::default()
            },
            type_: Some("Opaque".to_owned()),
            data: Some([(name.to_owned(), ByteString(value))].into()),
            ..Secret::default()
        };
        self.api::<Secret>()
            .create(&PostParams::default(), &secret)
            .await
            .map_err(ProviderError::kubernetes(Operation::CreateSecret, name))?;
        Ok(())
    }

    /// Replaces all keys of a secret by its name. Its labels do not change.
    pub(crate) async fn replace_all_keys_of_secret(
        &self,
        name: &str,
        value: Vec<u8>,
    ) -> Result<(), ProviderError> {
        check_secret_name_not_empty(name)?;
        let api = self.api::<Secret>();
        let mut secret = api
            .get(name)
            .await
            .map_err(ProviderError::kubernetes(Operation::ReadSecret, name))?;
        secret.data = Some([(name.to_owned(), ByteString(value))].into());
        api.replace(name, &PostParams::default(), &secret)
            .await
            .map_err(ProviderError::kubernetes(Operation::UpdateSecret, name))?;
        Ok(())
    }

    /// Deletes a secret, whatever its labels are.
    pub(crate) async fn delete_secret(&self, name: &str) -> Result<(), ProviderError> {
        self.api::<Secret>()
            .delete(name, &DeleteParams::default())
            .await
            .map_err(ProviderError::kubernetes(Operation::DeleteSecret, name))?;
        Ok(())
    }
}

fn check_secret_name_not_empty(name: &str) -> Result<(), ProviderError> {
    match name.trim() {
        "" => Err(ProviderError::SecretNameMissing),
        _ => Ok(()),
    }
}
