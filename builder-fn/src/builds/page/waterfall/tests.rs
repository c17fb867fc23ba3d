use serde_json::json;

use super::*;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn record() -> BuildRecord {
    let mut record = BuildRecord {
        phase: BuildPhase::Success,
        started_at: Some(at(110)),
        ended_at: Some(at(120)),
        ..BuildRecord::accepted("a", at(100))
    };
    let durations = json!({"check": 0.5, "apply": 0.0, "watch": 1.5, "total": 2.0});
    record
        .outcome
        .insert("deployment".into(), json!({"durations": durations}));
    record
}

fn step(name: &str, began: u64, ended: Option<u64>, cached: bool, error: &str) -> StepOrExportPartFacts {
    StepOrExportPartFacts {
        digest: name.to_owned(),
        name: name.to_owned(),
        started: Some(at(began)),
        ended: ended.map(at),
        cached,
        failed: !error.is_empty(),
    }
}

#[test]
fn rows_are_the_wait_the_steps_in_order_and_the_deployment() {
    let excerpt = LogExcerpt {
        steps: vec![
            (Some(2), step("make", 112, Some(117), false, "")),
            (Some(1), step("fetch", 110, Some(110), true, "")),
            (Some(3), step("test", 113, Some(114), false, "exit code: 1")),
            (Some(4), step("last", 117, None, false, "")),
        ],
        is_complete: true,
        ..LogExcerpt::default()
    };
    let rows = rows(&record(), &excerpt, at(130));
    let words: Vec<_> = rows
        .iter()
        .map(|row| format!("{}: {}", row.name, row.duration_or_state_text(at(130))))
        .collect();
    assert_eq!(
        words,
        [
            "waiting for a builder: 10.0 s",
            "fetch: cached",
            "make: 5.00 s",
            "test: failed after 1.00 s",
            "last: not ended",
            "deployment: check: 0.50 s",
            "deployment: watch and probe: 1.50 s",
        ]
    );
    assert_eq!(rows.last().and_then(|row| row.ended), Some(at(120)));
}

#[test]
fn a_deployment_that_runs_is_the_last_row_from_the_end_of_the_last_step_or_the_beginning_of_a_rollback() {
    let mut record = record();
    (record.phase, record.ended_at) = (BuildPhase::Deploying, None);
    record.outcome.clear();
    let mut excerpt = LogExcerpt {
        steps: vec![
            (Some(1), step("fetch", 110, Some(112), false, "")),
            (Some(2), step("make", 112, Some(117), false, "")),
        ],
        ..LogExcerpt::default()
    };
    for began in [117, 110] {
        let rows = rows(&record, &excerpt, at(130));
        let last = rows.last().expect("a row");
        assert_eq!((last.name.as_str(), last.began), ("deployment", Some(at(began))));
        let running = format!("running, {}.0 s", 130 - began);
        assert_eq!(last.duration_or_state_text(at(130)), running);
        excerpt.steps.clear();
    }
    record.phase = BuildPhase::Running;
    let rows = rows(&record, &excerpt, at(130));
    assert!(rows.iter().all(|row| row.name != "deployment"), "{rows:?}");
}

