//! Explains why a build failed, from what it leaves behind.

use std::sync::Arc;
use std::time::Duration;

use function_host::policy::DefaultOrNoStepNetwork;
use tokio::time::{Instant, timeout_at};

use super::Builder;
use super::call::BuilderCall;
use crate::buildkit::CredentialStore;
use crate::context::SourceContext;
use crate::error::Error;
use crate::hint::{
    self, ContextFiles, CredentialHolder, FailedStepNameAndOutput, Failure, Hint,
    LoginStateAtRefusingRegistry, NoFiles,
};
use crate::redact::SecretMask;
use crate::request::BuildRequest;

/// The name of the Dockerfile if the config names none.
const DEFAULT_DOCKERFILE: &str = "Dockerfile";

/// The host to which the credentials for Docker Hub belong.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// The longest time for which credentials are looked up for a hint. The build has failed already, and a caller waits.
const CREDENTIAL_LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);

/// The most entries of a folder among which one in another case is looked for.
const MAX_SEARCHED_ENTRIES: usize = 10_000;

/// The result of looking up a build's credentials for the registry that refused something: whether there are any, or
/// why they could not be looked up.
struct CredentialsGivenOrProblem {
    /// Whether there are credentials that are not empty.
    is_given: bool,
    /// The reason why the credentials could not be looked up.
    problem: Option<String>,
}

impl Builder {
    /// Explains the failure of a build; `None` where the cause is not known.
    pub(crate) async fn explain_failure(
        &self,
        error: &Error,
        request: &BuildRequest,
        call: &BuilderCall<'_>,
        mask: &SecretMask,
    ) -> Option<Hint> {
        let (is_ended, dockerfile_line) = match error {
            Error::Failed(failure) => (false, failure.dockerfile_line),
            Error::TimeLimit { .. } => (true, None),
            _ => return None,
        };
        // The errors of steps, which are part of it, are not masked.
        let unmasked = error.to_string();
        let error = mask.mask_text(&unmasked).into_owned();
        let login = match hint::registry_refusing_credentials(&error) {
            Some(registry) => {
                let credentials = self.credential_store(request);
                look_up_if_credentials_exist_within_a_second(&*credentials, registry, call.deadline).await
            }
            None => None,
        };
        let evidence = call.lock_evidence();
        let step = evidence
            .failed_or_interrupted_step(&unmasked, is_ended)
            .map(|step| {
                let output = mask.mask_bytes(step.kept_whole_output_lines());
                let name = mask.mask_text(&step.name).into_owned();
                (name, String::from_utf8_lossy(&output).into_owned())
            });
        let files = evidence.context().map(|context| FilesOfContext(context.clone()));
        let tenant = request.tenant();
        hint::explain(&Failure {
            error: &error,
            step: step
                .as_ref()
                .map(|(name, output)| FailedStepNameAndOutput { name, output }),
            dockerfile_line,
            dockerfile: request.config.dockerfile.as_deref().unwrap_or(DEFAULT_DOCKERFILE),
            files: files.as_ref().map_or(&NoFiles, |files| files),
            login: login.as_ref().map(|login| LoginStateAtRefusingRegistry {
                holder: match tenant {
                    Some(tenant) => CredentialHolder::Tenant(tenant.name().as_str()),
                    None => CredentialHolder::Operator,
                },
                is_given: login.is_given,
                problem: login.problem.as_deref(),
            }),
            no_network: tenant
                .filter(|tenant| tenant.step_network() == DefaultOrNoStepNetwork::None)
                .map(|tenant| tenant.name().as_str()),
        })
    }

    /// Returns the credentials with which the build pulls and pushes.
    fn credential_store(&self, request: &BuildRequest) -> Arc<dyn CredentialStore> {
        match request.tenant() {
            Some(tenant) => self
                .tenants
                .registries_with_own_credentials(tenant)
                .credentials
                .clone(),
            None => self.credentials.clone(),
        }
    }
}

/// Looks up whether a build has credentials for a registry; `None` if that takes more than a second, or longer than the
/// call.
async fn look_up_if_credentials_exist_within_a_second(
    credentials: &dyn CredentialStore,
    registry: &str,
    deadline: Option<Instant>,
) -> Option<CredentialsGivenOrProblem> {
    let host = match registry {
        "docker.io" => DOCKER_HUB_HOST,
        host => host,
    };
    let end = Instant::now() + CREDENTIAL_LOOKUP_TIMEOUT;
    let end = deadline.map_or(end, |deadline| end.min(deadline));
    Some(
        match timeout_at(end, credentials.look_up_credentials_or_reason(host))
            .await
            .ok()?
        {
            Ok(found) => CredentialsGivenOrProblem {
                is_given: !found.secret.is_empty(),
                problem: None,
            },
            Err(problem) => CredentialsGivenOrProblem {
                is_given: false,
                problem: Some(problem),
            },
        },
    )
}

/// The files of a context for the rules of hints.
struct FilesOfContext(Arc<SourceContext>);

impl ContextFiles for FilesOfContext {
    fn has(&self, path: &str) -> bool {
        self.0.get(path).is_some()
    }

    fn find_only_name_in_other_case(&self, folder: &str, name: &str) -> Option<String> {
        let names = self
            .0
            .child_names_if_entry_exists(folder)?
            .take(MAX_SEARCHED_ENTRIES);
        let mut found = names.filter(|found| *found != name && found.eq_ignore_ascii_case(name));
        let first = found.next()?;
        found.next().is_none().then(|| first.to_owned())
    }

    fn read_beginning(&self, path: &str, limit: usize) -> Option<Vec<u8>> {
        self.0.read_beginning(path, limit)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::buildkit::RegistryCredentials;

    /// A store that counts its look-ups, and whose look-up for the host `slow` never ends.
    #[derive(Debug, Default)]
    struct LookupCountingStoreWithSlowHost(AtomicUsize);

    #[tonic::async_trait]
    impl CredentialStore for LookupCountingStoreWithSlowHost {
        async fn credentials_or_empty(&self, host: &str) -> RegistryCredentials {
            self.0.fetch_add(1, Ordering::Relaxed);
            match host {
                "slow" => pending().await,
                _ => RegistryCredentials::default(),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_credential_lookup_ends_after_a_second_or_at_the_deadline() {
        let store = LookupCountingStoreWithSlowHost::default();
        let start = Instant::now();
        assert!(
            look_up_if_credentials_exist_within_a_second(&store, "slow", None)
                .await
                .is_none()
        );
        assert_eq!(start.elapsed(), CREDENTIAL_LOOKUP_TIMEOUT);
        let deadline = Instant::now() + Duration::from_millis(20);
        assert!(
            look_up_if_credentials_exist_within_a_second(&store, "slow", Some(deadline))
                .await
                .is_none()
        );
        assert_eq!(Instant::now(), deadline);
    }

    #[tokio::test]
    async fn one_credential_lookup_asks_the_store_once() {
        let store = LookupCountingStoreWithSlowHost::default();
        let login = look_up_if_credentials_exist_within_a_second(&store, "r.example", None).await;
        assert!(login.is_some_and(|login| !login.is_given && login.problem.is_none()));
        assert_eq!(store.0.load(Ordering::Relaxed), 1);
    }
}
