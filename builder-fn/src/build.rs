//! One build, from a verified request to its end: image, push, deployment.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use function_host::{ErrorChain, Shutdown, trace};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::buildkit::{
    BuiltImage, CacheExport, CredentialStore, Daemon, EventTimeouts, Job, KeyLease, SOURCE_DATE_EPOCH,
    Services, SharedKeys, Solve,
};
use crate::chain::{Chain, Deployment, Ending, HandOver, Link};
use crate::compression::Compression;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::places::Places;
use crate::report::{Lines, Sink};
use crate::request::{BuildRequest, CacheTo, Frontend, Provenance};
use crate::sealed::BuildSecrets;
use crate::trace::{Cover, Steps};

/// What is left of a call's or the process's time when a build is ended for it: enough for an answer.
const TO_ANSWER: Duration = Duration::from_secs(2);

/// Turns requests into images.
#[derive(Clone, Debug)]
pub struct Builder {
    /// Where builds run.
    pub daemon: Daemon,
    /// Credentials for registries.
    pub credentials: Arc<dyn CredentialStore>,
    /// Whether registries speak plain HTTP.
    pub insecure: bool,
    /// The image that lists what is in an image. Without one, no such list can be asked for.
    pub sbom_generator: Option<String>,
    /// How layers are compressed, where a build does not say it.
    pub compression: Compression,
    /// What the daemon keeps transferred folders under.
    pub keys: SharedKeys,
    /// How to have images deployed.
    pub chain: Chain,
    /// How long to wait for what is not the build itself.
    pub timeouts: EventTimeouts,
    /// How many builds run at a time.
    pub places: Places,
    /// What can be seen of them.
    pub metrics: Metrics,
}

/// The circumstances of one build.
#[derive(Debug)]
pub struct Call<'a> {
    /// `X-Call-Id`.
    pub id: &'a str,
    /// What the build is called at the daemon: see [`reference`].
    pub reference: String,
    /// When the call will be ended.
    pub deadline: Option<Instant>,
    /// When the process will be.
    pub shutdown: &'a Shutdown,
    /// What steps of the build may ask for.
    pub secrets: BuildSecrets,
}

/// What came of a build.
#[derive(Clone, Debug, PartialEq)]
pub struct Built {
    /// `sha256:…`.
    pub digest: Option<String>,
    /// What came of the deployment, where one was asked for.
    pub deployment: Option<Deployment>,
}

impl Builder {
    /// Builds, pushes and deploys what `request` asks for. Everything that is to be told about it goes to `log`, also
    /// when it fails.
    ///
    /// Dropping the future ends the build at the daemon too.
    ///
    /// # Errors
    /// When there is no image in the end. A deployment that fails is no error: the image is there.
    pub async fn build(
        &self,
        request: &BuildRequest,
        call: &Call<'_>,
        log: &mut dyn Sink,
    ) -> Result<Built, Error> {
        let config = &request.config;
        for warning in &request.warnings {
            log.push(Lines::warning(warning));
        }
        if config.sbom && self.sbom_generator.is_none() {
            return Err(Error::NoSbomGenerator);
        }
        let link = match &config.deploy {
            Some(deploy) => Some((self.chain.link()?, deploy)),
            None => None,
        };
        let arrived = Instant::now();
        let waiting = trace::span("queue");
        let taken = tokio::select! {
            place = self.places.take() => place.map_err(Error::from),
            () = interruption(call.shutdown) => Err(Error::Interrupted),
        };
        if let Err(error) = &taken {
            waiting.mark_failed(error);
        }
        drop(waiting);
        let _place = taken?;
        self.metrics.waited(arrived.elapsed());
        let solved = self.solve(request, call, log).await?;
        let deployment = match link {
            Some((link, deploy)) => {
                let digest = solved.digest.as_deref().ok_or(Error::NoDigest)?;
                let image = config.image.with_digest(digest);
                let hand_over = HandOver {
                    image: &image,
                    tag: &config.image.to_string(),
                    call_id: call.id,
                    // When a call is delivered again, its image is no newer for that.
                    built_at: solved.completed_at.unwrap_or_else(SystemTime::now),
                    deploy,
                    probe: config.probe.as_ref(),
                };
                Some(hand_over_to(&link, &hand_over, call, log).await)
            }
            None => None,
        };
        Ok(Built {
            digest: solved.digest,
            deployment,
        })
    }

