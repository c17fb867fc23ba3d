//! Tests of the order of a log's events, with updates that are grouped and split as BuildKit does it.

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::{VertexLog, VertexStatus, VertexWarning};
use proptest::prelude::*;

use super::*;

fn timestamp(milliseconds: i64) -> Timestamp {
    Timestamp {
        seconds: milliseconds / 1000,
        nanos: i32::try_from(milliseconds % 1000).expect("small") * 1_000_000,
    }
}

/// Returns a step that began and ended at these times in milliseconds.
fn vertex(digest: &str, started: i64, completed: Option<i64>, error: &str) -> Vertex {
    Vertex {
        digest: digest.into(),
        name: format!("[{digest}]"),
        started: Some(timestamp(started)),
        completed: completed.map(timestamp),
        error: error.into(),
        ..Vertex::default()
    }
}

/// Returns a line of a step's output, written at this time in milliseconds.
fn log(digest: &str, at: i64) -> VertexLog {
    VertexLog {
        vertex: digest.into(),
        timestamp: Some(timestamp(at)),
        stream: 1,
        msg: format!("{digest} {at}\n").into(),
    }
}

/// One update of a build, as BuildKit queues it.
#[derive(Clone, Debug)]
enum Update {
    Step(Vertex),
    Log(VertexLog),
    Status(VertexStatus),
}

/// Returns the updates of two parallel steps, in BuildKit's order.
fn updates_of_two_steps() -> Vec<Update> {
    let mut updates = vec![
        Update::Step(vertex("a", 0, None, "")),
        Update::Step(vertex("b", 20, None, "")),
    ];
    for tenth in 1..60_i64 {
        updates.push(Update::Log(log(
            if tenth % 3 == 0 { "b" } else { "a" },
            tenth * 100,
        )));
        updates.push(Update::Status(VertexStatus {
            id: "x".into(),
            timestamp: Some(timestamp(tenth * 100 + 1)),
            ..VertexStatus::default()
        }));
        if tenth == 30 {
            updates.push(Update::Step(vertex("a", 0, Some(3010), "")));
            updates.push(Update::Step(vertex("a", 3020, None, "")));
        }
    }
    updates.push(Update::Step(vertex("a", 3020, Some(5910), "exit code: 1")));
    updates
}

/// Returns one response with the updates, grouped by kind as BuildKit does.
fn response_with(updates: &[Update]) -> StatusResponse {
    let mut response = StatusResponse::default();
    for update in updates {
        match update.clone() {
            Update::Step(vertex) => response.vertexes.push(vertex),
            Update::Log(log) => response.logs.push(log),
            Update::Status(status) => response.statuses.push(status),
        }
    }
    response
}

/// Returns the ordered events of `updates`, which are read in batches of these sizes, over and over.
fn read_in_batches(updates: &[Update], sizes: &[usize]) -> Vec<BuildEvent> {
    let mut order = EventSorter::default();
    let mut events = Vec::new();
    let (mut rest, mut sizes) = (updates, sizes.iter().cycle());
    while !rest.is_empty() {
        let size = sizes.next().copied().unwrap_or(1).clamp(1, rest.len());
        let (batch, more) = rest.split_at(size);
        order.add_response(response_with(batch));
        events.extend(order.take_ready_or_above_memory_limit());
        rest = more;
    }
    events.extend(order.take_all_held());
    events
}

proptest! {
    #[test]
    fn the_order_of_a_log_does_not_depend_on_how_buildkit_groups_it(
        sizes in proptest::collection::vec(1_usize..40, 1..12),
        swaps in proptest::collection::vec(0_usize..100, 0..10),
    ) {
        let expected = read_in_batches(&updates_of_two_steps(), &[1]);
        let mut shuffled = updates_of_two_steps();
        for at in swaps {
            // Neighbours may overtake each other on their way.
            if at + 1 < shuffled.len() && matches!((&shuffled[at], &shuffled[at + 1]), (Update::Log(_) | Update::Status(_), Update::Log(_) | Update::Status(_))) {
                shuffled.swap(at, at + 1);
            }
        }
        prop_assert_eq!(read_in_batches(&shuffled, &sizes), expected);
    }
}

/// Splits a response as BuildKit does before it sends or stores it: `client/status.go`, where the size is not reset.
fn split_like_buildkit(mut response: StatusResponse) -> Vec<StatusResponse> {
    let (mut parts, mut size) = (Vec::new(), 0);
    loop {
        let mut end = None;
        for (index, log) in response.logs.iter().enumerate() {
            size += log.msg.len();
            if size > 1 << 20 {
                end = Some(index + 1);
                break;
            }
        }
        let Some(end) = end else {
            parts.push(response);
            return parts;
        };
        let rest = response.logs.split_off(end);
        let warnings = response.warnings.clone();
        parts.push(std::mem::replace(
            &mut response,
            StatusResponse {
                logs: rest,
                warnings,
                ..StatusResponse::default()
            },
        ));
    }
}

/// Returns the updates of two steps, one after the other: each has `pieces_per_step` pieces of output of 32 KiB, and as
/// many reports of progress.
fn updates_of_two_steps_with_much_output(pieces_per_step: i64) -> Vec<Update> {
    let mut updates = Vec::new();
    let duration = (pieces_per_step + 1) * 50;
    for (step, begin) in [("a", 0), ("b", duration)] {
        updates.push(Update::Step(vertex(step, begin, None, "")));
        for number in 1..=pieces_per_step {
            let mut log = log(step, begin + number * 50);
            log.msg.resize(32 << 10, b'x');
            updates.push(Update::Log(log));
            updates.push(Update::Status(VertexStatus {
                id: "x".into(),
                timestamp: Some(timestamp(begin + number * 50 + 1)),
                ..VertexStatus::default()
            }));
        }
        updates.push(Update::Step(vertex(step, begin, Some(begin + duration - 10), "")));
    }
    updates
}

