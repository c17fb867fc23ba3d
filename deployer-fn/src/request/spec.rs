//! The specification of a function, in the form that the gateway takes: its `FunctionDeployment`
//! (openfaas/faas-provider, `types/function_deployment.go`).
//!
//! A specification is always complete, because an update replaces everything and a read leaves fields out
//! (docs/pitfalls.md#an-update-replaces-everything): a field that is absent here is absent from the function.

use std::collections::BTreeMap;

use function_host::policy::{LimitOrReservationAmounts, Quantity, RequestedFunction};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::fields::JsonFieldReader;
use super::image::PinnedImage;
use super::names;
use crate::function::FunctionAddress;

/// The prefix of the names of the deployer's own annotations.
pub(crate) const OWN_ANNOTATION_PREFIX: &str = "slipway/";
/// The annotation with the digest of the function's specification.
pub const SPEC_DIGEST_ANNOTATION: &str = "slipway/spec";

/// The annotation with the tenant that a function belongs to.
pub(crate) const TENANT_ANNOTATION: &str = "slipway/tenant";

/// A complete specification of a function, with valid fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FunctionSpec {
    /// The function's name.
    pub service: String,
    /// The image, pinned by digest.
    #[serde(serialize_with = "serialize_image")]
    pub image: PinnedImage,
    /// The function's namespace; absent for the provider's default namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The command that the classic watchdog runs for each call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_process: Option<String>,
    /// The function's environment variables.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env_vars: BTreeMap<String, String>,
    /// The function's placement constraints, in the provider's own syntax.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<String>,
    /// Names of the secrets that the function mounts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// The function's labels, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The function's annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The most memory and CPU that one replica may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<ResourceAmounts>,
    /// The memory and CPU that are reserved for one replica.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<ResourceAmounts>,
    /// Whether the function's root file system is read-only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only_root_filesystem: bool,
}

/// Amounts of memory and CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ResourceAmounts {
    /// Memory in bytes, for example `128Mi`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<Quantity>,
    /// CPU in cores, for example `500m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu: Option<Quantity>,
}

impl FunctionSpec {
    /// Returns the function's name and namespace, as the specification gives them.
    pub(crate) fn function_address(&self) -> FunctionAddress {
        FunctionAddress {
            name: self.service.clone(),
            namespace: self.namespace.clone(),
        }
    }

