//! How often a provider is asked again: soon at first, and ever more rarely, and not by several at the same moment.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);

/// The pauses between questions.
#[derive(Debug)]
pub(super) struct Pace {
    pause: Duration,
    steps: usize,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            pause: FIRST,
            steps: 0,
        }
    }

    /// How often it has paused.
    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    /// Waits as long as it is this time's turn, give or take a fifth.
    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.pause.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
        self.pause = (self.pause * 3 / 2).min(LONGEST);
        self.steps += 1;
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
        assert!(pauses[0] <= FIRST * 5 / 4 && pauses[0] < pauses[4]);
        assert!(pauses[11] >= LONGEST * 3 / 4 && pauses[11] <= LONGEST * 5 / 4);
    }
}
