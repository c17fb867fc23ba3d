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
//! entry matches any rest. An entry of `images` is a prefix that ends at a segment of the path: `registry.example/team` allows
//! `registry.example/team:1` and `registry.example/team/hello`, and not `registry.example/team-b`.

use std::collections::BTreeMap;

use function_host::policy::Quantity;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::request::{FunctionSpec, PinnedImage, ResourceAmounts};

/// The name of the secret with the keys that hand-overs are signed with: one key a line while keys are rotated.
pub(crate) const KEY_SECRET: &str = "deploy-secret";

/// The label with a function's highest number of replicas.
const MAX_REPLICAS_LABEL: &str = "com.openfaas.scale.max";
/// The label with a function's lowest number of replicas.
const MIN_REPLICAS_LABEL: &str = "com.openfaas.scale.min";

/// The operator's policy: rules for the hand-overs of each signing key.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Policy {
    /// The rules for hand-overs signed with `deploy-secret`.
    pub(crate) rules: Rules,
    /// The rules for hand-overs signed with other keys, by the name of the key's secret.
    pub(crate) keys: BTreeMap<String, Rules>,
}

/// Rules on what a hand-over may deploy. An absent rule allows everything.
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
    /// Parses the operator's policy. An unknown rule is an error.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        // Parsed as an object first: serde would take an empty array for a policy without rules.
        let object: Map<String, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let policy: Self = serde_json::from_value(object.into()).map_err(|error| error.to_string())?;
        let keys = policy.keys.iter().map(|(name, rules)| (name.as_str(), rules));
        let problems: Vec<String> = [(KEY_SECRET, &policy.rules)]
            .into_iter()
            .chain(keys)
            .flat_map(|(key, rules)| rules.problems(key))
            .collect();
        if problems.is_empty() {
            return Ok(policy);
        }
        Err(problems.join("; "))
    }
}

impl Rules {
    /// Returns the problems of rules that would not do what they seem to say.
    fn problems(&self, key: &str) -> Vec<String> {
        let caps = [
            ("maxCpu", self.max_cpu.as_ref().is_some_and(Quantity::is_zero)),
            (
                "maxMemory",
                self.max_memory.as_ref().is_some_and(Quantity::is_zero),
            ),
            ("maxReplicas", self.max_replicas == Some(0)),
        ];
        let zero = caps.into_iter().filter(|(_, zero)| *zero);
        let mut problems: Vec<String> = zero
            .map(|(rule, _)| {
                format!("{rule} of {key} must be more than 0; without the rule there is no limit")
            })
            .collect();
        if self.images.iter().flatten().any(String::is_empty) {
            problems.push(format!(
                "images of {key} has an empty entry; without the rule every image is allowed"
            ));
        }
        for (default, cap, rule) in [
            (&self.default_cpu, &self.max_cpu, "defaultCpu"),
            (&self.default_memory, &self.max_memory, "defaultMemory"),
        ] {
            if let (Some(default), Some(cap)) = (default, cap)
                && (default.is_zero() || default.exceeds(cap))
            {
                problems.push(format!(
                    "{rule} of {key} is {default}, which exceeds the maximum of {cap}"
                ));
            }
        }
        problems
    }

    /// Sets the default resource limits in a specification that has no limits.
    pub(crate) fn apply_defaults(&self, spec: &mut FunctionSpec) {
        if self.default_cpu.is_none() && self.default_memory.is_none() {
            return;
        }
        let limits = spec.limits.get_or_insert_with(ResourceAmounts::default);
        for (limit, default) in [
            (&mut limits.cpu, &self.default_cpu),
            (&mut limits.memory, &self.default_memory),
        ] {
            if limit.is_none() {
                limit.clone_from(default);
            }
        }
    }

