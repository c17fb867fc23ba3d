//! One build on a daemon: its calls of Session, Solve and Status, which end together.
//!
//! A call can be delivered again, while its build runs or after it. The reference of the build shows it: for a second
//! delivery the daemon reports that the reference exists, and the second delivery follows the first one's build, or
//! reads its outcome from the daemon's history. A build that failed, or whose image has left its registry, is built
//! again under the next reference, because the daemon returns the log of a reference's first build to everyone that
//! asks for the reference.

use std::error::Error as StdError;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::SolveRequest;
use function_host::http::HeaderMap;
use function_host::{ErrorChain, trace};
use futures_util::StreamExt;
use tonic::metadata::MetadataMap;
use tonic::{Code, Extensions, Request, Status};

use super::outcome::{BuiltImageDigestCommitAndTimes, SolveOutcome};
use super::session::{Session, SessionServices};
use super::shared_key::KeyLease;
use super::status::{self, BuildEvent, EventReader, StatusResponseStream};
use super::{BuildFailure, BuildReference, Connection, FaultyParty, ManifestLookup, SolveOptions, history};

/// The largest number of references that are tried for one call. Each solve that failed takes one, so each retry and
/// each further delivery needs one more.
pub(super) const ATTEMPT_REFERENCES_OF_CALL_MAX: u32 = 16;

/// The timeouts for the remaining events of a build whose solve has ended.
#[derive(Clone, Copy, Debug)]
pub struct TimeoutsForLastEvents {
    /// The longest wait between two events of an ended build; the rest of its log should come at once.
    pub idle: Duration,
    /// The longest wait for all events of an ended build, and for the outcome of a build that another delivery began.
    pub total: Duration,
}

impl Default for TimeoutsForLastEvents {
    /// Returns timeouts of 5 s between two events and 30 s in total.
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(5),
            total: Duration::from_secs(30),
        }
    }
}

/// A description of a build that has not begun, with everything that it needs.
#[derive(Debug)]
pub struct BuildJob {
    /// The session's services, which answer the daemon while it builds.
    pub services: SessionServices,
    /// The shared key under which the daemon keeps transferred folders. Another build may use it once this one has
    /// ended.
    pub shared_key: Arc<KeyLease>,
    /// The description of the build for the daemon.
    pub solve: SolveOptions,
    /// The number of the first attempt, from 1, that this daemon may have or may begin. Earlier ones failed at other
    /// daemons.
    pub first_attempt: u32,
    /// The registries, which are asked whether they still have the image of an earlier delivery.
    pub manifests: Arc<dyn ManifestLookup>,
    /// The timeouts for the last events of the build.
    pub timeouts: TimeoutsForLastEvents,
}

/// The reason why a job did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// BuildKit reported that the build failed.
    #[error(transparent)]
    Failed(BuildFailure),
    /// BuildKit shut down, the connection to it broke, or the outcome of the build is not known.
    #[error("BuildKit was lost during the build")]
    Lost(#[source] Box<dyn StdError + Send + Sync>),
    /// Another call builds or has built the same signed request, which only one call may build.
    #[error("this signed request was already built as call {call_id}")]
    AlreadyBuilt {
        /// The id of the call that builds or has built the signed request.
        call_id: String,
    },
    /// The builds under all 16 references that a call may use have failed, were cancelled, or have lost their image.
    #[error(
        "{ATTEMPT_REFERENCES_OF_CALL_MAX} builds of this call have failed, were cancelled or have lost their image"
    )]
    AttemptsUsedUp,
}

/// The build that an earlier delivery of a call may have run.
#[derive(Clone, Copy, Debug)]
pub struct EarlierBuildReferenceAndCall<'a> {
    /// The reference of the build.
    pub reference: &'a BuildReference,
    /// The number of the first attempt that the daemon may have.
    pub first_attempt: u32,
    /// The ID of the call.
    pub call_id: &'a str,
}

