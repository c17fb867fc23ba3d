//! The deployment of Slipway on a stack: its secrets, its two functions, and a sample function that is built
//! and deployed by them.
//!
//! The two functions are built by builder-fn itself, running as a plain process: Slipway's first build is
//! Slipway. The tag of each image is a hash of its context and of the reference of the Rust image, so an image that
//! is already in the registry is found and not built again.

mod build;
mod callback;
mod context;
mod faas_cli;
mod gateway;
mod sample;

use std::time::Duration;

use tokio::time::Instant;

use self::{
    build::BuilderClient,
    context::StackBuildContext,
    faas_cli::FaasCliProject,
    gateway::{FunctionImageAndAnnotations, GatewayClient},
    sample::SampleFunctionDeployer,
};
use crate::{
    address::{buildkit_url_for_functions, gateway_url_for_functions},
    certificates,
    credentials::FUNCTION_SECRET_NAMES,
    error::{IoResultExt as _, LauncherError, Result, error_with_causes},
    http,
    image::RegistryClient,
    part::StackPart,
    progress::ProgressSink,
    stack::Stack,
};

/// The names of Slipway's functions.
const SLIPWAY_FUNCTION_NAMES: [&str; 2] = ["builder-fn", "deployer-fn"];

/// The beginning of the names of the registry's repositories for Slipway's images and the sample function's image.
const SLIPWAY_REPOSITORY_PREFIX: &str = "slipway";

/// The annotation of a function with a hash of its deployment; it shows whether the function is up to date.
const DEPLOYMENT_HASH_ANNOTATION: &str = "com.slipway.stack";

/// The longest time from deploying a function to its readiness.
const FUNCTION_READY_TIMEOUT: Duration = Duration::from_secs(60);

/// The interval between checks whether a deployed function is ready.
const READY_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Deploys Slipway's functions and the sample function, except those that are already up to date, after building the
/// images that the registry lacks; then calls the sample function.
pub(crate) async fn deploy_functions_and_call_sample(
    stack: &Stack,
    registry: &RegistryClient,
    progress: &ProgressSink,
) -> Result<()> {
    let gateway = GatewayClient::new(http::http_client_without_proxy()?, stack);
    put_function_secrets(stack, &gateway).await?;
    let faas_cli = FaasCliProject::recreate_project_from_repository(stack)?;
    let mut planned = Vec::new();
    faas_cli.write_function_contexts(stack).await?;
    for name in SLIPWAY_FUNCTION_NAMES {
        let context = StackBuildContext::read_directory_tree(&faas_cli.context_directory(name))?;
        planned.push(PlannedFunction::new(stack, name, context, &faas_cli)?);
    }
    build_missing_images_with_builder_process(stack, registry, &planned, progress).await?;
    for function in &planned {
        function
            .deploy_if_changed_or_not_ready_and_wait(stack, &gateway, &faas_cli, progress)
            .await?;
    }
    SampleFunctionDeployer {
        stack,
        registry,
        gateway: &gateway,
        progress,
    }
    .deploy_if_outdated_and_require_successful_call(&faas_cli)
    .await
}

/// Creates or updates all secrets of Slipway's functions through the gateway.
async fn put_function_secrets(stack: &Stack, gateway: &GatewayClient) -> Result<()> {
    let existing = gateway.secret_names().await?;
    for name in FUNCTION_SECRET_NAMES
        .into_iter()
        .chain(certificates::BUILDKIT_CLIENT_SECRET_NAMES)
    {
        let path = stack.secrets_directory().join(name);
        let value = std::fs::read_to_string(&path).with_operation("read", &path)?;
        gateway
            .put_secret(name, &value, existing.iter().any(|other| other == name))
            .await?;
    }
    Ok(())
}

/// One of Slipway's functions, with its build context and the identity of its deployment.
#[derive(Debug)]
struct PlannedFunction {
    name: &'static str,
    context: StackBuildContext,
    /// The tag of the function's image: a hash of its build context and of the reference of the Rust image.
    tag: String,
    image: String,
    /// A hash of the function's image reference, `stack.yml` and the expiry of BuildKit's certificates.
    deployment_hash: String,
}

impl PlannedFunction {
    /// Computes the image reference and the deployment hash of a function from its build context; deploys nothing.
    fn new(
        stack: &Stack,
        name: &'static str,
        context: StackBuildContext,
        faas_cli: &FaasCliProject,
    ) -> Result<Self> {
        let tag = context.tag_hash(&[&stack.rust_image()]);
        let image = format!("{}/{SLIPWAY_REPOSITORY_PREFIX}/{name}:{tag}", stack.registry.host);
        // New certificates are new values of secrets, which a running function may have read already.
        let certificates = stack.plan()?.certificates_expire.to_string();
        let deployment_hash = context::hash_of_texts(&[&image, &faas_cli.stack_yml_text()?, &certificates]);
        Ok(Self {
            name,
            context,
            tag,
            image,
            deployment_hash,
        })
    }

