//! The sample function: made from the template, sent to builder-fn through the queue, and deployed by
//! deployer-fn.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;

use super::{
    REPOSITORY,
    build::{self, BuildRecord, SIGNATURE, with_progress},
    callback::CallbackListener,
    context::Context,
    faas_cli::FaasCli,
    gateway::GatewayClient,
};
use crate::{
    command::{command, run_with_input},
    error::{Error, Result},
    http::{expect_status, send},
    image::RegistryClient,
    progress::Progress,
    stack::Stack,
};

/// The sample function's name.
const NAME: &str = "hello";

/// The body of the call to the sample function.
const BODY: &str = "Slipway";

/// The longest body that the Community gateway accepts for its queue, in bytes
/// (docs/pitfalls.md#size-limit-of-the-queue).
const QUEUE_LIMIT: usize = 256_000;

/// The longest time for the build and the deployment of the sample function.
const DEPLOYED_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// The interval between checks whether the sample function was deployed.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The sample function, with the clients that build, deploy and call it.
#[derive(Debug)]
pub(super) struct Sample<'a> {
    pub(super) stack: &'a Stack,
    pub(super) registry: &'a RegistryClient,
    pub(super) gateway: &'a GatewayClient,
    pub(super) progress: &'a Progress,
}

impl Sample<'_> {
    /// Builds and deploys the sample function unless it already runs, calls it, and reports its answer.
    pub(super) async fn run(&self, faas_cli: &FaasCli) -> Result<()> {
        faas_cli.write_sample_context(self.stack, NAME).await?;
        let context = Context::read(&faas_cli.context_directory(NAME))?;
        let tag = context.hash(&[&self.stack.rust_image()]);
        if !self.is_deployed(&tag).await? {
            // faasd keeps functions whose processes ended with an earlier stack, and would treat them as
            // deployed.
            if self.gateway.status(NAME).await?.is_some() && !self.gateway.is_ready(NAME).await {
                self.gateway.remove(NAME).await?;
            }
            self.send(&context, &tag).await?;
        }
        let url = self.gateway.url(NAME);
        match self.gateway.call(NAME, BODY).await {
            Some(answer) => self
                .progress
                .step(NAME, format_args!("{url} answers: {}", answer.trim())),
            None => {
                return Err(Error::Environment(format!(
                    "{url}: no successful answer to a call"
                )));
            }
        }
        Ok(())
    }

    /// Returns whether the sample function runs the image with this tag and is ready.
    async fn is_deployed(&self, tag: &str) -> Result<bool> {
        let built = self.registry.digest(&format!("{REPOSITORY}/{NAME}"), tag).await?;
        let image = self.gateway.status(NAME).await?.map(|status| status.image);
        let same = built
            .zip(image)
            .is_some_and(|(digest, image)| image.ends_with(&digest));
        Ok(same && self.gateway.is_ready(NAME).await)
    }

    /// Sends the sample's build context to builder-fn through the queue and waits for the outcome.
    async fn send(&self, context: &Context, tag: &str) -> Result<()> {
        let image = format!("{}/{REPOSITORY}/{NAME}:{tag}", self.stack.registry.host);
        let mut config = build::config(&image, &self.stack.rust_image());
        config["deploy"] = json!({ "service": NAME });
        let body = run_with_input(command("gzip").args(["-9", "--stdout"]), &context.tar(&config)?).await?;
        if body.len() > QUEUE_LIMIT {
            let size = body.len();
            return Err(Error::Environment(format!(
                "the source of {NAME} has {size} bytes; the queue accepts at most {QUEUE_LIMIT}"
            )));
        }
        let callback = CallbackListener::listen(self.stack.plan()?.number.outer_address()).await?;
        let signature = build::signature(&self.stack.payload_secret, &body)?;
        let step = |what: String| self.progress.step(NAME, what);
        step(format!(
            "sending {} bytes of source to builder-fn through the queue",
            body.len()
        ));
        let request = self
            .gateway
            .queued_call("builder-fn")
            .header(SIGNATURE, signature);
        let request = request.header("X-Callback-Url", &callback.url).body(body);
        let queued = expect_status(send(request).await?, &[StatusCode::ACCEPTED]).await?;
        let call = queued
            .headers()
            .get("x-call-id")
            .and_then(|id| id.to_str().ok())
            .unwrap_or_default();
        step(format!("queued as call {call}"));
        let outcome = with_progress(NAME, self.progress, async {
            tokio::select! {
                posted = callback.wait() => posted.map(Some),
                // If a firewall of this machine blocks the callback, the deployed function shows the outcome.
                deployed = self.wait_until_deployed(tag) => deployed.map(|()| None),
            }
        });
        match tokio::time::timeout(DEPLOYED_TIMEOUT, outcome).await {
            Ok(Ok(Some(body))) => self.check_outcome(call, &body).await,
            Ok(Ok(None)) => Ok(()),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let log = self.gateway.log_tail("builder-fn").await;
                Err(Error::Timeout {
                    operation: format!("call {call}"),
                    seconds: DEPLOYED_TIMEOUT.as_secs(),
                    details: format!("\nlast lines of builder-fn's log:\n{log}"),
                })
            }
        }
    }

    async fn wait_until_deployed(&self, tag: &str) -> Result<()> {
        while !self.is_deployed(tag).await? {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    async fn check_outcome(&self, call: &str, outcome: &[u8]) -> Result<()> {
        let Ok(record) = serde_json::from_slice::<BuildRecord>(outcome) else {
            let log = self.gateway.log_tail("builder-fn").await;
            let output = format!("{}\n{log}", String::from_utf8_lossy(outcome));
            return Err(Error::Program {
                program: format!("call {call}"),
                status: "the outcome is not a build record".into(),
                output,
            });
        };
        let deployment = record.check_success(NAME)?.deployment.unwrap_or_default();
        let status = deployment["status"].as_str().unwrap_or("not deployed").to_owned();
        self.progress
            .step(NAME, format_args!("built; deployment status: {status}"));
        Ok(())
    }
}
