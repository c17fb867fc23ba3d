//! An external stack: an OpenFaaS with Slipway that was not started by this launcher. Tests use it; nothing
//! in it is started or stopped.
//!
//! It is described by the environment variables that `slipway-stack env` prints for the launcher's own
//! stacks.

use std::{collections::HashMap, env, path::PathBuf};

use reqwest::StatusCode;

use super::{GatewayAccess, RegistryAccess, Stack};
use crate::{
    directories::LauncherDirectories,
    error::{LauncherError, Result},
    http::{self, expect_status, send_request},
    progress::ProgressSink,
    tools::{self, ToolPaths},
};

/// The stack name that selects the external stack.
pub(crate) const EXTERNAL_STACK_NAME: &str = "external";

/// The environment variables that describe an external stack and must be set.
const REQUIRED_VARIABLES: [&str; 7] = [
    "OPENFAAS_URL",
    "OPENFAAS_USER",
    "OPENFAAS_PASSWORD",
    "PAYLOAD_SECRET",
    "DEPLOY_SECRET",
    "REGISTRY",
    "BUILDKIT_HOST",
];

/// Creates the handle of the external stack from environment variables; fails if a required one is missing.
pub(crate) fn external_stack_from_env() -> Result<Stack> {
    external_stack_from_variables(&LauncherDirectories::from_env()?, &env::vars().collect())
}

/// Builds the client programs that tests use, checks the external stack's credentials at its gateway, and returns the
/// handle of the stack.
pub(crate) async fn build_clients_and_check_login(progress: &ProgressSink) -> Result<Stack> {
    let stack = external_stack_from_env()?;
    let directories = LauncherDirectories::from_env()?;
    for module in ["faas-cli", "runc", "buildkit"] {
        tools::build_go_module(&directories, module, progress).await?;
    }
    let GatewayAccess { url, user, password } = &stack.gateway;
    let request = http::http_client_without_proxy()?
        .get(format!("{url}/system/functions"))
        .basic_auth(user, Some(password));
    expect_status(send_request(request).await?, &[StatusCode::OK]).await?;
    progress.emit_progress_line("stack", format_args!("{url} accepts the credentials"));
    Ok(stack)
}

/// Creates the handle of the external stack from variables; fails with the names of all that are missing or empty.
fn external_stack_from_variables(
    directories: &LauncherDirectories,
    environment: &HashMap<String, String>,
) -> Result<Stack> {
    let value = |name: &str| environment.get(name).filter(|value| !value.is_empty()).cloned();
    let missing = REQUIRED_VARIABLES
        .into_iter()
        .filter(|name| value(name).is_none())
        .collect::<Vec<_>>();
    if !missing.is_empty() {
        return Err(LauncherError::Environment(format!(
            "an external stack needs these environment variables: {}",
            missing.join(", ")
        )));
    }
    let text = |name: &str| value(name).unwrap_or_default();
    let url = text("OPENFAAS_URL").trim_end_matches('/').to_owned();
    let registry = text("REGISTRY");
    let dir = directories.stack_directory(EXTERNAL_STACK_NAME)?;
    Ok(Stack {
        builder_url: value("BUILDER_URL").unwrap_or_else(|| format!("{url}/function/builder-fn")),
        gateway: GatewayAccess {
            url,
            user: text("OPENFAAS_USER"),
            password: text("OPENFAAS_PASSWORD"),
        },
        rust_image: value("RUST_IMAGE").unwrap_or_else(|| crate::image::rust_image_reference(&registry)),
        registry: RegistryAccess {
            host: registry,
            user: text("REGISTRY_USER"),
            password: text("REGISTRY_PASSWORD"),
        },
        buildkit_host: text("BUILDKIT_HOST"),
        payload_secret: PathBuf::from(text("PAYLOAD_SECRET")),
        deploy_secret: PathBuf::from(text("DEPLOY_SECRET")),
        tools: ToolPaths::paths_once_built(directories)?,
        dir,
        plan: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fictitious_launcher_directories() -> LauncherDirectories {
        LauncherDirectories {
            cache: "/c".into(),
            stacks: "/s".into(),
            clusters: "/k".into(),
        }
    }

    #[test]
    fn all_missing_variables_are_reported_at_once() {
        let environment = [
            ("OPENFAAS_URL", "http://g"),
            ("REGISTRY", ""),
            ("OPENFAAS_USER", "u"),
        ];
        let environment = environment
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let error = external_stack_from_variables(&fictitious_launcher_directories(), &environment)
            .unwrap_err()
            .to_string();
        let expected = "OPENFAAS_PASSWORD, PAYLOAD_SECRET, DEPLOY_SECRET, REGISTRY, BUILDKIT_HOST";
        assert_eq!(
            error,
            format!("an external stack needs these environment variables: {expected}")
        );
    }

    #[test]
    fn the_variables_that_a_stack_prints_describe_it_as_an_external_one() {
        let environment = REQUIRED_VARIABLES.map(|name| (name.to_owned(), format!("value-of-{name}")));
        let stack =
            external_stack_from_variables(&fictitious_launcher_directories(), &environment.into()).unwrap();
        let printed = stack.environment_variables().into_iter();
        let printed = printed.map(|(name, value)| (name.to_owned(), value)).collect();
        let same = external_stack_from_variables(&fictitious_launcher_directories(), &printed).unwrap();
        assert_eq!(same.environment_variables(), stack.environment_variables());
        assert_eq!(same.deploy_secret, PathBuf::from("value-of-DEPLOY_SECRET"));
    }

    #[tokio::test]
    async fn parts_of_an_external_stack_cannot_be_stopped() {
        let environment = REQUIRED_VARIABLES
            .map(|name| (name.to_owned(), "http://x/".to_owned()))
            .into();
        let stack = external_stack_from_variables(&fictitious_launcher_directories(), &environment).unwrap();
        assert_eq!(stack.builder_url, "http://x/function/builder-fn");
        assert!(!stack.registry_requires_password());
        assert!(matches!(
            stack.stop_part(crate::StackPart::Gateway).await,
            Err(LauncherError::ExternalStack)
        ));
    }
}
