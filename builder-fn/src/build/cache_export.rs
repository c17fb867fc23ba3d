//! Exports of the caches of finished builds to the operator's registry, so that a build on a daemon which has nothing
//! of its image begins with them.
//!
//! BuildKit exports a cache as a part of a solve. So the same request is solved once more on the same daemon, after the
//! answer: all of its steps are cached, nothing is pushed but the cache, and whatever becomes of it changes no result.
//! The solve has no attributes, so that it is no build to anybody who reads the daemon's history.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use function_host::{ErrorChain, Shutdown};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::Builder;
use super::call::BuilderCall;
use super::context::JobBuildContext;
use super::part::SolvePart;
use super::solve::shared_key_image;
use crate::buildkit::{
    BuildEvent, BuildJob, BuildReference, CacheExport, Connection, Daemon, KeyLease, ManifestLookup,
    SessionServices, SolveOptions,
};
use crate::context::SourceContext;
use crate::metrics::{CacheExportResult, Metrics};
use crate::redact::SecretMask;
use crate::registry::{ImageName, OperatorRepository};
use crate::request::BuildRequest;

/// The limit on the exports at the same time.
const CONCURRENT_EXPORTS_MAX: usize = 2;

/// The limit on the images that have an export running or waiting.
const IMAGES_MAX: usize = 16;

/// The limit on the bytes of the contexts that exports hold, in the spool, with the memory of their indexes
/// [`INDEX_WEIGHT`] times. Beyond it, exports are left out.
const HELD_BYTES_MAX: u64 = 512 << 20;

/// The number of bytes in the spool that count as much as a byte of an index in memory.
const INDEX_WEIGHT: u64 = 32;

/// The time for which a daemon is believed to have a cache that a build has left there. It may lose its disk.
const KNOWN_FOR: Duration = Duration::from_secs(600);

/// The time limit of one export.
const EXPORT_TIME_LIMIT: Duration = Duration::from_secs(600);

/// The longest wait for the registry's answer whether it has a cache, before a build.
const CACHE_LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

/// The limit on the remembered daemons that have an image's cache. Beyond it, all are forgotten.
const KNOWN_CACHES_MAX: usize = 10_000;

/// The longest name of a repository with its registry, and the longest tag, in bytes.
const NAME_AND_TAG_BYTES_MAX: (usize, usize) = (255, 128);

/// The exports of caches of this process. Clones share them.
#[derive(Clone, Default)]
pub struct CacheExports(Arc<SharedExports>);

struct SharedExports {
    permits: Semaphore,
    state: Mutex<ExportsState>,
    /// The bytes of the contexts that exports hold.
    held: Arc<AtomicU64>,
}

/// The bytes that an export holds. Dropping it frees them.
struct HeldBytes {
    held: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct ExportsState {
    /// The caches that are exported now, each with the build that is exported next.
    images: HashMap<String, Option<AdmittedSolve>>,
    /// The names of daemons and of the caches that they have, with the times at which builds left them there.
    known: HashMap<(String, String), Instant>,
}

impl Default for SharedExports {
    fn default() -> Self {
        Self {
            permits: Semaphore::new(CONCURRENT_EXPORTS_MAX),
            state: Mutex::default(),
            held: Arc::default(),
        }
    }
}

/// A successful solve whose cache is to be exported.
pub(crate) struct FinishedSolve {
    /// The full name of the cache in the registry.
    pub(super) cache: String,
    /// The daemon that has the cache.
    pub(super) daemon: Daemon,
    /// The solve.
    pub(super) options: SolveOptions,
    /// The services of its session, without files.
    pub(super) services: SessionServices,
    /// The files of its context, with the name under which shared keys are kept; `None` for a git context.
    pub(super) files: Option<(Arc<SourceContext>, String)>,
    /// The registries of the build.
    pub(super) manifests: Arc<dyn ManifestLookup>,
    /// The mask of the build's secrets, for the error of its export.
    pub(super) mask: SecretMask,
}

/// A finished solve that waits for its export, with what it holds.
struct AdmittedSolve {
    solve: FinishedSolve,
    _held: HeldBytes,
}

impl CacheExports {
    fn lock(&self) -> MutexGuard<'_, ExportsState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether a build of this process has left the cache on the daemon.
    fn is_known_to_have(&self, daemon: &Daemon, cache: &str) -> bool {
        let key = (daemon.address_for_messages().to_owned(), cache.to_owned());
        let known = self.lock().known.get(&key).copied();
        known.is_some_and(|at| at.elapsed() < KNOWN_FOR)
    }

