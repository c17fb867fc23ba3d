//! Connections to the gateway: plain, and with TLS where the function is built for it.

use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;

use super::GatewayError;
use crate::secret::Secrets;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);

fn http() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_nodelay(true);
    connector
}

#[cfg(not(feature = "tls"))]
mod kind {
    use super::*;

    pub(crate) type Connector = HttpConnector;

    pub(crate) fn plain() -> Result<Connector, GatewayError> {
        Ok(http())
    }

    pub(crate) fn trusting(_secrets: &Secrets) -> Result<Connector, GatewayError> {
        Err(GatewayError::Url)
    }
}

#[cfg(feature = "tls")]
mod kind {
    use std::sync::Arc;

    use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
    use rustls::crypto::ring;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use rustls::{ClientConfig, RootCertStore};

    use super::super::CA_SECRET;
    use super::*;
    use crate::error::BoxError;
    use crate::secret::Secret;

    pub(crate) type Connector = HttpsConnector<HttpConnector>;

    /// Trusts nobody: for a gateway without TLS.
    pub(crate) fn plain() -> Result<Connector, GatewayError> {
        connector(RootCertStore::empty())
    }

    /// Trusts whom the system trusts, and the secret's certificates.
    pub(crate) fn trusting(secrets: &Secrets) -> Result<Connector, GatewayError> {
        let secret = match secrets.exists(CA_SECRET) {
            true => Some(secrets.read(CA_SECRET).map_err(refused)?),
            false => None,
        };
        trusting_also(secret.as_ref().map(Secret::expose))
    }

    /// Trusts whom the system trusts, and these certificates, in PEM.
    pub(crate) fn trusting_also(more: Option<&[u8]>) -> Result<Connector, GatewayError> {
        let mut roots = RootCertStore::empty();
        // Certificates of the system that cannot be read are no reason not to trust the others.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for certificate in CertificateDer::pem_slice_iter(more.unwrap_or_default()) {
            roots.add(certificate.map_err(refused)?).map_err(refused)?;
        }
        if roots.is_empty() {
            return Err(refused("there is no certificate to trust"));
        }
        connector(roots)
    }

    /// The crypto provider is named here and is nobody's default: a handler may have another one.
    fn connector(roots: RootCertStore) -> Result<Connector, GatewayError> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(refused)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut http = http();
        http.enforce_http(false);
        let builder = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http();
        Ok(builder.enable_http1().wrap_connector(http))
    }

    fn refused(cause: impl Into<BoxError>) -> GatewayError {
        GatewayError::Authority(cause.into())
    }
}

#[cfg(feature = "traces")]
pub(crate) use kind::trusting_also;
pub(crate) use kind::{Connector, plain, trusting};
