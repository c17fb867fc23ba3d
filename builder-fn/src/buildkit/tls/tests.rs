//! Tests of TLS handshakes between a builder and a daemon, with every kind of faulty certificate.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};
use rustls::ServerConfig;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use super::*;

/// A self-signed certificate of X.509 version 1, as `openssl x509 -req` makes without extensions.
const VERSION_1_CERTIFICATE_PEM: &str = include_str!("version1.pem");

/// A certificate authority, generated for a test.
struct TestAuthority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
#[derive(Clone)]
struct TestIdentity {
    certificate: String,
    key: String,
}

/// The validity period of a test certificate.
#[derive(Clone, Copy)]
enum CertificateValidity {
    Now,
    Past,
    Future,
}

impl TestAuthority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    fn certificate_pem(&self) -> String {
        self.0.pem()
    }

    /// Issues a certificate for a server or a client called `name`.
    fn issue_certificate(&self, name: &str, validity: CertificateValidity) -> TestIdentity {
        let mut params = CertificateParams::new([name.to_owned()]).expect("parameters");
        (params.not_before, params.not_after) = match validity {
            CertificateValidity::Now => (date_time_ymd(2000, 1, 1), date_time_ymd(3000, 1, 1)),
            CertificateValidity::Past => (date_time_ymd(2000, 1, 1), date_time_ymd(2001, 1, 1)),
            CertificateValidity::Future => (date_time_ymd(2999, 1, 1), date_time_ymd(3000, 1, 1)),
        };
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().expect("a key");
        TestIdentity {
            certificate: params.signed_by(&key, &self.0).expect("a certificate").pem(),
            key: key.serialize_pem(),
        }
    }
}

/// A temporary folder with the builder's TLS secrets.
struct SecretFolder {
    folder: tempfile::TempDir,
}

impl SecretFolder {
    /// Creates the secrets `ca` with the authority's certificate, and, with an identity, `cert` and `key`.
    fn new(authority_pem: &str, identity: Option<&TestIdentity>) -> Self {
        let folder = Self {
            folder: tempfile::tempdir().expect("folder"),
        };
        folder.write_secret("ca", authority_pem);
        if let Some(TestIdentity { certificate, key }) = identity {
            folder.write_secret("cert", certificate);
            folder.write_secret("key", key);
        }
        folder
    }

    /// Creates a secret, or replaces it at once.
    fn write_secret(&self, name: &str, content: &str) {
        // Secrets are rotated by a rename.
        let next = self.folder.path().join("next");
        std::fs::write(&next, content).expect("write");
        std::fs::rename(&next, self.folder.path().join(name)).expect("rename");
    }

    fn tls_secrets(&self) -> TlsSecrets {
        TlsSecrets {
            secrets: Secrets::new(self.folder.path()),
            authority: "ca".into(),
            certificate: "cert".into(),
            key: "key".into(),
        }
    }

    /// Checks the TLS secrets in the folder, and returns the text of the expected error.
    fn text_of_expected_check_error(&self) -> String {
        self.tls_secrets()
            .check_usable()
            .expect_err("an error")
            .to_string()
    }
}

/// A certificate resolver that presents a certificate without checking it.
#[derive(Debug)]
struct FixedCertificateResolver(Arc<CertifiedKey>);

impl ResolvesServerCert for FixedCertificateResolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// Returns a TLS server that presents `identity`, and asks for a client certificate of `client_authority` if given.
fn tls_server(identity: &TestIdentity, client_authority: Option<&TestAuthority>) -> TlsAcceptor {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("versions");
    let builder = match client_authority {
        None => builder.with_no_client_auth(),
        Some(client_authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(client_authority.0.der().clone()).expect("a root");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .expect("a verifier");
            builder.with_client_cert_verifier(verifier)
        }
    };
    let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes())
        .collect::<Result<_, _>>()
        .expect("a chain");
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).expect("a key");
    let key = CertifiedKey::new(chain, any_supported_type(&key).expect("a key"));
    let config = builder.with_cert_resolver(Arc::new(FixedCertificateResolver(Arc::new(key))));
    TlsAcceptor::from(Arc::new(config))
}

