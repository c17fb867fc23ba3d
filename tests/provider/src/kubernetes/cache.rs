//! Copies of the Deployments and Endpoints of the functions' namespace, which watches keep current.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::StreamExt;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{apps::v1::Deployment, core::v1::Endpoints},
};
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store, store::Writer},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio_util::task::AbortOnDropHandle;

use super::{FUNCTION_PORT, is_function, replicas::ReplicaLimits};
use crate::{error::ProviderError, key::FunctionKey};

/// The copies, with the tasks that keep them current until this is dropped.
pub(super) struct ClusterCache {
    deployments: Store<Deployment>,
    endpoints: Store<Endpoints>,
    /// The number of calls that were given an address, by which they are spread over the pods of a function.
    routed_calls: AtomicUsize,
    _watches: [AbortOnDropHandle<()>; 2],
}

impl ClusterCache {
    /// Starts the watches, and waits until both copies are complete. A cluster that cannot be reached is tried again
    /// and again.
    pub(super) async fn start_with_retry_until_complete(
        client: &Client,
        namespace: &str,
    ) -> Result<Self, ProviderError> {
        let limits = ReplicaLimits::new(Api::namespaced(client.clone(), namespace));
        let (deployments, deployment_writer) = reflector::store();
        let (endpoints, endpoints_writer) = reflector::store();
        let watches = [
            spawn_watch(
                Api::namespaced(client.clone(), namespace),
                deployment_writer,
                move |deployment: Deployment| {
                    let limits = limits.clone();
                    async move { limits.enforce(deployment).await }
                },
            ),
            spawn_watch(
                Api::namespaced(client.clone(), namespace),
                endpoints_writer,
                async |_: Endpoints| {},
            ),
        ];
        let cache = Self {
            deployments,
            endpoints,
            routed_calls: AtomicUsize::new(0),
            _watches: watches,
        };
        let stopped = |_| ProviderError::Stopping;
        cache.deployments.wait_until_ready().await.map_err(stopped)?;
        cache.endpoints.wait_until_ready().await.map_err(stopped)?;
        Ok(cache)
    }

    /// Returns the Deployments that are functions.
    pub(super) fn functions(&self) -> Vec<Arc<Deployment>> {
        self.deployments.state_filter(is_function)
    }

    /// Returns a Deployment, whether or not it is a function.
    pub(super) fn deployment(&self, name: &str, namespace: &str) -> Option<Arc<Deployment>> {
        self.deployments.get(&ObjectRef::new(name).within(namespace))
    }

    /// Returns the address of a ready pod of the function with this name in a call's path; `None` if there is none.
    pub(super) fn ready_address(&self, name: &str, default_namespace: &str) -> Option<SocketAddr> {
        let key = FunctionKey::from_name_in_path(name, default_namespace);
        let endpoints = self
            .endpoints
            .get(&ObjectRef::new(&key.name).within(&key.namespace))?;
        let addresses = ready_addresses(&endpoints);
        let turn = self.routed_calls.fetch_add(1, Ordering::Relaxed);
        let address = addresses.get(turn.checked_rem(addresses.len())?)?;
        Some(SocketAddr::new(*address, FUNCTION_PORT))
    }
}

/// Returns the ready addresses of the first subset; those of other subsets, which have other ports, are not used.
fn ready_addresses(endpoints: &Endpoints) -> Vec<IpAddr> {
    let subset = endpoints.subsets.iter().flatten().next();
    let addresses = subset.and_then(|subset| subset.addresses.as_ref());
    addresses
        .into_iter()
        .flatten()
        .filter_map(|address| address.ip.parse().ok())
        .collect()
}

/// Starts a task that keeps a copy current, and awaits `react` with every object that is new or changed.
fn spawn_watch<K, F, R>(api: Api<K>, writer: Writer<K>, react: F) -> AbortOnDropHandle<()>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
    F: Fn(K) -> R + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let events = watcher(api, watcher::Config::default())
        .default_backoff()
        .reflect(writer);
    AbortOnDropHandle::new(tokio::spawn(events.for_each(move |event| {
        let changed = match event {
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => Some(object),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(
                    kind = %K::plural(&()),
                    error = &error as &dyn std::error::Error,
                    "a watch failed, and is tried again"
                );
                None
            }
        };
        let reaction = changed.map(&react);
        async move {
            if let Some(reaction) = reaction {
                reaction.await;
            }
        }
    })))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn addresses_of_subsets(subsets: Value) -> Vec<String> {
        let endpoints =
            serde_json::from_value(json!({"metadata": {"name": "hello"}, "subsets": subsets})).unwrap();
        ready_addresses(&endpoints)
            .iter()
            .map(IpAddr::to_string)
            .collect()
    }

    #[test]
    fn only_ready_pods_of_the_first_subset_are_called() {
        let subsets = json!([
            {"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "notReadyAddresses": [{"ip": "10.0.0.3"}]},
            {"addresses": [{"ip": "10.0.0.4"}]},
        ]);
        assert_eq!(addresses_of_subsets(subsets), ["10.0.0.1", "10.0.0.2"]);
        let not_ready =
            json!([{"notReadyAddresses": [{"ip": "10.0.0.3"}]}, {"addresses": [{"ip": "10.0.0.4"}]}]);
        assert!(addresses_of_subsets(not_ready).is_empty());
        assert!(addresses_of_subsets(Value::Null).is_empty());
    }
}
