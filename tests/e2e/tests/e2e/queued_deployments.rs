//! Deployments through the queue: the builder queues the hand-over, or the queue-worker forwards the builder's
//! answer to the deployer.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::BuildContext,
    client::{HttpReply, SigningClient},
    testbed::Testbed,
};

/// The longest time from a queued request until the function's page shows its outcome. The queue-worker sends one
/// request after the other, also those of other tests.
const QUEUED_DEPLOYMENT_TIMEOUT: Duration = Duration::from_secs(180);

/// A second builder-fn on the stack, with another value of `deploy_via`.
struct BuilderCopyWithDeployVia<'b> {
    testbed: &'b Testbed,
    name: String,
    /// A client through the gateway, which waits for the answer.
    waiting: SigningClient,
    /// A client through the queue.
    queued: SigningClient,
}

impl<'b> BuilderCopyWithDeployVia<'b> {
    /// Deploys a copy of the stack's builder-fn as `builder-VIA`, with this `deploy_via`, and waits until it is ready.
    async fn deploy_builder_copy_with_deploy_via(testbed: &'b Testbed, via: &str) -> Result<Self> {
        let functions = &testbed.functions;
        let name = format!("builder-{via}");
        functions.remove_function(&name).await?;
        let own = functions.function_status("builder-fn").await?;
        let own = own.context("the stack has no builder-fn")?;
        let mut variables = own["envVars"].clone();
        anyhow::ensure!(variables.is_object(), "the provider shows no environment: {own}");
        variables["deploy_via"] = json!(via);
        let deployment = json!({
            "service": name, "image": own["image"], "envVars": variables, "secrets": own["secrets"],
            "readOnlyRootFilesystem": own["readOnlyRootFilesystem"] == true,
        });
        let created = functions.create_function(&deployment).await?;
        anyhow::ensure!(created < 300, "{name} was not created: {created}");
        functions
            .wait_until_ready(&name, QUEUED_DEPLOYMENT_TIMEOUT)
            .await?;
        let key = std::fs::read(&testbed.stack.payload_secret)?;
        Ok(Self {
            waiting: SigningClient::new(functions.function_url(&name), &key)?,
            queued: SigningClient::new(functions.queued_call_url(&name), &key)?,
            name,
            testbed,
        })
    }

    /// Returns the tar, to be signed, of a build whose image serves a page with this text and is deployed as
    /// `function`.
    async fn page_tar(&self, function: &str, text: &str) -> Result<Vec<u8>> {
        let config = json!({
            "image": self.testbed.image_name(&format!("e2e/{function}"), "1"),
            "deploy": { "service": function },
            "probe": { "path": "/index.html", "successes": 2 },
        });
        BuildContext::static_page_function(self.testbed.build_busybox_once_and_get_name().await?, text)
            .tar_with_config_last(&config)
    }

    /// Removes the built function, and the builder itself.
    async fn remove_built_function_and_builder_copy(self, function: &str) -> Result<()> {
        self.testbed.functions.remove_function(function).await?;
        self.testbed.functions.remove_function(&self.name).await
    }
}

#[tokio::test]
async fn a_queued_hand_over_is_reported_as_queued_and_deployed() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let builder =
        BuilderCopyWithDeployVia::deploy_builder_copy_with_deploy_via(&testbed, "async-function").await?;
    let name = "handed-over-queued";
    testbed.functions.remove_function(name).await?;
    let reply = builder
        .waiting
        .post_signed(builder.page_tar(name, "queued hand-over").await?)
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let result = reply.json_or_error_text();
    assert_eq!(result["status"], "success", "{result}");
    assert_eq!(result["deployment"]["status"], "queued", "{result}");
    assert_eq!(result["deployment"]["function"], name, "{result}");
    testbed
        .functions
        .wait_until_page_equals(name, "queued hand-over", QUEUED_DEPLOYMENT_TIMEOUT)
        .await?;
    builder.remove_built_function_and_builder_copy(name).await
}

/// The queue-worker forwards headers and body of the builder's answer unchanged, so the signature stays valid.
#[tokio::test]
async fn the_deployer_as_callback_deploys_only_signed_answers() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let builder = BuilderCopyWithDeployVia::deploy_builder_copy_with_deploy_via(&testbed, "callback").await?;
    let name = "called-back";
    testbed.functions.remove_function(name).await?;
    let tar = builder.page_tar(name, "called back").await?;
    let callback = format!("{}/function/deployer-fn", testbed.stack.gateway.url);
    let reply = builder
        .queued
        .post_signed_with_headers(tar.clone(), &[("X-Callback-Url", &callback)])
        .await?;
    assert_eq!(reply.status, 202, "{}", reply.text);
    let call_id = reply.call_id.context("the answer has no call id")?;
    testbed
        .functions
        .wait_until_page_equals(name, "called back", QUEUED_DEPLOYMENT_TIMEOUT)
        .await?;
    let status = testbed
        .functions
        .function_status(name)
        .await?
        .context("no function")?;
    assert_eq!(status["annotations"]["slipway/call-id"], call_id, "{status}");

    // Without a callback, the answer reports the build, and nothing is deployed.
    testbed.functions.remove_function(name).await?;
    let answer: HttpReply = builder.waiting.post_signed(tar).await?;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let deployment: Value = answer.json_or_error_text()["deployment"].clone();
    assert_eq!(deployment["status"], "handed_over", "{deployment}");
    assert!(testbed.functions.function_status(name).await?.is_none());

    // The deployer rejects the builder's answer without its signature.
    let http = reqwest::Client::builder().no_proxy().build()?;
    let forged = http.post(&callback).body(answer.text).send().await?;
    assert_eq!(forged.status().as_u16(), 401);
    assert!(testbed.functions.function_status(name).await?.is_none());
    builder.remove_built_function_and_builder_copy(name).await
}
