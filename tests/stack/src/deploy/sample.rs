//! The sample function: made from the template, sent to builder-fn through the queue, and deployed by
//! deployer-fn.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;

use super::{
    SLIPWAY_REPOSITORY_PREFIX,
    build::{self, SIGNATURE_HEADER, StreamedBuildRecord},
    callback::CallbackListener,
    context::StackBuildContext,
    faas_cli::FaasCliProject,
    gateway::GatewayClient,
};
use crate::{
    error::{LauncherError, Result},
    http::{expect_status, send_request},
    image::RegistryClient,
    progress::ProgressSink,
    stack::Stack,
};

/// The sample function's name.
const SAMPLE_FUNCTION_NAME: &str = "hello";

/// The body of the call to the sample function.
const SAMPLE_CALL_BODY: &str = "Slipway";

/// The longest body that the Community gateway accepts for its queue, in bytes
/// (docs/pitfalls.md#size-limit-of-the-queue).
const QUEUED_BODY_MAX_BYTES: usize = 256_000;

/// The longest time for the build and the deployment of the sample function.
const SAMPLE_DEPLOYMENT_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// The interval between checks whether the sample function was deployed.
const SAMPLE_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The sample function, with the clients that build, deploy and call it.
#[derive(Debug)]
pub(super) struct SampleFunctionDeployer<'a> {
    pub(super) stack: &'a Stack,
    pub(super) registry: &'a RegistryClient,
    pub(super) gateway: &'a GatewayClient,
    pub(super) progress: &'a ProgressSink,
}

