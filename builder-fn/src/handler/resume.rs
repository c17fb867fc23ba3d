//! Resumes builds that were accepted by builders which have gone.

use std::time::Duration;

use bytes::Bytes;
use function_host::{Context, ErrorChain};
use http_body_util::Full;
use tokio::time::Instant;
use tracing::Instrument;

use super::{AdmittedBuildRequest, BuildExchange, BuilderApi};
use crate::answer::{Answer, AnswerImageAndSeconds};
use crate::builds::{
    BuildPhase, ClaimSearchState, ClaimedBuild, RecordStore, RecordedDelivery, outcome_fields_kept_in_record,
};
use crate::error::Error;
use crate::request::{self, BuildRequest, RequestHead};
use crate::slots::{QueueAdmission, SlotOwner};

/// The number of tenants whose records are searched in one interval. With more, searches take place less often.
const TENANTS_PER_SEARCH_INTERVAL: u32 = 20;

/// The pause before a claimed build is begun again after a failure of the platform.
const CLAIMED_BUILD_BEGIN_RETRY_PAUSE: Duration = Duration::from_secs(2);

/// The time for which a claimed build that cannot begin, because the platform fails, is tried here before it is handed
/// back to other builders.
const CLAIMED_BUILD_BEGIN_TIMEOUT: Duration = Duration::from_secs(60);

/// The time that a search which is in progress at the beginning of a shutdown may still take, so that claims are not
/// lost.
const SEARCH_TIMEOUT_AFTER_SHUTDOWN_BEGAN: Duration = Duration::from_secs(5);

/// A tenant whose records are searched.
#[derive(Default)]
struct SearchedTenantAndSlotOwner {
    /// The name of the tenant; `None` without a policy.
    name: Option<String>,
    /// The owner of the tenant's slots.
    owner: SlotOwner,
}

impl BuilderApi {
    /// Renews this builder's sign of life until the process ends. Until the shutdown begins, also resumes builds of
    /// builders that have gone. Returns at once if no records are kept.
    ///
    /// `context` has the secrets, the gateway and the shutdown of the function.
    pub async fn renew_sign_of_life_and_resume_builds_of_others(self, context: Context) {
        let Some(store) = self.builder.records.store().cloned() else {
            return;
        };
        let searching = async {
            let _work = context.shutdown().begin_background_work();
            let last_search = async {
                context.shutdown().wait_until_begun().await;
                tokio::time::sleep(SEARCH_TIMEOUT_AFTER_SHUTDOWN_BEGAN).await;
            };
            tokio::select! {
                () = self.search_and_resume_until_shutdown(&store, &context) => {}
                () = last_search => {}
            }
        };
        // The sign is renewed during the shutdown, too: builds finish then.
        tokio::join!(
            store.renew_sign_of_life_forever_when_builds_are_unfinished(),
            searching
        );
    }

