//! Seals records with keys from the secret `deploy-secret`, which builder-fn and deployer-fn have, and no caller.
//!
//! Each tenant has a key of its own. Of several keys in the secret the first one seals and all open, so that the secret
//! can be rotated as for hand-overs.

use crypto_box::aead::Aead;
use crypto_box::{SalsaBox, SecretKey};
use function_host::{Secret, Secrets};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::StoreError;
use crate::hand_over::DEPLOY_SECRET_NAME;

/// The length of a nonce, which precedes what is sealed, in bytes.
const NONCE_BYTES: usize = 24;

/// What is sealed. Each has keys of its own, so that none can be taken for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SealedContent {
    /// A record.
    Record,
    /// The body of a request.
    Body,
    /// A version of a function.
    Version,
    /// What a build was made from.
    Inputs,
}

impl SealedContent {
    /// Returns the text that precedes the name of the tenant in what a key is derived from.
    fn purpose(self) -> &'static str {
        match self {
            Self::Record => "slipway: key for the records of builds of the tenant ",
            Self::Body => "slipway: key for the accepted requests of the tenant ",
            Self::Version => "slipway: key for the versions of functions of the tenant ",
            Self::Inputs => "slipway: key for the inputs of builds of the tenant ",
        }
    }
}

/// Seals and opens records. The secret is read for each, so that a rotated one is used at once.
#[derive(Debug)]
pub(super) struct RecordSeal {
    secrets: Secrets,
}

impl RecordSeal {
    pub(super) fn new(secrets: Secrets) -> Self {
        Self { secrets }
    }

    /// Derives the key of content hashes from the secret; `None` if it has none.
    pub(super) fn content_hash_key(&self) -> Option<[u8; 32]> {
        let secret = self.secrets.read_secret(DEPLOY_SECRET_NAME).ok()?;
        let mut lines = secret
            .expose()
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::trim_ascii);
        let first = lines.find(|line| !line.is_empty())?;
        let mut derivation = Hmac::<Sha256>::new_from_slice(first).ok()?;
        derivation.update(b"slipway: key for the hashes of contents");
        Some(derivation.finalize().into_bytes().into())
    }

    /// Seals `plain` for the records of a tenant.
    ///
    /// # Errors
    /// Fails if the secret has no key.
    pub(super) fn seal(
        &self,
        content: SealedContent,
        tenant: &Option<String>,
        plain: &[u8],
    ) -> Result<Vec<u8>, StoreError> {
        let keys = self.read_keys(content, tenant)?;
        let [key, ..] = &keys[..] else {
            return Err(StoreError::NoKey);
        };
        let mut nonce = [0; NONCE_BYTES];
        // 24 bytes at random repeat in no number of records.
        for (part, random) in nonce
            .chunks_mut(16)
            .zip(std::iter::repeat_with(uuid::Uuid::new_v4))
        {
            let length = part.len();
            part.copy_from_slice(random.as_bytes().get(..length).unwrap_or_default());
        }
        let sealed = key.encrypt(&nonce.into(), plain).map_err(|_| StoreError::NoKey)?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// Opens what was sealed for the records of a tenant.
    ///
    /// # Errors
    /// Fails if no key of the secret opens it.
    pub(super) fn open(
        &self,
        content: SealedContent,
        tenant: &Option<String>,
        sealed: &[u8],
    ) -> Result<Vec<u8>, StoreError> {
        let (nonce, text) = sealed
            .split_at_checked(NONCE_BYTES)
            .ok_or(StoreError::Malformed)?;
        let keys = self.read_keys(content, tenant)?;
        let mut opened = keys.iter().map(|key| key.decrypt(nonce.into(), text));
        opened.find_map(Result::ok).ok_or(StoreError::OtherKey)
    }

    fn read_keys(
        &self,
        content: SealedContent,
        tenant: &Option<String>,
    ) -> Result<Vec<SalsaBox>, StoreError> {
        let secret = self
            .secrets
            .read_secret(DEPLOY_SECRET_NAME)
            .map_err(StoreError::Key)?;
        Ok(derive_keys(&secret, content, tenant.as_deref()))
    }
}

/// Derives a key from each line of the secret, by HMAC-SHA256.
fn derive_keys(secret: &Secret, content: SealedContent, tenant: Option<&str>) -> Vec<SalsaBox> {
    let lines = secret
        .expose()
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii);
    let keys = lines.filter(|line| !line.is_empty()).filter_map(|line| {
        let mut derivation = Hmac::<Sha256>::new_from_slice(line).ok()?;
        derivation.update(content.purpose().as_bytes());
        // No tenant has the empty name.
        derivation.update(tenant.unwrap_or_default().as_bytes());
        let derived = Zeroizing::new(<[u8; 32]>::from(derivation.finalize().into_bytes()));
        let key = SecretKey::from_slice(&derived[..]).ok()?;
        // With both halves of one key pair, the box is a symmetric one.
        Some(SalsaBox::new(&key.public_key(), &key))
    });
    keys.collect()
}

#[cfg(test)]
mod tests {
    use super::SealedContent::{Body, Record};
    use super::*;

    fn seal_with(secret: &str) -> (tempfile::TempDir, RecordSeal) {
        let folder = tempfile::tempdir().expect("folder");
        std::fs::write(folder.path().join(DEPLOY_SECRET_NAME), secret).expect("secret");
        let seal = RecordSeal::new(Secrets::new(folder.path()));
        (folder, seal)
    }

    #[test]
    fn a_record_is_opened_with_the_keys_of_its_tenant_only_also_after_a_rotation() {
        let acme = Some("acme".to_owned());
        let (_old, old) = seal_with("the old key of the deployer\n");
        let sealed = old.seal(Record, &acme, b"a record").unwrap();
        assert!(!sealed.windows(6).any(|part| part == b"record"));
        assert_ne!(
            sealed,
            old.seal(Record, &acme, b"a record").unwrap(),
            "each has its own nonce"
        );

        let (_new, rotated) = seal_with("a new key of the deployer\nthe old key of the deployer\n");
        assert_eq!(rotated.open(Record, &acme, &sealed).unwrap(), b"a record");
        let resealed = rotated.seal(Record, &acme, b"a record").unwrap();
        assert!(matches!(
            old.open(Record, &acme, &resealed),
            Err(StoreError::OtherKey)
        ));

        for other in [None, Some("acm".to_owned())] {
            assert!(
                matches!(rotated.open(Record, &other, &sealed), Err(StoreError::OtherKey)),
                "{other:?}"
            );
        }
        assert!(
            matches!(old.open(Body, &acme, &sealed), Err(StoreError::OtherKey)),
            "a record is no body"
        );
        let mut changed = sealed.clone();
        changed[30] ^= 1;
        assert!(matches!(
            old.open(Record, &acme, &changed),
            Err(StoreError::OtherKey)
        ));
        assert!(matches!(
            old.open(Record, &acme, &sealed[..20]),
            Err(StoreError::Malformed)
        ));
    }

    #[test]
    fn nothing_is_sealed_without_a_key() {
        let (folder, seal) = seal_with("\n");
        assert!(matches!(seal.seal(Record, &None, b"x"), Err(StoreError::Key(_))));
        std::fs::remove_file(folder.path().join(DEPLOY_SECRET_NAME)).unwrap();
        assert!(matches!(seal.seal(Record, &None, b"x"), Err(StoreError::Key(_))));
    }
}
