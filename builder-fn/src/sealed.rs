//! Build secrets: the caller seals them to a public key of the builder, and the builder opens them for one build.
//!
//! Each tenant has a key of its own, derived from the builder's: what is sealed to it, only builds of this tenant open.
//!
//! The format is that of OpenFaaS: go-sdk `seal/seal.go`. Names are in clear text; each value is a NaCl box of its own.

mod error;
mod opened;

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crypto_box::aead::Aead;
use crypto_box::{PublicKey, SalsaBox, SecretKey};
use function_host::Secrets;
use function_host::policy::TenantName;
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::Sha256;
use zeroize::Zeroizing;

pub(crate) use error::SealedSecretsError;
pub(crate) use opened::BuildSecrets;

const ENVELOPE_VERSION: &str = "v1";
const ENVELOPE_ALGORITHM: &str = "nacl/box";
/// The length of the nonce before each sealed value, in bytes.
const NONCE_BYTES: usize = 24;

/// The text that precedes a tenant's name in the input from which the tenant's key is derived.
const TENANT_KEY_PURPOSE: &str = "slipway: key for the build secrets of the tenant ";

/// The length of the largest secret value that BuildKit accepts, in bytes: `session/secrets/secretsprovider`.
const MAX_SECRET_VALUE_BYTES: usize = 500 << 10;

/// The limit on the number of secrets of one build.
const MAX_SECRETS: usize = 100;

/// The limit on the bytes of all secret values of one build. Masking them takes twelve times as much memory.
/// With the default `max_config`, an envelope cannot contain as much.
const MAX_TOTAL_SECRET_BYTES: usize = 1 << 20;

/// A handle of the builder's private key for sealed secrets, in a file that is read for each use.
#[derive(Clone, Debug)]
pub struct SealKeyFile {
    folder: Secrets,
    name: String,
}

impl SealKeyFile {
    /// Returns a handle of the private key in the file at `path`, without reading it.
    pub fn at(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default();
        Self {
            folder: Secrets::new(path.parent().unwrap_or(Path::new("/"))),
            name: name.to_string_lossy().into_owned(),
        }
    }

    /// Reads the key's file and returns the JSON answer to `GET /publickey`: the public key of a tenant, or the
    /// builder's.
    ///
    /// # Errors
    /// Fails if the file is missing or does not contain a key.
    pub(crate) fn public_key_answer(&self, tenant: Option<&TenantName>) -> Result<Value, SealedSecretsError> {
        let [key, ..] = &self.read_private_keys(tenant)?[..] else {
            return Err(SealedSecretsError::KeyFormat);
        };
        let public_key = encode_public_key_of(key);
        Ok(json!({"key_id": key_id(&public_key), "algorithm": ENVELOPE_ALGORITHM, "public_key": public_key}))
    }

    /// Opens all sealed secrets of an envelope, for a build of `tenant`, if there is a policy. The envelope may be
    /// sealed to the tenant's key or to the builder's.
    ///
    /// # Errors
    /// Fails if the envelope is malformed or sealed to another key, or if any of its secrets cannot be opened.
    pub(crate) fn open_envelope(
        &self,
        envelope: &[u8],
        tenant: Option<&TenantName>,
    ) -> Result<BuildSecrets, SealedSecretsError> {
        let keys = self.read_private_keys(tenant)?;
        let envelope = Envelope::parse(envelope)?;
        let ids: Vec<_> = keys
            .iter()
            .map(|key| key_id(&encode_public_key_of(key)).to_owned())
            .collect();
        let found = envelope.key_id.as_deref().filter(|found| !found.is_empty());
        let mut opened = Err(SealedSecretsError::OtherKey {
            found: found.unwrap_or_default().chars().take(64).collect(),
            own: ids.first().cloned().unwrap_or_default(),
        });
        for (key, id) in keys.iter().zip(&ids) {
            // Only an envelope without an ID is tried with another key.
            if found.is_none_or(|found| found == id) && opened.is_err() {
                opened = envelope.open_secrets(key);
            }
        }
        opened
    }

