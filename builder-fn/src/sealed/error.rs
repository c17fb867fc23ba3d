//! Why secrets cannot be opened, and whose doing that is.

use function_host::secret::SecretError;

use super::{MAX_SECRETS, MAX_VALUE};

/// Why secrets cannot be opened. Names them, and never says anything of their values.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key's file is not there, or cannot be read.
    #[error("the builder cannot open sealed secrets")]
    Key(#[source] SecretError),
    /// The key's file has something else in it.
    #[error("the builder's key for sealed secrets should be 32 bytes in base64")]
    KeyFormat,
    /// Not YAML, or not with these fields.
    #[error("com.openfaas.secrets is not an envelope of sealed secrets{}", line.map(|line| format!(" (line {line})")).unwrap_or_default())]
    Envelope {
        /// Where it was noticed.
        line: Option<u64>,
    },
    /// A field that is missing, or has a value that is not known.
    #[error("{field} in com.openfaas.secrets should be {should_be}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What would be right.
        should_be: &'static str,
    },
    /// Sealed to another key.
    #[error(
        "com.openfaas.secrets was sealed to key {found:?}, and the key of this builder is {own:?}; GET /publickey has it"
    )]
    OtherKey {
        /// The envelope's.
        found: String,
        /// Ours.
        own: String,
    },
    /// A name that no `RUN --mount=type=secret,id=` could have.
    #[error(
        "{name:?} in com.openfaas.secrets cannot be the name of a secret: letters, digits, '.', '_' and '-', up to 253 of them"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// Too many of them.
    #[error("com.openfaas.secrets has {count} secrets; {MAX_SECRETS} are allowed")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// Larger than what BuildKit takes.
    #[error("the secret {name:?} in com.openfaas.secrets is larger than {MAX_VALUE} bytes")]
    TooLarge {
        /// Which.
        name: String,
    },
    /// Damaged, or sealed to another key that claims to be this one.
    #[error(
        "the secret {name:?} in com.openfaas.secrets cannot be opened: it is damaged, or was sealed to another key"
    )]
    Damaged {
        /// Which.
        name: String,
    },
}

impl SealError {
    /// Whether it is not the caller's doing.
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Key(_) | Self::KeyFormat)
    }
}
