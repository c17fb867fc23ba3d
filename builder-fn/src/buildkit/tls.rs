//! TLS to a daemon, with a certificate of its own and one of ours.
//!
//! The certificates are secrets, and read anew for every connection: what was rotated is used at once.

mod fault;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use function_host::{Secret, Secrets};
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader};
use tokio_rustls::TlsConnector;

use super::connection::dial_tcp;
use super::{Dial, Dialing, Io};
pub use fault::TlsFault;

/// How long to wait for the daemon's first bytes. They come without being asked for: either its half of the connection
/// begins, or it refuses our certificate, which in TLS 1.3 it can say only after the handshake is over for us.
const FIRST_WORD: Duration = Duration::from_secs(1);

/// Where the certificates are.
#[derive(Clone, Debug)]
pub struct TlsSecrets {
    /// The secrets of the function.
    pub secrets: Secrets,
    /// The secret with the certificates of the authority that the daemon's is signed by, in PEM.
    pub authority: String,
    /// The secret with our certificate, the ones that it is signed by after it, in PEM.
    pub certificate: String,
    /// The secret with the key of our certificate, in PEM.
    pub key: String,
}

/// A daemon behind TLS.
#[derive(Clone, Debug)]
pub struct TlsAddress {
    /// Where to connect.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The name that the daemon's certificate has to be for.
    pub name: ServerName<'static>,
    /// What to trust, and what to be trusted by.
    pub secrets: TlsSecrets,
}

impl Dial for TlsAddress {
    fn dial(&self) -> Dialing {
        let this = self.clone();
        Box::pin(async move {
            // Before anything is connected: secrets that cannot be used are no matter of the network.
            let config = this.secrets.config()?;
            let stream = dial_tcp(&this.host, this.port).await?;
            let stream = handshake(stream, this.name, config).await?;
            Ok(Box::new(stream) as Box<dyn Io>)
        })
    }
}

impl TlsSecrets {
    /// Whether everything is there and fits together.
    ///
    /// # Errors
    /// What is missing or does not fit.
    pub fn check(&self) -> Result<(), TlsFault> {
        self.config().map(drop)
    }

    fn config(&self) -> Result<ClientConfig, TlsFault> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates(&self.authority)? {
            roots
                .add(certificate)
                .map_err(|error| self.unusable(&self.authority, &error))?;
        }
        let roots = Arc::new(roots);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|_| TlsFault::NothingIn {
                secret: self.authority.clone(),
                what: "certificate",
            })?;
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(TlsFault::Handshake)?
            .with_webpki_verifier(verifier);
        let mut config = match self.identity()? {
            None => config.with_no_client_auth(),
            Some((chain, key)) => {
                check_validity(&chain, roots, provider)
                    .map_err(|error| self.unusable(&self.certificate, &error))?;
                config
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| self.unusable(&self.certificate, &error))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    /// Our certificate and its key. Both or none: a daemon may ask for none.
    fn identity(&self) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, TlsFault> {
        if !self.secrets.exists(&self.certificate) && !self.secrets.exists(&self.key) {
            return Ok(None);
        }
        let chain = self.certificates(&self.certificate)?;
        let key = self.read(&self.key)?;
        let key = PrivateKeyDer::from_pem_slice(key.expose()).map_err(|_| TlsFault::NothingIn {
            secret: self.key.clone(),
            what: "private key",
        })?;
        Ok(Some((chain, key)))
    }

    fn certificates(&self, name: &str) -> Result<Vec<CertificateDer<'static>>, TlsFault> {
        let nothing = || TlsFault::NothingIn {
            secret: name.to_owned(),
            what: "certificate",
        };
        let secret = self.read(name)?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(secret.expose()).collect();
        let certificates = certificates.map_err(|_| nothing())?;
        if certificates.is_empty() {
            return Err(nothing());
        }
        Ok(certificates)
    }

    fn read(&self, name: &str) -> Result<Secret, TlsFault> {
        self.secrets.read(name).map_err(TlsFault::Secret)
    }

    fn unusable(&self, secret: &str, error: &rustls::Error) -> TlsFault {
        TlsFault::of_secret(secret, &self.key, error)
    }
}

/// Our own certificate's time and version are looked at here: the daemon would say no more than that it refuses it.
/// Whom it is signed by is the daemon's to judge, and so is what it may be used for.
fn check_validity(
    chain: &[CertificateDer<'_>],
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
) -> Result<(), rustls::Error> {
    let Ok(verifier) = WebPkiClientVerifier::builder_with_provider(roots, provider).build() else {
        return Ok(());
    };
    let [certificate, intermediates @ ..] = chain else {
        return Ok(());
    };
    match verifier.verify_client_cert(certificate, intermediates, UnixTime::now()) {
        Err(error) if fault::is_about_itself(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Speaks TLS over `stream`, and waits until the daemon has said something.
async fn handshake<S>(stream: S, name: ServerName<'static>, config: ClientConfig) -> Result<impl Io, TlsFault>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let has_identity = config.client_auth_cert_resolver.has_certs();
    let fault = |error: io::Error| TlsFault::of_handshake(error, &name.to_str(), has_identity);
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name.clone(), stream).await.map_err(fault)?;
    // What is read here stays in the buffer. The buffer is small, because all else is read past it.
    let mut stream = BufReader::with_capacity(1 << 10, stream);
    match tokio::time::timeout(FIRST_WORD, stream.fill_buf()).await {
        Ok(Err(error)) => return Err(fault(error)),
        Ok(Ok([])) => return Err(fault(io::ErrorKind::UnexpectedEof.into())),
        Ok(Ok(_)) | Err(_) => {}
    }
    Ok(stream)
}

#[cfg(test)]
mod tests;
