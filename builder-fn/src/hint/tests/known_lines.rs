//! Tests of the tables of lines, and of the hint for a step whose cause no rule knows.

use super::*;

#[test]
fn a_known_line_counts_only_if_the_tool_stops_there() {
    const FILES: &[(&str, &str)] = &[("Dockerfile", "FROM a\nRUN x\n"), ("package.json", "{}")];
    let many_lines = "a line\n".repeat(30);
    for output in [
        "warning error Command \"build\" not found.\nok",
        "WARNING: Retrying after: curl: (28) timed out\nok",
        "the page says: error Command \"build\" not found.\nok",
        &format!("fatal: not a git repository\n{many_lines}"),
        &format!("cp: cannot stat 'a': No such file or directory\n{many_lines}"),
    ] {
        assert_eq!(explain_step(FILES, (2, "x", 1), output), None, "{output}");
    }
    let hint = explain_step(FILES, (2, "x", 1), "error Command \"build\" not found.").expect("a hint");
    assert_eq!(hint.kind, HintKind::ScriptMissing);
}

#[test]
fn every_failed_step_has_a_hint_that_quotes_what_it_wrote() {
    for (output, quoted) in [
        ("", "wrote nothing"),
        ("a\nb\n", "ends with: b"),
        ("a\nfatal: b\nc\n", "fatal: b"),
        ("ok\nnpm notice\nnpm notice new version\n", "ends with: ok"),
    ] {
        let hint = explain(&Failure {
            error: "process \"/bin/sh -c x\" did not complete successfully: exit code: 9",
            step: Some(FailedStepNameAndOutput {
                name: "[2/2] RUN x",
                output,
            }),
            dockerfile_line: Some(2),
            dockerfile: "Dockerfile",
            files: &NoFiles,
            login: None,
            no_network: None,
        })
        .expect("a hint");
        assert_eq!(
            (hint.kind, hint.line),
            (HintKind::StepFailed, Some(2)),
            "{hint:?}"
        );
        assert!(
            hint.cause.contains("exit code 9") && hint.cause.contains(quoted),
            "{hint:?}"
        );
    }
}
