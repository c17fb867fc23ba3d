//! Updates a function, with either strategy.

use std::sync::Arc;

use super::{Inner, deploy::ContainerStage, instance::Instance};
use crate::{error::Error, image::normalise, key::FunctionKey, model::FunctionDeployment};

impl Inner {
    /// Starts the new version beside the old one, and routes calls to it once it listens. If anything fails
    /// before that, the old version continues to serve.
    pub(super) async fn rolling_update(
        self: &Arc<Self>,
        key: &FunctionKey,
        deployment: &FunctionDeployment,
    ) -> Result<(), Error> {
        let old = self.find(key)?;
        self.check(key, deployment)?;
        self.secrets.check(&key.namespace, &deployment.secrets)?;
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
        let new = made?;
        if let Err(error) = self.start_and_wait(&new).await {
            self.discard_failed(&new).await;
            return Err(error);
        }
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

    async fn start_and_wait(&self, new: &Instance) -> Result<(), Error> {
        new.start().await?;
        new.listening(self.settings.ready_timeout).await?;
        self.set_stage(new, ContainerStage::Serving).await
    }

    /// Deletes the old version, then creates the new one. Like faasd 0.19, it checks secrets and pulls the
    /// image beforehand, but continues if that fails: the caller gets the first error, and the running
    /// function is removed nevertheless (docs/pitfalls.md#a-failed-update-removes-the-function).
    pub(super) async fn recreate(
        &self,
        key: &FunctionKey,
        deployment: &FunctionDeployment,
    ) -> Result<(), Error> {
        let old = self.find(key)?;
        let mut first_error = self.secrets.check(&key.namespace, &deployment.secrets).err();
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
            self.check(key, deployment)?;
            let image = self.puller.pull_if_missing(containerd, &reference?).await?;
            self.make_instance(containerd, key, deployment, &image, ContainerStage::Serving)
                .await
        };
        let made = made.await;
        lease.release().await;
        let created = match made {
            Ok(instance) => self.start_first(instance).await,
            Err(error) => Err(error),
        };
        first_error.map_or(created, Err)
    }
}
