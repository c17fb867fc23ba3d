//! The objects in the functions' namespace, as the administrator of the cluster sees them.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Endpoints, Namespace, Secret, Service},
};
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams},
    core::ApiResource,
};
use serde_json::{Value, json};

use crate::{POLL_INTERVAL, case::Effect};

/// The namespace of the functions.
pub(crate) const NAMESPACE: &str = "openfaas-fn";

/// The kinds of objects that cases create or look at.
const KINDS: [&str; 4] = ["Deployment", "Service", "Secret", "Endpoints"];

/// The objects of the namespace.
pub(crate) struct ClusterObjects {
    client: Client,
}

impl ClusterObjects {
    /// Creates the namespace.
    pub(crate) async fn create_namespace(client: Client) -> Result<Self> {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?;
        namespaces
            .create(&PostParams::default(), &namespace)
            .await
            .context("create the namespace")?;
        Ok(Self { client })
    }

    /// Creates an object, and sets the status that it has.
    pub(crate) async fn create_with_status(&self, object: &Value) -> Result<()> {
        let kind = object["kind"].as_str().context("an object has no kind")?;
        let api = self.api(kind)?;
        let created: DynamicObject = serde_json::from_value(object.clone())?;
        api.create(&PostParams::default(), &created)
            .await
            .with_context(|| format!("create {object}"))?;
        if let Some(status) = object.get("status") {
            let name = created.metadata.name.unwrap_or_default();
            api.patch_status(
                &name,
                &PatchParams::default(),
                &Patch::Merge(json!({"status": status})),
            )
            .await
            .context("set the status")?;
        }
        Ok(())
    }

    /// Deletes all objects, also those that wait for the garbage collection, which does not run here.
    pub(crate) async fn delete_all(&self) -> Result<()> {
        for kind in KINDS {
            let api = self.api(kind)?;
            for object in api.list(&ListParams::default()).await? {
                let name = object.metadata.name.unwrap_or_default();
                let without_finalizers = Patch::Merge(json!({"metadata": {"finalizers": null}}));
                ignore_missing(api.delete(&name, &DeleteParams::background()).await)?;
                ignore_missing(
                    api.patch(&name, &PatchParams::default(), &without_finalizers)
                        .await,
                )?;
            }
        }
        Ok(())
    }

    /// Waits until an object is as the effect says.
    pub(crate) async fn wait_for(&self, effect: &Effect, timeout: Duration) -> Result<()> {
        let api = self.api(&effect.kind)?;
        let deadline = Instant::now() + timeout;
        loop {
            let object = api.get_opt(&effect.name).await?;
            let object = object.map(serde_json::to_value).transpose()?;
            match effect.compare(object.as_ref()) {
                Ok(()) => return Ok(()),
                Err(difference) if Instant::now() >= deadline => return Err(difference),
                Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
            }
        }
    }

    /// Returns the names of the Deployments that are functions.
    pub(crate) async fn function_names(&self) -> Result<BTreeSet<String>> {
        let functions = ListParams::default().labels("faas_function");
        let listed = self.api("Deployment")?.list(&functions).await?;
        Ok(listed
            .items
            .into_iter()
            .filter_map(|function| function.metadata.name)
            .collect())
    }

    fn api(&self, kind: &str) -> Result<Api<DynamicObject>> {
        let resource = match kind {
            "Deployment" => ApiResource::erase::<Deployment>(&()),
            "Service" => ApiResource::erase::<Service>(&()),
            "Secret" => ApiResource::erase::<Secret>(&()),
            "Endpoints" => ApiResource::erase::<Endpoints>(&()),
            other => bail!("{other}: not one of {KINDS:?}"),
        };
        Ok(Api::namespaced_with(self.client.clone(), NAMESPACE, &resource))
    }
}

/// Ignores that an object is already gone.
fn ignore_missing<T>(result: kube::Result<T>) -> Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        result => Ok(result.map(drop)?),
    }
}
