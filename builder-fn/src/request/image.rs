//! The name under which an image is pushed.

/// `registry/repository:tag`, in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRef {
    registry: String,
    repository: String,
    tag: String,
}

impl ImageRef {
    /// Host and, where given, port: `docker.io` when the name has none.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path in the registry, e.g. `library/hello`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, `latest` when the name has none.
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl std::fmt::Display for ImageRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}:{}", self.registry, self.repository, self.tag)
    }
}
