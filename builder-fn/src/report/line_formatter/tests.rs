//! Tests of the log lines for each kind of event.

use proptest::prelude::*;

use super::*;

fn time_after_2026_01_02t03_04_05(milliseconds: u64) -> SystemTime {
    // 2026-01-02T03:04:05Z
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_323_045) + Duration::from_millis(milliseconds)
}

fn step_started_event(milliseconds: u64) -> BuildEvent {
    BuildEvent::StepStarted {
        digest: "sha256:1".into(),
        name: "[2/3] RUN make".into(),
        at: time_after_2026_01_02t03_04_05(milliseconds),
        is_rerun: false,
    }
}

fn step_ended_event(started: Option<u64>, ended: u64) -> BuildEvent {
    BuildEvent::StepEnded {
        digest: "sha256:1".into(),
        name: "[2/3] RUN make".into(),
        started: started.map(time_after_2026_01_02t03_04_05),
        ended: time_after_2026_01_02t03_04_05(ended),
        cached: false,
        error: String::new(),
        is_rerun: false,
    }
}

fn output_event(stream: i64, milliseconds: u64, text: &str) -> BuildEvent {
    BuildEvent::Output {
        step: "sha256:1".into(),
        stream,
        at: time_after_2026_01_02t03_04_05(milliseconds),
        text: text.into(),
    }
}

fn progress_event(milliseconds: u64, current: i64, done: bool) -> BuildEvent {
    BuildEvent::Progress {
        id: "exporting layers".into(),
        current,
        at: time_after_2026_01_02t03_04_05(milliseconds),
        done,
        is_rerun: false,
    }
}

#[test]
fn a_step_gets_a_line_when_it_starts_and_one_with_its_time_when_it_ends() {
    let mut lines = LineFormatter::default();

    assert_eq!(
        lines.format_event(step_started_event(0)),
        ["v: 2026-01-02T03:04:05Z [2/3] RUN make"]
    );
    assert_eq!(
        lines.format_event(step_ended_event(Some(0), 2340)),
        ["v: 2026-01-02T03:04:07Z [2/3] RUN make 2.34s"]
    );
    assert_eq!(
        lines.format_event(step_ended_event(None, 2340)),
        [""; 0],
        "the step's start is not known"
    );
}

#[test]
fn only_the_line_of_the_end_of_a_cached_step_is_marked_as_such() {
    #[derive(Default)]
    struct Sink(Vec<(String, bool)>);
    impl LogSink for Sink {
        fn push(&mut self, line: String) {
            self.0.push((line, false));
        }
        fn push_end_of_cached_step(&mut self, line: String) {
            self.0.push((line, true));
        }
    }
    let ended = |is_cached| match step_ended_event(Some(0), 2340) {
        BuildEvent::StepEnded {
            digest,
            name,
            started,
            ended,
            error,
            is_rerun,
            ..
        } => BuildEvent::StepEnded {
            digest,
            name,
            started,
            ended,
            cached: is_cached,
            error,
            is_rerun,
        },
        other => other,
    };
    for is_cached in [false, true] {
        let mut sink = Sink::default();
        let mut lines = LineFormatter::default();
        for event in [
            step_started_event(0),
            output_event(1, 0, "rest"),
            ended(is_cached),
        ] {
            lines.log_event(event, &mut sink);
        }
        let marked = sink.0.iter().map(|(_, is_marked)| *is_marked);
        assert_eq!(marked.collect::<Vec<_>>(), [false, false, is_cached]);
        let (end, _) = sink.0.last().expect("the line of the end");
        assert_eq!(name_of_ended_step(end), Some("[2/3] RUN make"));
    }
}

#[test]
fn a_name_that_is_too_long_to_be_repeated_beside_its_line_is_not_repeated() {
    let line = |name: &str| format!("v: 2026-01-02T03:04:05Z {name} 0.00s");
    let fitting = "x".repeat(MAX_CACHED_NAME_BYTES);
    assert_eq!(name_of_ended_step(&line(&fitting)), Some(fitting.as_str()));
    assert_eq!(
        name_of_ended_step(&line(&"\u{1}".repeat(MAX_CACHED_NAME_BYTES / 5))),
        None
    );
}

#[test]
fn a_progress_line_has_the_id_and_the_current_value() {
    assert_eq!(
        LineFormatter::default().format_event(progress_event(0, 0, false)),
        ["s: 2026-01-02T03:04:05Z exporting layers 0"]
    );
}

