//! Updates of functions with [`UpdateStrategy::Deferred`](crate::settings::UpdateStrategy::Deferred): accepted
//! at once, and rolled out in the background.
//!
//! A rollout ends when its version listens, or when another update or the deletion of the function stops it. It ends
//! with the provider too: a restarted one knows only the old version.

use std::{
    collections::BTreeMap,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    FunctionStoreInner,
    instance::{Instance, StoredDeploymentAndEnv},
};
use crate::{error::ProviderError, image::normalise_reference, key::FunctionKey, model::FunctionDeployment};

/// The pause before another attempt to pull an image or to start a process.
const ROLLOUT_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The rollout of an accepted update whose new version does not serve yet.
#[derive(Debug)]
pub(super) struct DeferredRollout {
    image: String,
    record: StoredDeploymentAndEnv,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl FunctionStoreInner {
    /// Accepts an update of a function and starts its rollout, which replaces a rollout in progress.
    pub(super) async fn accept_deferred_update(
        self: &Arc<Self>,
        key: &FunctionKey,
        deployment: FunctionDeployment,
    ) -> Result<(), ProviderError> {
        self.find_instance(key)?;
        self.check_name_image_and_memory_limit(key, &deployment)?;
        self.secrets
            .check_all_exist(&key.namespace, &deployment.secrets)?;
        let image = normalise_reference(&deployment.image)?.to_string();
        self.stop_rollout(key).await;
        let stop = CancellationToken::new();
        let work = {
            let (inner, key) = (Arc::clone(self), key.clone());
            let (deployment, stop) = (deployment.clone(), stop.clone());
            async move {
                inner.roll_out_until_stopped(&key, &deployment, &stop).await;
                inner.lock_rollouts().remove(&key);
            }
        };
        let record = StoredDeploymentAndEnv {
            // The image's own variables are unknown until it is pulled.
            env: deployment.env_vars.clone(),
            env_process: deployment.env_process.clone(),
            deployment,
        };
        // The lock is held, so that the rollout cannot end before it is in the map.
        let mut rollouts = self.lock_rollouts();
        let task = tokio::spawn(work);
        rollouts.insert(
            key.clone(),
            DeferredRollout {
                image,
                record,
                stop,
                task,
            },
        );
        Ok(())
    }

    /// Stops the rollout of a function, if one is in progress, and removes the rollout's version. Waits for a
    /// pull in progress.
    pub(super) async fn stop_rollout(&self, key: &FunctionKey) {
        let rollout = self.lock_rollouts().remove(key);
        if let Some(DeferredRollout { stop, task, .. }) = rollout {
            stop.cancel();
            if let Err(error) = task.await {
                tracing::error!(function = %key, %error, "a rollout failed");
            }
        }
    }

    /// Returns the image and the data of the version that a function's rollout in progress announces.
    pub(super) fn image_and_record_of_rollout(
        &self,
        key: &FunctionKey,
    ) -> Option<(String, StoredDeploymentAndEnv)> {
        let rollouts = self.lock_rollouts();
        let DeferredRollout { image, record, .. } = rollouts.get(key)?;
        Some((image.clone(), record.clone()))
    }

    /// Starts a function's new version beside the old one, and routes calls to it once it listens. A failed
    /// pull or start is retried until `stop`.
    async fn roll_out_until_stopped(
        self: &Arc<Self>,
        key: &FunctionKey,
        deployment: &FunctionDeployment,
        stop: &CancellationToken,
    ) {
        let new = loop {
            match self.pull_and_make_pending_instance(key, deployment).await {
                Ok(new) => break new,
                Err(error) => log_rollout_retry(key, &error),
            }
            if stop
                .run_until_cancelled(tokio::time::sleep(ROLLOUT_RETRY_INTERVAL))
                .await
                .is_none()
            {
                return;
            }
        };
        let listening = stop
            .run_until_cancelled(start_with_endless_retry_and_wait_until_listening(key, &new))
            .await;
        let replaced = match listening {
            Some(Ok(())) => self.replace_old_version_with(new).await,
            Some(Err(error)) => Err(error),
            None => {
                self.remove_failed_instance(&new).await;
                Ok(())
            }
        };
        if let Err(error) = replaced {
            tracing::error!(
                function = %key,
                error = &error as &dyn std::error::Error,
                "cannot complete a rollout"
            );
        }
    }

    fn lock_rollouts(&self) -> MutexGuard<'_, BTreeMap<FunctionKey, DeferredRollout>> {
        self.rollouts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts an instance's process, again after each failed start, and waits until it listens.
async fn start_with_endless_retry_and_wait_until_listening(
    key: &FunctionKey,
    new: &Instance,
) -> Result<(), ProviderError> {
    while let Err(error) = new.start_process().await {
        log_rollout_retry(key, &error);
        tokio::time::sleep(ROLLOUT_RETRY_INTERVAL).await;
    }
    new.wait_until_listening_despite_restarts_and_stops().await
}

fn log_rollout_retry(key: &FunctionKey, error: &ProviderError) {
    tracing::warn!(
        function = %key,
        error = error as &dyn std::error::Error,
        "cannot start an updated version yet; retrying"
    );
}
