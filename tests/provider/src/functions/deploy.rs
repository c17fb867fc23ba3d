//! The creation of functions, and of containers from deployments.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{
    FunctionStoreInner,
    instance::{InitialProcessAction, Instance, InstanceInfo, StoredDeploymentAndEnv},
};
use crate::{
    containerd::{Container, NamespaceClient, NewContainer},
    error::ProviderError,
    image::{UnpackedImage, normalise_reference},
    key::FunctionKey,
    model::FunctionDeployment,
    rootfs,
    settings::UpdateStrategy,
    spec::{self, SpecInput, user::ImageUser},
    unique,
};

/// The label of a container with its function's name.
pub(super) const FUNCTION_NAME_LABEL: &str = "slipway.dev/function";

/// The label of a container with the desired number of replicas: `0` or `1`.
pub(super) const REPLICAS_LABEL: &str = "slipway.dev/replicas";

/// The label of a container with its [`ContainerStage`].
pub(super) const STAGE_LABEL: &str = "slipway.dev/stage";

/// The extension of a container that holds its [`StoredDeploymentAndEnv`], as JSON.
pub(super) const FUNCTION_EXTENSION: &str = "slipway.dev/function.v1";

/// The grace period for stopping an instance that never served.
const FAILED_INSTANCE_GRACE: Duration = Duration::from_secs(2);

/// The stage of a container in its function's life; a restarted provider uses it to decide which containers
/// to keep.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ContainerStage {
    /// An update created the container and has not succeeded yet.
    Pending,
    /// The container is the function's current one, whether its process runs or not.
    Serving,
    /// The container was replaced and is being removed.
    Retiring,
}

impl ContainerStage {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Serving => "serving",
            Self::Retiring => "retiring",
        }
    }
}

impl FunctionStoreInner {
    /// Pulls the image of a new function, and creates and starts its instance; fails if the function exists.
    pub(super) async fn create_and_start(
        &self,
        key: &FunctionKey,
        deployment: &FunctionDeployment,
    ) -> Result<(), ProviderError> {
        self.check_name_image_and_memory_limit(key, deployment)?;
        self.secrets
            .check_all_exist(&key.namespace, &deployment.secrets)?;
        if self.find_instance(key).is_ok() {
            return Err(ProviderError::FunctionExists(key.name.clone()));
        }
        let lease = self.namespace_client(key)?.create_lease().await?;
        let made = async {
            let image = self
                .puller
                .pull_image(lease.leased_client(), &normalise_reference(&deployment.image)?)
                .await?;
            self.make_instance(
                lease.leased_client(),
                key,
                deployment,
                &image,
                ContainerStage::Serving,
            )
            .await
        };
        let made = made.await;
        lease.release().await;
        self.start_and_insert_or_remove_unless_recreate(made?).await
    }

    /// Starts the only instance of a function and adds the function. If the start fails, the instance is
    /// removed instead, unless the strategy is [`UpdateStrategy::Recreate`]: faasd keeps it.
    pub(super) async fn start_and_insert_or_remove_unless_recreate(
        &self,
        instance: Arc<Instance>,
    ) -> Result<(), ProviderError> {
        let started = instance.start_process().await;
        if started.is_ok() || self.strategy_of(&instance.info().record) == UpdateStrategy::Recreate {
            self.insert_into_table(instance);
        } else {
            self.remove_failed_instance(&instance).await;
        }
        started
    }

    /// Fails if a deployment is invalid, before anything is changed.
    pub(super) fn check_name_image_and_memory_limit(
        &self,
        key: &FunctionKey,
        deployment: &FunctionDeployment,
    ) -> Result<(), ProviderError> {
        key.check_name_is_short_dotless_identifier()?;
        normalise_reference(&deployment.image)?;
        spec::memory_limit_bytes(deployment).map(drop)
    }

