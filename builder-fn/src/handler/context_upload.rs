//! `POST /contexts`: stores a signed tar in the operator's registry, and answers with the reference for a JSON request.

use std::time::SystemTime;

use function_host::{Body, Context, ErrorChain, Request, Response, trace};
use tokio::time::Instant;

use super::BuilderApi;
use crate::answer::{self, Answer, AnswerImageAndSeconds, StoredContextAnswer};
use crate::error::{Error, ErrorKind};
use crate::remote_context::ContextError;
use crate::request::{self, RequestHead};
use crate::slots::SlotRefused;

impl BuilderApi {
    /// Answers `POST /contexts`, and logs the error if the context could not be stored.
    pub(super) async fn answer_context_upload(&self, request: Request, context: Context) -> Response {
        let arrived = Instant::now();
        let (head, body) = request.into_parts();
        let head = RequestHead::new(&head.headers, SystemTime::now());
        let span = trace::span("store context");
        let stored = span
            .run(self.receive_and_store_context(body, &head, &context))
            .await;
        let seconds = arrived.elapsed().as_secs_f64();
        match stored {
            Ok(stored) => answer::stored_context_response(&stored, seconds),
            Err(error) => {
                crate::trace::mark_failed_without_frontend_name(&span, &error);
                let text = ErrorChain(&error).to_string();
                match error.kind() {
                    ErrorKind::Platform | ErrorKind::NoSpace => {
                        tracing::error!(error = text, seconds, "could not store a context");
                    }
                    _ => tracing::info!(error = text, seconds, "could not store a context"),
                }
                let fields = AnswerImageAndSeconds { image: None, seconds };
                Answer::from_error(&error, fields).into_json_response_or_text_429()
            }
        }
    }

    /// Reads the request's body, verifies its signature, and stores the tar in the operator's registry.
    async fn receive_and_store_context(
        &self,
        body: Body,
        head: &RequestHead,
        context: &Context,
    ) -> Result<StoredContextAnswer, Error> {
        if context.shutdown().has_begun() {
            return Err(Error::Draining);
        }
        let contexts = &self.builder.contexts;
        // Before reading the body, so that a rejected caller does not upload it.
        if !contexts.stores_contexts() {
            return Err(ContextError::NotStored.into());
        }
        let check = self.signature_check_from_secrets(head, context)?;
        let body = request::receive_body(body, head, &check, &self.limits).await?;
        context
            .accept()
            .map_err(|full| SlotRefused { limit: full.limit })?;
        let tenant = body.tenant().cloned();
        let mut tar = body.into_storable_tar(&self.limits).await?;
        let warnings = std::mem::take(&mut tar.warnings);
        let stored = contexts.store(tar, tenant.as_ref()).await?;
        let (reference, bytes) = (stored.reference.to_string(), stored.bytes);
        tracing::info!(context = reference, bytes, "stored a context");
        Ok(StoredContextAnswer {
            reference,
            bytes,
            warnings,
        })
    }
}
