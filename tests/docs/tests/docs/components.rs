//! Compares `tests/stack/components.json` with the files that pin components, and fails below the lowest version
//! without known advisories that it states.

use regex::Regex;
use serde_json::Value;

use crate::repository;

/// The list of all pinned components.
const COMPONENTS_FILE: &str = "tests/stack/components.json";

fn read_components() -> Vec<Value> {
    let list: Value = serde_json::from_str(&repository::read(COMPONENTS_FILE)).unwrap();
    list["components"].as_array().unwrap().clone()
}

/// Returns a component's field; fails if it is not a text.
fn text_field<'a>(component: &'a Value, field: &str) -> &'a str {
    component[field]
        .as_str()
        .unwrap_or_else(|| panic!("{COMPONENTS_FILE}: {}: {field} is not a text", component["name"]))
}

/// Returns each file that a component names, with the text that pins the version there.
fn files_and_texts_that_pin_version(component: &Value) -> Vec<(&str, String)> {
    let pins = component["pins"].as_array().unwrap();
    let version = text_field(component, "version");
    pins.iter()
        .map(|pin| {
            (
                text_field(pin, "file"),
                text_field(pin, "text").replace("{version}", version),
            )
        })
        .collect()
}

/// Returns the numbers of a release. A commit without a release (`0.0.0-TIME-COMMIT`) compares by its time.
fn release_numbers_and_commit_time(version: &str) -> Vec<u64> {
    let (release, commit) = version.split_once('-').unwrap_or((version, "0"));
    let time = commit.split('-').next().unwrap();
    release
        .split('.')
        .chain([time])
        .map(|number| number.parse().unwrap())
        .collect()
}

#[test]
fn no_component_is_older_than_the_lowest_version_without_known_advisories() {
    let date = Regex::new(r"^20[0-9]{2}-[01][0-9]-[0-3][0-9]$").unwrap();
    for component in read_components() {
        let (name, version) = (text_field(&component, "name"), text_field(&component, "version"));
        // The reason why flaws are accepted replaces the lowest version, and is checked by another test.
        if component["accepted"].is_null() {
            let lowest = text_field(&component, "lowest");
            assert!(
                release_numbers_and_commit_time(version) >= release_numbers_and_commit_time(lowest),
                "{name} {version} has known advisories; the lowest version without is {lowest}"
            );
        }
        assert!(!text_field(&component, "source").is_empty(), "{name}");
        assert!(date.is_match(text_field(&component, "checked")), "{name}");
    }
}

#[test]
fn known_flaws_are_accepted_for_a_reason_and_only_in_components_of_the_tests() {
    for component in read_components() {
        if component["accepted"].is_null() {
            continue;
        }
        let name = text_field(&component, "name");
        assert!(!text_field(&component, "accepted").is_empty(), "{name}");
        assert!(
            component["lowest"].is_null(),
            "{name} has flaws, so no version below its own is without"
        );
        for (file, _) in files_and_texts_that_pin_version(&component) {
            assert!(file.starts_with("tests/"), "{name} is also pinned by {file}");
        }
    }
}

#[test]
fn tenants_may_share_a_daemon_from_the_lowest_version_of_buildkit_without_known_advisories_on() {
    let components = read_components();
    let buildkit = components
        .iter()
        .find(|component| component["name"] == "BuildKit");
    assert_eq!(
        text_field(buildkit.unwrap(), "lowest"),
        builder_fn::buildkit::LOWEST_SHARED_BUILDKIT_RELEASE
    );
}

#[test]
fn each_component_has_the_version_that_the_files_pin() {
    for component in read_components() {
        let pins = files_and_texts_that_pin_version(&component);
        assert!(!pins.is_empty(), "{}", component["name"]);
        for (file, pin) in pins {
            assert!(
                repository::read(file).contains(&pin),
                "{COMPONENTS_FILE} says that {} is {}, but {file} does not contain {pin:?}",
                component["name"],
                component["version"]
            );
        }
    }
}

#[test]
fn every_go_tool_of_the_stack_and_every_pinned_image_is_a_component() {
    let components = read_components();
    let pinned = components
        .iter()
        .flat_map(files_and_texts_that_pin_version)
        .collect::<Vec<_>>();
    let tools = Regex::new(r"(?m)^(?:tool |\t)([^ \t\n(]+)$").unwrap();
    for file in repository::files_not_built_or_downloaded("tests/stack/tools", |name| name == "go.mod") {
        let module = repository::read(&file);
        let modules = module
            .lines()
            .filter_map(|line| {
                line.trim()
                    .trim_end_matches("// indirect")
                    .trim()
                    .rsplit_once(" v")
            })
            .map(|(path, version)| format!("{path} v{version} "))
            .collect::<Vec<_>>();
        for tool in tools.captures_iter(&module) {
            let tool = tool.get(1).unwrap().as_str();
            if tool.starts_with("slipway.dev/") {
                continue;
            }
            let of_tool = modules
                .iter()
                .filter(|module| {
                    let path = module.split(' ').next().unwrap();
                    tool.strip_prefix(path)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                })
                .max_by_key(|module| module.len());
            let module = of_tool.unwrap_or_else(|| panic!("{file}: no version of {tool}"));
            assert!(
                pinned.iter().any(|(_, pin)| pin == module),
                "{file}: {module:?} is not in {COMPONENTS_FILE}"
            );
        }
    }
    let image = Regex::new(r"docker\.io/(?:library|moby)/[a-z0-9/-]+:[A-Za-z0-9_.-]+").unwrap();
    let tagged = Regex::new(r"repository: ([^ \n]+)\n(?: *#.*\n)* *tag: ([^ \n]+)\n").unwrap();
    for file in [
        "stack.yml",
        "template/rust-hyper/Dockerfile",
        "chart/slipway/values.yaml",
    ] {
        let content = repository::read(file);
        let images = image.find_iter(&content).map(|found| found.as_str());
        for image in images {
            assert!(
                pinned.iter().any(|(_, pin)| image.contains(pin.as_str())),
                "{file}: {image} is not in {COMPONENTS_FILE}"
            );
        }
        for tag in tagged.captures_iter(&content).filter(|tag| &tag[2] != "\"\"") {
            assert!(
                pinned.iter().any(|(_, pin)| *pin == tag[0]),
                "{file}: {:?} is not in {COMPONENTS_FILE}",
                &tag[0]
            );
        }
    }
}

#[test]
fn releases_compare_by_number_and_commits_by_time() {
    assert!(release_numbers_and_commit_time("0.34.2") > release_numbers_and_commit_time("0.9.10"));
    assert!(
        release_numbers_and_commit_time("0.0.0-20250415083406-ed")
            > release_numbers_and_commit_time("0.0.0-20231102155424-02")
    );
    assert!(release_numbers_and_commit_time("1.95") < release_numbers_and_commit_time("1.95.1"));
}
