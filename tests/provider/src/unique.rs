//! The generation of names that are unique on this machine.

use std::{
    process,
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// The number of names that this process has generated.
static NAME_COUNTER: AtomicU64 = AtomicU64::new(0);

/// Generates a name with this prefix that is unique on the machine.
pub(crate) fn unique_name(prefix: &str) -> String {
    let count = NAME_COUNTER.fetch_add(1, Ordering::Relaxed);
    format!(
        "{prefix}-{}-{}-{count}",
        process::id(),
        milliseconds_since_epoch()
    )
}

/// Generates a suffix for an instance's name from the time in milliseconds, in hexadecimal; later suffixes sort after
/// earlier ones.
pub(crate) fn sortable_millisecond_suffix() -> String {
    format!("{:011x}", milliseconds_since_epoch())
}

fn milliseconds_since_epoch() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis()
}
