//! TLS in front of a part of the stack that has none, as an ingress provides it in a cluster.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use crate::certificates::CertificateWithKey;

/// A running TLS proxy; it stops on drop.
#[derive(Debug)]
pub struct TlsProxy {
    url: String,
    serving: JoinHandle<()>,
}

impl TlsProxy {
    /// Starts a TLS proxy to an `http` URL. The certificate has to be for `localhost`.
    pub async fn start_to(url: &str, identity: &CertificateWithKey) -> Result<Self> {
        Self::start(url, identity, Ipv4Addr::LOCALHOST.into(), "localhost").await
    }

    /// Starts a TLS proxy at this address of the machine to an `http` URL. The certificate has to be for the address.
    pub async fn start_at(address: IpAddr, url: &str, identity: &CertificateWithKey) -> Result<Self> {
        Self::start(url, identity, address, &address.to_string()).await
    }

    async fn start(
        url: &str,
        identity: &CertificateWithKey,
        address: IpAddr,
        host_in_url: &str,
    ) -> Result<Self> {
        let target = url
            .strip_prefix("http://")
            .with_context(|| format!("not an http URL: {url}"))?
            .to_owned();
        let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes())?;
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((address, 0)).await?;
        Ok(Self {
            url: format!("https://{host_in_url}:{}", listener.local_addr()?.port()),
            serving: tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    let (acceptor, target) = (acceptor.clone(), target.clone());
                    tokio::spawn(async move {
                        // The handshake fails if the client does not trust the certificate.
                        let Ok(mut client) = acceptor.accept(client).await else {
                            return;
                        };
                        if let Ok(mut part) = TcpStream::connect(target).await {
                            copy_bidirectional(&mut client, &mut part).await.ok();
                        }
                    });
                }
            }),
        })
    }

    /// Returns the proxy's `https` URL.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for TlsProxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
