//! TLS in front of a part of the stack that speaks none: what an ingress is in a cluster.

use std::sync::Arc;

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

use crate::certificates::Identity;

/// The front; it ends with the value.
#[derive(Debug)]
pub struct TlsFront {
    url: String,
    serving: JoinHandle<()>,
}

impl TlsFront {
    /// Puts TLS with this certificate, which has to be for `localhost`, before an `http` URL.
    pub async fn before(url: &str, identity: &Identity) -> Result<Self> {
        let target = url
            .strip_prefix("http://")
            .with_context(|| format!("no http URL: {url}"))?
            .to_owned();
        let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes())?;
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        Ok(Self {
            url: format!("https://localhost:{}", listener.local_addr()?.port()),
            serving: tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    let (acceptor, target) = (acceptor.clone(), target.clone());
                    tokio::spawn(async move {
                        // A client that does not trust the certificate ends the handshake.
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

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
