//! One version of a function, whole: what it takes to bring it to run again, and to tell that it is the one that runs.
//!
//! A provider's answer to GET leaves things out (environment variables on Kubernetes, pitfall 25), and there is no store
//! here. So every version that is deployed carries its own whole specification, and that of the last good one before
//! it, as annotations: what "last good" is survives the deployer. There are no secret values in a specification, only
//! names of secrets. Environment variables are in it; whoever may read a function's annotations may read those as well.

mod annotations;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::annotations::{
    BUILT_AT_ANNOTATION, CALL_ID_ANNOTATION, Failure, LAST_GOOD, SIZE_MAX, TAG_ANNOTATION, VERSION,
    VERSION_VARIABLE,
};
use crate::gateway::FunctionStatus;
use crate::request::{HandOver, Probe, SPEC_ANNOTATION, same_image};
use crate::time;

/// One version of a function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    /// The gateway's `FunctionDeployment`, without the deployer's own annotations.
    deployment: Map<String, Value>,
    /// Digest of the specification; absent where the version was not deployed by Slipway.
    #[serde(skip_serializing_if = "Option::is_none")]
    mark: Option<String>,
    #[serde(default)]
    probe: Probe,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    call_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    built_at: Option<String>,
}

/// What is to be put back if a version fails, as the version itself carries it.
#[derive(Clone, Debug, PartialEq)]
pub enum LastGood {
    /// Nothing: there was no function before.
    Nothing,
    /// The version itself has been good.
    Itself,
    /// Another one.
    Version(Box<Version>),
}

impl Version {
    /// The version that a hand-over asks for.
    #[must_use]
    pub fn of(hand_over: &HandOver) -> Self {
        let deployment = match serde_json::to_value(&hand_over.spec) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        };
        Self {
            deployment,
            mark: Some(hand_over.spec.digest()),
            probe: hand_over.probe.clone(),
            tag: hand_over.tag.clone(),
            call_id: hand_over.call_id.clone(),
            built_at: hand_over.built_at.map(time::format),
        }
    }

    /// The version that a function has: the one that it carries, where that is still true, or else what the gateway says
    /// of it.
    #[must_use]
    pub fn in_place(status: &FunctionStatus) -> Self {
        if let Some(version) = annotations::unpack(status.notes(), VERSION)
            && version.is_in(status)
        {
            return version;
        }
        Self {
            deployment: status.as_deployment(),
            mark: None,
            probe: Probe::default(),
            tag: None,
            call_id: None,
            built_at: None,
        }
    }

    /// Whether this version is what a provider says of a function: the image, and the mark of the whole specification where
    /// it shows annotations at all. The image alone would not tell a change of the environment.
    #[must_use]
    pub fn is_in(&self, status: &FunctionStatus) -> bool {
        let mark = status.notes().get(SPEC_ANNOTATION);
        let shows_annotations = !status.notes().is_empty();
        let marked = match &self.mark {
            Some(own) => !shows_annotations || mark == Some(own),
            None => mark.is_none(),
        };
        marked && same_image(self.image(), &status.image)
    }

    /// Whether it is known to be, so that there is nothing to do.
    #[must_use]
    pub fn is_surely_in(&self, status: &FunctionStatus) -> bool {
        self.mark.is_some() && status.notes().contains_key(SPEC_ANNOTATION) && self.is_in(status)
    }

    /// Whether all of it is known: Slipway deployed it, or the gateway shows environment variables.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.mark.is_some() || self.deployment.contains_key("envVars")
    }

    /// The image.
    #[must_use]
    pub fn image(&self) -> &str {
        self.deployment
            .get("image")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// Digest of the specification, where Slipway deployed it.
    #[must_use]
    pub fn mark(&self) -> Option<&str> {
        self.mark.as_deref()
    }

    /// How it is asked whether it works.
    #[must_use]
    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    /// The call that built it.
    #[must_use]
    pub fn call_id(&self) -> Option<&str> {
        self.call_id.as_deref()
    }

    /// When it was built.
    #[must_use]
    pub fn built_at(&self) -> Option<Timestamp> {
        time::parse(self.built_at.as_deref()?)
    }
}
