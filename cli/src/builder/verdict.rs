//! What the outcome of a build means: the exit status, and what to do next.

use serde_json::Value;

use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::settings::quote_for_shell;

/// What the command knows of a build that its outcome may not say.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CallerContext<'a> {
    /// Whether a version of which nothing proves that it is the one that answers counts as not deployed.
    pub(crate) unverified_is_not_deployed: bool,
    /// The function, `NAME` or `NAME.NAMESPACE`, if it is known.
    pub(crate) function: Option<&'a str>,
    /// The options that lead another command to the same builder, each with a space before it.
    pub(crate) options: &'a str,
}

/// What a terminal record, an error's answer or `GET /builds/ID` says about a build that has ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Verdict {
    /// The exit status.
    pub(crate) status: ExitStatus,
    /// What happened, in one line.
    pub(crate) summary: String,
    /// Why it happened, and where, in lines; none if the builder does not know.
    pub(crate) explanation: Vec<String>,
    /// What to do next, unless all is well.
    pub(crate) next: Option<String>,
    /// The warnings, and why it is not sure that the new version is the one that answers.
    pub(crate) warnings: Vec<String>,
}

impl Verdict {
    /// Judges the outcome of a build whose function was to be deployed.
    pub(crate) fn of_outcome(outcome: &Value, caller: &CallerContext<'_>) -> Self {
        let verdict = Self::of_outcome_without_hint(outcome, caller);
        let verdict = match outcome["rollback"].is_object() {
            true => verdict.reworded_for_rollback(outcome, caller),
            false => verdict,
        };
        // A build that was replaced or cancelled, or of which nothing is known, is what it is.
        match verdict.next.is_some() && !matches!(verdict.status, ExitStatus::Replaced) {
            true => verdict.with_hint(&outcome["hint"]),
            false => verdict,
        }
    }

    /// Returns the verdict with the explanation and the next step of the builder's hint, if there is one.
    fn with_hint(mut self, hint: &Value) -> Self {
        let part = |key: &str| hint[key].as_str().filter(|text| !text.is_empty());
        let place = match (part("file"), hint["line"].as_u64()) {
            (Some(file), Some(line)) => format!("{file}:{line}: "),
            (Some(file), None) => format!("{file}: "),
            (None, _) => String::new(),
        };
        if let Some(cause) = part("cause") {
            self.explanation.push(format!("cause: {place}{cause}"));
        }
        let step = &hint["step"];
        if let Some(name) = step["name"].as_str() {
            let place = match (step["file"].as_str(), step["line"].as_u64()) {
                (Some(file), Some(line)) => format!(" ({file}:{line})"),
                _ => String::new(),
            };
            self.explanation.push(format!("step: {name}{place}"));
        }
        let log = texts_in_json_list(&hint["log"]).into_iter();
        self.explanation.extend(log.map(|line| format!("   {line}")));
        if let Some(next) = part("next") {
            self.next = Some(next.to_owned());
        }
        self
    }

    /// Returns the verdict on a build in the words of a rollback, which builds nothing.
    fn reworded_for_rollback(mut self, outcome_of_rollback: &Value, caller: &CallerContext<'_>) -> Self {
        if outcome_of_rollback["deployment"]["status"] == "rolled_back" {
            let reasons = texts_in_json_list(&outcome_of_rollback["deployment"]["reasons"]).join("; ");
            self.summary = format!(
                "the earlier version does not work any more, and the one before the rollback was restored: {reasons}"
            );
        } else if let Some(rest) = self.summary.strip_prefix("built, and ") {
            self.summary = rest.to_owned();
        }
        if self.next.is_some() && self.status != ExitStatus::Replaced {
            let (name, namespace) = function_and_namespace(outcome_of_rollback, caller);
            let function = match namespace {
                Some(namespace) => format!("{name}.{namespace}"),
                None => name.to_owned(),
            };
            self.next = Some(format!(
                "choose another version (slipway rollback {} --list{}), or build the source again (slipway up)",
                quote_for_shell(&function),
                caller.options
            ));
        }
        self
    }

    /// Returns the error of a request that was refused with this verdict.
    pub(crate) fn into_failure(self, message: impl Into<String>) -> Failure {
        let next = self
            .next
            .unwrap_or_else(|| RUN_UP_AGAIN_OR_ASK_OPERATOR.to_owned());
        Failure::new(self.status, message, next)
    }

