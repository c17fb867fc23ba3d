//! The provider's functions on this machine, and the operations on them.
//!
//! The state of a function is stored with its containers in containerd, so that a restarted provider finds it
//! again ([`restore`]). Operations on one function run one after the other, and one that has begun runs to completion
//! even if its caller disconnects.

mod deferred;
mod deploy;
mod instance;
mod restore;
mod update;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::OwnedMutexGuard;
use tokio_util::task::TaskTracker;

pub(crate) use self::restore::kill_and_remove_all_functions_and_logs;
use self::{
    deferred::DeferredRollout,
    deploy::{ContainerStage, REPLICAS_LABEL, STAGE_LABEL},
    instance::{Instance, InstanceContext, InstanceReadiness, StoredDeploymentAndEnv},
};
use crate::{
    containerd::{Containerd, NamespaceClient, NamespaceWithOpenfaasLabel},
    error::ProviderError,
    hosts,
    image::ImagePuller,
    key::FunctionKey,
    logs::LogStore,
    model::{FunctionDeployment, FunctionStatus},
    network::FunctionNetwork,
    proxy::{CallRoute, CallRouter},
    scratch::ScratchDirectories,
    secrets::SecretStore,
    settings::{ProviderSettings, UpdateStrategy},
};

/// The pauses between attempts to remove a replaced instance after containerd failed, in seconds.
const RETIRE_BACKOFF_SECONDS: [u64; 6] = [1, 2, 4, 8, 16, 32];

/// All functions of the provider, with the operations on them; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct FunctionStore(Arc<FunctionStoreInner>);

/// The part of a [`FunctionStore`] that all its clones share.
#[derive(Debug)]
struct FunctionStoreInner {
    settings: ProviderSettings,
    containerd: Containerd,
    network: Arc<FunctionNetwork>,
    puller: ImagePuller,
    secrets: SecretStore,
    logs: LogStore,
    scratch: ScratchDirectories,
    resolv_conf: PathBuf,
    hosts: PathBuf,
    /// The current instance of each function; the proxy routes by this table.
    table: RwLock<BTreeMap<FunctionKey, Arc<Instance>>>,
    locks: Mutex<HashMap<FunctionKey, Arc<tokio::sync::Mutex<()>>>>,
    /// The accepted updates whose version does not serve yet.
    rollouts: Mutex<BTreeMap<FunctionKey, DeferredRollout>>,
    /// The tasks that remove replaced instances in the background.
    retiring: TaskTracker,
}

/// The progress of a successful update at the time of its answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum UpdateProgress {
    /// The new version has replaced the old one.
    Done,
    /// The new version will replace the old one once it listens.
    Accepted,
}

impl FunctionStore {
    /// Connects to containerd and opens the stores that functions need.
    pub(crate) async fn open(settings: ProviderSettings) -> Result<Self, ProviderError> {
        let settings = settings.with_state_and_secrets_directories_created()?;
        let secrets = SecretStore::open(settings.secrets_dir())?;
        let containerd = Containerd::connect(&settings.sock, &settings.snapshotter).await?;
        containerd
            .create_function_namespace_if_missing(&settings.function_namespace)
            .await?;
        let network = Arc::new(FunctionNetwork::write_configuration(&settings)?);
        let logs = LogStore::open(settings.logs_dir())?;
        let scratch = ScratchDirectories::open(settings.scratch_dir())?;
        let hosts::ResolverFiles { resolv_conf, hosts } = hosts::write_resolver_files(&settings)?;
        Ok(Self(Arc::new(FunctionStoreInner {
            puller: ImagePuller::new(&settings),
            containerd,
            network,
            secrets,
            logs,
            scratch,
            resolv_conf,
            hosts,
            table: RwLock::default(),
            locks: Mutex::default(),
            rollouts: Mutex::default(),
            retiring: TaskTracker::new(),
            settings,
        })))
    }

    pub(crate) fn settings(&self) -> &ProviderSettings {
        &self.0.settings
    }

    pub(crate) fn secrets(&self) -> &SecretStore {
        &self.0.secrets
    }

    pub(crate) fn logs(&self) -> &LogStore {
        &self.0.logs
    }

    /// Creates the bridge of the functions' network, and restores the functions of an earlier provider.
    pub(crate) async fn create_bridge_and_restore_functions(&self) -> Result<(), ProviderError> {
        self.0.network.connect_and_disconnect_test_namespace().await?;
        restore::restore_functions(&self.0).await
    }

