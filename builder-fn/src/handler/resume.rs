//! Resumes builds that were accepted by builders which have gone.

use std::time::Duration;

use bytes::Bytes;
use function_host::{Context, ErrorChain};
use http_body_util::Full;
use tokio::time::Instant;
use tracing::Instrument;

use super::{BuildExchange, BuilderApi, ReceivedBuild};
use crate::answer::{Answer, AnswerFields};
use crate::builds::{AcceptedBuild, BuildPhase, ClaimSearch, ClaimedBuild, RecordStore, outcome_fields};
use crate::error::Error;
use crate::request::{self, RequestHead};
use crate::slots::QueueAdmission;

/// The number of tenants whose records are searched in one interval. With more, searches take place less often.
const TENANTS_PER_INTERVAL: u32 = 20;

/// The pause before a resumed build that finds no place in the queue for slots tries again.
const ADMISSION_PAUSE: Duration = Duration::from_secs(1);

impl BuilderApi {
    /// Shows others that this builder lives, and resumes the builds of those that have gone, until the shutdown begins.
    /// Returns at once if no records are kept.
    ///
    /// `context` has the secrets, the gateway and the shutdown of the function.
    pub async fn resume_builds_of_others(self, context: Context) {
        let Some(store) = self.builder.records.store().cloned() else {
            return;
        };
        let searching = async {
            tokio::select! {
                () = self.search_and_resume(&store, &context) => {}
                _ = context.shutdown().wait_until_begun() => {}
            }
        };
        // The sign is renewed during the shutdown, too: builds finish then.
        tokio::join!(store.renew_sign_periodically(), searching);
    }

    async fn search_and_resume(&self, store: &RecordStore, context: &Context) {
        let mut search = ClaimSearch::default();
        loop {
            let tenants = self.names_of_tenants();
            let intervals = u32::try_from(tenants.len())
                .unwrap_or(u32::MAX)
                .div_ceil(TENANTS_PER_INTERVAL);
            let mut found = false;
            for tenant in tenants {
                // Others may have places.
                if self.builder.slots.is_full() {
                    break;
                }
                match store.claim_unfinished(&mut search, &tenant).await {
                    Ok(builds) => {
                        found |= !builds.is_empty();
                        for build in builds {
                            self.resume(build, context).await;
                        }
                    }
                    Err(error) => {
                        let error = ErrorChain(&error).to_string();
                        tracing::warn!(error, "could not search for accepted builds to resume");
                    }
                }
            }
            search.forget_old();
            if !found {
                tokio::time::sleep(store.search_interval().saturating_mul(intervals.max(1))).await;
            }
        }
    }

    /// Returns the names of the tenants; of the only one, which has none, without a policy.
    fn names_of_tenants(&self) -> Vec<Option<String>> {
        match &self.signatures.policy {
            Some(policy) => {
                let policy = policy.current_policy();
                policy
                    .tenants()
                    .map(|tenant| Some(tenant.name().to_string()))
                    .collect()
            }
            None => vec![None],
        }
    }

    /// Starts a claimed build in the background, once it has a place.
    async fn resume(&self, claimed: ClaimedBuild, template: &Context) {
        let ClaimedBuild {
            key,
            request,
            body,
            place,
        } = claimed;
        let span = tracing::info_span!("resumed", call_id = %key.id);
        let (secrets, gateway) = (template.secrets().clone(), template.gateway().clone());
        let mut context = Context::new(&key.id, secrets, gateway, template.shutdown().clone());
        if let Some(limit) = request.time_limit {
            context = context.with_deadline(Instant::now() + limit);
        }
        let head = request.to_head();
        let mut accepted = self.builder.records.accept(key, head.arrived);
        accepted.adopt(place);
        let receiving = self
            .receive_again(head, body, &accepted, &context)
            .instrument(span.clone());
        let (request, admission) = match receiving.await {
            Ok(received) => received,
            Err(error) => {
                let _entered = span.enter();
                tracing::warn!(error = %ErrorChain(&error), "an accepted build cannot be resumed");
                let answer = Answer::from_error(&error, AnswerFields::default());
                accepted.end(BuildPhase::Failed, outcome_fields(&answer.report));
                return;
            }
        };
        let received = ReceivedBuild {
            request,
            admission,
            accepted,
            resumable: None,
        };
        let exchange = BuildExchange {
            context,
            arrived: Instant::now(),
            format: None,
            is_asynchronous: true,
        };
        let (api, threads) = (self.clone(), self.threads.clone());
        let build = async move {
            tracing::info!("an accepted build is resumed: its builder has gone");
            // Nobody waits for the answer. Its outcome is recorded and logged.
            threads
                .run(async move { api.build_then_answer(received, &exchange).await })
                .await;
        };
        tokio::spawn(build.instrument(span));
    }

    /// Verifies the body of an accepted request again, parses it, and waits for a place in the queue for slots.
    async fn receive_again(
        &self,
        head: RequestHead,
        body: Bytes,
        accepted: &AcceptedBuild,
        context: &Context,
    ) -> Result<(request::BuildRequest, QueueAdmission), Error> {
        let check = self.read_signature_check(&head, context)?;
        let body = request::receive_body(Full::new(body), &head, &check, &self.limits).await?;
        if body.tenant_name().as_deref() != accepted.tenant() {
            return Err(Error::OtherTenant);
        }
        let admission = loop {
            match self.builder.slots.admit(body.slot_owner()) {
                Ok(admission) => break admission,
                Err(_) => tokio::time::sleep(ADMISSION_PAUSE).await,
            }
        };
        Ok((body.into_build_request(head, &self.limits).await?, admission))
    }
}
