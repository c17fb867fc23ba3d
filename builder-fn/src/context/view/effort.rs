//! The limit on the work for one file-sync request of BuildKit.

/// The remaining work that a file-sync request may cause, and whether the daemon still waits for the result.
pub(super) struct MatchingEffort<'a> {
    /// The remaining work, in compared bytes.
    left: usize,
    /// The error for work beyond the limit.
    exceeded_error: &'static str,
    is_wanted: &'a dyn Fn() -> bool,
}

impl<'a> MatchingEffort<'a> {
    /// Creates an allowance of `max_bytes` compared bytes, valid while `is_wanted` returns `true`. `exceeded_error` is
    /// the error for more work.
    pub(super) fn new(
        max_bytes: usize,
        exceeded_error: &'static str,
        is_wanted: &'a dyn Fn() -> bool,
    ) -> Self {
        Self {
            left: max_bytes,
            exceeded_error,
            is_wanted,
        }
    }

    /// Deducts `bytes` from the remaining work; fails if too little is left.
    ///
    /// # Errors
    /// With the reason, when there is not as much left.
    pub(super) fn spend_within_limit(&mut self, bytes: usize) -> Result<(), &'static str> {
        self.left = self.left.checked_sub(bytes).ok_or(self.exceeded_error)?;
        Ok(())
    }

    /// Checks that the daemon still waits for the result.
    ///
    /// # Errors
    /// With the reason, when nobody does.
    pub(super) fn check_wanted(&self) -> Result<(), &'static str> {
        match (self.is_wanted)() {
            true => Ok(()),
            false => Err("the request was cancelled"),
        }
    }
}
