//! A repository of the operator, in which the builder stores what belongs to its callers.

use super::image_name::ImageName;

/// A repository of the operator for what the builder stores. That of a tenant is in a repository below it that has the
/// tenant's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorRepository(ImageName);

impl OperatorRepository {
    /// Parses the name of the repository, without tag and digest, in lower case. Returns `None` for another name.
    pub fn parse(name: &str) -> Option<Self> {
        let image = ImageName::parse_with_registry(name).filter(|image| image.to_string() == name)?;
        let is_lower_case = !name.bytes().any(|byte| byte.is_ascii_uppercase());
        is_lower_case.then_some(Self(image))
    }

    /// Returns the repository for what belongs to `tenant`, or of all callers of a builder without tenants.
    pub(crate) fn of_tenant(&self, tenant: Option<&str>) -> Option<ImageName> {
        match tenant {
            // The name of a tenant is valid in the name of a repository.
            Some(tenant) => ImageName::parse_with_registry(&format!("{}/{tenant}", self.0)),
            None => Some(self.0.clone()),
        }
    }

    /// Returns whether one of two repositories is the other, or in it.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.is_or_contains(&other.0) || other.is_or_contains(&self.0)
    }

    /// Returns whether `image` is this repository or one below it, whatever tenant it belongs to.
    pub(crate) fn is_or_contains(&self, image: &ImageName) -> bool {
        let rest = image.repository().strip_prefix(self.0.repository());
        image.registry() == self.0.registry()
            && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operator_repositories_contain_those_below_overlap_and_are_parsed_in_lower_case_only() {
        let repository = OperatorRepository::parse("r.example:5000/slipway/contexts").unwrap();
        for (name, has) in [
            ("r.example:5000/slipway/contexts", true),
            ("R.example:5000/slipway/contexts/acme", true),
            ("r.example:5000/slipway/contexts/acme/x", true),
            ("r.example:5000/slipway/contexts-acme", false),
            ("r.example:5000/slipway", false),
            ("r.example/slipway/contexts/acme", false),
        ] {
            assert_eq!(
                repository.is_or_contains(&ImageName::parse_with_registry(name).unwrap()),
                has,
                "{name}"
            );
        }
        for (other, overlaps) in [
            ("r.example:5000/slipway/contexts", true),
            ("r.example:5000/slipway", true),
            ("r.example:5000/slipway/contexts/acme", true),
            ("r.example:5000/slipway/records", false),
            ("r.example/slipway/contexts", false),
        ] {
            let other = OperatorRepository::parse(other).unwrap();
            assert_eq!(repository.overlaps(&other), overlaps, "{other:?}");
        }
        let own = repository.of_tenant(Some("acme")).unwrap();
        assert_eq!(own.to_string(), "r.example:5000/slipway/contexts/acme");
        for name in [
            "contexts",
            "r.example/a:1",
            "r.example/A",
            "r.example/a@sha256:00",
        ] {
            assert_eq!(OperatorRepository::parse(name), None, "{name}");
        }
    }
}
