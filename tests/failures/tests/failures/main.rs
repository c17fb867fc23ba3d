//! The hints for a table of failed builds and deployments.
//!
//! Each case is a file in `cases/`: a failure with the texts that the programs wrote, and the cause, place and step
//! that its hint has to have. Those in `blind/`, `blind-second/` and `blind-third/` were written without knowledge of
//! the rules.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking, and this one reports what it measures"
)]

mod case;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use builder_fn::hint::HintKind;
use case::Case;
use rustix::time::{ClockId, clock_gettime};

/// The number of cases of which one may have no hint or another one, for each group of cases.
const CASES_PER_ALLOWED_ERROR: usize = 25;

/// The most processor time that a hint may take.
const PROCESSOR_TIME_PER_HINT_MAX: Duration = Duration::from_millis(10);

/// Returns the processor time of this thread, which other processes and threads do not lengthen.
fn processor_time_of_thread() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

/// Returns the least processor time that `explain` takes in a few runs, of which one may be interrupted by the system.
fn least_processor_time_of_some_runs(explain: impl Fn()) -> Duration {
    const MEASURED_RUNS: usize = 5;
    let times = (0..MEASURED_RUNS).map(|_| {
        let start = processor_time_of_thread();
        explain();
        processor_time_of_thread().saturating_sub(start)
    });
    times.min().unwrap_or_default()
}

/// Checks the cases in a folder, and reports those whose hint is not as expected. Returns the numbers of cases and of
/// errors. Panics if a hint takes too long.
fn count_cases_and_wrong_hints(group: &str) -> (usize, usize) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases").join(group);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    let mut wrong = 0;
    let mut longest = (Duration::ZERO, String::new());
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for file in &files {
        let case = Case::read(file);
        let hint = case.explain();
        let took = least_processor_time_of_some_runs(|| drop(case.explain()));
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        *kinds
            .entry(case.expected.kind.clone().unwrap_or_default())
            .or_default() += 1;
        if took > longest.0 {
            longest = (took, name.clone());
        }
        let problems = case.differences_from_expected_hint(hint.as_ref());
        if !problems.is_empty() {
            wrong += 1;
            println!(
                "{group}/{name}: {}\n  {}",
                problems.join("; "),
                serde_json::to_string(&hint).unwrap()
            );
        }
    }
    println!(
        "{group}: {} of {} cases are right, of {} kinds; the longest took {:?} of the processor's time ({})",
        files.len() - wrong,
        files.len(),
        kinds.len(),
        longest.0,
        longest.1
    );
    assert!(longest.0 <= PROCESSOR_TIME_PER_HINT_MAX, "{longest:?}");
    (files.len(), wrong)
}

#[test]
fn of_the_seeded_failures_at_least_48_in_50_are_explained_with_their_cause_place_and_step() {
    let (cases, wrong) = count_cases_and_wrong_hints("seeded");
    assert!(cases >= 50, "there are only {cases} cases");
    assert!(
        wrong * CASES_PER_ALLOWED_ERROR <= cases,
        "{wrong} of {cases} are wrong"
    );
}

#[test]
fn of_the_failures_written_blind_at_least_24_in_25_are_explained_as_expected() {
    let (cases, wrong) = count_cases_and_wrong_hints("blind");
    assert!(cases >= 25, "there are only {cases} cases");
    assert!(
        wrong * CASES_PER_ALLOWED_ERROR <= cases,
        "{wrong} of {cases} are wrong"
    );
}

#[test]
fn of_the_second_failures_written_blind_at_least_24_in_25_are_explained_as_expected() {
    let (cases, wrong) = count_cases_and_wrong_hints("blind-second");
    assert!(cases >= 25, "there are only {cases} cases");
    assert!(
        wrong * CASES_PER_ALLOWED_ERROR <= cases,
        "{wrong} of {cases} are wrong"
    );
}

#[test]
fn of_the_third_failures_written_blind_at_least_as_many_are_explained_as_in_the_first_run() {
    const RIGHT_IN_FIRST_RUN: usize = 23;
    let (cases, wrong) = count_cases_and_wrong_hints("blind-third");
    assert!(cases >= 25, "there are only {cases} cases");
    assert!(
        cases - wrong >= RIGHT_IN_FIRST_RUN,
        "{wrong} of {cases} are wrong"
    );
}

/// Returns the words with a hyphen, in backticks, in the first column of the tables of a page.
fn hyphenated_words_in_first_columns(page: &str) -> BTreeSet<&str> {
    let rows = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    rows.map(|(word, _)| word)
        .filter(|word| word.contains('-'))
        .collect()
}

#[test]
fn the_documents_list_every_hint_kind_and_no_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let kinds: BTreeSet<_> = HintKind::ALL.iter().map(|kind| kind.as_str()).collect();
    let page = std::fs::read_to_string(root.join("docs/failures.md")).unwrap();
    assert_eq!(hyphenated_words_in_first_columns(&page), kinds);
    let openapi = std::fs::read_to_string(root.join("builder-fn/openapi.yaml")).unwrap();
    let (_, rest) = openapi.split_once("\n    Hint:\n").unwrap();
    let (_, rest) = rest.split_once("enum: [").unwrap();
    let (listed, _) = rest.split_once(']').unwrap();
    assert_eq!(listed.split(',').map(str::trim).collect::<BTreeSet<_>>(), kinds);
}

#[test]
fn every_hint_of_the_table_is_short_and_has_no_control_characters() {
    for group in ["seeded", "blind", "blind-second", "blind-third"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases").join(group);
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let Some(hint) = Case::read(&path).explain() else {
                continue;
            };
            let json = serde_json::to_string(&hint).unwrap();
            assert!(json.len() <= 4096, "{}: {json}", path.display());
            assert!(!json.contains("\\u00"), "{}: {json}", path.display());
        }
    }
}
