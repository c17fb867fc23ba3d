//! A user name and password for a registry, or an identity token.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Credentials for a registry. Both fields are empty for anonymous access.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// The user name; empty if the secret is an identity token.
    pub username: String,
    /// A password or an identity token.
    pub secret: String,
}

impl Credentials {
    /// Returns the value of an `Authorization` header for basic authentication, if there is a password.
    pub(super) fn basic(&self) -> Option<String> {
        let Self { username, secret } = self;
        (!username.is_empty() && !secret.is_empty())
            .then(|| format!("Basic {}", STANDARD.encode(format!("{username}:{secret}"))))
    }

    /// Returns the identity token, if it is one.
    pub(super) fn identity_token(&self) -> Option<&str> {
        (self.username.is_empty() && !self.secret.is_empty()).then_some(&*self.secret)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}
