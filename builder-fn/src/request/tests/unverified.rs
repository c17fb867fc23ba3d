//! Tests of bodies whose signatures are not verified: what they may take, and that a signed body is received despite
//! them.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use function_host::unverified::HeldResource;
use futures_util::StreamExt;

use super::*;

/// Limits on unverified bodies, so small that a test exceeds them quickly.
const SMALL_LIMITS: UnverifiedLimits = UnverifiedLimits {
    senders: 8,
    memory: 1 << 20,
    disk: 4 << 20,
    rate: 1000,
    grace: Duration::from_secs(10),
};

fn folder_with_limits(limits: UnverifiedLimits) -> SpoolFolder {
    let mut folder = spool_folder();
    folder.limits.unverified = UnverifiedBodyResources::new(UnverifiedBudget::new(limits));
    folder
}

/// A request that is being received.
type Receiving<'a> = Pin<Box<dyn Future<Output = Result<VerifiedBody, RequestError>> + 'a>>;

/// Returns a future that receives `pieces` from a caller without the key, who then sends nothing more and does not end
/// the body.
fn receive_endless_body_without_the_key<'a>(
    pieces: Vec<Vec<u8>>,
    check: &'a SignatureCheck,
    limits: &'a RequestLimits,
) -> Receiving<'a> {
    let pieces = stream::iter(pieces.into_iter().map(Ok)).chain(stream::pending());
    Box::pin(async move {
        let head = request_head(Some(&sign_body(b"something else")), None);
        receive_body(body_of_pieces(pieces), &head, check, limits).await
    })
}

/// Polls a future until nothing changes without its caller, with blocking work done in between.
async fn poll_until_stable(receiving: &mut Receiving<'_>) -> Poll<Result<VerifiedBody, RequestError>> {
    for _ in 0..100 {
        let polled = receiving.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        if polled.is_ready() {
            return polled;
        }
        wait_until_blocking_work_is_done().await;
    }
    Poll::Pending
}

#[test]
fn a_body_takes_no_more_than_its_own_length_before_its_signature_is_verified() {
    runtime_with_one_blocking_thread().block_on(async {
        // Decompressed, the body has 50 MiB; as a tar, an index and attributes.
        let zeros = vec![0; 50 << 20];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gzip, &tar_with_files(&[("context/zeros", &zeros)])).unwrap();
        let bomb = gzip.finish().unwrap();
        let folder = folder_with_limits(SMALL_LIMITS);
        let budget = folder.limits.unverified.budget();
        let check = signature_required();
        let mut receiving = receive_endless_body_without_the_key(vec![bomb.clone()], &check, &folder.limits);

        assert!(poll_until_stable(&mut receiving).await.is_pending());

        let held = budget.held_bytes(HeldResource::Memory) + budget.held_bytes(HeldResource::Disk);
        assert_eq!(held, bomb.len() as u64);
        drop(receiving);
        assert_eq!(
            (
                budget.held_bytes(HeldResource::Memory),
                budget.held_bytes(HeldResource::Disk)
            ),
            (0, 0)
        );
    });
}

#[test]
fn any_number_of_unverified_bodies_stays_within_the_budget_and_leaves_nothing() {
    runtime_with_one_blocking_thread().block_on(async {
        let folder = folder_with_limits(SMALL_LIMITS);
        let budget = folder.limits.unverified.budget();
        let check = signature_required();
        let mut receiving = Vec::new();
        for number in 0..60 {
            let sizes = [1, 700, 20_000, 300_000, 1_000_000];
            let size = sizes[number % sizes.len()];
            let pieces = vec![vec![7; size]; 1 + number % 4];
            receiving.push(receive_endless_body_without_the_key(
                pieces,
                &check,
                &folder.limits,
            ));
            let mut pending = Vec::new();
            for mut body in std::mem::take(&mut receiving) {
                match poll_until_stable(&mut body).await {
                    Poll::Pending => pending.push(body),
                    Poll::Ready(Err(RequestError::Displaced(_))) => {}
                    Poll::Ready(other) => panic!("{other:?}"),
                }
            }
            receiving = pending;
            assert!(budget.undisplaced_sender_count() <= SMALL_LIMITS.senders);
            assert!(budget.held_bytes(HeldResource::Memory) <= SMALL_LIMITS.memory);
            assert!(budget.held_bytes(HeldResource::Disk) <= SMALL_LIMITS.disk);
        }
        assert!(
            budget.held_bytes(HeldResource::Disk) > 0,
            "none of them was large"
        );
        drop(receiving);
        wait_until_blocking_work_is_done().await;
        assert_eq!(folder.count_names_and_open_files(), (0, 0));
        assert_eq!(
            (
                budget.held_bytes(HeldResource::Memory),
                budget.held_bytes(HeldResource::Disk)
            ),
            (0, 0)
        );
    });
}

