//! The parts of a build. Mostly it has one, with all of its platforms. A build for platforms that different daemons are
//! bound to has one for each: they are solved at the same time, pushed by digest, and joined into one index.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;

use super::context::JobBuildContext;
use super::evidence::FailureEvidence;
use crate::buildkit::{BuildPart, BuildReference, CacheExport, EligibleDaemons};
use crate::report::LogSink;
use crate::request::{BuildConfig, ImageRef};

/// A part of a build, which is solved on one daemon.
#[derive(Debug)]
pub(super) struct SolvePart {
    /// The platforms of the part, as the config names them; empty for the daemon's own platform.
    pub(super) platforms: Vec<String>,
    /// The daemons that the part may go to.
    pub(super) daemons: EligibleDaemons,
    /// The reference under which BuildKit knows the part: that of the build if there is no other part.
    pub(super) reference: BuildReference,
    /// The context, which all parts of a split build share; `None` for the only part, whose attempts get theirs anew.
    pub(super) shared_context: Option<Arc<OnceCell<JobBuildContext>>>,
    /// What the part leaves behind that explains its failure.
    evidence: Mutex<FailureEvidence>,
}

impl SolvePart {
    /// Creates the parts of the build `reference`.
    pub(super) fn of_build(parts: Vec<BuildPart>, reference: &BuildReference) -> Vec<Self> {
        let is_split = parts.len() > 1;
        let context = Arc::new(OnceCell::new());
        let create = |(number, part): (u32, BuildPart)| Self {
            platforms: part.platforms,
            daemons: part.daemons,
            reference: match is_split {
                true => reference.of_part(number),
                false => reference.clone(),
            },
            shared_context: is_split.then(|| context.clone()),
            evidence: Mutex::default(),
        };
        (1..).zip(parts).map(create).collect()
    }

    /// Returns whether the build has other parts.
    pub(super) fn is_of_split_build(&self) -> bool {
        self.shared_context.is_some()
    }

    /// Returns what explains a failure of the part, to add to it or to take it.
    pub(super) fn lock_evidence(&self) -> MutexGuard<'_, FailureEvidence> {
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the names under which the part is exported: those of the config, or for a part of an index the
    /// repositories, each once.
    pub(super) fn image_names(&self, config: &BuildConfig) -> Vec<String> {
        let images = [&config.image].into_iter().chain(&config.tags);
        if !self.is_of_split_build() {
            return images.map(ToString::to_string).collect();
        }
        let mut repositories: Vec<String> = Vec::new();
        for repository in images.map(ImageRef::without_tag) {
            if !repositories.contains(&repository) {
                repositories.push(repository);
            }
        }
        repositories
    }

    /// Returns the images that the part imports cached steps from. A part of an index also imports what the same part
    /// of an earlier build has exported.
    pub(super) fn cache_imports(&self, config: &BuildConfig) -> Vec<String> {
        let suffix = self.tag_suffix();
        let own = config.cache_from.iter().filter(|_| self.is_of_split_build());
        let own = own.map(|image| format!("{image}{suffix}"));
        own.chain(config.cache_from.iter().map(ToString::to_string))
            .collect()
    }

    /// Returns the images that the part exports cached steps to: a tag of its own for each part of an index.
    pub(super) fn cache_exports(&self, config: &BuildConfig) -> Vec<CacheExport> {
        let suffix = self.tag_suffix();
        let exports = config.cache_to.iter().map(|cache| CacheExport {
            name: format!("{}{suffix}", cache.image),
            max: cache.max,
            ignore_error: cache.ignore_error,
        });
        exports.collect()
    }

    /// Returns the ending of tags for what each part of a split build has of its own, such as `-linux-arm64`; empty for
    /// the only part.
    pub(super) fn tag_suffix(&self) -> String {
        match (self.is_of_split_build(), self.platforms.first()) {
            (true, Some(platform)) => format!("-{}", platform.replace('/', "-")),
            _ => String::new(),
        }
    }
}

/// The log of a build, to which several parts append lines.
pub(super) struct SharedLog<'a, 'b>(pub(super) &'a Mutex<&'b mut dyn LogSink>);

impl LogSink for SharedLog<'_, '_> {
    fn push(&mut self, line: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn push_end_of_cached_step(&mut self, line: String) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_end_of_cached_step(line);
    }
}
