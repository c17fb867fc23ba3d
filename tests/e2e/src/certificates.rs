//! Test certificates for daemons, registries and their clients.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};

/// A certificate authority.
pub struct CertificateAuthority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its private key, both PEM.
pub struct CertificateWithKey {
    /// The certificate in PEM.
    pub certificate: String,
    /// The certificate's private key in PEM.
    pub key: String,
}

impl CertificateAuthority {
    /// Returns a new authority with this common name.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Returns a self-signed certificate, for signing tokens rather than for connections.
    pub fn self_signed_for_tokens(name: &str) -> Result<CertificateWithKey> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        Ok(CertificateWithKey {
            certificate: params.self_signed(&key)?.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Returns the authority's own certificate in PEM.
    pub fn certificate_pem(&self) -> String {
        self.0.pem()
    }

    /// Issues a certificate for this host name or address, valid for servers and for clients.
    pub fn issue_certificate(&self, name: &str) -> Result<CertificateWithKey> {
        let mut params = CertificateParams::new([name.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        Ok(CertificateWithKey {
            certificate: params.signed_by(&key, &self.0)?.pem(),
            key: key.serialize_pem(),
        })
    }
}
