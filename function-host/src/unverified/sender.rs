//! A sender of an unverified body: receives the body within the limits of the budget.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Body as HttpBody;
use tokio::time::{Instant, Sleep, sleep_until};

use super::rate::TimeCredit;
use super::{DisplacedForOthers, HeldResource, ReceiveError, UnverifiedBudget};
use crate::request::{Body, BodyError};

/// A sender that was admitted to an [`UnverifiedBudget`]. Dropping it gives its part back to the budget.
///
/// It should be dropped as soon as the signature is verified, together with what it holds, or after that has been
/// moved to another budget.
#[derive(Debug)]
#[must_use]
pub struct UnverifiedSender {
    budget: UnverifiedBudget,
    key: u64,
    credit: TimeCredit,
    timer: Option<Pin<Box<Sleep>>>,
}

/// The least capacity that the buffer of a collected body grows to, in bytes, once the body exceeds what was reserved
/// in advance.
const MIN_GROWN_CAPACITY_BYTES: usize = 4096;

/// The largest part of a body's announced length that is reserved before any of it has arrived, in bytes.
const MAX_BYTES_RESERVED_IN_ADVANCE: usize = 64 << 10;

impl UnverifiedSender {
    pub(super) fn new(budget: UnverifiedBudget, key: u64) -> Self {
        let limits = budget.limits();
        Self {
            key,
            credit: TimeCredit::new(limits.rate, limits.grace),
            timer: None,
            budget,
        }
    }

    /// Receives the next piece of the body; returns `None` at its end. Trailers are skipped.
    ///
    /// Only waiting for the body counts against the lowest rate, and not what the caller does between two pieces.
    /// A piece is a part of the connection's buffer, which is freed with the last of its pieces: pieces that are kept
    /// should be copied.
    ///
    /// # Errors
    /// Fails if the sender is displaced or too slow, and if the body cannot be read.
    pub async fn next_piece<B>(
        &mut self,
        mut body: Pin<&mut B>,
    ) -> Result<Option<Bytes>, ReceiveError<B::Error>>
    where
        B: HttpBody<Data = Bytes> + ?Sized,
    {
        let begun = Instant::now();
        let mut polled_before = false;
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(reason) = self.budget.poll_displaced(self.key, cx) {
                    return Poll::Ready(Err(reason.into()));
                }
                let Poll::Ready(frame) = body.as_mut().poll_frame(cx) else {
                    // The connection reads only what is asked for. If it has bytes, they are there at the next poll,
                    // which may be late when many connections are to be polled.
                    match std::mem::replace(&mut polled_before, true) {
                        true => self
                            .budget
                            .mark_displaceable_for_newcomers_until_bytes_arrive(self.key),
                        false => cx.waker().wake_by_ref(),
                    }
                    ready!(self.poll_too_slow(begun, cx));
                    let limits = self.budget.limits();
                    return Poll::Ready(Err(ReceiveError::TooSlow {
                        rate: limits.rate,
                        grace: limits.grace,
                    }));
                };
                let Some(frame) = frame.transpose().map_err(ReceiveError::Body)? else {
                    return Poll::Ready(Ok(None));
                };
                if let Ok(piece) = frame.into_data() {
                    self.credit.record_received(piece.len(), begun.elapsed());
                    self.budget
                        .record_received_and_protect_from_newcomers(self.key, piece.len());
                    return Poll::Ready(Ok(Some(piece)));
                }
            }
        })
        .await
    }

    /// Receives the whole body into memory that the budget accounts for. Fails as soon as the body is known to have
    /// more than `limit` bytes.
    ///
    /// # Errors
    /// Fails if the sender is displaced or too slow, and if the body cannot be read.
    pub async fn collect(&mut self, body: Body, limit: usize) -> Result<Bytes, ReceiveError> {
        let mut body = pin!(body);
        let too_large = || ReceiveError::Body(BodyError::TooLarge { limit });
        let announced = body.remaining_bytes().lower();
        if announced > limit as u64 {
            return Err(too_large());
        }
        let mut collected = Vec::new();
        // At most 64 KiB, so the conversion does not truncate.
        let announced = announced.min(MAX_BYTES_RESERVED_IN_ADVANCE as u64) as usize;
        self.grow_buffer(&mut collected, announced).await?;
        while let Some(piece) = self.next_piece(body.as_mut()).await? {
            let length = collected.len() + piece.len();
            if length > limit {
                return Err(too_large());
            }
            if length > collected.capacity() {
                let doubled = (2 * collected.capacity())
                    .clamp(MIN_GROWN_CAPACITY_BYTES, limit.max(MIN_GROWN_CAPACITY_BYTES));
                self.grow_buffer(&mut collected, doubled.max(length)).await?;
            }
            collected.extend_from_slice(&piece);
        }
        Ok(collected.into())
    }

    /// Raises the capacity of a buffer, and reserves memory for it.
    async fn grow_buffer(&mut self, buffer: &mut Vec<u8>, capacity: usize) -> Result<(), DisplacedForOthers> {
        let more = capacity.saturating_sub(buffer.capacity());
        self.reserve_bytes(HeldResource::Memory, more as u64).await?;
        buffer.reserve_exact(capacity.saturating_sub(buffer.len()));
        Ok(())
    }

    /// Reserves `bytes` more of a resource. If the budget has too little left, others are displaced, and this sender
    /// waits until they have ended: for memory those that hold the most, for disk space the slowest of those with large
    /// bodies.
    ///
    /// # Errors
    /// Fails if this sender is displaced, or would itself be the one to displace.
    pub async fn reserve_bytes(
        &mut self,
        resource: HeldResource,
        bytes: u64,
    ) -> Result<(), DisplacedForOthers> {
        poll_fn(|cx| self.budget.poll_reserve(self.key, resource, bytes, cx)).await
    }

    /// Gives `bytes` of a resource back to the budget, before the sender is dropped.
    pub fn release_bytes(&mut self, resource: HeldResource, bytes: u64) {
        self.budget.release_bytes(self.key, resource, bytes);
    }

    /// Waits for `awaited`, something that many senders share, such as a thread. Meanwhile the sender may be displaced
    /// for others.
    ///
    /// # Errors
    /// Fails if the sender is displaced.
    pub async fn wait_for<F: Future>(&mut self, awaited: F) -> Result<F::Output, DisplacedForOthers> {
        let mut awaited = pin!(awaited);
        self.budget
            .mark_waiting_for_others_and_displaceable_for_newcomers(self.key, true);
        let waited = poll_fn(|cx| {
            if let Poll::Ready(output) = awaited.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            self.budget.poll_displaced(self.key, cx).map(Err)
        })
        .await;
        self.budget
            .mark_waiting_for_others_and_displaceable_for_newcomers(self.key, false);
        waited
    }

    /// Waits until the sender is displaced, for senders that wait for something else than their body.
    pub async fn wait_until_displaced(&self) -> DisplacedForOthers {
        poll_fn(|cx| self.budget.poll_displaced(self.key, cx)).await
    }

    /// Returns `Ready` once the sender's time for the next piece is over.
    fn poll_too_slow(&mut self, begun: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let due = begun + self.credit.time_left();
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        timer.as_mut().poll(cx)
    }
}

impl Drop for UnverifiedSender {
    fn drop(&mut self) {
        self.budget.remove_sender(self.key);
    }
}
