//! The repository in which the builder stores contexts for its callers.

use super::image_name::ImageName;

/// The repository for stored contexts. Those of a tenant are in a repository below it that has the tenant's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextRepository(ImageName);

impl ContextRepository {
    /// Parses the name of the repository, without tag and digest, in lower case. Returns `None` for another name.
    pub fn parse(name: &str) -> Option<Self> {
        let image = ImageName::parse(name).filter(|image| image.to_string() == name)?;
        let is_lower_case = !name.bytes().any(|byte| byte.is_ascii_uppercase());
        is_lower_case.then_some(Self(image))
    }

    /// Returns the repository for the contexts of `tenant`, or of all callers of a builder without tenants.
    pub(crate) fn of_tenant(&self, tenant: Option<&str>) -> Option<ImageName> {
        match tenant {
            // The name of a tenant is valid in the name of a repository.
            Some(tenant) => ImageName::parse(&format!("{}/{tenant}", self.0)),
            None => Some(self.0.clone()),
        }
    }

    /// Returns whether `image` is this repository or one below it, whatever tenant it belongs to.
    pub(crate) fn has(&self, image: &ImageName) -> bool {
        let rest = image.repository().strip_prefix(self.0.repository());
        image.registry() == self.0.registry()
            && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_contexts_of_a_tenant_have_a_repository_of_their_own() {
        let repository = ContextRepository::parse("r.example:5000/slipway/contexts").unwrap();
        for (name, has) in [
            ("r.example:5000/slipway/contexts", true),
            ("R.example:5000/slipway/contexts/acme", true),
            ("r.example:5000/slipway/contexts/acme/x", true),
            ("r.example:5000/slipway/contexts-acme", false),
            ("r.example:5000/slipway", false),
            ("r.example/slipway/contexts/acme", false),
        ] {
            assert_eq!(repository.has(&ImageName::parse(name).unwrap()), has, "{name}");
        }
        let own = repository.of_tenant(Some("acme")).unwrap();
        assert_eq!(own.to_string(), "r.example:5000/slipway/contexts/acme");
        for name in [
            "contexts",
            "r.example/a:1",
            "r.example/A",
            "r.example/a@sha256:00",
        ] {
            assert_eq!(ContextRepository::parse(name), None, "{name}");
        }
    }
}
