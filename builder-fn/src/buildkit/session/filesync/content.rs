//! The content of the files that the daemon requests, read from the spool in batches.

use std::collections::VecDeque;
use std::io;

use bollard_buildkit_proto::fsutil::types::Packet;
use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use tonic::Status;

use super::{FileTransfer, READING_ERROR, stat};
use crate::buildkit::shared_key::SentPiece;

/// The largest content of one DATA packet, in bytes.
const PACKET_CONTENT_MAX_BYTES: u64 = 64 << 10;

/// The largest content of one batch of packets, in bytes. A batch is read on another thread, so it should be worth the
/// switch.
pub(super) const BATCH_CONTENT_MAX_BYTES: u64 = 2 * PACKET_CONTENT_MAX_BYTES;

/// The largest number of ranges of files in one batch, which limits batches of small files. The last range of a file
/// has two packets, unless the file is empty.
const BATCH_RANGES_MAX: usize = 512;

/// The number of files that are sent at the same time, so that a large file does not delay small ones. The daemon keeps
/// each open.
const INTERLEAVED_FILES_MAX: usize = 4;

/// The largest number of the daemon's requests that are queued. Further ones stay in the stream, so that the daemon
/// pauses.
const QUEUED_REQUESTS_MAX: usize = 16 << 10;

/// A request of the daemon in a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReceiverRequest {
    /// The daemon requests the content of the file with this number.
    File(u32),
    /// The daemon has everything and ends the transfer.
    Finish,
}

impl TryFrom<Packet> for ReceiverRequest {
    type Error = Status;

    /// Parses a packet of the daemon; fails for an ERR packet, and for one that is no request, which end the transfer.
    fn try_from(packet: Packet) -> Result<Self, Status> {
        match PacketType::try_from(packet.r#type) {
            Ok(PacketType::PacketReq) => Ok(Self::File(packet.id)),
            Ok(PacketType::PacketFin) => Ok(Self::Finish),
            Ok(PacketType::PacketErr) => {
                let reason = String::from_utf8_lossy(&packet.data).into_owned();
                tracing::warn!(reason, "BuildKit could not receive the files");
                Err(Status::aborted(format!("the receiver failed: {reason}")))
            }
            _ => Err(Status::invalid_argument("unexpected packet")),
        }
    }
}

/// The range of bytes of a file that is sent in one packet. An empty packet follows the last range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileRange {
    /// The number of the file's STAT packet.
    number: u32,
    offset: u64,
    bytes: u64,
    is_last: bool,
}

/// A batch of packets, and the ranges of files whose contents they carry.
pub(super) struct PacketBatch {
    ranges: Vec<FileRange>,
    /// The packets in the order of the ranges: one for each range that is not empty, and one after each last range.
    pub(super) packets: Vec<Packet>,
}

impl PacketBatch {
    /// Returns the content of each range in the batch, with the number of its file's STAT packet.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (u32, SentPiece<'_>)> {
        let mut data = self.packets.iter().filter(|packet| !packet.data.is_empty());
        self.ranges.iter().map(move |range| {
            let packet = match range.bytes {
                0 => None,
                _ => data.next(),
            };
            let sent = SentPiece {
                offset: range.offset,
                data: packet.map(|packet| packet.data.as_slice()).unwrap_or_default(),
                is_last: range.is_last,
            };
            (range.number, sent)
        })
    }
}

/// The queue of requested files that have not been read to their end.
#[derive(Debug, Default)]
struct ReadQueue {
    /// The number and the size of each requested file of which nothing has been read.
    waiting: VecDeque<(u32, u64)>,
    /// The number, the size and the next offset of each of the up to four files that are being read.
    begun: VecDeque<(u32, u64, u64)>,
}

impl ReadQueue {
    /// Queues a requested file, which is `size` bytes long and has a STAT packet with this number.
    fn push_file(&mut self, number: u32, size: u64) {
        self.waiting.push_back((number, size));
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.begun.is_empty()
    }

    /// Returns whether the queue takes further requests.
    fn takes_more_requests(&self) -> bool {
        self.waiting.len() < QUEUED_REQUESTS_MAX
    }

