//! The schema of a stack file.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A map of texts, in which `null` and no value are the empty text.
pub(crate) type TextMap = BTreeMap<String, Option<String>>;

/// The whole of a stack file.
#[derive(Debug, Deserialize)]
pub(super) struct StackDocument {
    pub(super) provider: Option<ProviderEntry>,
    pub(super) functions: Option<BTreeMap<String, FunctionEntry>>,
    pub(super) configuration: Option<ConfigurationEntry>,
}

/// The provider in a stack file.
#[derive(Debug, Deserialize)]
pub(super) struct ProviderEntry {
    pub(super) name: Option<String>,
    pub(super) gateway: Option<String>,
}

/// The configuration in a stack file.
#[derive(Debug, Deserialize)]
pub(super) struct ConfigurationEntry {
    pub(super) copy: Option<Vec<String>>,
}

/// A function in a stack file, as it is written.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct FunctionEntry {
    /// The name of the template.
    pub(crate) lang: Option<String>,
    /// The folder of the handler.
    pub(crate) handler: Option<String>,
    /// The name of the image.
    pub(crate) image: Option<String>,
    /// The command of the function, in place of the template's.
    pub(crate) fprocess: Option<String>,
    /// Environment variables.
    pub(crate) environment: Option<TextMap>,
    /// Files with environment variables, which replace those above.
    pub(crate) environment_file: Option<Vec<String>>,
    /// The names of the secrets that the function reads.
    pub(crate) secrets: Option<Vec<String>>,
    /// Whether faas-cli does not build the function.
    pub(crate) skip_build: Option<bool>,
    /// The nodes that the function may run on.
    pub(crate) constraints: Option<Vec<String>>,
    /// Labels of the function.
    pub(crate) labels: Option<TextMap>,
    /// Annotations of the function.
    pub(crate) annotations: Option<TextMap>,
    /// The most resources that the function may use.
    pub(crate) limits: Option<ResourcesEntry>,
    /// The resources that are reserved for the function.
    pub(crate) requests: Option<ResourcesEntry>,
    /// Whether the function cannot write to its file system.
    pub(crate) readonly_root_filesystem: Option<bool>,
    /// The names of build options, which the template defines.
    pub(crate) build_options: Option<Vec<String>>,
    /// The namespace of the function.
    pub(crate) namespace: Option<String>,
    /// Build arguments.
    pub(crate) build_args: Option<TextMap>,
    /// Platforms, separated by commas.
    pub(crate) platforms: Option<String>,
    /// Files with the values of build secrets, by the names of the secrets.
    pub(crate) build_secrets: Option<TextMap>,
}

/// An amount of memory and processor time.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ResourcesEntry {
    /// An amount of memory, such as `128Mi`.
    pub(crate) memory: Option<String>,
    /// An amount of processor time, such as `100m`.
    pub(crate) cpu: Option<String>,
}
