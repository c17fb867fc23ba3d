//! Waits until the page of a function shows its new version.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::blocking_client;

/// The pause between two requests: small beside what is measured, and long enough that the requests take little of the
/// processors.
const PAUSE: Duration = Duration::from_millis(10);

/// The longest time until a new version answers.
const LIMIT: Duration = Duration::from_secs(180);

/// Requests a page until it contains `text`, and returns when it did. A function that does not exist yet, or restarts,
/// answers with an error.
///
/// # Errors
/// Fails after three minutes, or once `stop` is set.
pub(super) fn wait_for_root_page_containing(url: &str, text: &str, stop: &AtomicBool) -> Result<Instant> {
    let end = Instant::now() + LIMIT;
    loop {
        let answer = blocking_client::get_root_page(url);
        if answer.as_ref().is_ok_and(|page| page.contains(text)) {
            return Ok(Instant::now());
        }
        if stop.load(Ordering::Relaxed) || Instant::now() > end {
            bail!("{url} does not show {text:?}; last answer: {answer:?}");
        }
        thread::sleep(PAUSE);
    }
}
