//! The limits and requests of a function's container.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity};

use crate::{
    error::ProviderError,
    model::{FunctionDeployment, FunctionResources},
    quantity::is_quantity,
};

/// Quantities by the name of a resource.
type Quantities = BTreeMap<String, Quantity>;

/// Converts the limits and requests of a request; fails if one is no quantity.
pub(super) fn container_resources(
    request: &FunctionDeployment,
) -> Result<ResourceRequirements, ProviderError> {
    Ok(ResourceRequirements {
        limits: quantities(request.limits.as_ref(), "limits")?,
        requests: quantities(request.requests.as_ref(), "requests")?,
        claims: None,
    })
}

/// Converts quantities back to their form in a status; `None` if there are none. One of two that is missing is `0`.
pub(super) fn function_resources(quantities: Option<&Quantities>) -> Option<FunctionResources> {
    let text = |resource: &str| {
        let quantity = quantities.and_then(|quantities| quantities.get(resource));
        quantity.map_or_else(|| "0".to_owned(), |quantity| quantity.0.clone())
    };
    let (memory, cpu) = (text("memory"), text("cpu"));
    (memory != "0" || cpu != "0").then_some(FunctionResources { memory, cpu })
}

fn quantities(
    resources: Option<&FunctionResources>,
    field: &'static str,
) -> Result<Option<Quantities>, ProviderError> {
    let Some(resources) = resources else {
        return Ok(None);
    };
    let mut quantities = Quantities::new();
    for (resource, text) in [("memory", &resources.memory), ("cpu", &resources.cpu)] {
        if text.is_empty() {
            continue;
        }
        if !is_quantity(text) {
            return Err(ProviderError::QuantityInvalid(format!(
                "{field}.{resource}: {text:?}"
            )));
        }
        quantities.insert(resource.to_owned(), Quantity(text.clone()));
    }
    Ok((!quantities.is_empty()).then_some(quantities))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(memory: &str, cpu: &str) -> FunctionResources {
        FunctionResources {
            memory: memory.into(),
            cpu: cpu.into(),
        }
    }

    #[test]
    fn only_quantities_are_accepted() {
        let request = |memory: &str, cpu: &str| FunctionDeployment {
            limits: Some(resources(memory, cpu)),
            ..Default::default()
        };
        assert!(container_resources(&request("128Mi", "0.5")).is_ok());
        assert!(container_resources(&request("lots", "")).is_err());
        assert!(container_resources(&request("", "half")).is_err());
        let none = container_resources(&request("", "")).unwrap();
        assert_eq!(none, ResourceRequirements::default());
    }

    #[test]
    fn a_missing_quantity_of_two_is_zero_in_the_status() {
        let quantities = Quantities::from([("memory".to_owned(), Quantity("64Mi".into()))]);
        assert_eq!(
            function_resources(Some(&quantities)),
            Some(resources("64Mi", "0"))
        );
        assert_eq!(function_resources(Some(&Quantities::new())), None);
        assert_eq!(function_resources(None), None);
    }
}
