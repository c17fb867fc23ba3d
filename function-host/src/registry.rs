//! Access to image registries: credentials from a Docker `config.json`, and lookups of manifests by digest.
//!
//! [`RegistryLogins`] reads the file as Docker does. [`RegistryClient`] asks a registry for a manifest or blob, with a password
//! or a token.
//!
//! Protocol: <https://github.com/opencontainers/distribution-spec>; tokens:
//! <https://distribution.github.io/distribution/spec/auth/token/> and `/oauth/` there.

mod challenge;
mod client;
mod credentials;
mod error;
mod json;
mod logins;
mod realm;

pub use client::{RegistryClient, RegistryToken, RepositoryClient};
pub use credentials::RegistryCredentials;
pub use error::RegistryError;
pub use logins::{LoginsCache, MalformedDockerConfig, RegistryLogins, UnusableDockerConfigEntry};
pub use realm::AdditionalTokenHosts;

/// The name of Docker Hub in image references, and the host of its registry API.
const DOCKER_HUB_NAME_AND_HOST: (&str, &str) = ("docker.io", "registry-1.docker.io");
