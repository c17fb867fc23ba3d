//! The Service of a function.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use super::{FUNCTION_LABEL, FUNCTION_PORT, validation};
use crate::{
    error::ProviderError,
    model::{FunctionDeployment, NameValueMap},
};

/// Creates the Service of a new function. It has the annotations of the function, and none of its labels.
pub(super) fn new_service(request: &FunctionDeployment) -> Result<Service, ProviderError> {
    let name = &request.service;
    Ok(Service {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            annotations: Some(validation::annotations_of_request(&request.annotations)?),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(NameValueMap::from([(FUNCTION_LABEL.to_owned(), name.clone())])),
            ports: Some(vec![ServicePort {
                name: Some("http".to_owned()),
                protocol: Some("TCP".to_owned()),
                port: FUNCTION_PORT.into(),
                target_port: Some(IntOrString::Int(FUNCTION_PORT.into())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_selects_the_pods_of_its_function() {
        let request = FunctionDeployment {
            service: "hello".into(),
            annotations: NameValueMap::from([("topic".into(), "a".into())]),
            labels: NameValueMap::from([("team".into(), "a".into())]),
            ..Default::default()
        };
        let service = serde_json::to_value(new_service(&request).unwrap()).unwrap();
        assert_eq!(
            service,
            json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "hello", "annotations": {"topic": "a", "prometheus.io.scrape": "false"}},
                "spec": {
                    "type": "ClusterIP",
                    "selector": {"faas_function": "hello"},
                    "ports": [{"name": "http", "protocol": "TCP", "port": 8080, "targetPort": 8080}],
                },
            })
        );
    }
}
