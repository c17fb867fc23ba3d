//! Errors of TLS connections to a daemon.

use std::io;

use function_host::secret::SecretError;
use rustls::{AlertDescription, CertificateError, Error, InconsistentKeys};

/// The reason why a TLS connection to the daemon is impossible. The texts follow "the connection to BuildKit at … is
/// not secure: ".
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A TLS secret cannot be read.
    #[error(transparent)]
    Secret(SecretError),
    /// A TLS secret does not contain PEM of the expected kind.
    #[error("secret {secret} should hold a {expected} in PEM")]
    NotPem {
        /// The name of the secret with the faulty PEM.
        secret: String,
        /// The kind of PEM that the secret should contain.
        expected: &'static str,
    },
    /// The builder's private key does not belong to its certificate.
    #[error("the key in secret {key} does not belong to the certificate in secret {certificate}")]
    KeyMismatch {
        /// The name of the secret with the certificate.
        certificate: String,
        /// The name of the secret with the key.
        key: String,
    },
    /// The builder's certificate has expired.
    #[error("the certificate in secret {secret} has expired")]
    OwnExpired {
        /// The name of the secret with the builder's certificate.
        secret: String,
    },
    /// The builder's certificate is not valid yet.
    #[error("the certificate in secret {secret} is not valid yet")]
    OwnNotYetValid {
        /// The name of the secret with the builder's certificate.
        secret: String,
    },
    /// The builder's certificate is X.509 version 1.
    #[error("the certificate in secret {secret} is X.509 version 1; issue it again as version 3")]
    OwnVersion1 {
        /// The name of the secret with the builder's certificate.
        secret: String,
    },
    /// The builder's certificate or key is unusable for another reason.
    #[error("secret {secret} is not usable: {reason}")]
    OwnUnusable {
        /// The name of the secret with the certificate or the key.
        secret: String,
        /// The text of the error from rustls.
        reason: String,
    },
    /// The daemon's certificate has expired.
    #[error("the daemon's certificate has expired")]
    Expired,
    /// The daemon's certificate is not valid yet.
    #[error("the daemon's certificate is not valid yet")]
    NotYetValid,
    /// Another authority signed the daemon's certificate.
    #[error("the daemon's certificate is not signed by the authority that this builder trusts")]
    UnknownAuthority,
    /// The daemon's certificate is valid for other names.
    #[error("the daemon's certificate is not for the name {name:?}")]
    WrongName {
        /// The name that the daemon's certificate should be valid for.
        name: String,
    },
    /// The daemon's certificate is X.509 version 1.
    #[error(
        "the daemon's certificate is X.509 version 1; issue it again as version 3, with subject alternative names"
    )]
    Version1,
    /// The daemon's certificate is invalid for another reason.
    #[error("the daemon's certificate cannot be trusted: {0}")]
    Certificate(CertificateError),
    /// The daemon asks for a certificate, and the builder has none.
    #[error("the daemon asks for a client certificate, and this builder was given none")]
    NoClientCertificate,
    /// The daemon does not trust the authority of the builder's certificate.
    #[error("the daemon does not trust the authority that this builder's certificate is signed by")]
    OwnUnknownAuthority,
    /// The daemon considers the builder's certificate expired or not valid yet.
    #[error("the daemon reports this builder's certificate as expired or not valid yet")]
    OwnOutsideValidity,
    /// The daemon rejects the builder's certificate with another TLS alert, such as that it is revoked.
    #[error("the daemon rejects this builder's certificate ({0:?})")]
    OwnRejected(AlertDescription),
    /// The server at the address does not speak TLS.
    #[error("the server at that address does not speak TLS")]
    NoTls,
    /// The TLS handshake failed for another reason.
    #[error("{0}")]
    Handshake(Error),
    /// The connection broke during the TLS handshake.
    #[error("the connection broke during the TLS handshake")]
    Broken(#[source] io::Error),
}

/// Returns whether the error is about a certificate's period, version or encoding, and not about its signature.
pub(super) fn is_about_certificate_period_version_or_encoding(error: &Error) -> bool {
    use CertificateError::{BadEncoding, Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    match error {
        Error::InvalidCertificate(
            BadEncoding | Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        ) => true,
        Error::InvalidCertificate(error) => is_about_x509_version_1(error),
        _ => false,
    }
}

fn is_about_x509_version_1(error: &CertificateError) -> bool {
    matches!(error, CertificateError::Other(other)
        if other.0.downcast_ref::<webpki::Error>() == Some(&webpki::Error::UnsupportedCertVersion))
}

impl TlsError {
    /// Converts an error of rustls about the certificate or key in `secret`; the builder's key is in the secret `key`.
    pub(super) fn from_error_about_own_secret(secret: &str, key: &str, error: &Error) -> Self {
        use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
        let secret = secret.to_owned();
        match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => Self::KeyMismatch {
                certificate: secret,
                key: key.to_owned(),
            },
            Error::InvalidCertificate(Expired | ExpiredContext { .. }) => Self::OwnExpired { secret },
            Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => {
                Self::OwnNotYetValid { secret }
            }
            Error::InvalidCertificate(error) if is_about_x509_version_1(error) => {
                Self::OwnVersion1 { secret }
            }
            error => Self::OwnUnusable {
                secret,
                reason: error.to_string(),
            },
        }
    }

    /// Converts an error of the TLS handshake with the daemon called `name`. `has_identity` is whether the builder
    /// presented a certificate.
    pub(super) fn from_handshake(error: io::Error, name: &str, has_identity: bool) -> Self {
        let Some(tls) = error.get_ref().and_then(|error| error.downcast_ref::<Error>()) else {
            return Self::Broken(error);
        };
        match tls {
            Error::InvalidCertificate(error) => Self::from_daemons_certificate(error, name),
            // Before TLS 1.3 there was no separate alert for a missing certificate.
            Error::AlertReceived(AlertDescription::CertificateRequired) => Self::NoClientCertificate,
            Error::AlertReceived(AlertDescription::BadCertificate | AlertDescription::HandshakeFailure)
                if !has_identity =>
            {
                Self::NoClientCertificate
            }
            Error::AlertReceived(AlertDescription::UnknownCA) => Self::OwnUnknownAuthority,
            Error::AlertReceived(AlertDescription::CertificateExpired) => Self::OwnOutsideValidity,
            Error::AlertReceived(
                alert @ (AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                | AlertDescription::AccessDenied),
            ) => Self::OwnRejected(*alert),
            Error::InvalidMessage(_) => Self::NoTls,
            other => Self::Handshake(other.clone()),
        }
    }

    /// Converts an error of rustls about the daemon's certificate, which should be valid for `name`.
    fn from_daemons_certificate(error: &CertificateError, name: &str) -> Self {
        use CertificateError::{
            Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet,
            NotValidYetContext, UnknownIssuer,
        };
        match error {
            Expired | ExpiredContext { .. } => Self::Expired,
            NotValidYet | NotValidYetContext { .. } => Self::NotYetValid,
            UnknownIssuer | CertificateError::BadSignature => Self::UnknownAuthority,
            NotValidForName | NotValidForNameContext { .. } => Self::WrongName {
                name: name.to_owned(),
            },
            error if is_about_x509_version_1(error) => Self::Version1,
            error => Self::Certificate(error.clone()),
        }
    }
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        Self::other(error)
    }
}
