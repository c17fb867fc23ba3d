//! Sets the status of a commit at GitHub or GitLab: pending once the build is accepted, if the commit is known then,
//! and the outcome when it has ended.
//!
//! APIs: <https://docs.github.com/rest/commits/statuses>,
//! <https://docs.gitlab.com/api/commits/#set-commit-pipeline-status>.
//!
//! One task sends the states of one build one after the other, so that the first never replaces the last.

use std::sync::Arc;

use bytes::Bytes;
use function_host::http::header::{ACCEPT, AUTHORIZATION, HeaderName, HeaderValue};
use function_host::policy::Tenant;
use function_host::{ErrorChain, Secret, Shutdown};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::room::ReservedNotificationMemory;
use super::{ATTEMPTS_MAX, Notifier, RepeatablePost, pause_after, wait_until_shortly_before_process_end};
use crate::builds::BuildPhase;
use crate::error::ErrorKind;
use crate::request::{CommitStatusConfig, Forge};

/// The memory that is reserved for the states of one build, in bytes.
const STATUS_BYTES_RESERVED_PER_BUILD: usize = 8 << 10;

const PRIVATE_TOKEN_HEADER: HeaderName = HeaderName::from_static("private-token");

const GITHUB_JSON_MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/vnd.github+json");

/// The state of a build, as the status of its commit has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommitState {
    /// The build was accepted and has not ended.
    Pending,
    /// The build, and the deployment if there was one, succeeded.
    Success,
    /// The build failed, or its request was rejected, which the caller can change.
    Failure,
    /// The platform failed.
    Error,
    /// The build was cancelled, or replaced by a newer one.
    Cancelled,
}

impl CommitState {
    /// Returns the state of a build that ended in `phase`, because of an error of this kind if there was one.
    pub(crate) fn of_phase_and_error_kind(phase: BuildPhase, kind: Option<ErrorKind>) -> Self {
        match (phase, kind) {
            (BuildPhase::Success, _) => Self::Success,
            (BuildPhase::Cancelled, _) | (_, Some(ErrorKind::Superseded)) => Self::Cancelled,
            (_, Some(ErrorKind::Platform | ErrorKind::NoSpace)) => Self::Error,
            _ => Self::Failure,
        }
    }

    /// Returns the word for the state in the API of `forge`.
    fn word(self, forge: Forge) -> &'static str {
        match (forge, self) {
            (_, Self::Pending) => "pending",
            (_, Self::Success) => "success",
            (Forge::GitHub, Self::Failure) => "failure",
            (Forge::GitHub, Self::Error | Self::Cancelled) => "error",
            (Forge::GitLab, Self::Failure | Self::Error) => "failed",
            (Forge::GitLab, Self::Cancelled) => "canceled",
        }
    }

    /// Returns a sentence about the state. GitHub shows at most 140 characters.
    fn description(self) -> &'static str {
        match self {
            Self::Pending => "The build has been accepted.",
            Self::Success => "The build succeeded.",
            Self::Failure => "The build failed.",
            Self::Error => "The platform failed during the build.",
            Self::Cancelled => "The build was cancelled, or a newer one replaced it.",
        }
    }
}

/// The receiver of the states of one build.
#[derive(Debug)]
pub(crate) struct CommitStatusReceiver {
    /// The config's `commitStatus`, with the commit of the git source where the config names none.
    pub(crate) status: CommitStatusConfig,
    /// The tenant whose build it is, if the builder has a policy.
    pub(crate) tenant: Option<Arc<Tenant>>,
    /// The token for the API.
    pub(crate) token: Secret,
}

/// A sender of the states of one build. Dropping it before the build's end leaves the last state that was sent.
#[derive(Debug)]
pub(crate) struct CommitStatusReporter {
    states: watch::Sender<Option<(CommitState, String)>>,
    commit: Option<String>,
    sending: JoinHandle<()>,
}

impl Notifier {
    /// Begins to report the states of a build to `receiver`: pending at once if the commit is known. `None` if too many
    /// others are being sent.
    pub(crate) fn begin_commit_status_pending_if_commit_known(
        &self,
        receiver: CommitStatusReceiver,
        shutdown: &Shutdown,
    ) -> Option<CommitStatusReporter> {
        let tenant = receiver.tenant.as_ref().map(|tenant| tenant.name().as_str());
        let Some(room) = self.room.try_reserve(tenant, STATUS_BYTES_RESERVED_PER_BUILD) else {
            tracing::warn!(
                project = %receiver.status.project_api_url(),
                "the status of a commit is not set, because too many others are being set"
            );
            self.metrics.count_dropped();
            return None;
        };
        let commit = receiver.status.commit.clone();
        let first = commit.clone().map(|commit| (CommitState::Pending, commit));
        let (states, changes) = watch::channel(first);
        let (notifier, shutdown) = (self.clone(), shutdown.clone());
        let sending =
            tokio::spawn(async move { notifier.send_states(&receiver, room, changes, &shutdown).await });
        Some(CommitStatusReporter {
            states,
            commit,
            sending,
        })
    }

