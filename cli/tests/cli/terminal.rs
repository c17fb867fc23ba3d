//! The live display of `slipway up` on a pseudo-terminal.

use serde_json::{Value, json};

use crate::fake_builder::{
    BodyEnd, FakeBuilder, ScriptedAnswer, outcome_of_running_function, record_with_line,
};
use crate::project::{Project, wait_for_end};
use crate::pseudo_terminal::spawn_on_terminal;

/// The control sequence that makes text red.
const RED: &str = "\u{1b}[31m";

fn failed_outcome() -> Value {
    json!({"status": "failed", "error": "it does not compile", "code": 422, "duration": 1.0})
}

/// Returns the records of a log from the line with this number.
fn records_from(first: u64, lines: &[&str]) -> Vec<Value> {
    (first..)
        .zip(lines)
        .map(|(seq, line)| record_with_line(seq, line))
        .collect()
}

#[tokio::test]
async fn a_running_step_has_a_clock_and_its_last_lines_and_leaves_one_line_behind() {
    for (has_no_color, outcome) in [
        (false, outcome_of_running_function()),
        (true, outcome_of_running_function()),
        (false, failed_outcome()),
        (true, failed_outcome()),
    ] {
        let is_failure = outcome["status"] == "failed";
        let mut server = FakeBuilder::start(vec![(
            "POST /async-function/builder-fn",
            ScriptedAnswer::queued(),
        )])
        .await;
        let project = Project::shop();
        let mut command = project.command(&["up", "--gateway", &server.url]);
        command.env("TERM", "xterm");
        if has_no_color {
            command.env("NO_COLOR", "1");
        }
        let (child, mut terminal) = spawn_on_terminal(&mut command);
        let id = server.next_call_id().await;
        let log = |from: u64| format!("GET /function/builder-fn/builds/{id}/log?from={from}");
        // BuildKit starts and ends some steps more than once.
        let mut lines = vec!["v: T [1/2] RUN make"; 2];
        lines.extend([
            "l: T one",
            "l: T two",
            "l: T three",
            "l: T four",
            "l: T five",
            "l: T six",
            "l: T seven",
        ]);
        // The step runs until there is an answer to the next question for the log.
        server.add_answer(
            &log(1),
            ScriptedAnswer::events(&records_from(1, &lines), BodyEnd::Cut),
        );
        let screen = terminal
            .wait_for_screen(|screen| {
                let has = |text: &str| screen.iter().any(|line| line.contains(text));
                // The clock moves.
                has("[1/2] RUN make ") && !has("[1/2] RUN make 0s") && has("seven")
            })
            .await;
        let count = |screen: &[String], text: &str| screen.iter().filter(|line| line.contains(text)).count();
        assert_eq!(count(&screen, "[1/2] RUN make"), 1, "{screen:#?}");
        let output: Vec<_> = screen.iter().filter(|line| line.starts_with("   ")).collect();
        assert_eq!(
            output,
            ["   two", "   three", "   four", "   five", "   six", "   seven"],
            "{screen:#?} {:?}",
            terminal.written()
        );

        let mut rest = records_from(10, &["v: T [1/2] RUN make 1.50s"; 2]);
        rest.push(outcome);
        server.add_answer(&log(10), ScriptedAnswer::events(&rest, BodyEnd::Complete));
        let screen = terminal.wait_for_last_screen().await;
        let printed = wait_for_end(child).await;
        assert_eq!(printed.code, Some(i32::from(is_failure)), "{screen:#?}");
        let steps: Vec<_> = screen.iter().filter(|line| line.contains("RUN make")).collect();
        assert_eq!(steps, [" => [1/2] RUN make 1.5 s"], "{screen:#?}");
        assert_eq!(count(&screen, "shop: running in 0.5 s"), usize::from(!is_failure));
        assert_eq!(
            count(&screen, "shop: error: it does not compile"),
            usize::from(is_failure)
        );
        // A failure repeats the lines before it.
        for line in ["   one", "   seven"] {
            assert_eq!(count(&screen, line), usize::from(is_failure), "{screen:#?}");
        }
        let written = terminal.written();
        assert_eq!(written.contains(RED), is_failure && !has_no_color, "{written:?}");
        assert!(!(has_no_color && has_style(&written)), "{written:?}");
    }
}

/// Returns whether a text has a control sequence for a colour or another style.
fn has_style(text: &str) -> bool {
    text.split("\u{1b}[").skip(1).any(|sequence| {
        let rest =
            sequence.trim_start_matches(|character: char| character.is_ascii_digit() || character == ';');
        rest.starts_with('m')
    })
}

#[tokio::test]
async fn auto_is_the_live_display_on_a_terminal_and_lines_elsewhere() {
    for (term, is_live) in [(Some("xterm"), true), (Some("dumb"), false), (None, false)] {
        let records = [
            record_with_line(1, "v: T [1/2] RUN make"),
            outcome_of_running_function(),
        ];
        let server = FakeBuilder::start(vec![(
            "POST /build",
            ScriptedAnswer::records(&records, BodyEnd::Complete),
        )])
        .await;
        let project = Project::shop();
        let mut command = project.command(&["up", "--via", "builder", "--builder", &server.url]);
        if let Some(term) = term {
            command.env("TERM", term);
        }
        let (child, mut terminal) = spawn_on_terminal(&mut command);
        let screen = terminal.wait_for_last_screen().await;
        assert_eq!(wait_for_end(child).await.code, Some(0), "{screen:#?}");
        let written = terminal.written();
        assert_eq!(written.contains("\u{1b}["), is_live, "{term:?}: {written:?}");
        let has_line = screen.contains(&"shop: => [1/2] RUN make".to_owned());
        assert_eq!(has_line, !is_live, "{term:?}: {screen:#?}");
    }
    let server = FakeBuilder::start(vec![(
        "POST /build",
        ScriptedAnswer::records(&[outcome_of_running_function()], BodyEnd::Complete),
    )])
    .await;
    let project = Project::shop();
    let mut command = project.command(&["up", "--via", "builder", "--builder", &server.url]);
    command.env("TERM", "xterm");
    let printed = wait_for_end(command.spawn().expect("the command runs")).await;
    assert!(!printed.stderr.contains('\u{1b}'), "{printed:?}");
    assert!(printed.stderr.contains("shop: running in 0.5 s"), "{printed:?}");
}
