//! Sends a packed function to the builder by the chosen way.

use std::time::SystemTime;

use serde_json::{Value, json};
use uuid::Uuid;

use super::configuration::configuration;
use super::route::RouteChoice;
use super::{BuildEnd, FunctionBuild, SentBuild};
use crate::builder::{
    BuildFacts, BuilderClient, CallerContext, Refusal, RequestBody, RequestError, Route, SignedBody,
    SignedBuildRequest, SubmittedBuild, Verdict,
};
use crate::context::{PackedContext, parse_public_key, seal_secrets};
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::progress::Event;

/// The largest request that the Community Edition's queue takes, in bytes.
const COMMUNITY_QUEUE_REQUEST_BYTES_MAX: u64 = 256_000;

impl FunctionBuild<'_> {
    /// Sends the packed function, and follows its build to its end.
    ///
    /// # Errors
    /// Fails if no builder takes it.
    pub(super) async fn submit_and_follow(
        &self,
        packed: &PackedContext,
        routes: &RouteChoice,
    ) -> Result<BuildEnd, Failure> {
        let secrets = self.seal_build_secrets(routes.questions).await?;
        let config = configuration(self.function, self.options.no_cache, SystemTime::now());
        let body = packed.to_request_body(config.to_string().as_bytes(), secrets.as_deref())?;
        let body = self.sign(body)?;
        self.progress.show(&Event::Packed {
            files: packed.files,
            ignored: packed.ignored,
            bytes: packed.bytes,
            compressed: body.len(),
        });
        let mut submission = SignedBuildRequest {
            body,
            is_json: false,
            call_id: Uuid::new_v4().to_string(),
        };
        let mut route = routes.route;
        if route == Route::Queue && submission.body.len() > COMMUNITY_QUEUE_REQUEST_BYTES_MAX {
            match self
                .store_context_or_fall_back(packed, routes, &config, secrets.as_deref())
                .await?
            {
                Ok(body) => {
                    submission.body = body;
                    submission.is_json = true;
                }
                Err(fallback) => route = fallback,
            }
        }
        self.send_and_follow(route, submission).await
    }

    /// Stores the context, and returns the body of a JSON request that refers to it. If the builder stores none,
    /// returns the way by which the tar is sent as it is.
    async fn store_context_or_fall_back(
        &self,
        packed: &PackedContext,
        routes: &RouteChoice,
        config: &Value,
        secrets: Option<&str>,
    ) -> Result<Result<SignedBody, Route>, Failure> {
        let tar = self.sign(packed.to_context_body()?)?;
        let bytes = tar.len();
        let through = match routes.fallback {
            Some(Route::Builder) => Route::Builder,
            _ => routes.questions,
        };
        self.progress
            .note("the request is too large for the queue: its context is stored first");
        match self
            .client
            .store_context_and_return_reference(through, tar, self.show_sent_progress_of(bytes))
            .await
        {
            Ok(context) => {
                let mut request = config.clone();
                request["context"] = context;
                if let Some(secrets) = secrets {
                    request["sealedSecrets"] = json!(secrets);
                }
                Ok(Ok(self.sign(RequestBody::in_memory(request.to_string()))?))
            }
            Err(RequestError::Refused(Refusal { status: 501, .. })) => match routes.fallback {
                Some(fallback) => {
                    self.progress.note(&format!(
                        "this builder stores no contexts, so the request goes through the {} without the queue",
                        fallback.as_str()
                    ));
                    Ok(Err(fallback))
                }
                None => Err(Failure::usage(
                    format!(
                        "the request has {bytes} bytes, of which the queue takes {COMMUNITY_QUEUE_REQUEST_BYTES_MAX}, and this builder stores no contexts"
                    ),
                    "say --via gateway or --via builder, exclude files in .dockerignore, or have the operator set \
                     contexts_repository",
                )),
            },
            Err(error) => Err(self.failure_of_request(&error)),
        }
    }

    /// Sends a build request, and follows the build.
    async fn send_and_follow(
        &self,
        route: Route,
        submission: SignedBuildRequest,
    ) -> Result<BuildEnd, Failure> {
        let sent = self
            .client
            .submit(
                route,
                &submission,
                self.show_sent_progress_of(submission.body.len()),
            )
            .await;
        let submitted = match sent {
            Ok(submitted) => submitted,
            Err(RequestError::Refused(refusal)) => {
                let mut verdict = self.judge(&refusal.outcome);
                if refusal.status == 401 {
                    let place = &self.client.settings().key.place;
                    verdict.summary = format!("{}, with the key from {place}", verdict.summary);
                }
                return Ok(self.end_of_build(verdict, &refusal.outcome));
            }
            // The queue may have the request, although its answer was lost.
            Err(error @ RequestError::Lost { .. }) if route == Route::Queue => {
                self.progress
                    .note(&format!("{error}; asking whether the build has arrived"));
                SubmittedBuild {
                    call_id: submission.call_id.clone(),
                    records: None,
                }
            }
            Err(error) => return Err(self.failure_of_request(&error)),
        };
        let id = submitted.call_id;
        *self.handed.borrow_mut() = Some(SentBuild {
            route,
            id: id.clone(),
        });
        self.progress.show(&Event::Submitted {
            id: &id,
            route: route.as_str(),
        });
        if self.is_detached {
            self.progress
                .show_always(&how_to_return_or_cancel(&id, self.client));
            return Ok(BuildEnd::Detached(ExitStatus::Success));
        }
        match submitted.records {
            Some(records) => {
                self.follow_stream_with_resends(route, &submission, &id, records)
                    .await
            }
            None => self.follow_queued(&id).await,
        }
    }

    /// Judges the outcome of this build.
    pub(super) fn judge(&self, outcome: &Value) -> Verdict {
        let function = self.function.path_at_gateway();
        let caller = CallerContext {
            unverified_is_not_deployed: self.options.strict,
            function: function.strip_prefix("/function/"),
            options: &self.client.settings().options,
        };
        Verdict::of_outcome(outcome, &caller)
    }

    /// Returns the end of a build with this outcome.
    pub(super) fn end_of_build(&self, verdict: Verdict, outcome: &Value) -> BuildEnd {
        let image = outcome["image"].as_str().unwrap_or(&self.function.image);
        BuildEnd::Ended {
            verdict,
            image: match outcome["digest"].as_str() {
                Some(digest) => format!("{image}@{digest}"),
                None => image.to_owned(),
            },
            facts: Box::new(BuildFacts::of_answer(outcome)),
        }
    }

    /// Returns the error for a request that was refused or lost on its way.
    pub(super) fn failure_of_request(&self, error: &RequestError) -> Failure {
        match error {
            RequestError::Refused(refusal) => self.judge(&refusal.outcome).into_failure(error.to_string()),
            RequestError::Connect { .. } | RequestError::Lost { .. } => Failure::platform(
                error.to_string(),
                "check the network and the address, and run slipway up again",
            ),
        }
    }

    /// Seals the function's build secrets, if it has any.
    async fn seal_build_secrets(&self, route: Route) -> Result<Option<String>, Failure> {
        if self.function.build_secrets.is_empty() {
            return Ok(None);
        }
        let answer = self.client.ask_for_public_key(route).await.map_err(|error| match &error {
            RequestError::Refused(refusal) if refusal.status == 404 => Failure::usage(
                format!("{} has build_secrets, and this builder has no key for them", self.function.name),
                "have the operator set build_secrets_private_key_path, or remove build_secrets from the stack file",
            ),
            _ => self.failure_of_request(&error),
        })?;
        if self.client.is_plain_http(route) {
            self.progress.show(&Event::Warning {
                text: "the key for build_secrets came over http: whoever controls the network on the way could have replaced it, and \
                       could then read them; an address with https prevents that",
            });
        }
        let key = parse_public_key(&answer).map_err(|error| {
            Failure::platform(
                error.to_string(),
                "have the operator check the builder's key for build secrets",
            )
        })?;
        seal_secrets(&key, &self.function.build_secrets).map(Some)
    }

    /// Signs a body with the key of the settings.
    fn sign(&self, body: RequestBody) -> Result<SignedBody, Failure> {
        SignedBody::sign(body, &self.client.settings().key.keys)
    }

    /// Returns a function that shows how much of a request was sent.
    fn show_sent_progress_of(&self, total: u64) -> impl FnMut(u64) + Send + 'static {
        let progress = self.progress.clone();
        move |sent| progress.show(&Event::Sent { sent, total })
    }
}

/// Returns how to return to a build, and how to cancel it, with the options that lead to the same builder.
pub(super) fn how_to_return_or_cancel(id: &str, client: &BuilderClient) -> String {
    let options = &client.settings().options;
    format!(
        "the build goes on\n  to return to it: slipway logs {id} -f{options}\n  to cancel it:    slipway cancel {id}{options}"
    )
}
