//! The configuration of a build request: the JSON of `com.openfaas.docker.config`.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::builder::format_rfc3339_in_millis_or_empty;
use crate::function::Function;

/// The time for which a request is valid. A build may wait in a queue for longer than anybody waits for it, and the
/// builder resumes accepted builds for as long.
const REQUEST_VALIDITY: Duration = Duration::from_secs(24 * 60 * 60);

/// Returns the configuration of a function's build that is submitted now.
pub(super) fn configuration(function: &Function, disables_cache: bool, now: SystemTime) -> Value {
    let mut config = json!({
        "image": function.image,
        "submittedAt": format_rfc3339_in_millis_or_empty(now),
        "notAfter": format_rfc3339_in_millis_or_empty(now.checked_add(REQUEST_VALIDITY).unwrap_or(now)),
        "deploy": function.deploy,
    });
    if !function.build_args.is_empty() {
        config["buildArgs"] = json!(function.build_args);
    }
    if !function.platforms.is_empty() {
        config["platforms"] = json!(function.platforms);
    }
    if disables_cache {
        config["noCache"] = json!(true);
    }
    config
}