    /// Takes the next batch of ranges off the queue, alternating between the files that have been begun.
    fn take_batch(&mut self) -> Vec<FileRange> {
        let mut ranges = Vec::new();
        let mut left = BATCH_CONTENT_MAX_BYTES;
        while left > 0 && ranges.len() < BATCH_RANGES_MAX {
            while self.begun.len() < INTERLEAVED_FILES_MAX {
                let Some((number, size)) = self.waiting.pop_front() else {
                    break;
                };
                self.begun.push_back((number, size, 0));
            }
            let Some((number, size, offset)) = self.begun.pop_front() else {
                break;
            };
            let bytes = (size - offset).min(PACKET_CONTENT_MAX_BYTES).min(left);
            left -= bytes;
            let end = offset + bytes;
            ranges.push(FileRange {
                number,
                offset,
                bytes,
                is_last: end == size,
            });
            if end < size {
                self.begun.push_back((number, size, end));
            }
        }
        ranges
    }
}

/// The sender of file contents in one transfer.
struct ContentSender<S> {
    transfer: FileTransfer,
    /// The packets that the daemon sends.
    received: S,
    queue: ReadQueue,
    /// Whether the daemon requests nothing more, or an error ends its requests.
    is_finished: bool,
    /// The error that ends the transfer, after everything that was requested before it has been sent.
    error: Option<Status>,
}

/// Returns a stream of futures, each of which reads a batch of the file contents that `received` requests. The stream
/// ends once the daemon has everything.
///
/// An empty packet ends each file.
pub(super) fn stream_content_batches<S>(
    transfer: FileTransfer,
    received: S,
) -> impl Stream<Item = impl Future<Output = Result<PacketBatch, Status>> + Send> + Send
where
    S: Stream<Item = Result<Packet, Status>> + Send + Unpin + 'static,
{
    let sender = ContentSender {
        transfer,
        received,
        queue: ReadQueue::default(),
        is_finished: false,
        error: None,
    };
    stream::unfold(sender, |mut sender| async move {
        sender.queue_arrived_requests_or_wait_for_first().await;
        let batch = match (sender.queue.is_empty(), sender.error.take()) {
            (false, error) => {
                sender.error = error;
                let ranges = sender.queue.take_batch();
                Ok(sender.transfer.read_batch_off_thread_if_on_disk(ranges))
            }
            (true, Some(error)) => {
                sender.is_finished = true;
                Err(error)
            }
            (true, None) => return None,
        };
        let packets = async move {
            match batch {
                Ok(reading) => reading.await,
                Err(error) => Err(error),
            }
        };
        Some((packets, sender))
    })
}

impl<S: Stream<Item = Result<Packet, Status>> + Unpin> ContentSender<S> {
    /// Queues the daemon's requests that have arrived; waits for one if no file is left to read.
    async fn queue_arrived_requests_or_wait_for_first(&mut self) {
        while !self.is_finished && self.queue.takes_more_requests() {
            let next = match self.queue.is_empty() {
                true => self.received.next().await,
                false => match self.received.next().now_or_never() {
                    Some(next) => next,
                    None => return,
                },
            };
            match next.map(|packet| packet.and_then(ReceiverRequest::try_from)) {
                Some(Ok(ReceiverRequest::File(number))) => match self.transfer.size_of_file(number) {
                    Some(size) => self.queue.push_file(number, size),
                    None => self.end_with_error(Status::invalid_argument(format!(
                        "no file has the number {number}"
                    ))),
                },
                Some(Ok(ReceiverRequest::Finish)) => self.is_finished = true,
                Some(Err(error)) => self.end_with_error(error),
                None => self.end_with_error(Status::aborted("the receiver went away")),
            }
        }
    }

    /// Ends the reading of requests. The error ends the transfer once the queue is empty.
    fn end_with_error(&mut self, error: Status) {
        self.error = Some(error);
        self.is_finished = true;
    }
}

impl FileTransfer {
    /// Returns the size of the announced file with this number; `None` if there is no such entry or it is not a file.
    fn size_of_file(&self, number: u32) -> Option<u64> {
        let visible = self.entries.get(number as usize)?;
        let entry = self.context.entry_by_number(visible.entry);
        stat::has_requestable_content(&entry).then(|| entry.size())
    }

