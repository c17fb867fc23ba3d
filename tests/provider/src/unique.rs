//! The generation of names that are unique on this machine.

use std::{
    process,
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// Generates a name with this prefix that is unique on the machine.
pub(crate) fn unique_name(prefix: &str) -> String {
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}-{}-{}-{count}", process::id(), milliseconds())
}

/// Generates a short suffix for an instance's name; later suffixes sort after earlier ones.
pub(crate) fn instance_suffix() -> String {
    format!("{:011x}", milliseconds())
}

fn milliseconds() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis()
}