    /// Returns the specification in the form that rules are applied to.
    pub(crate) fn requested_function(&self) -> RequestedFunction<'_> {
        let amounts = |resources: &Option<ResourceAmounts>| {
            let resources = resources.clone().unwrap_or_default();
            LimitOrReservationAmounts {
                cpu: resources.cpu,
                memory: resources.memory,
            }
        };
        RequestedFunction {
            name: &self.service,
            namespace: self.namespace.as_deref(),
            secrets: self.secrets.iter().map(String::as_str).collect(),
            environment: self.env_vars.keys().map(String::as_str).collect(),
            labels: borrow_entries(&self.labels),
            annotations: borrow_entries(&self.annotations),
            constraints: self.constraints.iter().map(String::as_str).collect(),
            limits: amounts(&self.limits),
            requests: amounts(&self.requests),
            read_only_root_filesystem: self.read_only_root_filesystem,
        }
    }

    /// Returns the SHA-256 digest of the whole specification. Maps are sorted, so that equal specifications have
    /// equal JSON.
    #[must_use]
    pub fn spec_digest(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        format!("sha256:{}", hex::encode(Sha256::digest(json)))
    }

    /// Reads the specification from the object `deploy` of a hand-over, and reports every problem.
    ///
    /// Without an `image`, whose problem has been reported, all other fields are checked and the result is `None`.
    pub(super) fn read_spec_if_image_is_given(
        fields: &mut JsonFieldReader<'_>,
        image: Option<PinnedImage>,
    ) -> Option<Self> {
        let service = fields.read_required_possibly_empty_string("service");
        let namespace = fields
            .read_possibly_empty_string("namespace")
            .filter(|text| !text.is_empty());
        if let Some(Err(problem)) = service.as_deref().map(names::check_function_name) {
            fields.add_problem("service", problem);
        }
        if let Some(Err(problem)) = namespace.as_deref().map(names::check_namespace_name) {
            fields.add_problem("namespace", problem);
        }
        // Fields that earlier gateways knew.
        fields.ignore_field_with_warning("network", "gateways have not used it since Docker Swarm");
        if fields
            .read_possibly_empty_string("registryAuth")
            .is_some_and(|text| !text.is_empty())
        {
            fields.add_problem(
                "registryAuth",
                "is not used by gateways any more: the provider has the credentials to pull with",
            );
        }
        if fields
            .read_possibly_empty_string("image")
            .is_some_and(|text| !text.is_empty())
        {
            fields.add_problem("image", "must be left out: the image is the one that was built");
        }
        let labels =
            fields.read_string_map_reporting_invalid_names("labels", names::check_label_or_annotation_name);
        for (name, value) in &labels {
            if let Err(problem) = names::check_label_value(value) {
                fields.add_problem(&format!("labels.{name}"), problem);
            }
        }
        let limits = read_resources(fields, "limits");
        let requests = read_resources(fields, "requests");
        report_requests_over_limits(fields, requests.as_ref(), limits.as_ref());
        let spec = Self {
            service: service.unwrap_or_default(),
            namespace,
            env_process: fields
                .read_possibly_empty_string("envProcess")
                .filter(|text| !text.is_empty()),
            env_vars: fields
                .read_string_map_reporting_invalid_names("envVars", names::check_environment_variable_name),
            constraints: fields.read_strings_reporting_invalid("constraints", |_| Ok(())),
            secrets: fields.read_strings_reporting_invalid("secrets", names::check_secret_name),
            labels,
            annotations: fields.read_string_map_reporting_invalid_names("annotations", |name| {
                names::check_label_or_annotation_name(name)?;
                if name.starts_with(OWN_ANNOTATION_PREFIX) {
                    return Err(format!("is reserved for deployer-fn: {name:?}"));
                }
                Ok(())
            }),
            limits,
            requests,
            read_only_root_filesystem: fields.read_boolean("readOnlyRootFilesystem").unwrap_or_default(),
            // Last, so that all other fields have been read.
            image: image?,
        };
        Some(spec)
    }
}

/// Returns a map of the same texts, without copying them.
fn borrow_entries(map: &BTreeMap<String, String>) -> BTreeMap<&str, &str> {
    let pairs = map.iter();
    pairs
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}

/// Reports amounts in `requests` that exceed `limits`, which Kubernetes rejects.
fn report_requests_over_limits(
    fields: &mut JsonFieldReader<'_>,
    requests: Option<&ResourceAmounts>,
    limits: Option<&ResourceAmounts>,
) {
    let (Some(requests), Some(limits)) = (requests, limits) else {
        return;
    };
    for (key, request, limit) in [
        ("requests.memory", &requests.memory, &limits.memory),
        ("requests.cpu", &requests.cpu, &limits.cpu),
    ] {
        if let (Some(request), Some(limit)) = (request, limit)
            && request.exceeds(limit)
        {
            fields.add_problem(key, format!("is {request}, which exceeds the limit of {limit}"));
        }
    }
}

/// Reads the object `limits` or `requests` of a specification; `None` if it is absent or empty. A quantity that cannot
/// be parsed is reported: faasd would take it for no limit at all.
fn read_resources(fields: &mut JsonFieldReader<'_>, key: &str) -> Option<ResourceAmounts> {
    let object: Map<String, Value> = fields.read_object(key)?;
    let resources = fields.read_nested_fields(key, object, |fields| {
        let mut quantity = |key| {
            let text = fields
                .read_possibly_empty_string(key)
                .filter(|text| !text.is_empty())?;
            let quantity = Quantity::parse(&text);
            if quantity.is_none() {
                fields.add_problem(
                    key,
                    format!("is not a quantity such as \"128Mi\" or \"500m\": {text:?}"),
                );
            }
            quantity
        };
        let resources = ResourceAmounts {
            memory: quantity("memory"),
            cpu: quantity("cpu"),
        };
        fields.report_unread_fields_as_problems();
        resources
    });
    (resources != ResourceAmounts::default()).then_some(resources)
}

fn serialize_image<S: serde::Serializer>(image: &PinnedImage, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(image.as_str())
}