    /// Creates an instance of a function, with its container, without starting it.
    pub(super) async fn make_instance(
        &self,
        containerd: &NamespaceClient,
        key: &FunctionKey,
        deployment: &FunctionDeployment,
        image: &UnpackedImage,
        stage: ContainerStage,
    ) -> Result<Arc<Instance>, ProviderError> {
        let id = format!("{}.{}", key.name, unique::sortable_millisecond_suffix());
        let made = self
            .make_snapshot_and_container_without_clean_up(containerd, &id, key, deployment, image, stage)
            .await;
        let (container, record) = match made {
            Ok(made) => made,
            Err(error) => {
                self.scratch.remove(&id);
                if let Err(error) = containerd.remove_snapshot(&id).await {
                    tracing::warn!(
                        instance = id,
                        error = &error as &dyn std::error::Error,
                        "cannot remove a snapshot"
                    );
                }
                return Err(error);
            }
        };
        let info = InstanceInfo {
            id,
            key: key.clone(),
            image: image.name.clone(),
            created_at: container.created_at,
            record,
        };
        // The instance outlives the lease, so it gets a client without one.
        let context = self.instance_context(self.namespace_client(key)?, &info.record);
        Ok(Arc::new(Instance::spawn_supervisor(
            info,
            context,
            InitialProcessAction::StayStopped,
        )))
    }

    /// Creates an instance's snapshot and container, and returns the container with the data that is stored in it.
    async fn make_snapshot_and_container_without_clean_up(
        &self,
        containerd: &NamespaceClient,
        id: &str,
        key: &FunctionKey,
        deployment: &FunctionDeployment,
        image: &UnpackedImage,
        stage: ContainerStage,
    ) -> Result<(Container, StoredDeploymentAndEnv), ProviderError> {
        let config = image.config.config().clone().unwrap_or_default();
        let mounts = containerd.prepare_snapshot(id, &image.top_snapshot).await?;
        let user_spec = ImageUser::new(config.user().as_deref().unwrap_or_default());
        let user = match user_spec.ids_if_numeric_pair_or_empty() {
            Some(user) => user,
            None => user_spec.resolve_ids(&rootfs::read_user_files(mounts).await?)?,
        };
        let scratch = match deployment.read_only_root_filesystem {
            true => Some(self.scratch.create(id)?),
            false => None,
        };
        let spec = spec::build_spec(SpecInput {
            deployment,
            config: &config,
            user,
            network: &self.network.namespace_file(id),
            cgroup: format!("{}/{id}", self.settings.cgroup_parent.trim_end_matches('/')),
            resolv_conf: &self.resolv_conf,
            hosts: &self.hosts,
            secrets: &self.secrets.directory(&key.namespace),
            scratch: scratch.as_deref(),
        })?;
        let (env, env_process) = spec::status_env_and_fprocess(&config, deployment);
        let record = StoredDeploymentAndEnv {
            deployment: deployment.clone(),
            env,
            env_process,
        };
        let labels = [
            (FUNCTION_NAME_LABEL, key.name.as_str()),
            (STAGE_LABEL, stage.as_str()),
            (REPLICAS_LABEL, "1"),
        ];
        let new = NewContainer {
            id,
            image: &image.name,
            snapshot: id,
            labels: HashMap::from(labels.map(|(label, value)| (label.to_owned(), value.to_owned()))),
            spec: serde_json::to_vec(&spec).map_err(ProviderError::Json)?,
            extension: (
                FUNCTION_EXTENSION,
                serde_json::to_vec(&record).map_err(ProviderError::Json)?,
            ),
        };
        Ok((containerd.create_container(new).await?, record))
    }

    /// Removes an instance that never served: it failed to start, or its update was stopped. Errors are logged only,
    /// because the caller reports the failure itself.
    pub(super) async fn remove_failed_instance(&self, instance: &Instance) {
        if let Err(error) = self
            .stop_and_remove_instance(instance, FAILED_INSTANCE_GRACE)
            .await
        {
            tracing::error!(
                instance = instance.id(),
                error = &error as &dyn std::error::Error,
                "cannot remove an instance that failed to start"
            );
        }
    }
}
