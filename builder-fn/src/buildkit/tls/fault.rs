//! What keeps a daemon and this builder from trusting each other, told apart.

use std::io;

use function_host::secret::SecretError;
use rustls::{AlertDescription, CertificateError, Error, InconsistentKeys};

/// Why there is no TLS connection. The texts go behind "the connection to BuildKit is not secure:".
#[derive(Debug, thiserror::Error)]
pub enum TlsFault {
    /// A secret that is needed cannot be read.
    #[error(transparent)]
    Secret(SecretError),
    /// A secret that holds something else.
    #[error("secret {secret} should hold a {what} in PEM")]
    NothingIn {
        /// Its name.
        secret: String,
        /// What it should hold.
        what: &'static str,
    },
    /// Our key belongs to another certificate.
    #[error("the key in secret {key} does not belong to the certificate in secret {certificate}")]
    KeyDoesNotFit {
        /// Where the certificate is.
        certificate: String,
        /// Where the key is.
        key: String,
    },
    /// Our certificate's time is over.
    #[error("the certificate in secret {secret} has expired")]
    OwnExpired {
        /// Where it is.
        secret: String,
    },
    /// Our certificate's time has not come.
    #[error("the certificate in secret {secret} is not valid yet")]
    OwnNotYetValid {
        /// Where it is.
        secret: String,
    },
    /// Our certificate is of the first version of the format.
    #[error("the certificate in secret {secret} is X.509 version 1; make it anew as version 3")]
    OwnVersion1 {
        /// Where it is.
        secret: String,
    },
    /// Anything else about a certificate or key of ours.
    #[error("what is in secret {secret} cannot be used: {reason}")]
    OwnUnusable {
        /// Where it is.
        secret: String,
        /// What rustls says.
        reason: String,
    },
    /// The daemon's certificate's time is over.
    #[error("the daemon's certificate has expired")]
    Expired,
    /// The daemon's certificate's time has not come.
    #[error("the daemon's certificate is not valid yet")]
    NotYetValid,
    /// The daemon's certificate is signed by somebody else.
    #[error("the daemon's certificate is not signed by the authority that this builder trusts")]
    UnknownAuthority,
    /// The daemon's certificate is for other names.
    #[error("the daemon's certificate is not for the name {name:?}")]
    WrongName {
        /// The name that it should be for.
        name: String,
    },
    /// The daemon's certificate is of the first version of the format.
    #[error(
        "the daemon's certificate is X.509 version 1; make it anew as version 3, with subject alternative names"
    )]
    Version1,
    /// The daemon's certificate has something else about it.
    #[error("the daemon's certificate cannot be trusted: {0}")]
    Certificate(CertificateError),
    /// The daemon wants a certificate, and we have none.
    #[error("the daemon asks for a client certificate, and this builder was given none")]
    NoClientCertificate,
    /// The daemon does not know the authority of ours.
    #[error("the daemon does not trust the authority that this builder's certificate is signed by")]
    OwnUnknownAuthority,
    /// The daemon finds ours outside its time.
    #[error("the daemon finds this builder's certificate expired, or not valid yet")]
    OwnOutOfTime,
    /// The daemon does not say why.
    #[error("the daemon refuses this builder's certificate ({0:?})")]
    OwnRefused(AlertDescription),
    /// What answers speaks no TLS.
    #[error("what listens there does not speak TLS")]
    NoTls,
    /// Anything else that TLS finds wrong.
    #[error("{0}")]
    Handshake(Error),
    /// The connection broke.
    #[error("the connection broke while it was being secured")]
    Broken(#[source] io::Error),
}

/// Whether what is wrong with a certificate is its time, its version or its form, whoever has signed it.
pub(super) fn is_about_itself(error: &Error) -> bool {
    use CertificateError::{BadEncoding, Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    match error {
        Error::InvalidCertificate(
            BadEncoding | Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        ) => true,
        Error::InvalidCertificate(error) => is_version_1(error),
        _ => false,
    }
}

fn is_version_1(error: &CertificateError) -> bool {
    matches!(error, CertificateError::Other(other)
        if other.0.downcast_ref::<webpki::Error>() == Some(&webpki::Error::UnsupportedCertVersion))
}

impl TlsFault {
    /// What is wrong with `secret`, or with it and the key in `key`.
    pub(super) fn of_secret(secret: &str, key: &str, error: &Error) -> Self {
        use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
        let secret = secret.to_owned();
        match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => Self::KeyDoesNotFit {
                certificate: secret,
                key: key.to_owned(),
            },
            Error::InvalidCertificate(Expired | ExpiredContext { .. }) => Self::OwnExpired { secret },
            Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => {
                Self::OwnNotYetValid { secret }
            }
            Error::InvalidCertificate(error) if is_version_1(error) => Self::OwnVersion1 { secret },
            error => Self::OwnUnusable {
                secret,
                reason: error.to_string(),
            },
        }
    }

    /// What `error` says about a connection to the daemon called `name`, which was shown a certificate of ours if
    /// there is one.
    pub(super) fn of_handshake(error: io::Error, name: &str, has_identity: bool) -> Self {
        let Some(tls) = error.get_ref().and_then(|error| error.downcast_ref::<Error>()) else {
            return Self::Broken(error);
        };
        match tls {
            Error::InvalidCertificate(error) => Self::of_daemon(error, name),
            // Before TLS 1.3 there was no alert of its own for a certificate that is missing.
            Error::AlertReceived(AlertDescription::CertificateRequired) => Self::NoClientCertificate,
            Error::AlertReceived(AlertDescription::BadCertificate | AlertDescription::HandshakeFailure)
                if !has_identity =>
            {
                Self::NoClientCertificate
            }
            Error::AlertReceived(AlertDescription::UnknownCA) => Self::OwnUnknownAuthority,
            Error::AlertReceived(AlertDescription::CertificateExpired) => Self::OwnOutOfTime,
            Error::AlertReceived(
                alert @ (AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                | AlertDescription::AccessDenied),
            ) => Self::OwnRefused(*alert),
            Error::InvalidMessage(_) => Self::NoTls,
            other => Self::Handshake(other.clone()),
        }
    }

    fn of_daemon(error: &CertificateError, name: &str) -> Self {
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
            error if is_version_1(error) => Self::Version1,
            error => Self::Certificate(error.clone()),
        }
    }
}

impl From<TlsFault> for io::Error {
    fn from(fault: TlsFault) -> Self {
        Self::other(fault)
    }
}