#[test]
fn output_is_joined_to_whole_lines_however_it_was_cut() {
    let mut lines = LineFormatter::default();

    assert_eq!(
        lines.format_event(output_event(1, 0, "one\r\ntw")),
        ["l: 2026-01-02T03:04:05Z one"]
    );
    assert_eq!(
        lines.format_event(output_event(2, 0, "error\n")),
        ["l: 2026-01-02T03:04:05Z error"],
        "the streams of a step are separate"
    );
    assert_eq!(
        lines.format_event(output_event(1, 1000, "o\n\nthree")),
        ["l: 2026-01-02T03:04:06Z two", "l: 2026-01-02T03:04:06Z "]
    );
    assert_eq!(
        lines.format_event(step_ended_event(Some(0), 1000)),
        [
            "l: 2026-01-02T03:04:06Z three",
            "v: 2026-01-02T03:04:06Z [2/3] RUN make 1.00s"
        ]
    );
    assert_eq!(lines.take_unfinished_output(), [""; 0]);
}

#[test]
fn output_without_a_line_end_is_returned_when_the_build_is_over() {
    let mut lines = LineFormatter::default();
    lines.format_event(output_event(1, 0, "no newline"));

    assert_eq!(
        lines.take_unfinished_output(),
        ["l: 2026-01-02T03:04:05Z no newline"]
    );
    assert_eq!(lines.take_unfinished_output(), [""; 0]);
}

#[test]
fn long_lines_are_split_between_characters_and_lose_nothing() {
    let text = "äöü€".repeat(MAX_LINE_BYTES);
    let mut formatted = LineFormatter::default().format_event(output_event(1, 0, &format!("{text}\n")));
    let prefix = "l: 2026-01-02T03:04:05Z ";

    assert!(
        formatted
            .iter()
            .all(|line| line.len() <= MAX_LINE_BYTES + prefix.len())
    );
    let whole: String = formatted
        .drain(..)
        .map(|line| line[prefix.len()..].to_owned())
        .collect();
    assert_eq!(whole, text);
}

