//! What passed the router of a soak test, with times, in memory.

use std::{collections::BTreeSet, time::Instant};

/// The deliveries, changes and callbacks that passed the router in one phase, in the order in which they began.
#[derive(Debug, Default)]
pub(super) struct RoutedTraffic {
    /// The deliveries of queued calls, also those that no builder received.
    pub(super) deliveries: Vec<Delivery>,
    /// The requests to create or update a function that the router forwarded to the provider.
    pub(super) changes: Vec<FunctionCreationOrUpdate>,
    /// The results that the queue posted to the callback address.
    pub(super) callbacks: Vec<CallbackCallAndStatus>,
}

/// A delivery of a queued call.
#[derive(Debug, Clone)]
pub(super) struct Delivery {
    pub(super) call_id: String,
    pub(super) began: Instant,
    /// How and when the delivery ended; `None` while it is in progress.
    pub(super) end: Option<(DeliveryEnd, Instant)>,
}

/// The way in which a delivery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeliveryEnd {
    /// A builder answered with this status.
    Answered(u16),
    /// The builder's connection was lost before its answer.
    BuilderLost,
    /// No builder accepted a connection.
    NoBuilder,
    /// The caller, which is the gateway, disconnected before the answer.
    CallerLost,
}

/// A request to create or to update a function.
#[derive(Debug, Clone)]
pub(super) struct FunctionCreationOrUpdate {
    /// The image in the request, by digest.
    pub(super) image: String,
    /// The time of the request; once it is answered, that of the answer.
    pub(super) at: Instant,
    /// The provider's status, or 502 if the forwarding failed; `None` until then.
    pub(super) status: Option<u16>,
}

impl FunctionCreationOrUpdate {
    /// Returns whether the provider may have changed the function: it reported success, or has not answered yet.
    pub(super) fn may_have_happened(&self) -> bool {
        self.status.is_none_or(|status| (200..300).contains(&status))
    }
}

/// The call and the status of a result that the queue posted.
#[derive(Debug, Clone)]
pub(super) struct CallbackCallAndStatus {
    pub(super) call_id: String,
    /// The status of the builder's answer, as the queue-worker reports it.
    pub(super) status: u16,
}

impl RoutedTraffic {
    /// Returns the number of deliveries, of their ends, of changes and of callbacks; it grows while anything happens.
    pub(super) fn event_count(&self) -> usize {
        let ended = self.deliveries.iter().filter(|delivery| delivery.end.is_some());
        self.deliveries.len() + ended.count() + self.changes.len() + self.callbacks.len()
    }

    /// Returns whether a delivery is in progress.
    pub(super) fn has_delivery_in_progress(&self) -> bool {
        self.deliveries.iter().any(|delivery| delivery.end.is_none())
    }

    /// Returns the IDs of the calls that are being delivered.
    pub(super) fn calls_in_progress(&self) -> BTreeSet<String> {
        let deliveries = self.deliveries.iter();
        let in_progress = deliveries.filter(|delivery| delivery.end.is_none());
        in_progress.map(|delivery| delivery.call_id.clone()).collect()
    }

    /// Returns the number of different images that functions were changed to.
    pub(super) fn deployed_image_count(&self) -> usize {
        let changes = self.changes.iter().filter(|change| change.status.is_some());
        let images = changes.filter(|change| change.may_have_happened());
        images.map(|change| &change.image).collect::<BTreeSet<_>>().len()
    }

    /// Returns the deliveries of a call.
    pub(super) fn deliveries_of<'a>(&'a self, call_id: &'a str) -> impl Iterator<Item = &'a Delivery> {
        self.deliveries
            .iter()
            .filter(move |delivery| delivery.call_id == call_id)
    }

    /// Returns the requests that may have changed a function to this image.
    pub(super) fn possible_changes_to<'a>(
        &'a self,
        image: &'a str,
    ) -> impl Iterator<Item = &'a FunctionCreationOrUpdate> {
        self.changes
            .iter()
            .filter(move |change| change.image == image && change.may_have_happened())
    }
}
