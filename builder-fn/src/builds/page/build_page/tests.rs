//! Tests of the forms of the page of a build, and of their sizes.

use std::time::{Duration, SystemTime};

use serde_json::json;

use super::*;
use crate::buildkit::StepOrExportPartFacts;
use crate::builds::log_excerpt::LogPart;
use crate::builds::numbered_log::{LineKind, LogLine};

/// What a caller repeats to make a page large.
const HOSTILE: [&str; 4] = ["\"<&>", "\u{202e}", "\u{1b}[31m&\u{1b}[32m&", "語"];

/// Returns a fixed time of 2026, and this many seconds more.
fn seconds_after_base(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000 + seconds)
}

/// Returns the record of a failed build whose texts each are `text` 2000 times, with a deployment and warnings.
fn failed_record_with_texts_repeating(text: &str) -> BuildRecord {
    let long = text.repeat(2000);
    let hint = json!({
        "cause": long, "file": long, "line": 7, "next": long, "log": vec![&long; 10],
        "step": {"name": long, "file": long, "line": 7},
    });
    let deployment = json!({
        "status": long, "image": long, "running": {"image": long, "availableReplicas": 1}, "reasons": vec![&long; 20],
        "url": format!("https://{}", "\"".repeat(2000)), "durations": {"check": 1.0, "watch": 2.0},
    });
    let outcome = json!({
        "error": long, "hint": hint, "deployment": deployment, "warnings": vec![&long; 20], "digest": long,
        "commit": long, "supersededBy": long,
    });
    BuildRecord {
        phase: BuildPhase::Failed,
        image: Some(long.clone()),
        function: Some(long.clone()),
        started_at: Some(seconds_after_base(1)),
        ended_at: Some(seconds_after_base(100)),
        outcome: outcome.as_object().expect("an object").clone(),
        ..BuildRecord::accepted(&"\"".repeat(128), seconds_after_base(0))
    }
}

/// Returns an excerpt with as many lines as a page has, in steps that run at the same time.
fn excerpt_of_60_steps_and_300_lines(step_name: &str, line: &str, unread: Option<LogPart>) -> LogExcerpt {
    let steps = (0..60).map(|number| {
        let facts = StepOrExportPartFacts {
            digest: number.to_string(),
            name: step_name.to_owned(),
            started: Some(seconds_after_base(number)),
            ended: Some(seconds_after_base(number + 20)),
            ..StepOrExportPartFacts::default()
        };
        (Some(number as u32), facts)
    });
    let lines = (1..=300).map(|seq| LogLine {
        seq,
        step: Some(seq as u32 % 3),
        kind: LineKind::Ordinary,
        text: format!("l: T {line}"),
    });
    LogExcerpt {
        lines: lines.collect(),
        is_end: true,
        next: 301,
        steps: steps.collect(),
        unread,
        ..LogExcerpt::default()
    }
}

fn sixty_layers() -> Vec<ImageLayerSize> {
    let layer = |bytes| ImageLayerSize {
        digest: format!("sha256:{}", "0".repeat(64)),
        bytes,
    };
    (0..60).map(layer).collect()
}

/// Returns the bytes of the page in a form. The part of the log is named as the page itself names it.
fn page(record: &BuildRecord, others: &[BuildRecord], excerpt: &LogExcerpt, form: BuildPageParts) -> String {
    let page = BuildPage {
        record,
        incomplete: None,
        excerpt,
        others,
        layers: &sixty_layers(),
        access: &PageReaderRights::Open,
        query: PageQuery {
            part: (form != BuildPageParts::Whole).then_some(LogPart::End),
            form,
        },
        now: seconds_after_base(200),
    };
    page.render_requested_parts().into_string()
}

fn is_followed_without_script(page: &str) -> bool {
    page.contains("<noscript><meta http-equiv=\"refresh\" content=\"0; url=?from=end&amp;form=plain\"")
}

