//! One build on a daemon: Session, Solve and Status as a group that ends together.
//!
//! A call can be delivered again, while its build runs or after it. The build's name at the daemon says so: a second
//! delivery meets "exists" and follows the first one's build, or finds its outcome in the daemon's history. A build
//! that failed is built again, under the next name, because the daemon shows the log of the first build of a name to
//! whoever asks for that name.

use std::error::Error as StdError;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bollard_buildkit_proto::moby::buildkit::v1::SolveRequest;
use function_host::http::HeaderMap;
use function_host::trace;
use futures_util::StreamExt;
use tonic::metadata::MetadataMap;
use tonic::{Code, Extensions, Request, Status};

use super::failure::FailedSteps;
use super::history::{self, Past};
use super::session::{Lease, Services, Session};
use super::status::{self, Event, Events};
use super::{Connection, Failure, Fault, Solve};

/// Builds of one call. Each delivery of a call whose builds have failed so far is one more.
const ATTEMPTS: u32 = 16;

/// How long to wait for what is not the build itself.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Between two events once the solve is over: the rest of the log should come at once.
    pub quiet: Duration,
    /// For all events once the solve is over.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            quiet: Duration::from_secs(5),
            drain: Duration::from_secs(30),
        }
    }
}

/// One build, not yet begun.
#[derive(Debug)]
pub struct Job {
    /// Answer the daemon while it builds.
    pub services: Services,
    /// What the daemon keeps transferred folders under. Free for another build once this one has ended.
    pub shared_key: Arc<Lease>,
    /// What to build.
    pub solve: Solve,
    /// How long to wait for what.
    pub limits: Limits,
}

/// A build that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Solved {
    /// `sha256:…` of the image's manifest, or of its index where there are several platforms.
    pub digest: Option<String>,
    /// When it was done, of one that was found done already.
    pub completed_at: Option<SystemTime>,
}

/// A build that did not.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// BuildKit says that it failed.
    #[error(transparent)]
    Failed(Failure),
    /// BuildKit, or the connection to it, went away.
    #[error("BuildKit was lost during the build")]
    Lost(#[source] Box<dyn StdError + Send + Sync>),
}

impl Job {
    /// Builds, and gives every event to `sink` on the way, those of a failing build too.
    ///
    /// Dropping the future cancels the build: the daemon sees its streams reset and stops.
    ///
    /// # Errors
    /// When the build fails or the daemon is lost.
    pub async fn run(self, connection: &Connection, mut sink: impl FnMut(Event)) -> Result<Solved, JobError> {
        let result = self.attempts(connection, &mut sink).await;
        match &result {
            Ok(_) => self.shared_key.release(),
            Err(JobError::Failed(failure)) if failure.fault == Fault::Caller => self.shared_key.release(),
            // What the daemon has of the context is not certain.
            Err(_) => {}
        }
        result
    }

    async fn attempts(
        &self,
        connection: &Connection,
        sink: &mut impl FnMut(Event),
    ) -> Result<Solved, JobError> {
        for attempt in 1..=ATTEMPTS {
            let reference = match attempt {
                1 => self.solve.reference.clone(),
                _ => format!("{}-{attempt}", self.solve.reference),
            };
            match history::past(connection, &reference).await {
                None => {}
                Some(Past::Failed(_)) => continue,
                Some(Past::Succeeded(solved)) => {
                    tracing::info!(reference, "delivered before: its build has succeeded");
                    drain(status::follow(connection, reference), self.limits, sink).await;
                    return Ok(solved);
                }
            }
            if let Some(solved) = self.attempt(connection, &reference, sink).await? {
                return Ok(solved);
            }
        }
        Err(JobError::Lost(
            "every build of this call was cancelled or has failed".into(),
        ))
    }

    /// Builds under one name. Nothing, when such a build was running already, and was cancelled.
    async fn attempt(
        &self,
        connection: &Connection,
        reference: &str,
        sink: &mut impl FnMut(Event),
    ) -> Result<Option<Solved>, JobError> {
        let mut events = status::follow(connection, reference.to_owned());
        let session = Session::new(self.shared_key.key(), self.services.clone());
        let request = traced(self.solve.request(reference, session.id()));
        let mut control = connection.control();
        let mut solving = pin!(async move { control.solve(request).await });
        let mut session = Box::pin(session.run(connection));
        let mut failed_steps = FailedSteps::default();
        let mut note = |event: Event| {
            failed_steps.note(&event);
            sink(event);
        };

        let mut following = true;
        let solved = loop {
            tokio::select! {
                biased;
                solved = &mut solving => break solved,
                Err(error) = &mut session => return Err(JobError::Lost(error.into())),
                event = events.next(), if following => match event {
                    Some(Ok(event)) => note(event),
                    Some(Err(status)) => return Err(JobError::Lost(status.into())),
                    None => following = false,
                },
            }
        };
        drop(session);
        let past = match solved {
            Err(status) if is_running(&status, reference) => {
                tracing::info!(reference, "delivered before: following its build");
                while let Some(event) = events.next().await {
                    note(event.map_err(|status| JobError::Lost(status.into()))?);
                }
                history::outcome(connection, reference, self.limits.drain).await
            }
            solved => {
                if following {
                    drain(events, self.limits, &mut note).await;
                }
                match solved {
                    Ok(response) => Some(Past::Succeeded(Solved {
                        digest: response
                            .into_inner()
                            .exporter_response
                            .remove("containerimage.digest"),
                        completed_at: None,
                    })),
                    Err(status) if is_lost(&status) => return Err(JobError::Lost(status.into())),
                    Err(status) => Some(Past::Failed(status)),
                }
            }
        };
        match past {
            Some(Past::Succeeded(solved)) => Ok(Some(solved)),
            Some(Past::Failed(status)) if status.code() == Code::Cancelled => Ok(None),
            Some(Past::Failed(status)) => Err(JobError::Failed(Failure::new(&status, &failed_steps))),
            None => Err(JobError::Lost(
                "the outcome of the build did not become known".into(),
            )),
        }
    }
}

/// The request with the trace that it belongs to, which the daemon goes on with: BuildKit `cmd/buildkitd/main.go`
/// (`propagators`).
fn traced(request: SolveRequest) -> Request<SolveRequest> {
    let mut headers = HeaderMap::new();
    trace::inject(&mut headers);
    Request::from_parts(MetadataMap::from_headers(headers), Extensions::default(), request)
}

/// The rest of the events. What does not come in time is not worth failing a finished build for.
async fn drain(mut events: Events, limits: Limits, note: &mut impl FnMut(Event)) {
    let rest = async {
        while let Ok(Some(Ok(event))) = tokio::time::timeout(limits.quiet, events.next()).await {
            note(event);
        }
    };
    if tokio::time::timeout(limits.drain, rest).await.is_err() {
        tracing::warn!("the build's log did not end in time");
    }
}

/// Whether a status was made here because the connection broke, or by a daemon that is going away.
fn is_lost(status: &Status) -> bool {
    status.source().is_some() || matches!(status.code(), Code::Unavailable | Code::Cancelled)
}

/// Whether the daemon refuses a second build of the name: BuildKit `solver/jobs.go`. There is no code for it.
fn is_running(status: &Status, reference: &str) -> bool {
    status.message().ends_with(&format!("job ID {reference} exists"))
}
