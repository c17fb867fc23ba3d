//! containerd's streams, over which containerd sends requests to its client during a call.
//!
//! The client opens and names a stream, and passes the name to the call that uses it.

use containerd_client::{
    services::v1::{StreamInit, streaming_client::StreamingClient},
    to_any,
    types::transfer::{AuthRequest, AuthResponse, AuthType},
};
use futures_util::future::BoxFuture;
use prost_types::Any;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{NamespaceClient, await_short_call, containerd_error};
use crate::{docker_config::RegistryCredentials, error::ProviderError, unique};

/// A stream that answers containerd's requests for registry credentials until it is dropped.
pub(super) struct CredentialStream {
    pub(super) name: String,
    /// The future that answers containerd's requests, and resolves when containerd closes the stream.
    pub(super) answering: BoxFuture<'static, Result<(), Status>>,
}

impl NamespaceClient {
    /// Opens a stream that answers containerd's requests for the credentials of registry hosts.
    ///
    /// `credentials` is called with the host's name, such as `registry-1.docker.io` or `registry:5000`.
    pub(super) async fn open_credential_stream_and_answering_future(
        &self,
        credentials: impl Fn(&str) -> Option<RegistryCredentials> + Send + 'static,
    ) -> Result<CredentialStream, ProviderError> {
        let name = unique::unique_name("creds");
        let (sender, receiver) = mpsc::channel(1);
        let open = to_any(&StreamInit { id: name.clone() });
        // The channel has capacity for this one message.
        let _ = sender.try_send(open);
        let mut client = StreamingClient::new(self.channel());
        let request = self.request_in_namespace_and_lease(ReceiverStream::new(receiver));
        let mut requests = await_short_call("open stream", &name, client.stream(request)).await?;
        // The name may be used only after containerd has confirmed the stream.
        requests
            .message()
            .await
            .map_err(containerd_error("open stream", &name))?;
        let answering = Box::pin(answer_credential_requests(requests, sender, credentials));
        Ok(CredentialStream { name, answering })
    }
}

/// Answers requests for credentials until containerd closes the stream or sends a request of another kind; hosts
/// without credentials get an empty answer.
async fn answer_credential_requests(
    mut requests: Streaming<Any>,
    answers: mpsc::Sender<Any>,
    credentials: impl Fn(&str) -> Option<RegistryCredentials> + Send,
) -> Result<(), Status> {
    while let Some(any) = requests.message().await? {
        let request: AuthRequest = prost::Message::decode(any.value.as_slice())
            .map_err(|_| Status::internal("containerd sent a request that is not for credentials"))?;
        let response = match credentials(&request.host) {
            Some(RegistryCredentials::Password { user, password }) => AuthResponse {
                auth_type: AuthType::Credentials.into(),
                username: user,
                secret: password,
                expire_at: None,
            },
            Some(RegistryCredentials::IdentityToken(token)) => AuthResponse {
                auth_type: AuthType::Refresh.into(),
                secret: token,
                ..AuthResponse::default()
            },
            None => AuthResponse::default(),
        };
        if answers.send(to_any(&response)).await.is_err() {
            break;
        }
    }
    Ok(())
}
