//! Restores functions after a restart of the provider, and removes all functions.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    Inner,
    deploy::{EXTENSION, LABEL_FUNCTION, LABEL_REPLICAS, LABEL_STAGE, Stage},
    instance::{Begin, Instance, Parts, Record, SIGKILL, SIGTERM},
};
use crate::{
    containerd::{Container, Containerd, Scope, TaskState},
    error::{Error, chain},
    key::Key,
    network::Network,
    settings::Settings,
};

/// Restores the functions of an earlier provider: keeps the serving instance of each function, and removes
/// the instances of unfinished updates and replaced ones.
pub(super) async fn restore(inner: &Arc<Inner>) -> Result<(), Error> {
    let found = find(&inner.containerd, &inner.settings).await?;
    inner
        .network
        .keep_only(|id| found.iter().any(|(_, container, _)| container.id == id))
        .await;
    inner
        .scratch
        .keep_only(|id| found.iter().any(|(_, container, _)| container.id == id));
    let (serving, rest) = choose(found);
    for (key, (container, record)) in serving {
        let begin = match container.labels.get(LABEL_REPLICAS).map(String::as_str) {
            Some("0") => Begin::Stopped,
            _ => Begin::Running,
        };
        tracing::info!(function = %key, instance = container.id, "found");
        inner.insert(Arc::new(inner.take_up(key, container, record, begin)?));
    }
    for (key, Container { id, .. }, _) in rest {
        tracing::info!(function = %key, instance = id, "left by an update, to be removed");
        let (scope, inner_too) = (inner.scope(&key)?, Arc::clone(inner));
        inner.retiring.spawn(async move {
            if let Err(error) = see_out(&scope, &id, inner_too.settings.grace_period).await {
                tracing::error!(instance = id, error = chain(&error), "cannot be removed");
            }
            inner_too.network.detach(&id).await;
            inner_too.scratch.remove(&id);
        });
    }
    Ok(())
}

impl Inner {
    fn take_up(
        &self,
        key: Key,
        container: Container,
        record: Record,
        begin: Begin,
    ) -> Result<Instance, Error> {
        let ground = self.ground(self.scope(&key)?, &record);
        let Container {
            id,
            image,
            created_at,
            ..
        } = container;
        Ok(Instance::supervise(
            Parts {
                id,
                key,
                image,
                created_at,
                record,
            },
            ground,
            begin,
        ))
    }
}

type Found = (Key, Container, Record);

async fn find(containerd: &Containerd, settings: &Settings) -> Result<Vec<Found>, Error> {
    let mut namespaces = containerd.function_namespaces().await?;
    namespaces.retain(|(name, _)| *name != settings.function_namespace);
    namespaces.push((settings.function_namespace.clone(), String::new()));
    let mut found = Vec::new();
    for (namespace, _) in namespaces {
        for container in containerd.within(&namespace)?.containers().await? {
            let record = container
                .extension(EXTENSION)
                .and_then(|bytes| serde_json::from_slice(bytes).ok());
            match (record, container.labels.get(LABEL_FUNCTION)) {
                (Some(record), Some(name)) => found.push((Key::new(name, &namespace), container, record)),
                _ => tracing::debug!(id = container.id, "not ours"),
            }
        }
    }
    Ok(found)
}

/// Returns the serving container of each function, the youngest if there are two, and all other containers.
fn choose(found: Vec<Found>) -> (BTreeMap<Key, (Container, Record)>, Vec<Found>) {
    let mut serving: BTreeMap<Key, (Container, Record)> = BTreeMap::new();
    let mut rest = Vec::new();
    for (key, container, record) in found {
        let serves = container
            .labels
            .get(LABEL_STAGE)
            .is_some_and(|stage| stage == Stage::Serving.as_str());
        let youngest = serving
            .get(&key)
            .is_none_or(|(other, _)| other.created_at < container.created_at);
        if !(serves && youngest) {
            rest.push((key, container, record));
        } else if let Some((other, record)) = serving.insert(key.clone(), (container, record)) {
            rest.push((key, other, record));
        }
    }
    (serving, rest)
}

/// Kills and removes every function, with its network and log, and the parent cgroup.
pub(crate) async fn cleanup(settings: Settings) -> Result<(), Error> {
    let settings = settings.prepared()?;
    let containerd = Containerd::connect(&settings.sock, &settings.snapshotter).await?;
    let network = Network::open(&settings)?;
    let mut worst = Ok(());
    for (key, container, _) in find(&containerd, &settings).await? {
        let scope = containerd.within(&key.namespace)?;
        if let Err(error) = remove(&scope, &container.id).await {
            tracing::error!(
                instance = container.id,
                error = chain(&error),
                "cannot be removed"
            );
            worst = Err(error);
        }
        network.detach(&container.id).await;
    }
    network.keep_only(|_| false).await;
    let _ = fs::remove_dir_all(settings.logs_dir());
    let _ = fs::remove_dir_all(settings.scratch_dir());
    remove_cgroups(&settings.cgroup_parent);
    worst
}

/// Stops a process, waits up to the grace period, and removes its container.
async fn see_out(containerd: &Scope, id: &str, grace: Duration) -> Result<(), Error> {
    if containerd.task_state(id).await? == TaskState::Alive {
        containerd.kill_task(id, SIGTERM, false).await?;
        // After the limit, `remove` kills it.
        let _ = tokio::time::timeout(grace, containerd.wait_task(id)).await;
    }
    remove(containerd, id).await
}

async fn remove(containerd: &Scope, id: &str) -> Result<(), Error> {
    if containerd.task_state(id).await? == TaskState::Alive {
        containerd.kill_task(id, SIGKILL, true).await?;
        containerd.wait_task(id).await?;
    }
    containerd.delete_task(id).await?;
    containerd.delete_container(id).await?;
    containerd.remove_snapshot(id).await
}

/// Removes the parent cgroup and its subgroups from every hierarchy. A cgroup that has processes is kept.
fn remove_cgroups(parent: &str) {
    let name = parent.trim_matches('/');
    if name.is_empty() {
        return;
    }
    let root = Path::new("/sys/fs/cgroup");
    remove_cgroup(&root.join(name));
    for hierarchy in folders(root) {
        remove_cgroup(&hierarchy.join(name));
    }
}

/// Removes a cgroup and its subgroups. Removing the folder is enough; its files are the kernel's.
fn remove_cgroup(folder: &Path) {
    for inner in folders(folder) {
        remove_cgroup(&inner);
    }
    let _ = fs::remove_dir(folder);
}

fn folders(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}
