//! Seals build secrets as faas-cli does: go-sdk `seal/seal.go`.

use anyhow::{Result, anyhow};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use crypto_box::{SalsaBox, SecretKey, aead::Aead as _};
use ring::rand::{SecureRandom as _, SystemRandom};

/// A builder's private key; secrets are sealed to its public key.
pub struct BuilderPrivateKey([u8; 32]);

impl BuilderPrivateKey {
    /// Returns a new key.
    pub fn generate() -> Result<Self> {
        Ok(Self(random_bytes()?))
    }

    /// Returns the content of the builder's file with the key.
    pub fn private_key_file_content(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// Returns an envelope with one secret.
    pub fn seal_secret(&self, name: &str, value: &str) -> Result<String> {
        self.seal_secrets(&[(name, value)])
    }

    /// Returns an envelope with these secrets, each a name and a value.
    pub fn seal_secrets(&self, secrets: &[(&str, &str)]) -> Result<String> {
        let public = SecretKey::from(self.0).public_key();
        let sender = SecretKey::from(random_bytes::<32>()?);
        let text = STANDARD.encode(public.as_bytes());
        let mut envelope = format!(
            "version: v1\nalgorithm: nacl/box\nkey_id: {key_id}\npublic_key: {sender}\nsecrets:\n",
            key_id = &text[..8],
            sender = STANDARD.encode(sender.public_key().as_bytes()),
        );
        for (name, value) in secrets {
            let nonce: [u8; 24] = random_bytes()?;
            let sealed = SalsaBox::new(&public, &sender)
                .encrypt(&nonce.into(), value.as_bytes())
                .map_err(|_| anyhow!("the secret {name} cannot be sealed"))?;
            let value = STANDARD.encode([&nonce[..], &sealed].concat());
            envelope.push_str(&format!("  {name}: {value}\n"));
        }
        Ok(envelope)
    }
}

fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow!("the system gives no random bytes"))?;
    Ok(bytes)
}
