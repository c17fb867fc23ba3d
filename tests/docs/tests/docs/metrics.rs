//! Compares the documents' tables of metrics with the metrics in the code.
//!
//! The names are taken from the sources, because a registry does not show a metric with labels before its first value.
//! What a registry does show must be among them.

use std::collections::BTreeSet;

use function_host::prometheus::Registry;
use regex::Regex;

use crate::markdown::names_in_table;
use crate::{repository, settings};

/// Returns the names of all metrics in the sources in `folder`: those in the constructors of metrics, and every text
/// that begins like the name of a metric and is not a setting.
fn metric_like_texts_in_sources(folder: &str) -> BTreeSet<String> {
    let constructor =
        Regex::new(r#"(?:Opts|Counter|Gauge|Histogram)::(?:new|with_opts)\([ \n]*"([a-z0-9_]+)""#).unwrap();
    let prefixed = Regex::new(r#""((?:slipway|http)_[a-z0-9_]+)""#).unwrap();
    let settings = settings::documented_settings("host");
    let mut names = BTreeSet::new();
    for path in
        repository::files_not_built_or_downloaded(folder, |name| name.ends_with(".rs") && name != "tests.rs")
    {
        let source = repository::read(&path);
        let (source, _) = source.split_once("#[cfg(test)]\nmod ").unwrap_or((&source, ""));
        for pattern in [&constructor, &prefixed] {
            names.extend(pattern.captures_iter(source).map(|found| found[1].to_owned()));
        }
    }
    names.retain(|name| !settings.contains(name));
    names
}

/// Fails unless the table `table` of docs/observability.md has exactly the metrics in `folder`, and these include all
/// that `registry` shows.
#[track_caller]
fn assert_table_equals_metrics_in_folder_which_include_registered(
    table: &str,
    folder: &str,
    registry: &Registry,
) {
    let text = repository::read("docs/observability.md");
    let documented = names_in_table(&text, &format!("metrics: {table}"));
    let in_sources = metric_like_texts_in_sources(folder);
    for family in registry.gather() {
        assert!(
            in_sources.contains(family.name()),
            "{} was not found in the sources",
            family.name()
        );
    }
    let missing: Vec<_> = in_sources.difference(&documented).collect();
    let invented: Vec<_> = documented.difference(&in_sources).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "docs/observability.md: not documented: {missing:?}; documented, but not in the code: {invented:?}"
    );
}

#[test]
fn the_metrics_in_the_sources_of_every_function_are_documented_and_no_others() {
    assert_table_equals_metrics_in_folder_which_include_registered(
        "host",
        "function-host/src",
        &Registry::new(),
    );
}

#[test]
fn the_metrics_in_the_sources_of_the_builder_are_documented_and_no_others() {
    let registry = Registry::new();
    let _metrics = builder_fn::metrics::Metrics::register(&registry).unwrap();
    assert_table_equals_metrics_in_folder_which_include_registered("builder-fn", "builder-fn/src", &registry);
}

#[test]
fn the_metrics_in_the_sources_of_the_deployer_are_documented_and_no_others() {
    let registry = Registry::new();
    let _metrics = deployer_fn::DeploymentMetrics::new(&registry).unwrap();
    assert_table_equals_metrics_in_folder_which_include_registered(
        "deployer-fn",
        "deployer-fn/src",
        &registry,
    );
}
