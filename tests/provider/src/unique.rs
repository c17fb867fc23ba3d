//! Names that no other thing of this machine has.

use std::{
    process,
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// A name that is used once, after a prefix.
pub(crate) fn name(prefix: &str) -> String {
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}-{}-{}-{count}", process::id(), milliseconds())
}

/// A short word for an instance of a function; later ones sort after earlier ones.
pub(crate) fn generation() -> String {
    format!("{:011x}", milliseconds())
}

fn milliseconds() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis()
}
