//! Deploys Slipway on a stack: its secrets, its two functions, and a sample function that is built and
//! deployed by them.
//!
//! The two functions are built by builder-fn itself, running as a plain process: Slipway's first build is
//! Slipway. The tag of each image is a hash of its context, so an image that is already in the registry is
//! found and not built again.

mod build;
mod callback;
mod context;
mod functions;
mod sample;
mod workshop;

use std::time::Duration;

use tokio::time::Instant;

use self::{
    build::Builder,
    context::Context,
    functions::{Functions, Status},
    sample::Sample,
    workshop::Workshop,
};
use crate::{
    address::{buildkit_for_functions, gateway_for_functions},
    credentials::SECRETS,
    error::{At as _, Error, Result},
    http,
    image::Push,
    part::Part,
    progress::Progress,
    stack::Stack,
};

/// Slipway's functions.
const FUNCTIONS: [&str; 2] = ["builder-fn", "deployer-fn"];

/// The repository of Slipway's images and of the sample's image.
const REPOSITORY: &str = "slipway";

/// The annotation with a hash of the deployment; it shows whether a deployed function is up to date.
const ANNOTATION: &str = "com.slipway.stack";

/// The longest time from deploying a function to its readiness.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

/// The interval between readiness checks.
const BETWEEN: Duration = Duration::from_millis(100);

/// Deploys Slipway and the sample, except what is already up to date.
pub(crate) async fn deploy(stack: &Stack, registry: &Push, progress: &Progress) -> Result<()> {
    let functions = Functions::new(http::client()?, stack);
    put_secrets(stack, &functions).await?;
    let workshop = Workshop::open(stack)?;
    let mut planned = Vec::new();
    workshop.lay_out_functions(stack).await?;
    for name in FUNCTIONS {
        let context = Context::read(&workshop.context(name))?;
        planned.push(Planned::new(stack, name, context, &workshop)?);
    }
    build_missing(stack, registry, &planned, progress).await?;
    for function in &planned {
        function.deploy(stack, &functions, &workshop, progress).await?;
    }
    Sample {
        stack,
        registry,
        functions: &functions,
        progress,
    }
    .run(&workshop)
    .await
}

async fn put_secrets(stack: &Stack, functions: &Functions) -> Result<()> {
    let there = functions.secrets().await?;
    for name in SECRETS {
        let path = stack.secrets().join(name);
        let value = std::fs::read_to_string(&path).at("read", &path)?;
        functions
            .put_secret(name, &value, there.iter().any(|known| known == name))
            .await?;
    }
    Ok(())
}

/// A function of Slipway's, as it is to be deployed.
#[derive(Debug)]
struct Planned {
    name: &'static str,
    context: Context,
    /// The image's tag: a hash of the context.
    tag: String,
    image: String,
    /// A hash of the image reference and `stack.yml`.
    mark: String,
}

impl Planned {
    fn new(stack: &Stack, name: &'static str, context: Context, workshop: &Workshop) -> Result<Self> {
        let tag = context.hash(&[&stack.rust_image()]);
        let image = format!("{}/{REPOSITORY}/{name}:{tag}", stack.registry.host);
        let mark = context::hash_of(&[&image, &workshop.stack_file()?]);
        Ok(Self {
            name,
            context,
            tag,
            image,
            mark,
        })
    }

    /// Returns the values of the variables in `stack.yml` for this function.
    fn environment(&self, stack: &Stack) -> Vec<(&'static str, String)> {
        let mut values = shared_environment(stack);
        values.push(("TAG", self.tag.clone()));
        values
    }

    /// Deploys the function, unless the same deployment is there and ready.
    async fn deploy(
        &self,
        stack: &Stack,
        functions: &Functions,
        workshop: &Workshop,
        progress: &Progress,
    ) -> Result<()> {
        let same =
            |status: &Status| status.image == self.image && status.annotation(ANNOTATION) == Some(&self.mark);
        let there = functions
            .status(self.name)
            .await?
            .is_some_and(|status| same(&status));
        if there && functions.ready(self.name).await {
            return Ok(());
        }
        progress.step(self.name, "deploying");
        let annotation = format!("{ANNOTATION}={}", self.mark);
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
        workshop
            .faas_cli(stack, &arguments, self.environment(stack))
            .await?;
        let began = Instant::now();
        while !functions.ready(self.name).await {
            if began.elapsed() > ANSWERS_WITHIN {
                let log = functions.log_tail(self.name).await;
                let what = format!("{} until it was ready; the end of its log:\n{log}\n", self.name);
                return Err(Error::TooLong {
                    what,
                    seconds: ANSWERS_WITHIN.as_secs(),
                });
            }
            tokio::time::sleep(BETWEEN).await;
        }
        progress.step(self.name, "answers");
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

/// Builds the images that the registry lacks, with builder-fn running as a plain process.
async fn build_missing(stack: &Stack, registry: &Push, all: &[Planned], progress: &Progress) -> Result<()> {
    let mut missing = Vec::new();
    for function in all {
        let repository = format!("{REPOSITORY}/{}", function.name);
        if registry.whole(&repository, &function.tag).await?.is_none() {
            missing.push(function);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    progress.step("builder", "starting builder-fn as a plain process");
    stack.start(Part::Builder).await?;
    let builder = Builder::new(http::client()?, stack.plain_builder_url()?, &stack.payload_secret)?;
    let builds = missing.iter().map(|function| async {
        let config = build::config(&function.image, &stack.rust_image());
        let built = builder
            .build(function.name, function.context.tar(&config)?, progress)
            .await;
        built.map_err(|error| match error {
            // The connection broke or was not made: the process's log has the reason.
            error @ Error::NoAnswer { .. } => Error::NotReady {
                part: Part::Builder,
                reason: crate::error::chain(&error),
                log: stack.place().log(Part::Builder.name()),
                tail: stack.log_tail(Part::Builder, 30),
            },
            error => error,
        })
    });
    let built = futures_util::future::try_join_all(builds).await;
    stack.stop(Part::Builder).await?;
    built.map(drop)
}
