//! The operator's policy on deployments, from a JSON file that is checked at start.
//!
//! ```json
//! {
//!   "rules": {
//!     "namespaces": ["openfaas-fn"],
//!     "images": ["registry.example/team/"],
//!     "secrets": ["api-*"], "environment": ["*"], "labels": ["com.openfaas.*"], "annotations": ["topic"],
//!     "maxCpu": "1", "maxMemory": "512Mi", "maxReplicas": 5,
//!     "defaultCpu": "500m", "defaultMemory": "128Mi",
//!     "readOnlyRootFilesystem": true
//!   },
//!   "keys": { "team-a-deploy": { "images": ["registry.example/team-a/"] } }
//! }
//! ```
//!
//! An absent rule allows everything. `rules` apply to hand-overs that are signed with `deploy-secret`. `keys` names
//! further secrets with signing keys, each with rules that apply instead. In a list of names, `*` at the end of an
//! entry matches any rest; an entry of `images` is a prefix.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::quantity::Quantity;
use crate::request::{HandOver, Resources};

/// The label with the highest number of replicas.
const SCALE_MAX: &str = "com.openfaas.scale.max";
/// The label with the lowest number of replicas.
const SCALE_MIN: &str = "com.openfaas.scale.min";

/// The rules for each signing key.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Policy {
    /// The rules for hand-overs signed with `deploy-secret`.
    pub(crate) rules: Rules,
    /// The rules for hand-overs signed with other keys, by the name of the key's secret.
    pub(crate) keys: BTreeMap<String, Rules>,
}

/// Rules on what may be deployed. An absent rule allows everything.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Rules {
    namespaces: Option<Vec<String>>,
    images: Option<Vec<String>>,
    secrets: Option<Vec<String>>,
    environment: Option<Vec<String>>,
    labels: Option<Vec<String>>,
    annotations: Option<Vec<String>>,
    max_cpu: Option<Quantity>,
    max_memory: Option<Quantity>,
    max_replicas: Option<u32>,
    default_cpu: Option<Quantity>,
    default_memory: Option<Quantity>,
    read_only_root_filesystem: bool,
}

impl Policy {
    /// Parses a policy. An unknown rule is an error.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        // Parsed as an object first: serde would take an empty array for a policy without rules.
        let object: Map<String, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        serde_json::from_value(object.into()).map_err(|error| error.to_string())
    }
}

impl Rules {
    /// Sets the default limits in a hand-over that has none.
    pub(crate) fn apply_defaults(&self, hand_over: &mut HandOver) {
        if self.default_cpu.is_none() && self.default_memory.is_none() {
            return;
        }
        let limits = hand_over.spec.limits.get_or_insert_with(Resources::default);
        for (limit, default) in [
            (&mut limits.cpu, &self.default_cpu),
            (&mut limits.memory, &self.default_memory),
        ] {
            if limit.is_none() {
                limit.clone_from(default);
            }
        }
    }

    /// Returns everything in a hand-over that the rules do not allow. Each entry names its rule.
    pub(crate) fn violations(&self, hand_over: &HandOver) -> Vec<String> {
        let spec = &hand_over.spec;
        let mut violations = Vec::new();
        if let Some(allowed) = &self.namespaces {
            match &spec.namespace {
                Some(namespace) if matches_any(allowed, namespace) => {}
                Some(namespace) => {
                    violations.push(format!("policy rule namespaces does not allow {namespace:?}"));
                }
                None => violations.push("policy rule namespaces requires deploy.namespace".to_owned()),
            }
        }
        if let Some(allowed) = &self.images
            && !allowed
                .iter()
                .any(|prefix| spec.image.as_str().starts_with(prefix.as_str()))
        {
            violations.push(format!("policy rule images does not allow {}", spec.image));
        }
        check_names("secrets", &self.secrets, spec.secrets.iter(), &mut violations);
        check_names(
            "environment",
            &self.environment,
            spec.env_vars.keys(),
            &mut violations,
        );
        check_names("labels", &self.labels, spec.labels.keys(), &mut violations);
        check_names(
            "annotations",
            &self.annotations,
            spec.annotations.keys(),
            &mut violations,
        );
        self.check_resources(hand_over, &mut violations);
        if self.read_only_root_filesystem && !spec.read_only_root_filesystem {
            violations.push(
                "policy rule readOnlyRootFilesystem requires deploy.readOnlyRootFilesystem to be true"
                    .to_owned(),
            );
        }
        violations
    }