#[test]
fn a_page_and_the_one_that_follows_it_take_no_more_than_a_visit_may_whatever_callers_send() {
    for text in HOSTILE {
        let record = failed_record_with_texts_repeating(text);
        let others = vec![record.clone(); 10];
        let line = text.repeat(8192 / text.len());
        let read = excerpt_of_60_steps_and_300_lines(&line, &line, None);
        let whole = page(&record, &others, &read, BuildPageParts::Whole);
        let limit = VISIT_BYTES_MAX - HEADERS_BYTES_MAX;
        assert!(whole.len() <= limit, "{text:?}: {}", whole.len());

        let unread = excerpt_of_60_steps_and_300_lines(&line, &line, Some(LogPart::End));
        let first = page(&record, &others, &unread, BuildPageParts::Whole);
        let second = page(&record, &others, &read, BuildPageParts::StepsAndLog);
        let limit = VISIT_BYTES_MAX - 2 * HEADERS_BYTES_MAX;
        let bytes = first.len() + second.len();
        assert!(bytes <= limit, "{text:?}: {} and {}", first.len(), second.len());
        assert!(second.contains("id=\"L300\""), "{second}");
        if is_followed_without_script(&first) {
            let plain = page(&record, &others, &read, BuildPageParts::WithoutScript);
            assert!(
                first.len() + plain.len() <= limit,
                "{text:?}: {} and {}",
                first.len(),
                plain.len()
            );
        }
    }
}

#[test]
fn the_page_that_follows_has_more_lines_and_steps_and_no_script() {
    let mut record = failed_record_with_texts_repeating("x");
    record.outcome = json!({"error": "exit code: 1"})
        .as_object()
        .expect("an object")
        .clone();
    record.function = Some("hello.openfaas-fn".to_owned());
    let unread =
        excerpt_of_60_steps_and_300_lines("[2/9] RUN cargo build --release", "compiling", Some(LogPart::End));
    let read = excerpt_of_60_steps_and_300_lines("[2/9] RUN cargo build --release", "compiling", None);
    let first = page(&record, &[], &unread, BuildPageParts::Whole);
    assert!(is_followed_without_script(&first), "{first}");
    assert!(first.contains("id=\"load\" href=\"?from=end#log\""), "{first}");
    for form in [BuildPageParts::StepsAndLog, BuildPageParts::WithoutScript] {
        let second = page(&record, &[], &read, form);
        assert!(
            !second.contains("<script") && !second.contains("http-equiv"),
            "{second}"
        );
        let [lines, first_lines] = [&second, &first].map(|page| page.matches("<li id=\"L").count());
        assert!(
            lines >= 20 && lines > first_lines,
            "{form:?}: {lines} {first_lines}"
        );
        let [steps, first_steps] = [&second, &first].map(|page| page.matches("<li data-step").count());
        assert!(steps > first_steps, "{form:?}: {steps} {first_steps}");
        assert!(first.len() + second.len() + 2 * HEADERS_BYTES_MAX <= VISIT_BYTES_MAX);
    }
    let plain = page(&record, &[], &read, BuildPageParts::WithoutScript);
    assert!(
        plain.contains("<style>") && plain.contains("What failed"),
        "{plain}"
    );
    let state = page(&record, &[], &read, BuildPageParts::AllButLog);
    assert!(
        state.contains("What failed") && !state.contains("id=\"log\"") && !state.contains("<style>"),
        "{state}"
    );
    // A part that the address names was waited for: nothing follows.
    let named = BuildPage {
        record: &record,
        incomplete: None,
        excerpt: &unread,
        others: &[],
        layers: &[],
        access: &PageReaderRights::Open,
        query: PageQuery {
            part: Some(LogPart::End),
            form: BuildPageParts::Whole,
        },
        now: seconds_after_base(200),
    };
    assert!(
        !named
            .render_requested_parts()
            .into_string()
            .contains("http-equiv")
    );
}
