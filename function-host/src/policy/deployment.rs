//! The rules on what a tenant may deploy, and the function that they are applied to.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::error::Violation;
use super::names::NamePatterns;
use super::quantity::Quantity;
use super::reader::ObjectReader;
use super::tenant::TenantName;

/// The label with a function's highest number of replicas.
const SCALE_MAX_LABEL: &str = "com.openfaas.scale.max";
/// The label with a function's lowest number of replicas.
const SCALE_MIN_LABEL: &str = "com.openfaas.scale.min";

/// The annotations of OpenFaaS with which a function chooses its service account and its profile, and so what it may do
/// in the cluster.
const POWERFUL_ANNOTATIONS: [&str; 2] = [SERVICE_ACCOUNT_ANNOTATION, "com.openfaas.profile"];

/// The annotation with which a function chooses its service account.
pub(super) const SERVICE_ACCOUNT_ANNOTATION: &str = "com.openfaas.serviceaccount";

/// Amounts of CPU and memory in a request to deploy a function: its limits, or what is reserved for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitOrReservationAmounts {
    /// The amount of CPU, in cores.
    pub cpu: Option<Quantity>,
    /// The amount of memory, in bytes.
    pub memory: Option<Quantity>,
}

/// The fields of a request to deploy a function that rules are applied to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestedFunction<'a> {
    /// The function's name.
    pub name: &'a str,
    /// The function's namespace, if the request has one.
    pub namespace: Option<&'a str>,
    /// The names of the secrets that the function uses.
    pub secrets: Vec<&'a str>,
    /// The names of the function's environment variables.
    pub environment: Vec<&'a str>,
    /// The function's labels.
    pub labels: BTreeMap<&'a str, &'a str>,
    /// The function's annotations.
    pub annotations: BTreeMap<&'a str, &'a str>,
    /// The function's placement constraints.
    pub constraints: Vec<&'a str>,
    /// The limits on the CPU and memory of one replica.
    pub limits: LimitOrReservationAmounts,
    /// The CPU and memory that are reserved for one replica.
    pub requests: LimitOrReservationAmounts,
    /// Whether the function's root file system is read-only.
    pub read_only_root_filesystem: bool,
}

impl<'a> RequestedFunction<'a> {
    /// Reads the object `deploy` of a build's configuration. A field of a wrong type counts as absent: the deployer
    /// rejects it.
    #[must_use]
    pub fn from_json(deploy: &'a Map<String, Value>) -> Self {
        let text = |name: &str| {
            deploy
                .get(name)
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty())
        };
        let object = |name: &str| deploy.get(name).and_then(Value::as_object).into_iter().flatten();
        let names = |name: &str| object(name).map(|(name, _)| name.as_str()).collect();
        let resources = |name: &str| {
            let amount = |kind: &str| {
                // Go, and so the gateway, matches names in any case.
                let given = deploy.get(name)?.as_object()?.iter();
                let (_, amount) = given
                    .into_iter()
                    .find(|(name, _)| name.eq_ignore_ascii_case(kind))?;
                Quantity::parse(amount.as_str()?)
            };
            LimitOrReservationAmounts {
                cpu: amount("cpu"),
                memory: amount("memory"),
            }
        };
        let texts = |name: &str| {
            let list = deploy.get(name).and_then(Value::as_array).into_iter().flatten();
            list.filter_map(Value::as_str).collect()
        };
        let pairs = |name: &str| {
            object(name)
                .map(|(name, value)| (name.as_str(), value.as_str().unwrap_or_default()))
                .collect()
        };
        let flag = deploy.get("readOnlyRootFilesystem").and_then(Value::as_bool);
        Self {
            name: text("service").unwrap_or_default(),
            namespace: text("namespace"),
            secrets: texts("secrets"),
            environment: names("envVars"),
            labels: pairs("labels"),
            annotations: pairs("annotations"),
            constraints: texts("constraints"),
            limits: resources("limits"),
            requests: resources("requests"),
            read_only_root_filesystem: flag.unwrap_or_default(),
        }
    }
}

