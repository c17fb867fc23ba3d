//! Tests of the budget: which sender is displaced, and that no limit is ever exceeded.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_core::Stream;
use proptest::prelude::*;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::*;
use crate::{Body, BoxError};

/// The limits of most budgets in these tests.
const LIMITS: UnverifiedLimits = UnverifiedLimits {
    senders: 4,
    memory: 1000,
    disk: 1000,
    rate: 1000,
    grace: Duration::from_secs(10),
};

/// Limits with enough memory for the bodies of these tests.
const ROOMY_LIMITS: UnverifiedLimits = UnverifiedLimits {
    memory: 1 << 20,
    ..LIMITS
};

/// Polls a future once.
fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Polls a future until it is ready, at most twice.
fn poll_at_most_twice(future: impl Future) {
    let mut future = std::pin::pin!(future);
    let _ = poll_once(future.as_mut()).is_pending() && poll_once(future).is_pending();
}

fn is_displaced(sender: &UnverifiedSender) -> bool {
    poll_once(sender.wait_until_displaced()).is_ready()
}

fn poll_memory_reservation(
    sender: &mut UnverifiedSender,
    bytes: u64,
) -> Poll<Result<(), DisplacedForOthers>> {
    poll_once(sender.reserve_bytes(HeldResource::Memory, bytes))
}

/// A body whose pieces the test sends over a channel.
struct PieceStream(mpsc::Receiver<&'static [u8]>);

impl Stream for PieceStream {
    type Item = Result<Bytes, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let piece = self.0.poll_recv(cx);
        piece.map(|piece| piece.map(|piece| Ok(Bytes::from_static(piece))))
    }
}

fn body_from_channel() -> (mpsc::Sender<&'static [u8]>, Body) {
    let (pieces, receiver) = mpsc::channel(8);
    (pieces, Body::stream(PieceStream(receiver)))
}

/// Makes a sender wait for a body that does not arrive.
async fn make_sender_wait(sender: &mut UnverifiedSender) {
    let (_pieces, mut body) = body_from_channel();
    poll_at_most_twice(sender.next_piece(Pin::new(&mut body)));
}

/// Sends a piece as a sender's next, after which the sender waits.
async fn receive_piece_and_make_sender_wait(sender: &mut UnverifiedSender, bytes: &'static [u8]) {
    let mut body = Body::from(bytes);
    sender.next_piece(Pin::new(&mut body)).await.unwrap();
    make_sender_wait(sender).await;
}

#[tokio::test]
async fn a_sender_is_displaced_only_while_the_server_waits_for_its_bytes() {
    let budget = UnverifiedBudget::new(UnverifiedLimits { senders: 2, ..LIMITS });
    let mut sender = budget.admit();
    let mut others: Vec<_> = (0..100).map(|_| budget.admit()).collect();
    for other in &mut others {
        make_sender_wait(other).await;
    }
    let _another = budget.admit();
    assert!(!is_displaced(&sender));
    assert!(is_displaced(&others[0]));
    make_sender_wait(&mut sender).await;
    let _another = budget.admit();
    assert!(is_displaced(&sender));
}

