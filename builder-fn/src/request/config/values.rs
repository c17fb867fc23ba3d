//! Reads the keys of a configuration whose values have rules of their own, except caches, `commitStatus` and
//! `context`. Wrong values are recorded in [`ConfigFields`].

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use super::ProvenanceMinOrMax;
use super::error::escape_and_shorten_key;
use super::fields::ConfigFields;
use crate::compression::LayerCompression;
use crate::request::image::{self, ImageRef};
use crate::request::time::parse_rfc3339;
use crate::sources::WebUrl;

type JsonObject = Map<String, Value>;

/// The keys of the config's `deploy` that the gateway knows.
const DEPLOY_KEYS: [&str; 14] = [
    "service",
    "image",
    "namespace",
    "envProcess",
    "envVars",
    "constraints",
    "secrets",
    "labels",
    "annotations",
    "limits",
    "requests",
    "readOnlyRootFilesystem",
    "network",
    "registryAuth",
];

/// The keys of the config's `probe`.
const PROBE_KEYS: [&str; 6] = ["path", "method", "body", "expectedStatus", "timeout", "successes"];

/// Reads the config's key `image`, and returns the reference in full and as it was given.
pub(super) fn read_image_in_full_and_as_given(fields: &mut ConfigFields) -> Option<(ImageRef, String)> {
    if !fields.has_unread_key("image") {
        fields.record_wrong_key(
            "image",
            "is missing; it should be the name to push to, like registry.example.com/team/name:tag",
        );
        return None;
    }
    let given = fields.read_string("image")?;
    match ImageRef::parse(&given) {
        Ok(image) => Some((image, given)),
        Err(error) => {
            fields.record_wrong_key("image", format_args!("is not an image reference: {error}"));
            None
        }
    }
}

/// Reads the config's key `notify`.
pub(super) fn read_notify_url(fields: &mut ConfigFields) -> Option<WebUrl> {
    let given = fields.read_string("notify")?;
    match WebUrl::parse(&given) {
        Ok(url) => Some(url),
        Err(problem) => {
            fields.record_wrong_key("notify", problem);
            None
        }
    }
}

/// Reads the config's key `tags`.
pub(super) fn read_tags(fields: &mut ConfigFields) -> Vec<String> {
    let mut tags = Vec::new();
    for (at, tag) in fields.read_strings("tags") {
        match image::check_tag(&tag) {
            Ok(()) => tags.push(tag),
            Err(error) => {
                fields.record_wrong_key(format_args!("tags[{at}]"), format_args!("is not a tag: {error}"))
            }
        }
    }
    tags
}

/// Reads the config's key `buildArgs`.
///
/// Names that configure BuildKit are rejected: `BUILDKIT_SYNTAX`, for one, chooses the program that reads the
/// Dockerfile (`docs/pitfalls.md#frontends`). `SOURCE_DATE_EPOCH`, which BuildKit knows too, is accepted: reproducible
/// builds need it.
pub(super) fn read_build_args(fields: &mut ConfigFields) -> BTreeMap<String, String> {
    let arguments = fields.read_string_map("buildArgs");
    for name in arguments.keys() {
        let is_malformed = name.is_empty()
            || name.contains('=')
            || name.chars().any(|c| c.is_whitespace() || c.is_control());
        if name.to_ascii_uppercase().starts_with("BUILDKIT_") {
            fields.record_wrong_key(
                format_args!("buildArgs.{}", escape_and_shorten_key(name)),
                "is not allowed: arguments that begin with BUILDKIT_ change how BuildKit itself works",
            );
        } else if is_malformed {
            fields.record_wrong_key(
                format_args!("buildArgs.\"{}\"", escape_and_shorten_key(name)),
                "should have a name without blanks and '='",
            );
        }
    }
    arguments
}

/// Reads the config's key `labels`.
pub(super) fn read_labels(fields: &mut ConfigFields) -> BTreeMap<String, String> {
    let labels = fields.read_string_map("labels");
    if labels.keys().any(|name| name.trim().is_empty()) {
        fields.record_wrong_key("labels", "should be an object whose keys are not blank");
    }
    labels
}

/// Reads the config's key `platforms`: items of the form `os/architecture/variant`, of which one or two parts
/// are enough.
///
/// Blank platforms are left out: clients split an empty option into a list of one empty string.
pub(super) fn read_platforms(fields: &mut ConfigFields) -> Vec<String> {
    let is_part = |part: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        !part.is_empty() && part.bytes().all(allowed)
    };
    let mut platforms: Vec<String> = Vec::new();
    for (at, platform) in fields.read_strings("platforms") {
        let platform = platform.trim().to_ascii_lowercase();
        if platform.is_empty() || platforms.contains(&platform) {
            continue;
        }
        if platform.split('/').all(is_part) && platform.split('/').count() <= 3 {
            platforms.push(platform);
        } else {
            fields.record_wrong_key(
                format_args!("platforms[{at}]"),
                "should be a platform like linux/amd64 or linux/arm/v7",
            );
        }
    }
    platforms
}

