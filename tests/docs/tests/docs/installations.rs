//! Checks `stack.yml` and `store.json`, two of the three ways to install the functions. `tests/chart.sh` tests
//! the third.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{repository, settings::documented_settings};

/// The variable of an installation that is no setting, because only the C library reads it.
const VARIABLE_READ_BY_C_LIBRARY: &str = "MALLOC_ARENA_MAX";

/// The environment and labels of an installed function.
#[derive(Debug, Default)]
struct EnvironmentAndLabels {
    environment: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
}

/// Returns the map `key` in the text of a function of `stack.yml`; empty if the function has none.
fn yaml_map_or_empty(function_text: &str, key: &str) -> BTreeMap<String, String> {
    let start = format!("\n    {key}:\n");
    let (_, map) = function_text.split_once(&start).unwrap_or_default();
    let lines = map.lines().take_while(|line| line.starts_with("      "));
    let pairs = lines.filter(|line| !line.trim_start().starts_with('#'));
    pairs
        .map(|line| {
            let (name, value) = line.trim().split_once(": ").unwrap();
            (name.to_owned(), value.trim_matches('"').to_owned())
        })
        .collect()
}

/// Returns the environment and labels of a function in `stack.yml`.
fn installation_in_stack_yml(name: &str) -> EnvironmentAndLabels {
    let text = repository::read("stack.yml");
    let (_, function) = text.split_once(&format!("\n  {name}:\n")).unwrap();
    // The next function begins with a line that is indented by two spaces.
    let lines = function
        .lines()
        .take_while(|line| line.is_empty() || line.starts_with("    "));
    let function = format!("\n{}\n", lines.collect::<Vec<_>>().join("\n"));
    EnvironmentAndLabels {
        environment: yaml_map_or_empty(&function, "environment"),
        labels: yaml_map_or_empty(&function, "labels"),
    }
}

/// Returns the environment and labels of a function in `store.json`.
fn installation_in_store_json(name: &str) -> EnvironmentAndLabels {
    let store: Value = serde_json::from_str(&repository::read("store.json")).unwrap();
    let functions = store["functions"].as_array().unwrap();
    let function = functions
        .iter()
        .find(|function| function["name"] == name)
        .unwrap();
    let map = |key: &str| serde_json::from_value(function[key].clone()).unwrap();
    EnvironmentAndLabels {
        environment: map("environment"),
        labels: map("labels"),
    }
}

#[test]
fn the_labels_in_stack_yml_and_store_json_keep_the_deployer_at_one_replica() {
    for deployer in [
        installation_in_stack_yml("deployer-fn"),
        installation_in_store_json("deployer-fn"),
    ] {
        for label in ["com.openfaas.scale.min", "com.openfaas.scale.max"] {
            assert_eq!(deployer.labels[label], "1", "{label} in {deployer:?}");
        }
    }
}

#[test]
fn every_variable_of_an_installation_is_a_setting() {
    for name in ["builder-fn", "deployer-fn"] {
        let mut settings = documented_settings("host");
        settings.extend(documented_settings(name));
        settings.insert(VARIABLE_READ_BY_C_LIBRARY.to_owned());
        for installation in [installation_in_stack_yml(name), installation_in_store_json(name)] {
            assert!(!installation.environment.is_empty(), "{name}: no variables");
            for variable in installation.environment.keys() {
                assert!(settings.contains(variable), "{name}: no setting {variable}");
            }
        }
    }
}