/// Connects to `daemon` over TLS with the secrets in `folder`, and returns the text of the error if one side rejects
/// the other.
async fn connect_over_tls_and_expect_first_bytes(
    daemon: TlsAcceptor,
    folder: &SecretFolder,
) -> Result<(), String> {
    let config = folder
        .tls_secrets()
        .read_client_config()
        .map_err(|error| error.to_string())?;
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    tokio::spawn(async move {
        if let Ok(mut stream) = daemon.accept(theirs).await {
            stream.write_all(b"settings").await.expect("write");
            stream.flush().await.expect("flush");
            // Waits until the other side has closed the connection.
            let _ = stream.read(&mut [0]).await;
        }
    });
    let name = ServerName::try_from("buildkit").expect("name");
    let mut stream = perform_tls_handshake_and_await_first_bytes_for_5_seconds(ours, name, config)
        .await
        .map_err(|error| error.to_string())?;
    let mut greeting = [0; 8];
    stream.read_exact(&mut greeting).await.expect("the greeting");
    assert_eq!(&greeting, b"settings", "the first bytes are not lost");
    Ok(())
}

#[tokio::test]
async fn builder_and_daemon_authenticate_each_other_and_a_rotated_tls_secret_is_used_at_once() {
    let (first, second) = (TestAuthority::new("first"), TestAuthority::new("second"));
    let secrets = SecretFolder::new(
        &first.certificate_pem(),
        Some(&first.issue_certificate("builder", CertificateValidity::Now)),
    );
    let ours = || {
        tls_server(
            &first.issue_certificate("buildkit", CertificateValidity::Now),
            Some(&first),
        )
    };
    let theirs = || {
        tls_server(
            &second.issue_certificate("buildkit", CertificateValidity::Now),
            Some(&second),
        )
    };

    connect_over_tls_and_expect_first_bytes(ours(), &secrets)
        .await
        .expect("trust");
    connect_over_tls_and_expect_first_bytes(theirs(), &secrets)
        .await
        .expect_err("another authority");

    // Both authorities at once, as during a rotation of authorities.
    secrets.write_secret(
        "ca",
        &format!("{}{}", first.certificate_pem(), second.certificate_pem()),
    );
    let TestIdentity { certificate, key } = second.issue_certificate("builder", CertificateValidity::Now);
    secrets.write_secret("cert", &certificate);
    secrets.write_secret("key", &key);
    connect_over_tls_and_expect_first_bytes(theirs(), &secrets)
        .await
        .expect("trust");
    connect_over_tls_and_expect_first_bytes(ours(), &secrets)
        .await
        .expect_err("the daemon does not trust the new certificate");
}

#[tokio::test]
async fn a_builder_without_a_certificate_connects_to_a_daemon_that_asks_for_none() {
    let authority = TestAuthority::new("one");
    let daemon = tls_server(
        &authority.issue_certificate("buildkit", CertificateValidity::Now),
        None,
    );

    connect_over_tls_and_expect_first_bytes(daemon, &SecretFolder::new(&authority.certificate_pem(), None))
        .await
        .expect("trust");
}

