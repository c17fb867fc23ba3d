//! Both sides, with certificates of every kind that goes wrong.

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

/// Self-signed and of the first version, as `openssl x509 -req` makes them without extensions.
const VERSION_1: &str = include_str!("version1.pem");

/// What signs.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
#[derive(Clone)]
struct Identity {
    certificate: String,
    key: String,
}

/// When a certificate is good.
#[derive(Clone, Copy)]
enum Time {
    Now,
    Past,
    Future,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn issue(&self, name: &str, time: Time) -> Identity {
        let mut params = CertificateParams::new([name.to_owned()]).expect("parameters");
        (params.not_before, params.not_after) = match time {
            Time::Now => (date_time_ymd(2000, 1, 1), date_time_ymd(3000, 1, 1)),
            Time::Past => (date_time_ymd(2000, 1, 1), date_time_ymd(2001, 1, 1)),
            Time::Future => (date_time_ymd(2999, 1, 1), date_time_ymd(3000, 1, 1)),
        };
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().expect("a key");
        Identity {
            certificate: params.signed_by(&key, &self.0).expect("a certificate").pem(),
            key: key.serialize_pem(),
        }
    }
}

/// What the builder has.
struct Secret {
    folder: tempfile::TempDir,
}

impl Secret {
    fn new(authority: &str, identity: Option<&Identity>) -> Self {
        let secret = Self {
            folder: tempfile::tempdir().expect("folder"),
        };
        secret.write("ca", authority);
        if let Some(Identity { certificate, key }) = identity {
            secret.write("cert", certificate);
            secret.write("key", key);
        }
        secret
    }

    fn write(&self, name: &str, content: &str) {
        // As a secret is rotated: another file takes the name.
        let next = self.folder.path().join("next");
        std::fs::write(&next, content).expect("write");
        std::fs::rename(&next, self.folder.path().join(name)).expect("rename");
    }

    fn read(&self) -> TlsSecrets {
        TlsSecrets {
            secrets: Secrets::new(self.folder.path()),
            authority: "ca".into(),
            certificate: "cert".into(),
            key: "key".into(),
        }
    }

    fn fault(&self) -> String {
        self.read().check().expect_err("it cannot be used").to_string()
    }
}

/// Hands out a certificate without looking at it.
#[derive(Debug)]
struct Anything(Arc<CertifiedKey>);

