//! What the gateway says of a function.
//!
//! Form: openfaas/faas-provider, `types/function_status.go`. Providers leave out what they do not keep (environment
//! variables on Kubernetes, processor limits on faasd), so only what all of them give is read here.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::request::{FunctionSpec, SPEC_ANNOTATION};

/// A function, as the provider sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FunctionStatus {
    /// The function's name.
    pub name: String,
    /// The image that it shall run. On Kubernetes it is the new one from the moment of an update on, while the old one
    /// still answers (pitfall 26).
    pub image: String,
    /// Where it runs.
    pub namespace: Option<String>,
    /// How many there shall be.
    pub replicas: u64,
    /// How many there are that can be called, of whatever version.
    pub available_replicas: u64,
    /// Annotations, where the provider keeps them.
    pub annotations: Option<BTreeMap<String, String>>,
}

impl FunctionStatus {
    /// Whether this is what was asked for: the image, and the mark of the whole specification where the provider shows
    /// annotations at all. The image alone would not tell a change of the environment.
    #[must_use]
    pub fn carries(&self, spec: &FunctionSpec) -> bool {
        let marked = match &self.annotations {
            Some(annotations) if !annotations.is_empty() => annotations
                .get(SPEC_ANNOTATION)
                .is_some_and(|mark| *mark == spec.digest()),
            _ => true,
        };
        marked && spec.image.is_named_by(&self.image)
    }

    /// Whether it is known to be what was asked for, so that there is nothing to do.
    #[must_use]
    pub fn is_known_to_be(&self, spec: &FunctionSpec) -> bool {
        self.carries(spec)
            && self
                .annotations
                .as_ref()
                .is_some_and(|a| a.contains_key(SPEC_ANNOTATION))
    }
}
