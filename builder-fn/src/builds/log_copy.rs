//! A copy of the log of one attempt on disk, from which its readers read.
//!
//! The copy is a sequence of lines, each with its number, its step, its kind and its length before it. An index of
//! blocks finds the place of a line without reading what is before it.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::watch;
use tonic::Status;

use super::numbered_log::{LineKind, LogLine, NumberedLog};
use crate::context::{Spool, SpoolSettings};

/// The size from which a block of lines is written, in bytes. The index has one entry for each block.
const BLOCK_BYTES: usize = 64 << 10;

/// The bytes before the text of a line: its number, its step, its kind, and the length of the text.
const LINE_HEAD_BYTES: usize = 17;

/// The time for which a copy without readers is kept, so that a reader that was cut off finds it.
const KEPT_UNREAD: Duration = Duration::from_secs(60);

/// A limit on the disk space of several copies.
#[derive(Debug)]
pub(super) struct CopyBudget {
    limit: u64,
    used: AtomicU64,
}

/// A copy of one attempt's log, which grows while the log is read from the daemon.
#[derive(Debug)]
pub(super) struct LogCopy {
    spool: RwLock<Spool>,
    budget: Arc<CopyBudget>,
    /// The largest size of the copy.
    limit: u64,
    index: Mutex<Vec<IndexedBlock>>,
    progress: watch::Sender<CopyProgress>,
    interest: watch::Sender<ReaderCountAndEviction>,
}

/// The place of a block of lines in a copy.
#[derive(Clone, Copy, Debug)]
struct IndexedBlock {
    /// The number of the first line of the block.
    first: u64,
    offset: u64,
}

/// How much of the log a copy has.
#[derive(Clone, Debug, Default)]
struct CopyProgress {
    bytes: u64,
    /// The number of the last line.
    last: u64,
    end: Option<CopyEnd>,
}

/// The reason why a copy does not grow any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CopyEnd {
    /// The copy has the whole log.
    Complete,
    /// There is no room for more lines, or nobody has read the copy for a while.
    Partial,
    /// The daemon does not know the attempt, or is lost.
    Failed(String),
}

/// Who is interested in a copy.
#[derive(Clone, Copy, Debug, Default)]
struct ReaderCountAndEviction {
    readers: usize,
    is_evicted: bool,
}

/// A reader of a copy.
#[derive(Debug)]
pub(super) struct CopyReader {
    copy: Arc<LogCopy>,
    progress: watch::Receiver<CopyProgress>,
    offset: u64,
}

/// What a reader of a copy gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CopiedLines {
    /// The next lines.
    Lines(Vec<LogLine>),
    /// The end of the log.
    End,
    /// The end of the copy, which does not have the rest of the log.
    NotCopied,
}

impl CopyBudget {
    /// Creates a budget of this many bytes.
    pub(super) fn new(limit: u64) -> Self {
        Self {
            limit,
            used: AtomicU64::new(0),
        }
    }

    /// Returns the limit of the budget, in bytes.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Adds `bytes` to those in use, or returns `false` if they would exceed the limit.
    fn try_reserve(&self, bytes: u64) -> bool {
        let within_limit = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.limit);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, within_limit)
            .is_ok()
    }
}

impl LogCopy {
    /// Creates an empty copy in a file of the spool folder, of at most `limit` bytes.
    pub(super) fn new(spool: &SpoolSettings, budget: Arc<CopyBudget>, limit: u64) -> Arc<Self> {
        let spool = Spool::new(SpoolSettings {
            memory: 0,
            ..spool.clone()
        });
        Arc::new(Self {
            spool: RwLock::new(spool),
            budget,
            limit,
            index: Mutex::default(),
            progress: watch::Sender::default(),
            interest: watch::Sender::default(),
        })
    }

    /// Returns a reader of the copy from its beginning.
    pub(super) fn open_reader(self: &Arc<Self>) -> CopyReader {
        self.interest.send_modify(|interest| interest.readers += 1);
        CopyReader {
            progress: self.progress.subscribe(),
            copy: self.clone(),
            offset: 0,
        }
    }

    /// Returns whether nobody reads the copy at the moment.
    pub(super) fn has_no_reader_now(&self) -> bool {
        self.interest.borrow().readers == 0
    }

    /// Marks the copy as evicted, which ends the copying, and the time for which the copy is kept without readers.
    pub(super) fn mark_evicted(&self) {
        self.interest.send_modify(|interest| interest.is_evicted = true);
    }

