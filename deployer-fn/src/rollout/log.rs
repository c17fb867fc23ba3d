//! What a version that failed wrote to its log, by the log API of OpenFaaS. Kubernetes itself gives the log of a
//! container that ended, if the operator lets the deployer read it; there, the log API is not asked.

use std::time::Duration;

use function_host::ErrorChain;
use tokio::time::timeout;
use tracing::info;

use super::RunningRollout;
use super::watch::WaitingFor;
use crate::gateway::{self, GatewayRequestSender, ProviderName};
use crate::text;

/// The longest time for which the restoration of the previous version waits for a log. It fits into the time that a
/// request has for its response.
const LOG_READ_TIMEOUT: Duration = Duration::from_secs(2);

impl<T: GatewayRequestSender> RunningRollout<'_, T> {
    /// Returns the last lines that the new version wrote, as part of the reason why it failed; `None` if there are
    /// none, or if another version may have written them. Records in `waiting_for` that the version has been started,
    /// if the log shows it.
    pub(super) async fn quote_log_and_record_start_of_failed_version(
        &self,
        waiting_for: &mut WaitingFor,
    ) -> Option<String> {
        if self.deadline.is_shutting_down() || !waiting_for.may_be_explained_by_log() {
            return None;
        }
        let quote = timeout(LOG_READ_TIMEOUT, self.quote_log_of_new_version_if_it_runs_alone())
            .await
            .ok()??;
        // An image that was not pulled writes nothing.
        if let WaitingFor::Replica { was_available } = waiting_for {
            *was_available |= self
                .read_provider_name_once()
                .await
                .is_some_and(ProviderName::stops_old_version_before_starting_new);
        }
        Some(quote)
    }

    /// Reads the log of the new version from the gateway, and returns its end as a quote. The old version, which the
    /// messages do not distinguish from the new one, must not run any more.
    async fn quote_log_of_new_version_if_it_runs_alone(&self) -> Option<String> {
        let is_first_version = self.facts.changed && self.before.is_none();
        self.read_provider_name_once().await.filter(|provider| {
            provider.stops_old_version_before_starting_new()
                || is_first_version && provider.removes_old_version_before_answering_update()
        })?;
        let status = self.final_read_function_status().await.ok()??;
        let since = status
            .created_at()
            .filter(|_| self.version.may_be_the_deployed_version(&status))?;
        let limit = self.context.timeouts.request.min(LOG_READ_TIMEOUT);
        match gateway::read_last_log_lines(self.context.transport, &self.address, since, limit).await {
            Ok(lines) => text::quote_log_end(lines.as_bytes()),
            Err(error) => {
                info!(error = %ErrorChain(&error), "could not read the function's log");
                None
            }
        }
    }
}