/// Looks for the image that an earlier delivery of a call has built, and passes the events of its build to `sink`.
/// Returns `None` if the daemon knows of none.
///
/// # Errors
/// Fails if the reference is that of a signature which only one call may build, and another call has built it.
pub async fn find_built_image(
    connection: &Connection,
    earlier: EarlierBuildReferenceAndCall<'_>,
    timeouts: TimeoutsForLastEvents,
    mut sink: impl FnMut(BuildEvent),
) -> Result<Option<BuiltImageDigestCommitAndTimes>, JobError> {
    let EarlierBuildReferenceAndCall {
        reference,
        first_attempt,
        call_id,
    } = earlier;
    for attempt in first_attempt..=ATTEMPT_REFERENCES_OF_CALL_MAX {
        let name = reference.attempt_name(attempt);
        let Some(finished) = history::request_finished_build(connection, &name).await else {
            break;
        };
        if let Some(found) = &finished.call_id {
            reject_other_call_of_signature(reference, call_id, found)?;
        }
        match finished.outcome {
            SolveOutcome::Failed(_) => {}
            SolveOutcome::Succeeded(image) => {
                let responses = status::open_build_status_stream(connection, name);
                pass_remaining_events(responses, timeouts, &mut EventReader::default(), &mut sink).await;
                return Ok(Some(image));
            }
        }
    }
    Ok(None)
}

/// Checks that the call of an existing build, `found_call_id`, is the call `own_call_id`, if only one call may build
/// the signature that `reference` stands for.
fn reject_other_call_of_signature(
    reference: &BuildReference,
    own_call_id: &str,
    found_call_id: &str,
) -> Result<(), JobError> {
    match reference.is_for_signature_alone() && own_call_id != found_call_id {
        true => Err(JobError::AlreadyBuilt {
            call_id: found_call_id.to_owned(),
        }),
        false => Ok(()),
    }
}

impl BuildJob {
    /// Runs the build, or follows the one that an earlier delivery began, and passes every event to `sink`, also those
    /// of a build that fails. If an earlier delivery has built the image, returns that image.
    ///
    /// Dropping the future cancels the build: the daemon sees its streams reset and stops.
    ///
    /// # Errors
    /// Fails if the build fails, the daemon is lost, or another call has built the same signed request.
    pub async fn run_to_outcome(
        mut self,
        connection: &Connection,
        mut sink: impl FnMut(BuildEvent),
    ) -> Result<BuiltImageDigestCommitAndTimes, JobError> {
        let result = self.attempt_until_outcome(connection, &mut sink).await;
        match &result {
            Ok(_) => self.shared_key.return_to_pool_if_all_transfers_completed(),
            Err(JobError::Failed(failure)) if failure.fault == FaultyParty::Caller => {
                self.shared_key.return_to_pool_if_all_transfers_completed()
            }
            // It is not certain which files of the context the daemon has.
            Err(_) => {}
        }
        result
    }

    /// Goes through the references of the call: skips those whose builds failed or whose image is gone, returns an
    /// image that was built before, and otherwise attempts the build under the reference.
    ///
    /// The number of the attempt is another one than that of its reference: a daemon that was killed has no record of
    /// the attempt, whose reference is used again.
    async fn attempt_until_outcome(
        &mut self,
        connection: &Connection,
        sink: &mut impl FnMut(BuildEvent),
    ) -> Result<BuiltImageDigestCommitAndTimes, JobError> {
        let mut reader = EventReader::default();
        let attributes = self.solve.attributes.as_ref();
        let mut number = attributes.and_then(|attributes| attributes.attempt).unwrap_or(1);
        for attempt in self.first_attempt..=ATTEMPT_REFERENCES_OF_CALL_MAX {
            let reference = self.solve.reference.attempt_name(attempt);
            let finished = history::request_finished_build(connection, &reference).await;
            if let Some(call_id) = finished.as_ref().and_then(|finished| finished.call_id.as_ref()) {
                self.reject_other_call_of_signature(call_id)?;
            }
            number = number.max(attempt);
            if let Some(finished) = &finished {
                number = number.max(finished.attempt.unwrap_or(attempt).saturating_add(1));
            }
            match finished.map(|finished| finished.outcome) {
                None => {}
                Some(SolveOutcome::Failed(_)) => continue,
                Some(SolveOutcome::Succeeded(image))
                    if self.is_image_certainly_gone_from_registry(&image, sink).await =>
                {
                    continue;
                }
                Some(SolveOutcome::Succeeded(image)) => {
                    tracing::info!(
                        reference,
                        "an earlier delivery of this call has built the image already"
                    );
                    let responses = status::open_build_status_stream(connection, reference);
                    pass_remaining_events(responses, self.timeouts, &mut reader, sink).await;
                    return Ok(image);
                }
            }
            reader.forget_failures();
            if let Some(attributes) = &mut self.solve.attributes {
                attributes.attempt = Some(number);
            }
            if let Some(image) = self
                .attempt_or_follow_solve(connection, &reference, &mut reader, sink)
                .await?
            {
                return Ok(image);
            }
            // The build was followed, and cancelled.
            let followed = history::request_finished_build(connection, &reference).await;
            let followed = followed.and_then(|followed| followed.attempt);
            number = number.max(followed.unwrap_or(attempt)).saturating_add(1);
        }
        Err(JobError::AttemptsUsedUp)
    }

