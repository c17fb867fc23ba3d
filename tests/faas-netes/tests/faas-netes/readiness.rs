//! The deployer on the provider, while a new version does not run: the provider shows the new image and the available
//! replica of the old version, which answers all calls.
//!
//! No controller runs here. In place of the Deployment controller and the kubelet, a task gives each version of the
//! function a ReplicaSet and a pod, in the state that the version's image stands for.

use std::{
    future::Future,
    pin::Pin,
    time::{Duration, Instant},
};

use deployer_fn::{
    DeploymentOutcome, DeploymentStatus, FunctionSpec, GatewayRequestSender, HandOver, Kubernetes,
    KubernetesError, KubernetesReader, PinnedImage, ReadinessProbe, RolloutContext, RolloutDeadline,
    RolloutHistory, RolloutTimeouts, SuccessorReceiver, roll_out_hand_over,
};
use function_host::{
    Bytes, Secrets, Shutdown,
    gateway::{Gateway, GatewayError},
    http::{Request, Response},
};
use http_body_util::Full;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::Pod,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{POLL_INTERVAL, api_server::ApiServer, objects::NAMESPACE, provider::Provider};

/// The name of the function.
const FUNCTION: &str = "hello";

/// The time for a version to become ready, which a version that never listens takes.
const READY_TIMEOUT: Duration = Duration::from_secs(8);

/// The digests of images, by what becomes of their pods.
const GOOD: char = '1';
const CRASHING: char = '2';
const SILENT: char = '3';
const MISSING: char = '4';

/// Shows that no version that does not run is ready, and whether the old one is restored.
pub(crate) async fn check_versions_that_do_not_run(server: &ApiServer, provider: &Provider) {
    let client = server.admin_client();
    let workloads = Workloads(client.clone());
    let kept = tokio::spawn(workloads.clone().keep_current());
    let gateway = OldVersionAnswers(
        Gateway::new(provider.url(), Secrets::new(provider.credentials_directory())).unwrap(),
    );
    let kubernetes = Kubernetes::new(ClusterReader(client));

    for version in [CRASHING, SILENT, MISSING] {
        for (may_read, expected, image_afterwards) in [
            (false, DeploymentStatus::Unverified, version),
            (true, DeploymentStatus::RolledBack, GOOD),
        ] {
            let kubernetes = may_read.then_some(&kubernetes);
            let deployer = RolloutHistory::default();
            // The first version is known to be good only where Kubernetes can be read or nothing ran before.
            workloads.delete_function(provider).await;
            let good = deploy(&gateway, kubernetes, &deployer, GOOD).await;
            assert_eq!(good.status, DeploymentStatus::Ready, "{good:#?}");
            let started = Instant::now();
            let outcome = deploy(&gateway, kubernetes, &deployer, version).await;
            assert_eq!(outcome.status, expected, "{version} {outcome:#?}");
            assert_eq!(workloads.image().await, image(image_afterwards), "{outcome:#?}");
            println!(
                "version {version}, Kubernetes read: {may_read}: {:?} after {:?}: {:?}",
                outcome.status,
                started.elapsed(),
                outcome.reasons
            );
        }
    }
    kept.abort();
}

/// Returns the reference of the image with this digest.
fn image(digit: char) -> String {
    let digest = String::from(digit).repeat(64);
    format!("registry.example/hello@sha256:{digest}")
}