    /// Records that a daemon has the cache.
    pub(super) fn record_known(&self, daemon: &Daemon, cache: &str) {
        let mut state = self.lock();
        if state.known.len() >= KNOWN_CACHES_MAX {
            state.known.clear();
        }
        let key = (daemon.address_for_messages().to_owned(), cache.to_owned());
        state.known.insert(key, Instant::now());
    }

    /// Reserves the bytes of a context of this weight; `None` if exports hold too many.
    fn try_hold(&self, bytes: u64) -> Option<HeldBytes> {
        let held = self.0.held.clone();
        let reserve = |before: u64| before.checked_add(bytes).filter(|after| *after <= HELD_BYTES_MAX);
        held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, reserve)
            .ok()?;
        Some(HeldBytes { held, bytes })
    }

    /// Returns the solve if its export may begin now. Otherwise it is the next one of its image, or is left out.
    fn admit(&self, solve: FinishedSolve, metrics: &Metrics) -> Option<AdmittedSolve> {
        let weight = solve.files.as_ref().map_or(0, |(context, _)| weight_of(context));
        let Some(held) = self.try_hold(weight) else {
            metrics.count_cache_export(CacheExportResult::Skipped);
            return None;
        };
        let cache = solve.cache.clone();
        let solve = AdmittedSolve { solve, _held: held };
        let mut state = self.lock();
        if let Some(next) = state.images.get_mut(&cache) {
            let replaced = next.replace(solve);
            drop(state);
            if replaced.is_some() {
                metrics.count_cache_export(CacheExportResult::Skipped);
            }
            return None;
        }
        if state.images.len() >= IMAGES_MAX {
            metrics.count_cache_export(CacheExportResult::Skipped);
            return None;
        }
        state.images.insert(cache, None);
        Some(solve)
    }
}

/// A guard of an image's place among those that have an export. Dropping it frees the place, which otherwise a panic
/// would keep for ever.
struct ImagePlace {
    exports: CacheExports,
    cache: String,
    is_freed: bool,
}

impl ImagePlace {
    fn new(exports: CacheExports, cache: String) -> Self {
        Self {
            exports,
            cache,
            is_freed: false,
        }
    }

    /// Returns the next solve of the image, whose export has ended; without one, frees the place.
    fn take_next_or_free_place(&mut self) -> Option<AdmittedSolve> {
        let mut state = self.exports.lock();
        let next = state.images.get_mut(&self.cache).and_then(Option::take);
        if next.is_none() {
            state.images.remove(&self.cache);
            self.is_freed = true;
        }
        next
    }
}

impl Drop for ImagePlace {
    fn drop(&mut self) {
        if !self.is_freed {
            let next = self.exports.lock().images.remove(&self.cache);
            drop(next);
        }
    }
}

impl Builder {
    /// Returns the full name of the cache of a part of a build in the operator's registry; `None` without the setting.
    pub(super) fn cache_name(&self, request: &BuildRequest, part: &SolvePart) -> Option<String> {
        let tenant = request.tenant().map(|tenant| tenant.name().as_str());
        let repository = self.settings.cache_repository.as_ref()?;
        cache_name(
            repository,
            tenant,
            &request.config.image.without_tag(),
            &part.platforms,
        )
    }

    /// Returns whether a build should import the cache: the daemon is not known to have it, and the registry has it.
    pub(super) async fn should_import_cache(
        &self,
        request: &BuildRequest,
        daemon: &Daemon,
        cache: &str,
    ) -> bool {
        if request.config.no_cache || self.cache_exports.is_known_to_have(daemon, cache) {
            return false;
        }
        let Some((_, tag)) = cache.rsplit_once(':') else {
            return false;
        };
        let registries = self.manifests_for(request);
        let asking = registries.has_manifest(cache, tag);
        match tokio::time::timeout(CACHE_LOOKUP_TIMEOUT, asking).await {
            Ok(Ok(is_there)) => is_there,
            Ok(Err(error)) => {
                tracing::warn!(cache, error = %ErrorChain(&*error), "could not ask the registry for a cache");
                false
            }
            Err(_) => {
                tracing::warn!(cache, "the registry did not say in time whether it has a cache");
                false
            }
        }
    }

