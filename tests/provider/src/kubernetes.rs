//! The backend on Kubernetes: functions are Deployments with Services of the same names, as faas-netes makes them.
//!
//! It replaces faas-netes Community where its image is not available, and behaves as the version of the end of 2023
//! does, faults included. `tests/faas-netes` has the table of this behaviour, with the place in faas-netes' source
//! where each fact was read, and compares the answers with it.
//!
//! Deployments and Endpoints are read from copies that watches keep, as there: an answer may be older than the last
//! update by some milliseconds.

mod cache;
mod deployment;
mod logs;
mod replicas;
mod resources;
mod secrets;
mod service;
mod settings;
mod status;
mod validation;
mod volumes;

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        core::v1::{Secret, Service},
    },
};
use kube::{
    Api, Client, Config, Resource,
    api::{DeleteParams, PostParams, PropagationPolicy},
    config::{KubeConfigOptions, Kubeconfig},
};

pub use self::settings::KubernetesSettings;
use self::{cache::ClusterCache, deployment::ProbeAndUserOptions};
pub(crate) use self::{logs::PodLogQuery, validation::check_deployment_request};
use crate::{
    error::{KubernetesOperation as Operation, ProviderError},
    model::{FunctionDeployment, FunctionStatus},
    proxy::{CallRoute, CallRouter},
};

/// The label by which Deployments are functions, and Services find the pods of a function.
const FUNCTION_LABEL: &str = "faas_function";

/// The most functions of the Community Edition.
const MAX_FUNCTIONS: usize = 30;

/// The most replicas of a function in the Community Edition.
const MAX_REPLICAS: i32 = 5;

/// The port of every function.
const FUNCTION_PORT: u16 = 8080;

/// The functions of one namespace of a cluster; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ClusterFunctions(Arc<ClusterFunctionsInner>);

/// The part of [`ClusterFunctions`] that all its clones share.
struct ClusterFunctionsInner {
    settings: KubernetesSettings,
    client: Client,
    cache: ClusterCache,
}