    /// Returns the names of the default namespace and of all namespaces with the label `openfaas`, whatever its value.
    pub(crate) async fn default_and_labelled_namespaces(&self) -> Result<Vec<String>, ProviderError> {
        let labelled = self.0.containerd.list_namespaces_with_openfaas_label().await?;
        let default = &self.0.settings.function_namespace;
        let others = labelled
            .into_iter()
            .map(|namespace| namespace.name)
            .filter(|name| name != default);
        Ok([default.clone()].into_iter().chain(others).collect())
    }

    /// Fails if functions may not be in this namespace.
    pub(crate) async fn check_namespace_is_default_or_labelled(
        &self,
        namespace: &str,
    ) -> Result<(), ProviderError> {
        if namespace == self.0.settings.function_namespace {
            return Ok(());
        }
        let labelled = self.0.containerd.list_namespaces_with_openfaas_label().await?;
        let valid = |labelled: &NamespaceWithOpenfaasLabel| {
            labelled.name == namespace && matches!(labelled.label_value.as_str(), "true" | "1")
        };
        if labelled.iter().any(valid) {
            Ok(())
        } else {
            Err(ProviderError::NamespaceInvalid)
        }
    }

    /// Returns the status of all functions in a namespace.
    pub(crate) fn list_statuses(&self, namespace: &str) -> Vec<FunctionStatus> {
        let table = self.0.table.read().unwrap_or_else(PoisonError::into_inner);
        let here = table
            .values()
            .filter(|instance| instance.info().key.namespace == namespace);
        here.map(|instance| self.0.status_with_data_of_rollout(instance))
            .collect()
    }

    /// Returns the status of a function; fails if the function does not exist.
    pub(crate) fn get_status(&self, key: &FunctionKey) -> Result<FunctionStatus, ProviderError> {
        self.0
            .find_instance(key)
            .map(|instance| self.0.status_with_data_of_rollout(&instance))
    }

    /// Creates and starts a function, without waiting until it listens.
    pub(crate) async fn create_and_start_function_unless_exists(
        &self,
        deployment: FunctionDeployment,
    ) -> Result<(), ProviderError> {
        let key = self.0.key_of_function(&deployment);
        let inner = Arc::clone(&self.0);
        self.0
            .run_exclusively_and_to_completion(key, |key| async move {
                inner.create_and_start(&key, &deployment).await
            })
            .await
    }

    /// Updates a function with the strategy that its new version asks for, or else with that of the settings. A
    /// deferred update is only accepted, and goes on after this returns.
    pub(crate) async fn update_function(
        &self,
        deployment: FunctionDeployment,
    ) -> Result<UpdateProgress, ProviderError> {
        let key = self.0.key_of_function(&deployment);
        let inner = Arc::clone(&self.0);
        let strategy = inner.settings.strategy_for(&deployment.annotations);
        let work = move |key: FunctionKey| async move {
            match strategy {
                UpdateStrategy::Rolling => inner.rolling_update(&key, &deployment).await,
                UpdateStrategy::Recreate => {
                    inner
                        .recreate_function_despite_missing_secret_or_failed_pull(&key, &deployment)
                        .await
                }
                UpdateStrategy::Deferred => inner.accept_deferred_update(&key, deployment).await,
            }
        };
        self.0.run_exclusively_and_to_completion(key, work).await?;
        Ok(match strategy {
            UpdateStrategy::Rolling | UpdateStrategy::Recreate => UpdateProgress::Done,
            UpdateStrategy::Deferred => UpdateProgress::Accepted,
        })
    }

    /// Deletes a function. It gets no new calls; unless it is updated by recreating it, its calls in progress get the
    /// grace period to finish. It is removed when this succeeds.
    pub(crate) async fn delete_function(&self, key: FunctionKey) -> Result<(), ProviderError> {
        let inner = Arc::clone(&self.0);
        let work = |key: FunctionKey| async move {
            inner.stop_rollout(&key).await;
            let instance = inner.find_instance(&key)?;
            // If removing it fails half-way, the next provider must not restore it.
            inner
                .set_container_stage(&instance, ContainerStage::Retiring)
                .await?;
            inner.remove_from_table(&key);
            if inner.strategy_of(&instance.info().record) != UpdateStrategy::Recreate {
                inner.drain_calls(&instance).await;
            }
            let discarded = inner
                .stop_and_remove_instance(&instance, inner.settings.grace_period)
                .await;
            if discarded.is_err() {
                inner.retire_in_background(instance);
            }
            inner.logs.delete_logs_of_function_ignoring_errors(&key);
            discarded
        };
        self.0.run_exclusively_and_to_completion(key, work).await
    }

