//! Generates names that are unique on this machine.

use std::{
    process,
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// Returns a unique name with a prefix.
pub(crate) fn name(prefix: &str) -> String {
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}-{}-{}-{count}", process::id(), milliseconds())
}

/// Returns a short suffix for an instance's name; later suffixes sort after earlier ones.
pub(crate) fn generation() -> String {
    format!("{:011x}", milliseconds())
}

fn milliseconds() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis()
}