#[test]
fn of_many_rows_those_that_tell_most_are_shown() {
    let mut steps: Vec<_> = (0..100)
        .map(|number| {
            (
                Some(number),
                step(&format!("cached {number}"), 110, Some(110), true, ""),
            )
        })
        .collect();
    steps.extend((100..200).map(|number| {
        (
            Some(number),
            step(&format!("short {number}"), 111, Some(112), false, ""),
        )
    }));
    steps.push((Some(200), step("long", 112, Some(118), false, "")));
    steps.push((Some(201), step("failing", 118, Some(118), false, "exit code: 1")));
    steps.push((None, step("pushing layers", 118, Some(118), false, "")));
    let excerpt = LogExcerpt {
        steps,
        is_complete: true,
        ..LogExcerpt::default()
    };
    let html = render_waterfall(&record(), &excerpt, 20_000, at(120)).into_string();
    assert_eq!(html.matches("<li").count(), ROWS_MAX, "{html}");
    let short = render_waterfall(&record(), &excerpt, 2000, at(120)).into_string();
    assert!(short.len() < 2200, "{}", short.len());
    for name in [WAIT_ROW_NAME, "failing", "pushing layers"] {
        assert!(short.contains(&format!(">{name}<")), "{name}: {short}");
    }
    let place = |name: &str| {
        html.find(&format!(">{name}<"))
            .unwrap_or_else(|| panic!("{name}: {html}"))
    };
    let shown = [
        WAIT_ROW_NAME,
        "short 100",
        "long",
        "failing",
        "pushing layers",
        "deployment: watch and probe",
    ]
    .map(place);
    assert!(shown.is_sorted(), "{shown:?}: {html}");
    assert!(!html.contains("cached 0"), "{html}");
    assert!(html.contains("and 166 more"), "{html}");
}

#[test]
fn every_bar_is_on_the_axis_and_a_long_wait_is_cut() {
    let excerpt = LogExcerpt {
        steps: vec![(Some(1), step("make", 1110, Some(1120), false, ""))],
        ..LogExcerpt::default()
    };
    let record = BuildRecord {
        phase: BuildPhase::Success,
        started_at: Some(at(1110)),
        ended_at: Some(at(1120)),
        ..BuildRecord::accepted("a", at(100))
    };
    let rows = rows(&record, &excerpt, at(1120));
    let axis = Axis::of_rows_with_long_wait_cut(&rows, at(1120)).expect("an axis");
    assert_eq!((axis.start, axis.seconds), (at(1100), 20.0));
    for row in &rows {
        let (from, width) =
            axis.bar_start_and_width_in_thousandths(row.began.expect("a time"), row.ended.expect("a time"));
        assert!(from + width <= 1000 && width >= 5, "{row:?}: {from} {width}");
    }
    assert_eq!(
        axis.bar_start_and_width_in_thousandths(at(1110), at(1120)),
        (500, 500)
    );
}

#[test]
fn what_ran_after_a_deployment_is_an_image_with_its_replicas_or_nothing_and_unknown_states_are_left_out() {
    // As `deployer-fn/src/outcome.rs` writes it.
    for (running, expected) in [
        (
            json!({"image": "r/shop@sha256:2", "availableReplicas": 1}),
            Some("<code>r/shop@sha256:2</code>, available replicas: 1"),
        ),
        (
            json!({"image": "r/shop@sha256:2", "availableReplicas": 0}),
            Some("<code>r/shop@sha256:2</code>, available replicas: 0"),
        ),
        (json!(null), Some("<code>nothing</code>")),
        (json!("an older deployer"), None),
    ] {
        let outcome = json!({"status": "rolled_back", "running": running});
        let page = render_deployment_outcome(&outcome).into_string();
        match expected {
            Some(state) => {
                let row = format!("<dt>Ran afterwards</dt><dd>{state}</dd>");
                assert!(page.contains(&row), "{page}");
            }
            None => assert!(!page.contains("Ran afterwards"), "{page}"),
        }
    }
    let unknown = render_deployment_outcome(&json!({"status": "failed"})).into_string();
    assert!(!unknown.contains("Ran afterwards"), "{unknown}");
}

#[test]
fn an_address_that_is_no_web_page_is_no_link() {
    let page =
        render_deployment_outcome(&json!({"status": "ready", "url": "javascript:alert(1)"})).into_string();
    assert!(!page.contains("javascript"), "{page}");
    let page =
        render_deployment_outcome(&json!({"url": "http://gateway:8080/function/a\"><script>"})).into_string();
    assert!(
        page.contains("function/a&quot;&gt;&lt;script&gt;\" rel"),
        "{page}"
    );
}
