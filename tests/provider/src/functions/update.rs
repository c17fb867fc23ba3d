//! The update of a function before the request is answered: rolling, or by recreating the function.

use std::sync::Arc;

use super::{FunctionStoreInner, deploy::ContainerStage, instance::Instance};
use crate::{error::ProviderError, image::normalise_reference, key::FunctionKey, model::FunctionDeployment};

impl FunctionStoreInner {
    /// Starts a function's new version beside the old one, and routes calls to it once it listens. If anything
    /// fails before that, the old version continues to serve.
    pub(super) async fn rolling_update(
        self: &Arc<Self>,
        key: &FunctionKey,
        deployment: &FunctionDeployment,
    ) -> Result<(), ProviderError> {
        self.find_instance(key)?;
        self.check_name_image_and_memory_limit(key, deployment)?;
        self.secrets
            .check_all_exist(&key.namespace, &deployment.secrets)?;
        self.stop_rollout(key).await;
        let new = self.pull_and_make_pending_instance(key, deployment).await?;
        if let Err(error) = self.start_and_wait_until_listening(&new).await {
            self.remove_failed_instance(&new).await;
            return Err(error);
        }
        self.replace_old_version_with(new).await
    }

    /// Pulls the image of a new version and makes its container, without starting it.
    pub(super) async fn pull_and_make_pending_instance(
        &self,
        key: &FunctionKey,
        deployment: &FunctionDeployment,
    ) -> Result<Arc<Instance>, ProviderError> {
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
                ContainerStage::Pending,
            )
            .await
        };
        let made = made.await;
        lease.release().await;
        made
    }

    /// Starts an instance's process and waits until it listens; fails after the setting `ready_timeout`.
    async fn start_and_wait_until_listening(&self, new: &Instance) -> Result<(), ProviderError> {
        new.start_process().await?;
        new.wait_until_listening_or_stopped(self.settings.ready_timeout)
            .await
    }

    /// Routes calls to a new version that listens, and removes the old one in the background. If the routing fails,
    /// the new version is removed, and the old one continues to serve.
    pub(super) async fn replace_old_version_with(
        self: &Arc<Self>,
        new: Arc<Instance>,
    ) -> Result<(), ProviderError> {
        let replaced = async {
            let old = self.find_instance(&new.info().key)?;
            self.set_container_stage(&new, ContainerStage::Serving).await?;
            Ok(old)
        };
        let old = match replaced.await {
            Ok(old) => old,
            Err(error) => {
                self.remove_failed_instance(&new).await;
                return Err(error);
            }
        };
        self.insert_into_table(new);
        // If this fails, a restarted provider finds two serving instances and takes the younger.
        if let Err(error) = self.set_container_stage(&old, ContainerStage::Retiring).await {
            tracing::warn!(
                instance = old.id(),
                error = &error as &dyn std::error::Error,
                "cannot mark a replaced instance"
            );
        }
        self.retire_in_background(old);
        Ok(())
    }

    /// Deletes a function's old version, then creates the new one. Like faasd 0.19, it checks secrets and pulls
    /// the image beforehand, but continues if that fails: the caller gets the first error, and the running
    /// function is removed nevertheless (docs/pitfalls.md#a-failed-update-removes-the-function).
    pub(super) async fn recreate_function_despite_missing_secret_or_failed_pull(
        &self,
        key: &FunctionKey,
        deployment: &FunctionDeployment,
    ) -> Result<(), ProviderError> {
        self.stop_rollout(key).await;
        let old = self.find_instance(key)?;
        let mut first_error = self
            .secrets
            .check_all_exist(&key.namespace, &deployment.secrets)
            .err();
        // Removing the old instance makes containerd collect garbage; without a lease, that could include the
        // new instance's content.
        let lease = self.namespace_client(key)?.create_lease().await?;
        let containerd = lease.leased_client();
        let reference = normalise_reference(&deployment.image);
        let pulled = match &reference {
            Ok(reference) => self.puller.pull_image(containerd, reference).await.map(drop),
            Err(_) => Err(ProviderError::Invalid(format!(
                "image: {:?} is not a reference",
                deployment.image
            ))),
        };
        first_error = first_error.or(pulled.err());

        self.remove_from_table(key);
        let made = async {
            self.stop_and_remove_instance(&old, self.settings.grace_period)
                .await?;
            self.check_name_image_and_memory_limit(key, deployment)?;
            let image = self.puller.pull_if_missing(containerd, &reference?).await?;
            self.make_instance(containerd, key, deployment, &image, ContainerStage::Serving)
                .await
        };
        let made = made.await;
        lease.release().await;
        let created = match made {
            Ok(instance) => self.start_and_insert_or_remove_unless_recreate(instance).await,
            Err(error) => Err(error),
        };
        first_error.map_or(created, Err)
    }
}
