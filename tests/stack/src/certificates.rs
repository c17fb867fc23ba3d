//! The certificates of BuildKit and of its client builder-fn, made by the launcher when it starts the stack, and
//! replaced together at a start when less than a third of their life is left.
//!
//! The authority's key is not kept: a renewal makes a new authority, so nobody can issue another certificate.

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

use crate::{
    address::BUILDKIT_ADDRESS,
    directories::{StackDir, write_private_file},
    error::{LauncherError, Result},
};

/// The names of the secrets with which builder-fn connects to BuildKit: the authority's certificate, builder-fn's own
/// certificate, and its key.
pub(crate) const BUILDKIT_CLIENT_SECRET_NAMES: [&str; 3] = ["buildkit-ca", "buildkit-cert", "buildkit-key"];

/// The time from the making of a certificate until it expires.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The time by which a certificate begins earlier than it is made, for clocks that are behind.
const CLOCK_SKEW: Duration = Duration::from_secs(60 * 60);

/// The name of the file with the daemon's certificate, in the stack's configuration.
pub(crate) const DAEMON_CERTIFICATE_FILE: &str = "buildkit-daemon.crt";
/// The name of the file with the key of the daemon's certificate.
pub(crate) const DAEMON_KEY_FILE: &str = "buildkit-daemon.key";

/// The name of the file with the time at which the certificates expire, in seconds since 1970.
const CERTIFICATES_EXPIRY_FILE: &str = "buildkit-certificates-expire";

/// Makes the stack's certificates if they are missing or less than a third of their life is left, and returns when
/// they expire, in seconds since 1970.
pub(crate) fn ensure_certificates_and_read_expiry_seconds(dir: &StackDir) -> Result<u64> {
    ensure_certificates_as_if_at_and_read_expiry_seconds(dir, SystemTime::now())
}

/// Does the work of [`ensure_certificates_and_read_expiry_seconds`], as if the time were `now`.
fn ensure_certificates_as_if_at_and_read_expiry_seconds(dir: &StackDir, now: SystemTime) -> Result<u64> {
    let files = [DAEMON_CERTIFICATE_FILE, DAEMON_KEY_FILE].map(|name| dir.config_directory().join(name));
    let secrets = BUILDKIT_CLIENT_SECRET_NAMES.map(|name| dir.secrets_directory().join(name));
    let complete = files.iter().chain(&secrets).all(|path| path.exists());
    let path = dir.config_directory().join(CERTIFICATES_EXPIRY_FILE);
    let expiry = fs::read_to_string(&path)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    match expiry {
        Some(expiry) if complete && UNIX_EPOCH + Duration::from_secs(expiry) > now + CERTIFICATE_LIFE / 3 => {
            Ok(expiry)
        }
        _ => {
            // The time is written last: an interrupted renewal is repeated.
            let _ = fs::remove_file(&path);
            let expiry = time_since_epoch(now) + CERTIFICATE_LIFE;
            issue_certificates_into_config_and_secrets(
                dir,
                time_since_epoch(now).saturating_sub(CLOCK_SKEW),
                expiry,
            )?;
            let expiry = expiry.as_secs();
            write_private_file(&path, expiry.to_string().as_bytes())?;
            Ok(expiry)
        }
    }
}

/// Returns the time since 1970; zero for an earlier time.
fn time_since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Makes and writes the certificates of a new authority, of the daemon and of builder-fn, valid between two times since
/// 1970.
fn issue_certificates_into_config_and_secrets(
    dir: &StackDir,
    from_since_epoch: Duration,
    until_since_epoch: Duration,
) -> Result<()> {
    let failed = |error: rcgen::Error| {
        LauncherError::Environment(format!("cannot make BuildKit's certificates: {error}"))
    };
    let params = |name: &str, subjects: Vec<String>| {
        let mut params = CertificateParams::new(subjects).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(1970, 1, 1) + from_since_epoch;
        params.not_after = date_time_ymd(1970, 1, 1) + until_since_epoch;
        Ok::<_, LauncherError>(params)
    };
    let mut authority = params("slipway-stack", Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().map_err(failed)?;
    let authority = CertifiedIssuer::self_signed(authority, key).map_err(failed)?;
    let issue = |name: &str, subjects: Vec<String>, usage| {
        let mut params = params(name, subjects)?;
        params.extended_key_usages = vec![usage];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &authority).map_err(failed)?;
        Ok::<_, LauncherError>((certificate.pem(), key.serialize_pem()))
    };
    let daemon = issue(
        "buildkitd",
        vec!["buildkitd".to_owned(), BUILDKIT_ADDRESS.to_string()],
        ExtendedKeyUsagePurpose::ServerAuth,
    )?;
    let builder = issue(
        "builder-fn",
        vec!["builder-fn".to_owned()],
        ExtendedKeyUsagePurpose::ClientAuth,
    )?;
    let [authority_secret, certificate_secret, key_secret] =
        BUILDKIT_CLIENT_SECRET_NAMES.map(|name| dir.secrets_directory().join(name));
    write_private_file(&authority_secret, authority.pem().as_bytes())?;
    write_private_file(&certificate_secret, builder.0.as_bytes())?;
    write_private_file(&key_secret, builder.1.as_bytes())?;
    write_private_file(
        &dir.config_directory().join(DAEMON_CERTIFICATE_FILE),
        daemon.0.as_bytes(),
    )?;
    write_private_file(&dir.config_directory().join(DAEMON_KEY_FILE), daemon.1.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_kept_until_a_third_of_their_life_is_left_and_then_replaced_together() {
        let temp = tempfile::tempdir().unwrap();
        let dir = StackDir {
            name: "x".into(),
            root: temp.path().join("x"),
        };
        dir.create_directories().unwrap();
        let content = || {
            let all =
                [DAEMON_CERTIFICATE_FILE, DAEMON_KEY_FILE].map(|name| dir.config_directory().join(name));
            all.into_iter()
                .chain(BUILDKIT_CLIENT_SECRET_NAMES.map(|name| dir.secrets_directory().join(name)))
                .map(|path| fs::read_to_string(path).unwrap())
                .collect::<Vec<_>>()
        };
        let made = SystemTime::now();
        let expiry = ensure_certificates_as_if_at_and_read_expiry_seconds(&dir, made).unwrap();
        let first = content();
        assert_eq!(
            ensure_certificates_as_if_at_and_read_expiry_seconds(&dir, made + CERTIFICATE_LIFE * 13 / 20)
                .unwrap(),
            expiry
        );
        assert_eq!(content(), first);
        assert!(
            ensure_certificates_as_if_at_and_read_expiry_seconds(&dir, made + CERTIFICATE_LIFE * 7 / 10)
                .unwrap()
                > expiry
        );
        let second = content();
        assert!(first.iter().zip(&second).all(|(first, second)| first != second));
        fs::remove_file(dir.secrets_directory().join("buildkit-key")).unwrap();
        ensure_certificates_as_if_at_and_read_expiry_seconds(&dir, made + CERTIFICATE_LIFE * 7 / 10).unwrap();
        assert!(
            content()
                .iter()
                .zip(&second)
                .all(|(third, second)| third != second)
        );
    }
}
