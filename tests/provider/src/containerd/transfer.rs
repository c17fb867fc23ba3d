//! containerd's transfer service, which pulls and unpacks an image.

use containerd_client::{
    services::v1::{TransferOptions, TransferRequest, transfer_client::TransferClient},
    to_any,
    types::{
        Platform,
        transfer::{ImageStore, OciRegistry, RegistryResolver, UnpackConfiguration},
    },
};
use tonic::Status;

use super::NamespaceClient;
use crate::{
    docker_config::DockerConfig,
    error::{ContainerdStatus, ProviderError},
};

/// The image to pull, with its registry's credentials and protocol.
#[derive(Debug)]
pub(crate) struct PullSource<'a> {
    /// The image's normalised reference, which also becomes its name in the image store.
    pub(crate) image: &'a str,
    pub(crate) plain_http: bool,
    pub(crate) credentials: &'a DockerConfig,
}

impl NamespaceClient {
    /// Pulls an image from its registry and unpacks it for the snapshotter.
    pub(crate) async fn pull_and_unpack(&self, source: PullSource<'_>) -> Result<(), ProviderError> {
        let image = source.image;
        let credentials = source.credentials.clone();
        let stream = self
            .open_credential_stream_and_answering_future(move |host| credentials.credentials_for_host(host))
            .await?;
        let registry = OciRegistry {
            reference: image.to_owned(),
            resolver: Some(RegistryResolver {
                auth_stream: stream.name,
                default_scheme: if source.plain_http { "http" } else { "" }.to_owned(),
                ..RegistryResolver::default()
            }),
        };
        let platform = machine_platform();
        let unpack = UnpackConfiguration {
            platform: Some(platform.clone()),
            snapshotter: self.snapshotter(),
        };
        let store = ImageStore {
            name: image.to_owned(),
            platforms: vec![platform],
            unpacks: vec![unpack],
            ..ImageStore::default()
        };
        let request = self.request_in_namespace_and_lease(TransferRequest {
            source: Some(to_any(&registry)),
            destination: Some(to_any(&store)),
            options: Some(TransferOptions::default()),
        });
        let mut client = TransferClient::new(self.channel());
        let transfer = client.transfer(request);
        let failed = |source: Status| ProviderError::Pull {
            image: image.to_owned(),
            source: ContainerdStatus::new(source),
        };
        tokio::select! {
            done = transfer => done.map(drop).map_err(failed),
            Err(status) = stream.answering => Err(failed(status)),
        }
    }
}

/// Returns this machine's platform in the notation of images.
pub(crate) fn machine_platform() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Platform {
        os: "linux".to_owned(),
        architecture: architecture.to_owned(),
        ..Platform::default()
    }
}
