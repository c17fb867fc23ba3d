//! From a request's body to a build request that can be trusted.

pub mod config;
pub mod image;

use std::sync::Arc;

use crate::context::SourceContext;
use config::BuildConfig;

/// What is to be built, from what.
#[derive(Debug)]
pub struct BuildRequest {
    /// The file `com.openfaas.docker.config`.
    pub config: BuildConfig,
    /// The folder `context/`.
    pub context: Arc<SourceContext>,
    /// The file `com.openfaas.secrets`, still sealed.
    pub sealed_secrets: Option<bytes::Bytes>,
    /// Bytes of the body.
    pub received: u64,
}
