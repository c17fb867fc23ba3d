//! The tenant of a hand-over, from the key of the signature and the field `tenant`, and the check of the tenant's
//! rules.

use std::sync::Arc;

use function_host::policy::{KeySecretReader, Policy, ReservedNames, Tenant, Violations};
use function_host::signature::HmacKeys;
use function_host::{Secrets, secret::SecretError};

use crate::error::HandOverRejectionOrPanic;
use crate::gateway::FunctionStatus;
use crate::request::{
    self, FunctionSpec, ReceivedHandOver, ResourceAmounts, SPEC_DIGEST_ANNOTATION, TENANT_ANNOTATION,
};

/// The name of the secret with the keys that the builder signs hand-overs with: one key a line while keys are rotated.
pub(crate) const DEPLOY_KEY_SECRET: &str = "deploy-secret";

/// The signer of a hand-over, determined by the key that verifies its signature.
#[derive(Clone, Debug)]
pub(crate) enum Signer {
    /// The builder, which names the tenant that signed the build.
    Builder,
    /// A tenant, with a key for hand-overs that do not come through the builder.
    Tenant(Arc<Tenant>),
}

impl PartialEq for Signer {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Builder, Self::Builder) => true,
            (Self::Tenant(one), Self::Tenant(other)) => one.name() == other.name(),
            _ => false,
        }
    }
}

/// Reads the keys that hand-overs may be signed with, each with its signer. A tenant's key that cannot be read rejects
/// what is signed with it, and nothing else.
///
/// # Errors
/// Fails if the builder's key cannot be read, unless its secret does not exist and tenants have keys of their own.
pub(crate) fn read_builder_and_usable_tenant_keys(
    secrets: &Secrets,
    policy: Option<&Policy>,
    reader: &KeySecretReader,
) -> Result<Vec<(HmacKeys, Signer)>, HandOverRejectionOrPanic> {
    let secret = secrets.read_secret(DEPLOY_KEY_SECRET);
    // Where tenants have keys of their own, a deployer may do without a builder.
    let has_other_keys = policy.is_some_and(|policy| {
        policy
            .tenants()
            .any(|tenant| !tenant.deploy_key_secrets().is_empty())
    });
    let mut keys = match secret {
        Err(SecretError::Missing { .. }) if has_other_keys => Vec::new(),
        Err(error) => return Err(HandOverRejectionOrPanic::Key(error)),
        Ok(secret) => {
            let key = HmacKeys::new(&secret).ok_or(HandOverRejectionOrPanic::NoKey {
                name: DEPLOY_KEY_SECRET,
            })?;
            vec![(key, Signer::Builder)]
        }
    };
    for tenant in policy.into_iter().flat_map(Policy::tenants) {
        let read = tenant
            .deploy_key_secrets()
            .iter()
            .filter_map(|name| reader.read_usable_key_secret_or_log(secrets, name));
        let read = read.filter_map(|secret| HmacKeys::new(&secret));
        keys.extend(read.map(|key| (key, Signer::Tenant(Arc::clone(tenant)))));
    }
    Ok(keys)
}

/// Returns the tenant of a hand-over; `None` without a policy.
///
/// # Errors
/// The problem with the field `tenant`, whose value is `named_tenant`: it does not fit the signer, or the policy.
pub(crate) fn find_tenant(
    signer: &Signer,
    named_tenant: Option<&str>,
    policy: Option<&Policy>,
) -> Result<Option<Arc<Tenant>>, String> {
    match (policy, signer, named_tenant) {
        (None, _, None) => Ok(None),
        (None, _, Some(name)) => Err(format!(
            "tenant should be absent, not {name:?}: this deployer has no policy (policy_file), and the builder has one"
        )),
        (Some(_), Signer::Builder, None) => Err(
            "tenant is missing: this deployer has a policy (policy_file), and the builder needs the same one"
                .to_owned(),
        ),
        (Some(policy), Signer::Builder, Some(name)) => match policy.tenant(name) {
            Some(tenant) => Ok(Some(Arc::clone(tenant))),
            None => Err(format!(
                "tenant is {name:?}, which this deployer's policy does not have; the builder needs the same policy"
            )),
        },
        (Some(_), Signer::Tenant(tenant), named_tenant) => {
            match named_tenant.filter(|named_tenant| *named_tenant != tenant.name().as_str()) {
                None => Ok(Some(Arc::clone(tenant))),
                Some(other) => Err(format!(
                    "tenant should be \"{}\", whose key signed the hand-over, not {other:?}",
                    tenant.name()
                )),
            }
        }
    }
}