/// Deploys the version with this image.
async fn deploy(
    gateway: &OldVersionAnswers,
    kubernetes: Option<&Kubernetes>,
    history: &RolloutHistory,
    version: char,
) -> DeploymentOutcome {
    let (_trigger, shutdown) = Shutdown::new();
    let timeouts = RolloutTimeouts {
        stay_up: Duration::from_millis(300),
        ..RolloutTimeouts::default()
    };
    let context = RolloutContext {
        transport: gateway,
        kubernetes,
        timeouts: &timeouts,
        default_namespace: NAMESPACE,
        history,
        tenant: None,
        succession: &SuccessorReceiver::without_successor(),
    };
    let hand_over = HandOver {
        spec: FunctionSpec {
            service: FUNCTION.to_owned(),
            image: PinnedImage::parse_pinned(&image(version)).unwrap(),
            namespace: None,
            env_process: None,
            env_vars: Default::default(),
            constraints: vec![],
            secrets: vec![],
            labels: Default::default(),
            annotations: Default::default(),
            limits: None,
            requests: None,
            read_only_root_filesystem: true,
        },
        tag: None,
        tenant: None,
        call_id: Some(format!("call-{version}")),
        submitted_at: None,
        built_at: None,
        expires_at: None,
        probe: ReadinessProbe::default(),
        warnings: vec![],
    };
    let deadline = RolloutDeadline::new(READY_TIMEOUT, None, shutdown);
    let url = format!("http://gateway:8080/function/{FUNCTION}");
    roll_out_hand_over(&context, &hand_over, vec![], &deadline, url).await
}

/// The provider in place of a gateway, with calls of functions that the old version answers.
struct OldVersionAnswers(Gateway);

impl GatewayRequestSender for OldVersionAnswers {
    async fn send(&self, request: Request<Bytes>, limit: Duration) -> Result<Response<Bytes>, GatewayError> {
        if request.uri().path().starts_with("/function/") {
            return Ok(Response::new(Bytes::from_static(b"old")));
        }
        self.0.send(request.map(Full::new), limit).await
    }
}

/// The API server as the deployer reads it.
struct ClusterReader(Client);

impl KubernetesReader for ClusterReader {
    fn read<'a>(
        &'a self,
        path: String,
    ) -> Pin<Box<dyn Future<Output = Result<Option<Bytes>, KubernetesError>> + Send + 'a>> {
        Box::pin(async move {
            let request = Request::get(&path).body(Vec::new());
            let request = request.map_err(|error| KubernetesError::NoResponse {
                path: path.clone(),
                source: error.into(),
            })?;
            match self.0.request_text(request).await {
                Ok(text) => Ok(Some(text.into())),
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
                Err(kube::Error::Api(status)) => Err(KubernetesError::Status {
                    path,
                    status: status.code,
                }),
                Err(error) => Err(KubernetesError::NoResponse {
                    path,
                    source: error.into(),
                }),
            }
        })
    }
}

/// The ReplicaSets and pods of the function. Clones share the connection.
#[derive(Clone)]
struct Workloads(Client);