#[test]
fn steps_of_slipways_own_have_the_form_of_buildkits() {
    let lines = LineFormatter::default();
    let begin = lines.format_own_step_start("[deploy] hello");
    let end = lines.format_own_step_end("[deploy] hello", Duration::from_millis(2340));

    assert!(
        begin.starts_with("v: 20") && begin.ends_with("Z [deploy] hello"),
        "{begin}"
    );
    assert!(
        end.starts_with("v: 20") && end.ends_with("Z [deploy] hello 2.34s"),
        "{end}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn output_keeps_its_text_and_its_lines_are_short_however_it_was_cut(
        text in "([a-zäü€😀]{0,40}|\n){0,12}",
        stretch in prop::sample::select(vec![1usize, 300]),
        cuts in prop::collection::vec(1..9000usize, 1..20),
    ) {
        let text: String = text.split_inclusive('\n').map(|line| match line.strip_suffix('\n') {
            Some(line) => line.repeat(stretch) + "\n",
            None => line.repeat(stretch),
        }).collect();
        let prefix = "l: 2026-01-02T03:04:05Z ";
        let mut lines = LineFormatter::default();
        let mut formatted = Vec::new();
        let mut rest = text.as_bytes();
        for cut in cuts.iter().cycle() {
            let (piece, further) = rest.split_at(rest.len().min(*cut));
            rest = further;
            let at = time_after_2026_01_02t03_04_05(0);
            formatted.extend(lines.format_event(BuildEvent::Output { step: "s".into(), stream: 1, at, text: piece.to_vec() }));
            if rest.is_empty() {
                break;
            }
        }
        formatted.extend(lines.take_unfinished_output());

        prop_assert!(formatted.iter().all(|line| line.starts_with(prefix) && line.len() <= prefix.len() + MAX_LINE_BYTES));
        let whole: String = formatted.iter().map(|line| &line[prefix.len()..]).collect();
        prop_assert_eq!(whole, text.replace('\n', ""));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_secret_is_masked_however_its_line_is_cut_and_however_long_it_is(
        before in 0..20_000usize,
        secret in "[A-Z0-9]{4,300}",
        after in 0..20_000usize,
        cut in 1..9000usize,
    ) {
        let mut lines = LineFormatter::new(SecretMask::new([secret.as_bytes()]));
        let text = "x".repeat(before) + &secret + &"y".repeat(after);
        let mut formatted = Vec::new();
        for piece in text.as_bytes().chunks(cut) {
            formatted.extend(lines.format_event(BuildEvent::Output { step: "s".into(), stream: 1, at: time_after_2026_01_02t03_04_05(0), text: piece.to_vec() }));
        }
        formatted.extend(lines.take_unfinished_output());

        let shown: String = formatted.iter().map(|line| &line["l: 2026-01-02T03:04:05Z ".len()..]).collect();
        let masked = shown.trim_start_matches('x').trim_end_matches('y');
        prop_assert!(masked == "***" || masked == "******", "{}", masked);
        prop_assert!(!shown.contains(&secret[..4]), "{}", shown);
    }
}

proptest! {
    #[test]
    fn skipped_output_counts_as_many_lines_as_formatted_output_has_however_it_was_cut(
        pieces in prop::collection::vec(
            prop::collection::vec(prop_oneof![
                4 => Just(b"\n".to_vec()),
                1 => Just(b"\r\n".to_vec()),
                2 => Just(b"the secret".to_vec()),
                2 => Just(vec![0xff; 700]),
                4 => prop::collection::vec(any::<u8>(), 0..40),
            ], 0..8),
            1..12,
        ),
        skipped in 0..12usize,
        limit in 0..20u64,
    ) {
        let mask = SecretMask::new([&b"the secret"[..]]);
        let (mut formatting, mut skipping) = (LineFormatter::new(mask.clone()), LineFormatter::new(mask));
        for (index, piece) in pieces.iter().enumerate() {
            let event = BuildEvent::Output {
                step: "s".into(),
                stream: 1 + (index % 2) as i64,
                at: time_after_2026_01_02t03_04_05(index as u64 * 1000),
                text: piece.concat(),
            };
            let expected = formatting.format_event(event.clone());
            let skipping_result = match index < skipped {
                true => skipping.skip_output(event, limit),
                false => Err(event),
            };
            match skipping_result {
                Ok(count) => {
                    prop_assert!(count <= limit);
                    prop_assert_eq!(count, expected.len() as u64);
                }
                Err(event) => prop_assert_eq!(skipping.format_event(event), expected),
            }
        }
        prop_assert_eq!(skipping.take_unfinished_output(), formatting.take_unfinished_output());
    }
}

#[test]
fn output_of_short_lines_is_skipped_up_to_the_limit_and_other_events_are_not() {
    let mut lines = LineFormatter::default();
    assert_eq!(lines.skip_output(output_event(1, 0, "one\ntwo\nth"), 2), Ok(2));
    let rest = output_event(1, 0, "ree\nfour\n");
    assert_eq!(lines.skip_output(rest.clone(), 1), Err(rest.clone()));
    assert_eq!(
        lines.format_event(rest),
        ["l: 2026-01-02T03:04:05Z three", "l: 2026-01-02T03:04:05Z four"]
    );
    for event in [
        step_started_event(0),
        progress_event(0, 1, false),
        output_event(1, 0, &("x".repeat(MAX_LINE_BYTES) + "\n")),
    ] {
        assert_eq!(lines.skip_output(event.clone(), 9), Err(event));
    }
}

#[test]
fn a_line_without_an_end_is_passed_on_before_it_grows_large() {
    let mut lines = LineFormatter::default();
    let formatted: usize = (0..100)
        .map(|_| lines.format_event(output_event(1, 0, &"x".repeat(1000))).len())
        .sum();

    assert!(formatted >= 11, "{formatted}");
}

#[test]
fn output_that_is_not_utf8_and_names_of_several_lines_become_valid_lines() {
    let mut lines = LineFormatter::default();
    let event = BuildEvent::Output {
        step: "x".into(),
        stream: 1,
        at: time_after_2026_01_02t03_04_05(0),
        text: b"\xff\xfe\n".to_vec(),
    };
    assert_eq!(
        lines.format_event(event),
        ["l: 2026-01-02T03:04:05Z \u{fffd}\u{fffd}"]
    );

    let event = BuildEvent::Progress {
        id: "a\nb".into(),
        current: 1,
        at: time_after_2026_01_02t03_04_05(0),
        done: true,
        is_rerun: false,
    };
    assert_eq!(lines.format_event(event), ["s: 2026-01-02T03:04:05Z a b 1"]);
}
