//! The journal of a soak test: what passed the router, with times.

use std::{collections::BTreeSet, time::Instant};

/// What passed the router in one phase.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// The deliveries of queued calls to builders.
    pub(super) deliveries: Vec<Delivery>,
    /// The changes of functions that reached the provider.
    pub(super) changes: Vec<FunctionChange>,
    /// The results that the queue posted to the callback address.
    pub(super) callbacks: Vec<Callback>,
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
pub(super) struct FunctionChange {
    /// The image in the request, by digest.
    pub(super) image: String,
    pub(super) at: Instant,
    /// The provider's status; `None` until it has answered, and if it never did.
    pub(super) status: Option<u16>,
}

impl FunctionChange {
    /// Returns whether the provider may have changed the function: it reported success, or nothing.
    pub(super) fn may_have_happened(&self) -> bool {
        self.status.is_none_or(|status| (200..300).contains(&status))
    }
}

/// A result that the queue posted.
#[derive(Debug, Clone)]
pub(super) struct Callback {
    pub(super) call_id: String,
    /// The status of the builder's answer, as the queue-worker reports it.
    pub(super) status: u16,
}

impl Journal {
    /// Returns the number of the journal's entries and of their ends; it grows while anything happens.
    pub(super) fn count_of_entries_and_ends(&self) -> usize {
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

    /// Returns the number of images that a function was changed to.
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

    /// Returns the changes of functions to this image.
    pub(super) fn possible_changes_to<'a>(
        &'a self,
        image: &'a str,
    ) -> impl Iterator<Item = &'a FunctionChange> {
        self.changes
            .iter()
            .filter(move |change| change.image == image && change.may_have_happened())
    }
}