    /// Copies the lines of `log` until its end, until there is no room for more, or until nobody is interested in them.
    pub(super) async fn copy_until_end_full_or_unneeded(self: &Arc<Self>, mut log: NumberedLog) -> CopyEnd {
        let copying = async {
            loop {
                let lines = match log.next_lines().await {
                    Ok(Some(lines)) => lines,
                    Ok(None) => return CopyEnd::Complete,
                    Err(status) => return CopyEnd::Failed(status.message().to_owned()),
                };
                let copy = self.clone();
                let appended =
                    tokio::task::spawn_blocking(move || copy.append_lines_until_full(&lines)).await;
                if !appended.unwrap_or(false) {
                    return CopyEnd::Partial;
                }
            }
        };
        // A panic would leave the readers waiting.
        let copying = AssertUnwindSafe(copying).catch_unwind();
        let end = tokio::select! {
            end = copying => end.unwrap_or_else(|_| CopyEnd::Failed("an error of the builder".to_owned())),
            () = self.wait_until_unneeded_or_evicted() => CopyEnd::Partial,
        };
        self.progress
            .send_modify(|progress| progress.end = Some(end.clone()));
        end
    }

    /// Waits until nobody has read the copy for [`KEPT_UNREAD`], or it is evicted.
    pub(super) async fn wait_until_unneeded_or_evicted(&self) {
        let mut interest = self.interest.subscribe();
        loop {
            let unread = interest.wait_for(|interest| interest.is_evicted || interest.readers == 0);
            // There is a sender: the copy itself.
            if unread.await.is_ok_and(|interest| interest.is_evicted) {
                return;
            }
            let read = interest.wait_for(|interest| interest.is_evicted || interest.readers > 0);
            let is_needed = tokio::time::timeout(KEPT_UNREAD, read)
                .await
                .is_ok_and(|interest| interest.is_ok_and(|interest| !interest.is_evicted));
            if !is_needed {
                return;
            }
        }
    }

    /// Appends lines, in blocks. Returns `false` if there is no room for all of them, or the file cannot be written.
    /// Blocks while the file is written.
    fn append_lines_until_full(&self, lines: &[LogLine]) -> bool {
        let mut block = Vec::new();
        let mut first = None;
        for line in lines {
            first = first.or(Some(line.seq));
            encode_line(line, &mut block);
            if block.len() >= BLOCK_BYTES
                && let Some(first) = first.take()
                && !self.append_block(first, &std::mem::take(&mut block))
            {
                return false;
            }
        }
        let is_appended = first.is_none_or(|first| self.append_block(first, &block));
        let is_line = |line: &&LogLine| line.kind != LineKind::NameOfCachedStep;
        if let Some(last) = lines.iter().rev().find(is_line) {
            self.progress.send_modify(|progress| progress.last = last.seq);
        }
        is_appended
    }

    /// Appends a block of lines, the first of which has the number `first`. Returns `false` if there is no room for it,
    /// or the file cannot be written.
    fn append_block(&self, first: u64, block: &[u8]) -> bool {
        let bytes = block.len() as u64;
        let offset = self.progress.borrow().bytes;
        if offset + bytes > self.limit || !self.budget.try_reserve(bytes) {
            return false;
        }
        let appended = {
            let mut spool = self.spool.write().unwrap_or_else(PoisonError::into_inner);
            spool.append(block).is_ok()
        };
        if !appended {
            self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        self.lock_index().push(IndexedBlock { first, offset });
        self.progress.send_modify(|progress| progress.bytes += bytes);
        true
    }

    /// Reads the lines with numbers from `first` on of one block: of the last one that may have the line `first`, or of
    /// the one at `min_offset` if that comes later. Returns them, and the offset of the next block. Blocks while the
    /// file is read.
    fn read_lines_of_one_block(&self, min_offset: u64, first: u64) -> std::io::Result<(Vec<LogLine>, u64)> {
        let (start, end) = {
            let index = self.lock_index();
            let at = index.partition_point(|block| block.offset < min_offset);
            // The last block that begins before the line, unless the reader is beyond it. The names of cached steps before a
            // line have its number, and may be in an earlier block.
            let wanted = index
                .partition_point(|block| block.first < first)
                .saturating_sub(1);
            let at = at.max(wanted);
            let Some(block) = index.get(at) else {
                return Ok((Vec::new(), min_offset));
            };
            let next = index.get(at + 1).map(|next| next.offset);
            (block.offset, next.unwrap_or(self.progress.borrow().bytes))
        };
        let mut block = vec![0; usize::try_from(end - start).unwrap_or_default()];
        let mut read = 0;
        let spool = self.spool.read().unwrap_or_else(PoisonError::into_inner);
        while let Some(rest) = block.get_mut(read..).filter(|rest| !rest.is_empty()) {
            match spool.read_at(rest, start + read as u64)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                count => read += count,
            }
        }
        let mut lines = decode_lines(&block);
        lines.retain(|line| line.seq >= first);
        Ok((lines, end))
    }

