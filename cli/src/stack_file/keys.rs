//! The keys of a stack file that nobody reads. faas-cli ignores them, so they are warnings and not errors.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::suggestion::did_you_mean;

/// The keys at the top of a stack file.
const FILE_KEYS: [&str; 4] = ["version", "provider", "functions", "configuration"];

/// The keys of a function in a stack file.
const FUNCTION_KEYS: [&str; 19] = [
    "annotations",
    "build_args",
    "build_options",
    "build_secrets",
    "constraints",
    "environment",
    "environment_file",
    "fprocess",
    "handler",
    "image",
    "labels",
    "lang",
    "limits",
    "namespace",
    "platforms",
    "readonly_root_filesystem",
    "requests",
    "secrets",
    "skip_build",
];

/// The functions of a stack file, with nothing but their keys.
#[derive(Deserialize)]
struct KeysByFunction {
    functions: Option<BTreeMap<String, Option<BTreeMap<String, IgnoredAny>>>>,
}

/// Returns a warning for each key at the top of a valid stack file, or of a function in it, that nobody reads.
pub(super) fn warnings_of_unknown_keys(text: &str) -> Vec<String> {
    let file: BTreeMap<String, IgnoredAny> = serde_saphyr::from_str(text).unwrap_or_default();
    let functions = serde_saphyr::from_str(text).ok();
    let functions = functions
        .and_then(|keys: KeysByFunction| keys.functions)
        .unwrap_or_default();
    let of_file = file.keys().filter(|key| !FILE_KEYS.contains(&key.as_str()));
    // `x-` keys hold anchors, by custom.
    let of_file = of_file.filter(|key| !key.starts_with("x-"));
    let of_file = of_file.map(|key| format!("{key:?} is not read{}", did_you_mean(key, FILE_KEYS)));
    let of_functions = functions.iter().flat_map(|(name, keys)| {
        let unknown = keys.iter().flat_map(BTreeMap::keys);
        let unknown = unknown.filter(|key| !FUNCTION_KEYS.contains(&key.as_str()));
        unknown.map(move |key| {
            format!(
                "functions.{name}.{key} is not read{}",
                did_you_mean(key, FUNCTION_KEYS)
            )
        })
    });
    of_file.chain(of_functions).collect()
}