/// Sets the tenant's default limits on CPU and memory in a specification, each where it has none.
pub(crate) fn apply_default_limits(tenant: &Tenant, spec: &mut FunctionSpec) {
    let rules = tenant.deployments();
    if rules.default_cpu().is_none() && rules.default_memory().is_none() {
        return;
    }
    let limits = spec.limits.get_or_insert_with(ResourceAmounts::default);
    for (limit, default) in [
        (&mut limits.cpu, rules.default_cpu()),
        (&mut limits.memory, rules.default_memory()),
    ] {
        if limit.is_none() {
            *limit = default.cloned();
        }
    }
}

/// Fails with all violations, in a hand-over, of the rules that hold under every policy and of its tenant's rules.
///
/// # Errors
/// Every violation, each with the name of its rule.
pub(crate) fn check_rules(
    received: &ReceivedHandOver,
    tenant: Option<&Tenant>,
    reserved: &ReservedNames,
) -> Result<(), Violations> {
    let function = received.hand_over().spec.requested_function();
    let mut violations = reserved.violations(&function, tenant);
    if let Some(tenant) = tenant {
        let image = received.image_for_rules_if_repository_known();
        violations.extend(image.and_then(|image| tenant.may_run_image(image.repository()).err()));
        violations.extend(tenant.deployments().violations(&function));
    }
    Violations::fail_if_any(violations)
}

/// Returns the tenant that the JSON of a hand-over names; `None` if it names none or is not valid.
#[must_use]
pub fn tenant_in_valid_hand_over(bytes: &[u8]) -> Option<String> {
    let received = request::parse_hand_over(bytes).ok()?;
    received.hand_over().tenant.clone()
}

/// Returns a text for each violation, in the JSON of a hand-over, of the tenant's rules and of those that hold under
/// every policy.
///
/// # Errors
/// The problems of a hand-over that is not valid, or names another tenant.
pub fn violations_in_hand_over(
    bytes: &[u8],
    tenant: &Tenant,
    reserved: &ReservedNames,
) -> Result<Vec<String>, Vec<String>> {
    let received = request::parse_hand_over(bytes).map_err(|error| error.reasons_with_causes_for_caller())?;
    let name = tenant.name().as_str();
    if let Some(other) = received
        .hand_over()
        .tenant
        .as_deref()
        .filter(|given| *given != name)
    {
        return Err(vec![format!("tenant should be {name:?}, not {other:?}")]);
    }
    Ok(match check_rules(&received, Some(tenant), reserved) {
        Ok(()) => Vec::new(),
        Err(violations) => violations.iter().map(ToString::to_string).collect(),
    })
}