    /// Reads the private keys that open a tenant's envelopes: its own, if there is a tenant, and the builder's.
    fn read_private_keys(&self, tenant: Option<&TenantName>) -> Result<Vec<SecretKey>, SealedSecretsError> {
        let text = self
            .folder
            .read_secret(&self.name)
            .map_err(SealedSecretsError::Key)?;
        let bytes = Zeroizing::new(
            STANDARD
                .decode(text.expose())
                .map_err(|_| SealedSecretsError::KeyFormat)?,
        );
        let shared = SecretKey::from_slice(&bytes).map_err(|_| SealedSecretsError::KeyFormat)?;
        let own = tenant
            .map(|tenant| derive_tenant_key(&shared, tenant))
            .transpose()?;
        Ok(own.into_iter().chain([shared]).collect())
    }
}

/// Derives a tenant's private key from the builder's, by HMAC-SHA256. Nobody without the builder's key can.
fn derive_tenant_key(builder_key: &SecretKey, tenant: &TenantName) -> Result<SecretKey, SealedSecretsError> {
    let bytes = Zeroizing::new(builder_key.to_bytes());
    let mut derivation =
        Hmac::<Sha256>::new_from_slice(&bytes[..]).map_err(|_| SealedSecretsError::KeyFormat)?;
    derivation.update(TENANT_KEY_PURPOSE.as_bytes());
    derivation.update(tenant.as_str().as_bytes());
    let derived = Zeroizing::new(<[u8; 32]>::from(derivation.finalize().into_bytes()));
    SecretKey::from_slice(&derived[..]).map_err(|_| SealedSecretsError::KeyFormat)
}

/// A parsed envelope of sealed secrets.
struct Envelope {
    key_id: Option<String>,
    sender: PublicKey,
    secrets: BTreeMap<String, String>,
}

impl Envelope {
    /// Parses the YAML of an envelope, and checks everything but the sealed values.
    fn parse(text: &[u8]) -> Result<Self, SealedSecretsError> {
        #[derive(Deserialize)]
        struct EnvelopeFields {
            version: Option<String>,
            algorithm: Option<String>,
            key_id: Option<String>,
            public_key: Option<String>,
            secrets: Option<BTreeMap<String, Option<String>>>,
        }
        // The parser's own message repeats parts of the text.
        let fields: EnvelopeFields =
            serde_saphyr::from_slice(text).map_err(|error| SealedSecretsError::Envelope {
                line: error.location().map(|location| location.line()),
            })?;
        let wrong = |field, should_be| SealedSecretsError::Field { field, should_be };
        if fields.version.as_deref() != Some(ENVELOPE_VERSION) {
            return Err(wrong("version", ENVELOPE_VERSION));
        }
        if fields.algorithm.as_deref() != Some(ENVELOPE_ALGORITHM) {
            return Err(wrong("algorithm", ENVELOPE_ALGORITHM));
        }
        let sender = fields.public_key.and_then(|key| STANDARD.decode(key.trim()).ok());
        let sender = sender.and_then(|key| PublicKey::from_slice(&key).ok());
        let secrets = fields.secrets.unwrap_or_default().into_iter();
        // `null` counts as absent, as in the config.
        let secrets: BTreeMap<_, _> = secrets.filter_map(|(name, value)| Some((name, value?))).collect();
        if secrets.len() > MAX_SECRETS {
            return Err(SealedSecretsError::TooMany { count: secrets.len() });
        }
        if let Some(name) = secrets.keys().find(|name| !is_valid_secret_name(name)) {
            let name = name.chars().take(300).collect();
            return Err(SealedSecretsError::Name { name });
        }
        Ok(Self {
            key_id: fields.key_id,
            sender: sender.ok_or(wrong("public_key", "32 bytes in base64"))?,
            secrets,
        })
    }

    /// Opens all secrets with a private key.
    fn open_secrets(&self, key: &SecretKey) -> Result<BuildSecrets, SealedSecretsError> {
        let seal = SalsaBox::new(&self.sender, key);
        let opened = self.secrets.iter().map(|(name, sealed)| {
            let value = open_value(&seal, name, sealed)?;
            Ok((name.clone(), value))
        });
        let opened: BTreeMap<_, _> = opened.collect::<Result<_, _>>()?;
        let size = opened.values().map(|value| value.len()).sum();
        match size > MAX_TOTAL_SECRET_BYTES {
            true => Err(SealedSecretsError::TotalTooLarge { size }),
            false => Ok(BuildSecrets::new(opened)),
        }
    }
}