    /// Sends each state until it is received or rejected, has failed too often, or is followed by another one. Ends
    /// with the last state, or shortly before the process does.
    async fn send_states(
        &self,
        receiver: &CommitStatusReceiver,
        _room: ReservedNotificationMemory,
        mut changes: watch::Receiver<Option<(CommitState, String)>>,
        shutdown: &Shutdown,
    ) {
        let sending = async {
            loop {
                let state = changes.borrow_and_update().clone();
                if let Some((state, commit)) = state {
                    self.send_state(receiver, state, &commit, &mut changes).await;
                }
                // Fails after the last state.
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = sending => {}
            () = wait_until_shortly_before_process_end(shutdown) => {
                tracing::warn!(project = %receiver.status.project_api_url(), "the status of a commit was not set, because the builder shuts down");
                self.metrics.count_failed();
            }
        }
    }

    /// Sends a state until it is received or rejected, has failed [`ATTEMPTS_MAX`] times, or another one follows.
    async fn send_state(
        &self,
        receiver: &CommitStatusReceiver,
        state: CommitState,
        commit: &str,
        changes: &mut watch::Receiver<Option<(CommitState, String)>>,
    ) {
        let project = receiver.status.project_api_url();
        let Some(post) = receiver.to_post_unless_url_or_token_invalid(state, commit) else {
            tracing::warn!(
                %project, commit, ?state,
                "the status of a commit could not be set: the token cannot be sent in a header, or the URL is invalid"
            );
            return self.metrics.count_failed();
        };
        let mut attempt = 1;
        loop {
            let error = match self.send_once(&post).await {
                Ok(()) => {
                    tracing::info!(%project, commit, ?state, attempts = attempt, "set the status of a commit");
                    return self.metrics.count_sent();
                }
                Err(error) => error,
            };
            if attempt == ATTEMPTS_MAX || !error.is_worth_a_retry() {
                tracing::warn!(
                    %project, commit, ?state, attempts = attempt, error = %ErrorChain(&error),
                    "the status of a commit could not be set"
                );
                return self.metrics.count_failed();
            }
            tokio::select! {
                () = tokio::time::sleep(pause_after(attempt)) => {}
                // The build has ended meanwhile.
                Ok(()) = wait_for_change_without_marking_seen(changes) => return,
            }
            attempt += 1;
        }
    }
}

/// Waits until a state is there that was not seen, without marking it as seen.
async fn wait_for_change_without_marking_seen(
    changes: &mut watch::Receiver<Option<(CommitState, String)>>,
) -> Result<(), watch::error::RecvError> {
    changes.changed().await?;
    changes.mark_changed();
    Ok(())
}

impl CommitStatusReporter {
    /// Reports the outcome of the build for the config's commit, or else for `commit_if_config_names_none`, the
    /// context's. While the process shuts down, waits until it is sent or the process is about to end.
    pub(crate) async fn report_outcome_waiting_only_in_shutdown(
        self,
        state: CommitState,
        commit_if_config_names_none: Option<&str>,
        shutdown: &Shutdown,
    ) {
        let Self {
            states,
            commit,
            sending,
        } = self;
        match commit.or_else(|| commit_if_config_names_none.map(str::to_owned)) {
            Some(commit) => drop(states.send_replace(Some((state, commit)))),
            None => tracing::info!("the commit of a build is not known, so that its status is not set"),
        }
        drop(states);
        if shutdown.has_begun() {
            // The process may exit once the answer was sent.
            sending.await.ok();
        }
    }
}

impl CommitStatusReceiver {
    /// Returns the request that sets a state; `None` if its URL is invalid, or the token cannot be in a header.
    fn to_post_unless_url_or_token_invalid(
        &self,
        state: CommitState,
        commit: &str,
    ) -> Option<RepeatablePost> {
        let CommitStatusConfig {
            forge, name, link, ..
        } = &self.status;
        let mut body = json!({"state": state.word(*forge), "description": state.description()});
        let key = match forge {
            Forge::GitHub => "context",
            Forge::GitLab => "name",
        };
        body[key] = json!(name);
        if let Some(link) = link {
            body["target_url"] = json!(link);
        }
        let token = self.token.expose_text()?;
        let (header, value) = match forge {
            Forge::GitHub => (AUTHORIZATION, format!("Bearer {token}")),
            Forge::GitLab => (PRIVATE_TOKEN_HEADER, token.to_owned()),
        };
        let mut value = HeaderValue::from_str(&value).ok()?;
        value.set_sensitive(true);
        let mut headers = vec![(header, value)];
        if *forge == Forge::GitHub {
            headers.push((ACCEPT, GITHUB_JSON_MEDIA_TYPE));
        }
        Some(RepeatablePost {
            url: self.status.status_url_for(commit)?,
            checked: self.status.project_api_url().clone(),
            tenant: self.tenant.clone(),
            headers,
            body: Bytes::from(body.to_string()),
        })
    }
}