    /// Asks the registry whether the pushed image of an earlier delivery has been removed. If the registry gives no
    /// answer, passes a warning to `sink` and returns `false`.
    async fn is_image_certainly_gone_from_registry(
        &self,
        image: &BuiltImageDigestCommitAndTimes,
        sink: &mut impl FnMut(BuildEvent),
    ) -> bool {
        let (Some(digest), Some(name), true) = (&image.digest, self.solve.names.first(), self.solve.push)
        else {
            return false;
        };
        match self.manifests.has_manifest(name, digest).await {
            Ok(true) => false,
            Ok(false) => {
                tracing::info!(
                    name,
                    digest,
                    "the registry has no longer the image of an earlier delivery"
                );
                true
            }
            Err(error) => {
                let error = ErrorChain(&*error);
                tracing::warn!(name, digest, %error, "could not check that the registry still has an image");
                sink(BuildEvent::Unsure {
                    text: format!(
                        "this call was built before, and whether the registry still has {name} with {digest} could not be \
                         checked: {error}"
                    ),
                });
                false
            }
        }
    }

    /// Checks that `call_id`, the call of an existing build with this job's reference, is the call of this job.
    /// Succeeds unless the reference is derived from a signature alone: no two calls share another one.
    fn reject_other_call_of_signature(&self, call_id: &str) -> Result<(), JobError> {
        match &self.solve.attributes {
            Some(attributes) => {
                reject_other_call_of_signature(&self.solve.reference, &attributes.call_id, call_id)
            }
            None => Ok(()),
        }
    }

