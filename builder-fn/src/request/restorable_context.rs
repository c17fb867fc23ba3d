//! The context of a build that may have to wait: meanwhile a large index is dropped, and made again after that.
//!
//! An index may take 16 MiB, and as many requests wait as the queues of all tenants have places. A second pass over the
//! headers of a tar costs less than keeping it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use super::RequestError;
use super::incoming::run_blocking_and_resume_panics;
use crate::context::{ArchiveLimits, ArchiveReader, SourceContext, Spool};

/// The size up to which an index is kept while its build waits, in bytes.
const MAX_KEPT_INDEX_BYTES: usize = 256 << 10;

/// The number of tars that are read at a time: each takes as much memory as the largest index.
const TARS_INDEXED_AT_A_TIME: usize = 2;

/// The turns at reading tars, which all requests share. Clones share them.
#[derive(Clone, Debug)]
pub struct IndexingTurns(Arc<Semaphore>);

/// The context of a build, whose index is there or can be made again.
pub struct RestorableContext {
    state: Mutex<ContextState>,
    limits: ArchiveLimits,
    turns: IndexingTurns,
}

/// Whether a [`RestorableContext`] has its index.
enum ContextState {
    /// The index is there.
    Indexed(Arc<SourceContext>),
    /// The tar, whose index was dropped, is being made again, or could not be made.
    Stored(Arc<Spool>),
}

impl Default for IndexingTurns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(TARS_INDEXED_AT_A_TIME)))
    }
}

impl IndexingTurns {
    /// Runs `work`, which reads a tar, on a thread that may block, once it is its turn.
    ///
    /// # Errors
    /// Fails if the runtime is shutting down, and as `work`.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, RequestError> + Send + 'static,
    ) -> Result<T, RequestError> {
        let turn = self.0.clone().acquire_owned().await;
        let turn = turn.map_err(|_| RequestError::Interrupted)?;
        run_blocking_and_resume_panics(move || {
            let _turn = turn;
            work()
        })
        .await?
    }
}

impl RestorableContext {
    /// Returns the context of a tar that was read within `limits`.
    pub(super) fn new(context: Arc<SourceContext>, limits: ArchiveLimits, turns: IndexingTurns) -> Self {
        Self {
            state: Mutex::new(ContextState::Indexed(context)),
            limits,
            turns,
        }
    }

    /// Returns the context, with its index.
    ///
    /// # Errors
    /// Fails while the index is dropped.
    pub fn context_unless_index_dropped(&self) -> Result<Arc<SourceContext>, RequestError> {
        match &*self.lock() {
            ContextState::Indexed(context) => Ok(context.clone()),
            ContextState::Stored(_) => Err(RequestError::Interrupted),
        }
    }

    /// Drops the index, unless it is small or in use.
    pub(crate) fn drop_large_index(&self) {
        let mut state = self.lock();
        if let ContextState::Indexed(context) = &*state
            && context.index_memory_bytes() > MAX_KEPT_INDEX_BYTES
            // It is lent out only under the lock.
            && Arc::strong_count(context) == 1
        {
            *state = ContextState::Stored(context.spool().clone());
        }
    }

    /// Makes the index again if it was dropped, and returns the context.
    ///
    /// # Errors
    /// Fails if the tar cannot be read back, or the runtime is shutting down.
    pub(crate) async fn restore_index(&self) -> Result<Arc<SourceContext>, RequestError> {
        let spool = match &*self.lock() {
            ContextState::Indexed(context) => return Ok(context.clone()),
            ContextState::Stored(spool) => spool.clone(),
        };
        let limits = self.limits.clone();
        let restored = self.turns.run(move || {
            let contents = ArchiveReader::new(limits).read(&spool)?;
            Ok(Arc::new(SourceContext::new(contents.entries, spool)))
        });
        let context = restored.await?;
        *self.lock() = ContextState::Indexed(context.clone());
        Ok(context)
    }

    /// Returns the tar, whether its index is there or not.
    pub(crate) fn decompressed_tar(&self) -> Arc<Spool> {
        match &*self.lock() {
            ContextState::Indexed(context) => context.spool().clone(),
            ContextState::Stored(spool) => spool.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, ContextState> {
        // Every operation leaves the state consistent, so that a panic elsewhere does not matter.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for RestorableContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &*self.lock() {
            ContextState::Indexed(_) => "Indexed",
            ContextState::Stored(_) => "Stored",
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Returns a context of `count` empty files, which has its index.
    fn context_of_empty_files(count: usize) -> RestorableContext {
        let mut tar = tar::Builder::new(Vec::new());
        for number in 0..count {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("context/file-{number}"), &[][..])
                .unwrap();
        }
        let context = SourceContext::from_tar(&tar.into_inner().unwrap()).unwrap();
        RestorableContext::new(
            Arc::new(context),
            ArchiveLimits::default(),
            IndexingTurns::default(),
        )
    }

    fn describe_entries(context: &SourceContext) -> Vec<String> {
        let numbers = 0..u32::try_from(context.index().len()).unwrap();
        let entries = numbers.map(|at| (context.index().path(at), context.entry_by_number(at)));
        entries.map(|(path, entry)| format!("{path} {entry:?}")).collect()
    }

    #[tokio::test]
    async fn a_restored_index_has_the_same_entries() {
        let context = context_of_empty_files(20_000);
        let before = describe_entries(&context.context_unless_index_dropped().unwrap());
        context.drop_large_index();
        assert!(
            context.context_unless_index_dropped().is_err(),
            "the index was kept"
        );
        let restored = context.restore_index().await.unwrap();
        assert_eq!(describe_entries(&restored), before);
        assert_eq!(before.len(), 20_000);
        assert!(context.context_unless_index_dropped().is_ok());
    }

    #[tokio::test]
    async fn drop_large_index_keeps_a_small_index_and_one_in_use() {
        let small = context_of_empty_files(10);
        small.drop_large_index();
        assert!(small.context_unless_index_dropped().is_ok());
        let large = context_of_empty_files(20_000);
        let used = large.context_unless_index_dropped().unwrap();
        large.drop_large_index();
        assert!(large.context_unless_index_dropped().is_ok());
        drop(used);
        large.restore_index().await.unwrap();
    }

    #[tokio::test]
    async fn a_context_whose_restoration_is_dropped_halfway_still_has_its_tar_and_can_be_restored() {
        let context = context_of_empty_files(20_000);
        let bytes = context.decompressed_tar().len();
        context.drop_large_index();
        drop(context.restore_index().now_or_never());
        assert_eq!(context.decompressed_tar().len(), bytes);
        assert_eq!(context.restore_index().await.unwrap().index().len(), 20_000);
    }

    #[tokio::test]
    async fn indexing_turns_run_at_most_two_tars_at_a_time() {
        let turns = IndexingTurns::default();
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let (started, mut running) = tokio::sync::mpsc::unbounded_channel();
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..TARS_INDEXED_AT_A_TIME + 3 {
            let (turns, gate, started) = (turns.clone(), gate.clone(), started.clone());
            all.spawn(async move {
                let work = move || {
                    started.send(()).unwrap();
                    gate.lock().unwrap().recv().unwrap();
                    Ok(())
                };
                turns.run(work).await
            });
        }
        for _ in 0..TARS_INDEXED_AT_A_TIME {
            running.recv().await.unwrap();
        }
        tokio::task::yield_now().await;
        assert!(running.try_recv().is_err());
        (0..TARS_INDEXED_AT_A_TIME + 3).for_each(|_| open.send(()).unwrap());
        assert!(all.join_all().await.into_iter().all(|result| result.is_ok()));
    }
}
