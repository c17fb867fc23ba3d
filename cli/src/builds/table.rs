//! Builds and versions as text.

use serde_json::Value;

use crate::output::printable;

/// The titles of the columns of a list of builds.
const BUILD_LIST_TITLES: [&str; 5] = ["ID", "STATE", "SUBMITTED", "FUNCTION", "IMAGE"];

/// The titles of the columns of a list of versions.
const VERSION_TITLES: [&str; 6] = ["ID", "STATE", "SUBMITTED", "IMAGE", "DIGEST", ""];

/// The characters of a digest that are enough for people.
const SHORT_DIGEST_CHARS: usize = "sha256:".len() + 12;

/// Returns the lines of a list of builds, with titles.
pub(super) fn lines_of_build_list(builds: &[Value]) -> Vec<String> {
    let rows = builds.iter().map(|build| {
        [
            text_or_hyphen(build, "id"),
            text_or_hyphen(build, "state"),
            submission_time_to_the_second_or_hyphen(build),
            text_or_hyphen(build, "function"),
            text_or_hyphen(build, "image"),
        ]
    });
    aligned_table_lines(BUILD_LIST_TITLES, rows)
}

/// Returns the lines of a list of versions, with titles.
pub(super) fn lines_of_versions(versions: &[Value]) -> Vec<String> {
    let rows = versions.iter().map(|version| {
        let note = match (version["current"].as_bool(), version["target"].as_bool()) {
            (Some(true), _) => "current",
            (_, Some(true)) => "the next rollback",
            _ => "",
        };
        let note = match version["rollback"]["to"].as_str() {
            Some(to) => format!("rollback to {}  {note}", printable(to)),
            None => note.to_owned(),
        };
        [
            text_or_hyphen(version, "id"),
            text_or_hyphen(version, "state"),
            submission_time_to_the_second_or_hyphen(version),
            text_or_hyphen(version, "image"),
            text_or_hyphen(version, "digest")
                .chars()
                .take(SHORT_DIGEST_CHARS)
                .collect(),
            note,
        ]
    });
    aligned_table_lines(VERSION_TITLES, rows)
}

/// Returns a text of a build or a version, or a hyphen.
fn text_or_hyphen(build: &Value, key: &str) -> String {
    printable(build[key].as_str().unwrap_or("-"))
}

/// Returns the time at which a build or version was submitted, without fractions of a second; a hyphen if there is
/// none.
fn submission_time_to_the_second_or_hyphen(build: &Value) -> String {
    let submitted = text_or_hyphen(build, "submittedAt");
    let seconds = submitted.split_once('.');
    seconds
        .map(|(seconds, _)| format!("{seconds}Z"))
        .unwrap_or(submitted)
}

