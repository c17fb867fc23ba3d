//! What shall run: the whole specification of a function, as the gateway takes it.
//!
//! An update replaces everything and a read leaves things out (pitfall 25), so a specification is always complete: what
//! is not in it is not wanted. The form is the gateway's `FunctionDeployment`
//! (openfaas/faas-provider, `types/function_deployment.go`).

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::fields::Fields;
use super::image::PinnedImage;
use super::names;
use crate::quantity::Quantity;

/// Annotations that begin so are the deployer's own.
pub const OWN_ANNOTATIONS: &str = "slipway/";
/// Digest of the specification that was applied.
pub const SPEC_ANNOTATION: &str = "slipway/spec";

/// A function's specification, complete and valid in form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FunctionSpec {
    /// The function's name.
    pub service: String,
    /// The image, pinned by digest.
    #[serde(serialize_with = "written")]
    pub image: PinnedImage,
    /// Where it runs; the provider's own default where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The process for the classic watchdog.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_process: Option<String>,
    /// Environment variables.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env_vars: BTreeMap<String, String>,
    /// Placement constraints, in the provider's own words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<String>,
    /// Names of secrets to mount.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// At most this much.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Resources>,
    /// At least this much.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Resources>,
    /// Whether the root file system is mounted without write access.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only_root_filesystem: bool,
}

/// Memory and processor time, as Kubernetes quantities.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// For example `128Mi`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// For example `500m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
}

impl FunctionSpec {
    /// A SHA-256 digest of all of it: two specifications with the same digest ask for the same function. Maps are in
    /// order here, so the JSON is too.
    #[must_use]
    pub fn digest(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        format!("sha256:{}", hex::encode(Sha256::digest(json)))
    }

    /// Takes `deploy` apart. `image` is absent where it was itself wrong; the problems with everything else are told all
    /// the same.
    pub(super) fn read(fields: &mut Fields<'_>, image: Option<PinnedImage>) -> Option<Self> {
        let service = fields.needed("service");
        let namespace = fields.text("namespace").filter(|text| !text.is_empty());
        for (key, name) in [("service", &service), ("namespace", &namespace)] {
            if let Some(Err(reason)) = name.as_deref().map(names::label) {
                fields.complain(key, reason);
            }
        }
        if fields.text("image").is_some_and(|text| !text.is_empty()) {
            fields.complain("image", "must be left out: the image is the one that was built");
        }
        let labels = fields.map("labels", names::qualified);
        for (name, value) in &labels {
            if let Err(reason) = names::label_value(value) {
                fields.complain(&format!("labels.{name}"), reason);
            }
        }
        let limits = read_resources(fields, "limits");
        let requests = read_resources(fields, "requests");
        compare_resources(fields, requests.as_ref(), limits.as_ref());
        let spec = Self {
            service: service.unwrap_or_default(),
            namespace,
            env_process: fields.text("envProcess").filter(|text| !text.is_empty()),
            env_vars: fields.map("envVars", names::variable),
            constraints: fields.texts("constraints", |_| Ok(())),
            secrets: fields.texts("secrets", names::secret),
            labels,
            annotations: fields.map("annotations", |name| {
                names::qualified(name)?;
                if name.starts_with(OWN_ANNOTATIONS) {
                    return Err(format!("is the deployer's own: {name:?}"));
                }
                Ok(())
            }),
            limits,
            requests,
            read_only_root_filesystem: fields.flag("readOnlyRootFilesystem").unwrap_or_default(),
            image: image?,
        };
        Some(spec)
    }
}

/// Kubernetes takes no request that is larger than its limit.
fn compare_resources(fields: &mut Fields<'_>, requests: Option<&Resources>, limits: Option<&Resources>) {
    let (Some(requests), Some(limits)) = (requests, limits) else {
        return;
    };
    for (key, request, limit) in [
        ("requests.memory", &requests.memory, &limits.memory),
        ("requests.cpu", &requests.cpu, &limits.cpu),
    ] {
        let amount = |text: &Option<String>| text.as_deref().and_then(Quantity::parse);
        if let (Some(request), Some(limit)) = (amount(request), amount(limit))
            && request.exceeds(&limit)
        {
            fields.complain(key, format!("is {request}, more than the limit of {limit}"));
        }
    }
}

fn read_resources(fields: &mut Fields<'_>, key: &str) -> Option<Resources> {
    let object: Map<String, Value> = fields.object(key)?;
    let resources = fields.within(key, object, |fields| {
        let mut quantity = |key| {
            let text = fields.text(key).filter(|text| !text.is_empty())?;
            if Quantity::parse(&text).is_none() {
                fields.complain(
                    key,
                    format!("is not a quantity such as \"128Mi\" or \"500m\": {text:?}"),
                );
            }
            Some(text)
        };
        let resources = Resources {
            memory: quantity("memory"),
            cpu: quantity("cpu"),
        };
        fields.refuse_rest();
        resources
    });
    (resources != Resources::default()).then_some(resources)
}

fn written<S: serde::Serializer>(image: &PinnedImage, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(image.as_str())
}
