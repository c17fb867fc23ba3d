//! Checks a build's configuration against the rules that hold under every policy, and against the rules of its tenant.

use function_host::policy::{RequestedFunction, ReservedNames, Tenant, Violation, Violations};
use serde_json::{Map, Value};

use super::BuildConfig;

/// Fails with all violations in what a build would push, export, import and deploy. The sources that its steps read are
/// checked when BuildKit asks for them.
///
/// # Errors
/// Fails with every violation, each with the name of its rule.
pub(super) fn check_config(
    config: &BuildConfig,
    tenant: Option<&Tenant>,
    reserved: &ReservedNames,
) -> Result<(), Violations> {
    let mut violations = Vec::new();
    let function = config.deploy.as_ref().map(RequestedFunction::from_json);
    if let Some(function) = &function {
        violations.extend(reserved.violations(function, tenant));
    }
    if let Some(tenant) = tenant {
        violations.extend(image_violations(config, tenant));
        if let Some(function) = &function {
            violations.extend(tenant.deployments().violations(function));
        }
    }
    Violations::fail_if_any(violations)
}

/// Fails with all violations in the deployment `deploy` of an image that was built before, as in a rollback.
/// `image_repository` is given in full.
///
/// # Errors
/// Fails with every violation, each with the name of its rule.
pub(crate) fn check_deployment_of_existing_image(
    image_repository: &str,
    deploy: &Map<String, Value>,
    tenant: Option<&Tenant>,
    reserved: &ReservedNames,
) -> Result<(), Violations> {
    let function = RequestedFunction::from_json(deploy);
    let mut violations = reserved.violations(&function, tenant);
    if let Some(tenant) = tenant {
        violations.extend(tenant.may_run_image(image_repository).err());
        violations.extend(tenant.deployments().violations(&function));
    }
    Violations::fail_if_any(violations)
}

/// Returns the violations of the rules for repositories. An image that is not pushed counts too: its name stands for what
/// BuildKit keeps between builds.
fn image_violations(config: &BuildConfig, tenant: &Tenant) -> Vec<Violation> {
    let pushed = [&config.image]
        .into_iter()
        .map(|image| tenant.may_push(&image.without_tag()));
    let exported = config
        .cache_to
        .iter()
        .map(|cache| tenant.may_cache(&cache.image.without_tag()));
    let imported = config
        .cache_from
        .iter()
        .map(|image| tenant.may_read_image(&image.without_tag()));
    let checks = pushed.chain(exported).chain(imported);
    checks.filter_map(Result::err).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use function_host::policy::Policy;
    use serde_json::{Value, json};

    use super::*;

    fn acme_tenant_with_rules() -> Arc<Tenant> {
        let policy = json!({"tenants": {
            "acme": {
                "keys": ["acme-payload"], "registryConfig": "acme-registry", "push": ["registry.example/acme/"],
                "cache": ["registry.example/acme-cache/"], "read": {"images": ["docker.io/library/"]},
                "functions": ["acme-*"], "secrets": ["acme-*"]
            },
            "globex": {"keys": ["acme-of-globex"]}
        }});
        let policy = Policy::parse(&policy.to_string()).unwrap();
        policy.tenant("acme").unwrap().clone()
    }

    fn violations_of_config(config: &Value, tenant: Option<&Tenant>) -> Vec<String> {
        let config = BuildConfig::parse(config.to_string().as_bytes()).unwrap();
        match check_config(&config, tenant, &ReservedNames::default()) {
            Ok(()) => Vec::new(),
            Err(violations) => violations.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn a_config_within_the_tenants_rules_is_accepted() {
        let config = json!({
            "image": "registry.example/acme/hello:1", "tags": ["2"], "cacheTo": ["registry.example/acme-cache/hello"],
            "cacheFrom": ["registry.example/acme-cache/hello", "registry.example/acme/hello", "alpine"],
            "deploy": {"service": "acme-hello", "secrets": ["acme-key"]}
        });
        assert_eq!(
            violations_of_config(&config, Some(&acme_tenant_with_rules())),
            Vec::<String>::new()
        );
    }

    #[test]
    fn every_violated_rule_is_named() {
        let config = json!({
            "image": "registry.example/victim/hello:1", "cacheTo": ["registry.example/acme/hello", "registry.example/victim/c"],
            "cacheFrom": ["registry.example/victim/c"],
            "deploy": {"service": "hello", "secrets": ["acme-key", "globex-key", "acme-of-globex", "basic-auth-password"]}
        });
        let found = violations_of_config(&config, Some(&acme_tenant_with_rules()));
        for expected in [
            "rule push of tenant acme does not allow \"registry.example/victim/hello\"",
            "rule cache of tenant acme does not allow \"registry.example/acme/hello\"",
            "rule cache of tenant acme does not allow \"registry.example/victim/c\"",
            "rule read.images of tenant acme does not allow \"registry.example/victim/c\"",
            "rule functions of tenant acme does not allow \"hello\"",
            "rule secrets of tenant acme does not allow \"globex-key\"",
            "rule secrets of tenant acme does not allow \"basic-auth-password\"",
            "no policy allows a function to use the secret \"acme-of-globex\"",
            "no policy allows a function to use the secret \"basic-auth-password\"",
        ] {
            let has = found.iter().any(|violation| violation.contains(expected));
            assert!(has, "{expected:?}: {found:#?}");
        }
        assert_eq!(found.len(), 9, "{found:#?}");
    }

    /// `cacheTo` exports even if nothing is pushed, and the image's name is a key for what BuildKit keeps.
    #[test]
    fn a_build_that_is_not_pushed_has_the_same_rules() {
        let config = json!({
            "image": "registry.example/victim/hello:1", "skipPush": true, "cacheTo": ["registry.example/victim/c"]
        });
        assert_eq!(
            violations_of_config(&config, Some(&acme_tenant_with_rules())).len(),
            2
        );
    }

    #[test]
    fn without_a_policy_only_the_platforms_own_names_are_rejected() {
        let config = json!({
            "image": "registry.example/victim/hello:1", "cacheTo": ["registry.example/victim/c"],
            "deploy": {"service": "hello", "secrets": ["any"]}
        });
        assert_eq!(violations_of_config(&config, None), Vec::<String>::new());
        for deploy in [
            json!({"service": "deployer-fn"}),
            json!({"service": "Deployer-fn.openfaas-fn"}),
            json!({"service": "hello", "secrets": ["deploy-secret"]}),
        ] {
            let config = json!({"image": "registry.example/hello", "deploy": deploy});
            let found = violations_of_config(&config, None);
            assert!(found[0].starts_with("no policy allows"), "{found:?}");
        }
    }
}
