//! Tests of the copy of a log and of its readers.

use function_host::prometheus::IntGauge;

use super::*;
use crate::context::SpoolQuota;

/// Returns a line with this number, of `length` bytes.
fn line(seq: u64, length: usize) -> LogLine {
    LogLine {
        seq,
        step: Some(7).filter(|_| !seq.is_multiple_of(3)),
        kind: match seq % 5 {
            0 => LineKind::EndOfCachedStep,
            _ => LineKind::Ordinary,
        },
        text: format!("{seq} {}", "ä".repeat(length / 2)),
    }
}

fn lines(numbers: std::ops::Range<u64>) -> Vec<LogLine> {
    numbers.map(|seq| line(seq, 200)).collect()
}

/// A folder for copies, and a budget of this many bytes for all of them.
struct Copies {
    _folder: tempfile::TempDir,
    spool: SpoolSettings,
    used: IntGauge,
    budget: Arc<CopyBudget>,
}

impl Copies {
    fn with_budget(limit: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let used = IntGauge::new("used", "used").unwrap();
        Self {
            spool: SpoolSettings {
                folder: folder.path().to_owned(),
                memory: 256 << 10,
                quota: SpoolQuota::new(u64::MAX, used.clone()),
            },
            _folder: folder,
            used,
            budget: Arc::new(CopyBudget::new(limit)),
        }
    }

    fn create(&self) -> Arc<LogCopy> {
        LogCopy::new(&self.spool, self.budget.clone(), self.budget.limit())
    }
}

fn finish(copy: &LogCopy, end: CopyEnd) {
    copy.progress.send_modify(|progress| progress.end = Some(end));
}

/// Reads the lines from `first` on until the end of the copy.
async fn read_from(copy: &Arc<LogCopy>, first: u64) -> (Vec<LogLine>, CopiedLines) {
    let mut reader = copy.open_reader();
    let (mut read, mut next) = (Vec::new(), first);
    loop {
        match reader.next_lines(next).await.expect("no error") {
            CopiedLines::Lines(lines) => {
                // A name has the number of the next line.
                let mut numbered = lines
                    .iter()
                    .rev()
                    .filter(|line| line.kind != LineKind::NameOfCachedStep);
                next = numbered.next().map_or(next, |line| line.seq + 1);
                read.extend(lines);
            }
            end => return (read, end),
        }
    }
}

#[tokio::test]
async fn a_reader_gets_the_lines_from_any_number_on_once_and_in_order() {
    let copies = Copies::with_budget(u64::MAX);
    let copy = copies.create();
    for from in [1, 400, 2_000] {
        assert!(copy.append_lines_until_full(&lines(from..from + 399)));
    }
    finish(&copy, CopyEnd::Complete);
    let all: Vec<_> = [1, 400, 2_000]
        .into_iter()
        .flat_map(|from| lines(from..from + 399))
        .collect();
    for first in [0, 1, 2, 399, 400, 777, 1_500, 2_000, 2_398, 2_399, u64::MAX] {
        let (read, end) = read_from(&copy, first).await;
        let expected: Vec<_> = all.iter().filter(|line| line.seq >= first).cloned().collect();
        assert_eq!((read == expected, end), (true, CopiedLines::End), "from {first}");
    }
}

#[tokio::test]
async fn the_name_of_a_cached_step_is_copied_and_does_not_count_as_a_line() {
    let copies = Copies::with_budget(u64::MAX);
    let copy = copies.create();
    let name = |seq| LogLine {
        seq,
        step: None,
        kind: LineKind::NameOfCachedStep,
        text: "[2/5] RUN make".to_owned(),
    };
    let copied = [line(1, 10), line(2, 10), name(3)];
    assert!(copy.append_lines_until_full(&copied));
    finish(&copy, CopyEnd::Complete);
    let mut reader = copy.open_reader();
    assert_eq!(
        reader.next_lines(3).await.expect("no error"),
        CopiedLines::Lines(vec![name(3)])
    );
    assert_eq!(reader.last_copied_line_number(), 2);
}

/// Names of cached steps have the number of the next line, so several blocks may begin with it.
#[tokio::test]
async fn every_reader_gets_the_names_of_all_cached_steps_before_its_first_line() {
    let copies = Copies::with_budget(u64::MAX);
    let copy = copies.create();
    let name = |text: &str| LogLine {
        seq: 3,
        step: None,
        kind: LineKind::NameOfCachedStep,
        text: text.to_owned(),
    };
    let batches = [
        vec![line(1, 10), line(2, 10)],
        vec![name("one")],
        vec![name("two"), line(3, 10)],
    ];
    for batch in &batches {
        assert!(copy.append_lines_until_full(batch));
    }
    finish(&copy, CopyEnd::Complete);
    let all = batches.concat();
    for (first, skipped) in [(1, 0), (2, 1), (3, 2), (4, 5)] {
        let (read, _) = read_from(&copy, first).await;
        assert_eq!(read, all[skipped..], "from {first}");
    }
}

