//! The update of a function before the request is answered: rolling, or by recreating the function.

use std::sync::Arc;

use super::{Inner, deploy::ContainerStage, instance::Instance};
use crate::{error::Error, image::normalise, key::FunctionKey, model::FunctionDeployment};

impl Inner {
    /// Starts a function's new version beside the old one, and routes calls to it once it listens. If anything
    /// fails before that, the old version continues to serve.
    pub(super) async fn rolling_update(
        self: &Arc<Self>,
        key: &FunctionKey,
        deployment: &FunctionDeployment,
    ) -> Result<(), Error> {
        self.find(key)?;
        self.check_deployment(key, deployment)?;
        self.secrets.check_exist(&key.namespace, &deployment.secrets)?;
        self.stop_rollout(key).await;
        let new = self.make_pending(key, deployment).await?;
        if let Err(error) = self.start_and_wait(&new).await {
            self.discard_failed(&new).await;
            return Err(error);
        }
        self.replace_with(new).await
    }

    /// Pulls the image of a new version and makes its container, without starting it.
    pub(super) async fn make_pending(
        &self,
        key: &FunctionKey,
        deployment: &FunctionDeployment,
    ) -> Result<Arc<Instance>, Error> {
        let lease = self.namespace_client(key)?.lease().await?;
        let made = async {
            let image = self
                .puller
                .pull(lease.client(), &normalise(&deployment.image)?)
                .await?;
            self.make_instance(lease.client(), key, deployment, &image, ContainerStage::Pending)
                .await
        };
        let made = made.await;
        lease.release().await;
        made
    }

    async fn start_and_wait(&self, new: &Instance) -> Result<(), Error> {
        new.start().await?;
        new.wait_until_listening(self.settings.ready_timeout).await
    }

    /// Routes calls to a new version that listens, and removes the old one. If that fails, the old version
    /// continues to serve.
    pub(super) async fn replace_with(self: &Arc<Self>, new: Arc<Instance>) -> Result<(), Error> {
        let replaced = async {
            let old = self.find(&new.info().key)?;
            self.set_stage(&new, ContainerStage::Serving).await?;
            Ok(old)
        };
        let old = match replaced.await {
            Ok(old) => old,
            Err(error) => {
                self.discard_failed(&new).await;
                return Err(error);
            }
        };
        self.insert(new);
        // If this fails, a restarted provider finds two serving instances and takes the younger.
        if let Err(error) = self.set_stage(&old, ContainerStage::Retiring).await {
            tracing::warn!(
                instance = old.id(),
                error = &error as &dyn std::error::Error,
                "cannot mark a replaced instance"
            );
        }
        self.retire(old);
        Ok(())
    }

    /// Deletes a function's old version, then creates the new one. Like faasd 0.19, it checks secrets and pulls
    /// the image beforehand, but continues if that fails: the caller gets the first error, and the running
    /// function is removed nevertheless (docs/pitfalls.md#a-failed-update-removes-the-function).
    pub(super) async fn recreate(
        &self,
        key: &FunctionKey,
        deployment: &FunctionDeployment,
    ) -> Result<(), Error> {
        self.stop_rollout(key).await;
        let old = self.find(key)?;
        let mut first_error = self
            .secrets
            .check_exist(&key.namespace, &deployment.secrets)
            .err();
        // Removing the old instance makes containerd collect garbage; without a lease, that could include the
        // new instance's content.
        let lease = self.namespace_client(key)?.lease().await?;
        let containerd = lease.client();
        let reference = normalise(&deployment.image);
        let pulled = match &reference {
            Ok(reference) => self.puller.pull(containerd, reference).await.map(drop),
            Err(_) => Err(Error::Invalid(format!(
                "image: {:?} is not a reference",
                deployment.image
            ))),
        };
        first_error = first_error.or(pulled.err());

        self.remove(key);
        let made = async {
            self.discard(&old, self.settings.grace_period).await?;
            self.check_deployment(key, deployment)?;
            let image = self.puller.pull_if_missing(containerd, &reference?).await?;
            self.make_instance(containerd, key, deployment, &image, ContainerStage::Serving)
                .await
        };
        let made = made.await;
        lease.release().await;
        let created = match made {
            Ok(instance) => self.start_only_instance(instance).await,
            Err(error) => Err(error),
        };
        first_error.map_or(created, Err)
    }
}
