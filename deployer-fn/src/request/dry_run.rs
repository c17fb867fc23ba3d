//! A dry run: a hand-over whose image is not built yet.

use super::HandOver;
use super::image::PinnedImage;

/// A dry run's hand-over, which is checked and never deployed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DryRunRequest {
    /// The dry run's hand-over. The digest of its image is a stand-in, unless the hand-over has the field `image`.
    pub(crate) hand_over: HandOver,
    /// Whether the repository of the dry run's image is known.
    pub(super) names_repository: bool,
}

impl DryRunRequest {
    /// Returns the dry run's image, whose digest may be a stand-in; `None` if the hand-over names no repository for it.
    pub(crate) fn possibly_unbuilt_image_if_repository_known(&self) -> Option<&PinnedImage> {
        self.names_repository.then_some(&self.hand_over.spec.image)
    }
}

/// A valid request of the builder: to deploy a hand-over, or to check it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReceivedHandOver {
    /// A request to deploy a hand-over.
    HandOver(HandOver),
    /// A request to check a hand-over.
    DryRun(DryRunRequest),
}

impl ReceivedHandOver {
    /// Returns whether the request is to check a hand-over only.
    pub(crate) fn is_dry_run(&self) -> bool {
        matches!(self, Self::DryRun(_))
    }

    /// Returns the hand-over of either kind of request.
    pub(crate) fn hand_over(&self) -> &HandOver {
        match self {
            Self::HandOver(hand_over) => hand_over,
            Self::DryRun(dry_run) => &dry_run.hand_over,
        }
    }

    /// Returns the mutable hand-over of either kind of request, to set its defaults.
    pub(crate) fn hand_over_mut(&mut self) -> &mut HandOver {
        match self {
            Self::HandOver(hand_over) => hand_over,
            Self::DryRun(dry_run) => &mut dry_run.hand_over,
        }
    }

    /// Returns the hand-over's image, to check it against the operator's rules; `None` if its repository is not
    /// known.
    pub(crate) fn image_for_rules_if_repository_known(&self) -> Option<&PinnedImage> {
        match self {
            Self::HandOver(hand_over) => Some(&hand_over.spec.image),
            Self::DryRun(dry_run) => dry_run.possibly_unbuilt_image_if_repository_known(),
        }
    }
}