/// Opens the sealed value of one secret, which is base64 of the nonce and the NaCl box.
fn open_value(seal: &SalsaBox, name: &str, sealed: &str) -> Result<Zeroizing<Vec<u8>>, SealedSecretsError> {
    let damaged = || SealedSecretsError::Damaged {
        name: name.to_owned(),
    };
    let sealed = STANDARD.decode(sealed.trim()).map_err(|_| damaged())?;
    let (nonce, text) = sealed.split_at_checked(NONCE_BYTES).ok_or_else(damaged)?;
    let value = Zeroizing::new(seal.decrypt(nonce.into(), text).map_err(|_| damaged())?);
    match value.len() > MAX_SECRET_VALUE_BYTES {
        true => Err(SealedSecretsError::TooLarge {
            name: name.to_owned(),
        }),
        false => Ok(value),
    }
}

fn is_valid_secret_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=253).contains(&name.len()) && name.bytes().all(allowed) && !name.bytes().all(|byte| byte == b'.')
}

/// Returns the base64 of the public key that belongs to a private key.
fn encode_public_key_of(key: &SecretKey) -> String {
    STANDARD.encode(key.public_key().as_bytes())
}

/// Returns the ID of a public key: its first eight characters.
fn key_id(public_key: &str) -> &str {
    public_key.get(..8).unwrap_or(public_key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buildkit::SecretStore;

    /// A private key that faas-cli wrote (`secret keygen`), as the public key and the envelope (`secret seal`) below:
    /// `tests/clients/recorded/secrets.json`.
    const PRIVATE_KEY: &str = "71PAWVnhbfjrSSIrTaaFGTECn2XoUVHRxpkXMK7iNFY=";
    const PUBLIC_KEY: &str = "UWnDv86xVyoHbiUx5erolv0cwuSO9bN3hcX0c3WOmWg=";
    const ENVELOPE: &str = "version: v1\nalgorithm: nacl/box\nkey_id: UWnDv86x\n\
        public_key: wxgxx0txUKbj9O9G/SQuc5Tlf3FpifyCOitbNAeNRCk=\nsecrets:\n    \
        npmrc: AqGBHF+aUNdhe99dDqwBySBlt/MhZc4DCUa8GTcGGqrFsrFVGfDxfm/URNcYDiMAU+zbVpPB3AtT0NOFzbEMMCn0Jg==\n    \
        pip_token: 8wx/10/ldSRa34Govwn3kp2a4Nfew9ITIUlZnn46TYAwvyQMb4vYQPOMpDdO3CY=\n";

    fn seal_key_file(content: &str) -> (tempfile::TempDir, SealKeyFile) {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("key");
        std::fs::write(&path, content).expect("write");
        (folder, SealKeyFile::at(&path))
    }

    #[test]
    fn an_envelope_of_faas_cli_is_opened_also_without_a_key_id_or_with_null_entries() {
        let (_folder, key) = seal_key_file(&format!("{PRIVATE_KEY}\n"));
        let secrets = key.open_envelope(ENVELOPE.as_bytes(), None).expect("secrets");

        assert_eq!(
            secrets.secret("npmrc"),
            Some("//host/:_authToken=t0ken\nü".as_bytes())
        );
        assert_eq!(secrets.secret("pip_token"), Some(&b"s3cr3t\n"[..]));
        assert_eq!(secrets.secret("other"), None);
        assert_eq!(format!("{secrets:?}"), r#"{"npmrc", "pip_token"}"#);
        assert_eq!(
            key.public_key_answer(None).expect("a key"),
            json!({"key_id": "UWnDv86x", "algorithm": "nacl/box", "public_key": PUBLIC_KEY})
        );
        let without_id = ENVELOPE.replace("key_id: UWnDv86x\n", "");
        assert!(key.open_envelope(without_id.as_bytes(), None).is_ok());
        for (from, to) in [
            ("secrets:\n", "secrets:\n    none: null\n    nothing:\n"),
            ("key_id: UWnDv86x", "key_id: null"),
            ("version", "\u{feff}version"),
        ] {
            let changed = ENVELOPE.replace(from, to);
            let secrets = key
                .open_envelope(changed.as_bytes(), None)
                .unwrap_or_else(|error| panic!("{to}: {error}"));
            assert_eq!(format!("{secrets:?}"), r#"{"npmrc", "pip_token"}"#);
        }
    }

    #[test]
    fn an_error_names_the_field_or_the_secret_and_no_value() {
        let (_folder, key) = seal_key_file(PRIVATE_KEY);
        let many: String = (0..=MAX_SECRETS)
            .map(|name| format!("    s{name}: AAAA\n"))
            .collect();
        for (from, to, text) in [
            (
                "version: v1",
                "version: v2",
                "version in com.openfaas.secrets should be v1",
            ),
            (
                "version: v1\n",
                "",
                "version in com.openfaas.secrets should be v1",
            ),
            (
                "nacl/box",
                "rot13",
                "algorithm in com.openfaas.secrets should be nacl/box",
            ),
            (
                "key_id: UWnDv86x",
                "key_id: ABCDEFGH",
                r#"sealed to key "ABCDEFGH", and the key of this builder is "UWnDv86x""#,
            ),
            (
                "wxgxx0",
                "",
                "public_key in com.openfaas.secrets should be 32 bytes in base64",
            ),
            (
                "wxgxx0",
                "AAAAAA",
                r#"the secret "npmrc" in com.openfaas.secrets cannot be opened"#,
            ),
            (
                "8wx/10",
                "8wx/11",
                r#"the secret "pip_token" in com.openfaas.secrets cannot be opened"#,
            ),
            (
                "8wx/10",
                "(x)",
                r#"the secret "pip_token" in com.openfaas.secrets cannot be opened"#,
            ),
            (
                "pip_token",
                "../token",
                r#""../token" in com.openfaas.secrets cannot be the name"#,
            ),
            (
                "pip_token",
                "'a b'",
                r#""a b" in com.openfaas.secrets cannot be the name"#,
            ),
            (
                "    pip_token",
                &format!("{many}    pip_token"),
                "has 103 secrets; 100 are allowed",
            ),
            (
                "secrets:\n",
                "secrets: [hunter2]\n",
                "is not an envelope of sealed secrets (line ",
            ),
            (
                "version",
                "{hunter2",
                "is not an envelope of sealed secrets (line ",
            ),
        ] {
            let error = key
                .open_envelope(ENVELOPE.replace(from, to).as_bytes(), None)
                .expect_err(to);
            assert!(error.to_string().contains(text), "{to}: {error}");
            assert!(!error.is_platforms_fault() && !error.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn an_unusable_key_is_the_platforms_fault_and_a_changed_key_is_read_again() {
        let (folder, key) = seal_key_file("no key");
        assert!(matches!(
            key.public_key_answer(None),
            Err(SealedSecretsError::KeyFormat)
        ));
        std::fs::write(folder.path().join("next"), PRIVATE_KEY).expect("write");
        std::fs::rename(folder.path().join("next"), folder.path().join("key")).expect("rename");
        assert_eq!(
            key.public_key_answer(None).expect("a key")["public_key"],
            PUBLIC_KEY
        );
        std::fs::remove_file(folder.path().join("key")).expect("remove");
        let error = key
            .open_envelope(ENVELOPE.as_bytes(), None)
            .expect_err("the key is missing");
        assert!(error.is_platforms_fault());
    }

    /// Seals values of these sizes to the private key `[1; 32]`, and returns the envelope.
    fn sealed_envelope(sizes: &[usize]) -> String {
        envelope_sealed_to(&SecretKey::from([1; 32]).public_key(), sizes)
    }

    fn envelope_sealed_to(key: &PublicKey, sizes: &[usize]) -> String {
        use crypto_box::aead::generic_array::GenericArray;
        let sender = SecretKey::from([2; 32]);
        let seal = SalsaBox::new(key, &sender);
        let nonce = GenericArray::from([3; NONCE_BYTES]);
        let public = STANDARD.encode(sender.public_key().as_bytes());
        let mut envelope = format!("version: v1\nalgorithm: nacl/box\npublic_key: {public}\nsecrets:\n");
        for (index, size) in sizes.iter().enumerate() {
            let sealed = seal.encrypt(&nonce, &vec![b'x'; *size][..]).expect("sealed");
            let value = STANDARD.encode([&nonce[..], &sealed[..]].concat());
            envelope += &format!("  large-{index}: {value}\n");
        }
        envelope
    }

    #[test]
    fn a_value_may_be_as_large_as_buildkit_accepts() {
        let (_folder, key) = seal_key_file(&STANDARD.encode([1; 32]));
        for (size, is_accepted) in [
            (0, true),
            (MAX_SECRET_VALUE_BYTES, true),
            (MAX_SECRET_VALUE_BYTES + 1, false),
        ] {
            let opened = key.open_envelope(sealed_envelope(&[size]).as_bytes(), None);
            assert_eq!(opened.is_ok(), is_accepted, "{size}");
        }
    }

    #[test]
    fn secrets_of_more_than_1_mib_in_total_are_rejected() {
        let (_folder, key) = seal_key_file(&STANDARD.encode([1; 32]));
        let rest = MAX_TOTAL_SECRET_BYTES - 2 * MAX_SECRET_VALUE_BYTES;
        assert!(
            key.open_envelope(
                sealed_envelope(&[MAX_SECRET_VALUE_BYTES, MAX_SECRET_VALUE_BYTES, rest]).as_bytes(),
                None
            )
            .is_ok()
        );

        let error = key
            .open_envelope(
                sealed_envelope(&[MAX_SECRET_VALUE_BYTES, MAX_SECRET_VALUE_BYTES, rest + 1]).as_bytes(),
                None,
            )
            .expect_err("too large in total");
        assert!(
            error
                .to_string()
                .contains("have 1048577 bytes in total; 1048576 are allowed"),
            "{error}"
        );
        assert!(!error.is_platforms_fault());
    }

    #[test]
    fn what_is_sealed_to_a_tenants_key_only_its_builds_open() {
        let (_folder, key) = seal_key_file(&STANDARD.encode([1; 32]));
        let [acme, globex] = ["acme", "globex"].map(|name| name.parse::<TenantName>().expect("a name"));
        let answer = key.public_key_answer(Some(&acme)).expect("a key");
        let public = answer["public_key"].as_str().expect("text");
        let id = answer["key_id"].as_str().expect("text");
        let public_key = PublicKey::from_slice(&STANDARD.decode(public).expect("base64")).expect("a key");
        let without_id = envelope_sealed_to(&public_key, &[3]);
        for sealed in [
            without_id.clone(),
            without_id.replace("secrets:", &format!("key_id: {id}\nsecrets:")),
        ] {
            let open = |tenant| key.open_envelope(sealed.as_bytes(), tenant);
            assert_eq!(
                open(Some(&acme)).expect("its own").secret("large-0"),
                Some(&b"xxx"[..])
            );
            for other in [Some(&globex), None] {
                let error = open(other).expect_err("another's");
                assert!(!error.is_platforms_fault(), "{error}");
            }
        }
        // Another tenant that names its own key, or the builder's, does not open it either.
        for other in [Some(&globex), None] {
            let answer = key.public_key_answer(other).expect("a key");
            let id = answer["key_id"].as_str().expect("text");
            let forged = without_id.replace("secrets:", &format!("key_id: {id}\nsecrets:"));
            let error = key.open_envelope(forged.as_bytes(), Some(&globex));
            assert!(
                matches!(error, Err(SealedSecretsError::Damaged { .. })),
                "{error:?}"
            );
        }
    }

    #[test]
    fn a_tenant_may_seal_to_the_builders_key_as_clients_without_tenants_do() {
        let (_folder, key) = seal_key_file(PRIVATE_KEY);
        let acme = "acme".parse().expect("a name");
        let without_id = ENVELOPE.replace("key_id: UWnDv86x\n", "");
        for envelope in [ENVELOPE, &without_id] {
            let opened = key
                .open_envelope(envelope.as_bytes(), Some(&acme))
                .expect("secrets");
            assert_eq!(opened.secret("pip_token"), Some(&b"s3cr3t\n"[..]));
        }
    }
}