impl Workloads {
    /// Gives every new version of the function its ReplicaSet and its pod, for ever.
    async fn keep_current(self) {
        let mut seen = None;
        loop {
            if let Some(deployment) = self.api::<Deployment>().get_opt(FUNCTION).await.unwrap() {
                let version = (deployment.metadata.uid.clone(), deployment.metadata.generation);
                // The Deployment may change at any time, and is then looked at again.
                if seen.as_ref() != Some(&version) && self.start_version(&deployment).await.is_ok() {
                    seen = Some(version);
                }
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Makes the objects of a Deployment's present version, and removes the others if it runs.
    async fn start_version(&self, deployment: &Deployment) -> kube::Result<()> {
        let generation = deployment.metadata.generation.unwrap_or_default();
        let name = format!("{FUNCTION}-{generation}");
        let spec = deployment.spec.clone().unwrap_or_default();
        let image = spec
            .template
            .spec
            .as_ref()
            .and_then(|pod| pod.containers[0].image.clone());
        let image = image.unwrap_or_default();
        let digit = image.chars().next_back().unwrap_or(GOOD);
        let runs = digit == GOOD;

        let revision = json!({"deployment.kubernetes.io/revision": generation.to_string()});
        let annotated = Patch::Merge(json!({"metadata": {"annotations": revision}}));
        self.api::<Deployment>()
            .patch(FUNCTION, &PatchParams::default(), &annotated)
            .await?;
        let labels = json!({"faas_function": FUNCTION});
        let replica_set = json!({
            "metadata": {
                "name": name,
                "labels": labels,
                "annotations": revision,
                "ownerReferences": [owner("Deployment", FUNCTION, &deployment.metadata.uid)],
            },
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": FUNCTION, "image": image}]}},
            },
        });
        let replica_set = self.create::<ReplicaSet>(replica_set).await?;
        let pod = json!({
            "metadata": {
                "name": name,
                "labels": labels,
                "ownerReferences": [owner("ReplicaSet", &name, &replica_set.metadata.uid)],
            },
            "spec": {"containers": [{"name": FUNCTION, "image": image}]},
        });
        self.create::<Pod>(pod).await?;
        let status = Patch::Merge(json!({"status": pod_status(digit, &image)}));
        self.api::<Pod>()
            .patch_status(&name, &PatchParams::default(), &status)
            .await?;
        if runs {
            self.delete_workloads_except(&name).await?;
        }
        let older = u8::from(!runs);
        let status = json!({"status": {
            "observedGeneration": generation,
            "replicas": 1 + older,
            "updatedReplicas": 1,
            "readyReplicas": 1,
            "availableReplicas": 1,
            "unavailableReplicas": older,
        }});
        self.api::<Deployment>()
            .patch_status(FUNCTION, &PatchParams::default(), &Patch::Merge(status))
            .await?;
        Ok(())
    }

    /// Returns the image of the Deployment.
    async fn image(&self) -> String {
        let deployment = self.api::<Deployment>().get(FUNCTION).await.unwrap();
        let pod = deployment.spec.unwrap().template.spec.unwrap();
        pod.containers[0].image.clone().unwrap()
    }

    /// Deletes the function, and waits until the provider has seen it.
    async fn delete_function(&self, provider: &Provider) {
        let deployments = self.api::<Deployment>();
        let _ = deployments.delete(FUNCTION, &DeleteParams::background()).await;
        let services = self.api::<k8s_openapi::api::core::v1::Service>();
        let _ = services.delete(FUNCTION, &DeleteParams::background()).await;
        self.delete_workloads_except("").await.unwrap();
        while !provider.function_names().await.unwrap().is_empty() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn delete_workloads_except(&self, name: &str) -> kube::Result<()> {
        let parameters = DeleteParams::background().grace_period(0);
        for set in self.api::<ReplicaSet>().list(&ListParams::default()).await? {
            let other = set.metadata.name.unwrap_or_default();
            if other != name {
                self.api::<ReplicaSet>().delete(&other, &parameters).await?;
            }
        }
        for pod in self.api::<Pod>().list(&ListParams::default()).await? {
            let other = pod.metadata.name.unwrap_or_default();
            if other != name {
                self.api::<Pod>().delete(&other, &parameters).await?;
            }
        }
        Ok(())
    }

    /// Creates an object, or returns the one that exists.
    async fn create<K>(&self, object: Value) -> kube::Result<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
    {
        let api = self.api::<K>();
        let object: K = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
        match api.create(&PostParams::default(), &object).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                api.get(&object.meta().name.clone().unwrap_or_default()).await
            }
            created => created,
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.0.clone(), NAMESPACE)
    }
}

fn owner(kind: &str, name: &str, uid: &Option<String>) -> Value {
    json!({"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": true})
}

/// Returns the status of the pod of the version that this digit stands for.
fn pod_status(digit: char, image: &str) -> Value {
    let (state, last_state, restarts) = match digit {
        CRASHING => (
            json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}}),
            json!({"terminated": {"exitCode": 3, "reason": "Error"}}),
            2,
        ),
        MISSING => (
            json!({"waiting": {"reason": "ImagePullBackOff", "message": format!("Back-off pulling image {image}")}}),
            json!({}),
            0,
        ),
        _ => (json!({"running": {}}), json!({}), 0),
    };
    let ready = digit == GOOD;
    json!({
        "phase": if digit == MISSING { "Pending" } else { "Running" },
        "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        "containerStatuses": [{
            "name": FUNCTION,
            "image": image,
            "imageID": "",
            "ready": ready,
            "restartCount": restarts,
            "state": state,
            "lastState": last_state,
        }],
    })
}