    /// Runs the build, for as long as it may.
    async fn solve(
        &self,
        request: &BuildRequest,
        call: &Call<'_>,
        log: &mut dyn Sink,
    ) -> Result<BuiltImage, Error> {
        let limit = limit(request.config.timeout, call.deadline);
        let mut lines = Lines::masked(call.secrets.mask().clone());
        let steps = self.metrics.steps();
        let span = trace::client_span("solve");
        let cover = match span.is_recording() {
            true => Cover::new(call.secrets.mask().clone(), &request.config.build_args),
            false => Cover::default(),
        };
        let mut told = Steps::new(&span, &cover);
        let building = span.run(async {
            let connection = self.daemon.connect().await?;
            let job = self.job(request, call);
            let tell = |event| {
                steps.note(&event);
                told.note(&event);
                lines.of(event).into_iter().for_each(|line| log.push(line));
            };
            Ok(job.run(&connection, tell).await?)
        });
        let result = tokio::select! {
            result = building => result,
            limit = expiry(limit) => Err(Error::TimeLimit { limit }),
            () = interruption(call.shutdown) => Err(Error::Interrupted),
        };
        lines.rest().into_iter().for_each(|line| log.push(line));
        if let Err(error) = &result {
            span.mark_failed(cover.text(&ErrorChain(error).to_string()));
        }
        result
    }

    /// A shared key for the transfer of the context.
    ///
    /// Whoever pins the times in the image wants it to be the same whatever was built before. A folder that the daemon has from
    /// an earlier transfer, and in which a file has changed, has the time of that change: so those builds begin with none.
    fn lease(&self, request: &BuildRequest) -> Arc<KeyLease> {
        let config = &request.config;
        Arc::new(match config.build_args.contains_key(SOURCE_DATE_EPOCH) {
            true => self.keys.lease_single_use(),
            false => self.keys.lease(&config.image.name(), &request.context),
        })
    }

    fn job(&self, request: &BuildRequest, call: &Call<'_>) -> Job {
        let lease = self.lease(request);
        let services = Services::new()
            .with_health()
            .with_files(request.context.clone(), lease.clone())
            .with_credentials(self.credentials.clone())
            .with_secrets(Arc::new(call.secrets.clone()));
        let config = &request.config;
        let solve = Solve {
            reference: call.reference.clone(),
            names: [&config.image]
                .into_iter()
                .chain(&config.tags)
                .map(ToString::to_string)
                .collect(),
            push: !config.skip_push,
            insecure: self.insecure,
            dockerfile: config.dockerfile.clone(),
            target: config.target.clone(),
            build_args: config.build_args.clone(),
            labels: config.labels.clone(),
            platforms: config.platforms.clone(),
            no_cache: config.no_cache,
            cache_from: config.cache_from.iter().map(ToString::to_string).collect(),
            cache_to: config.cache_to.iter().map(cache_export).collect(),
            named_frontend: request.frontend == Frontend::Named,
            provenance: config.provenance.map(|provenance| match provenance {
                Provenance::Min => "min",
                Provenance::Max => "max",
            }),
            sbom_generator: self.sbom_generator.clone().filter(|_| config.sbom),
            compression: config.compression.unwrap_or(self.compression),
        };
        Job {
            services,
            shared_key: lease,
            solve,
            timeouts: self.timeouts,
        }
    }
}

fn cache_export(cache: &CacheTo) -> CacheExport {
    CacheExport {
        name: cache.image.to_string(),
        max: cache.max,
        ignore_error: cache.ignore_error,
    }
}

