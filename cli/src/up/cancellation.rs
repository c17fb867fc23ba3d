//! Ctrl-C while a function is built: detaching from the build, and cancelling it.

use std::time::Duration;

use function_host::http::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::submit::how_to_return_or_cancel;
use super::{BuildEnd, FunctionBuild, SentBuild};
use crate::builder::{BuilderClient, RequestError, Route, build_path};
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::interrupt::{Interrupts, SECOND_INTERRUPT_WAIT};

/// The longest time until a build that is being cancelled has ended, and the pause between two questions about it.
const CANCEL_WAIT_AND_PAUSE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_millis(500));

/// The longest time until a builder knows a build that is to be cancelled.
const ACCEPTANCE_WAIT: Duration = Duration::from_secs(10);

/// The longest wait for the cancellation of a build that a newer one replaces.
const REPLACED_WAIT: Duration = Duration::from_secs(2);

/// Cancels a build, and returns what is known of it once it has ended, or after a minute. It may have ended otherwise
/// meanwhile: its `state` says so.
///
/// # Errors
/// Fails if the request is refused or lost.
pub(crate) async fn cancel_build_and_wait_up_to_a_minute(
    client: &BuilderClient,
    route: Route,
    id: &str,
) -> Result<Value, RequestError> {
    let path = build_path(id);
    let mut build = client.ask(route, Method::DELETE, &path).await?;
    let began = Instant::now();
    while matches!(build["state"].as_str(), Some("waiting" | "running" | "deploying"))
        && began.elapsed() < CANCEL_WAIT_AND_PAUSE.0
    {
        sleep(CANCEL_WAIT_AND_PAUSE.1).await;
        build = client.ask(route, Method::GET, &path).await?;
    }
    Ok(build)
}

impl FunctionBuild<'_> {
    /// Cancels the build because a newer one replaces it, and waits a moment for that. A queue-worker may run one call
    /// at a time, and the newer build would wait for the end of this one; and a build whose connection ends first
    /// counts as failed.
    pub(crate) async fn cancel_because_replaced(&self) {
        let Some(SentBuild { route, id }) = self.handed.borrow().clone() else {
            return;
        };
        let route = match route {
            Route::Queue => Route::Gateway,
            route => route,
        };
        let client = self.client.clone();
        let cancelling = tokio::spawn(async move {
            let began = Instant::now();
            // A build that no builder has accepted is not known yet. One that has ended needs no cancellation, and one
            // that cannot be cancelled goes on until the builder sees the newer one.
            while let Err(RequestError::Refused(refusal)) =
                client.ask(route, Method::DELETE, &build_path(&id)).await
                && refusal.status == 404
                && began.elapsed() < ACCEPTANCE_WAIT
            {
                sleep(CANCEL_WAIT_AND_PAUSE.1).await;
            }
        });
        // What was not answered by then goes on in the background.
        let _ = tokio::time::timeout(REPLACED_WAIT, cancelling).await;
    }

    /// Does what Ctrl-C asks for, and returns the end of following the build; `None` if it is to be followed on.
    pub(super) async fn detach_or_cancel_or_none_to_keep_following(
        &self,
        interrupts: &Interrupts,
        sent_build: Option<SentBuild>,
    ) -> Result<Option<BuildEnd>, Failure> {
        let seconds = SECOND_INTERRUPT_WAIT.as_secs();
        let stopped = Ok(Some(BuildEnd::Detached(ExitStatus::Interrupted)));
        let Some(SentBuild { route, id }) = sent_build else {
            let options = &self.client.settings().options;
            self.progress.show_always(&format!(
                "stopped before the request was answered; if the queue has it already, its build goes on: slipway builds{options}"
            ));
            return stopped;
        };
        if route == Route::Queue {
            self.progress.show_always(&format!(
                "{}\n  or press Ctrl-C again within {seconds} s",
                how_to_return_or_cancel(&id, self.client)
            ));
        } else {
            self.progress.show_always(&format!(
                "a build through the {} ends with the connection: press Ctrl-C again within {seconds} s to cancel it (--via \
                 queue can be left)",
                route.as_str()
            ));
        }
        match (interrupts.is_pressed_again_in_time().await, route) {
            (true, Route::Queue) => self.cancel_and_wait_for_end(Route::Gateway, &id).await.map(Some),
            (true, route) => self.cancel_and_wait_for_end(route, &id).await.map(Some),
            (false, Route::Queue) => stopped,
            (false, _) => {
                self.progress.show_always("the build goes on");
                Ok(None)
            }
        }
    }

    /// Cancels the build, and returns its end. Fails if it has not ended within a minute.
    async fn cancel_and_wait_for_end(&self, route: Route, id: &str) -> Result<BuildEnd, Failure> {
        self.progress.show_always("cancelling the build");
        let began = Instant::now();
        let options = &self.client.settings().options;
        loop {
            match cancel_build_and_wait_up_to_a_minute(self.client, route, id).await {
                Ok(build) if matches!(build["state"].as_str(), Some("success" | "failed" | "cancelled")) => {
                    return Ok(self.end_of_build(self.judge(&build), &build));
                }
                Ok(_) => {
                    return Err(Failure::platform(
                        "the builder was asked to cancel the build, which has not ended within a minute",
                        format!("see what becomes of it: slipway status {id}{options}"),
                    ));
                }
                // No builder has accepted it yet.
                Err(RequestError::Refused(refusal)) if refusal.status == 404 => {
                    if began.elapsed() > ACCEPTANCE_WAIT {
                        return Err(Failure::platform(
                            "the build could not be cancelled, because no builder has accepted it yet",
                            format!("cancel it in a moment: slipway cancel {id}{options}"),
                        ));
                    }
                    sleep(CANCEL_WAIT_AND_PAUSE.1).await;
                }
                Err(RequestError::Refused(refusal)) if refusal.status == 409 => {
                    return Err(Failure::new(
                        ExitStatus::Failed,
                        format!("the build cannot be cancelled any more: {}", refusal.text),
                        format!("see what became of it: slipway status {id}{options}"),
                    ));
                }
                Err(error) => {
                    let mut failure = self.failure_of_request(&error);
                    failure.next = format!("cancel it again: slipway cancel {id}{options}");
                    return Err(failure);
                }
            }
        }
    }
}
