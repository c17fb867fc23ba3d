//! The routes below `/functions`.

use std::sync::Arc;
use std::time::SystemTime;

use function_host::http::request::Parts;
use function_host::http::{Method, StatusCode};
use function_host::policy::Tenant;
use function_host::{Context, ErrorChain, Response, reply, trace};
use serde_json::json;

use super::error::RollbackError;
use super::request::{FunctionRoute, RollbackQuery, parse_function};
use super::run::{AcceptedRollback, ExpectedRunningVersions};
use crate::answer;
use crate::buildkit::ManifestLookup;
use crate::builds::{BuildPhase, BuildRecord, RecordKey, RecordStore, SIGNED_AT_HEADER};
use crate::function_id::FunctionId;
use crate::hand_over::DeployVia;
use crate::handler::BuilderApi;
use crate::registry::ImageName;
use crate::request::check_deployment_of_existing_image;
use crate::request::time::parse_rfc3339;
use crate::versions::{FunctionVersion, choose_version};

/// A function of the caller's, and the store with its versions.
struct CallersFunction<'a> {
    tenant: Option<Arc<Tenant>>,
    /// The name of the function, without its tenant.
    function: FunctionId,
    store: &'a RecordStore,
}

impl CallersFunction<'_> {
    fn tenant_name(&self) -> Option<String> {
        self.tenant.as_ref().map(|tenant| tenant.name().to_string())
    }

    async fn list_versions(&self) -> Result<Vec<FunctionVersion>, RollbackError> {
        let function = self.function.without_tenant();
        Ok(self
            .store
            .list_versions_for_rollback(&self.tenant_name(), &function)
            .await?)
    }
}

impl BuilderApi {
    /// Answers a request to a route below `/functions`, if its signature is authentic; rejects any other request.
    pub(crate) async fn authenticate_and_answer_function_request(
        &self,
        route: FunctionRoute,
        request: &Parts,
        context: &Context,
    ) -> Response {
        trace::set_route_of_current_request(route.name());
        let allowed = match route {
            FunctionRoute::Versions(_) => Method::GET,
            FunctionRoute::Rollback(_) => Method::POST,
        };
        if request.method != allowed {
            return answer::method_not_allowed_response(allowed.as_str());
        }
        let answered = match &route {
            FunctionRoute::Versions(name) => self.answer_versions(name, request, context).await,
            FunctionRoute::Rollback(name) => {
                // Boxed, because the futures of lookups are large, and the stack of a thread is not.
                Box::pin(self.answer_rollback(name, request, context)).await
            }
        };
        answered.unwrap_or_else(|error| {
            let status = error.status();
            if status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED {
                tracing::error!(error = %ErrorChain(&error), "could not answer a request about a function's versions");
            }
            match status {
                StatusCode::TOO_MANY_REQUESTS => reply::too_many_requests(format!("{error}\n")),
                status => answer::error_response(status, &error.to_string()),
            }
        })
    }

