//! The errors of sealed secrets, and who can fix them.

use function_host::secret::SecretError;

use super::{MAX_SECRET_VALUE_BYTES, MAX_SECRETS, MAX_TOTAL_SECRET_BYTES};

/// The error of sealed secrets that cannot be opened. The texts name secrets and never contain their values.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealedSecretsError {
    /// The private key's file is missing or unreadable.
    #[error("the builder cannot open sealed secrets")]
    Key(#[source] SecretError),
    /// The private key's file does not contain a key.
    #[error("the builder's key for sealed secrets should be 32 bytes in base64")]
    KeyFormat,
    /// The envelope of secrets is not YAML, is not a mapping, or has a field of the wrong type.
    #[error("com.openfaas.secrets is not an envelope of sealed secrets{}", line.map(|line| format!(" (line {line})")).unwrap_or_default())]
    Envelope {
        /// The line of the envelope where parsing failed.
        line: Option<u64>,
    },
    /// A field of the envelope is missing, or has an unknown value.
    #[error("{field} in com.openfaas.secrets should be {should_be}")]
    Field {
        /// The name of the wrong field.
        field: &'static str,
        /// The valid value of the field.
        should_be: &'static str,
    },
    /// The envelope was sealed to another key.
    #[error(
        "com.openfaas.secrets was sealed to key {found:?}, and the key of this builder is {own:?}; seal it to the key of \
         GET /publickey"
    )]
    OtherKey {
        /// The key ID that the envelope names.
        found: String,
        /// The ID of the builder's key.
        own: String,
    },
    /// The envelope has a secret with a name that no `RUN --mount=type=secret,id=` can have.
    #[error(
        "{name:?} in com.openfaas.secrets cannot be the name of a secret: letters, digits, '.', '_' and '-', up to 253 of them"
    )]
    Name {
        /// The secret's invalid name.
        name: String,
    },
    /// The envelope has more secrets than any build needs.
    #[error("com.openfaas.secrets has {count} secrets; {MAX_SECRETS} are allowed")]
    TooMany {
        /// The number of secrets in the envelope.
        count: usize,
    },
    /// The value of a secret is larger than BuildKit accepts.
    #[error("the secret {name:?} in com.openfaas.secrets is larger than {MAX_SECRET_VALUE_BYTES} bytes")]
    TooLarge {
        /// The name of the secret that is too large.
        name: String,
    },
    /// The values of all secrets together are larger than can be masked with the memory of a builder.
    #[error(
        "the secrets in com.openfaas.secrets have {size} bytes in total; {MAX_TOTAL_SECRET_BYTES} are allowed, because all of them are \
         masked in the build's log"
    )]
    TotalTooLarge {
        /// The number of bytes of all secret values.
        size: usize,
    },
    /// The value of a secret is damaged, or was sealed to another key although the envelope names this one.
    #[error(
        "the secret {name:?} in com.openfaas.secrets cannot be opened: it is damaged, or was sealed to another key"
    )]
    Damaged {
        /// The name of the damaged secret.
        name: String,
    },
}

impl SealedSecretsError {
    /// Returns whether the operator has to fix the error, and not the caller.
    pub(crate) fn is_platforms_fault(&self) -> bool {
        matches!(self, Self::Key(_) | Self::KeyFormat)
    }
}