    /// Returns every violation of the rules in a specification, each with the name of its rule. `image` is the
    /// specification's image, if it is known.
    pub(crate) fn violations(&self, spec: &FunctionSpec, image: Option<&PinnedImage>) -> Vec<String> {
        let mut violations = Vec::new();
        if let Some(allowed) = &self.namespaces {
            match &spec.namespace {
                Some(namespace) if matches_any_pattern(allowed, namespace) => {}
                Some(namespace) => {
                    violations.push(format!("policy rule namespaces does not allow {namespace:?}"));
                }
                None => violations.push("policy rule namespaces requires deploy.namespace".to_owned()),
            }
        }
        if let (Some(allowed), Some(image)) = (&self.images, image)
            && !allowed.iter().any(|prefix| allows_image(prefix, image))
        {
            violations.push(format!("policy rule images does not allow {image}"));
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
        self.check_resources(spec, &mut violations);
        if self.read_only_root_filesystem && !spec.read_only_root_filesystem {
            violations.push(
                "policy rule readOnlyRootFilesystem requires deploy.readOnlyRootFilesystem to be true"
                    .to_owned(),
            );
        }
        violations
    }

    /// Adds a violation for each amount of memory or CPU over its maximum.
    fn check_resources(&self, spec: &FunctionSpec, violations: &mut Vec<String>) {
        let none = ResourceAmounts::default();
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
            if limit.as_ref().is_some_and(Quantity::is_zero) {
                violations.push(format!(
                    "policy rule {rule} allows {cap}, not 0, which means no limit"
                ));
            }
            for given in [limit, request].into_iter().flatten() {
                if given.exceeds(cap) {
                    violations.push(format!("policy rule {rule} allows {cap}, not {given}"));
                }
            }
        }
        let Some(cap) = self.max_replicas else { return };
        for label in [MIN_REPLICAS_LABEL, MAX_REPLICAS_LABEL] {
            match spec.labels.get(label).map(|text| text.parse::<u32>()) {
                // No replicas at most is no limit, too. No replicas at least is no more than the cap.
                Some(Ok(number)) if number <= cap && (number > 0 || label == MIN_REPLICAS_LABEL) => {}
                Some(_) => violations.push(format!(
                    "policy rule maxReplicas allows {label} from 1 up to {cap}"
                )),
                // Without the label, OpenFaaS scales up to 20.
                None if label == MAX_REPLICAS_LABEL => violations.push(format!(
                    "policy rule maxReplicas requires the label {label}, of at most {cap}"
                )),
                None => {}
            }
        }
    }
}

/// Returns whether an image is in the repository `prefix` or below it. The reference may leave out the default
/// registry.
fn allows_image(prefix: &str, image: &PinnedImage) -> bool {
    [image.as_str(), image.repository()].into_iter().any(|name| {
        let Some(rest) = name.strip_prefix(prefix) else {
            return false;
        };
        prefix.ends_with('/')
            || rest.is_empty()
            || rest.starts_with(['/', '@'])
            // After the registry alone, this is a port.
            || rest.starts_with(':') && prefix.contains('/')
    })
}

/// Adds a violation for every name that is not in a rule's list of allowed names.
fn check_names<'n>(
    rule: &str,
    allowed: &Option<Vec<String>>,
    given: impl Iterator<Item = &'n String>,
    violations: &mut Vec<String>,
) {
    let Some(allowed) = allowed else { return };
    let rejected = given.filter(|name| !matches_any_pattern(allowed, name));
    violations.extend(rejected.map(|name| format!("policy rule {rule} does not allow {name:?}")));
}