    /// Returns what is needed to export the cache of a job once it has succeeded.
    pub(super) fn finished_solve(
        &self,
        connection: &Connection,
        job: &BuildJob,
        request: &BuildRequest,
        context: &JobBuildContext,
        call: &BuilderCall<'_>,
        cache: String,
    ) -> FinishedSolve {
        FinishedSolve {
            daemon: connection.daemon().clone(),
            options: job.solve.clone(),
            services: self.session_services_without_files(request, call, Some(cache.clone())),
            files: match context {
                JobBuildContext::Files(context) => Some((context.files.clone(), shared_key_image(request))),
                JobBuildContext::Git { .. } => None,
            },
            manifests: job.manifests.clone(),
            mask: call.secrets.mask().clone(),
            cache,
        }
    }

    /// Exports the caches of finished solves in the background. A shutdown ends the exports.
    pub(crate) fn export_caches_in_background(&self, solves: Vec<FinishedSolve>, shutdown: &Shutdown) {
        for solve in solves {
            let Some(first) = self.cache_exports.admit(solve, &self.metrics) else {
                continue;
            };
            let (builder, shutdown) = (self.clone(), shutdown.clone());
            tokio::spawn(async move {
                let mut place = ImagePlace::new(builder.cache_exports.clone(), first.solve.cache.clone());
                let mut next = Some(first);
                while let Some(solve) = next {
                    let result = tokio::select! {
                        biased;
                        _ = shutdown.wait_until_begun() => CacheExportResult::Skipped,
                        result = builder.export_cache(solve) => result,
                    };
                    builder.metrics.count_cache_export(result);
                    next = place.take_next_or_free_place();
                }
            });
        }
    }

    /// Waits for its turn, and exports the cache of a finished solve.
    async fn export_cache(&self, admitted: AdmittedSolve) -> CacheExportResult {
        let AdmittedSolve { solve, _held } = admitted;
        let (cache, mask) = (solve.cache.clone(), solve.mask.clone());
        let Ok(_permit) = self.cache_exports.0.permits.acquire().await else {
            return CacheExportResult::Skipped;
        };
        let exporting = Box::pin(self.solve_for_export(solve));
        let error = match tokio::time::timeout(EXPORT_TIME_LIMIT, exporting).await {
            Ok(Ok(())) => {
                tracing::info!(cache, "exported a cache to the registry");
                return CacheExportResult::Exported;
            }
            Ok(Err(error)) => error,
            Err(_) => format!("it took longer than {EXPORT_TIME_LIMIT:?}"),
        };
        let error = mask.mask_text(&error);
        tracing::warn!(cache, %error, "could not export a cache to the registry");
        CacheExportResult::Failed
    }

    async fn solve_for_export(&self, solve: FinishedSolve) -> Result<(), String> {
        let FinishedSolve {
            cache,
            daemon,
            options,
            services,
            files,
            manifests,
            mask: _,
        } = solve;
        let (services, shared_key) = match files {
            Some((files, image)) => {
                let (keys, context) = (self.keys.clone(), files.clone());
                let leasing =
                    tokio::task::spawn_blocking(move || keys.lease_for_image_blocking(&image, &context));
                let lease: Arc<KeyLease> = leasing.await.map(Arc::new).map_err(|error| error.to_string())?;
                (services.with_files(files, lease.clone()), lease)
            }
            None => (services, Arc::new(self.keys.lease_single_use())),
        };
        let job = BuildJob {
            services,
            shared_key,
            solve: export_options(options, cache),
            first_attempt: 1,
            manifests,
            timeouts: self.timeouts,
        };
        let connection = daemon
            .connect()
            .await
            .map_err(|error| ErrorChain(&error).to_string())?;
        let has_step_run = Notify::new();
        let exporting = job.run_to_outcome(&connection, |event| {
            if is_end_of_instruction_that_ran(&event) {
                has_step_run.notify_one();
            }
        });
        tokio::select! {
            exported = exporting => exported.map(drop).map_err(|error| ErrorChain(&error).to_string()),
            () = has_step_run.notified() => {
                Err("a step ran again, because its inputs have changed since the build".to_owned())
            }
        }
    }
}

/// Returns the weight of a context: its bytes in the spool, and those of its index [`INDEX_WEIGHT`] times.
fn weight_of(context: &SourceContext) -> u64 {
    let index = u64::try_from(context.index_memory_bytes()).unwrap_or(u64::MAX);
    context
        .spool()
        .len()
        .saturating_add(index.saturating_mul(INDEX_WEIGHT))
}

