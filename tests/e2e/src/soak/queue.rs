//! The state of the queue, as the monitoring of NATS Streaming reports it.

use anyhow::Result;
use serde_json::Value;
use slipway_stack::Stack;

use crate::{blocking_client, network_namespace::NetworkNamespace};

/// The path of the channel's state at the monitoring of NATS Streaming: the gateway's channel, with its subscriptions.
const CHANNEL_STATE_PATH: &str = "/streaming/channelsz?channel=faas-request&subs=1";

/// Returns whether queue-workers are connected and none has a call that it has not acknowledged. The queue is empty
/// then, except for the moment between an acknowledgement and the next call: NATS sends one to every queue-worker
/// without.
///
/// # Errors
/// Fails if NATS does not answer.
pub(super) fn has_workers_and_all_are_idle(stack: &Stack) -> Result<bool> {
    let address = stack.nats_monitor_address_in_stack_network();
    let namespace = NetworkNamespace::of_process(stack.supervisor_pid()?)?;
    let channel = namespace.run_inside(|| blocking_client::get_json(address, CHANNEL_STATE_PATH))?;
    Ok(channel_has_workers_and_all_are_idle(&channel))
}

fn channel_has_workers_and_all_are_idle(channel: &Value) -> bool {
    let subscriptions = channel["subscriptions"].as_array();
    let subscriptions = subscriptions.map_or(&[][..], Vec::as_slice);
    let has_worker = subscriptions
        .iter()
        .any(|subscription| subscription["is_offline"] == false);
    let has_pending = subscriptions
        .iter()
        .any(|subscription| subscription["pending_count"] != 0);
    has_worker && !has_pending
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_queue_without_workers_or_with_calls_in_progress_is_not_idle() {
        let channel = |is_offline: bool, pending: u64| {
            json!({ "subscriptions": [
                { "is_offline": is_offline, "pending_count": 0 },
                { "is_offline": true, "pending_count": pending },
            ] })
        };
        assert!(channel_has_workers_and_all_are_idle(&channel(false, 0)));
        assert!(
            !channel_has_workers_and_all_are_idle(&channel(true, 0)),
            "no worker"
        );
        assert!(
            !channel_has_workers_and_all_are_idle(&channel(false, 1)),
            "a worker that has gone has a call"
        );
        assert!(!channel_has_workers_and_all_are_idle(&json!({})));
        assert!(!channel_has_workers_and_all_are_idle(
            &json!({ "subscriptions": [] })
        ));
    }
}
