//! Sealing of build secrets to a builder's public key, in the format of OpenFaaS: go-sdk `seal/seal.go`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crypto_box::aead::Aead as _;
use crypto_box::{PublicKey, SalsaBox, SecretKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Value, json};

use crate::failure::Failure;

/// The length of the nonce before each sealed value, in bytes.
const NONCE_BYTES: usize = 24;

/// The error for an answer to `GET /publickey` that is not a public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer to GET /publickey should have the 32 bytes of a key in base64 as its public_key")]
pub(crate) struct PublicKeyError;

/// Parses the answer to `GET /publickey`.
pub(crate) fn parse_public_key(answer: &Value) -> Result<PublicKey, PublicKeyError> {
    let text = answer["public_key"].as_str().ok_or(PublicKeyError)?;
    let bytes = STANDARD.decode(text.trim()).map_err(|_| PublicKeyError)?;
    PublicKey::from_slice(&bytes).map_err(|_| PublicKeyError)
}

/// Seals the content of each secret's file to `recipient`, and returns the envelope. It is JSON, which is YAML, too.
///
/// # Errors
/// Fails if a file cannot be read or the system has no random bytes.
pub(crate) fn seal_secrets(
    recipient: &PublicKey,
    files: &BTreeMap<String, PathBuf>,
) -> Result<String, Failure> {
    let no_random_bytes = || {
        Failure::platform(
            "could not seal the build secrets: the system has no random bytes",
            "run it where the system call getrandom is allowed: a container's seccomp profile may deny it",
        )
    };
    let random = SystemRandom::new();
    let mut own = [0; 32];
    random.fill(&mut own).map_err(|_| no_random_bytes())?;
    let sender = SecretKey::from(own);
    let sealing = SalsaBox::new(recipient, &sender);
    let mut secrets = BTreeMap::new();
    for (name, path) in files {
        let value = fs::read(path).map_err(|error| {
            Failure::usage(
                format!(
                    "could not read {} for the build secret {name}: {error}",
                    path.display()
                ),
                "correct build_secrets in the stack file",
            )
        })?;
        let mut nonce = [0; NONCE_BYTES];
        random.fill(&mut nonce).map_err(|_| no_random_bytes())?;
        let sealed = sealing
            .encrypt(&nonce.into(), value.as_slice())
            .map_err(|_| no_random_bytes())?;
        secrets.insert(name, STANDARD.encode([&nonce[..], &sealed].concat()));
    }
    let key = STANDARD.encode(recipient.as_bytes());
    let envelope = json!({
        "version": "v1",
        "algorithm": "nacl/box",
        "key_id": key.get(..8),
        "public_key": STANDARD.encode(sender.public_key().as_bytes()),
        "secrets": secrets,
    });
    Ok(format!("{envelope}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_value_is_opened_with_the_private_key_and_only_the_name_is_readable() {
        let private = SecretKey::from([7; 32]);
        let public = private.public_key();
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        fs::write(&path, "hush\n").expect("a file");
        let answer = json!({"public_key": STANDARD.encode(public.as_bytes())});
        let recipient = parse_public_key(&answer).expect("a key");
        let text = seal_secrets(&recipient, &[("token".to_owned(), path)].into()).expect("an envelope");

        let envelope: Value = serde_saphyr::from_str(&text).expect("YAML");
        assert_eq!(
            (&envelope["version"], &envelope["algorithm"]),
            (&json!("v1"), &json!("nacl/box"))
        );
        assert_eq!(envelope["key_id"], STANDARD.encode(public.as_bytes())[..8]);
        let sender = parse_public_key(&envelope).expect("the sender's key");
        let sealed = STANDARD
            .decode(envelope["secrets"]["token"].as_str().expect("text"))
            .expect("base64");
        let nonce: [u8; NONCE_BYTES] = sealed[..NONCE_BYTES].try_into().expect("a nonce");
        let opened = SalsaBox::new(&sender, &private).decrypt(&nonce.into(), &sealed[NONCE_BYTES..]);
        assert_eq!(opened.expect("it opens"), b"hush\n");
        assert!(!text.contains("hush"));
    }

    #[test]
    fn an_answer_without_a_key_is_an_error() {
        for answer in [
            json!({}),
            json!({"public_key": "x"}),
            json!({"public_key": "YWJj"}),
        ] {
            assert_eq!(parse_public_key(&answer).err(), Some(PublicKeyError), "{answer}");
        }
    }
}
