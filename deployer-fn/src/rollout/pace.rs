//! How often a provider is asked again: soon at first, and ever more rarely.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);

/// The pauses between questions.
#[derive(Debug)]
pub(super) struct Pace(Duration);

impl Pace {
    pub(super) fn new() -> Self {
        Self(FIRST)
    }

    /// Waits as long as it is this time's turn.
    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 3 / 2).min(LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_a_limit() {
        let mut pace = Pace::new();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let begun = Instant::now();
            pace.pause().await;
            pauses.push(begun.elapsed());
        }
        assert_eq!(pauses[0], FIRST);
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(pauses[11], LONGEST);
    }
}