impl ResolvesServerCert for Anything {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// A daemon that shows `identity` and trusts whom `authority` has signed, or everybody.
fn daemon(identity: &Identity, authority: Option<&Authority>) -> TlsAcceptor {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("versions");
    let builder = match authority {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.0.der().clone()).expect("a root");
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
    let config = builder.with_cert_resolver(Arc::new(Anything(Arc::new(key))));
    TlsAcceptor::from(Arc::new(config))
}

/// What becomes of a connection to `daemon`, which greets whom it trusts.
async fn connect(daemon: TlsAcceptor, secret: &Secret) -> Result<(), String> {
    let config = secret.read().config().map_err(|fault| fault.to_string())?;
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    tokio::spawn(async move {
        if let Ok(mut stream) = daemon.accept(theirs).await {
            stream.write_all(b"settings").await.expect("write");
            stream.flush().await.expect("flush");
            // Until the other side has gone.
            let _ = stream.read(&mut [0]).await;
        }
    });
    let name = ServerName::try_from("buildkit").expect("name");
    let mut stream = handshake(ours, name, config)
        .await
        .map_err(|fault| fault.to_string())?;
    let mut greeting = [0; 8];
    stream.read_exact(&mut greeting).await.expect("the greeting");
    assert_eq!(&greeting, b"settings", "what was waited for is not lost");
    Ok(())
}

#[tokio::test]
async fn both_sides_trust_each_other_and_a_rotated_secret_is_used_at_once() {
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let secret = Secret::new(&first.pem(), Some(&first.issue("builder", Time::Now)));
    let ours = || daemon(&first.issue("buildkit", Time::Now), Some(&first));
    let theirs = || daemon(&second.issue("buildkit", Time::Now), Some(&second));

    connect(ours(), &secret).await.expect("trust");
    connect(theirs(), &secret).await.expect_err("another authority");

    // Both authorities at once, as while they change over.
    secret.write("ca", &format!("{}{}", first.pem(), second.pem()));
    let Identity { certificate, key } = second.issue("builder", Time::Now);
    secret.write("cert", &certificate);
    secret.write("key", &key);
    connect(theirs(), &secret).await.expect("trust");
    connect(ours(), &secret)
        .await
        .expect_err("the builder's old certificate is gone");
}

#[tokio::test]
async fn a_daemon_that_asks_for_no_certificate_is_given_none() {
    let authority = Authority::new("one");
    let daemon = daemon(&authority.issue("buildkit", Time::Now), None);

    connect(daemon, &Secret::new(&authority.pem(), None))
        .await
        .expect("trust");
}

#[tokio::test]
async fn what_is_wrong_with_the_daemons_certificate_is_told_apart() {
    let (authority, other) = (Authority::new("one"), Authority::new("other"));
    let secret = Secret::new(&authority.pem(), Some(&authority.issue("builder", Time::Now)));
    let version_1 = Identity {
        certificate: VERSION_1.into(),
        ..authority.issue("buildkit", Time::Now)
    };
    for (identity, reason) in [
        (
            authority.issue("buildkit", Time::Past),
            "the daemon's certificate has expired",
        ),
        (
            authority.issue("buildkit", Time::Future),
            "the daemon's certificate is not valid yet",
        ),
        (
            other.issue("buildkit", Time::Now),
            "is not signed by the authority that this builder trusts",
        ),
        (
            authority.issue("elsewhere", Time::Now),
            "is not for the name \"buildkit\"",
        ),
        (version_1, "the daemon's certificate is X.509 version 1"),
    ] {
        let error = connect(daemon(&identity, Some(&authority)), &secret)
            .await
            .expect_err(reason);
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[tokio::test]
async fn what_the_daemon_finds_wrong_with_us_is_told_apart() {
    let (authority, other) = (Authority::new("one"), Authority::new("other"));
    let identity = authority.issue("buildkit", Time::Now);
    for (own, reason) in [
        (
            None,
            "asks for a client certificate, and this builder was given none",
        ),
        (
            Some(other.issue("builder", Time::Now)),
            "does not trust the authority that this builder's certificate is signed by",
        ),
    ] {
        let secret = Secret::new(&authority.pem(), own.as_ref());
        let error = connect(daemon(&identity, Some(&authority)), &secret)
            .await
            .expect_err(reason);
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[tokio::test]
async fn what_speaks_no_tls_is_told_so() {
    let authority = Authority::new("one");
    let secret = Secret::new(&authority.pem(), None);
    let (ours, mut theirs) = tokio::io::duplex(64 << 10);
    theirs
        .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        .await
        .expect("write");
    let name = ServerName::try_from("buildkit").expect("name");

    let fault = handshake(ours, name, secret.read().config().expect("secrets"))
        .await
        .err()
        .expect("no TLS");

    assert_eq!(fault.to_string(), "what listens there does not speak TLS");
}

#[test]
fn what_is_wrong_with_our_secrets_is_told_before_anything_is_connected() {
    let authority = Authority::new("one");
    let good = authority.issue("builder", Time::Now);
    let with = |certificate: &str, key: &str| {
        let identity = Identity {
            certificate: certificate.into(),
            key: key.into(),
        };
        Secret::new(&authority.pem(), Some(&identity)).fault()
    };
    let past = authority.issue("builder", Time::Past);
    let future = authority.issue("builder", Time::Future);
    for (fault, reason) in [
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
            with(VERSION_1, &good.key),
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
            Secret::new("nothing", None).fault(),
            "secret ca should hold a certificate in PEM",
        ),
    ] {
        assert!(fault.contains(reason), "{reason}: {fault}");
    }
    let half = Secret::new(&authority.pem(), Some(&good));
    std::fs::remove_file(half.folder.path().join("key")).expect("remove");
    assert!(half.fault().contains("secret key is missing"));
    let nothing = Secret::new(&authority.pem(), None);
    std::fs::remove_file(nothing.folder.path().join("ca")).expect("remove");
    assert!(nothing.fault().contains("secret ca is missing"));
}

#[test]
fn debug_shows_no_key() {
    let authority = Authority::new("one");
    let identity = authority.issue("builder", Time::Now);
    let secret = Secret::new(&authority.pem(), Some(&identity));
    let secrets = secret.read();
    secrets.check().expect("good");
    let key = identity.key.lines().nth(1).expect("a line of it");
    assert!(!format!("{secrets:?}").contains(key));
    assert!(Path::new(secrets.secrets.directory()).is_dir());
}
