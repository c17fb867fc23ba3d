//! Reads from the gateway, with retries: a read changes nothing and may be repeated.

use std::time::Duration;

use tokio::time::Instant;

use super::backoff::Backoff;
use crate::gateway::GatewayReadError;

/// Repeats a read from the gateway while its error is transient and `limit` has not passed.
pub(super) async fn read_retrying_transient_errors<A, F>(
    limit: Duration,
    read: impl Fn() -> F,
) -> Result<A, GatewayReadError>
where
    F: Future<Output = Result<A, GatewayReadError>>,
{
    let started = Instant::now();
    let mut backoff = Backoff::new();
    loop {
        match read().await {
            Err(error) if error.is_transient() && started.elapsed() < limit => backoff.wait_next().await,
            result => return result,
        }
    }
}
