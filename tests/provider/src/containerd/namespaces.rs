//! containerd's namespaces. Those with the label `openfaas` hold functions.

use std::collections::HashMap;

use containerd_client::services::v1::{
    CreateNamespaceRequest, ListNamespacesRequest, Namespace, namespaces_client::NamespacesClient,
};
use tonic::Request;

use super::{Containerd, already_exists, call};
use crate::error::Error;

/// The label of containerd namespaces that may hold functions.
const LABEL: &str = "openfaas";

impl Containerd {
    /// Returns the containerd namespaces that may hold functions, each with the value of its label.
    pub(crate) async fn function_namespaces(&self) -> Result<Vec<(String, String)>, Error> {
        let mut client = NamespacesClient::new(self.channel.clone());
        let request = Request::new(ListNamespacesRequest::default());
        let answer = call("list namespaces", "", client.list(request)).await?;
        let labelled = |mut namespace: Namespace| {
            namespace
                .labels
                .remove(LABEL)
                .map(|value| (namespace.name, value))
        };
        Ok(answer.namespaces.into_iter().filter_map(labelled).collect())
    }

    /// Creates a containerd namespace for functions, unless it exists.
    pub(crate) async fn ensure_namespace(&self, name: &str) -> Result<(), Error> {
        let labels = HashMap::from([(LABEL.to_owned(), "true".to_owned())]);
        let namespace = Some(Namespace {
            name: name.to_owned(),
            labels,
        });
        let mut client = NamespacesClient::new(self.channel.clone());
        let request = Request::new(CreateNamespaceRequest { namespace });
        match call("create namespace", name, client.create(request)).await {
            Err(error) if !already_exists(&error) => Err(error),
            _ => Ok(()),
        }
    }
}
