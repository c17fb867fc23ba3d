//! Why sealed secrets cannot be opened, and who can fix it.

use function_host::secret::SecretError;

use super::{MAX_SECRETS, MAX_TOTAL, MAX_VALUE};

/// Why sealed secrets cannot be opened. The texts name secrets and never contain their values.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealError {
    /// The key's file is missing or unreadable.
    #[error("the builder cannot open sealed secrets")]
    Key(#[source] SecretError),
    /// The key's file does not contain a key.
    #[error("the builder's key for sealed secrets should be 32 bytes in base64")]
    KeyFormat,
    /// The file is not YAML, or not a mapping with the fields of an envelope.
    #[error("com.openfaas.secrets is not an envelope of sealed secrets{}", line.map(|line| format!(" (line {line})")).unwrap_or_default())]
    Envelope {
        /// The line where parsing failed.
        line: Option<u64>,
    },
    /// A field is missing, or has an unknown value.
    #[error("{field} in com.openfaas.secrets should be {should_be}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// The valid value.
        should_be: &'static str,
    },
    /// The envelope was sealed to another key.
    #[error(
        "com.openfaas.secrets was sealed to key {found:?}, and the key of this builder is {own:?}; seal it to the key of \
         GET /publickey"
    )]
    OtherKey {
        /// The envelope's key id.
        found: String,
        /// The builder's key id.
        own: String,
    },
    /// A name that no `RUN --mount=type=secret,id=` can have.
    #[error(
        "{name:?} in com.openfaas.secrets cannot be the name of a secret: letters, digits, '.', '_' and '-', up to 253 of them"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The envelope has more secrets than any build needs.
    #[error("com.openfaas.secrets has {count} secrets; {MAX_SECRETS} are allowed")]
    TooMany {
        /// The number of secrets.
        count: usize,
    },
    /// A value is larger than BuildKit accepts.
    #[error("the secret {name:?} in com.openfaas.secrets is larger than {MAX_VALUE} bytes")]
    TooLarge {
        /// The secret's name.
        name: String,
    },
    /// All values together are larger than can be masked with the memory of a builder.
    #[error(
        "the secrets in com.openfaas.secrets have {size} bytes in total; {MAX_TOTAL} are allowed, because all of them are \
         masked in the build's log"
    )]
    TotalTooLarge {
        /// Bytes of all values.
        size: usize,
    },
    /// A value is damaged, or was sealed to another key although the envelope names this one.
    #[error(
        "the secret {name:?} in com.openfaas.secrets cannot be opened: it is damaged, or was sealed to another key"
    )]
    Damaged {
        /// The secret's name.
        name: String,
    },
}

impl SealError {
    /// Returns whether the operator can fix it, and not the caller.
    pub(crate) fn is_platforms(&self) -> bool {
        matches!(self, Self::Key(_) | Self::KeyFormat)
    }
}
