//! Ctrl-C while a build is followed: detaching from it, and cancelling it.

use std::time::Duration;

use function_host::http::Method;
use tokio::time::sleep;

use super::follow::cancelled_outcome;
use super::submit::how_to_return;
use super::{BuildEnd, FunctionBuild};
use crate::builder::{RequestError, Route, Verdict, build_path};
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::interrupt::{SECOND_INTERRUPT_WAIT, is_pressed_again};

/// The number of attempts to cancel a build that no builder knows yet, and the pause between them.
const UNKNOWN_BUILD_ATTEMPTS: (u32, Duration) = (20, Duration::from_millis(500));

impl FunctionBuild<'_> {
    /// Leaves a queued build alone, unless a second Ctrl-C cancels it.
    pub(super) async fn detach(&self, id: &str) -> Result<BuildEnd, Failure> {
        let seconds = SECOND_INTERRUPT_WAIT.as_secs();
        self.progress.note(&format!(
            "{}\n  or press Ctrl-C again within {seconds} s",
            how_to_return(id)
        ));
        match is_pressed_again().await {
            true => self.cancel(Route::Gateway, id).await,
            false => Ok(BuildEnd::Detached(ExitStatus::Interrupted)),
        }
    }

    /// Cancels a build that would end with the connection, if Ctrl-C is pressed a second time; `None` if it is not.
    pub(super) async fn cancel_if_pressed_again(
        &self,
        route: Route,
        id: &str,
    ) -> Result<Option<BuildEnd>, Failure> {
        let seconds = SECOND_INTERRUPT_WAIT.as_secs();
        self.progress.note(&format!(
            "a build through the {} ends with the connection: press Ctrl-C again within {seconds} s to cancel it (--via queue \
             can be left)",
            route.as_str()
        ));
        match is_pressed_again().await {
            true => self.cancel(route, id).await.map(Some),
            false => {
                self.progress.note("the build goes on");
                Ok(None)
            }
        }
    }

    /// Cancels the build.
    async fn cancel(&self, route: Route, id: &str) -> Result<BuildEnd, Failure> {
        let (attempts, pause) = UNKNOWN_BUILD_ATTEMPTS;
        self.progress.note("cancelling the build");
        for _ in 0..attempts {
            match self.client.ask(route, Method::DELETE, &build_path(id)).await {
                Ok(_) => {
                    let outcome = cancelled_outcome();
                    return Ok(self.ended(Verdict::of_outcome(&outcome, self.options.strict), &outcome));
                }
                // No builder has accepted it yet.
                Err(RequestError::Refused(refusal)) if refusal.status == 404 => sleep(pause).await,
                Err(RequestError::Refused(refusal)) if refusal.status == 409 => {
                    return Err(Failure::new(
                        ExitStatus::Replaced,
                        format!("the build cannot be cancelled any more: {}", refusal.text),
                        format!("see what became of it: slipway status {id}"),
                    ));
                }
                Err(error) => {
                    let mut failure = self.failure_of(&error);
                    failure.next = format!("cancel it again: slipway cancel {id}");
                    return Err(failure);
                }
            }
        }
        Err(Failure::platform(
            "the build could not be cancelled, because no builder has accepted it yet",
            format!("cancel it in a moment: slipway cancel {id}"),
        ))
    }
}