/// Returns whether a `RUN` instruction has run: its result was not in the cache, so the export is a second build.
fn is_end_of_instruction_that_ran(event: &BuildEvent) -> bool {
    matches!(event, BuildEvent::StepEnded { cached: false, name, .. } if name.contains("] RUN "))
}

/// Returns the options of the solve that exports the cache of a finished one, and nothing else.
fn export_options(finished: SolveOptions, cache: String) -> SolveOptions {
    SolveOptions {
        reference: BuildReference::random(),
        attributes: None,
        names: Vec::new(),
        push: false,
        exports_only_cache: true,
        // What the build has just made is to be found.
        no_cache: false,
        cache_to: vec![CacheExport {
            name: cache,
            max: true,
            ignore_error: false,
        }],
        provenance: None,
        sbom_generator: None,
        sealed_secrets: None,
        ..finished
    }
}

/// Returns the full name of the cache of an image, which has no tag, for these platforms; `None` if it is too long.
///
/// It depends on the tenant, the image and the platforms only. Builds for other platforms have a cache of their own: an
/// export replaces the one before.
fn cache_name(
    repository: &OperatorRepository,
    tenant: Option<&str>,
    image: &str,
    platforms: &[String],
) -> Option<String> {
    let (registry, path) = image.split_once('/')?;
    // Part of the path, where a port or an IPv6 address may not be.
    let registry: Vec<_> = registry
        .split(|character: char| !character.is_ascii_alphanumeric() && character != '.')
        .filter(|part| !part.is_empty())
        .collect();
    let own = repository.of_tenant(tenant)?;
    let name = format!("{own}/{}/{path}", registry.join("-").to_ascii_lowercase());
    let platforms: String = platforms
        .iter()
        .map(|platform| format!("-{}", platform.replace('/', "-")))
        .collect();
    let tag = format!("cache{platforms}");
    let (name_max, tag_max) = NAME_AND_TAG_BYTES_MAX;
    let is_usable =
        ImageName::parse_with_registry(&name).is_some() && name.len() <= name_max && tag.len() <= tag_max;
    is_usable.then(|| format!("{name}:{tag}"))
}

impl fmt::Debug for CacheExports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheExports").finish_non_exhaustive()
    }
}

impl fmt::Debug for FinishedSolve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FinishedSolve").field(&self.cache).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_that_panics_frees_the_place_of_its_image() {
        let exports = CacheExports::default();
        exports.lock().images.insert("r.example/cache".to_owned(), None);
        let place = ImagePlace::new(exports.clone(), "r.example/cache".to_owned());
        let export = std::panic::AssertUnwindSafe(move || {
            let _place = place;
            panic!("an export fails");
        });
        assert!(std::panic::catch_unwind(export).is_err());
        assert!(exports.lock().images.is_empty());
    }

    #[test]
    fn a_caches_name_depends_on_the_tenant_the_image_and_the_platforms_only() {
        let repository = OperatorRepository::parse("r.example/caches").expect("a repository");
        let name = |tenant, image: &str, platforms: &[&str]| {
            let platforms: Vec<_> = platforms.iter().map(ToString::to_string).collect();
            cache_name(&repository, tenant, image, &platforms)
        };
        for (tenant, image, platforms, expected) in [
            (
                None,
                "docker.io/library/app",
                &[][..],
                "r.example/caches/docker.io/library/app:cache",
            ),
            (
                None,
                "10.0.0.1:5000/app",
                &[],
                "r.example/caches/10.0.0.1-5000/app:cache",
            ),
            (None, "[::1]:5000/app", &[], "r.example/caches/1-5000/app:cache"),
            (
                Some("acme"),
                "r.example/app",
                &[],
                "r.example/caches/acme/r.example/app:cache",
            ),
            (
                Some("acme"),
                "r.example/app",
                &["linux/amd64", "linux/arm64"],
                "r.example/caches/acme/r.example/app:cache-linux-amd64-linux-arm64",
            ),
        ] {
            assert_eq!(name(tenant, image, platforms).as_deref(), Some(expected));
        }
        assert_eq!(name(None, &format!("r.example/{}", "x".repeat(240)), &[]), None);
        assert_eq!(name(None, "r.example/app", &["linux/amd64"; 20]), None);
    }
}