    /// Judges the outcome of a build without its hint.
    fn of_outcome_without_hint(outcome: &Value, caller: &CallerContext<'_>) -> Self {
        let deployment = &outcome["deployment"];
        let mut warnings = texts_in_json_list(&outcome["warnings"]);
        warnings.extend(texts_in_json_list(&deployment["warnings"]));
        let error = outcome["error"].as_str().unwrap_or("the builder gave no reason");
        let failed = |status, summary: String, next: &str| Self {
            status,
            summary,
            explanation: Vec::new(),
            next: Some(next.to_owned()),
            warnings: warnings.clone(),
        };
        let is_success = outcome["status"] == "success" || outcome["state"] == "success";
        let deployed = deployment["status"].as_str();
        if is_success {
            let took = deployment_seconds(deployment)
                .map_or_else(String::new, |seconds| format!(" in {seconds:.1} s"));
            let unsure = match deployed {
                Some("ready") => return Self::successful(format!("running{took}"), warnings),
                Some("unverified") => texts_in_json_list(&deployment["reasons"]).join("; "),
                Some("handed_over") => {
                    // Nobody delivers the answer with the hand-over to the deployer.
                    return failed(
                        ExitStatus::NotDeployed,
                        "built, and not deployed: this builder leaves the hand-over to the caller (deploy_via=callback)"
                            .to_owned(),
                        "have the operator set deploy_via=function or deploy_via=async-function",
                    );
                }
                Some("queued") => {
                    "the deployment is queued, and its outcome is only in the deployer's log".to_owned()
                }
                Some(other) => format!("the deployer's answer has the unknown status {other:?}"),
                None => "the builder's answer says nothing about the deployment".to_owned(),
            };
            if caller.unverified_is_not_deployed {
                let summary = format!("built, and not known to run: {unsure}");
                return failed(
                    ExitStatus::NotDeployed,
                    summary,
                    "call the function to see which version answers, or leave --strict out",
                );
            }
            warnings.push(format!("not verified: {unsure}"));
            return Self::successful(format!("deployed{took}"), warnings);
        }
        if let Some(newer) = outcome["supersededBy"]
            .as_str()
            .or(deployment["supersededBy"].as_str())
        {
            let next = format!(
                "watch the newer build: slipway logs {} -f{}",
                quote_for_shell(newer),
                caller.options
            );
            return failed(
                ExitStatus::Replaced,
                format!("replaced by the newer build {newer}"),
                &next,
            );
        }
        if error == "cancelled" || outcome["state"] == "cancelled" {
            return failed(
                ExitStatus::Replaced,
                "cancelled".to_owned(),
                "run slipway up again to build it after all",
            );
        }
        if outcome["state"] == "unknown" {
            return failed(
                ExitStatus::PlatformFailed,
                format!("what became of the build is not known: {error}"),
                "call the function to see which version answers, and run slipway up again if it is not the new one",
            );
        }
        let code = outcome["code"].as_u64();
        if let Some(status) = deployed {
            return Self::of_failed_deployment(status, outcome, caller, error, code, warnings);
        }
        let (status, next) = exit_status_and_next_step(code, error);
        failed(status, error.to_owned(), next)
    }

    /// Judges a deployment that failed, whether before the build or after it.
    fn of_failed_deployment(
        status: &str,
        outcome: &Value,
        caller: &CallerContext<'_>,
        error: &str,
        code: Option<u64>,
        warnings: Vec<String>,
    ) -> Self {
        let reasons = texts_in_json_list(&outcome["deployment"]["reasons"]).join("; ");
        let function = match function_and_namespace(outcome, caller) {
            (name, Some(namespace)) => format!("{} -n {}", quote_for_shell(name), quote_for_shell(namespace)),
            (name, None) => quote_for_shell(name),
        };
        let reasons = match reasons.is_empty() {
            true => error.to_owned(),
            false => reasons,
        };
        let (status, what, next) = match status {
            "rolled_back" => (
                ExitStatus::NotDeployed,
                "built, and rolled back: the new version did not work",
                format!(
                    "see what the function logged (faas-cli logs {function}), correct it, and run slipway up again; the version \
                     before is running, if there was one"
                ),
            ),
            "refused" if code.is_some_and(|code| code >= 500) => (
                ExitStatus::PlatformFailed,
                "built, and the deployer did not take it",
                "run slipway up again; if that fails, the operator finds the reason in the deployer's log".to_owned(),
            ),
            "refused" => (
                ExitStatus::NotDeployed,
                "not deployed: the deployer refuses it",
                "correct the function in the stack file, create what is missing (faas-cli secret create NAME), and run slipway \
                 up again"
                    .to_owned(),
            ),
            _ if code.is_some_and(|code| code >= 500) => (
                ExitStatus::PlatformFailed,
                "built, and the deployment failed",
                "run slipway up again; if that fails, the operator finds the reason in the deployer's log".to_owned(),
            ),
            _ => (
                ExitStatus::NotDeployed,
                "built, and the deployment failed",
                format!("see what runs now (faas-cli describe {function}), and run slipway up again"),
            ),
        };
        Self {
            status,
            summary: format!("{what}: {reasons}"),
            explanation: Vec::new(),
            next: Some(next),
            warnings,
        }
    }