    /// Returns the values of the variables in `stack.yml` for this function.
    fn all_stack_yml_variables(&self, stack: &Stack) -> Vec<(&'static str, String)> {
        let mut values = shared_stack_yml_variables(stack);
        values.push(("TAG", self.tag.clone()));
        values
    }

    /// Deploys the function, unless the same deployment already exists and is ready, and waits until it is ready.
    async fn deploy_if_changed_or_not_ready_and_wait(
        &self,
        stack: &Stack,
        gateway: &GatewayClient,
        faas_cli: &FaasCliProject,
        progress: &ProgressSink,
    ) -> Result<()> {
        let same = |status: &FunctionImageAndAnnotations| {
            status.image == self.image
                && status.annotation(DEPLOYMENT_HASH_ANNOTATION) == Some(&self.deployment_hash)
        };
        let up_to_date = gateway
            .function_status(self.name)
            .await?
            .is_some_and(|status| same(&status));
        if up_to_date && gateway.readiness_probe_succeeds(self.name).await {
            return Ok(());
        }
        progress.emit_progress_line(self.name, "deploying");
        let annotation = format!("{DEPLOYMENT_HASH_ANNOTATION}={}", self.deployment_hash);
        let public_url = format!("public_url={}", stack.gateway.url);
        let mut arguments = vec![
            "deploy",
            "-f",
            "stack.yml",
            "--filter",
            self.name,
            "--annotation",
            &annotation,
        ];
        if self.name == "deployer-fn" {
            arguments.extend(["--env", &public_url]);
        }
        if self.name == "builder-fn" {
            arguments.extend(
                certificates::BUILDKIT_CLIENT_SECRET_NAMES
                    .iter()
                    .flat_map(|name| ["--secret", name]),
            );
        }
        faas_cli
            .run_faas_cli(stack, &arguments, self.all_stack_yml_variables(stack))
            .await?;
        let began = Instant::now();
        while !gateway.readiness_probe_succeeds(self.name).await {
            if began.elapsed() > FUNCTION_READY_TIMEOUT {
                let log = gateway.function_log_tail_or_empty(self.name).await;
                return Err(LauncherError::Timeout {
                    operation: format!("the start of {}", self.name),
                    seconds: FUNCTION_READY_TIMEOUT.as_secs(),
                    details: format!("\nlast lines of its log:\n{log}"),
                });
            }
            tokio::time::sleep(READY_POLL_INTERVAL).await;
        }
        progress.emit_progress_line(self.name, "ready");
        Ok(())
    }
}

/// Returns the values of the variables in `stack.yml` that all functions of the stack share.
fn shared_stack_yml_variables(stack: &Stack) -> Vec<(&'static str, String)> {
    vec![
        ("OPENFAAS_URL", stack.gateway.url.clone()),
        ("REGISTRY", stack.registry.host.clone()),
        ("REPOSITORY", SLIPWAY_REPOSITORY_PREFIX.to_owned()),
        ("RUST_IMAGE", stack.rust_image()),
        ("BUILDKIT_URL", buildkit_url_for_functions()),
        ("GATEWAY_URL", gateway_url_for_functions()),
        ("INSECURE", "true".to_owned()),
        // Without records of builds, no function can be rolled back to an earlier version.
        (
            "RECORDS_REPOSITORY",
            format!("{}/{SLIPWAY_REPOSITORY_PREFIX}/records", stack.registry.host),
        ),
        // Whoever waits at a terminal sees for themselves whether a version stays up.
        ("SETTLING_TIME", "0s".to_owned()),
    ]
}

/// Builds the functions' images that the registry lacks, with builder-fn running as a plain process.
async fn build_missing_images_with_builder_process(
    stack: &Stack,
    registry: &RegistryClient,
    all: &[PlannedFunction],
    progress: &ProgressSink,
) -> Result<()> {
    let mut missing = Vec::new();
    for function in all {
        let repository = format!("{SLIPWAY_REPOSITORY_PREFIX}/{}", function.name);
        if registry
            .digest_if_complete(&repository, &function.tag)
            .await?
            .is_none()
        {
            missing.push(function);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    progress.emit_progress_line("builder", "starting builder-fn as a plain process");
    stack.start_part(StackPart::Builder).await?;
    let builder = BuilderClient::new(
        http::http_client_without_proxy()?,
        stack.builder_process_url()?,
        &stack.payload_secret,
    );
    let builds = missing.iter().map(|function| async {
        let config = build::build_config_of_slipway(&function.image, &stack.rust_image());
        let built = builder
            .build_and_wait(
                function.name,
                function.context.tar_of_build_request(&config)?,
                progress,
            )
            .await;
        built.map_err(|error| match error {
            // The connection broke or was not made: the process's log has the reason.
            error @ LauncherError::NoAnswer { .. } => LauncherError::NotReady {
                part: StackPart::Builder.to_string(),
                reason: error_with_causes(error),
                log: stack.dir.part_log_file(StackPart::Builder.name()),
                tail: stack.current_part_log_tail_or_empty(StackPart::Builder, 30),
            },
            error => error,
        })
    });
    let built = futures_util::future::try_join_all(builds).await;
    stack.stop_part(StackPart::Builder).await?;
    built.map(drop)
}