    /// Authenticates a request about the function `name`.
    fn authenticate_and_parse_function(
        &self,
        name: &str,
        request: &Parts,
        context: &Context,
    ) -> Result<CallersFunction<'_>, RollbackError> {
        let tenant = self
            .authenticate_bodyless_request(request, context)
            .map_err(|(status, text)| RollbackError::Unauthenticated(status, text))?;
        Ok(CallersFunction {
            tenant,
            function: parse_function(name, &self.builder.settings.default_namespace)?,
            store: self.builder.records.store().ok_or(RollbackError::NoStore)?,
        })
    }

    /// Answers with the versions that a rollback of a function can go back to, the newest first.
    async fn answer_versions(
        &self,
        name: &str,
        request: &Parts,
        context: &Context,
    ) -> Result<Response, RollbackError> {
        let own = self.authenticate_and_parse_function(name, request, context)?;
        let function = own.function.without_tenant();
        let versions = own.list_versions().await?;
        let target = choose_version(&function, &versions, None).ok();
        let listed = versions.iter().enumerate().map(|(at, version)| {
            let mut json = version.to_json();
            json["current"] = json!(at == 0);
            json["target"] = json!(target.is_some_and(|target| target.id == version.id));
            json
        });
        let body = json!({"function": function, "versions": listed.collect::<Vec<_>>()});
        Ok(answer::json_value_response(StatusCode::OK, &body))
    }

    /// Begins the rollback of a function, and answers with its record. A request that was accepted before is answered
    /// with the record that it has.
    async fn answer_rollback(
        &self,
        name: &str,
        request: &Parts,
        context: &Context,
    ) -> Result<Response, RollbackError> {
        let own = self.authenticate_and_parse_function(name, request, context)?;
        let query = RollbackQuery::parse(request.uri.query())?;
        if context.shutdown().has_begun() {
            return Err(RollbackError::Draining);
        }
        if self.builder.deployer.settings.via == DeployVia::Callback {
            return Err(RollbackError::Callback);
        }
        // Before anything is changed: a builder without the secret cannot deploy.
        self.builder.deployer.signer().map_err(RollbackError::Signer)?;
        // Before the ID is looked up: see the documentation of this module.
        let versions = own.list_versions().await?;
        let key = RecordKey {
            tenant: own.tenant_name(),
            id: query.id.clone(),
        };
        if let Some(known) = self.find_record_in_process_or_store(own.store, &key).await? {
            let is_same =
                known.rollback.is_some() && known.function.as_deref() == Some(&own.function.without_tenant());
            return match is_same {
                true => Ok(answer_record_202_until_ended(&known)),
                false => Err(RollbackError::IdTaken { id: query.id }),
            };
        }
        let target = choose_version(&own.function.without_tenant(), &versions, query.to.as_deref())?;
        // There is a version, and so there is a first one.
        let current = versions.first().unwrap_or(target);
        let tenant = own.tenant.as_deref();
        let now = SystemTime::now();
        let signed_at = signing_time_from_header(request).unwrap_or(now).min(now);
        // A rollback that was refused and arrives again later undoes nothing that was handed in since.
        if current.submitted_at > signed_at {
            return Err(RollbackError::Outdated {
                id: current.id.clone(),
            });
        }
        self.check_rules_allow_version(target, tenant)?;
        let warning = self
            .check_image_still_exists_returning_warning(target, tenant)
            .await?;
        context
            .accept()
            .map_err(|full| RollbackError::Busy { limit: full.limit })?;
        let function = match tenant {
            Some(tenant) => own.function.clone().of_tenant(tenant.name()),
            None => own.function.clone(),
        };
        let supersession = match tenant {
            Some(tenant) => self.builder.tenants.daemon(tenant),
            None => Ok(None),
        };
        let supersession = supersession.map_err(RollbackError::TenantDaemon)?;
        let supersession =
            supersession.map_or_else(|| self.builder.supersession.clone(), |own| own.supersession);
        let permit = self.rollbacks.admit(function.clone(), &query.id)?;
        let version = target.as_rollback(&query.id, current, signed_at);
        let mut accepted = self.builder.records.accept(key.clone(), now);
        accepted.update_unless_succeeded(|record| {
            record.phase = BuildPhase::Deploying;
            record.image = Some(version.tag.clone());
            record.function = Some(version.function.clone());
            record.submitted_at = Some(version.submitted_at);
            record.started_at = Some(now);
            record.attempts = 1;
            record
                .outcome
                .insert("digest".into(), json!(version.digest_or_empty()));
            record.rollback.clone_from(&version.rollback);
        });
        if let Err(error) = accepted.store_acceptance_if_store_exists(None).await {
            // The ID is free again: nothing was begun under it.
            accepted.leave_to_other_processes();
            return Err(error.into());
        }
        // Another builder may have accepted the same request, and ended it.
        match own.store.read(&key).await {
            Ok(Some(stored)) if stored.phase.is_terminal() => {
                accepted.leave_to_other_processes();
                return Ok(answer_record_202_until_ended(&stored));
            }
            Ok(_) => {}
            Err(error) => {
                accepted.leave_to_other_processes();
                return Err(error.into());
            }
        }
        let rollback = AcceptedRollback {
            tenant: own.tenant_name(),
            function,
            version,
            supersession,
            accepted,
            permit,
            warning,
            expected: query
                .to
                .is_none()
                .then(|| ExpectedRunningVersions::of_versions_newest_first(&versions))
                .flatten(),
        };
        let record = self.builder.records.find_receiver_and_mask(&key);
        self.spawn_rollback(rollback, context);
        let record = record.map(|(record, _)| record.borrow().clone());
        Ok(answer_record_202_until_ended(
            &record.unwrap_or_else(|| BuildRecord::accepted(&key.id, now)),
        ))
    }

    /// Finds the record with this ID, in this process and in the store.
    async fn find_record_in_process_or_store(
        &self,
        store: &RecordStore,
        key: &RecordKey,
    ) -> Result<Option<BuildRecord>, RollbackError> {
        if let Some((own, _)) = self.builder.records.find_receiver_and_mask(key) {
            return Ok(Some(own.borrow().clone()));
        }
        Ok(store.read(key).await?)
    }

    /// Fails if the rules of today do not allow a version.
    fn check_rules_allow_version(
        &self,
        version: &FunctionVersion,
        tenant: Option<&Tenant>,
    ) -> Result<(), RollbackError> {
        let image = ImageName::parse_with_registry(&version.image).map(|image| image.to_string());
        let checked = check_deployment_of_existing_image(
            image.as_deref().unwrap_or(&version.image),
            &version.deploy,
            tenant,
            &self.limits.reserved,
        );
        checked.map_err(|violations| RollbackError::Forbidden {
            id: version.id.clone(),
            violations,
        })
    }

    /// Fails if the registry does not have the image of a version any more. Returns a warning if that cannot be looked
    /// up.
    async fn check_image_still_exists_returning_warning(
        &self,
        version: &FunctionVersion,
        tenant: Option<&Tenant>,
    ) -> Result<Option<String>, RollbackError> {
        let manifests: Arc<dyn ManifestLookup> = match tenant {
            Some(tenant) => self.builder.tenants.registries_with_own_credentials(tenant),
            None => self.builder.manifests.clone(),
        };
        match manifests
            .has_manifest(&version.tag, version.digest_or_empty())
            .await
        {
            Ok(true) => Ok(None),
            Ok(false) => Err(RollbackError::ImageGone {
                image: version.image.clone(),
                id: version.id.clone(),
            }),
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&*error), "could not look up the image of a rollback");
                Ok(Some(
                    "the registry could not be asked whether it still has the image of this version"
                        .to_owned(),
                ))
            }
        }
    }
}

/// Returns the time in the header `X-Signed-At`, which the request's signature covers; `None` if it is missing or
/// malformed, which it can be only where signatures are disabled.
fn signing_time_from_header(request: &Parts) -> Option<SystemTime> {
    parse_rfc3339(request.headers.get(SIGNED_AT_HEADER)?.to_str().ok()?)
}

/// Answers with the record of a rollback: 202 until it has ended.
fn answer_record_202_until_ended(record: &BuildRecord) -> Response {
    let status = match record.phase.is_terminal() {
        true => StatusCode::OK,
        false => StatusCode::ACCEPTED,
    };
    answer::json_value_response(status, &record.to_json())
}
