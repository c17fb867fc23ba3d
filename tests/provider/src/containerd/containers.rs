//! The part of containerd's API for containers, which are metadata. The processes of a container are its task.

use std::{collections::HashMap, time::SystemTime};

use containerd_client::services::v1::{
    Container as ContainerMessage, CreateContainerRequest, DeleteContainerRequest, ListContainersRequest,
    UpdateContainerRequest, container::Runtime, containers_client::ContainersClient,
};
use prost_types::{Any, FieldMask};

use super::{NamespaceClient, await_short_call, default_if_not_found};
use crate::error::ProviderError;

/// The name of the runtime for functions' tasks.
const RUNTIME_NAME: &str = "io.containerd.runc.v2";

/// containerd's type URL of a runtime specification in JSON.
const SPEC_TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// The description of a container to create.
#[derive(Debug)]
pub(crate) struct NewContainer<'a> {
    pub(crate) id: &'a str,
    pub(crate) image: &'a str,
    /// The key of the container's snapshot.
    pub(crate) snapshot: &'a str,
    pub(crate) labels: HashMap<String, String>,
    /// The container's runtime specification, as JSON.
    pub(crate) spec: Vec<u8>,
    /// The type and the bytes of the container's only extension.
    pub(crate) extension: (&'a str, Vec<u8>),
}

/// A container in containerd's store.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) image: String,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) created_at: SystemTime,
    extensions: HashMap<String, Any>,
}

impl Container {
    /// Returns the bytes of the container's extension with this name.
    pub(crate) fn extension_bytes(&self, name: &str) -> Option<&[u8]> {
        self.extensions.get(name).map(|any| any.value.as_slice())
    }

    fn from_message(message: ContainerMessage) -> Self {
        let created_at = message.created_at.and_then(|at| SystemTime::try_from(at).ok());
        Self {
            id: message.id,
            image: message.image,
            labels: message.labels,
            created_at: created_at.unwrap_or(SystemTime::UNIX_EPOCH),
            extensions: message.extensions,
        }
    }
}

impl NamespaceClient {
    /// Creates a container in containerd's store, without a task.
    pub(crate) async fn create_container(&self, new: NewContainer<'_>) -> Result<Container, ProviderError> {
        let id = new.id;
        let (extension, bytes) = new.extension;
        let any = Any {
            type_url: extension.to_owned(),
            value: bytes,
        };
        let container = ContainerMessage {
            id: id.to_owned(),
            labels: new.labels,
            image: new.image.to_owned(),
            runtime: Some(Runtime {
                name: RUNTIME_NAME.to_owned(),
                options: None,
            }),
            spec: Some(Any {
                type_url: SPEC_TYPE_URL.to_owned(),
                value: new.spec,
            }),
            snapshotter: self.snapshotter(),
            snapshot_key: new.snapshot.to_owned(),
            extensions: HashMap::from([(extension.to_owned(), any)]),
            ..ContainerMessage::default()
        };
        let mut client = ContainersClient::new(self.channel());
        let request = self.request_in_namespace_and_lease(CreateContainerRequest {
            container: Some(container),
        });
        let answer = await_short_call("create container", id, client.create(request)).await?;
        Ok(Container::from_message(answer.container.unwrap_or_default()))
    }

    /// Returns all containers of the namespace.
    pub(crate) async fn list_containers(&self) -> Result<Vec<Container>, ProviderError> {
        let mut client = ContainersClient::new(self.channel());
        let request = self.request_in_namespace_and_lease(ListContainersRequest::default());
        let answer = await_short_call("list containers of", self.namespace(), client.list(request)).await?;
        Ok(answer
            .containers
            .into_iter()
            .map(Container::from_message)
            .collect())
    }

    /// Sets a label of a container.
    pub(crate) async fn set_container_label(
        &self,
        id: &str,
        label: &str,
        value: &str,
    ) -> Result<(), ProviderError> {
        let container = ContainerMessage {
            id: id.to_owned(),
            labels: HashMap::from([(label.to_owned(), value.to_owned())]),
            ..ContainerMessage::default()
        };
        let update_mask = Some(FieldMask {
            paths: vec![format!("labels.{label}")],
        });
        let request = self.request_in_namespace_and_lease(UpdateContainerRequest {
            container: Some(container),
            update_mask,
        });
        let mut client = ContainersClient::new(self.channel());
        await_short_call("label container", id, client.update(request))
            .await
            .map(drop)
    }

    /// Deletes a container, whose task must have been deleted. Succeeds if the container does not exist.
    pub(crate) async fn delete_container(&self, id: &str) -> Result<(), ProviderError> {
        let mut client = ContainersClient::new(self.channel());
        let request = self.request_in_namespace_and_lease(DeleteContainerRequest { id: id.to_owned() });
        default_if_not_found(
            await_short_call("delete container", id, client.delete(request))
                .await
                .map(drop),
        )
    }
}