    /// Starts a function, or stops it if `replicas` is 0. There is at most one replica.
    pub(crate) async fn scale_function(&self, key: FunctionKey, replicas: u64) -> Result<(), ProviderError> {
        let inner = Arc::clone(&self.0);
        let work = move |key: FunctionKey| async move {
            let instance = inner.find_instance(&key)?;
            let containerd = inner.namespace_client(&key)?;
            let label = if replicas == 0 { "0" } else { "1" };
            containerd
                .set_container_label(instance.id(), REPLICAS_LABEL, label)
                .await?;
            match replicas {
                0 => instance.stop_process(inner.settings.grace_period).await,
                _ => instance.start_process().await,
            }
        };
        self.0.run_exclusively_and_to_completion(key, work).await
    }

    /// Waits until all replaced and deleted instances are removed, or their removal is given up. Functions continue to
    /// run.
    pub(crate) async fn wait_for_removals(&self) {
        self.0.retiring.close();
        self.0.retiring.wait().await;
    }
}

impl CallRouter for FunctionStore {
    /// Returns the address of the function's instance, and counts the call until the guard is dropped.
    fn route_call_if_function_has_endpoint(&self, name: &str) -> Option<CallRoute> {
        let key = FunctionKey::from_name_in_path(name, &self.0.settings.function_namespace);
        let table = self.0.table.read().unwrap_or_else(PoisonError::into_inner);
        let backend = table.get(&key)?.backend();
        let guard = backend.begin_call();
        Some(CallRoute {
            address: backend.address(),
            guard: Some(guard),
        })
    }
}

impl FunctionStoreInner {
    fn namespace_client(&self, key: &FunctionKey) -> Result<NamespaceClient, ProviderError> {
        self.containerd.namespace_client(&key.namespace)
    }

    /// Returns the update strategy of a stored function: its annotation's, or the provider's.
    fn strategy_of(&self, record: &StoredDeploymentAndEnv) -> UpdateStrategy {
        self.settings.strategy_for(&record.deployment.annotations)
    }

    fn instance_context(
        &self,
        containerd: NamespaceClient,
        record: &StoredDeploymentAndEnv,
    ) -> InstanceContext {
        InstanceContext {
            containerd,
            network: Arc::clone(&self.network),
            logs: self.logs.clone(),
            restart: self.strategy_of(record) != UpdateStrategy::Recreate,
        }
    }

    /// Returns the key of a deployment's function; an empty namespace stands for the default one.
    fn key_of_function(&self, deployment: &FunctionDeployment) -> FunctionKey {
        let namespace = match deployment.namespace.as_str() {
            "" => &self.settings.function_namespace,
            namespace => namespace,
        };
        FunctionKey::new(&deployment.service, namespace)
    }

