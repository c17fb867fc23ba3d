//! What the daemon asks for, read from the spool many files at a time.

use std::collections::VecDeque;
use std::io;

use bollard_buildkit_proto::fsutil::types::Packet;
use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use tonic::Status;

use super::{Announced, stat};

/// Bytes in one DATA packet, at most.
const PACKET: u64 = 64 << 10;

/// Bytes that are read at once: a read goes to another thread, and is to be worth it.
pub(super) const BATCH: u64 = 2 * PACKET;

/// Packets that are as good as that.
const BATCH_PACKETS: usize = 512;

/// Files that are sent at the same time, so that a large one does not hold up small ones: the daemon has each of them
/// open.
const FILES_AT_ONCE: usize = 4;

/// Requests that are taken before they can be served. Each takes a few bytes here; those that are not taken keep the
/// daemon from sending more, which it does not mind.
const WAITING: usize = 16 << 10;

/// What a packet from BuildKit asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    File(u32),
    Finish,
}

impl TryFrom<Packet> for Ask {
    type Error = Status;

    fn try_from(packet: Packet) -> Result<Self, Status> {
        match PacketType::try_from(packet.r#type) {
            Ok(PacketType::PacketReq) => Ok(Self::File(packet.id)),
            Ok(PacketType::PacketFin) => Ok(Self::Finish),
            Ok(PacketType::PacketErr) => {
                let reason = String::from_utf8_lossy(&packet.data).into_owned();
                tracing::warn!(reason, "BuildKit could not take the files");
                Err(Status::aborted(format!("the receiver failed: {reason}")))
            }
            _ => Err(Status::invalid_argument("unexpected packet")),
        }
    }
}

/// A piece of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    /// Of the file's STAT.
    number: u32,
    offset: u64,
    bytes: u64,
    is_last: bool,
}

/// The files that have been asked for and not been read to their ends.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<(u32, u64)>,
    /// Number, size, and how far it has been read.
    begun: VecDeque<(u32, u64, u64)>,
}

impl Queue {
    fn push(&mut self, number: u32, size: u64) {
        self.waiting.push_back((number, size));
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.begun.is_empty()
    }

    fn has_room(&self) -> bool {
        self.waiting.len() < WAITING
    }

    /// What to read next: a batch of pieces, in turns from the files that have been begun.
    fn next(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut left = BATCH;
        while left > 0 && pieces.len() < BATCH_PACKETS {
            while self.begun.len() < FILES_AT_ONCE {
                let Some((number, size)) = self.waiting.pop_front() else {
                    break;
                };
                self.begun.push_back((number, size, 0));
            }
            let Some((number, size, offset)) = self.begun.pop_front() else {
                break;
            };
            let bytes = (size - offset).min(PACKET).min(left);
            left -= bytes;
            let end = offset + bytes;
            pieces.push(Piece {
                number,
                offset,
                bytes,
                is_last: end == size,
            });
            if end < size {
                self.begun.push_back((number, size, end));
            }
        }
        pieces
    }
}

struct State<S> {
    announced: Announced,
    asked: S,
    queue: Queue,
    is_finished: bool,
    /// Told once everything that was asked for before has been sent.
    error: Option<Status>,
}

