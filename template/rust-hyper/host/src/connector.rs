//! Connectors of the host's HTTP clients: without TLS, and with TLS if the function is built with the feature
//! `tls`.

use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;

/// The timeout for an HTTP client to establish a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

fn http_connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_nodelay(true);
    connector
}

#[cfg(not(feature = "tls"))]
mod kind {
    use super::*;
    use crate::error_chain::BoxError;

    pub(crate) type Connector = HttpConnector;

    pub(crate) fn plain_connector() -> Result<Connector, BoxError> {
        Ok(http_connector())
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

    use super::*;
    use crate::error_chain::BoxError;

    pub(crate) type Connector = HttpsConnector<HttpConnector>;

    /// Returns an HTTP connector for a server without TLS; the connector trusts no certificate.
    pub(crate) fn plain_connector() -> Result<Connector, BoxError> {
        connector_with_roots(RootCertStore::empty())
    }

    /// Returns an HTTPS connector that trusts the system's certificate authorities, and `more` certificates
    /// in PEM.
    pub(crate) fn connector_trusting_certificates(more: Option<&[u8]>) -> Result<Connector, BoxError> {
        let mut roots = RootCertStore::empty();
        // The system's certificates that cannot be read are skipped, and the others trusted.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for certificate in CertificateDer::pem_slice_iter(more.unwrap_or_default()) {
            roots.add(certificate?)?;
        }
        if roots.is_empty() {
            return Err("there is no certificate to trust".into());
        }
        connector_with_roots(roots)
    }

    /// Returns an HTTPS connector that trusts the certificate authorities in `roots`.
    ///
    /// It names its crypto provider instead of installing a default for the process, because the handler may use
    /// another.
    fn connector_with_roots(roots: RootCertStore) -> Result<Connector, BoxError> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut http = http_connector();
        http.enforce_http(false);
        let builder = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http();
        Ok(builder.enable_http1().wrap_connector(http))
    }
}

#[cfg(feature = "tls")]
pub(crate) use kind::connector_trusting_certificates;
pub(crate) use kind::{Connector, plain_connector};