/// The rules on what a tenant may deploy. An absent list or maximum allows everything, except annotations that give a
/// function rights in the cluster; without `adopt`, a function that belongs to no tenant is not taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeploymentRules {
    tenant: TenantName,
    functions: Option<NamePatterns>,
    namespaces: Option<NamePatterns>,
    secrets: Option<NamePatterns>,
    environment: Option<NamePatterns>,
    labels: Option<NamePatterns>,
    annotations: Option<NamePatterns>,
    constraints: Option<NamePatterns>,
    max_cpu: Option<Quantity>,
    max_memory: Option<Quantity>,
    max_replicas: Option<u32>,
    default_cpu: Option<Quantity>,
    default_memory: Option<Quantity>,
    read_only_root_filesystem: bool,
    adopt: bool,
}

impl DeploymentRules {
    /// Reads the members of a tenant that are about its functions.
    pub(super) fn read(tenant: TenantName, reader: &mut ObjectReader<'_>) -> Self {
        let names = |reader: &mut ObjectReader<'_>, name| {
            reader
                .read_list_empty_if_wrong(name, NamePatterns::check_name_pattern)
                .map(NamePatterns::new)
        };
        let rules = Self {
            tenant,
            functions: names(reader, "functions"),
            namespaces: names(reader, "namespaces"),
            secrets: names(reader, "secrets"),
            environment: names(reader, "environment"),
            labels: names(reader, "labels"),
            annotations: names(reader, "annotations"),
            constraints: names(reader, "constraints"),
            max_cpu: reader.read_positive_quantity("maxCpu"),
            max_memory: reader.read_positive_quantity("maxMemory"),
            max_replicas: reader.read_positive_number("maxReplicas"),
            default_cpu: reader.read_positive_quantity("defaultCpu"),
            default_memory: reader.read_positive_quantity("defaultMemory"),
            read_only_root_filesystem: reader.read_flag("readOnlyRootFilesystem"),
            adopt: reader.read_flag("adopt"),
        };
        for (rule, default, cap) in [
            ("defaultCpu", &rules.default_cpu, &rules.max_cpu),
            ("defaultMemory", &rules.default_memory, &rules.max_memory),
        ] {
            if let (Some(default), Some(cap)) = (default, cap)
                && default.exceeds(cap)
            {
                reader.report_problem(
                    rule,
                    format!("should be at most the maximum of {cap}, not {default}"),
                );
            }
        }
        rules
    }

    /// Returns the limit on the CPU of functions whose request names none.
    #[must_use]
    pub fn default_cpu(&self) -> Option<&Quantity> {
        self.default_cpu.as_ref()
    }

    /// Returns the limit on the memory of functions whose request names none.
    #[must_use]
    pub fn default_memory(&self) -> Option<&Quantity> {
        self.default_memory.as_ref()
    }

    /// Returns whether the tenant may take over a function that belongs to no tenant.
    #[must_use]
    pub fn may_adopt_unowned_functions(&self) -> bool {
        self.adopt
    }

    /// Returns whether the rules list the names of the tenant's functions.
    #[must_use]
    pub fn restricts_function_names(&self) -> bool {
        self.functions.is_some()
    }

    /// Returns every violation of the rules in a function, in the order of the rules.
    #[must_use]
    pub fn violations(&self, function: &RequestedFunction<'_>) -> Vec<Violation> {
        let mut violations = Vec::new();
        self.add_name_violations("functions", &self.functions, [function.name], &mut violations);
        match (&self.namespaces, function.namespace) {
            (Some(_), None) => {
                violations.push(self.violation_of_rule("namespaces", "requires deploy.namespace"))
            }
            (allowed, given) => self.add_name_violations("namespaces", allowed, given, &mut violations),
        }
        for (rule, allowed, given) in [
            ("secrets", &self.secrets, &function.secrets),
            ("environment", &self.environment, &function.environment),
        ] {
            self.add_name_violations(rule, allowed, given.iter().copied(), &mut violations);
        }
        let labels = function.labels.keys().copied();
        self.add_name_violations("labels", &self.labels, labels, &mut violations);
        self.add_annotation_violations(function, &mut violations);
        let constraints = function.constraints.iter().copied();
        self.add_name_violations("constraints", &self.constraints, constraints, &mut violations);
        self.add_resource_violations(function, &mut violations);
        self.add_wrong_or_absent_replica_label_violations(function, &mut violations);
        if self.read_only_root_filesystem && !function.read_only_root_filesystem {
            let problem = "requires deploy.readOnlyRootFilesystem to be true";
            violations.push(self.violation_of_rule("readOnlyRootFilesystem", problem));
        }
        violations
    }

    fn violation_of_rule(&self, rule: &str, problem: impl std::fmt::Display) -> Violation {
        Violation::of_rule(rule, &self.tenant, problem)
    }

    /// Adds a violation for every name that is not in a rule's list of allowed names.
    fn add_name_violations<'n>(
        &self,
        rule: &str,
        allowed: &Option<NamePatterns>,
        names: impl IntoIterator<Item = &'n str>,
        violations: &mut Vec<Violation>,
    ) {
        let Some(allowed) = allowed else { return };
        let rejected = names.into_iter().filter(|name| !allowed.allows(name));
        violations.extend(
            rejected.map(|name| self.violation_of_rule(rule, format_args!("does not allow {name:?}"))),
        );
    }

    /// Adds a violation for every annotation that is not allowed. Those that give a function rights of the cluster have
    /// to be listed by their full names.
    fn add_annotation_violations(&self, function: &RequestedFunction<'_>, violations: &mut Vec<Violation>) {
        let (powerful, others): (Vec<&str>, Vec<&str>) = function
            .annotations
            .keys()
            .partition(|name| POWERFUL_ANNOTATIONS.contains(name));
        self.add_name_violations("annotations", &self.annotations, others, violations);
        let is_listed = |name: &str| {
            let listed = self.annotations.iter().flat_map(NamePatterns::entries);
            listed.into_iter().any(|entry| entry == name)
        };
        let rejected = powerful.into_iter().filter(|name| !is_listed(name));
        violations.extend(rejected.map(|name| {
            let problem = format!("does not allow {name:?}, which has to be listed by its full name");
            self.violation_of_rule("annotations", problem)
        }));
    }

    /// Adds a violation for each amount of CPU or memory over its maximum, and for a limit that is absent or zero where
    /// there is a maximum.
    fn add_resource_violations(&self, function: &RequestedFunction<'_>, violations: &mut Vec<Violation>) {
        let RequestedFunction { limits, requests, .. } = function;
        for (rule, cap, default, limit, request) in [
            (
                "maxCpu",
                &self.max_cpu,
                &self.default_cpu,
                &limits.cpu,
                &requests.cpu,
            ),
            (
                "maxMemory",
                &self.max_memory,
                &self.default_memory,
                &limits.memory,
                &requests.memory,
            ),
        ] {
            let Some(cap) = cap else { continue };
            let limit = limit.as_ref().or(default.as_ref());
            if limit.is_none() {
                violations
                    .push(self.violation_of_rule(rule, format_args!("requires a limit of at most {cap}")));
            }
            if limit.is_some_and(Quantity::is_zero) {
                violations.push(
                    self.violation_of_rule(rule, format_args!("allows {cap}, not 0, which means no limit")),
                );
            }
            for given in limit.into_iter().chain(request) {
                if given.exceeds(cap) {
                    violations.push(self.violation_of_rule(rule, format_args!("allows {cap}, not {given}")));
                }
            }
        }
    }

    /// Adds a violation for a replica label that is not a number up to the maximum, for a highest number of 0, and for
    /// an absent label of the highest number.
    fn add_wrong_or_absent_replica_label_violations(
        &self,
        function: &RequestedFunction<'_>,
        violations: &mut Vec<Violation>,
    ) {
        let Some(cap) = self.max_replicas else { return };
        // No replicas at most is no limit, too. No replicas at least is no more than the cap.
        for (label, least) in [(SCALE_MIN_LABEL, 0), (SCALE_MAX_LABEL, 1)] {
            match function.labels.get(label).map(|text| text.parse::<u32>()) {
                Some(Ok(number)) if (least..=cap).contains(&number) => {}
                Some(_) => {
                    let problem = format_args!("allows {label} from {least} up to {cap}");
                    violations.push(self.violation_of_rule("maxReplicas", problem));
                }
                // Without the label, OpenFaaS scales up to 20.
                None if label == SCALE_MAX_LABEL => {
                    let problem = format_args!("requires the label {label}, of at most {cap}");
                    violations.push(self.violation_of_rule("maxReplicas", problem));
                }
                None => {}
            }
        }
    }
}