    fn lock_index(&self) -> MutexGuard<'_, Vec<IndexedBlock>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LogCopy {
    fn drop(&mut self) {
        let bytes = self.progress.borrow().bytes;
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl CopyReader {
    /// Returns the number of the last line that was copied; 0 without lines.
    pub(super) fn last_copied_line_number(&self) -> u64 {
        self.progress.borrow().last
    }

    /// Waits for the next lines with numbers from `first` on. A copy that cannot be read counts as one that ends there.
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// Fails if the copying failed: the daemon does not know the attempt, or is lost.
    pub(super) async fn next_lines(&mut self, first: u64) -> Result<CopiedLines, Status> {
        loop {
            let CopyProgress { bytes, end, .. } = self.progress.borrow_and_update().clone();
            if self.offset < bytes {
                let (copy, offset) = (self.copy.clone(), self.offset);
                let reading =
                    tokio::task::spawn_blocking(move || copy.read_lines_of_one_block(offset, first));
                let read = reading.await.map_err(std::io::Error::other).flatten();
                let (lines, next) = match read {
                    Ok(read) => read,
                    Err(error) => {
                        tracing::warn!(%error, "could not read the copy of a log; reading the log from BuildKit");
                        self.copy.mark_evicted();
                        return Ok(CopiedLines::NotCopied);
                    }
                };
                self.offset = next;
                if !lines.is_empty() {
                    return Ok(CopiedLines::Lines(lines));
                }
                continue;
            }
            match end {
                None => drop(self.progress.changed().await),
                Some(CopyEnd::Complete) => return Ok(CopiedLines::End),
                Some(CopyEnd::Partial) => return Ok(CopiedLines::NotCopied),
                Some(CopyEnd::Failed(reason)) => return Err(Status::unavailable(reason)),
            }
        }
    }
}

impl Drop for CopyReader {
    fn drop(&mut self) {
        self.copy
            .interest
            .send_modify(|interest| interest.readers = interest.readers.saturating_sub(1));
    }
}

/// Appends a line to a block.
fn encode_line(line: &LogLine, block: &mut Vec<u8>) {
    // A line is shorter than 64 KiB, and a step has a number from 1 on.
    let length = u32::try_from(line.text.len()).unwrap_or(u32::MAX);
    block.extend_from_slice(&line.seq.to_le_bytes());
    block.extend_from_slice(&line.step.unwrap_or(0).to_le_bytes());
    block.push(match line.kind {
        LineKind::Ordinary => 0,
        LineKind::EndOfCachedStep => 1,
        LineKind::NameOfCachedStep => 2,
    });
    block.extend_from_slice(&length.to_le_bytes());
    block.extend_from_slice(line.text.as_bytes());
}

/// Returns the lines of a block.
fn decode_lines(mut block: &[u8]) -> Vec<LogLine> {
    let mut lines = Vec::new();
    while let Some((head, rest)) = block.split_first_chunk::<LINE_HEAD_BYTES>() {
        let Some((line, rest)) = decode_line(head, rest) else {
            break;
        };
        lines.push(line);
        block = rest;
    }
    lines
}

/// Returns the line with this head at the beginning of `bytes`, and the bytes after it.
fn decode_line<'b>(head: &[u8; LINE_HEAD_BYTES], bytes: &'b [u8]) -> Option<(LogLine, &'b [u8])> {
    let (seq, head) = head.split_first_chunk::<8>()?;
    let (step, head) = head.split_first_chunk::<4>()?;
    let (kind, head) = head.split_first()?;
    let (length, _) = head.split_first_chunk::<4>()?;
    let (text, rest) = bytes.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    let line = LogLine {
        seq: u64::from_le_bytes(*seq),
        step: Some(u32::from_le_bytes(*step)).filter(|step| *step > 0),
        kind: match kind {
            1 => LineKind::EndOfCachedStep,
            2 => LineKind::NameOfCachedStep,
            _ => LineKind::Ordinary,
        },
        text: String::from_utf8_lossy(text).into_owned(),
    };
    Some((line, rest))
}

#[cfg(test)]
mod tests;
