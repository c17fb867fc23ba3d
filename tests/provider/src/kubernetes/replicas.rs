//! The limits on replicas of the Community Edition: whoever sets others, they are set back.

use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, api::PostParams};

use super::{FUNCTION_LABEL, MAX_REPLICAS};

/// Sets the replicas of functions back that have too few or too many.
#[derive(Clone)]
pub(super) struct ReplicaLimits {
    deployments: Api<Deployment>,
}

impl ReplicaLimits {
    pub(super) fn new(deployments: Api<Deployment>) -> Self {
        Self { deployments }
    }

    /// Sets the replicas of a new or changed Deployment back if necessary. A failure is logged; after a conflict, the
    /// other change leads here again.
    pub(super) async fn enforce(&self, mut deployment: Deployment) {
        let Some(replicas) = replicas_within_limits(&deployment) else {
            return;
        };
        let name = deployment.metadata.name.clone().unwrap_or_default();
        deployment.spec.get_or_insert_default().replicas = Some(replicas);
        match self
            .deployments
            .replace(&name, &PostParams::default(), &deployment)
            .await
        {
            Ok(_) => tracing::info!(function = name, replicas, "replicas are set back"),
            Err(kube::Error::Api(status)) if status.is_conflict() => {}
            Err(error) => tracing::warn!(
                function = name,
                error = &error as &dyn std::error::Error,
                "cannot set replicas back"
            ),
        }
    }
}

/// Returns the number of replicas to which a function is set back; `None` if its own is within the limits, or if its
/// pods are not a function's.
fn replicas_within_limits(deployment: &Deployment) -> Option<i32> {
    let spec = deployment.spec.as_ref()?;
    let pod_labels = spec.template.metadata.as_ref()?.labels.as_ref()?;
    if !pod_labels.contains_key(FUNCTION_LABEL) {
        return None;
    }
    match spec.replicas? {
        0 => Some(1),
        replicas if replicas > MAX_REPLICAS => Some(MAX_REPLICAS),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn replicas_of_functions_are_between_one_and_five() {
        let deployment = |replicas: i32, label: &str| {
            let object = json!({
                "metadata": {"name": "hello"},
                "spec": {
                    "replicas": replicas,
                    "selector": {},
                    "template": {"metadata": {"labels": {(label): "hello"}}},
                },
            });
            serde_json::from_value(object).unwrap()
        };
        for (replicas, expected) in [(0, Some(1)), (1, None), (5, None), (6, Some(5)), (7, Some(5))] {
            let function = deployment(replicas, "faas_function");
            assert_eq!(replicas_within_limits(&function), expected, "{replicas}");
            assert_eq!(
                replicas_within_limits(&deployment(replicas, "app")),
                None,
                "{replicas}"
            );
        }
    }
}