#[tokio::test]
async fn a_tls_error_names_the_fault_of_the_daemons_certificate() {
    let (authority, other) = (TestAuthority::new("one"), TestAuthority::new("other"));
    let secrets = SecretFolder::new(
        &authority.certificate_pem(),
        Some(&authority.issue_certificate("builder", CertificateValidity::Now)),
    );
    let version_1 = TestIdentity {
        certificate: VERSION_1_CERTIFICATE_PEM.into(),
        ..authority.issue_certificate("buildkit", CertificateValidity::Now)
    };
    for (identity, reason) in [
        (
            authority.issue_certificate("buildkit", CertificateValidity::Past),
            "the daemon's certificate has expired",
        ),
        (
            authority.issue_certificate("buildkit", CertificateValidity::Future),
            "the daemon's certificate is not valid yet",
        ),
        (
            other.issue_certificate("buildkit", CertificateValidity::Now),
            "is not signed by the authority that this builder trusts",
        ),
        (
            authority.issue_certificate("elsewhere", CertificateValidity::Now),
            "is not for the name \"buildkit\"",
        ),
        (version_1, "the daemon's certificate is X.509 version 1"),
    ] {
        let error =
            connect_over_tls_and_expect_first_bytes(tls_server(&identity, Some(&authority)), &secrets)
                .await
                .expect_err(reason);
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[tokio::test]
async fn a_tls_error_says_whether_the_builders_certificate_is_missing_or_not_trusted() {
    let (authority, other) = (TestAuthority::new("one"), TestAuthority::new("other"));
    let identity = authority.issue_certificate("buildkit", CertificateValidity::Now);
    for (own, reason) in [
        (
            None,
            "asks for a client certificate, and this builder was given none",
        ),
        (
            Some(other.issue_certificate("builder", CertificateValidity::Now)),
            "does not trust the authority that this builder's certificate is signed by",
        ),
    ] {
        let secrets = SecretFolder::new(&authority.certificate_pem(), own.as_ref());
        let error =
            connect_over_tls_and_expect_first_bytes(tls_server(&identity, Some(&authority)), &secrets)
                .await
                .expect_err(reason);
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[tokio::test]
async fn the_error_for_a_server_without_tls_says_that_it_does_not_speak_tls() {
    let authority = TestAuthority::new("one");
    let secrets = SecretFolder::new(&authority.certificate_pem(), None);
    let (ours, mut theirs) = tokio::io::duplex(64 << 10);
    theirs
        .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        .await
        .expect("write");
    let name = ServerName::try_from("buildkit").expect("name");

    let error = perform_tls_handshake_and_await_first_bytes_for_5_seconds(
        ours,
        name,
        secrets.tls_secrets().read_client_config().expect("secrets"),
    )
    .await
    .err()
    .expect("no TLS");

    assert_eq!(error.to_string(), "the server at that address does not speak TLS");
}

#[test]
fn unusable_tls_secrets_are_reported_before_any_connection() {
    let authority = TestAuthority::new("one");
    let good = authority.issue_certificate("builder", CertificateValidity::Now);
    let with = |certificate: &str, key: &str| {
        let identity = TestIdentity {
            certificate: certificate.into(),
            key: key.into(),
        };
        SecretFolder::new(&authority.certificate_pem(), Some(&identity)).text_of_expected_check_error()
    };
    let past = authority.issue_certificate("builder", CertificateValidity::Past);
    let future = authority.issue_certificate("builder", CertificateValidity::Future);
    for (error, reason) in [
        (
            with(&past.certificate, &past.key),
            "the certificate in secret cert has expired",
        ),
        (
            with(&future.certificate, &future.key),
            "the certificate in secret cert is not valid yet",
        ),
        (
            with(&good.certificate, &past.key),
            "the key in secret key does not belong to the certificate in secret cert",
        ),
        (
            with(VERSION_1_CERTIFICATE_PEM, &good.key),
            "the certificate in secret cert is X.509 version 1",
        ),
        (
            with("nothing", &good.key),
            "secret cert should hold a certificate in PEM",
        ),
        (
            with(&good.certificate, "nothing"),
            "secret key should hold a private key in PEM",
        ),
        (
            SecretFolder::new("nothing", None).text_of_expected_check_error(),
            "secret ca should hold a certificate in PEM",
        ),
    ] {
        assert!(error.contains(reason), "{reason}: {error}");
    }
    let half = SecretFolder::new(&authority.certificate_pem(), Some(&good));
    std::fs::remove_file(half.folder.path().join("key")).expect("remove");
    assert!(
        half.text_of_expected_check_error()
            .contains("secret key is missing")
    );
    let nothing = SecretFolder::new(&authority.certificate_pem(), None);
    std::fs::remove_file(nothing.folder.path().join("ca")).expect("remove");
    assert!(
        nothing
            .text_of_expected_check_error()
            .contains("secret ca is missing")
    );
}

#[test]
fn the_debug_output_of_tls_secrets_contains_no_private_key() {
    let authority = TestAuthority::new("one");
    let identity = authority.issue_certificate("builder", CertificateValidity::Now);
    let folder = SecretFolder::new(&authority.certificate_pem(), Some(&identity));
    let secrets = folder.tls_secrets();
    secrets.check_usable().expect("valid secrets");
    let key = identity.key.lines().nth(1).expect("a line of the key");
    assert!(!format!("{secrets:?}").contains(key));
    assert!(Path::new(secrets.secrets.directory()).is_dir());
}
