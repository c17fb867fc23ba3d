//! Credentials for an image registry: a user name and password, or an identity token.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Credentials for an image registry. Both fields are empty for anonymous access.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RegistryCredentials {
    /// The user name for the registry; empty if the secret is an identity token.
    pub username: String,
    /// The password for the registry, or an identity token.
    pub secret: String,
}

impl RegistryCredentials {
    /// Returns the `Authorization` header for basic authentication, if the credentials have a password.
    pub(super) fn basic_authorization(&self) -> Option<String> {
        let Self { username, secret } = self;
        (!username.is_empty() && !secret.is_empty())
            .then(|| format!("Basic {}", STANDARD.encode(format!("{username}:{secret}"))))
    }

    /// Returns the identity token, if the credentials are one.
    pub(super) fn identity_token(&self) -> Option<&str> {
        (self.username.is_empty() && !self.secret.is_empty()).then_some(&*self.secret)
    }
}

impl fmt::Debug for RegistryCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}
