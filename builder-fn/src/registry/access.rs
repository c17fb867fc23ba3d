//! The repositories that one build may use, and the scopes of tokens for them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::image_name::{ImageName, canonical_registry};

/// The repositories that one build may use: those that its config names, and those of the images that it was allowed to
/// read. Clones share the record.
#[derive(Clone, Debug, Default)]
pub struct RepositoryAccess(Arc<Mutex<BTreeMap<ImageName, GrantedAccess>>>);

/// What a build may do with a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum GrantedAccess {
    /// The build may pull images.
    Pull,
    /// The build may pull and push images.
    Push,
}

impl RepositoryAccess {
    /// Allows the build to pull from a repository.
    pub fn allow_pull(&self, image: ImageName) {
        self.allow_access(image, GrantedAccess::Pull);
    }

    /// Allows the build to pull from and push to a repository.
    pub fn allow_push(&self, image: ImageName) {
        self.allow_access(image, GrantedAccess::Push);
    }

    /// Allows access to the repository of `image`. The highest level that was allowed counts.
    fn allow_access(&self, image: ImageName, access: GrantedAccess) {
        let mut repositories = self.lock();
        let granted = repositories.entry(image).or_insert(access);
        *granted = (*granted).max(access);
    }

    /// Returns the scopes of a token that the build may have, of those that the daemon requests for the registry
    /// `host`.
    ///
    /// A scope is `repository:NAME:ACTION,…` (<https://distribution.github.io/distribution/spec/auth/scope/>). Actions
    /// that the build may not do are left out, as a token server leaves out those that the user may not do: the daemon
    /// also asks for repositories from which a layer could be copied within the registry, and does without.
    pub fn granted_scopes(&self, host: &str, scopes: &[String]) -> Vec<String> {
        let registry = canonical_registry(host);
        let repositories = self.lock();
        let scopes = scopes.iter().flat_map(|scope| scope.split(' '));
        let granted = scopes.filter_map(|scope| {
            let (name, actions) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
            let is_granted = |action: &&str| match *action {
                "pull" => repositories
                    .keys()
                    .any(|image| may_pull_from_registry_or_mirror(image, &registry, name)),
                "push" => repositories.iter().any(|(image, access)| {
                    *access == GrantedAccess::Push
                        && image.registry() == registry
                        && image.repository() == name
                }),
                _ => false,
            };
            let actions: Vec<&str> = actions.split(',').filter(is_granted).collect();
            (!actions.is_empty()).then(|| format!("repository:{name}:{}", actions.join(",")))
        });
        granted.collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ImageName, GrantedAccess>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether a build that may pull `image` may pull the repository `name` of `registry`: the image's own
/// repository, or one of any other registry, a mirror, that has the image's path, with or without a prefix.
///
/// The daemon's configuration names the mirrors of a registry. A build cannot choose one.
fn may_pull_from_registry_or_mirror(image: &ImageName, registry: &str, name: &str) -> bool {
    match image.registry() == registry {
        true => image.repository() == name,
        false => {
            name == image.repository()
                || name
                    .strip_suffix(image.repository())
                    .is_some_and(|prefix| prefix.ends_with('/'))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_image_name(text: &str) -> ImageName {
        ImageName::parse_with_registry(text).unwrap()
    }

    #[test]
    fn a_token_is_for_the_repositories_and_actions_of_the_build_only() {
        let access = RepositoryAccess::default();
        access.allow_push(parse_image_name("r.example/acme/app"));
        access.allow_pull(parse_image_name("r.example/acme/app"));
        access.allow_pull(parse_image_name("r.example/acme/base"));
        access.allow_pull(parse_image_name("docker.io/library/alpine"));
        for (host, requested, expected) in [
            (
                "r.example",
                &["repository:acme/app:pull,push"][..],
                &["repository:acme/app:pull,push"][..],
            ),
            (
                "r.example",
                &["repository:acme/base:pull,push"],
                &["repository:acme/base:pull"],
            ),
            (
                "r.example",
                &["repository:acme/app:pull,push repository:victim/private:pull"],
                &["repository:acme/app:pull,push"],
            ),
            ("r.example", &["repository:victim/private:pull"], &[]),
            ("r.example", &["repository:acme/app:*"], &[]),
            (
                "r.example",
                &["repository:acme/app:delete,pull"],
                &["repository:acme/app:pull"],
            ),
            ("r.example", &["registry:catalog:*"], &[]),
            ("r.example", &["repository:acme/app"], &[]),
            ("other.example", &["repository:acme/app:push"], &[]),
            ("r.example:5000", &["repository:acme/app:push"], &[]),
            (
                "registry-1.docker.io",
                &["repository:library/alpine:pull"],
                &["repository:library/alpine:pull"],
            ),
            ("registry-1.docker.io", &["repository:library/alpine:push"], &[]),
            // A mirror of Docker Hub.
            (
                "mirror.example",
                &["repository:hub/library/alpine:pull"],
                &["repository:hub/library/alpine:pull"],
            ),
            ("mirror.example", &["repository:evil-library/alpine:pull"], &[]),
        ] {
            let requested: Vec<String> = requested.iter().map(ToString::to_string).collect();
            assert_eq!(
                access.granted_scopes(host, &requested),
                expected,
                "{host} {requested:?}"
            );
        }
    }
}
