//! `moby.buildkit.secrets.v1`: secrets for `RUN --mount=type=secret`, by their ids.

use bollard_buildkit_proto::moby::buildkit::secrets::v1::{
    GetSecretRequest, GetSecretResponse, secrets_server,
};
use tonic::{Request, Response, Status};

use crate::sealed::BuildSecrets;

/// Answers with what the build was given.
#[derive(Clone, Debug)]
pub struct Secrets(BuildSecrets);

impl Secrets {
    /// Serves these.
    pub fn new(secrets: BuildSecrets) -> Self {
        Self(secrets)
    }
}

#[tonic::async_trait]
impl secrets_server::Secrets for Secrets {
    async fn get_secret(
        &self,
        request: Request<GetSecretRequest>,
    ) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        match self.0.value(&id) {
            Some(value) => Ok(Response::new(GetSecretResponse { data: value.to_vec() })),
            // The Dockerfile decides whether that is an error: `required`.
            None => Err(Status::not_found(format!("secret {id} was not sent along"))),
        }
    }
}
