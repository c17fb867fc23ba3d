//! What a build was made from, kept to compare builds: digests of its files and arguments, and its steps.
//!
//! Nothing is read for it that the build does not read anyway, and it is written after the answer. It has no contents
//! of files and no values of arguments.

mod difference;
mod recorder;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::context::{ContentHash, FileDigestTree, content_hash_key_name};
use crate::request::BuildConfig;

pub(crate) use difference::compare_inputs;
pub(crate) use recorder::InputsRecorder;

/// What a build was made from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct BuildInputs {
    /// The name of the key of all digests. Digests under different keys cannot be compared.
    pub(crate) key: String,
    /// The digests of the values of build arguments, by name.
    pub(crate) arguments: BTreeMap<String, String>,
    /// The choices of the config that the steps depend on, by key: none of them is secret.
    pub(crate) options: BTreeMap<String, String>,
    /// The steps that ended, in the order in which they began.
    pub(crate) steps: Vec<EndedStepRecord>,
    /// The number of steps beyond the limit.
    pub(crate) steps_left_out: usize,
    /// The digests of the files of the context that BuildKit requested; `None` if they are not known.
    pub(crate) files: Option<FileDigestTree>,
}

/// A step of a build that has ended, as a record of the build has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct EndedStepRecord {
    /// The name of the step, such as `[2/3] RUN make`, with masked secrets.
    pub(crate) name: String,
    /// Whether the result came from the cache.
    pub(crate) cached: bool,
    /// The time that the step took, in seconds.
    pub(crate) seconds: f64,
    /// Whether the step failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) failed: bool,
}

impl BuildInputs {
    /// Returns what the config has of a build's inputs.
    pub(crate) fn of_config(config: &BuildConfig) -> Self {
        let arguments = config.build_args.iter();
        let arguments = arguments.map(|(name, value)| (name.clone(), keyed_digest_of_argument(value)));
        let mut options = BTreeMap::new();
        let mut set = |key: &str, value: String| options.insert(key.to_owned(), value);
        if let Some(target) = &config.target {
            set("target", target.clone());
        }
        if let Some(dockerfile) = &config.dockerfile {
            set("dockerfile", dockerfile.clone());
        }
        if !config.platforms.is_empty() {
            set("platforms", config.platforms.join(","));
        }
        if config.no_cache {
            set("noCache", "true".to_owned());
        }
        Self {
            key: content_hash_key_name(),
            arguments: arguments.collect(),
            options,
            ..Self::default()
        }
    }
}

/// Returns the digest of the value of a build argument, under the key of content hashes: who has only the digest cannot
/// try values.
fn keyed_digest_of_argument(value: &str) -> String {
    ContentHash::of(value.as_bytes()).to_hex()
}
