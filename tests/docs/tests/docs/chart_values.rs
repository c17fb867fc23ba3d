//! The values of the chart are the same in `values.yaml`, in its schema, and in the table of its README.

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::Value;

use crate::repository;

/// The folder of the chart within the repository.
const CHART_FOLDER: &str = "chart/slipway";

/// Values whose content is not compared, because it is Kubernetes' own or has names that the operator chooses.
const OPAQUE_VALUES: [&str; 5] = [
    "builder.resources",
    "deployer.resources",
    "buildkit.resources",
    "policy.tenants",
    "secrets.tenants",
];

/// The parts of the chart that share the values which the README writes as `*.NAME`.
const CHART_PARTS: [&str; 3] = ["builder", "deployer", "buildkit"];

/// Returns the path of every value in `values.yaml`, such as `builder.image.tag`, and of every group of values, but not
/// those below [`OPAQUE_VALUES`].
fn non_opaque_value_paths_in_values_yaml() -> BTreeSet<String> {
    let key = Regex::new(r"^( *)([A-Za-z]+):(.*)$").unwrap();
    let mut parents: Vec<(usize, String)> = Vec::new();
    let mut paths = BTreeSet::new();
    let mut block_indent = None;
    for line in repository::read(&format!("{CHART_FOLDER}/values.yaml")).lines() {
        let indent = line.len() - line.trim_start().len();
        // The lines of a text are deeper than its key.
        match block_indent {
            Some(block) if indent > block || line.is_empty() => continue,
            _ => block_indent = None,
        }
        let Some(found) = key.captures(line) else {
            continue;
        };
        parents.retain(|(parent, _)| *parent < indent);
        let path = match parents.last() {
            Some((_, parent)) => format!("{parent}.{}", &found[2]),
            None => found[2].to_owned(),
        };
        if found[3].trim() == "|" {
            block_indent = Some(indent);
        }
        parents.push((indent, path.clone()));
        if !is_within_opaque_value(&path) {
            paths.insert(path);
        }
    }
    paths
}

/// Returns whether a path is below one of [`OPAQUE_VALUES`].
fn is_within_opaque_value(path: &str) -> bool {
    OPAQUE_VALUES.iter().any(|opaque| {
        path.strip_prefix(opaque)
            .is_some_and(|rest| rest.starts_with('.'))
    })
}

/// Adds the path of every property of `schema`, an object in the whole schema `root`, and of the properties in it to
/// `paths`, but not those below [`OPAQUE_VALUES`].
fn add_non_opaque_schema_paths(root: &Value, schema: &Value, prefix: &str, paths: &mut BTreeSet<String>) {
    let schema = match schema["$ref"].as_str() {
        Some(reference) => root
            .pointer(reference.trim_start_matches('#'))
            .unwrap_or_else(|| panic!("{prefix}: no definition {reference}")),
        None => schema,
    };
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = match prefix {
            "" => name.clone(),
            prefix => format!("{prefix}.{name}"),
        };
        if !is_within_opaque_value(&path) {
            paths.insert(path.clone());
            add_non_opaque_schema_paths(root, property, &path, paths);
        }
    }
}

/// Returns the path of every value that the table of the chart's README names. After a comma, `.NAME` replaces the last
/// part of the path before it, and `*.NAME` stands for all parts of the chart.
fn value_paths_in_chart_readme() -> BTreeSet<String> {
    let name = Regex::new("`([^`]+)`").unwrap();
    let text = repository::read(&format!("{CHART_FOLDER}/README.md"));
    let (_, table) = text.split_once("\n## Values\n").unwrap();
    let mut paths = BTreeSet::new();
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let cells = row.replace("\\|", " ");
        let mut cells = cells.trim_matches('|').split('|');
        let first = cells.next().unwrap();
        let mut before = String::new();
        for found in name.captures_iter(first) {
            let path = match found[1].strip_prefix('.') {
                Some(last) => {
                    let (parent, _) = before.rsplit_once('.').unwrap();
                    format!("{parent}.{last}")
                }
                None => found[1].to_owned(),
            };
            match path.strip_prefix("*.") {
                Some(rest) => paths.extend(CHART_PARTS.map(|part| format!("{part}.{rest}"))),
                None => {
                    paths.insert(path.clone());
                }
            }
            before = path;
        }
        // "The same for `deployer.image` and `buildkit.image`."
        let others = cells.flat_map(|cell| cell.split_once("The same for ").map(|(_, rest)| rest.to_owned()));
        for rest in others {
            paths.extend(name.captures_iter(&rest).map(|found| found[1].to_owned()));
        }
    }
    paths
}

#[test]
fn the_schema_of_the_chart_has_the_values_and_no_others() {
    let schema = repository::read(&format!("{CHART_FOLDER}/values.schema.json"));
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let mut in_schema = BTreeSet::new();
    add_non_opaque_schema_paths(&schema, &schema, "", &mut in_schema);
    let in_values = non_opaque_value_paths_in_values_yaml();
    assert!(in_values.len() > 100, "{in_values:?}");
    let missing: Vec<_> = in_values.difference(&in_schema).collect();
    // The rules of a tenant are values that the operator names.
    let invented: Vec<_> = in_schema.difference(&in_values).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "not in the schema: {missing:?}\nnot in values.yaml: {invented:?}"
    );
}

#[test]
fn the_readme_of_the_chart_names_the_values_and_no_others() {
    let (in_values, in_readme) = (
        non_opaque_value_paths_in_values_yaml(),
        value_paths_in_chart_readme(),
    );
    let is_group = |path: &String| {
        let prefix = format!("{path}.");
        in_values.iter().any(|other| other.starts_with(&prefix))
    };
    let is_named = |path: &String| {
        // A row about a group names its values, but not one about a whole part of the chart.
        let mut groups = path.match_indices('.').map(|(at, _)| &path[..at]).skip(1);
        in_readme.contains(path) || groups.any(|group| in_readme.contains(group))
    };
    let missing: Vec<_> = in_values
        .iter()
        .filter(|path| !is_group(path) && !is_named(path))
        .collect();
    let invented: Vec<_> = in_readme.difference(&in_values).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "not in the README: {missing:?}\nnot in values.yaml: {invented:?}"
    );
}
