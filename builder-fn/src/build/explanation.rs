//! Explains why a build failed, from what it leaves behind.

use std::sync::Arc;

use function_host::policy::StepNetwork;

use super::Builder;
use super::call::BuilderCall;
use crate::buildkit::CredentialStore;
use crate::context::SourceContext;
use crate::error::Error;
use crate::hint::{
    self, ContextFiles, CredentialHolder, FailedStepOutput, Failure, Hint, NoFiles, RegistryLogin,
};
use crate::redact::SecretMask;
use crate::request::BuildRequest;

/// The name of the Dockerfile if the config names none.
const DEFAULT_DOCKERFILE: &str = "Dockerfile";

/// The host to which the credentials for Docker Hub belong.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// The most entries of a folder among which one in another case is looked for.
const MAX_SEARCHED_ENTRIES: usize = 10_000;

/// The credentials of a build for the registry that refused something.
struct Login {
    is_given: bool,
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
        let login = match hint::refusing_registry(&error) {
            Some(registry) => Some(self.find_login(request, registry).await),
            None => None,
        };
        let evidence = call.lock_evidence();
        let step = evidence.failed_step(&unmasked, is_ended).map(|step| {
            let output = mask.mask_bytes(step.output());
            let name = mask.mask_text(&step.name).into_owned();
            (name, String::from_utf8_lossy(&output).into_owned())
        });
        let files = evidence.context().map(|context| FilesOfContext(context.clone()));
        let tenant = request.tenant();
        hint::explain(&Failure {
            error: &error,
            step: step
                .as_ref()
                .map(|(name, output)| FailedStepOutput { name, output }),
            dockerfile_line,
            dockerfile: request.config.dockerfile.as_deref().unwrap_or(DEFAULT_DOCKERFILE),
            files: files.as_ref().map_or(&NoFiles, |files| files),
            login: login.as_ref().map(|login| RegistryLogin {
                holder: match tenant {
                    Some(tenant) => CredentialHolder::Tenant(tenant.name().as_str()),
                    None => CredentialHolder::Operator,
                },
                is_given: login.is_given,
                problem: login.problem.as_deref(),
            }),
            no_network: tenant
                .filter(|tenant| tenant.step_network() == StepNetwork::None)
                .map(|tenant| tenant.name().as_str()),
        })
    }

    /// Looks up which credentials the build has for a registry.
    async fn find_login(&self, request: &BuildRequest, registry: &str) -> Login {
        let host = match registry {
            "docker.io" => DOCKER_HUB_HOST,
            host => host,
        };
        let credentials: Arc<dyn CredentialStore> = match request.tenant() {
            Some(tenant) => self.tenants.registries(tenant).credentials.clone(),
            None => self.credentials.clone(),
        };
        let problem = credentials.problem(host).await;
        let is_given = match problem {
            None => !credentials.credentials(host).await.secret.is_empty(),
            Some(_) => false,
        };
        Login { is_given, problem }
    }
}

/// The files of a context for the rules of hints.
struct FilesOfContext(Arc<SourceContext>);

impl ContextFiles for FilesOfContext {
    fn has(&self, path: &str) -> bool {
        self.0.get(path).is_some()
    }

    fn find_in_other_case(&self, folder: &str, name: &str) -> Option<String> {
        let names = self.0.names_in_folder(folder)?.take(MAX_SEARCHED_ENTRIES);
        let mut found = names.filter(|found| *found != name && found.eq_ignore_ascii_case(name));
        let first = found.next()?;
        found.next().is_none().then(|| first.to_owned())
    }

    fn read_beginning(&self, path: &str, limit: usize) -> Option<Vec<u8>> {
        self.0.read_beginning(path, limit)
    }
}
