//! The spans that are open.
//!
//! This is all that lines need of spans. `tracing-subscriber`'s registry, which can do more, costs each request more than
//! twice as much (counted: 1,900 instructions, here 850), and was the largest part of what the host costs
//! (`tests/bench-host`).

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use slab::Slab;
use tracing::Metadata;
use tracing::span::Id;

use super::fields::Fields;

/// More than one, so that threads seldom wait for each other.
const SHARDS: usize = 16;

/// Open spans by their id, which has the number of the shard in its low digits.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    shards: [Mutex<Slab<Span>>; SHARDS],
}

#[derive(Debug)]
struct Span {
    metadata: &'static Metadata<'static>,
    parent: Option<Id>,
    references: usize,
    fields: Fields,
}

thread_local! {
    /// The spans that this thread is in, the innermost last.
    static ENTERED: RefCell<Vec<Id>> = const { RefCell::new(Vec::new()) };
    /// The shard in which this thread opens spans.
    static SHARD: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The span that this thread is in.
pub(crate) fn current() -> Option<Id> {
    ENTERED.with_borrow(|entered| entered.last().cloned())
}

/// Enters a span on this thread. It stays open meanwhile: whoever enters it holds it.
pub(crate) fn enter(id: &Id) {
    ENTERED.with_borrow_mut(|entered| entered.push(id.clone()));
}

/// Leaves a span on this thread, which need not be the innermost.
pub(crate) fn exit(id: &Id) {
    ENTERED.with_borrow_mut(|entered| {
        if let Some(at) = entered.iter().rposition(|entered| entered == id) {
            entered.remove(at);
        }
    });
}

fn shard_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    SHARD.with(|shard| {
        if shard.get() == usize::MAX {
            shard.set(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
        }
        shard.get()
    })
}

impl Spans {
    /// Opens a span, with one reference to it. The parent stays open until it is closed.
    pub(crate) fn open(
        &self,
        metadata: &'static Metadata<'static>,
        parent: Option<Id>,
        fields: Fields,
    ) -> Id {
        if let Some(parent) = &parent {
            self.refer(parent);
        }
        let shard = shard_of_thread();
        let key = self.lock(shard).insert(Span {
            metadata,
            parent,
            references: 1,
            fields,
        });
        // Ids begin at 1.
        Id::from_u64((key * SHARDS + shard) as u64 + 1)
    }

    /// Adds a reference.
    pub(crate) fn refer(&self, id: &Id) {
        let (shard, key) = place(id);
        if let Some(span) = self.lock(shard).get_mut(key) {
            span.references += 1;
        }
    }

    /// Takes a reference away, and closes the span with the last one; tells whether it did.
    pub(crate) fn release(&self, id: &Id) -> bool {
        let (shard, key) = place(id);
        let mut spans = self.lock(shard);
        let Some(span) = spans.get_mut(key) else {
            return false;
        };
        span.references -= 1;
        if span.references > 0 {
            return false;
        }
        let closed = spans.remove(key);
        // The parent may be in the same shard.
        drop(spans);
        if let Some(parent) = &closed.parent {
            self.release(parent);
        }
        true
    }

    /// Adds fields to a span.
    pub(crate) fn record(&self, id: &Id, fields: Fields) {
        let (shard, key) = place(id);
        if let Some(span) = self.lock(shard).get_mut(key) {
            span.fields.update(fields);
        }
    }

    /// What a span was declared with.
    pub(crate) fn metadata(&self, id: &Id) -> Option<&'static Metadata<'static>> {
        let (shard, key) = place(id);
        self.lock(shard).get(key).map(|span| span.metadata)
    }

    /// Shows the fields of a span and of those it is in, the outermost first.
    pub(crate) fn each(&self, id: &Id, show: &mut impl FnMut(&Fields)) {
        let (shard, key) = place(id);
        let parent = self.lock(shard).get(key).and_then(|span| span.parent.clone());
        if let Some(parent) = parent {
            self.each(&parent, show);
        }
        if let Some(span) = self.lock(shard).get(key) {
            show(&span.fields);
        }
    }

    fn lock(&self, shard: usize) -> MutexGuard<'_, Slab<Span>> {
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shard and key of a span.
fn place(id: &Id) -> (usize, usize) {
    let number = (id.into_u64() - 1) as usize;
    (number % SHARDS, number / SHARDS)
}