    fn successful(summary: String, warnings: Vec<String>) -> Self {
        Self {
            status: ExitStatus::Success,
            summary,
            explanation: Vec::new(),
            next: None,
            warnings,
        }
    }
}

/// What to do next about a failure of which nothing else is known.
const RUN_UP_AGAIN_OR_ASK_OPERATOR: &str =
    "run slipway up again; if that fails, the operator finds the reason in the builder's log";

/// Returns the name of the function of a build and its namespace, as the deployer, the builder's record or the command
/// know them; the word `NAME` if nothing does.
fn function_and_namespace<'a>(outcome: &'a Value, caller: &CallerContext<'a>) -> (&'a str, Option<&'a str>) {
    let deployment = &outcome["deployment"];
    if let Some(name) = deployment["function"].as_str() {
        return (name, deployment["namespace"].as_str());
    }
    let full_name = caller.function.or(outcome["function"].as_str()).unwrap_or("NAME");
    match full_name.split_once('.') {
        Some((name, namespace)) => (name, Some(namespace)),
        None => (full_name, None),
    }
}

/// Returns the exit status for the HTTP status of a failure, and what to do next.
fn exit_status_and_next_step(http_status: Option<u64>, error: &str) -> (ExitStatus, &'static str) {
    match http_status {
        Some(401) => (
            ExitStatus::Usage,
            "give the key that the builder has as its secret payload-secret (--payload-secret FILE), and check this machine's \
             clock",
        ),
        Some(403) => (
            ExitStatus::Usage,
            "change the function so that the rules allow it, or ask the operator; slipway policy check tries a policy",
        ),
        Some(413) => (
            ExitStatus::Usage,
            "exclude what the build does not need in .dockerignore",
        ),
        Some(400 | 404 | 501) => (
            ExitStatus::Usage,
            "correct what the error names, and run slipway up again",
        ),
        Some(422) | None if error.contains("did not complete successfully") => (
            ExitStatus::Failed,
            "the step's output above has the reason: correct it, and run slipway up again",
        ),
        Some(422) | None => (
            ExitStatus::Failed,
            "correct what the error names, and run slipway up again",
        ),
        Some(409) => (
            ExitStatus::PlatformFailed,
            "run slipway up again, which signs a new request",
        ),
        Some(429) => (
            ExitStatus::PlatformFailed,
            "the builder is busy: run slipway up again in a moment",
        ),
        Some(507) => (
            ExitStatus::PlatformFailed,
            "the builder has no room now: run slipway up again later, or ask the operator",
        ),
        Some(_) => (ExitStatus::PlatformFailed, RUN_UP_AGAIN_OR_ASK_OPERATOR),
    }
}

/// Returns the seconds that the steps of a deployment took together.
fn deployment_seconds(deployment: &Value) -> Option<f64> {
    let durations = deployment["durations"].as_object()?;
    match durations.get("total").and_then(Value::as_f64) {
        Some(total) => Some(total),
        None => Some(durations.values().filter_map(Value::as_f64).sum()),
    }
}

