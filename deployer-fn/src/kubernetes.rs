//! What Kubernetes knows of a version that rolls out: that its pods run and no others do, or what keeps them from it.
//!
//! The REST API of OpenFaaS shows neither: it counts the old version's replicas as available, and reports no failed
//! pulls and no restarts (docs/pitfalls.md#old-replicas-count-as-available). The deployer reads Deployments,
//! ReplicaSets, Pods, Events and logs, if its service account may, and changes nothing.

mod assessment;
mod pod;
mod service_account;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use function_host::Bytes;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Event, Pod};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use self::assessment::{DetailToRead, VersionStateAndDetailToRead};
pub(crate) use self::assessment::{Obstacle, RestartCountsByPodUid, VersionState, WantedReplicas};
pub(crate) use self::service_account::KubernetesReaderAsServiceAccount;
use crate::text::{self, QUOTED_LOG_LINES_MAX};

/// The most objects in one list. More replicas than this are not looked at one by one.
const LISTED_OBJECTS_MAX: usize = 200;

/// The most bytes that are read from a container's log.
const READ_LOG_BYTES_MAX: usize = 2048;

/// The Kubernetes API server, as far as the deployer may read from it. Clones share connections.
#[derive(Clone)]
pub struct Kubernetes(Arc<dyn KubernetesReader>);

/// A reader of the Kubernetes API: the API server itself, or a fake one in tests.
pub trait KubernetesReader: Send + Sync {
    /// Reads `path`, which may have a query, and returns the body; `None` if there is no such object.
    fn read<'a>(
        &'a self,
        path: String,
    ) -> Pin<Box<dyn Future<Output = Result<Option<Bytes>, KubernetesError>> + Send + 'a>>;
}

/// The reason why the Kubernetes API gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// The service account's token cannot be read, or is not a valid header value.
    #[error("could not read the token of the service account")]
    Token(#[source] function_host::BoxError),
    /// The API server did not answer.
    #[error("the Kubernetes API did not answer {path}")]
    NoResponse {
        /// The path of the request.
        path: String,
        /// What happened instead.
        #[source]
        source: function_host::BoxError,
    },
    /// The API server answered with an error. The service account may lack the permission.
    #[error("the Kubernetes API answered {path} with {status}")]
    Status {
        /// The path of the request.
        path: String,
        /// The status of the answer.
        status: u16,
    },
    /// The answer is not the object that was asked for.
    #[error("the Kubernetes API answered {path} with another object")]
    Object {
        /// The path of the request.
        path: String,
        /// What is wrong with the answer.
        #[source]
        source: serde_json::Error,
    },
}

/// A list of objects, without what the deployer does not need of it.
#[derive(Deserialize)]
struct ObjectList<T> {
    items: Vec<T>,
}

impl fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kubernetes")
    }
}

impl Kubernetes {
    /// Creates a handle of the API that `reader` reads.
    pub fn new(reader: impl KubernetesReader + 'static) -> Self {
        Self(Arc::new(reader))
    }

    /// Returns the state of the version of the function `name` that has this image and needs `wanted` replicas.
    ///
    /// # Errors
    /// Fails if the API cannot be read, perhaps because the service account may not: then nothing is known of the
    /// version.
    pub(crate) async fn read_version_state_or_absent(
        &self,
        namespace: &str,
        name: &str,
        image: &str,
        wanted: WantedReplicas,
    ) -> Result<VersionState, KubernetesError> {
        let deployment = format!("/apis/apps/v1/namespaces/{namespace}/deployments/{name}");
        let Some(deployment) = self.read_object::<Deployment>(deployment).await? else {
            return Ok(VersionState::Absent);
        };
        let selector = percent_encoded_label_selector(&deployment);
        let list = |kind: &str| {
            format!("/{kind}?labelSelector={selector}&limit={LISTED_OBJECTS_MAX}")
                .replace("NAMESPACE", namespace)
        };
        let (sets, pods) = tokio::try_join!(
            self.read_list_empty_if_missing::<ReplicaSet>(list(
                "apis/apps/v1/namespaces/NAMESPACE/replicasets"
            )),
            self.read_list_empty_if_missing::<Pod>(list("api/v1/namespaces/NAMESPACE/pods")),
        )?;
        let VersionStateAndDetailToRead { state, detail } =
            assessment::assess_version(&deployment, &sets, &pods, image, wanted);
        let Some(detail) = detail else { return Ok(state) };
        // Without it the reason is less exact, and no less true.
        let detail = self.read_detail(namespace, &detail).await.unwrap_or_default();
        Ok(state.with_detail_in_reason(detail.as_deref()))
    }

    /// Reads the events or the log that make a reason exact, and returns their text; `None` if they say nothing.
    async fn read_detail(
        &self,
        namespace: &str,
        detail: &DetailToRead,
    ) -> Result<Option<String>, KubernetesError> {
        match detail {
            DetailToRead::EventsOf { uid } => {
                let events = self.read_events(namespace, uid).await?;
                Ok(pod::latest_warning_message(&events))
            }
            DetailToRead::LogOf {
                pod,
                container,
                previous,
                uid_if_probe_may_have_failed,
            } => {
                if let Some(uid) = uid_if_probe_may_have_failed {
                    let events = self.read_events(namespace, uid).await.unwrap_or_default();
                    let failure = pod::latest_failure_of_liveness_probe(&events);
                    if failure.is_some() {
                        return Ok(failure);
                    }
                }
                let log = self.0.read(format!(
                    "/api/v1/namespaces/{namespace}/pods/{pod}/log?container={container}&previous={previous}\
                     &tailLines={QUOTED_LOG_LINES_MAX}&limitBytes={READ_LOG_BYTES_MAX}"
                ));
                Ok(log.await?.and_then(|log| text::quote_log_end(&log)))
            }
        }
    }

    /// Reads the events of the pod with this UID.
    async fn read_events(&self, namespace: &str, uid: &str) -> Result<Vec<Event>, KubernetesError> {
        self.read_list_empty_if_missing(format!(
            "/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.uid%3D{uid}&limit={LISTED_OBJECTS_MAX}"
        ))
        .await
    }

    async fn read_list_empty_if_missing<T: DeserializeOwned>(
        &self,
        path: String,
    ) -> Result<Vec<T>, KubernetesError> {
        let list = self.read_object::<ObjectList<T>>(path).await?;
        Ok(list.map(|list| list.items).unwrap_or_default())
    }

    async fn read_object<T: DeserializeOwned>(&self, path: String) -> Result<Option<T>, KubernetesError> {
        let Some(body) = self.0.read(path.clone()).await? else {
            return Ok(None);
        };
        let object = serde_json::from_slice(&body);
        object
            .map(Some)
            .map_err(|source| KubernetesError::Object { path, source })
    }
}

/// Returns the labels of the Deployment's pods as a selector in a query.
fn percent_encoded_label_selector(deployment: &Deployment) -> String {
    let selector = deployment.spec.as_ref().map(|spec| &spec.selector);
    let labels = selector.and_then(|selector| selector.match_labels.as_ref());
    let labels = labels.into_iter().flatten();
    // Labels have no characters that a query excludes, but for the slash of a prefix, which a query may have.
    let terms: Vec<_> = labels.map(|(name, value)| format!("{name}%3D{value}")).collect();
    terms.join("%2C")
}