/// The content of the files that are asked for, each ended by an empty packet: a batch of packets at a time, until the
/// daemon says that it has everything.
pub(super) fn batches<S>(
    announced: Announced,
    asked: S,
) -> impl Stream<Item = impl Future<Output = Result<Vec<Packet>, Status>> + Send> + Send
where
    S: Stream<Item = Result<Packet, Status>> + Send + Unpin + 'static,
{
    let state = State {
        announced,
        asked,
        queue: Queue::default(),
        is_finished: false,
        error: None,
    };
    stream::unfold(state, |mut state| async move {
        state.listen().await;
        let batch = match (state.queue.is_empty(), state.error.take()) {
            (false, error) => {
                state.error = error;
                let pieces = state.queue.next();
                Ok(state.announced.read(pieces))
            }
            (true, Some(error)) => {
                state.is_finished = true;
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
        Some((packets, state))
    })
}

impl<S: Stream<Item = Result<Packet, Status>> + Unpin> State<S> {
    /// Takes what was asked for meanwhile; waits for it where there is nothing else to do.
    async fn listen(&mut self) {
        while !self.is_finished && self.queue.has_room() {
            let next = match self.queue.is_empty() {
                true => self.asked.next().await,
                false => match self.asked.next().now_or_never() {
                    Some(next) => next,
                    None => return,
                },
            };
            match next.map(|packet| packet.and_then(Ask::try_from)) {
                Some(Ok(Ask::File(number))) => match self.announced.size(number) {
                    Some(size) => self.queue.push(number, size),
                    None => self.fail(Status::invalid_argument(format!(
                        "no file has the number {number}"
                    ))),
                },
                Some(Ok(Ask::Finish)) => self.is_finished = true,
                Some(Err(error)) => self.fail(error),
                None => self.fail(Status::aborted("the receiver went away")),
            }
        }
    }

    fn fail(&mut self, error: Status) {
        self.error = Some(error);
        self.is_finished = true;
    }
}

impl Announced {
    /// The size of the file with this number, if it is one.
    fn size(&self, number: u32) -> Option<u64> {
        let visible = self.entries.get(number as usize)?;
        let entry = self.context.entry(visible.entry);
        stat::has_content(&entry).then(|| entry.size())
    }

    fn read(&self, pieces: Vec<Piece>) -> impl Future<Output = Result<Vec<Packet>, Status>> + Send + use<> {
        let announced = self.clone();
        // From memory it is a copy, and not worth another thread.
        let reading = match self.context.is_in_memory() {
            true => Err(announced.read_now(&pieces)),
            false => Ok(tokio::task::spawn_blocking(move || announced.read_now(&pieces))),
        };
        async move {
            let packets = match reading {
                Err(packets) => packets,
                Ok(reading) => reading.await.map_err(io::Error::other).flatten(),
            };
            packets.map_err(|error| {
                tracing::error!(%error, "the spool cannot be read");
                Status::internal("the context cannot be read")
            })
        }
    }

    fn read_now(&self, pieces: &[Piece]) -> io::Result<Vec<Packet>> {
        let mut packets = Vec::with_capacity(pieces.len() + pieces.len() / 2);
        let packet = |id, data| Packet {
            r#type: PacketType::PacketData.into(),
            id,
            data,
            ..Packet::default()
        };
        let (mut bytes, mut files) = (0, 0);
        for piece in pieces {
            if piece.bytes > 0 {
                let visible = self.entries.get(piece.number as usize);
                let visible = visible.ok_or(io::ErrorKind::NotFound)?;
                let mut data = vec![0; usize::try_from(piece.bytes).map_err(io::Error::other)?];
                let entry = self.context.entry(visible.entry);
                self.context.read_exact(entry, piece.offset, &mut data)?;
                packets.push(packet(piece.number, data));
            }
            if piece.is_last {
                packets.push(packet(piece.number, Vec::new()));
            }
            bytes += piece.bytes;
            files += u64::from(piece.is_last);
        }
        self.with_transfer(|transfer| transfer.sent(files, bytes));
        Ok(packets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(queue: &mut Queue) -> Vec<Vec<Piece>> {
        std::iter::from_fn(|| Some(queue.next()).filter(|pieces| !pieces.is_empty())).collect()
    }

    #[test]
    fn small_files_are_read_many_at_a_time() {
        let mut queue = Queue::default();
        (0..100).for_each(|number| queue.push(number, 1000));

        let batches = all(&mut queue);

        assert_eq!(batches.len(), 1);
        assert!(
            batches[0]
                .iter()
                .all(|piece| piece.is_last && piece.bytes == 1000)
        );
        assert!(queue.is_empty());
    }

    #[test]
    fn large_files_take_turns_and_no_more_than_a_few_are_begun() {
        let mut queue = Queue::default();
        (0..10).for_each(|number| queue.push(number, 10 * PACKET + 1));

        let first = queue.next();

        let numbers: Vec<_> = first.iter().map(|piece| piece.number).collect();
        assert_eq!(numbers, [0, 1]);
        let second: Vec<_> = queue.next().iter().map(|piece| piece.number).collect();
        assert_eq!(second, [2, 3]);
        let third: Vec<_> = queue.next().iter().map(|piece| piece.number).collect();
        assert_eq!(third, [0, 1]);
        let rest: u64 = all(&mut queue).iter().flatten().map(|piece| piece.bytes).sum();
        assert_eq!(rest + 3 * BATCH, 10 * (10 * PACKET + 1));
    }

    #[test]
    fn an_empty_file_has_an_end() {
        let mut queue = Queue::default();
        queue.push(7, 0);

        let expected = Piece {
            number: 7,
            offset: 0,
            bytes: 0,
            is_last: true,
        };
        assert_eq!(all(&mut queue), [[expected]]);
    }
}
