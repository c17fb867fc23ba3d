//! A dry run: a hand-over whose image is not built yet.

use super::HandOver;
use super::image::PinnedImage;

/// A hand-over that is checked and never deployed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DryRun {
    /// The hand-over. The digest of its image is a stand-in.
    pub(crate) hand_over: HandOver,
    /// Whether the repository of the image is known.
    pub(super) names_repository: bool,
}

impl DryRun {
    /// Returns the image without its digest, if its repository is known.
    pub(crate) fn image(&self) -> Option<&PinnedImage> {
        self.names_repository.then_some(&self.hand_over.spec.image)
    }
}

/// What was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A hand-over to deploy.
    HandOver(HandOver),
    /// A hand-over to check.
    DryRun(DryRun),
}

impl Received {
    /// Returns the hand-over, for the checks that apply to both.
    pub(crate) fn hand_over(&self) -> &HandOver {
        match self {
            Self::HandOver(hand_over) => hand_over,
            Self::DryRun(dry_run) => &dry_run.hand_over,
        }
    }

    /// Returns the hand-over, to complete it.
    pub(crate) fn hand_over_mut(&mut self) -> &mut HandOver {
        match self {
            Self::HandOver(hand_over) => hand_over,
            Self::DryRun(dry_run) => &mut dry_run.hand_over,
        }
    }

    /// Returns the image to check against the operator's rules; `None` if its repository is not known.
    pub(crate) fn image(&self) -> Option<&PinnedImage> {
        match self {
            Self::HandOver(hand_over) => Some(&hand_over.spec.image),
            Self::DryRun(dry_run) => dry_run.image(),
        }
    }
}
