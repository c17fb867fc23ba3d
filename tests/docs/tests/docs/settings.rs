//! Compares the documents' tables of settings with the code that reads settings.
//!
//! The parsers get an environment that records which variables they ask for, so the two cannot drift apart: a setting
//! that is read and not documented fails the test, and so does one that is documented and not read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use function_host::Secrets;
use function_host::env::{Environment, SettingsParser};

use crate::markdown::names_in_table;
use crate::repository;

/// The variables that OpenTelemetry's SDK reads from the environment by itself (`opentelemetry_sdk`,
/// `src/trace/span_processor.rs`).
const VARIABLES_READ_BY_OTEL_SDK: [&str; 3] = [
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
];

/// An environment that records which variables are asked for.
#[derive(Default)]
struct RecordingEnvironment {
    values: BTreeMap<&'static str, String>,
    asked: Mutex<BTreeSet<String>>,
}

impl RecordingEnvironment {
    /// Creates an environment with these variables.
    fn with(values: &[(&'static str, &str)]) -> Self {
        let values = values.iter().map(|(name, value)| (*name, (*value).to_owned()));
        Self {
            values: values.collect(),
            ..Self::default()
        }
    }

    /// Returns the names of all variables that were asked for, whether they have a value or not.
    fn requested_variables(self) -> BTreeSet<String> {
        self.asked.into_inner().unwrap()
    }
}

impl Environment for RecordingEnvironment {
    fn get(&self, name: &str) -> Option<String> {
        self.asked.lock().unwrap().insert(name.to_owned());
        self.values.get(name).cloned()
    }
}

/// Returns the settings in the table `table` of docs/settings.md.
pub(crate) fn documented_settings(table: &str) -> BTreeSet<String> {
    names_in_table(
        &repository::read("docs/settings.md"),
        &format!("settings: {table}"),
    )
}

/// Fails if the two sets differ, with the names that are in only one of them.
#[track_caller]
fn assert_documented_equals_read(documented: &BTreeSet<String>, read: &BTreeSet<String>) {
    let missing: Vec<_> = read.difference(documented).collect();
    let invented: Vec<_> = documented.difference(read).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "docs/settings.md: not documented: {missing:?}; documented, but not read: {invented:?}"
    );
}

/// Returns the variables that every function of the template reads.
fn variables_read_by_host() -> BTreeSet<String> {
    let folder = tempfile::tempdir().unwrap();
    let environment = RecordingEnvironment::with(&[
        ("secret_mount_path", folder.path().to_str().unwrap()),
        // The settings of traces are read only if there is a collector.
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318"),
    ]);
    function_host::check_settings(&environment).unwrap();
    environment.requested_variables()
}

#[test]
fn the_settings_of_every_function_are_documented_and_read() {
    let mut read = variables_read_by_host();
    read.retain(|name| !name.starts_with("OTEL_"));
    assert_documented_equals_read(&documented_settings("host"), &read);
}

#[test]
fn the_settings_of_traces_are_documented_and_read() {
    let mut read = variables_read_by_host();
    read.retain(|name| name.starts_with("OTEL_"));
    read.extend(VARIABLES_READ_BY_OTEL_SDK.map(str::to_owned));
    assert_documented_equals_read(&documented_settings("traces"), &read);
}

#[test]
fn the_settings_of_the_builder_are_documented_and_read() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("payload-secret"), "a key of 17 bytes").unwrap();
    let environment = RecordingEnvironment::with(&[("buildkit_url", "tcp://127.0.0.1:1234")]);
    let mut parser = SettingsParser::new(&environment);
    builder_fn::settings::Settings::read(&mut parser, &Secrets::new(folder.path()), None);
    parser.fail_if_problems().unwrap();
    assert_documented_equals_read(
        &documented_settings("builder-fn"),
        &environment.requested_variables(),
    );
}

#[test]
fn the_settings_of_the_deployer_are_documented_and_read() {
    let environment = RecordingEnvironment::default();
    let mut parser = SettingsParser::new(&environment);
    deployer_fn::Settings::read(&mut parser);
    parser.fail_if_problems().unwrap();
    assert_documented_equals_read(
        &documented_settings("deployer-fn"),
        &environment.requested_variables(),
    );
}

#[test]
fn the_build_arguments_of_the_template_are_documented_with_its_profiles() {
    let dockerfile = repository::read("template/rust-hyper/Dockerfile");
    let mut arguments: BTreeSet<String> = dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("ARG "))
        .map(|argument| argument.split('=').next().unwrap_or(argument).to_owned())
        .collect();
    // BuildKit sets it.
    arguments.remove("TARGETARCH");
    assert_documented_equals_read(&documented_settings("template"), &arguments);

    let manifest = repository::read("template/rust-hyper/Cargo.toml");
    let profiles = manifest
        .lines()
        .filter_map(|line| line.strip_prefix("[profile.")?.strip_suffix(']'));
    let settings = repository::read("docs/settings.md");
    let row = settings
        .lines()
        .find(|line| line.starts_with("| `RUST_PROFILE` |"));
    for profile in profiles {
        assert!(
            row.unwrap().contains(&format!("`{profile}`")),
            "{profile}: {row:?}"
        );
    }
}
