//! `moby.buildkit.secrets.v1`: secrets for `RUN --mount=type=secret`, by their ids.

use std::fmt;
use std::sync::Arc;

use bollard_buildkit_proto::moby::buildkit::secrets::v1::{
    GetSecretRequest, GetSecretResponse, secrets_server,
};
use tonic::{Request, Response, Status};

/// A source of the secrets of one build.
pub trait SecretStore: fmt::Debug + Send + Sync + 'static {
    /// Returns the value of the build's secret `id`.
    fn secret(&self, id: &str) -> Option<&[u8]>;

    /// Returns whether the build has no secrets.
    fn is_empty(&self) -> bool;
}

/// Secrets that all have the value `x`, by their names, for tests.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct NamedSecretsWithValueX(pub(crate) &'static [&'static str]);

#[cfg(test)]
impl SecretStore for NamedSecretsWithValueX {
    fn secret(&self, id: &str) -> Option<&[u8]> {
        self.0.contains(&id).then_some(b"x")
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The secrets service of a session, with the secrets of a [`SecretStore`].
#[derive(Clone, Debug)]
pub(super) struct SecretsService {
    store: Arc<dyn SecretStore>,
}

impl SecretsService {
    pub(super) fn new(store: Arc<dyn SecretStore>) -> Self {
        Self { store }
    }
}

#[tonic::async_trait]
impl secrets_server::Secrets for SecretsService {
    async fn get_secret(
        &self,
        request: Request<GetSecretRequest>,
    ) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        match self.store.secret(&id) {
            Some(value) => Ok(Response::new(GetSecretResponse { data: value.to_vec() })),
            // The Dockerfile decides whether this is an error: `required`.
            None => Err(Status::not_found(format!(
                "secret {id}: not among the request's sealed secrets"
            ))),
        }
    }
}