impl std::fmt::Debug for ClusterFunctionsInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterFunctionsInner")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl ClusterFunctions {
    /// Connects to the cluster, and waits until the copies of its objects are complete.
    pub(crate) async fn connect_with_retry(settings: KubernetesSettings) -> Result<Self, ProviderError> {
        let config = client_configuration(&settings).await?;
        let client = Client::try_from(config).map_err(ProviderError::kubernetes(Operation::Connect, ""))?;
        let cache =
            ClusterCache::start_with_retry_until_complete(&client, &settings.function_namespace).await?;
        Ok(Self(Arc::new(ClusterFunctionsInner {
            settings,
            client,
            cache,
        })))
    }

    pub(crate) fn settings(&self) -> &KubernetesSettings {
        &self.0.settings
    }

    /// Returns the status of every Deployment that is a function.
    pub(crate) fn list_statuses(&self) -> Vec<FunctionStatus> {
        let functions = self.0.cache.functions();
        functions
            .iter()
            .filter_map(|deployment| status::status_none_if_deployment_has_no_containers(deployment))
            .collect()
    }

    /// Returns the status of a Deployment, whether or not it is a function; `None` if it does not exist.
    pub(crate) fn status_of_any_deployment(&self, name: &str) -> Option<FunctionStatus> {
        let deployment = self
            .0
            .cache
            .deployment(name, &self.0.settings.function_namespace)?;
        status::status_none_if_deployment_has_no_containers(&deployment)
    }

    /// Creates the Deployment and the Service of a checked request. The Deployment stays if the Service cannot be
    /// created.
    pub(crate) async fn create_deployment_then_service(
        &self,
        request: &FunctionDeployment,
    ) -> Result<(), ProviderError> {
        let secrets = self.read_secrets(&request.secrets).await?;
        let deployment = deployment::new_deployment(request, &secrets, self.probe_and_user_options())?;
        validation::check_profiles(&request.annotations)?;
        if self.0.cache.functions().len() >= MAX_FUNCTIONS {
            return Err(ProviderError::FunctionLimit(MAX_FUNCTIONS));
        }
        self.api()
            .create(&PostParams::default(), &deployment)
            .await
            .map_err(ProviderError::kubernetes(
                Operation::CreateDeployment,
                &request.service,
            ))?;
        let service = service::new_service(request)?;
        self.api()
            .create(&PostParams::default(), &service)
            .await
            .map_err(ProviderError::kubernetes(
                Operation::CreateService,
                &request.service,
            ))?;
        Ok(())
    }

    /// Changes the Deployment and the Service of a checked request's function. What faas-netes does not set stays as it
    /// is: volumes and containers that others added, for instance.
    pub(crate) async fn update_deployment_and_service_annotations(
        &self,
        request: &FunctionDeployment,
    ) -> Result<(), ProviderError> {
        let name = &request.service;
        let annotations = validation::annotations_of_request(&request.annotations)?;
        let deployments: Api<Deployment> = self.api();
        let mut deployment = deployments
            .get(name)
            .await
            .map_err(ProviderError::kubernetes(Operation::ReadDeployment, name))?;
        let resources = resources::container_resources(request)?;
        let secrets = self.read_secrets(&request.secrets).await?;
        let update = deployment::DeploymentUpdate {
            request,
            annotations: &annotations,
            resources,
            secrets: &secrets,
            uid: subsecond_nanoseconds_as_label_value(),
        };
        update.apply(&mut deployment, self.probe_and_user_options());
        validation::check_profiles(&request.annotations)?;
        deployments
            .replace(name, &PostParams::default(), &deployment)
            .await
            .map_err(ProviderError::kubernetes(Operation::UpdateDeployment, name))?;

        let services: Api<Service> = self.api();
        let mut service = services
            .get(name)
            .await
            .map_err(ProviderError::kubernetes(Operation::ReadService, name))?;
        service.metadata.annotations = Some(annotations);
        services
            .replace(name, &PostParams::default(), &service)
            .await
            .map_err(ProviderError::kubernetes(Operation::UpdateService, name))?;
        Ok(())
    }

    /// Deletes the Deployment of a function, with its pods, and then the Service. Fails for a Deployment that is no
    /// function.
    pub(crate) async fn delete_function(&self, name: &str) -> Result<(), ProviderError> {
        let deployments: Api<Deployment> = self.api();
        let deployment = deployments
            .get(name)
            .await
            .map_err(ProviderError::kubernetes(Operation::ReadDeployment, name))?;
        if !is_function(&deployment) {
            return Err(ProviderError::NotAFunction(name.to_owned()));
        }
        let parameters = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Foreground),
            ..DeleteParams::default()
        };
        deployments
            .delete(name, &parameters)
            .await
            .map_err(ProviderError::kubernetes(Operation::DeleteDeployment, name))?;
        self.api::<Service>()
            .delete(name, &parameters)
            .await
            .map_err(ProviderError::kubernetes(Operation::DeleteService, name))?;
        Ok(())
    }

    /// Sets the number of replicas of a Deployment, at most [`MAX_REPLICAS`].
    pub(crate) async fn scale_any_deployment_to_at_most_five(
        &self,
        name: &str,
        replicas: u64,
    ) -> Result<(), ProviderError> {
        let deployments: Api<Deployment> = self.api();
        let mut deployment = deployments
            .get(name)
            .await
            .map_err(ProviderError::kubernetes(Operation::ReadDeployment, name))?;
        let replicas = i32::try_from(replicas).unwrap_or(MAX_REPLICAS).min(MAX_REPLICAS);
        deployment.spec.get_or_insert_default().replicas = Some(replicas);
        deployments
            .replace(name, &PostParams::default(), &deployment)
            .await
            .map_err(ProviderError::kubernetes(Operation::UpdateDeployment, name))?;
        Ok(())
    }

    /// Reads the named secrets; fails if one does not exist. Their labels do not matter.
    async fn read_secrets(&self, names: &[String]) -> Result<Vec<Secret>, ProviderError> {
        let api: Api<Secret> = self.api();
        let mut secrets = Vec::with_capacity(names.len());
        for name in names {
            let secret = api
                .get(name)
                .await
                .map_err(ProviderError::kubernetes(Operation::ReadSecret, name));
            match secret {
                Err(error) if error.is_kubernetes_not_found_or_gone() => {
                    return Err(ProviderError::SecretMissing(name.clone()));
                }
                read => secrets.push(read?),
            }
        }
        Ok(secrets)
    }

    /// Returns the client for one kind of objects in the namespace of the functions.
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.0.client.clone(), &self.0.settings.function_namespace)
    }

    fn probe_and_user_options(&self) -> ProbeAndUserOptions {
        ProbeAndUserOptions {
            http_probe: self.0.settings.http_probe,
            set_nonroot_user: self.0.settings.set_nonroot_user,
        }
    }
}

impl CallRouter for ClusterFunctions {
    /// Returns the address of one of the function's ready pods, each in turn.
    fn route_call_if_function_has_endpoint(&self, name: &str) -> Option<CallRoute> {
        let address = self
            .0
            .cache
            .ready_address(name, &self.0.settings.function_namespace)?;
        Some(CallRoute {
            address: Some(address),
            guard: None,
        })
    }
}

/// Returns the configuration of the client: from the kubeconfig of the settings, or from the service account of this
/// pod.
async fn client_configuration(settings: &KubernetesSettings) -> Result<Config, ProviderError> {
    let Some(path) = &settings.kubeconfig else {
        return Config::incluster().map_err(|error| ProviderError::Kubeconfig {
            path: "the service account of this pod".to_owned(),
            source: Box::new(error),
        });
    };
    let read = async {
        let kubeconfig = Kubeconfig::read_from(path)?;
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await
    };
    read.await.map_err(|error| ProviderError::Kubeconfig {
        path: path.display().to_string(),
        source: Box::new(error),
    })
}

/// Returns whether a Deployment is a function: whether it has the label, whatever made it.
fn is_function(deployment: &Deployment) -> bool {
    let labels = deployment.metadata.labels.as_ref();
    labels.is_some_and(|labels| labels.contains_key(FUNCTION_LABEL))
}

/// Returns the value of the label `uid`, which makes every update a new version, even one that changes nothing: the
/// nanoseconds of the current second.
fn subsecond_nanoseconds_as_label_value() -> String {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .subsec_nanos()
        .to_string()
}