/// Returns the lines of a table whose columns are as wide as their widest cells.
fn aligned_table_lines<const N: usize>(
    titles: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> Vec<String> {
    let rows: Vec<_> = [titles.map(str::to_owned)].into_iter().chain(rows).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let lines = rows.iter().map(|row| {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect()
}

/// Returns the lines about one build: a name and a value each.
pub(super) fn lines_of_build(build: &Value) -> Vec<String> {
    let keys = [
        "id",
        "state",
        "function",
        "image",
        "digest",
        "commit",
        "submittedAt",
        "startedAt",
        "endedAt",
        "attempts",
        "error",
        "supersededBy",
    ];
    let mut lines: Vec<_> = keys
        .into_iter()
        .filter(|key| !build[*key].is_null())
        .map(|key| format!("{key}: {}", value_text(&build[key])))
        .collect();
    lines.extend(lines_of_hint(&build["hint"]));
    if let Some(steps) = build["steps"].as_object() {
        let number = |key: &str| steps.get(key).and_then(Value::as_u64).unwrap_or_default();
        lines.push(format!(
            "steps: {} of {} done, {} of them from the cache",
            number("completed"),
            number("total"),
            number("cached")
        ));
    }
    if let Some(to) = build["rollback"]["to"].as_str() {
        lines.push(format!("rollback to: {}", printable(to)));
    }
    let deployment = &build["deployment"];
    if let Some(status) = deployment["status"].as_str() {
        lines.push(format!("deployment: {}", printable(status)));
        if let Some(state) = running_state_text(deployment) {
            lines.push(format!("ran afterwards: {state}"));
        }
        if let Some(durations) = deployment["durations"].as_object() {
            let steps = durations
                .iter()
                .filter(|(_, seconds)| seconds.as_f64() > Some(0.0))
                .map(|(step, seconds)| format!("{} {seconds} s", printable(step)));
            lines.push(format!(
                "deployment steps: {}",
                steps.collect::<Vec<_>>().join(", ")
            ));
        }
    }
    for (name, list) in [
        ("reason", &deployment["reasons"]),
        ("warning", &build["warnings"]),
    ] {
        let texts = list.as_array().into_iter().flatten();
        lines.extend(texts.map(|text| format!("{name}: {}", value_text(text))));
    }
    lines
}

/// Returns the image and the replicas that the function had at the end of a deployment, or `nothing` if there was no
/// function then; `None` if it is not known.
fn running_state_text(deployment: &Value) -> Option<String> {
    let state = deployment.get("running")?;
    if state.is_null() {
        return Some("nothing".to_owned());
    }
    let image = printable(state["image"].as_str()?);
    Some(match state["availableReplicas"].as_u64() {
        Some(count) => format!("{image}, available replicas: {count}"),
        None => image,
    })
}

/// Returns the lines about the cause of a failure.
fn lines_of_hint(hint: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(file) = hint["file"].as_str() {
        let line = hint["line"]
            .as_u64()
            .map_or_else(String::new, |line| format!(":{line}"));
        lines.push(format!("place: {}{line}", printable(file)));
    }
    if let Some(name) = hint["step"]["name"].as_str() {
        lines.push(format!("step: {}", printable(name)));
    }
    for (name, value) in [
        ("kind", &hint["kind"]),
        ("cause", &hint["cause"]),
        ("next", &hint["next"]),
    ] {
        if let Some(text) = value.as_str() {
            lines.push(format!("{name}: {}", printable(text)));
        }
    }
    let log = hint["log"].as_array().into_iter().flatten();
    lines.extend(log.map(|line| format!("log: {}", value_text(line))));
    lines
}

/// Returns a value as text without quotes.
fn value_text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => printable(text),
        None => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_has_titles_and_columns_of_equal_width() {
        let builds = [
            json!({"id": "a", "state": "success", "submittedAt": "2026-12-01T10:00:00.123Z", "image": "r/a:1"}),
            json!({"id": "long-id", "state": "failed", "function": "shop.openfaas-fn"}),
        ];
        assert_eq!(
            lines_of_build_list(&builds),
            [
                "ID       STATE    SUBMITTED             FUNCTION          IMAGE",
                "a        success  2026-12-01T10:00:00Z  -                 r/a:1",
                "long-id  failed   -                     shop.openfaas-fn  -",
            ]
        );
    }

    #[test]
    fn a_build_is_shown_with_all_that_is_known_and_nothing_else() {
        let build = json!({
            "id": "a", "state": "failed", "attempts": 1, "error": "no\u{1b}[2J", "steps": {"total": 3, "completed": 2, "cached": 1},
            "deployment": {
                "status": "rolled_back", "durations": {"apply": 0.5, "queue": 0.0}, "reasons": ["why"],
                "running": {"image": "r/a@sha256:1", "availableReplicas": 1},
            },
            "warnings": ["careful"],
            "hint": {"kind": "disk-full", "cause": "no room", "file": "Dockerfile", "line": 2, "step": {"name": "[2/2] RUN x"}, "next": "make room", "log": ["l"]},
        });
        assert_eq!(
            lines_of_build(&build),
            [
                "id: a",
                "state: failed",
                "attempts: 1",
                "error: no",
                "place: Dockerfile:2",
                "step: [2/2] RUN x",
                "kind: disk-full",
                "cause: no room",
                "next: make room",
                "log: l",
                "steps: 2 of 3 done, 1 of them from the cache",
                "deployment: rolled_back",
                "ran afterwards: r/a@sha256:1, available replicas: 1",
                "deployment steps: apply 0.5 s",
                "reason: why",
                "warning: careful",
            ]
        );
    }

    #[test]
    fn a_function_that_does_not_exist_after_a_deployment_is_nothing_and_an_unknown_state_is_left_out() {
        let shown = |deployment: Value| lines_of_build(&json!({ "deployment": deployment }));
        assert_eq!(
            shown(json!({"status": "rolled_back", "running": null})),
            ["deployment: rolled_back", "ran afterwards: nothing"]
        );
        assert_eq!(shown(json!({"status": "failed"})), ["deployment: failed"]);
    }
}