#[tokio::test]
async fn a_reader_of_the_end_of_a_log_reads_one_block_of_its_copy() {
    let copies = Copies::with_budget(u64::MAX);
    let copy = copies.create();
    assert!(copy.append_lines_until_full(&lines(1..20_000)));
    let (read, next) = copy.read_lines_of_one_block(0, 19_999).expect("no error");
    assert_eq!(read, lines(19_999..20_000));
    assert_eq!(next, copy.progress.borrow().bytes);
    let blocks = copy.lock_index().len() as u64;
    assert!(
        (next / BLOCK_BYTES as u64 / 2..=next / BLOCK_BYTES as u64 + 1).contains(&blocks),
        "{blocks}"
    );
}

#[tokio::test]
async fn a_reader_waits_for_lines_that_are_not_there_yet() {
    let copies = Copies::with_budget(u64::MAX);
    let copy = copies.create();
    let mut reader = copy.open_reader();
    assert!(copy.append_lines_until_full(&lines(1..10)));
    let reading = tokio::spawn(async move { reader.next_lines(10).await });
    assert!(copy.append_lines_until_full(&lines(10..12)));
    assert_eq!(
        reading.await.expect("no panic").expect("no error"),
        CopiedLines::Lines(lines(10..12))
    );
}

#[tokio::test]
async fn a_copy_without_room_has_the_beginning_of_the_log_and_gives_its_room_back() {
    let copies = Copies::with_budget(300 << 10);
    let copy = copies.create();
    assert!(!copy.append_lines_until_full(&lines(1..20_000)));
    finish(&copy, CopyEnd::Partial);
    let (read, end) = read_from(&copy, 1).await;
    assert_eq!(end, CopiedLines::NotCopied);
    assert_eq!(read, lines(1..read.len() as u64 + 1));
    assert!(read.len() > 500, "{}", read.len());

    let other = copies.create();
    assert!(
        !other.append_lines_until_full(&lines(1..600)),
        "the first copy has the room"
    );
    assert!(copies.used.get() > 0);
    drop(copy);
    assert!(other.append_lines_until_full(&lines(1..600)));
    drop(other);
    assert_eq!(
        (copies.used.get(), copies.budget.used.load(Ordering::Relaxed)),
        (0, 0)
    );
}

#[tokio::test]
async fn a_reader_of_a_copy_that_failed_gets_its_lines_and_then_the_reason() {
    let copies = Copies::with_budget(u64::MAX);
    let copy = copies.create();
    assert!(copy.append_lines_until_full(&lines(1..3)));
    finish(&copy, CopyEnd::Failed("the daemon is lost".into()));
    let mut reader = copy.open_reader();
    let first = reader.next_lines(1).await.expect("no error");
    assert_eq!(first, CopiedLines::Lines(lines(1..3)));
    let error = reader.next_lines(3).await.expect_err("an error");
    assert_eq!(error.message(), "the daemon is lost");
}

#[tokio::test(start_paused = true)]
async fn a_copy_is_kept_for_a_while_without_readers_and_longer_if_one_comes() {
    let copies = Copies::with_budget(u64::MAX);
    let copy = copies.create();
    let first = copy.open_reader();
    let (waiting, begun) = (copy.clone(), tokio::time::Instant::now());
    let unneeded = tokio::spawn(async move {
        waiting.wait_until_unneeded_or_evicted().await;
        begun.elapsed()
    });
    tokio::time::sleep(KEPT_UNREAD * 2).await;
    drop(first);
    tokio::time::sleep(KEPT_UNREAD / 2).await;
    let second = copy.open_reader();
    tokio::time::sleep(KEPT_UNREAD / 2).await;
    drop(second);
    assert!(!unneeded.is_finished());
    assert_eq!(unneeded.await.expect("no panic"), KEPT_UNREAD * 4);

    let evicted = copy.clone();
    let unneeded = tokio::spawn(async move { evicted.wait_until_unneeded_or_evicted().await });
    copy.mark_evicted();
    tokio::time::timeout(KEPT_UNREAD / 2, unneeded)
        .await
        .expect("in time")
        .expect("no panic");
}
