//! The context that a build begins with: files that came with the request or are fetched for it, or a git repository at
//! a commit.

use std::sync::Arc;

use function_host::trace;
use tokio::time::Instant;

use super::Builder;
use super::call::BuilderCall;
use crate::buildkit::{
    BuildFailure, CommitHashOnlyOrWithCheckout, Connection, GitContextSource, JobError, SessionServices,
};
use crate::error::Error;
use crate::operator_tokens::OperatorGitToken;
use crate::registry::RepositoryAccess;
use crate::remote_context::ContextError;
use crate::report::{LineFormatter, LogSink};
use crate::request::{BuildRequest, BuildSource, GitContext, PreparedContext, ReferencedContext};
use crate::sources::{SourceRules, UrlRejection};

/// The context of one attempt, or of all parts of a split build.
#[derive(Clone, Debug)]
pub(super) enum JobBuildContext {
    /// Files, which the session sends.
    Files(PreparedContext),
    /// A git repository, which the daemon reads at this commit.
    Git {
        /// The repository, and the part of it that is the context.
        source: GitContextSource,
        /// The full hash of the commit.
        commit: String,
    },
}

impl JobBuildContext {
    /// Returns the commit of the context, if it is from a git repository.
    pub(super) fn commit(&self) -> Option<&str> {
        match self {
            Self::Files(_) => None,
            Self::Git { commit, .. } => Some(commit),
        }
    }
}

impl Builder {
    /// Returns the context of a request. What the request refers to is fetched, or its commit looked up, as a step of
    /// the log.
    pub(super) async fn prepare_context(
        &self,
        connection: &Connection,
        request: &BuildRequest,
        call: &BuilderCall<'_>,
        lines: &mut LineFormatter,
        log: &mut dyn LogSink,
    ) -> Result<JobBuildContext, Error> {
        match &request.source {
            BuildSource::Received(context) => {
                Ok(JobBuildContext::Files(context.prepared_unless_index_dropped()?))
            }
            BuildSource::Referenced(referenced) => self
                .fetch_and_index_context(referenced, lines, log)
                .await
                .map(JobBuildContext::Files),
            BuildSource::Git(git) => {
                self.look_up_commit_of_git_context(connection, git, request, call, lines, log)
                    .await
            }
        }
    }

    async fn fetch_and_index_context(
        &self,
        referenced: &ReferencedContext,
        lines: &mut LineFormatter,
        log: &mut dyn LogSink,
    ) -> Result<PreparedContext, Error> {
        let step = format!("[context] fetch {}", referenced.reference);
        let start = Instant::now();
        log.push(lines.format_own_step_start(&step));
        let span = trace::client_span("fetch context");
        let fetching = async {
            let tar = self.contexts.fetch(referenced).await?;
            let bytes = tar.len();
            let prepared = referenced.rules.prepare_fetched(tar).await;
            Ok((prepared.map_err(ContextError::Unusable)?, bytes))
        };
        let fetched: Result<_, ContextError> = span.run(fetching).await;
        log.push(lines.format_own_step_end(&step, start.elapsed()));
        match fetched {
            Ok(((context, warnings), bytes)) => {
                span.set_attribute("slipway.context.bytes", i64::try_from(bytes).unwrap_or(i64::MAX));
                tracing::info!(context = %referenced.reference, bytes, "fetched a context");
                warnings
                    .iter()
                    .for_each(|warning| log.push(lines.record_warning_and_return_line(warning)));
                Ok(context)
            }
            Err(error) => {
                let error = Error::from(error);
                crate::trace::mark_failed_without_frontend_name(&span, &error);
                Err(error)
            }
        }
    }

    /// Looks up the commit of a git repository, at the daemon that reads it.
    async fn look_up_commit_of_git_context(
        &self,
        connection: &Connection,
        git: &GitContext,
        request: &BuildRequest,
        call: &BuilderCall<'_>,
        lines: &mut LineFormatter,
        log: &mut dyn LogSink,
    ) -> Result<JobBuildContext, Error> {
        if !git.repository.is_encrypted() && !self.settings.insecure {
            return Err(Error::GitRepository(UrlRejection::NotEncrypted {
                url: git.repository.to_string(),
            }));
        }
        let step = format!("[context] look up the commit of {git}");
        let start = Instant::now();
        log.push(lines.format_own_step_start(&step));
        let span = trace::client_span("look up commit");
        let token = self.read_operator_git_token(request, call)?;
        let mut rules = self.source_rules(request, call, RepositoryAccess::default());
        if let Some(token) = &token {
            rules.secrets = token.clone();
        }
        let secrets = rules.secrets.clone();
        let lookup = match &token {
            Some(_) => CommitHashOnlyOrWithCheckout::HashAndCheckout,
            None => CommitHashOnlyOrWithCheckout::HashOnly,
        };
        let services = SessionServices::new()
            .with_health()
            .with_source_check_gating_later_files(Arc::new(rules))
            .with_secrets_unless_empty(secrets);
        let resolving = git.source.resolve_commit(connection, services, lookup);
        let resolved = span.run(resolving).await;
        log.push(lines.format_own_step_end(&step, start.elapsed()));
        let mask = token.as_ref().map(|token| token.mask().clone());
        let commit = resolved.map_err(|error| match error {
            JobError::Failed(failure) => JobError::Failed(BuildFailure {
                message: format!(
                    "context.git: {}",
                    mask.unwrap_or_default().mask_text(&failure.message)
                ),
                ..failure
            }),
            error => error,
        })?;
        span.set_attribute("slipway.commit", commit.clone());
        tracing::info!(context = %git, commit, "looked up the commit of a context");
        let source = match token {
            // The build has no token, and need not ask the server.
            Some(_) => git.source.at_commit(&commit),
            None => git.source.clone(),
        };
        Ok(JobBuildContext::Git { source, commit })
    }

    /// Returns the name of the secret with the operator's token for the context of a request, if there is one.
    fn operator_git_token_secret_name(&self, request: &BuildRequest, call: &BuilderCall<'_>) -> Option<&str> {
        let BuildSource::Git(git) = &request.source else {
            return None;
        };
        let tenant = request.tenant().map(AsRef::as_ref);
        self.settings
            .git_tokens
            .secret_name_for_repository(&git.source.url, tenant, &call.secrets)
    }

    /// Reads the operator's token for the context of a request. It is read for each build, so that a new one is used at
    /// once.
    fn read_operator_git_token(
        &self,
        request: &BuildRequest,
        call: &BuilderCall<'_>,
    ) -> Result<Option<Arc<OperatorGitToken>>, Error> {
        let Some(secret) = self.operator_git_token_secret_name(request, call) else {
            return Ok(None);
        };
        let token = self
            .contexts
            .secrets
            .read_secret(secret)
            .map_err(Error::OperatorGitToken)?;
        Ok(Some(Arc::new(OperatorGitToken::new(token))))
    }

    /// Returns the rules for the sources of a build, which uses the repositories in `access`.
    pub(super) fn source_rules(
        &self,
        request: &BuildRequest,
        call: &BuilderCall<'_>,
        access: RepositoryAccess,
    ) -> SourceRules {
        SourceRules {
            tenant: request.tenant().cloned(),
            allowed: self.settings.allowed_sources.clone(),
            sbom_generator: self.settings.sbom_generator.clone(),
            stored_contexts: self.contexts.stored.repository.clone(),
            records: self.settings.records_repository.clone(),
            caches: self.settings.cache_repository.clone(),
            access,
            secrets: Arc::new(call.secrets.clone()),
            skips_submodules: self.operator_git_token_secret_name(request, call).is_some(),
        }
    }
}
