//! Connectors of the host's HTTP clients: without TLS, and with TLS if the function is built with the feature
//! `tls`.

use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;

/// The timeout for an HTTP client to establish a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Sets the timeout for connecting, and that small writes are sent at once (`TCP_NODELAY`).
fn with_connect_timeout_and_nodelay<R>(mut connector: HttpConnector<R>) -> HttpConnector<R> {
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_nodelay(true);
    connector
}

#[cfg(not(feature = "tls"))]
mod without_tls {
    use super::*;
    use crate::error_chain::BoxError;

    /// The connector of the host's HTTP clients.
    pub(crate) type Connector = HttpConnector;

    /// Returns an HTTP connector; it cannot connect with TLS.
    pub(crate) fn plain_connector() -> Result<Connector, BoxError> {
        Ok(with_connect_timeout_and_nodelay(HttpConnector::new()))
    }
}

#[cfg(feature = "tls")]
mod with_tls {
    use std::sync::Arc;

    use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
    use rustls::crypto::ring;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use rustls::{ClientConfig, RootCertStore};

    use super::*;
    use crate::address_check::{AddressCheck, ResolverFailingOnAnyDeniedAddress};
    use crate::error_chain::BoxError;

    /// The connector of the host's HTTP clients, for `http` and `https`.
    pub(crate) type Connector = HttpsConnector<HttpConnector<ResolverFailingOnAnyDeniedAddress>>;

    /// Returns a connector that trusts no certificate, and so reaches only servers without TLS.
    pub(crate) fn plain_connector() -> Result<Connector, BoxError> {
        plain_checked_connector(None)
    }

    /// Returns a connector that trusts no certificate, and so reaches only servers without TLS, at addresses that pass
    /// `check`, if there is one.
    pub(crate) fn plain_checked_connector(check: Option<AddressCheck>) -> Result<Connector, BoxError> {
        connector_with_roots(RootCertStore::empty(), check)
    }

    /// Returns a connector for `http` and `https` that trusts the system's certificate authorities, and the certificates
    /// in `additional_pem` (PEM). It connects only to addresses that pass `check`, if there is one.
    pub(crate) fn connector_trusting_system_certificates(
        additional_pem: Option<&[u8]>,
        check: Option<AddressCheck>,
    ) -> Result<Connector, BoxError> {
        let mut roots = RootCertStore::empty();
        // The system's certificates that cannot be read are skipped, and the others trusted.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for certificate in CertificateDer::pem_slice_iter(additional_pem.unwrap_or_default()) {
            roots.add(certificate?)?;
        }
        if roots.is_empty() {
            return Err("there is no certificate to trust".into());
        }
        connector_with_roots(roots, check)
    }

    /// Returns a connector for `http` and `https` that trusts the certificates in `authorities_pem` (PEM), and no
    /// others.
    pub(crate) fn connector_trusting_only(authorities_pem: &[u8]) -> Result<Connector, BoxError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authorities_pem) {
            roots.add(certificate?)?;
        }
        if roots.is_empty() {
            return Err("there is no certificate to trust".into());
        }
        connector_with_roots(roots, None)
    }

    /// Returns a connector for `http` and `https` that trusts the certificate authorities in `roots`, and connects only
    /// to addresses that pass `check`, if there is one.
    ///
    /// It names its crypto provider instead of installing a default for the process, because the handler may use
    /// another.
    fn connector_with_roots(
        roots: RootCertStore,
        check: Option<AddressCheck>,
    ) -> Result<Connector, BoxError> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut http = with_connect_timeout_and_nodelay(HttpConnector::new_with_resolver(
            ResolverFailingOnAnyDeniedAddress::new(check),
        ));
        http.enforce_http(false);
        let builder = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http();
        Ok(builder.enable_http1().wrap_connector(http))
    }
}

#[cfg(feature = "tls")]
pub(crate) use with_tls::{
    Connector, connector_trusting_only, connector_trusting_system_certificates, plain_checked_connector,
    plain_connector,
};
#[cfg(not(feature = "tls"))]
pub(crate) use without_tls::{Connector, plain_connector};