/// Returns the ordered events of responses.
fn read_responses(responses: impl IntoIterator<Item = StatusResponse>) -> Vec<BuildEvent> {
    let mut order = EventSorter::default();
    let mut events = Vec::new();
    for response in responses {
        order.add_response(response);
        events.extend(order.take_ready_or_above_memory_limit());
    }
    events.extend(order.take_all_held());
    events
}

#[test]
fn the_order_of_a_log_does_not_depend_on_how_buildkit_splits_it_live_and_in_its_history() {
    let updates = updates_of_two_steps_with_much_output(100);
    let expected = read_in_batches(&updates, &[1]);
    for batch in [50, 150, updates.len()] {
        let responses = updates.chunks(batch).map(response_with);
        let live: Vec<_> = responses.flat_map(split_like_buildkit).collect();
        assert!(live.len() > 4, "it is split");
        assert!(read_responses(live.clone()) == expected, "live, {batch}");
        let recorded = live.into_iter().flat_map(split_like_buildkit);
        assert!(read_responses(recorded) == expected, "recorded, {batch}");
    }
}

#[test]
fn a_warning_that_buildkit_repeats_in_each_part_of_a_batch_is_one_event() {
    let mut response = response_with(&updates_of_two_steps_with_much_output(100));
    response.warnings = ["casing", "secrets in arguments"]
        .map(|short| VertexWarning {
            short: short.into(),
            ..VertexWarning::default()
        })
        .into();
    let mut order = EventSorter::default();
    for part in split_like_buildkit(response) {
        order.add_response(part);
    }
    assert_eq!(order.warnings.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_the_daemon_in_a_batch_or_in_a_recorded_log_does_not_change_the_order() {
    let updates = updates_of_two_steps_with_much_output(60);
    let expected = read_in_batches(&updates, &[1]);
    for is_recorded in [false, true] {
        let parts = split_like_buildkit(response_with(&updates));
        let parts = match is_recorded {
            true => parts.into_iter().flat_map(split_like_buildkit).collect(),
            false => parts,
        };
        let responses = futures_util::stream::iter(parts).then(|part| async move {
            tokio::time::sleep(EVENT_HOLD_TIME * 5).await;
            Ok(part)
        });
        let mut log = OrderedLogWithoutProgress {
            responses: responses.boxed(),
            order: EventSorter::default(),
            facts: None,
            is_recorded,
            has_ended: false,
        };
        let mut events = Vec::new();
        while let Some(more) = log.next_events().await.expect("no error") {
            events.extend(more);
        }
        assert!(events == expected, "recorded: {is_recorded}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_event_of_a_running_build_is_passed_on_within_two_seconds() {
    let first = split_like_buildkit(response_with(&updates_of_two_steps_with_much_output(60)));
    let later = response_with(&[Update::Log(log("b", 100_000))]);
    let responses = futures_util::stream::iter(first.into_iter().chain([later]).map(Ok));
    let mut log = OrderedLogWithoutProgress {
        responses: responses.chain(futures_util::stream::pending()).boxed(),
        order: EventSorter::default(),
        facts: None,
        is_recorded: false,
        has_ended: false,
    };
    let is_last = |event: &BuildEvent| matches!(event, BuildEvent::Output { text, .. } if text.starts_with(b"b 100000"));
    let waiting = async {
        while let Some(events) = log.next_events().await.expect("no error") {
            if events.iter().any(is_last) {
                return true;
            }
        }
        false
    };
    assert_eq!(tokio::time::timeout(EVENT_HOLD_TIME * 2, waiting).await, Ok(true));
}

#[test]
fn a_beginning_that_buildkit_left_out_is_taken_from_the_end_of_the_step() {
    let all = [vertex("a", 0, None, ""), vertex("a", 0, Some(10), "")].map(Update::Step);
    assert_eq!(read_in_batches(&all, &[1]), read_in_batches(&all[1..], &[1]));
    assert_eq!(read_in_batches(&all, &[1]).len(), 2);
}

#[test]
fn steps_without_a_duration_and_the_ends_of_cancelled_steps_are_left_out() {
    let updates = [
        vertex("at once", 5, Some(5), ""),
        vertex("cancelled", 6, Some(70), "context canceled"),
    ];
    let events = read_in_batches(&updates.map(Update::Step), &[1]);
    assert!(
        matches!(&events[..], [BuildEvent::StepStarted { digest, .. }] if digest == "cancelled"),
        "{events:?}"
    );
}

#[test]
fn a_cached_step_is_one_end_without_a_beginning_however_often_buildkit_reports_it() {
    let cached = |at| Vertex {
        cached: true,
        ..vertex("a", at, Some(at), "")
    };
    let updates = [cached(5), cached(5), cached(70)];
    let events = read_in_batches(&updates.map(Update::Step), &[1]);
    assert!(
        matches!(
            &events[..],
            [BuildEvent::StepEnded { started: None, cached: true, name, .. }] if name == "[a]"
        ),
        "{events:?}"
    );
}

#[test]
fn held_events_take_bounded_memory() {
    let mut order = EventSorter::default();
    let mut passed = 0;
    for _ in 0..64 {
        let mut response = StatusResponse::default();
        response.logs.push(VertexLog {
            msg: vec![b'x'; 1 << 20],
            ..log("a", 1000)
        });
        order.add_response(response);
        passed += order.take_ready_or_above_memory_limit().len();
        assert!(order.held_bytes <= HELD_BYTES_MAX);
    }
    assert!(passed > 50, "{passed}");
    order.take_all_held();
    assert_eq!(order.held_bytes, 0);
}