#[tokio::test(start_paused = true)]
async fn the_slowest_of_the_earlier_half_is_displaced_when_another_sender_arrives() {
    let budget = UnverifiedBudget::new(LIMITS);
    let mut first = budget.admit();
    let mut second = budget.admit();
    let (mut third, mut fourth) = (budget.admit(), budget.admit());
    make_sender_wait(&mut third).await;
    make_sender_wait(&mut fourth).await;
    receive_piece_and_make_sender_wait(&mut first, &[0; 20]).await;
    receive_piece_and_make_sender_wait(&mut second, &[0; 10]).await;

    let fifth = budget.admit();

    assert!(is_displaced(&second));
    for sender in [&first, &third, &fourth, &fifth] {
        assert!(!is_displaced(sender));
    }
    assert_eq!(budget.undisplaced_sender_count(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_stays_until_half_the_limit_have_arrived_after_it_however_many_are_processed() {
    let budget = UnverifiedBudget::new(LIMITS);
    let _processed: Vec<_> = (0..20).map(|_| budget.admit()).collect();
    let mut newcomer = budget.admit();
    make_sender_wait(&mut newcomer).await;
    let mut others = Vec::new();
    for arrived in 1..=2 {
        let mut other = budget.admit();
        make_sender_wait(&mut other).await;
        others.push(other);
        assert!(!is_displaced(&newcomer), "{arrived} arrived after it");
    }
    let _last = budget.admit();
    assert!(
        is_displaced(&newcomer),
        "half as many as the limit have arrived after it"
    );
}

#[tokio::test(start_paused = true)]
async fn waiting_for_others_to_be_processed_does_not_make_a_sender_slow() {
    let budget = UnverifiedBudget::new(LIMITS);
    let mut held_up = budget.admit();
    receive_piece_and_make_sender_wait(&mut held_up, &[0; 100]).await;
    let slot = sleep(Duration::from_secs(100));
    let mut waiting = Box::pin(held_up.wait_for(slot));
    assert!(poll_once(waiting.as_mut()).is_pending());
    let mut slow = budget.admit();
    receive_piece_and_make_sender_wait(&mut slow, &[0; 99]).await;
    let _others = [budget.admit(), budget.admit()];
    sleep(Duration::from_secs(50)).await;
    let mut fresh = budget.admit();
    make_sender_wait(&mut fresh).await;
    assert!(
        is_displaced(&slow),
        "it sent less in 50 s than the other in less than one"
    );
    assert!(waiting.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_sends_steadily_outlasts_any_number_that_idle_or_burst() {
    let budget = UnverifiedBudget::new(LIMITS);
    let mut steady = budget.admit();
    let mut others = Vec::new();
    for round in 0..1000 {
        receive_piece_and_make_sender_wait(&mut steady, &[0; 1000]).await;
        let mut other = budget.admit();
        if round % 2 == 0 {
            receive_piece_and_make_sender_wait(&mut other, &[0; 500]).await;
        } else {
            make_sender_wait(&mut other).await;
        }
        others.push(other);
        others.retain(|other| !is_displaced(other));
        sleep(Duration::from_millis(10)).await;
        assert!(!is_displaced(&steady), "{round}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_displaced_sender_that_waits_for_its_body_ends_at_once() {
    let budget = UnverifiedBudget::new(UnverifiedLimits { senders: 1, ..LIMITS });
    let (_pieces, body) = body_from_channel();
    let mut first = budget.admit();
    let receiving = tokio::spawn(async move { first.collect(body, 100).await });
    tokio::task::yield_now().await;
    let begun = Instant::now();

    let _second = budget.admit();

    let error = receiving.await.unwrap().unwrap_err();
    assert!(
        matches!(
            error,
            ReceiveError::Displaced(DisplacedForOthers::Senders { limit: 1 })
        ),
        "{error}"
    );
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_body_below_the_lowest_rate_ends_after_the_grace_period() {
    let budget = UnverifiedBudget::new(ROOMY_LIMITS);
    for pause in [1, 9, 100] {
        let (pieces, body) = body_from_channel();
        let trickle = tokio::spawn(async move {
            while pieces.send(&[0]).await.is_ok() {
                sleep(Duration::from_secs(pause)).await;
            }
        });
        let begun = Instant::now();
        let error = budget.admit().collect(body, 1000).await.unwrap_err();
        assert!(
            matches!(error, ReceiveError::TooSlow { rate: 1000, .. }),
            "{error}"
        );
        assert!(begun.elapsed() < Duration::from_secs(11), "{:?}", begun.elapsed());
        trickle.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_began_fast_cannot_pause_for_longer_than_the_grace_period() {
    let budget = UnverifiedBudget::new(ROOMY_LIMITS);
    let (pieces, body) = body_from_channel();
    pieces.send(&[0; 100_000]).await.unwrap();
    let begun = Instant::now();
    let error = budget.admit().collect(body, 1 << 20).await.unwrap_err();
    assert!(matches!(error, ReceiveError::TooSlow { .. }), "{error}");
    assert_eq!(begun.elapsed(), LIMITS.grace);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_of_a_body_does_not_make_its_sender_slow() {
    let budget = UnverifiedBudget::new(LIMITS);
    let (pieces, mut body) = body_from_channel();
    let mut sender = budget.admit();
    for _ in 0..5 {
        pieces.send(&[0]).await.unwrap();
        assert!(sender.next_piece(Pin::new(&mut body)).await.unwrap().is_some());
        sleep(Duration::from_secs(60)).await;
    }
}

#[tokio::test]
async fn the_largest_holder_is_displaced_and_its_part_is_used_once_it_has_ended() {
    let budget = UnverifiedBudget::new(LIMITS);
    let (mut large, mut medium, mut small) = (budget.admit(), budget.admit(), budget.admit());
    assert_eq!(poll_memory_reservation(&mut large, 600), Poll::Ready(Ok(())));
    assert_eq!(poll_memory_reservation(&mut medium, 300), Poll::Ready(Ok(())));

    assert_eq!(poll_memory_reservation(&mut small, 200), Poll::Pending);

    assert!(is_displaced(&large) && !is_displaced(&medium) && !is_displaced(&small));
    assert_eq!(
        budget.held_bytes(HeldResource::Memory),
        900,
        "memory was counted twice"
    );
    drop(large);
    assert_eq!(poll_memory_reservation(&mut small, 200), Poll::Ready(Ok(())));
    assert_eq!(budget.held_bytes(HeldResource::Memory), 500);
}

#[tokio::test]
async fn a_sender_that_would_hold_the_most_is_the_one_that_is_displaced() {
    let budget = UnverifiedBudget::new(LIMITS);
    let (mut large, mut small) = (budget.admit(), budget.admit());
    assert_eq!(poll_memory_reservation(&mut small, 400), Poll::Ready(Ok(())));
    let displaced = DisplacedForOthers::Memory { limit: 1000 };
    assert_eq!(
        poll_memory_reservation(&mut large, 700),
        Poll::Ready(Err(displaced))
    );
    assert!(!is_displaced(&small));
}

#[tokio::test]
async fn waiting_for_room_ends_when_the_displaced_sender_has_ended() {
    let budget = UnverifiedBudget::new(LIMITS);
    let (mut large, mut small) = (budget.admit(), budget.admit());
    large.reserve_bytes(HeldResource::Disk, 1000).await.unwrap();
    let waiting = tokio::spawn(async move { small.reserve_bytes(HeldResource::Disk, 10).await });
    let reason = large.wait_until_displaced().await;
    assert_eq!(reason, DisplacedForOthers::Disk { limit: 1000 });
    drop(large);
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_body_is_collected_whole_up_to_its_limit() {
    let budget = UnverifiedBudget::new(ROOMY_LIMITS);
    for length in [0, 1, 4096, 5000] {
        let (pieces, body) = body_from_channel();
        let sending = tokio::spawn(async move {
            for _ in 0..length {
                pieces.send(b"x").await.unwrap();
            }
        });
        let collected = budget.admit().collect(body, 5000).await.unwrap();
        assert_eq!(collected, vec![b'x'; length]);
        sending.await.unwrap();
    }
    for body in [
        Body::from(vec![0; 5001]),
        Body::stream(PieceStream(pieces_of_6000_bytes_in_total())),
    ] {
        let error = budget.admit().collect(body, 5000).await.unwrap_err();
        assert!(
            matches!(error, ReceiveError::Body(BodyError::TooLarge { limit: 5000 })),
            "{error}"
        );
    }
    assert_eq!(budget.held_bytes(HeldResource::Memory), 0);
}

/// Returns the pieces of a body of 6000 bytes.
fn pieces_of_6000_bytes_in_total() -> mpsc::Receiver<&'static [u8]> {
    let (pieces, receiver) = mpsc::channel(8);
    for _ in 0..6 {
        pieces.try_send(&[0_u8; 1000][..]).unwrap();
    }
    receiver
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_waits_for_a_shared_thing_can_be_displaced_for_others() {
    let budget = UnverifiedBudget::new(UnverifiedLimits { senders: 1, ..LIMITS });
    let mut first = budget.admit();
    assert_eq!(poll_once(first.wait_for(async { 7 })), Poll::Ready(Ok(7)));
    let _second = budget.admit();
    assert!(!is_displaced(&first), "it did not wait any longer");
    let waiting = tokio::spawn(async move { first.wait_for(std::future::pending::<()>()).await });
    tokio::task::yield_now().await;
    let _third = budget.admit();
    assert_eq!(
        waiting.await.unwrap(),
        Err(DisplacedForOthers::Senders { limit: 1 })
    );
}

#[tokio::test(start_paused = true)]
async fn a_large_body_that_is_sent_fast_stays_while_slower_ones_need_disk_space() {
    let budget = UnverifiedBudget::new(LIMITS);
    let (mut fast, mut slow, mut newcomer) = (budget.admit(), budget.admit(), budget.admit());
    receive_piece_and_make_sender_wait(&mut fast, &[0; 600]).await;
    receive_piece_and_make_sender_wait(&mut slow, &[0; 300]).await;
    sleep(Duration::from_secs(2)).await;
    fast.reserve_bytes(HeldResource::Disk, 600).await.unwrap();
    slow.reserve_bytes(HeldResource::Disk, 400).await.unwrap();
    assert!(
        poll_once(newcomer.reserve_bytes(
            HeldResource::Disk,
            LIMITS.guaranteed_quarter_of_disk_split_among_senders()
        ))
        .is_pending()
    );
    assert!(is_displaced(&slow) && !is_displaced(&fast));
    drop(slow);
    newcomer
        .reserve_bytes(
            HeldResource::Disk,
            LIMITS.guaranteed_quarter_of_disk_split_among_senders(),
        )
        .await
        .unwrap();
    // The newcomer has sent nothing, and wants more than is guaranteed.
    assert!(newcomer.reserve_bytes(HeldResource::Disk, 400).await.is_err());
    assert!(!is_displaced(&fast));
}

#[test]
fn the_metrics_show_the_bodies_and_how_many_were_displaced_for_which_limit() {
    let bodies = prometheus::IntGauge::new("bodies", "bodies").unwrap();
    let options = prometheus::Opts::new("displaced", "displaced");
    let displaced = prometheus::IntCounterVec::new(options, &["limit"]).unwrap();
    let budget = UnverifiedBudget::new(LIMITS);
    budget.show_use_in_metrics(UnverifiedMetrics::new(bodies.clone(), displaced.clone()));
    let (mut large, mut small) = (budget.admit(), budget.admit());
    assert_eq!(poll_memory_reservation(&mut large, 900), Poll::Ready(Ok(())));
    assert!(poll_memory_reservation(&mut small, 200).is_pending());
    let count = |limit| displaced.with_label_values(&[limit]).get();
    assert_eq!([count("senders"), count("memory"), count("disk")], [0, 1, 0]);
    assert_eq!(bodies.get(), 2);
    drop((large, small));
    assert_eq!(bodies.get(), 0);
}

/// An operation on the disk space of a budget; numbers choose one of the senders.
#[derive(Clone, Debug)]
enum DiskOperation {
    Admit,
    Receive(usize, usize),
    Reserve(usize, u64),
    Pass(u64),
    End(usize),
}

fn generate_disk_operation() -> impl Strategy<Value = DiskOperation> {
    prop_oneof![
        Just(DiskOperation::Admit),
        (0..6_usize, 0..500_usize).prop_map(|(sender, bytes)| DiskOperation::Receive(sender, bytes)),
        (0..6_usize, 0..500_u64).prop_map(|(sender, bytes)| DiskOperation::Reserve(sender, bytes)),
        (0..3000_u64).prop_map(DiskOperation::Pass),
        (0..6_usize).prop_map(DiskOperation::End),
    ]
}

/// What a test knows of a sender.
struct KnownSender {
    sender: UnverifiedSender,
    since: Instant,
    received: usize,
    held: u64,
}

impl KnownSender {
    fn rate(&self) -> f64 {
        self.received as f64 / self.since.elapsed().as_secs_f64().max(1.0)
    }
}

/// Runs the operations; returns a description of the first one that displaced a sender wrongly, or after which the disk
/// space was not accounted for.
async fn first_wrong_displacement_or_miscount(operations: Vec<DiskOperation>) -> Option<String> {
    let guaranteed = LIMITS.guaranteed_quarter_of_disk_split_among_senders();
    let budget = UnverifiedBudget::new(LIMITS);
    let mut senders: Vec<KnownSender> = Vec::new();
    for operation in operations {
        match operation {
            DiskOperation::Admit if senders.len() < LIMITS.senders => senders.push(KnownSender {
                sender: budget.admit(),
                since: Instant::now(),
                received: 0,
                held: 0,
            }),
            DiskOperation::Receive(index, bytes) => {
                if let Some(known) = senders.get_mut(index) {
                    let mut arrived = Body::from(vec![0; bytes]);
                    if let Poll::Ready(Ok(Some(_))) =
                        poll_once(known.sender.next_piece(Pin::new(&mut arrived)))
                    {
                        known.received += bytes;
                    }
                }
            }
            DiskOperation::Reserve(index, bytes) => {
                let before: Vec<_> = senders.iter().map(|known| is_displaced(&known.sender)).collect();
                let Some(known) = senders.get_mut(index) else {
                    continue;
                };
                let (wanted, rate) = (known.held + bytes, known.rate());
                let polled = poll_once(known.sender.reserve_bytes(HeldResource::Disk, bytes));
                if polled == Poll::Ready(Ok(())) {
                    known.held = wanted;
                }
                for (other, known) in senders.iter().enumerate() {
                    let is_new = is_displaced(&known.sender) && !before[other];
                    let is_right = match other == index {
                        true => wanted > guaranteed,
                        false => known.held > guaranteed && (wanted <= guaranteed || known.rate() < rate),
                    };
                    if is_new && !is_right {
                        return Some(format!("{operation:?}: {other} with {} bytes", known.held));
                    }
                }
                let held: u64 = senders.iter().map(|known| known.held).sum();
                if held > LIMITS.disk || budget.held_bytes(HeldResource::Disk) != held {
                    return Some(format!("{operation:?}: {held} bytes are held"));
                }
            }
            DiskOperation::Pass(milliseconds) => sleep(Duration::from_millis(milliseconds)).await,
            DiskOperation::End(index) if index < senders.len() => drop(senders.remove(index)),
            DiskOperation::Admit | DiskOperation::End(_) => {}
        }
    }
    None
}

proptest! {
    #[test]
    fn a_disk_reservation_displaces_no_sender_within_its_part_and_above_its_own_part_only_slower_ones(
        operations in prop::collection::vec(generate_disk_operation(), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        prop_assert_eq!(runtime.block_on(first_wrong_displacement_or_miscount(operations)), None);
    }
}

/// An operation on a budget. The first number is the position of a sender among those that have not ended, in the order
/// of arrival; an operation at a position without a sender does nothing. The second is a number of bytes.
#[derive(Clone, Debug)]
enum BudgetOperation {
    Admit,
    Receive(usize, usize),
    Reserve(usize, u64),
    Release(usize, u64),
    End(usize),
}

fn generate_budget_operation() -> impl Strategy<Value = BudgetOperation> {
    prop_oneof![
        Just(BudgetOperation::Admit),
        (0..16_usize, 0..200_usize).prop_map(|(sender, bytes)| BudgetOperation::Receive(sender, bytes)),
        (0..16_usize, 0..700_u64).prop_map(|(sender, bytes)| BudgetOperation::Reserve(sender, bytes)),
        (0..16_usize, 0..700_u64).prop_map(|(sender, bytes)| BudgetOperation::Release(sender, bytes)),
        (0..16_usize).prop_map(BudgetOperation::End),
    ]
}

proptest! {
    #[test]
    fn sender_and_memory_limits_hold_and_only_earlier_or_larger_senders_are_displaced(
        operations in prop::collection::vec(generate_budget_operation(), 1..100),
    ) {
        // For the timers of senders that wait.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        let budget = UnverifiedBudget::new(LIMITS);
        // Each sender with what it holds, by its order of arrival.
        let mut senders: BTreeMap<usize, (UnverifiedSender, u64)> = BTreeMap::new();
        for (number, operation) in operations.into_iter().enumerate() {
            let staying = |senders: &BTreeMap<usize, (UnverifiedSender, u64)>| -> Vec<(usize, u64)> {
                let staying = senders.iter().filter(|(_, (sender, _))| !is_displaced(sender));
                staying.map(|(number, (_, held))| (*number, *held)).collect()
            };
            let before = staying(&senders);
            let chosen = |index: usize| senders.keys().nth(index).copied();
            match operation {
                BudgetOperation::Admit => {
                    let mut sender = budget.admit();
                    let (_pieces, mut body) = body_from_channel();
                    poll_at_most_twice(sender.next_piece(Pin::new(&mut body)));
                    senders.insert(number, (sender, 0));
                    let later_half = before.get(before.len().div_ceil(2)..).unwrap_or_default();
                    let after = staying(&senders);
                    prop_assert!(later_half.iter().all(|sender| after.contains(sender)));
                }
                BudgetOperation::Receive(index, bytes) => {
                    if let Some((sender, _)) = chosen(index).and_then(|key| senders.get_mut(&key)) {
                        let mut arrived = Body::from(vec![0; bytes]);
                        let _ = poll_once(sender.next_piece(Pin::new(&mut arrived)));
                        let (_pieces, mut body) = body_from_channel();
                        poll_at_most_twice(sender.next_piece(Pin::new(&mut body)));
                    }
                }
                BudgetOperation::Reserve(index, bytes) => {
                    if let Some(key) = chosen(index) {
                        let (sender, held) = senders.get_mut(&key).unwrap();
                        let wanted = *held + bytes;
                        let polled = poll_memory_reservation(sender, bytes);
                        if polled == Poll::Ready(Ok(())) {
                            *held = wanted;
                        }
                        let after = staying(&senders);
                        for (other, held) in &before {
                            let stays = after.iter().any(|(stays, _)| stays == other);
                            prop_assert!(stays || *other == key || *held > wanted);
                        }
                    }
                }
                BudgetOperation::Release(index, bytes) => {
                    if let Some((sender, held)) = chosen(index).and_then(|key| senders.get_mut(&key)) {
                        sender.release_bytes(HeldResource::Memory, bytes);
                        *held = held.saturating_sub(bytes);
                    }
                }
                BudgetOperation::End(index) => {
                    if let Some(key) = chosen(index) {
                        senders.remove(&key);
                    }
                }
            }
            prop_assert!(budget.undisplaced_sender_count() <= LIMITS.senders);
            prop_assert_eq!(budget.undisplaced_sender_count(), staying(&senders).len());
            let held: u64 = senders.values().map(|(_, held)| held).sum();
            prop_assert_eq!(budget.held_bytes(HeldResource::Memory), held);
            prop_assert!(held <= LIMITS.memory);
        }
    }
}