/// Returns why a tenant may not change a function that exists; `None` if it may.
///
/// The owner is in the function's annotations. A function without one belongs to a tenant whose policy lists its name,
/// if Slipway deployed it before there was a policy; otherwise only a tenant with `adopt` may take it over.
pub(crate) fn objection_to_change(tenant: Option<&Tenant>, status: &FunctionStatus) -> Option<String> {
    let tenant = tenant?;
    let rules = tenant.deployments();
    let was_deployed_by_slipway = status.annotations().contains_key(SPEC_DIGEST_ANNOTATION);
    match status.annotations().get(TENANT_ANNOTATION) {
        Some(owner) if owner == tenant.name().as_str() => None,
        // The name of the other tenant is not the caller's to know.
        Some(_) => Some(format!(
            "the function {:?} belongs to another tenant than {}",
            status.name,
            tenant.name()
        )),
        None if rules.may_adopt_unowned_functions()
            || was_deployed_by_slipway && rules.restricts_function_names() =>
        {
            None
        }
        None => Some(format!(
            "policy rule adopt of tenant {} does not allow to take over the function {:?}, which no tenant has deployed",
            tenant.name(),
            status.name
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const POLICY_JSON: &str = r#"{"tenants": {
        "acme": {"keys": ["a"], "functions": ["*"]}, "globex": {"keys": ["g"]}, "initech": {"keys": ["i"], "adopt": true}
    }}"#;

    fn example_policy() -> Policy {
        Policy::parse(POLICY_JSON).unwrap()
    }

    #[test]
    fn the_field_tenant_has_to_fit_the_signer_and_the_policy() {
        let policy = example_policy();
        let acme = Signer::Tenant(policy.tenant("acme").unwrap().clone());
        let find = |signer: &Signer, given: Option<&str>, policy: Option<&Policy>| {
            find_tenant(signer, given, policy).map(|tenant| tenant.map(|tenant| tenant.name().to_string()))
        };
        let acmes = Ok(Some("acme".to_owned()));
        assert_eq!(find(&Signer::Builder, Some("acme"), Some(&policy)), acmes);
        assert_eq!(find(&acme, Some("acme"), Some(&policy)), acmes);
        assert_eq!(find(&acme, None, Some(&policy)), acmes);
        assert_eq!(find(&Signer::Builder, None, None), Ok(None));
        for (signer, given, policy) in [
            (&acme, Some("globex"), Some(&policy)),
            (&acme, Some(""), Some(&policy)),
            (&Signer::Builder, None, Some(&policy)),
            (&Signer::Builder, Some("umbrella"), Some(&policy)),
            (&Signer::Builder, Some("acme"), None),
        ] {
            let problem = find(signer, given, policy).unwrap_err();
            assert!(problem.starts_with("tenant "), "{problem}");
        }
    }

    #[test]
    fn a_function_is_changed_by_its_own_tenant_or_if_unowned_by_one_that_may_adopt_it() {
        let policy = example_policy();
        let may_change = |tenant: &str, annotations: serde_json::Value| {
            let status = json!({"name": "hello", "image": "r/hello:1", "annotations": annotations});
            let status = serde_json::from_value(status).unwrap();
            objection_to_change(policy.tenant(tenant).map(|tenant| &**tenant), &status).is_none()
        };
        let own = |tenant: &str| json!({TENANT_ANNOTATION: tenant, SPEC_DIGEST_ANNOTATION: "sha256:1"});
        let before_policies = json!({SPEC_DIGEST_ANNOTATION: "sha256:1"});
        let foreign = json!({"topic": "t"});
        for (tenant, annotations, may) in [
            ("acme", own("acme"), true),
            ("acme", own("globex"), false),
            // Another tenant's function is never taken over, not even with `adopt`.
            ("initech", own("acme"), false),
            // The policy gives the name to the tenant.
            ("acme", before_policies.clone(), true),
            ("globex", before_policies.clone(), false),
            ("initech", before_policies, true),
            ("acme", foreign.clone(), false),
            ("globex", foreign.clone(), false),
            ("initech", foreign, true),
            ("acme", serde_json::Value::Null, false),
        ] {
            assert_eq!(
                may_change(tenant, annotations.clone()),
                may,
                "{tenant} {annotations}"
            );
        }
        let status = serde_json::from_value(json!({"name": "hello", "annotations": own("acme")})).unwrap();
        assert_eq!(
            objection_to_change(None, &status),
            None,
            "without a policy there is one tenant"
        );
    }
}
