//! Tests of the tables of lines, and of the hint for a step whose cause no rule knows.

use super::super::decisive_line::first_line_marked_as_error;
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
        "debconf: (Can't locate Term/ReadLine.pm in @INC (you may need to install the Term::ReadLine module) \
         at /usr/share/perl5/Debconf/FrontEnd/Readline.pm line 7.)\nok",
        "Use of uninitialized value $x in addition (+) at build.pl line 12.\nok",
        &format!("cannot open a at build.pl line 12.\n{many_lines}"),
        "node_modules/x/index.mjs (1:0): Module level directives cause errors when bundled, \"use client\" in \
         \"node_modules/x/index.mjs\" was ignored.\nok",
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

#[test]
fn a_line_is_explained_by_the_program_that_wrote_it() {
    const FILES: &[(&str, &str)] = &[("Dockerfile", "FROM a\nRUN x\n"), ("src/a.js", "")];
    for (output, kind, mentioned) in [
        (
            "cannot open a at build.pl line 12.",
            HintKind::ScriptError,
            "Perl stops in build.pl",
        ),
        (
            "error during build:\nsrc/a.js (2:9): \"b\" is not exported by \"src/b.js\", imported by \"src/a.js\".",
            HintKind::CompileError,
            "is not exported by",
        ),
        (
            "Package openssl was not found in the pkg-config search path.",
            HintKind::DependencyMissing,
            "openssl",
        ),
        (
            "  ● Console\n\n    console.log\n      a\n\n  ● adds numbers\n\n    Expected: 3\n\nTests: 1 failed, 1 total",
            HintKind::TestFailed,
            "adds numbers",
        ),
    ] {
        let hint = explain_step(FILES, (2, "x", 1), output).expect(output);
        assert_eq!(hint.kind, kind, "{hint:?}");
        assert!(
            hint.cause.contains(mentioned) && !hint.cause.contains("package index"),
            "{hint:?}"
        );
    }
}

#[test]
fn a_line_is_not_passed_over_because_a_repetition_begins_like_a_part_of_it() {
    for line in [
        "fatal: [Errno 2] no such file: 'a'",
        "error: invalid path /a",
        "error: 10 errors",
    ] {
        assert_eq!(first_line_marked_as_error(&["b", line], |_| false), Some(line));
    }
    assert_eq!(
        first_line_marked_as_error(&["npm error errno 1", "0 errors"], |_| false),
        None
    );
}