    /// Searches for builds to resume until the shutdown begins.
    async fn search_and_resume_until_shutdown(&self, store: &RecordStore, context: &Context) {
        let mut search = ClaimSearchState::default();
        while !context.shutdown().has_begun() {
            let tenants = self.searched_tenants();
            let intervals = u32::try_from(tenants.len())
                .unwrap_or(u32::MAX)
                .div_ceil(TENANTS_PER_SEARCH_INTERVAL);
            let interval = store.search_interval().saturating_mul(intervals.max(1));
            search.begin_pass();
            for tenant in tenants {
                let places = self.builder.slots.free_places(&tenant.owner);
                // Other builders may have places.
                if places == 0 || context.shutdown().has_begun() {
                    continue;
                }
                match store
                    .claim_and_confirm_unfinished_builds(&mut search, &tenant.name, places)
                    .await
                {
                    Ok(builds) => {
                        for build in builds {
                            self.resume_in_background(build, context);
                        }
                    }
                    Err(error) => {
                        let error = ErrorChain(&error).to_string();
                        tracing::warn!(error, "could not search for accepted builds to resume");
                    }
                }
            }
            search.forget_old();
            // Also after builds were found: one that was handed back for want of a slot would be found again at once.
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                _ = context.shutdown().wait_until_begun() => {}
            }
        }
        store.hand_back_written_unconfirmed_claims(search).await;
    }

    /// Returns the tenants; the only one, which has no name, without a policy.
    fn searched_tenants(&self) -> Vec<SearchedTenantAndSlotOwner> {
        let Some(policy) = &self.signatures.policy else {
            return vec![SearchedTenantAndSlotOwner::default()];
        };
        let policy = policy.reload_if_changed();
        let tenants = policy.tenants().map(|tenant| SearchedTenantAndSlotOwner {
            name: Some(tenant.name().to_string()),
            owner: SlotOwner::of_tenant(tenant),
        });
        tenants.collect()
    }

    /// Runs a claimed build in the background, or hands it back if it gets no place among the builds.
    fn resume_in_background(&self, claimed: ClaimedBuild, template: &Context) {
        let span = tracing::info_span!("resumed", call_id = %claimed.key.id);
        let (api, template) = (self.clone(), template.clone());
        let work = template.shutdown().begin_background_work();
        let build = async move {
            let _work = work;
            api.run_claimed_or_hand_back(claimed, &template).await;
        };
        tokio::spawn(build.instrument(span));
    }

    async fn run_claimed_or_hand_back(self, claimed: ClaimedBuild, template: &Context) {
        let ClaimedBuild {
            key,
            attempts,
            request,
            body,
            place,
        } = claimed;
        let (secrets, gateway) = (template.secrets().clone(), template.gateway().clone());
        let mut context = Context::new(&key.id, secrets, gateway, template.shutdown().clone());
        let head = request.to_resumed_head();
        let mut accepted = self.builder.records.accept(key, head.arrived);
        accepted.use_claimed_place(place);
        accepted.continue_counts_of_other_processes(attempts, request.resumptions);
        let receiving = async {
            let end = Instant::now() + CLAIMED_BUILD_BEGIN_TIMEOUT;
            loop {
                match self
                    .verify_admit_and_parse_again(&head, body.clone(), &accepted, &context)
                    .await
                {
                    Err(error) if error.kind().is_transient() => {
                        tracing::info!(error = %ErrorChain(&error), "an accepted build waits to be resumed");
                        if error.kind().is_rejected_for_now() || Instant::now() > end {
                            return None;
                        }
                        tokio::time::sleep(CLAIMED_BUILD_BEGIN_RETRY_PAUSE).await;
                    }
                    received => return Some(received),
                }
            }
        };
        let received = tokio::select! {
            biased;
            _ = template.shutdown().wait_until_begun() => None,
            received = receiving => received,
        };
        let Some(received) = received else {
            // Its request is stored, so that a failure only delays the build.
            accepted
                .hand_back_or_leave_resumable(template.shutdown().has_begun())
                .await
                .ok();
            return accepted.leave_to_other_processes();
        };
        let (build_request, admission) = match received {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "an accepted build cannot be resumed");
                let answer = Answer::from_error(&error, AnswerImageAndSeconds::default());
                let written = accepted.record_end_if_success_or_last_delivery(
                    BuildPhase::Failed,
                    outcome_fields_kept_in_record(&answer.report),
                );
                return written.wait_up_to_10_seconds().await;
            }
        };
        if let Some(limit) = request.time_limit {
            context = context.with_reported_deadline(Instant::now() + limit);
        }
        let received = AdmittedBuildRequest {
            request: build_request,
            admission,
            accepted,
            resumable: None,
        };
        let exchange = BuildExchange {
            context,
            arrived: Instant::now(),
            arrived_during_shutdown: false,
            format: None,
            is_asynchronous: true,
            resubmission_headers: None,
        };
        tracing::info!("an accepted build is resumed: its builder has gone");
        let threads = self.threads.clone();
        // Nobody waits for the answer. Its outcome is recorded and logged.
        threads
            .run(async move { self.build_then_answer(received, &exchange).await })
            .await;
    }

    /// Verifies the body of an accepted request again, and parses it, if there is a place in the queue for slots.
    async fn verify_admit_and_parse_again(
        &self,
        head: &RequestHead,
        body: Bytes,
        accepted: &RecordedDelivery,
        context: &Context,
    ) -> Result<(BuildRequest, QueueAdmission), Error> {
        let check = self.signature_check_from_secrets(head, context)?;
        let body = request::receive_body(Full::new(body), head, &check, &self.limits).await?;
        if body.tenant_name().as_deref() != accepted.tenant() {
            return Err(Error::OtherTenant);
        }
        let admission = self.builder.slots.admit(body.slot_owner())?;
        let request = body.into_build_request(head.clone(), &self.limits).await?;
        Ok((request, admission))
    }
}
