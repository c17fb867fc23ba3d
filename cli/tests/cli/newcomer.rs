//! What a newcomer reads: each mistake has its exit status, and says what to do next.

use crate::fake_builder::{BodyEnd, FakeBuilder, ScriptedAnswer, record_with_line};
use crate::project::Project;

#[tokio::test]
async fn an_empty_folder_is_answered_with_how_to_begin() {
    let printed = Project::empty().run(&["up"]).await;
    assert_eq!(printed.code, Some(2), "{printed:?}");
    assert_eq!(
        printed.stderr,
        "slipway: this folder has no stack.yaml and no stack.yml\n\
         next: run `faas-cli new --lang LANGUAGE NAME` to begin a function, or go to the folder of one\n"
    );
}

#[tokio::test]
async fn another_stack_file_in_the_folder_is_named() {
    let project = Project::empty();
    project.write("shop.yml", "functions: {}\n");
    let printed = project.run(&["up"]).await;
    assert!(
        printed
            .stderr
            .contains("name the stack file with -f: here are shop.yml"),
        "{printed:?}"
    );
}

#[tokio::test]
async fn a_missing_key_is_answered_with_where_it_is_given() {
    let project = Project::shop();
    let mut command = project.command(&["up"]);
    command.env_remove("SLIPWAY_PAYLOAD_SECRET");
    let printed = crate::project::wait_for_end(command.spawn().expect("the command runs")).await;
    assert_eq!(printed.code, Some(2), "{printed:?}");
    assert!(printed.stderr.contains("--payload-secret FILE"), "{printed:?}");
}

#[tokio::test]
async fn a_gateway_that_does_not_run_is_named_with_how_to_start_one() {
    // Nobody listens on this port: it is reserved, and needs privileges.
    let printed = Project::shop()
        .run(&["up", "--gateway", "http://127.0.0.1:1"])
        .await;
    assert_eq!(printed.code, Some(4), "{printed:?}");
    assert!(printed.stderr.contains("http://127.0.0.1:1/"), "{printed:?}");
    assert!(printed.stderr.contains("make up"), "{printed:?}");
}

#[tokio::test]
async fn a_mistyped_key_is_shown_with_the_one_meant_and_a_syntax_error_with_the_stack_files_name() {
    let project = Project::shop();
    project.write(
        "stack.yaml",
        "functions:\n  shop:\n    lang: dockerfile\n    hander: ./shop\n    image: r.example/shop:1\n",
    );
    let printed = project.run(&["up"]).await;
    assert_eq!(printed.code, Some(2), "{printed:?}");
    assert!(
        printed.stderr.contains("functions.shop.handler: is missing"),
        "{printed:?}"
    );
    assert!(
        printed.stderr.contains("did you mean \"handler\"?"),
        "{printed:?}"
    );
    project.write("stack.yaml", "functions:\n  shop:\n   lang: [\n");
    let printed = project.run(&["up"]).await;
    assert_eq!(printed.code, Some(2), "{printed:?}");
    assert!(printed.stderr.starts_with("slipway: stack.yaml:"), "{printed:?}");
}

#[tokio::test]
async fn an_unknown_function_a_missing_template_and_a_wrong_option_are_usage_errors() {
    let project = Project::shop();
    let printed = project.run(&["up", "shp"]).await;
    assert!(
        printed.code == Some(2) && printed.stderr.contains("did you mean \"shop\"?"),
        "{printed:?}"
    );
    project.write(
        "stack.yaml",
        "functions:\n  shop:\n    lang: rust-hyper\n    handler: ./shop\n    image: r.example/shop:1\n",
    );
    let printed = project.run(&["up"]).await;
    assert!(
        printed.code == Some(2) && printed.stderr.contains("faas-cli template store pull rust-hyper"),
        "{printed:?}"
    );
    assert_eq!(project.run(&["up", "--no-such-option"]).await.code, Some(2));
}