/// Reads the config's key `target`.
pub(super) fn read_target(fields: &mut ConfigFields) -> Option<String> {
    let target = fields.read_string("target")?;
    if target.trim().is_empty() || target.chars().any(char::is_control) {
        fields.record_wrong_key("target", "should be the name or number of a stage");
    }
    Some(target)
}

/// Reads the config's key `provenance`. `true` means the minimum, as elsewhere by default: build arguments
/// often hold secrets.
pub(super) fn read_provenance(fields: &mut ConfigFields) -> Option<ProvenanceMinOrMax> {
    match fields.take_unless_null_or_empty("provenance")? {
        Value::Bool(false) => None,
        Value::Bool(true) => Some(ProvenanceMinOrMax::Min),
        Value::String(text) if matches!(text.as_str(), "min" | "mode=min") => Some(ProvenanceMinOrMax::Min),
        Value::String(text) if matches!(text.as_str(), "max" | "mode=max") => Some(ProvenanceMinOrMax::Max),
        _ => {
            fields.record_wrong_key("provenance", "should be true, false, \"min\" or \"max\"");
            None
        }
    }
}

/// Reads the config's keys `compression` and `compressionLevel`.
pub(super) fn read_compression(fields: &mut ConfigFields) -> Option<LayerCompression> {
    let has_format = fields.has_unread_key("compression");
    let format = fields.read_string("compression");
    let level = fields.take_unless_null_or_empty("compressionLevel");
    if level.is_some() && !has_format {
        fields.record_wrong_key(
            "compressionLevel",
            "should be left out, or given together with compression",
        );
    }
    let Ok(format) = format?.parse() else {
        fields.record_wrong_key("compression", "should be \"zstd\", \"gzip\" or \"uncompressed\"");
        return None;
    };
    // A value that is not a whole number is out of every format's range.
    let level = level.map(|level| level.as_u64().unwrap_or(u64::MAX));
    match LayerCompression::new(format, level) {
        Ok(compression) => Some(compression),
        Err(error) => {
            fields.record_wrong_key("compressionLevel", error);
            None
        }
    }
}

/// Reads the config's key `dockerfile`, and cleans the path.
pub(super) fn read_dockerfile_path(fields: &mut ConfigFields) -> Option<String> {
    let path = fields.read_string("dockerfile")?;
    let components: Vec<&str> = path
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    let leads_out = path.starts_with('/') || components.contains(&"..") || path.chars().any(char::is_control);
    if leads_out || components.is_empty() {
        fields.record_wrong_key(
            "dockerfile",
            "should be a path in context/, like Dockerfile or build/Dockerfile",
        );
    }
    Some(components.join("/"))
}

/// Reads the config's key `timeout`: a Go duration, or a whole number of seconds.
pub(super) fn read_timeout(fields: &mut ConfigFields) -> Option<Duration> {
    let timeout = match fields.take_unless_null_or_empty("timeout")? {
        Value::String(text) => function_host::duration::parse_duration(&text).ok(),
        Value::Number(seconds) => seconds.as_u64().map(Duration::from_secs),
        _ => None,
    };
    let timeout = timeout.filter(|timeout| !timeout.is_zero());
    if timeout.is_none() {
        fields.record_wrong_key("timeout", "should be a duration above zero, like 90s or 10m");
    }
    timeout
}

/// Reads the config's `key`, whose value is a time in RFC 3339.
pub(super) fn read_time(fields: &mut ConfigFields, key: &str) -> Option<SystemTime> {
    let time = parse_rfc3339(&fields.read_string(key)?);
    if time.is_none() {
        fields.record_wrong_key(key, "should be a time like 2030-01-31T12:00:00Z");
    }
    time
}

/// Reads the config's keys `deploy`, which must name a function and no image, and `probe`. The deployer validates all
/// their other fields.
pub(super) fn read_deploy_and_probe(
    fields: &mut ConfigFields,
    skip_push: bool,
) -> (Option<JsonObject>, Option<JsonObject>) {
    let has_deploy = fields.has_unread_key("deploy");
    let deploy = fields.read_object_with_known_keys_in_any_case("deploy", &DEPLOY_KEYS);
    if let Some(deploy) = &deploy {
        let service = deploy.get("service").and_then(Value::as_str);
        if service.is_none_or(str::is_empty) {
            fields.record_wrong_key("deploy.service", "should be the name of the function");
        }
        if deploy.contains_key("image") {
            fields.record_wrong_key(
                "deploy.image",
                "should be left out: the image that was built is deployed",
            );
        }
    }
    if has_deploy && skip_push {
        fields.record_wrong_key(
            "skipPush",
            "should be false, or deploy left out: an image that is not pushed cannot be deployed",
        );
    }
    let probe = fields.read_object_with_known_keys_in_any_case("probe", &PROBE_KEYS);
    if probe.is_some() && !has_deploy {
        fields.record_wrong_key(
            "probe",
            "should be left out, or given together with deploy: it checks the deployed function",
        );
    }
    (deploy, probe)
}
