//! The restoration of functions after a restart of the provider, and the removal of all functions.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    FunctionStoreInner,
    deploy::{ContainerStage, FUNCTION_EXTENSION, FUNCTION_NAME_LABEL, REPLICAS_LABEL, STAGE_LABEL},
    instance::{InitialProcessAction, Instance, InstanceInfo, SIGKILL, SIGTERM, StoredDeploymentAndEnv},
};
use crate::{
    containerd::{Container, Containerd, NamespaceClient, TaskLiveness},
    error::ProviderError,
    key::FunctionKey,
    network::FunctionNetwork,
    settings::ProviderSettings,
};

/// Restores the functions of an earlier provider: keeps the serving instance of each function, and removes
/// the instances of unfinished updates and replaced ones in the background.
pub(super) async fn restore_functions(inner: &Arc<FunctionStoreInner>) -> Result<(), ProviderError> {
    let found = find_function_containers(&inner.containerd, &inner.settings).await?;
    inner
        .network
        .disconnect_all_except(|id| found.iter().any(|(_, container, _)| container.id == id))
        .await;
    inner
        .scratch
        .keep_only(|id| found.iter().any(|(_, container, _)| container.id == id));
    let (serving, rest) = choose_serving_containers(found);
    for (key, (container, record)) in serving {
        let initial = match container.labels.get(REPLICAS_LABEL).map(String::as_str) {
            Some("0") => InitialProcessAction::StayStopped,
            _ => InitialProcessAction::KeepOrStart,
        };
        tracing::info!(function = %key, instance = container.id, "restored a function");
        inner.insert_into_table(Arc::new(inner.restore_instance(key, container, record, initial)?));
    }
    for (key, Container { id, .. }, _) in rest {
        tracing::info!(function = %key, instance = id, "removing a leftover instance");
        let (client, other_inner) = (inner.namespace_client(&key)?, Arc::clone(inner));
        inner.retiring.spawn(async move {
            if let Err(error) =
                stop_and_remove_container(&client, &id, other_inner.settings.grace_period).await
            {
                tracing::error!(
                    instance = id,
                    error = &error as &dyn std::error::Error,
                    "cannot remove an instance"
                );
            }
            other_inner.network.disconnect_container(&id).await;
            other_inner.scratch.remove(&id);
        });
    }
    Ok(())
}

impl FunctionStoreInner {
    /// Creates the handle of an instance that an earlier provider made, in the initial state `initial`.
    fn restore_instance(
        &self,
        key: FunctionKey,
        container: Container,
        record: StoredDeploymentAndEnv,
        initial: InitialProcessAction,
    ) -> Result<Instance, ProviderError> {
        let context = self.instance_context(self.namespace_client(&key)?, &record);
        let Container {
            id,
            image,
            created_at,
            ..
        } = container;
        Ok(Instance::spawn_supervisor(
            InstanceInfo {
                id,
                key,
                image,
                created_at,
                record,
            },
            context,
            initial,
        ))
    }
}

/// A function's container, with the key and the stored data of the function.
type FoundFunctionContainer = (FunctionKey, Container, StoredDeploymentAndEnv);

/// Returns the containers of functions in the default namespace and in those with the label `openfaas`.
async fn find_function_containers(
    containerd: &Containerd,
    settings: &ProviderSettings,
) -> Result<Vec<FoundFunctionContainer>, ProviderError> {
    let labelled = containerd.list_namespaces_with_openfaas_label().await?;
    let mut namespaces: Vec<String> = labelled.into_iter().map(|namespace| namespace.name).collect();
    namespaces.retain(|name| *name != settings.function_namespace);
    namespaces.push(settings.function_namespace.clone());
    let mut found = Vec::new();
    for namespace in namespaces {
        for container in containerd.namespace_client(&namespace)?.list_containers().await? {
            let record = container
                .extension_bytes(FUNCTION_EXTENSION)
                .and_then(|bytes| serde_json::from_slice(bytes).ok());
            match (record, container.labels.get(FUNCTION_NAME_LABEL)) {
                (Some(record), Some(name)) => {
                    found.push((FunctionKey::new(name, &namespace), container, record))
                }
                _ => tracing::debug!(id = container.id, "ignored a container that is not a function's"),
            }
        }
    }
    Ok(found)
}

