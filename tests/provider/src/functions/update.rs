//! Updates a function, with either strategy.

use std::sync::Arc;

use super::{Inner, deploy::Stage, instance::Instance};
use crate::{
    error::{Error, chain},
    image::normalise,
    key::Key,
    model::FunctionDeployment,
};

impl Inner {
    /// Starts the new version beside the old one, and routes calls to it once it listens. If anything fails
    /// before that, the old version continues to serve.
    pub(super) async fn update(
        self: &Arc<Self>,
        key: &Key,
        deployment: &FunctionDeployment,
    ) -> Result<(), Error> {
        let old = self.find(key)?;
        self.check(key, deployment)?;
        self.secrets.check(&key.namespace, &deployment.secrets)?;
        let lease = self.scope(key)?.lease().await?;
        let made = async {
            let image = self
                .puller
                .pull(lease.scope(), &normalise(&deployment.image)?)
                .await?;
            self.make(lease.scope(), key, deployment, &image, Stage::Pending)
                .await
        };
        let made = made.await;
        lease.release().await;
        let new = made?;
        if let Err(error) = self.bring_up(&new).await {
            self.discard_failed(&new).await;
            return Err(error);
        }
        self.insert(new);
        // If this fails, a restarted provider finds two serving instances and takes the younger.
        if let Err(error) = self.mark(&old, Stage::Retiring).await {
            tracing::warn!(error = chain(&error), "a replaced instance is not marked");
        }
        self.retire(old);
        Ok(())
    }

    async fn bring_up(&self, new: &Instance) -> Result<(), Error> {
        new.start().await?;
        new.listening(self.settings.ready_timeout).await?;
        self.mark(new, Stage::Serving).await
    }

    /// Deletes the old version, then creates the new one. Like faasd 0.19, it checks secrets and pulls the
    /// image beforehand, but continues if that fails: the caller gets the first error, and the running
    /// function is removed nevertheless.
    pub(super) async fn update_as_faasd(
        &self,
        key: &Key,
        deployment: &FunctionDeployment,
    ) -> Result<(), Error> {
        let old = self.find(key)?;
        let mut first_error = self.secrets.check(&key.namespace, &deployment.secrets).err();
        // Removing the old instance makes containerd collect garbage; without a lease, that could include the
        // new instance's content.
        let lease = self.scope(key)?.lease().await?;
        let containerd = lease.scope();
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
            self.make(containerd, key, deployment, &image, Stage::Serving)
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