impl SampleFunctionDeployer<'_> {
    /// Builds and deploys the sample function unless its current image already runs, calls it, and reports its answer;
    /// fails without a successful answer.
    pub(super) async fn deploy_if_outdated_and_require_successful_call(
        &self,
        faas_cli: &FaasCliProject,
    ) -> Result<()> {
        faas_cli
            .write_sample_context(self.stack, SAMPLE_FUNCTION_NAME)
            .await?;
        let context =
            StackBuildContext::read_directory_tree(&faas_cli.context_directory(SAMPLE_FUNCTION_NAME))?;
        let tag = context.tag_hash(&[&self.stack.rust_image()]);
        if !self.runs_image_and_is_ready(&tag).await? {
            // faasd keeps functions whose processes ended with an earlier stack, and would treat them as
            // deployed.
            if self
                .gateway
                .function_status(SAMPLE_FUNCTION_NAME)
                .await?
                .is_some()
                && !self.gateway.readiness_probe_succeeds(SAMPLE_FUNCTION_NAME).await
            {
                self.gateway
                    .remove_existing_function(SAMPLE_FUNCTION_NAME)
                    .await?;
            }
            self.send_build_through_queue_and_wait_for_outcome_or_deployment(&context, &tag)
                .await?;
        }
        let url = self.gateway.function_url(SAMPLE_FUNCTION_NAME);
        match self
            .gateway
            .call_function(SAMPLE_FUNCTION_NAME, SAMPLE_CALL_BODY)
            .await
        {
            Some(answer) => self.progress.emit_progress_line(
                SAMPLE_FUNCTION_NAME,
                format_args!("{url} answers: {}", answer.trim()),
            ),
            None => {
                return Err(LauncherError::Environment(format!(
                    "{url}: no successful answer to a call"
                )));
            }
        }
        Ok(())
    }

    /// Returns whether the sample function runs the image with this tag and is ready.
    async fn runs_image_and_is_ready(&self, tag: &str) -> Result<bool> {
        let built = self
            .registry
            .manifest_digest(
                &format!("{SLIPWAY_REPOSITORY_PREFIX}/{SAMPLE_FUNCTION_NAME}"),
                tag,
            )
            .await?;
        let image = self
            .gateway
            .function_status(SAMPLE_FUNCTION_NAME)
            .await?
            .map(|status| status.image);
        let same = built
            .zip(image)
            .is_some_and(|(digest, image)| image.ends_with(&digest));
        Ok(same && self.gateway.readiness_probe_succeeds(SAMPLE_FUNCTION_NAME).await)
    }

    /// Sends the sample's build context to builder-fn through the queue and waits until it is built and deployed; fails
    /// if the build fails.
    async fn send_build_through_queue_and_wait_for_outcome_or_deployment(
        &self,
        context: &StackBuildContext,
        tag: &str,
    ) -> Result<()> {
        let image = format!(
            "{}/{SLIPWAY_REPOSITORY_PREFIX}/{SAMPLE_FUNCTION_NAME}:{tag}",
            self.stack.registry.host
        );
        let mut config = build::build_config_of_template(&image, &self.stack.rust_image());
        config["deploy"] = json!({ "service": SAMPLE_FUNCTION_NAME });
        let body = context.tar_of_build_request(&config)?;
        if body.len() > QUEUED_BODY_MAX_BYTES {
            let size = body.len();
            return Err(LauncherError::Environment(format!(
                "the source of {SAMPLE_FUNCTION_NAME} has {size} bytes; the queue accepts at most {QUEUED_BODY_MAX_BYTES}"
            )));
        }
        let callback =
            CallbackListener::open_on_address(self.stack.plan()?.number.machines_end_address()).await?;
        let signature = build::sign_build_request(&self.stack.payload_secret, &body)?;
        let step = |what: String| self.progress.emit_progress_line(SAMPLE_FUNCTION_NAME, what);
        step(format!(
            "sending {} bytes of source to builder-fn through the queue",
            body.len()
        ));
        let request = self
            .gateway
            .queued_call_request("builder-fn")
            .header(SIGNATURE_HEADER, signature);
        let request = request.header("X-Callback-Url", &callback.url).body(body);
        let queued = expect_status(send_request(request).await?, &[StatusCode::ACCEPTED]).await?;
        let call = queued
            .headers()
            .get("x-call-id")
            .and_then(|id| id.to_str().ok())
            .unwrap_or_default();
        step(format!("queued as call {call}"));
        let outcome = self.progress.show_while(SAMPLE_FUNCTION_NAME, async |_| {
            tokio::select! {
                posted = callback.wait_without_limit_for_outcome() => posted.map(Some),
                // If a firewall of this machine blocks the callback, the deployed function shows the outcome.
                deployed = self.wait_without_limit_until_deployed(tag) => deployed.map(|()| None),
            }
        });
        match tokio::time::timeout(SAMPLE_DEPLOYMENT_TIMEOUT, outcome).await {
            Ok(Ok(Some(body))) => {
                self.report_deployment_status_or_fail_if_build_failed(call, &body)
                    .await
            }
            Ok(Ok(None)) => Ok(()),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let log = self.gateway.function_log_tail_or_empty("builder-fn").await;
                Err(LauncherError::Timeout {
                    operation: format!("call {call}"),
                    seconds: SAMPLE_DEPLOYMENT_TIMEOUT.as_secs(),
                    details: format!("\nlast lines of builder-fn's log:\n{log}"),
                })
            }
        }
    }

    /// Polls until the sample function runs the image with this tag and is ready; has no time limit of its own.
    async fn wait_without_limit_until_deployed(&self, tag: &str) -> Result<()> {
        while !self.runs_image_and_is_ready(tag).await? {
            tokio::time::sleep(SAMPLE_POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Reports the deployment status in the outcome of a queued build; fails if the build failed.
    async fn report_deployment_status_or_fail_if_build_failed(
        &self,
        call: &str,
        outcome: &[u8],
    ) -> Result<()> {
        let Ok(record) = serde_json::from_slice::<StreamedBuildRecord>(outcome) else {
            let log = self.gateway.function_log_tail_or_empty("builder-fn").await;
            let output = format!("{}\n{log}", String::from_utf8_lossy(outcome));
            return Err(LauncherError::Program {
                program: format!("call {call}"),
                status: "the outcome is not a build record".into(),
                output,
            });
        };
        let deployment = record
            .into_success(SAMPLE_FUNCTION_NAME)?
            .deployment
            .unwrap_or_default();
        let status = deployment["status"].as_str().unwrap_or("not deployed").to_owned();
        self.progress.emit_progress_line(
            SAMPLE_FUNCTION_NAME,
            format_args!("built; deployment status: {status}"),
        );
        Ok(())
    }
}
