//! A complete version of a function: everything that is needed to deploy it again, and to recognise it when it is
//! deployed.
//!
//! A provider's answer to a read leaves fields out (environment variables on Kubernetes,
//! docs/pitfalls.md#an-update-replaces-everything), and the deployer has no store. Every version that is deployed
//! therefore carries its own complete specification, and that of the last good version before it, as annotations,
//! which outlive the deployer's process. A specification has names of secrets, not their values. It has environment
//! variables, which can be read by anyone who may read the function's annotations.

mod annotations;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use tracing::warn;

pub(crate) use self::annotations::{ANNOTATIONS_MAX_BYTES, PermanentFailureRecord};
use crate::build_times::TimesOfBuild;
use crate::gateway::FunctionStatus;
use crate::request::{HandOver, ReadinessProbe, SPEC_DIGEST_ANNOTATION, TENANT_ANNOTATION, names_same_image};
use crate::time;

/// One version of a function. Its JSON is stored in annotations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FunctionVersion {
    /// The version's `FunctionDeployment` for the gateway, without the deployer's own annotations.
    deployment: Map<String, Value>,
    /// The digest of the version's specification; absent if the version was not deployed by Slipway.
    #[serde(rename = "mark", skip_serializing_if = "Option::is_none")]
    spec_digest: Option<String>,
    /// The version's probe; `None` if the stored probe cannot be used: it was valid in an earlier release.
    #[serde(default = "default_probe", deserialize_with = "deserialize_probe_if_usable")]
    probe: Option<ReadinessProbe>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
    /// The name of the tenant that deployed the version; absent if none did.
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    call_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    submitted_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    built_at: Option<String>,
}

/// The version to restore if a deployed version fails, as the deployed version's annotations name it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LastGoodVersion {
    /// No version is restored: there was no function before.
    Nothing,
    /// The deployed version itself is restored: it was good.
    Itself,
    /// Another version than the deployed one is restored.
    Version(Box<FunctionVersion>),
}

impl FunctionVersion {
    /// Returns the version in a hand-over.
    pub(crate) fn of_hand_over(hand_over: &HandOver) -> Self {
        let deployment = match serde_json::to_value(&hand_over.spec) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        };
        Self {
            deployment,
            spec_digest: Some(hand_over.spec.spec_digest()),
            probe: Some(hand_over.probe.clone()),
            tag: hand_over.tag.clone(),
            tenant: hand_over.tenant.clone(),
            call_id: hand_over.call_id.clone(),
            submitted_at: hand_over.submitted_at.map(time::format_with_nanos),
            built_at: hand_over.built_at.map(time::format_with_nanos),
        }
    }

    /// Returns the version that is deployed: the one in the function's annotations if it still matches the
    /// status, or else the version that the status shows.
    pub(crate) fn of_deployed_function(status: &FunctionStatus) -> Self {
        if let Some(version) = Self::from_annotations(status.annotations())
            && version.may_be_the_deployed_version(status)
        {
            return version;
        }
        Self {
            deployment: status.to_deployment_without_own_annotations(),
            spec_digest: None,
            probe: default_probe(),
            tag: None,
            tenant: status.annotations().get(TENANT_ANNOTATION).cloned(),
            call_id: None,
            submitted_at: None,
            built_at: None,
        }
    }

    /// Returns whether this version may be the deployed one: the status has its image and, if the provider returns
    /// annotations at all, its digest. The image alone would not show a change of the environment.
    pub(crate) fn may_be_the_deployed_version(&self, status: &FunctionStatus) -> bool {
        let digest = status.annotations().get(SPEC_DIGEST_ANNOTATION);
        let has_annotations = !status.annotations().is_empty();
        let digest_matches = match &self.spec_digest {
            Some(own) => !has_annotations || digest == Some(own),
            None => digest.is_none(),
        };
        digest_matches && names_same_image(self.image(), &status.image)
    }

    /// Returns whether this version certainly is the deployed one: the status has its image and its digest.
    pub(crate) fn is_certainly_the_deployed_version(&self, status: &FunctionStatus) -> bool {
        self.spec_digest.is_some()
            && status.annotations().contains_key(SPEC_DIGEST_ANNOTATION)
            && self.may_be_the_deployed_version(status)
    }

    /// Returns whether nothing of the version is missing: Slipway deployed it, or the gateway returned its environment
    /// variables.
    pub(crate) fn is_whole_deployment_known(&self) -> bool {
        self.spec_digest.is_some() || self.deployment.contains_key("envVars")
    }

    /// Returns the version's image.
    pub(crate) fn image(&self) -> &str {
        self.deployment
            .get("image")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// Returns the digest of the version's specification; `None` if the version was not deployed by Slipway.
    pub(crate) fn spec_digest(&self) -> Option<&str> {
        self.spec_digest.as_deref()
    }

    /// Returns the version's probe; `None` if the stored probe is invalid in this release, and no probe is sent.
    pub(crate) fn usable_probe(&self) -> Option<&ReadinessProbe> {
        self.probe.as_ref()
    }

    /// Returns the ID of the call that built the version's image.
    pub(crate) fn call_id(&self) -> Option<&str> {
        self.call_id.as_deref()
    }

    /// Returns the times of the version's build, without those that are too far ahead of the clock: a clock that ran
    /// ahead once must not keep the function from being updated.
    pub(crate) fn usable_build_times(&self) -> TimesOfBuild {
        let parse = |text: &Option<String>| time::parse_utc_time(text.as_deref()?);
        let stored = TimesOfBuild {
            submitted_at: parse(&self.submitted_at),
            built_at: parse(&self.built_at),
        };
        let times = stored.without_times_too_far_ahead_of(Timestamp::now());
        if times != stored {
            warn!(
                image = self.image(),
                build = stored.ordering_time_as_phrase(),
                "a deployed version's time is ahead of the deployer's clock, and does not order it"
            );
        }
        times
    }
}

fn default_probe() -> Option<ReadinessProbe> {
    Some(ReadinessProbe::default())
}

/// Deserializes a stored probe; `None` if it cannot be used. The rest of the version can.
fn deserialize_probe_if_usable<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<ReadinessProbe>, D::Error> {
    let stored = Option::<Value>::deserialize(deserializer)?;
    Ok(stored.and_then(|stored| {
        serde_json::from_value(stored)
            .inspect_err(|error| warn!(%error, "a stored probe cannot be used, and is not sent"))
            .ok()
    }))
}
