//! The open `tracing` spans, whose fields are added to log lines.
//!
//! This stores only what log lines need. The registry of `tracing-subscriber` stores more, and takes 1,900
//! instructions per request instead of 850; it was the largest part of the host's overhead (`tests/bench-host`).

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use slab::Slab;
use tracing::Metadata;
use tracing::span::Id;

use super::fields::LogFields;

/// The number of shards of the span store, each with a lock, so that threads rarely wait for each other.
const SPAN_STORE_SHARDS: usize = 16;

/// The store of open `tracing` spans by id. An id is `key * SPAN_STORE_SHARDS + shard + 1`.
#[derive(Debug, Default)]
pub(crate) struct SpanStore {
    shards: [Mutex<Slab<OpenSpan>>; SPAN_STORE_SHARDS],
}

/// An open `tracing` span, which is closed with its last reference.
#[derive(Debug)]
struct OpenSpan {
    metadata: &'static Metadata<'static>,
    parent: Option<Id>,
    references: usize,
    fields: LogFields,
}

thread_local! {
    /// The `tracing` spans that this thread has entered, the innermost last.
    static ENTERED_SPANS: RefCell<Vec<Id>> = const { RefCell::new(Vec::new()) };
    /// The shard of the span store in which this thread opens spans, once it has opened one.
    static SHARD_OF_THREAD: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Returns the innermost `tracing` span that this thread has entered.
pub(crate) fn current_span() -> Option<Id> {
    ENTERED_SPANS.with_borrow(|entered| entered.last().cloned())
}

/// Enters a `tracing` span on this thread. `tracing` keeps a reference to the span, so it stays open until it
/// is exited.
pub(crate) fn enter_span(id: &Id) {
    ENTERED_SPANS.with_borrow_mut(|entered| entered.push(id.clone()));
}

/// Exits a `tracing` span on this thread, which need not be the innermost.
pub(crate) fn exit_span(id: &Id) {
    ENTERED_SPANS.with_borrow_mut(|entered| {
        if let Some(at) = entered.iter().rposition(|entered| entered == id) {
            entered.remove(at);
        }
    });
}

/// Returns the shard of the span store in which this thread opens spans. Threads are assigned to shards in
/// turn.
fn shard_of_current_thread() -> usize {
    static NEXT_SHARD: AtomicUsize = AtomicUsize::new(0);
    SHARD_OF_THREAD.with(|shard| {
        if shard.get() == usize::MAX {
            shard.set(NEXT_SHARD.fetch_add(1, Ordering::Relaxed) % SPAN_STORE_SHARDS);
        }
        shard.get()
    })
}

impl SpanStore {
    /// Opens a `tracing` span with one reference. The span holds a reference to its parent until it is closed.
    pub(crate) fn open_span(
        &self,
        metadata: &'static Metadata<'static>,
        parent: Option<Id>,
        fields: LogFields,
    ) -> Id {
        if let Some(parent) = &parent {
            self.add_reference(parent);
        }
        let shard = shard_of_current_thread();
        let key = self.lock_shard(shard).insert(OpenSpan {
            metadata,
            parent,
            references: 1,
            fields,
        });
        // Ids begin at 1.
        Id::from_u64((key * SPAN_STORE_SHARDS + shard) as u64 + 1)
    }

    /// Adds a reference to an open `tracing` span.
    pub(crate) fn add_reference(&self, id: &Id) {
        let (shard, key) = shard_and_key_of_span(id);
        if let Some(span) = self.lock_shard(shard).get_mut(key) {
            span.references += 1;
        }
    }

    /// Removes a reference to a `tracing` span, and closes the span with the last one. Returns whether it was
    /// closed.
    pub(crate) fn remove_reference(&self, id: &Id) -> bool {
        let (shard, key) = shard_and_key_of_span(id);
        let mut spans = self.lock_shard(shard);
        let Some(span) = spans.get_mut(key) else {
            return false;
        };
        span.references -= 1;
        if span.references > 0 {
            return false;
        }
        let closed = spans.remove(key);
        // The lock is released because the parent may be in the same shard.
        drop(spans);
        if let Some(parent) = &closed.parent {
            self.remove_reference(parent);
        }
        true
    }

    /// Sets fields of an open `tracing` span.
    pub(crate) fn record_fields(&self, id: &Id, fields: LogFields) {
        let (shard, key) = shard_and_key_of_span(id);
        if let Some(span) = self.lock_shard(shard).get_mut(key) {
            span.fields.set_all_fields(fields);
        }
    }

    /// Returns the metadata of an open `tracing` span.
    pub(crate) fn metadata_of(&self, id: &Id) -> Option<&'static Metadata<'static>> {
        let (shard, key) = shard_and_key_of_span(id);
        self.lock_shard(shard).get(key).map(|span| span.metadata)
    }

    /// Calls `visit` with the fields of a `tracing` span and of its ancestors, the outermost first.
    pub(crate) fn visit_fields_of_span_and_ancestors(&self, id: &Id, visit: &mut impl FnMut(&LogFields)) {
        let (shard, key) = shard_and_key_of_span(id);
        let parent = self
            .lock_shard(shard)
            .get(key)
            .and_then(|span| span.parent.clone());
        if let Some(parent) = parent {
            self.visit_fields_of_span_and_ancestors(&parent, visit);
        }
        if let Some(span) = self.lock_shard(shard).get(key) {
            visit(&span.fields);
        }
    }

    fn lock_shard(&self, shard: usize) -> MutexGuard<'_, Slab<OpenSpan>> {
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Splits a `tracing` span's id into its shard and its key in the shard.
fn shard_and_key_of_span(id: &Id) -> (usize, usize) {
    let number = (id.into_u64() - 1) as usize;
    (number % SPAN_STORE_SHARDS, number / SPAN_STORE_SHARDS)
}
