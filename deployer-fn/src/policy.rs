//! What may be deployed: the operator's rules, from a JSON file that is checked at start.
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
//! A rule that is left out allows everything. `keys` has the names of further secrets with signing keys, and their own
//! rules, which stand in place of the others; `rules` are those of `deploy-secret`. In a list, `*` at the end of a name
//! stands for any end; images are told by how they begin.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::quantity::Quantity;
use crate::request::{HandOver, Resources};

/// The label that says how many replicas there may be.
const SCALE_MAX: &str = "com.openfaas.scale.max";
/// The label that says how many there are at least.
const SCALE_MIN: &str = "com.openfaas.scale.min";

/// The operator's rules.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// For what is signed with `deploy-secret`.
    pub rules: Rules,
    /// For what is signed with other keys, by the names of their secrets.
    pub keys: BTreeMap<String, Rules>,
}

/// What may be deployed. What is absent is not limited.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Rules {
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
    /// Reads a policy.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        // A list would be taken for a policy without a rule.
        let rules: Map<String, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        serde_json::from_value(rules.into()).map_err(|error| error.to_string())
    }
}

impl Rules {
    /// Gives a hand-over what it leaves open and there are defaults for.
    pub fn fill_in(&self, hand_over: &mut HandOver) {
        if self.default_cpu.is_none() && self.default_memory.is_none() {
            return;
        }
        let limits = hand_over.spec.limits.get_or_insert_with(Resources::default);
        let or = |given: &mut Option<String>, default: &Option<Quantity>| {
            if given.is_none() {
                *given = default.as_ref().map(ToString::to_string);
            }
        };
        or(&mut limits.cpu, &self.default_cpu);
        or(&mut limits.memory, &self.default_memory);
    }

    /// Everything in a hand-over that the rules do not allow; each entry names its rule.
    #[must_use]
    pub fn objections(&self, hand_over: &HandOver) -> Vec<String> {
        let spec = &hand_over.spec;
        let mut objections = Vec::new();
        if let Some(allowed) = &self.namespaces {
            match &spec.namespace {
                Some(namespace) if matches_one(allowed, namespace) => {}
                Some(namespace) => {
                    objections.push(format!("policy rule namespaces does not allow {namespace:?}"));
                }
                None => {
                    objections.push("policy rule namespaces wants deploy.namespace to be given".to_owned())
                }
            }
        }
        if let Some(allowed) = &self.images
            && !allowed
                .iter()
                .any(|prefix| spec.image.as_str().starts_with(prefix.as_str()))
        {
            objections.push(format!("policy rule images does not allow {}", spec.image));
        }
        names("secrets", &self.secrets, spec.secrets.iter(), &mut objections);
        names(
            "environment",
            &self.environment,
            spec.env_vars.keys(),
            &mut objections,
        );
        names("labels", &self.labels, spec.labels.keys(), &mut objections);
        names(
            "annotations",
            &self.annotations,
            spec.annotations.keys(),
            &mut objections,
        );
        self.resources(hand_over, &mut objections);
        if self.read_only_root_filesystem && !spec.read_only_root_filesystem {
            objections.push(
                "policy rule readOnlyRootFilesystem wants deploy.readOnlyRootFilesystem to be true"
                    .to_owned(),
            );
        }
        objections
    }

    fn resources(&self, hand_over: &HandOver, objections: &mut Vec<String>) {
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
                objections.push(format!(
                    "policy rule {rule} wants a limit of at most {cap}, and there is none"
                ));
            }
            for given in [limit, request].into_iter().flatten() {
                if Quantity::parse(given).is_none_or(|given| given.exceeds(cap)) {
                    objections.push(format!("policy rule {rule} allows {cap}, not {given}"));
                }
            }
        }
        let Some(cap) = self.max_replicas else { return };
        for label in [SCALE_MIN, SCALE_MAX] {
            match spec.labels.get(label).map(|text| text.parse::<u32>()) {
                Some(Ok(number)) if number <= cap => {}
                Some(_) => objections.push(format!("policy rule maxReplicas allows {label} up to {cap}")),
                // OpenFaaS itself would go up to 20.
                None if label == SCALE_MAX => objections.push(format!(
                    "policy rule maxReplicas wants the label {label}, of at most {cap}"
                )),
                None => {}
            }
        }
    }
}

/// Objects to every name that a rule does not allow.
fn names<'n>(
    rule: &str,
    allowed: &Option<Vec<String>>,
    given: impl Iterator<Item = &'n String>,
    objections: &mut Vec<String>,
) {
    let Some(allowed) = allowed else { return };
    let refused = given.filter(|name| !matches_one(allowed, name));
    objections.extend(refused.map(|name| format!("policy rule {rule} does not allow {name:?}")));
}

/// Whether a name is in a list, or begins as an entry with `*` at its end does.
fn matches_one(allowed: &[String], name: &str) -> bool {
    allowed.iter().any(|entry| match entry.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
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
        assert_eq!(Rules::default().objections(&anything), Vec::<String>::new());
    }

    #[test]
    fn every_objection_names_its_rule() {
        let rules = rules(json!({
            "namespaces": ["team-*"], "images": ["registry.example/other/"], "secrets": ["api-*"],
            "environment": ["A"], "labels": ["com.openfaas.*"], "annotations": [], "maxCpu": "1",
            "maxMemory": "512Mi", "maxReplicas": 5, "readOnlyRootFilesystem": true
        }));
        let asked = hand_over(json!({
            "service": "hello", "namespace": "openfaas-fn", "secrets": ["api-key", "other"],
            "envVars": {"A": "1", "B": "2"}, "labels": {"com.openfaas.scale.max": "6", "x": "y"},
            "annotations": {"topic": "t"}, "limits": {"cpu": "1500m"}, "requests": {"memory": "1Gi"}
        }));
        let objections = rules.objections(&asked);
        for rule in [
            "rule namespaces does not allow \"openfaas-fn\"",
            "rule images does not allow",
            "rule secrets does not allow \"other\"",
            "rule environment does not allow \"B\"",
            "rule labels does not allow \"x\"",
            "rule annotations does not allow \"topic\"",
            "rule maxCpu allows 1, not 1500m",
            "rule maxMemory wants a limit",
            "rule maxMemory allows 512Mi, not 1Gi",
            "rule maxReplicas allows com.openfaas.scale.max up to 5",
            "rule readOnlyRootFilesystem",
        ] {
            assert!(
                objections.iter().any(|o| o.contains(rule)),
                "{rule:?}: {objections:#?}"
            );
        }
        assert_eq!(objections.len(), 11, "{objections:#?}");
    }

    #[test]
    fn what_is_left_open_gets_the_default() {
        let rules = rules(json!({"defaultMemory": "128Mi", "maxMemory": "256Mi", "defaultCpu": "500m"}));
        let mut open = hand_over(json!({"service": "hello", "limits": {"cpu": "1"}}));
        rules.fill_in(&mut open);
        let limits = open.spec.limits.clone().unwrap();
        assert_eq!(
            (limits.cpu.as_deref(), limits.memory.as_deref()),
            (Some("1"), Some("128Mi"))
        );
        assert!(rules.objections(&open).is_empty());
    }

    #[test]
    fn a_misspelt_rule_is_not_passed_over() {
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
