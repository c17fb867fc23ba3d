//! One build on a daemon: Session, Solve and Status as a group that ends together.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use tonic::Status;

use super::failure::FailedSteps;
use super::session::Session;
use super::status::{self, Event, Events};
use super::{Connection, Failure, Solve};

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
    /// Answers the daemon while it builds.
    pub session: Session,
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
        let Self {
            session,
            solve,
            limits,
        } = self;
        let mut events = status::follow(connection, solve.reference.clone());
        let request = solve.into_request(&session);
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
        if following {
            drain(events, limits, &mut note).await;
        }
        match solved {
            Ok(response) => Ok(Solved {
                digest: digest(&response.into_inner().exporter_response),
            }),
            Err(status) if is_lost(&status) => Err(JobError::Lost(status.into())),
            Err(status) => Err(JobError::Failed(Failure::new(&status, &failed_steps))),
        }
    }
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

fn digest(response: &HashMap<String, String>) -> Option<String> {
    response.get("containerimage.digest").cloned()
}

/// Whether a status was made here because the connection broke, or by a daemon that is going away.
fn is_lost(status: &Status) -> bool {
    status.source().is_some() || matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Cancelled)
}