/// Returns the texts in a JSON list.
fn texts_in_json_list(list: &Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A caller who knows nothing of the build besides its outcome.
    const LENIENT: CallerContext<'_> = CallerContext {
        unverified_is_not_deployed: false,
        function: None,
        options: "",
    };

    /// The same with `--strict`.
    const STRICT: CallerContext<'_> = CallerContext {
        unverified_is_not_deployed: true,
        ..LENIENT
    };

    #[test]
    fn a_next_step_names_the_function_and_the_options_that_lead_to_the_same_builder() {
        let caller = CallerContext {
            function: Some("shop.team"),
            options: " --gateway http://g.example",
            ..LENIENT
        };
        let rolled_back = |deployment: Value| {
            let deployment = json!({"status": "rolled_back", "function": deployment["function"], "namespace": deployment["namespace"]});
            json!({"status": "failed", "error": "no", "code": 422, "deployment": deployment})
        };
        let mut rollback = rolled_back(json!({}));
        rollback["rollback"] = json!({"to": "a"});
        let failed =
            json!({"status": "failed", "error": "no", "code": 422, "deployment": {"status": "failed"}});
        let newer = json!({"status": "failed", "error": "newer", "code": 409, "supersededBy": "b"});
        for (outcome, next) in [
            (
                rolled_back(json!({"function": "cart", "namespace": "x"})),
                "faas-cli logs cart -n x)",
            ),
            (rolled_back(json!({"function": "cart"})), "faas-cli logs cart)"),
            (rolled_back(json!({})), "faas-cli logs shop -n team)"),
            (failed, "faas-cli describe shop -n team)"),
            (
                rollback,
                "slipway rollback shop.team --list --gateway http://g.example",
            ),
            (newer, "slipway logs b -f --gateway http://g.example"),
        ] {
            let verdict = Verdict::of_outcome(&outcome, &caller);
            assert!(
                verdict.next.as_deref().is_some_and(|text| text.contains(next)),
                "{next}: {verdict:?}"
            );
        }
    }

    #[test]
    fn each_outcome_has_its_exit_status() {
        let failed = |code: u64| json!({"status": "failed", "error": "no", "code": code});
        let deployment = |status: &str, code: u64| json!({"status": "failed", "error": "no", "code": code, "deployment": {"status": status, "reasons": ["why"]}});
        let built = |status: &str| json!({"status": "success", "deployment": {"status": status}});
        for (outcome, expected) in [
            (built("ready"), 0),
            (built("unverified"), 0),
            (built("queued"), 0),
            (built("handed_over"), 3),
            (
                json!({"status": "failed", "error": "who knows", "state": "unknown"}),
                4,
            ),
            (deployment("refused", 502), 4),
            (failed(422), 1),
            (json!({"status": "failed", "error": "exit code: 3"}), 1),
            (failed(400), 2),
            (failed(401), 2),
            (failed(403), 2),
            (failed(413), 2),
            (deployment("rolled_back", 422), 3),
            (deployment("rolled_back", 502), 3),
            (deployment("refused", 422), 3),
            (deployment("failed", 422), 3),
            (deployment("failed", 502), 4),
            (failed(408), 4),
            (failed(429), 4),
            (failed(502), 4),
            (failed(507), 4),
            (
                json!({"status": "failed", "error": "newer", "code": 409, "supersededBy": "b"}),
                5,
            ),
            (json!({"status": "failed", "error": "cancelled", "code": 409}), 5),
            (json!({"state": "cancelled"}), 5),
        ] {
            let verdict = Verdict::of_outcome(&outcome, &LENIENT);
            assert_eq!(verdict.status.code(), expected, "{outcome}: {verdict:?}");
            assert_eq!(
                verdict.next.is_none(),
                expected == 0,
                "every failure has a next step: {verdict:?}"
            );
        }
    }

    #[test]
    fn a_strict_caller_does_not_count_an_unverified_version_as_running() {
        for status in ["unverified", "queued"] {
            let outcome = json!({"status": "success", "deployment": {"status": status}});
            assert_eq!(
                Verdict::of_outcome(&outcome, &STRICT).status.code(),
                3,
                "{status}"
            );
            let verdict = Verdict::of_outcome(&outcome, &LENIENT);
            assert!(verdict.warnings[0].starts_with("not verified"), "{verdict:?}");
        }
        let ready = json!({"status": "success", "deployment": {"status": "ready"}});
        assert_eq!(Verdict::of_outcome(&ready, &STRICT).status.code(), 0);
    }

    #[test]
    fn a_hint_of_the_builder_is_the_explanation_and_the_next_step() {
        let hint = json!({
            "kind": "compile-error", "cause": "a type error", "file": "src/main.rs", "line": 7,
            "step": {"name": "[2/2] RUN make", "file": "Dockerfile", "line": 3}, "log": ["last words"], "next": "correct the type",
        });
        for (outcome, status) in [
            (
                json!({"status": "failed", "error": "exit code: 1", "code": 422, "hint": hint}),
                1,
            ),
            (
                json!({"status": "failed", "error": "no", "code": 422, "hint": hint, "deployment": {"status": "rolled_back"}}),
                3,
            ),
        ] {
            let verdict = Verdict::of_outcome(&outcome, &LENIENT);
            assert_eq!(verdict.status.code(), status);
            assert_eq!(verdict.next.as_deref(), Some("correct the type"));
            assert_eq!(
                verdict.explanation,
                [
                    "cause: src/main.rs:7: a type error",
                    "step: [2/2] RUN make (Dockerfile:3)",
                    "   last words"
                ]
            );
        }
        let without_place = json!({"status": "failed", "error": "no", "hint": {"cause": "a type error", "next": "correct it"}});
        let verdict = Verdict::of_outcome(&without_place, &LENIENT);
        assert_eq!(verdict.explanation, ["cause: a type error"]);
        let superseded =
            json!({"status": "failed", "error": "newer", "code": 409, "supersededBy": "b", "hint": hint});
        assert_eq!(
            Verdict::of_outcome(&superseded, &LENIENT).explanation,
            Vec::<String>::new()
        );
    }
}