    /// Reads a batch of ranges from the spool into packets, on another thread if the spool is on disk.
    fn read_batch_off_thread_if_on_disk(
        &self,
        ranges: Vec<FileRange>,
    ) -> impl Future<Output = Result<PacketBatch, Status>> + Send + use<> {
        let transfer = self.clone();
        // A read from memory is a copy, which is not worth another thread.
        let reading = match self.context.is_in_memory() {
            true => Err(transfer.read_batch_and_count_as_sent_blocking(ranges)),
            false => Ok(tokio::task::spawn_blocking(move || {
                transfer.read_batch_and_count_as_sent_blocking(ranges)
            })),
        };
        async move {
            let batch = match reading {
                Err(batch) => batch,
                Ok(reading) => reading.await.map_err(io::Error::other).flatten(),
            };
            batch.map_err(|error| {
                tracing::error!(%error, "could not read the spool");
                Status::internal(READING_ERROR)
            })
        }
    }

    /// Reads a batch of ranges from the spool into packets, and counts them as sent. Blocks while the spool's file is
    /// read.
    fn read_batch_and_count_as_sent_blocking(&self, ranges: Vec<FileRange>) -> io::Result<PacketBatch> {
        let mut packets = Vec::with_capacity(ranges.len() + ranges.len() / 2);
        let packet = |id, data| Packet {
            r#type: PacketType::PacketData.into(),
            id,
            data,
            ..Packet::default()
        };
        let (mut bytes, mut files) = (0, 0);
        for range in &ranges {
            if range.bytes > 0 {
                let visible = self.entries.get(range.number as usize);
                let visible = visible.ok_or(io::ErrorKind::NotFound)?;
                let mut data = vec![0; usize::try_from(range.bytes).map_err(io::Error::other)?];
                let entry = self.context.entry_by_number(visible.entry);
                self.context.read_file_exact(entry, range.offset, &mut data)?;
                packets.push(packet(range.number, data));
            }
            if range.is_last {
                packets.push(packet(range.number, Vec::new()));
            }
            bytes += range.bytes;
            files += u64::from(range.is_last);
        }
        self.update_guard(|guard| guard.count_sent(files, bytes));
        Ok(PacketBatch { ranges, packets })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns all batches that are left in a queue.
    fn take_all_batches(queue: &mut ReadQueue) -> Vec<Vec<FileRange>> {
        std::iter::from_fn(|| Some(queue.take_batch()).filter(|ranges| !ranges.is_empty())).collect()
    }

    #[test]
    fn small_files_are_read_in_one_batch() {
        let mut queue = ReadQueue::default();
        (0..100).for_each(|number| queue.push_file(number, 1000));

        let batches = take_all_batches(&mut queue);

        assert_eq!(batches.len(), 1);
        assert!(
            batches[0]
                .iter()
                .all(|range| range.is_last && range.bytes == 1000)
        );
        assert!(queue.is_empty());
    }

    #[test]
    fn ranges_of_large_files_alternate_between_a_few_files_at_a_time() {
        let mut queue = ReadQueue::default();
        (0..10).for_each(|number| queue.push_file(number, 10 * PACKET_CONTENT_MAX_BYTES + 1));

        let first = queue.take_batch();

        let numbers: Vec<_> = first.iter().map(|range| range.number).collect();
        assert_eq!(numbers, [0, 1]);
        let second: Vec<_> = queue.take_batch().iter().map(|range| range.number).collect();
        assert_eq!(second, [2, 3]);
        let third: Vec<_> = queue.take_batch().iter().map(|range| range.number).collect();
        assert_eq!(third, [0, 1]);
        let rest: u64 = take_all_batches(&mut queue)
            .iter()
            .flatten()
            .map(|range| range.bytes)
            .sum();
        assert_eq!(
            rest + 3 * BATCH_CONTENT_MAX_BYTES,
            10 * (10 * PACKET_CONTENT_MAX_BYTES + 1)
        );
    }

    #[test]
    fn an_empty_file_is_sent_as_one_empty_last_range() {
        let mut queue = ReadQueue::default();
        queue.push_file(7, 0);

        let expected = FileRange {
            number: 7,
            offset: 0,
            bytes: 0,
            is_last: true,
        };
        assert_eq!(take_all_batches(&mut queue), [[expected]]);
    }
}
