//! TLS connections to a daemon, with certificates of the daemon and of this builder.
//!
//! The certificates are secrets, which are read again for every connection, so that rotated ones are used at once.

mod error;

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

use super::dial::dial_tcp;
use super::{ByteStream, DialFuture, Dialer};
pub use error::TlsError;

/// The longest wait for the daemon's first bytes after the TLS handshake, which it sends unasked: either its half of
/// the connection begins, or it rejects the builder's certificate, which in TLS 1.3 it can do only after the handshake
/// is over on this side.
const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(5);

/// The names of the OpenFaaS secrets with the TLS certificates and keys, and the folder that they are in.
#[derive(Clone, Debug)]
pub(crate) struct TlsSecrets {
    /// The folder with the secrets of this function.
    pub(crate) secrets: Secrets,
    /// The name of the secret with the certificates of the authority that signed the daemon's certificate, in PEM.
    pub(crate) authority: String,
    /// The name of the secret with the builder's certificate, followed by the intermediate ones, in PEM.
    pub(crate) certificate: String,
    /// The name of the secret with the private key of the builder's certificate, in PEM.
    pub(crate) key: String,
}

/// A dialer that connects to a daemon over TLS.
#[derive(Clone, Debug)]
pub(crate) struct TlsDialer {
    /// The daemon's host to connect to.
    pub(crate) host: String,
    /// The daemon's port to connect to.
    pub(crate) port: u16,
    /// The name that the daemon's certificate must be valid for.
    pub(crate) name: ServerName<'static>,
    /// The secrets with the certificate authority, and with the builder's own certificate.
    pub(crate) secrets: TlsSecrets,
}

impl Dialer for TlsDialer {
    fn open_transport(&self) -> DialFuture {
        let this = self.clone();
        Box::pin(async move {
            // Before the connection, so that unusable secrets are not reported as an error of the network.
            this.secrets.check_usable()?;
            let stream = dial_tcp(&this.host, this.port).await?;
            Ok(Box::new(stream) as Box<dyn ByteStream>)
        })
    }

    fn secure_transport(&self, transport: Box<dyn ByteStream>) -> DialFuture {
        let this = self.clone();
        Box::pin(async move {
            let config = this.secrets.read_client_config()?;
            let stream =
                perform_tls_handshake_and_await_first_bytes_for_5_seconds(transport, this.name, config)
                    .await?;
            Ok(Box::new(stream) as Box<dyn ByteStream>)
        })
    }
}

impl TlsSecrets {
    /// Checks that the authority can be read, and that the builder's certificate, if there is one, is valid and fits
    /// its key.
    ///
    /// # Errors
    /// Fails with what is missing or does not fit.
    pub(crate) fn check_usable(&self) -> Result<(), TlsError> {
        self.read_client_config().map(drop)
    }

    /// Reads the TLS secrets, and returns the client configuration.
    fn read_client_config(&self) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in self.read_certificates(&self.authority)? {
            roots
                .add(certificate)
                .map_err(|error| self.to_secret_error(&self.authority, &error))?;
        }
        let roots = Arc::new(roots);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|_| TlsError::NotPem {
                secret: self.authority.clone(),
                expected: "certificate",
            })?;
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Handshake)?
            .with_webpki_verifier(verifier);
        let mut config = match self.read_identity()? {
            None => config.with_no_client_auth(),
            Some((chain, key)) => {
                check_own_certificate_period_and_version(&chain, roots, provider)
                    .map_err(|error| self.to_secret_error(&self.certificate, &error))?;
                config
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| self.to_secret_error(&self.certificate, &error))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    /// Reads the builder's certificate and its key from their secrets. Returns `None` if neither exists: not every
    /// daemon asks for one.
    fn read_identity(
        &self,
    ) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, TlsError> {
        if !self.secrets.exists(&self.certificate) && !self.secrets.exists(&self.key) {
            return Ok(None);
        }
        let chain = self.read_certificates(&self.certificate)?;
        let key = self.read_secret(&self.key)?;
        let key = PrivateKeyDer::from_pem_slice(key.expose()).map_err(|_| TlsError::NotPem {
            secret: self.key.clone(),
            expected: "private key",
        })?;
        Ok(Some((chain, key)))
    }

    /// Reads the certificates in the secret `secret_name`.
    fn read_certificates(&self, secret_name: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let nothing = || TlsError::NotPem {
            secret: secret_name.to_owned(),
            expected: "certificate",
        };
        let secret = self.read_secret(secret_name)?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(secret.expose()).collect();
        let certificates = certificates.map_err(|_| nothing())?;
        if certificates.is_empty() {
            return Err(nothing());
        }
        Ok(certificates)
    }

    fn read_secret(&self, secret_name: &str) -> Result<Secret, TlsError> {
        self.secrets.read_secret(secret_name).map_err(TlsError::Secret)
    }

    /// Converts an error of rustls about the certificate or key in `secret`.
    fn to_secret_error(&self, secret: &str, error: &rustls::Error) -> TlsError {
        TlsError::from_error_about_own_secret(secret, &self.key, error)
    }
}

/// Checks the period and the version of the builder's own certificate, because a daemon that rejects it does not say
/// why. The daemon checks who signed it and what it may be used for.
fn check_own_certificate_period_and_version(
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
        Err(error) if error::is_about_certificate_period_version_or_encoding(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Performs the TLS handshake over `stream`, and waits for the daemon's first bytes, in whose place it sends an error
/// if it rejects the builder's certificate. After 5 s without any, the certificate counts as accepted.
async fn perform_tls_handshake_and_await_first_bytes_for_5_seconds<S>(
    stream: S,
    name: ServerName<'static>,
    config: ClientConfig,
) -> Result<impl ByteStream, TlsError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let has_identity = config.client_auth_cert_resolver.has_certs();
    let tls_error = |error: io::Error| TlsError::from_handshake(error, &name.to_str(), has_identity);
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name.clone(), stream).await.map_err(tls_error)?;
    // The bytes stay in the buffer. It is small, because later reads bypass it.
    let mut stream = BufReader::with_capacity(1 << 10, stream);
    match tokio::time::timeout(FIRST_BYTES_TIMEOUT, stream.fill_buf()).await {
        Ok(Err(error)) => return Err(tls_error(error)),
        Ok(Ok([])) => return Err(tls_error(io::ErrorKind::UnexpectedEof.into())),
        Ok(Ok(_)) | Err(_) => {}
    }
    Ok(stream)
}

#[cfg(test)]
mod tests;