    fn check_resources(&self, hand_over: &HandOver, violations: &mut Vec<String>) {
        let spec = &hand_over.spec;
        let none = Resources::default();
        let limits = spec.limits.as_ref().unwrap_or(&none);
        let requests = spec.requests.as_ref().unwrap_or(&none);
        for (rule, cap, limit, request) in [
            ("maxCpu", &self.max_cpu, &limits.cpu, &requests.cpu),
            ("maxMemory", &self.max_memory, &limits.memory, &requests.memory),
        ] {
            let Some(cap) = cap else { continue };
            if limit.is_none() {
                violations.push(format!("policy rule {rule} requires a limit of at most {cap}"));
            }
            for given in [limit, request].into_iter().flatten() {
                if given.exceeds(cap) {
                    violations.push(format!("policy rule {rule} allows {cap}, not {given}"));
                }
            }
        }
        let Some(cap) = self.max_replicas else { return };
        for label in [SCALE_MIN, SCALE_MAX] {
            match spec.labels.get(label).map(|text| text.parse::<u32>()) {
                Some(Ok(number)) if number <= cap => {}
                Some(_) => violations.push(format!("policy rule maxReplicas allows {label} up to {cap}")),
                // Without the label, OpenFaaS scales up to 20.
                None if label == SCALE_MAX => violations.push(format!(
                    "policy rule maxReplicas requires the label {label}, of at most {cap}"
                )),
                None => {}
            }
        }
    }
}

/// Adds a violation for every name that a rule does not allow.
fn check_names<'n>(
    rule: &str,
    allowed: &Option<Vec<String>>,
    given: impl Iterator<Item = &'n String>,
    violations: &mut Vec<String>,
) {
    let Some(allowed) = allowed else { return };
    let rejected = given.filter(|name| !matches_any(allowed, name));
    violations.extend(rejected.map(|name| format!("policy rule {rule} does not allow {name:?}")));
}

/// Returns whether a name equals an entry, or begins with one that ends in `*`.
fn matches_any(allowed: &[String], name: &str) -> bool {
    allowed.iter().any(|entry| match entry.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => entry == name,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::request;

    fn hand_over(deploy: Value) -> HandOver {
        let image = format!("registry.example/team/hello@sha256:{}", "0".repeat(64));
        let document = json!({"image": image, "deploy": deploy});
        request::parse(document.to_string().as_bytes()).unwrap()
    }

    fn rules(rules: Value) -> Rules {
        let policy = json!({"rules": rules}).to_string();
        Policy::parse(&policy).unwrap().rules
    }

    #[test]
    fn without_rules_everything_is_allowed() {
        let anything = hand_over(json!({"service": "hello", "secrets": ["x"]}));
        assert_eq!(Rules::default().violations(&anything), Vec::<String>::new());
    }

    #[test]
    fn every_violation_names_its_rule() {
        let rules = rules(json!({
            "namespaces": ["team-*"], "images": ["registry.example/other/"], "secrets": ["api-*"],
            "environment": ["A"], "labels": ["com.openfaas.*"], "annotations": [], "maxCpu": "1",
            "maxMemory": "512Mi", "maxReplicas": 5, "readOnlyRootFilesystem": true
        }));
        let hand_over = hand_over(json!({
            "service": "hello", "namespace": "openfaas-fn", "secrets": ["api-key", "other"],
            "envVars": {"A": "1", "B": "2"}, "labels": {"com.openfaas.scale.max": "6", "x": "y"},
            "annotations": {"topic": "t"}, "limits": {"cpu": "1500m"}, "requests": {"memory": "1Gi"}
        }));
        let violations = rules.violations(&hand_over);
        for rule in [
            "rule namespaces does not allow \"openfaas-fn\"",
            "rule images does not allow",
            "rule secrets does not allow \"other\"",
            "rule environment does not allow \"B\"",
            "rule labels does not allow \"x\"",
            "rule annotations does not allow \"topic\"",
            "rule maxCpu allows 1, not 1500m",
            "rule maxMemory requires a limit",
            "rule maxMemory allows 512Mi, not 1Gi",
            "rule maxReplicas allows com.openfaas.scale.max up to 5",
            "rule readOnlyRootFilesystem",
        ] {
            assert!(
                violations.iter().any(|violation| violation.contains(rule)),
                "{rule:?}: {violations:#?}"
            );
        }
        assert_eq!(violations.len(), 11, "{violations:#?}");
    }

    #[test]
    fn absent_limits_get_the_policys_defaults() {
        let rules = rules(json!({"defaultMemory": "128Mi", "maxMemory": "256Mi", "defaultCpu": "500m"}));
        let mut open = hand_over(json!({"service": "hello", "limits": {"cpu": "1"}}));
        rules.apply_defaults(&mut open);
        let limits = open.spec.limits.clone().unwrap();
        let text = |limit: Option<Quantity>| limit.map(|limit| limit.to_string());
        assert_eq!(text(limits.cpu).as_deref(), Some("1"));
        assert_eq!(text(limits.memory).as_deref(), Some("128Mi"));
        assert!(rules.violations(&open).is_empty());
    }

    #[test]
    fn a_misspelt_rule_is_an_error() {
        for wrong in [
            json!({"rules": {"image": []}}),
            json!({"rules": {"maxMemory": "lots"}}),
            json!({"rule": {}}),
            json!([]),
        ] {
            assert!(Policy::parse(&wrong.to_string()).is_err(), "{wrong}");
        }
    }
}
