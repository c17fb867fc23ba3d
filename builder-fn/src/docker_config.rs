//! Credentials for registries, from a Docker `config.json`.

/// What to log in with. Both empty: anonymously.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Empty with an identity token.
    pub username: String,
    /// A password, or an identity token.
    pub secret: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}
