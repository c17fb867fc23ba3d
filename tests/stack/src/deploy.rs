//! The deployment of Slipway on a stack: its secrets, its two functions, and a sample function that is built
//! and deployed by them.
//!
//! The two functions are built by builder-fn itself, running as a plain process: Slipway's first build is
//! Slipway. The tag of each image is a hash of its context, so an image that is already in the registry is
//! found and not built again.

mod build;
mod callback;
mod context;
mod faas_cli;
mod gateway;
mod sample;

use std::time::Duration;

use tokio::time::Instant;

use self::{
    build::Builder,
    context::Context,
    faas_cli::FaasCli,
    gateway::{FunctionStatus, GatewayClient},
    sample::Sample,
};
use crate::{
    address::{buildkit_for_functions, gateway_for_functions},
    credentials::SECRETS,
    error::{Error, IoResultExt as _, Result, with_causes},
    http,
    image::RegistryClient,
    part::Part,
    progress::Progress,
    stack::Stack,
};

/// The names of Slipway's functions.
const FUNCTIONS: [&str; 2] = ["builder-fn", "deployer-fn"];

/// The registry's repository of Slipway's images and of the sample function's image.
const REPOSITORY: &str = "slipway";

/// The annotation of a function with a hash of its deployment; it shows whether the function is up to date.
const ANNOTATION: &str = "com.slipway.stack";

/// The longest time from deploying a function to its readiness.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// The interval between checks whether a deployed function is ready.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Deploys Slipway's functions and the sample function, except those that are already up to date.
pub(crate) async fn deploy(stack: &Stack, registry: &RegistryClient, progress: &Progress) -> Result<()> {
    let gateway = GatewayClient::new(http::client()?, stack);
    put_secrets(stack, &gateway).await?;
    let faas_cli = FaasCli::open(stack)?;
    let mut planned = Vec::new();
    faas_cli.write_function_contexts(stack).await?;
    for name in FUNCTIONS {
        let context = Context::read(&faas_cli.context_directory(name))?;
        planned.push(PlannedFunction::new(stack, name, context, &faas_cli)?);
    }
    build_missing(stack, registry, &planned, progress).await?;
    for function in &planned {
        function.deploy(stack, &gateway, &faas_cli, progress).await?;
    }
    Sample {
        stack,
        registry,
        gateway: &gateway,
        progress,
    }
    .run(&faas_cli)
    .await
}

async fn put_secrets(stack: &Stack, gateway: &GatewayClient) -> Result<()> {
    let existing = gateway.secrets().await?;
    for name in SECRETS {
        let path = stack.secrets().join(name);
        let value = std::fs::read_to_string(&path).at("read", &path)?;
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
    context: Context,
    /// The tag of the function's image: a hash of its build context.
    tag: String,
    image: String,
    /// A hash of the function's image reference and `stack.yml`.
    deployment_hash: String,
}

impl PlannedFunction {
    fn new(stack: &Stack, name: &'static str, context: Context, faas_cli: &FaasCli) -> Result<Self> {
        let tag = context.hash(&[&stack.rust_image()]);
        let image = format!("{}/{REPOSITORY}/{name}:{tag}", stack.registry.host);
        let deployment_hash = context::hash_of(&[&image, &faas_cli.stack_file()?]);
        Ok(Self {
            name,
            context,
            tag,
            image,
            deployment_hash,
        })
    }

    /// Returns the values of the variables in `stack.yml` for this function.
    fn environment(&self, stack: &Stack) -> Vec<(&'static str, String)> {
        let mut values = shared_environment(stack);
        values.push(("TAG", self.tag.clone()));
        values
    }

    /// Deploys the function, unless the same deployment already exists and is ready.
    async fn deploy(
        &self,
        stack: &Stack,
        gateway: &GatewayClient,
        faas_cli: &FaasCli,
        progress: &Progress,
    ) -> Result<()> {
        let same = |status: &FunctionStatus| {
            status.image == self.image && status.annotation(ANNOTATION) == Some(&self.deployment_hash)
        };
        let up_to_date = gateway
            .status(self.name)
            .await?
            .is_some_and(|status| same(&status));
        if up_to_date && gateway.is_ready(self.name).await {
            return Ok(());
        }
        progress.step(self.name, "deploying");
        let annotation = format!("{ANNOTATION}={}", self.deployment_hash);
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
        faas_cli.run(stack, &arguments, self.environment(stack)).await?;
        let began = Instant::now();
        while !gateway.is_ready(self.name).await {
            if began.elapsed() > READY_TIMEOUT {
                let log = gateway.log_tail(self.name).await;
                return Err(Error::Timeout {
                    operation: format!("the start of {}", self.name),
                    seconds: READY_TIMEOUT.as_secs(),
                    details: format!("\nlast lines of its log:\n{log}"),
                });
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        progress.step(self.name, "ready");
        Ok(())
    }
}

/// Returns the values of the variables in `stack.yml` that all functions of the stack share.
fn shared_environment(stack: &Stack) -> Vec<(&'static str, String)> {
    vec![
        ("OPENFAAS_URL", stack.gateway.url.clone()),
        ("REGISTRY", stack.registry.host.clone()),
        ("REPOSITORY", REPOSITORY.to_owned()),
        ("RUST_IMAGE", stack.rust_image()),
        ("BUILDKIT_URL", buildkit_for_functions()),
        ("GATEWAY_URL", gateway_for_functions()),
        ("INSECURE", "true".to_owned()),
    ]
}

/// Builds the functions' images that the registry lacks, with builder-fn running as a plain process.
async fn build_missing(
    stack: &Stack,
    registry: &RegistryClient,
    all: &[PlannedFunction],
    progress: &Progress,
) -> Result<()> {
    let mut missing = Vec::new();
    for function in all {
        let repository = format!("{REPOSITORY}/{}", function.name);
        if registry
            .complete_digest(&repository, &function.tag)
            .await?
            .is_none()
        {
            missing.push(function);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    progress.step("builder", "starting builder-fn as a plain process");
    stack.start(Part::Builder).await?;
    let builder = Builder::new(http::client()?, stack.plain_builder_url()?, &stack.payload_secret);
    let builds = missing.iter().map(|function| async {
        let config = build::config(&function.image, &stack.rust_image());
        let built = builder
            .build(function.name, function.context.tar(&config)?, progress)
            .await;
        built.map_err(|error| match error {
            // The connection broke or was not made: the process's log has the reason.
            error @ Error::NoAnswer { .. } => Error::NotReady {
                part: Part::Builder,
                reason: with_causes(error),
                log: stack.dir.log(Part::Builder.name()),
                tail: stack.log_tail(Part::Builder, 30),
            },
            error => error,
        })
    });
    let built = futures_util::future::try_join_all(builds).await;
    stack.stop(Part::Builder).await?;
    built.map(drop)
}
