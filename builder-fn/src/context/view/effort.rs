//! The limit on the work for one request of BuildKit.

/// The work that may still be done, and whether somebody waits for it.
pub(super) struct Effort<'a> {
    /// Work in bytes that are compared.
    left: usize,
    /// Why there may be no more.
    limit: &'static str,
    is_wanted: &'a dyn Fn() -> bool,
}

impl<'a> Effort<'a> {
    /// Allows work of `bytes` compared bytes while `is_wanted`. `limit` is the error of more work.
    pub(super) fn new(bytes: usize, limit: &'static str, is_wanted: &'a dyn Fn() -> bool) -> Self {
        Self {
            left: bytes,
            limit,
            is_wanted,
        }
    }

    /// Deducts from the work that is left.
    ///
    /// # Errors
    /// With the reason, when there is not as much left.
    pub(super) fn spend(&mut self, bytes: usize) -> Result<(), &'static str> {
        self.left = self.left.checked_sub(bytes).ok_or(self.limit)?;
        Ok(())
    }

    /// Checks that somebody waits for the result.
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