/// Returns whether a name equals an entry of `allowed`, or begins with an entry that ends in `*`.
fn matches_any_pattern(allowed: &[String], name: &str) -> bool {
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

    fn spec_from_deploy_fields(deploy: Value) -> FunctionSpec {
        let image = format!("registry.example/team/hello@sha256:{}", "0".repeat(64));
        let document = json!({"image": image, "deploy": deploy});
        let received = request::parse_hand_over(document.to_string().as_bytes()).unwrap();
        received.hand_over().spec.clone()
    }

    fn violations(rules: &Rules, spec: &FunctionSpec) -> Vec<String> {
        rules.violations(spec, Some(&spec.image))
    }

    fn rules_from_json(rules: Value) -> Rules {
        let policy = json!({"rules": rules}).to_string();
        Policy::parse(&policy).unwrap().rules
    }

    #[test]
    fn without_rules_everything_is_allowed() {
        let anything = spec_from_deploy_fields(json!({"service": "hello", "secrets": ["x"]}));
        assert_eq!(violations(&Rules::default(), &anything), Vec::<String>::new());
    }

    #[test]
    fn every_violation_names_its_rule() {
        let rules = rules_from_json(json!({
            "namespaces": ["team-*"], "images": ["registry.example/other/"], "secrets": ["api-*"],
            "environment": ["A"], "labels": ["com.openfaas.*"], "annotations": [], "maxCpu": "1",
            "maxMemory": "512Mi", "maxReplicas": 5, "readOnlyRootFilesystem": true
        }));
        let spec = spec_from_deploy_fields(json!({
            "service": "hello", "namespace": "openfaas-fn", "secrets": ["api-key", "other"],
            "envVars": {"A": "1", "B": "2"}, "labels": {"com.openfaas.scale.max": "6", "x": "y"},
            "annotations": {"topic": "t"}, "limits": {"cpu": "1500m"}, "requests": {"memory": "1Gi"}
        }));
        let violations = violations(&rules, &spec);
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
            "rule maxReplicas allows com.openfaas.scale.max from 1 up to 5",
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
    fn a_prefix_of_images_ends_at_a_segment() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (prefix, image, allowed) in [
            ("registry.example/t", "registry.example/t", true),
            ("registry.example/t", "registry.example/t:1", true),
            ("registry.example/t", "registry.example/t/hello", true),
            ("registry.example/t", "registry.example/t/hello:1", true),
            ("registry.example/t", "registry.example/team-b/hello", false),
            ("registry.example/t", "registry.example/t-b", false),
            ("registry.example/t/", "registry.example/t/hello", true),
            ("registry.example/t/", "registry.example/t", false),
            ("registry.example/t:1", "registry.example/t:1", true),
            ("registry.example/t:1", "registry.example/t:1.0", false),
            ("registry.example/t:1", "registry.example/t:12", false),
            ("registry.example", "registry.example/t", true),
            ("registry.example", "registry.example.org/t", false),
            ("registry.example", "registry.example:5000/t", false),
            ("registry.example:500", "registry.example:5000/t", false),
            ("registry.example:5000", "registry.example:5000/t", true),
            ("localhost", "localhost:5000/t", false),
            ("docker.io/library/", "nginx", true),
            ("docker.io/library", "docker.io/library/nginx", true),
            ("team", "team-b/hello", false),
            ("team", "team/hello", true),
        ] {
            let image = PinnedImage::parse_pinned(&format!("{image}@{digest}")).unwrap();
            assert_eq!(allows_image(prefix, &image), allowed, "{prefix} {image}");
        }
        let image = PinnedImage::parse_pinned(&format!("r.example/t@{digest}")).unwrap();
        assert!(allows_image(&format!("r.example/t@{digest}"), &image));
    }

    #[test]
    fn zero_exceeds_every_cap() {
        let rules = rules_from_json(json!({"maxCpu": "1", "maxMemory": "512Mi", "maxReplicas": 5}));
        let given = |cpu: &str, memory: &str, replicas: &str| {
            violations(
                &rules,
                &spec_from_deploy_fields(json!({
                    "service": "hello", "limits": {"cpu": cpu, "memory": memory}, "requests": {"cpu": "0"},
                    "labels": {"com.openfaas.scale.max": replicas, "com.openfaas.scale.min": "0"}
                })),
            )
        };
        assert_eq!(given("1", "512Mi", "5"), Vec::<String>::new());
        for zero in ["0", "0m", "0.0", "0e3"] {
            let violations = given(zero, zero, "0");
            assert_eq!(violations.len(), 3, "{violations:#?}");
            for (violation, rule) in violations.iter().zip(["maxCpu", "maxMemory", "maxReplicas"]) {
                assert!(violation.contains(rule), "{violation}");
            }
        }
    }

    #[test]
    fn absent_limits_get_the_policys_defaults() {
        let rules =
            rules_from_json(json!({"defaultMemory": "128Mi", "maxMemory": "256Mi", "defaultCpu": "500m"}));
        let mut open = spec_from_deploy_fields(json!({"service": "hello", "limits": {"cpu": "1"}}));
        rules.apply_defaults(&mut open);
        let limits = open.limits.clone().unwrap();
        let text = |limit: Option<Quantity>| limit.map(|limit| limit.to_string());
        assert_eq!(text(limits.cpu).as_deref(), Some("1"));
        assert_eq!(text(limits.memory).as_deref(), Some("128Mi"));
        assert!(violations(&rules, &open).is_empty());
    }

    #[test]
    fn a_rule_that_does_not_do_what_it_says_is_an_error() {
        for wrong in [
            json!({"rules": {"image": []}}),
            json!({"rules": {"maxMemory": "lots"}}),
            json!({"rule": {}}),
            json!({"rules": {"maxCpu": "0"}}),
            json!({"keys": {"a": {"maxMemory": "0Mi"}}}),
            json!({"rules": {"maxReplicas": 0}}),
            json!({"rules": {"images": [""]}}),
            json!({"rules": {"maxCpu": "1", "defaultCpu": "2"}}),
            json!({"rules": {"maxCpu": "1", "defaultCpu": "0"}}),
            json!([]),
        ] {
            assert!(Policy::parse(&wrong.to_string()).is_err(), "{wrong}");
        }
    }
}