    /// Attempts the build under one reference, or follows the build that runs under it already. Returns `None` if the
    /// followed build was cancelled.
    async fn attempt_or_follow_solve(
        &self,
        connection: &Connection,
        reference: &str,
        reader: &mut EventReader,
        sink: &mut impl FnMut(BuildEvent),
    ) -> Result<Option<BuiltImageDigestCommitAndTimes>, JobError> {
        let mut responses = status::open_build_status_stream(connection, reference.to_owned());
        let session = Session::new(
            self.shared_key.leased_or_new_key_for_session(),
            self.services.clone(),
        );
        let mut request = self.solve.to_request(reference, session.id());
        if self.services.checks_sources() {
            request.source_policy_session = session.id().to_owned();
        }
        let request = with_trace_context(request);
        let mut control = connection.control_client();
        let mut solving = pin!(async move { control.solve(request).await });
        let mut session = Box::pin(session.open_and_serve(connection));

        let mut following = true;
        let mut has_begun = false;
        let solved = loop {
            tokio::select! {
                biased;
                solved = &mut solving => break solved,
                Err(error) = &mut session => return Err(JobError::Lost(error.into())),
                response = responses.next(), if following => match response {
                    Some(Ok(response)) => {
                        has_begun = true;
                        reader.read_new_events(response).into_iter().for_each(&mut *sink);
                    }
                    // A busy daemon may not have begun the build within the time that it waits for it.
                    Some(Err(status)) if !has_begun && status.code() == Code::NotFound => {
                        responses = status::open_build_status_stream_after_pause(connection, reference.to_owned());
                    }
                    Some(Err(status)) => return Err(JobError::Lost(status.into())),
                    None => following = false,
                },
            }
        };
        drop(session);
        let outcome = match solved {
            Err(status) if is_already_running_error(&status, reference) => {
                if self.solve.reference.is_for_signature_alone()
                    && let Some(call_id) =
                        history::wait_for_call_id_up_to_5_seconds(connection, reference).await
                {
                    self.reject_other_call_of_signature(&call_id)?;
                }
                tracing::info!(
                    reference,
                    "following the build of an earlier delivery of this call"
                );
                while let Some(response) = responses.next().await {
                    let response = response.map_err(|status| JobError::Lost(status.into()))?;
                    reader.read_new_events(response).into_iter().for_each(&mut *sink);
                }
                history::wait_for_outcome(connection, reference, self.timeouts.total).await
            }
            solved => {
                if following {
                    pass_remaining_events(responses, self.timeouts, reader, sink).await;
                }
                match solved {
                    Ok(response) => Some(SolveOutcome::Succeeded(BuiltImageDigestCommitAndTimes {
                        digest: response
                            .into_inner()
                            .exporter_response
                            .remove("containerimage.digest"),
                        commit: self
                            .solve
                            .attributes
                            .as_ref()
                            .and_then(|attributes| attributes.commit.clone()),
                        completed_at: None,
                        submitted_at: None,
                    })),
                    Err(status) if is_connection_loss(&status) => return Err(JobError::Lost(status.into())),
                    Err(status) => Some(SolveOutcome::Failed(status)),
                }
            }
        };
        match outcome {
            Some(SolveOutcome::Succeeded(image)) => Ok(Some(image)),
            Some(SolveOutcome::Failed(status)) if status.code() == Code::Cancelled => Ok(None),
            Some(SolveOutcome::Failed(status)) => Err(JobError::Failed(
                match self.services.denial_that_error_is_about(status.message()) {
                    Some(denial) => BuildFailure::denied(&denial),
                    None => BuildFailure::new(&status, reader),
                },
            )),
            None => Err(JobError::Lost(
                "BuildKit did not record the outcome of the build in time".into(),
            )),
        }
    }
}

/// Adds the current trace context to a solve request. The daemon continues it: BuildKit `cmd/buildkitd/main.go`
/// (`propagators`).
fn with_trace_context(request: SolveRequest) -> Request<SolveRequest> {
    let mut headers = HeaderMap::new();
    trace::inject_trace_headers(&mut headers);
    Request::from_parts(MetadataMap::from_headers(headers), Extensions::default(), request)
}

/// Passes the remaining events of an ended build to `sink`. Events after the timeout are dropped, and do not fail the
/// build.
async fn pass_remaining_events(
    mut responses: StatusResponseStream,
    timeouts: TimeoutsForLastEvents,
    reader: &mut EventReader,
    sink: &mut impl FnMut(BuildEvent),
) {
    let rest = async {
        while let Ok(Some(Ok(response))) = tokio::time::timeout(timeouts.idle, responses.next()).await {
            reader.read_new_events(response).into_iter().for_each(&mut *sink);
        }
    };
    if tokio::time::timeout(timeouts.total, rest).await.is_err() {
        tracing::warn!(
            limit = ?timeouts.total,
            "cut the build's log off, which went on after the build had ended"
        );
    }
}

/// Returns whether a gRPC status means that the connection broke or the daemon shuts down.
pub(super) fn is_connection_loss(status: &Status) -> bool {
    status.source().is_some() || matches!(status.code(), Code::Unavailable | Code::Cancelled)
}

/// Returns whether the daemon rejected a second build of `reference` while one runs: BuildKit `solver/jobs.go`. The
/// error has no code.
fn is_already_running_error(status: &Status, reference: &str) -> bool {
    status.message().ends_with(&format!("job ID {reference} exists"))
}