#[tokio::test]
async fn a_broken_handler_shows_the_output_of_its_step_and_the_error() {
    let error = "process \"/bin/sh -c make\" did not complete successfully: exit code: 2";
    let records = [
        record_with_line(1, "v: T [2/2] RUN make"),
        record_with_line(2, "l: T main.c:3: error: expected ';'"),
        serde_json::json!({"status": "failed", "error": error, "code": 422}),
    ];
    let server = FakeBuilder::start(vec![(
        "POST /build",
        ScriptedAnswer::records(&records, BodyEnd::Complete),
    )])
    .await;
    let printed = Project::shop()
        .run(&["up", "--via", "builder", "--builder", &server.url])
        .await;
    assert_eq!(
        (printed.code, printed.stdout.as_str()),
        (Some(1), ""),
        "{printed:?}"
    );
    let lines: Vec<_> = printed.stderr.lines().skip(2).collect();
    assert_eq!(
        lines,
        [
            "shop: => [2/2] RUN make",
            "shop:    main.c:3: error: expected ';'",
            "shop: error: process \"/bin/sh -c make\" did not complete successfully: exit code: 2",
            "shop: next: the step's output above has the reason: correct it, and run slipway up again",
        ]
    );
}

#[tokio::test]
async fn with_json_progress_errors_and_warnings_are_json_objects() {
    let project = Project::shop();
    project.write(
        "stack.yaml",
        "other: 1\nfunctions:\n  shop:\n    lang: dockerfile\n    handler: ./shop\n    image: r.example/shop:1\n",
    );
    let printed = project
        .run(&["up", "--progress", "json", "--gateway", "http://127.0.0.1:1"])
        .await;
    assert_eq!(printed.code, Some(4), "{printed:?}");
    let events: Vec<serde_json::Value> = printed
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let kinds: Vec<_> = events.iter().map(|event| event["event"].as_str()).collect();
    assert_eq!(kinds, [Some("warning"), Some("failed")], "{events:?}");
    assert_eq!(events[1]["code"], 4);
    assert!(events[1]["next"].is_string(), "{events:?}");
}

#[tokio::test]
async fn a_command_line_that_cannot_be_parsed_ends_with_2_and_the_help_of_its_command_as_next_step() {
    for (arguments, next) in [
        (&["upp"][..], "next: slipway --help"),
        (&["--bogus"], "next: slipway --help"),
        (&["up", "--bogus"], "next: slipway up --help"),
        (&["up", "--progress", "loud"], "next: slipway up --help"),
        (&["up", "--build-arg", "A"], "next: slipway up --help"),
        (&["dev", "--detach"], "next: slipway dev --help"),
        (&["builds", "--limit", "many"], "next: slipway builds --help"),
        (&["status"], "next: slipway status --help"),
        (&["logs"], "next: slipway logs --help"),
        (&["open", "a", "b"], "next: slipway open --help"),
        (&["cancel"], "next: slipway cancel --help"),
        (&["diff", "a"], "next: slipway diff --help"),
        (&["rollback"], "next: slipway rollback --help"),
        (&["policy", "check"], "next: slipway policy check --help"),
        (&["completions", "csh"], "next: slipway completions --help"),
        (&["man"], "next: slipway man --help"),
        (
            &[],
            "next: choose a command of slipway; slipway COMMAND --help describes it",
        ),
        (
            &["policy"],
            "next: choose a command of slipway policy; slipway policy COMMAND --help describes it",
        ),
    ] {
        let printed = Project::empty().run(arguments).await;
        assert_eq!(
            (printed.code, printed.stdout.as_str()),
            (Some(2), ""),
            "{arguments:?}: {printed:?}"
        );
        assert_eq!(
            printed.stderr.lines().last(),
            Some(next),
            "{arguments:?}: {printed:?}"
        );
    }
    for arguments in [&["--help"][..], &["up", "--help"], &["--version"]] {
        let printed = Project::empty().run(arguments).await;
        assert_eq!(
            (printed.code, printed.stderr.as_str()),
            (Some(0), ""),
            "{printed:?}"
        );
    }
}
