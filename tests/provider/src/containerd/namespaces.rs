//! containerd's namespaces. Besides the default one, functions may be in those whose label `openfaas` is `true` or `1`.

use std::collections::HashMap;

use containerd_client::services::v1::{
    CreateNamespaceRequest, ListNamespacesRequest, Namespace, namespaces_client::NamespacesClient,
};
use tonic::Request;

use super::{Containerd, await_short_call, is_already_exists};
use crate::error::ProviderError;

/// The label of containerd namespaces that may hold functions.
const FUNCTION_NAMESPACE_LABEL: &str = "openfaas";

/// A containerd namespace with the label `openfaas`.
pub(crate) struct NamespaceWithOpenfaasLabel {
    pub(crate) name: String,
    /// The value of the label: functions may be in the namespace if it is `true` or `1`.
    pub(crate) label_value: String,
}

impl Containerd {
    /// Lists the containerd namespaces that have the label `openfaas`, whatever its value.
    pub(crate) async fn list_namespaces_with_openfaas_label(
        &self,
    ) -> Result<Vec<NamespaceWithOpenfaasLabel>, ProviderError> {
        let mut client = NamespacesClient::new(self.channel.clone());
        let request = Request::new(ListNamespacesRequest::default());
        let answer = await_short_call("list namespaces", "", client.list(request)).await?;
        let labelled = |mut namespace: Namespace| {
            namespace
                .labels
                .remove(FUNCTION_NAMESPACE_LABEL)
                .map(|label_value| NamespaceWithOpenfaasLabel {
                    name: namespace.name,
                    label_value,
                })
        };
        Ok(answer.namespaces.into_iter().filter_map(labelled).collect())
    }

    /// Creates a containerd namespace with the label for functions, unless one of this name exists, which is left as it
    /// is, also without the label.
    pub(crate) async fn create_function_namespace_if_missing(&self, name: &str) -> Result<(), ProviderError> {
        let labels = HashMap::from([(FUNCTION_NAMESPACE_LABEL.to_owned(), "true".to_owned())]);
        let namespace = Some(Namespace {
            name: name.to_owned(),
            labels,
        });
        let mut client = NamespacesClient::new(self.channel.clone());
        let request = Request::new(CreateNamespaceRequest { namespace });
        match await_short_call("create namespace", name, client.create(request)).await {
            Err(error) if !is_already_exists(&error) => Err(error),
            _ => Ok(()),
        }
    }
}