#[test]
fn a_small_signed_body_is_received_while_others_use_up_every_part_of_the_budget() {
    runtime_with_one_blocking_thread().block_on(async {
        let folder = folder_with_limits(SMALL_LIMITS);
        let budget = folder.limits.unverified.budget();
        let check = signature_required();
        let another =
            || receive_endless_body_without_the_key(vec![vec![7; 60_000]; 8], &check, &folder.limits);
        let mut flood: Vec<_> = (0..SMALL_LIMITS.senders).map(|_| another()).collect();
        for round in 0..10 {
            let body = valid_tar();
            let mut signed: Receiving<'_> = Box::pin(async {
                let head = request_head(Some(&sign_body(&body)), None);
                receive_body(body_cut_into_pieces(&body, 1000), &head, &check, &folder.limits).await
            });
            let received = loop {
                for body in &mut flood {
                    // A displaced body ends, and its sender tries again.
                    if poll_until_stable(body).await.is_ready() {
                        *body = another();
                    }
                }
                if let Poll::Ready(received) = poll_until_stable(&mut signed).await {
                    break received;
                }
            };
            assert!(received.is_ok(), "{round}: {received:?}");
        }
        assert!(budget.undisplaced_sender_count() <= SMALL_LIMITS.senders);
    });
}

#[tokio::test]
async fn a_verified_body_counts_against_the_quota_of_verified_bodies_and_no_other() {
    let metric = test_gauge();
    for body in [valid_tar(), tar_of_3_megabytes()] {
        let mut folder = folder_with_limits(SMALL_LIMITS);
        folder.limits.spool.quota = SpoolQuota::new(body.len() as u64, metric.clone());
        let budget = folder.limits.unverified.budget();
        let head = request_head(Some(&sign_body(&body)), None);
        let receive = async || {
            let arriving = body_cut_into_pieces(&body, 10_000);
            receive_body(arriving, &head, &signature_required(), &folder.limits).await
        };

        let verified = receive().await.unwrap();

        assert_eq!(metric.get(), i64::try_from(body.len()).unwrap());
        let held = [HeldResource::Memory, HeldResource::Disk].map(|resource| budget.held_bytes(resource));
        assert_eq!((held, budget.undisplaced_sender_count()), ([0, 0], 0));
        let error = receive().await.unwrap_err();
        assert_eq!(error.kind(), RequestErrorKind::NoSpace, "{error}");
        drop(verified);
        assert_eq!(metric.get(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_below_the_lowest_rate_is_rejected_after_the_grace_period() {
    let folder = folder_with_limits(SMALL_LIMITS);
    let trickle = stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Some((Ok(vec![7; 10]), ()))
    });
    let begun = tokio::time::Instant::now();
    let error = receive_with_signature(
        body_of_pieces(trickle),
        Some(&sign_body(b"")),
        &signature_required(),
        &folder.limits,
    )
    .await
    .unwrap_err();
    assert_eq!(error.kind(), RequestErrorKind::TooSlow);
    assert!(error.to_string().contains("receive_rate"), "{error}");
    assert!(
        begun.elapsed() <= SMALL_LIMITS.grace + Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
}