/// Returns the serving container of each function, the youngest if there are two, and all other containers.
fn choose_serving_containers(
    found: Vec<FoundFunctionContainer>,
) -> (
    BTreeMap<FunctionKey, (Container, StoredDeploymentAndEnv)>,
    Vec<FoundFunctionContainer>,
) {
    let mut serving: BTreeMap<FunctionKey, (Container, StoredDeploymentAndEnv)> = BTreeMap::new();
    let mut rest = Vec::new();
    for (key, container, record) in found {
        let serves = container
            .labels
            .get(STAGE_LABEL)
            .is_some_and(|stage| stage == ContainerStage::Serving.as_str());
        let is_youngest = serving
            .get(&key)
            .is_none_or(|(other, _)| other.created_at < container.created_at);
        if !(serves && is_youngest) {
            rest.push((key, container, record));
        } else if let Some((other, record)) = serving.insert(key.clone(), (container, record)) {
            rest.push((key, other, record));
        }
    }
    (serving, rest)
}

/// Kills and removes every function, with its network and log, and the parent cgroup.
pub(crate) async fn kill_and_remove_all_functions_and_logs(
    settings: ProviderSettings,
) -> Result<(), ProviderError> {
    let settings = settings.with_state_and_secrets_directories_created()?;
    let containerd = Containerd::connect(&settings.sock, &settings.snapshotter).await?;
    let network = FunctionNetwork::write_configuration(&settings)?;
    let mut worst = Ok(());
    for (key, container, _) in find_function_containers(&containerd, &settings).await? {
        let client = containerd.namespace_client(&key.namespace)?;
        if let Err(error) = kill_and_remove_container_and_snapshot(&client, &container.id).await {
            tracing::error!(
                instance = container.id,
                error = &error as &dyn std::error::Error,
                "cannot remove an instance"
            );
            worst = Err(error);
        }
        network.disconnect_container(&container.id).await;
    }
    network.disconnect_all_except(|_| false).await;
    let _ = fs::remove_dir_all(settings.logs_dir());
    let _ = fs::remove_dir_all(settings.scratch_dir());
    remove_cgroups(&settings.cgroup_parent);
    worst
}

/// Stops a container's process with SIGTERM and, after `grace`, SIGKILL, and removes the container.
async fn stop_and_remove_container(
    containerd: &NamespaceClient,
    id: &str,
    grace: Duration,
) -> Result<(), ProviderError> {
    if containerd.task_liveness(id).await? == TaskLiveness::Alive {
        containerd.signal_task(id, SIGTERM, false).await?;
        // After the grace period, the removal kills it.
        let _ = tokio::time::timeout(grace, containerd.wait_until_task_ends(id)).await;
    }
    kill_and_remove_container_and_snapshot(containerd, id).await
}

/// Kills a container's process, if it runs, and removes the container with its task and snapshot.
async fn kill_and_remove_container_and_snapshot(
    containerd: &NamespaceClient,
    id: &str,
) -> Result<(), ProviderError> {
    if containerd.task_liveness(id).await? == TaskLiveness::Alive {
        containerd.signal_task(id, SIGKILL, true).await?;
        containerd.wait_until_task_ends(id).await?;
    }
    containerd.delete_task(id).await?;
    containerd.delete_container(id).await?;
    containerd.remove_snapshot(id).await
}

/// Removes the parent cgroup and its subgroups from every hierarchy. A cgroup that has processes is kept.
fn remove_cgroups(parent_cgroup: &str) {
    let name = parent_cgroup.trim_matches('/');
    if name.is_empty() {
        return;
    }
    let root = Path::new("/sys/fs/cgroup");
    remove_cgroup_tree(&root.join(name));
    for hierarchy in subdirectories(root) {
        remove_cgroup_tree(&hierarchy.join(name));
    }
}

/// Removes a cgroup and its subgroups. Removing the directory is enough; its files are the kernel's.
fn remove_cgroup_tree(directory: &Path) {
    for inner in subdirectories(directory) {
        remove_cgroup_tree(&inner);
    }
    let _ = fs::remove_dir(directory);
}

fn subdirectories(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}