    /// Returns the current instance of a function; fails if the function does not exist.
    fn find_instance(&self, key: &FunctionKey) -> Result<Arc<Instance>, ProviderError> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table
            .get(key)
            .cloned()
            .ok_or_else(|| ProviderError::FunctionNotFound(key.name.clone()))
    }

    /// Makes an instance the current one of its function, in the table by which calls are routed.
    fn insert_into_table(&self, instance: Arc<Instance>) {
        let key = instance.info().key.clone();
        self.table
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, instance);
    }

    /// Removes a function from the table by which calls are routed; its instance runs on.
    fn remove_from_table(&self, key: &FunctionKey) {
        self.table
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
    }

    /// Sets the label of an instance's container with its stage.
    async fn set_container_stage(
        &self,
        instance: &Instance,
        stage: ContainerStage,
    ) -> Result<(), ProviderError> {
        let containerd = self.namespace_client(&instance.info().key)?;
        containerd
            .set_container_label(instance.id(), STAGE_LABEL, stage.as_str())
            .await
    }

    /// Waits, up to the grace period, until an instance without new calls has finished those in progress.
    async fn drain_calls(&self, instance: &Instance) {
        let limit = self.settings.grace_period;
        if tokio::time::timeout(limit, instance.backend().wait_until_idle())
            .await
            .is_err()
        {
            tracing::warn!(
                instance = instance.id(),
                seconds = limit.as_secs(),
                "calls are still in progress after the grace period"
            );
        }
    }

    /// Stops an instance of a function and removes everything that belongs to it, except its log.
    async fn stop_and_remove_instance(
        &self,
        instance: &Instance,
        grace: Duration,
    ) -> Result<(), ProviderError> {
        let containerd = self.namespace_client(&instance.info().key)?;
        instance.stop_process(grace).await?;
        containerd.delete_task(instance.id()).await?;
        containerd.delete_container(instance.id()).await?;
        self.scratch.remove(instance.id());
        containerd.remove_snapshot(instance.id()).await
    }

    /// Drains and removes an instance that was replaced, or whose deletion failed, in the background; repeats failed
    /// removals for about a minute.
    fn retire_in_background(self: &Arc<Self>, instance: Arc<Instance>) {
        let inner = Arc::clone(self);
        self.retiring.spawn(async move {
            inner.drain_calls(&instance).await;
            for backoff in RETIRE_BACKOFF_SECONDS {
                let Err(error) = inner
                    .stop_and_remove_instance(&instance, inner.settings.grace_period)
                    .await
                else {
                    return;
                };
                tracing::warn!(
                    instance = instance.id(),
                    error = &error as &dyn std::error::Error,
                    "cannot remove a replaced instance; retrying"
                );
                tokio::time::sleep(Duration::from_secs(backoff)).await;
            }
            tracing::error!(
                instance = instance.id(),
                "cannot remove a replaced instance; the next provider will"
            );
        });
    }

    /// Runs an operation on a function once no other operation on it runs. An operation that has begun runs to
    /// completion, even if the caller disconnects.
    async fn run_exclusively_and_to_completion<F, W>(
        &self,
        key: FunctionKey,
        work: W,
    ) -> Result<(), ProviderError>
    where
        W: FnOnce(FunctionKey) -> F + Send + 'static,
        F: Future<Output = Result<(), ProviderError>> + Send + 'static,
    {
        let lock = self.lock_function(&key).await;
        let task = tokio::spawn(async move {
            let _lock = lock;
            work(key).await
        });
        task.await.unwrap_or(Err(ProviderError::Stopping))
    }

    /// Waits until no other operation on the function runs, and keeps others from running until the guard is dropped.
    async fn lock_function(&self, key: &FunctionKey) -> OwnedMutexGuard<()> {
        let mutex = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(locks.entry(key.clone()).or_default())
        };
        mutex.lock_owned().await
    }

    /// Returns the status that the API reports of an instance's function; during a deferred rollout, it has the new
    /// version's image and data.
    fn status_with_data_of_rollout(&self, instance: &Instance) -> FunctionStatus {
        let info = instance.info();
        let (replicas, available) = match (self.strategy_of(&info.record), instance.status()) {
            (_, InstanceReadiness::Stopped) | (UpdateStrategy::Recreate, InstanceReadiness::Ended(_)) => {
                (0, 0)
            }
            (
                UpdateStrategy::Rolling | UpdateStrategy::Deferred,
                InstanceReadiness::Starting | InstanceReadiness::Ended(_),
            ) => (1, 0),
            (UpdateStrategy::Recreate, InstanceReadiness::Starting) | (_, InstanceReadiness::Listening) => {
                (1, 1)
            }
        };
        let accepted = self.image_and_record_of_rollout(&info.key);
        let (image, record) = accepted.unwrap_or_else(|| (info.image.clone(), info.record.clone()));
        let StoredDeploymentAndEnv {
            deployment,
            env,
            env_process,
        } = record;
        FunctionStatus {
            name: info.key.name.clone(),
            namespace: info.key.namespace.clone(),
            image,
            env_process,
            env_vars: env,
            constraints: deployment.constraints,
            secrets: deployment.secrets,
            labels: deployment.labels,
            annotations: Some(deployment.annotations),
            limits: deployment.limits,
            requests: deployment.requests,
            read_only_root_filesystem: deployment.read_only_root_filesystem,
            replicas,
            available_replicas: available,
            created_at: Timestamp::try_from(info.created_at).unwrap_or_default(),
        }
    }
}