/// What a build is called at the daemon, which refuses to run two of the same name at a time.
///
/// The same call delivered twice has the same name. The signature is part of it, so that a call id that was chosen
/// badly, or by somebody else, never leads to the build of another body. Without a signature every build has its own.
pub fn reference(call_id: &str, signature: Option<&str>) -> String {
    let Some(signature) = signature else {
        return uuid::Uuid::new_v4().simple().to_string();
    };
    let mut hash = Sha256::new();
    hash.update(call_id);
    hash.update([0]);
    hash.update(signature);
    hex::encode(&hash.finalize()[..16])
}

/// The sooner of what the request allows and what the call leaves.
fn limit(asked: Option<Duration>, deadline: Option<Instant>) -> Option<Duration> {
    let left = deadline.map(|deadline| {
        deadline
            .saturating_duration_since(Instant::now())
            .saturating_sub(TO_ANSWER)
    });
    match (asked, left) {
        (Some(asked), Some(left)) => Some(asked.min(left)),
        (asked, left) => asked.or(left),
    }
}

/// Ends when `limit` is over; never without one.
async fn expiry(limit: Option<Duration>) -> Duration {
    match limit {
        Some(limit) => {
            tokio::time::sleep(limit).await;
            limit
        }
        None => std::future::pending().await,
    }
}

/// Ends shortly before the process does.
async fn interruption(shutdown: &Shutdown) {
    let end = shutdown.wait().await;
    tokio::time::sleep_until(end.checked_sub(TO_ANSWER).unwrap_or(end)).await;
}

/// Deploys, and says so in the log: a deployment takes its time too.
async fn hand_over_to(
    link: &Link<'_>,
    hand_over: &HandOver<'_>,
    call: &Call<'_>,
    log: &mut dyn Sink,
) -> Deployment {
    let function = hand_over.deploy.get("service").and_then(|name| name.as_str());
    let step = format!("[deploy] {}", function.unwrap_or_default());
    let begun = Instant::now();
    log.push(Lines::begin(&step));
    let span = trace::span("deploy");
    span.set("slipway.function", function.unwrap_or_default().to_owned());
    let deployment = tokio::select! {
        deployment = span.run(link.hand_over(hand_over)) => deployment,
        _ = expiry(limit(None, call.deadline)) => Deployment::failed(
            "the call's time was over before the deployment's outcome was known".into(),
        ),
        () = interruption(call.shutdown) => Deployment::failed(
            "the builder is shutting down, and the deployment's outcome was not known yet".into(),
        ),
    };
    log.push(Lines::end(&step, begun.elapsed()));
    if matches!(deployment.ending, Ending::Refused | Ending::Failed) {
        span.mark_failed(deployment.reason());
    }
    deployment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_is_delivered_twice_is_called_the_same() {
        assert_eq!(
            reference("id", Some("sha256=12")),
            reference("id", Some("sha256=12"))
        );
        assert_ne!(
            reference("id", Some("sha256=12")),
            reference("id", Some("sha256=13")),
            "another body"
        );
        assert_ne!(
            reference("id", Some("sha256=12")),
            reference("di", Some("sha256=12")),
            "another call"
        );
        assert_ne!(
            reference("id", None),
            reference("id", None),
            "nothing says that it is the same body"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_sooner_limit_holds() {
        let seconds = Duration::from_secs;
        let deadline = Some(Instant::now() + seconds(62));

        assert_eq!(limit(None, None), None);
        assert_eq!(limit(Some(seconds(5)), None), Some(seconds(5)));
        assert_eq!(limit(None, deadline), Some(seconds(60)));
        assert_eq!(limit(Some(seconds(5)), deadline), Some(seconds(5)));
        assert_eq!(limit(Some(seconds(500)), deadline), Some(seconds(60)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_build_is_interrupted_in_time_for_an_answer() {
        let (trigger, shutdown) = Shutdown::new();
        trigger.begin(Instant::now() + Duration::from_secs(30));
        let begun = Instant::now();

        interruption(&shutdown).await;

        assert_eq!(begun.elapsed(), Duration::from_secs(28));
    }
}
