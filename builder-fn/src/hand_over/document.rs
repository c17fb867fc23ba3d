//! The JSON documents that are sent to the deployer.

use std::time::SystemTime;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};

/// The document that hands an image over to the deployer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HandOverDocument<'a> {
    /// The reference of the image by digest. Its tags may name another image when it is pulled.
    pub(crate) image: &'a str,
    /// The reference of the image by tag, for people.
    pub(crate) tag: &'a str,
    /// The tenant that signed the build, if the builder has a policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tenant: Option<&'a str>,
    /// The ID of the call that built the image.
    pub(crate) call_id: &'a str,
    /// The time at which the source of the image was submitted. This time orders the versions of a function.
    #[serde(serialize_with = "as_rfc3339_with_nanoseconds")]
    pub(crate) submitted_at: SystemTime,
    /// The time at which the build of the image ended. Deployers from before `submitted_at` order by it.
    #[serde(serialize_with = "as_rfc3339_with_milliseconds")]
    pub(crate) built_at: SystemTime,
    /// The time at which the deployer stops accepting the hand-over.
    #[serde(serialize_with = "as_rfc3339_with_milliseconds")]
    pub(crate) expires_at: SystemTime,
    /// The config's `deploy`: the function's specification.
    pub(crate) deploy: &'a Map<String, Value>,
    /// The config's `probe`: the request that checks the function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) probe: Option<&'a Map<String, Value>>,
}

/// The document that asks the deployer, before the build, whether an image could be deployed.
///
/// It has no image, so that a deployer from before dry runs cannot take it for a hand-over.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DryRunDocument<'a> {
    /// Marks the document as a dry run; always true.
    pub(super) dry_run: bool,
    /// The reference of the image by tag, for people.
    pub(super) tag: &'a str,
    /// The tenant that signed the build, if the builder has a policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tenant: Option<&'a str>,
    /// The ID of the call that will build the image.
    pub(super) call_id: &'a str,
    /// The time at which the source of the image was submitted.
    #[serde(serialize_with = "as_rfc3339_with_nanoseconds")]
    pub(super) submitted_at: SystemTime,
    /// The config's `deploy`: the function's specification.
    pub(super) deploy: &'a Map<String, Value>,
    /// The config's `probe`: the request that checks the function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) probe: Option<&'a Map<String, Value>>,
}

impl<'a> DryRunDocument<'a> {
    /// Creates the dry run for an image that will be built from the source submitted at `submitted_at`.
    pub(crate) fn new(
        tag: &'a str,
        tenant: Option<&'a str>,
        call_id: &'a str,
        submitted_at: SystemTime,
        deploy: &'a Map<String, Value>,
        probe: Option<&'a Map<String, Value>>,
    ) -> Self {
        Self {
            dry_run: true,
            tag,
            tenant,
            call_id,
            submitted_at,
            deploy,
            probe,
        }
    }
}

/// Serializes a time as RFC 3339 in milliseconds.
fn as_rfc3339_with_milliseconds<S: serde::Serializer>(
    time: &SystemTime,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{:.3}", to_timestamp_or_epoch(*time)))
}

/// Serializes a time as RFC 3339 in nanoseconds: two times in one millisecond keep their order.
fn as_rfc3339_with_nanoseconds<S: serde::Serializer>(
    time: &SystemTime,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{:.9}", to_timestamp_or_epoch(*time)))
}

/// Converts a time for RFC 3339. A time that RFC 3339 cannot express becomes 1970.
fn to_timestamp_or_epoch(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn unix_time_from_milliseconds(milliseconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_hand_over_has_the_fields_that_the_deployer_reads() {
        let deploy = json!({"service": "hello"});
        let hand_over = HandOverDocument {
            image: "registry/hello@sha256:12",
            tag: "registry/hello:1",
            tenant: Some("acme"),
            call_id: "id",
            submitted_at: unix_time_from_milliseconds(1_767_323_045_500) + Duration::from_nanos(1),
            built_at: unix_time_from_milliseconds(1_767_323_046_500),
            expires_at: unix_time_from_milliseconds(1_767_326_646_500),
            deploy: deploy.as_object().expect("object"),
            probe: None,
        };

        assert_eq!(
            serde_json::to_value(hand_over).expect("JSON"),
            json!({
                "image": "registry/hello@sha256:12",
                "tag": "registry/hello:1",
                "tenant": "acme",
                "callId": "id",
                "submittedAt": "2026-01-02T03:04:05.500000001Z",
                "builtAt": "2026-01-02T03:04:06.500Z",
                "expiresAt": "2026-01-02T04:04:06.500Z",
                "deploy": {"service": "hello"}
            })
        );
    }

    #[test]
    fn a_dry_run_has_no_image_so_that_an_older_deployer_cannot_deploy_it() {
        let deploy = json!({"service": "hello"});
        let probe = json!({"path": "/"});
        let dry_run = DryRunDocument::new(
            "registry/hello:1",
            None,
            "id",
            unix_time_from_milliseconds(0),
            deploy.as_object().expect("object"),
            probe.as_object(),
        );

        assert_eq!(
            serde_json::to_value(dry_run).expect("JSON"),
            json!({
                "dryRun": true,
                "tag": "registry/hello:1",
                "callId": "id",
                "submittedAt": "1970-01-01T00:00:00.000000000Z",
                "deploy": {"service": "hello"},
                "probe": {"path": "/"}
            })
        );
    }
}
