//! From a build to its deployment by the queue: the builder hands over through it, or the queue-worker brings the builder's
//! answer to the deployer.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use slipway_e2e::{
    client::{Client, Reply},
    shared::Bench,
    source::Source,
};

const PATIENCE: Duration = Duration::from_secs(90);

/// The stack's builder-fn once more, with another way to the deployer.
struct Builder<'b> {
    bench: &'b Bench,
    name: String,
    /// Through the gateway, waiting for the answer.
    waiting: Client,
    /// Through the queue.
    queued: Client,
}

impl<'b> Builder<'b> {
    async fn via(bench: &'b Bench, via: &str) -> Result<Self> {
        let functions = &bench.functions;
        let name = format!("builder-{via}");
        functions.remove(&name).await?;
        let own = functions.status("builder-fn").await?;
        let own = own.context("there is no builder-fn")?;
        let mut variables = own["envVars"].clone();
        anyhow::ensure!(variables.is_object(), "the provider shows no environment: {own}");
        variables["deploy_via"] = json!(via);
        let deployment = json!({
            "service": name, "image": own["image"], "envVars": variables, "secrets": own["secrets"],
            "readOnlyRootFilesystem": own["readOnlyRootFilesystem"] == true,
        });
        let created = functions.create(&deployment).await?;
        anyhow::ensure!(created < 300, "{name} was not created: {created}");
        functions.wait_until_ready(&name, PATIENCE).await?;
        let key = std::fs::read(&bench.stack.payload_secret)?;
        Ok(Self {
            waiting: Client::new(functions.url(&name), &key)?,
            queued: Client::new(functions.async_url(&name), &key)?,
            name,
            bench,
        })
    }

    /// A tar of pages with this text, to be deployed as the function of this name.
    async fn tar(&self, function: &str, text: &str) -> Result<Vec<u8>> {
        self.bench.functions.remove(function).await?;
        let config = json!({
            "image": self.bench.image(&format!("e2e/{function}"), "1"),
            "deploy": { "service": function },
            "probe": { "path": "/index.html", "successes": 2 },
        });
        Source::pages(self.bench.busybox().await?, text).tar(&config)
    }

    async fn close(self, function: &str) -> Result<()> {
        self.bench.functions.remove(function).await?;
        self.bench.functions.remove(&self.name).await
    }
}

#[tokio::test]
async fn a_hand_over_through_the_queue_is_told_as_queued_and_deployed() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let builder = Builder::via(&bench, "async-function").await?;
    let name = "handed-over-queued";
    let reply = builder
        .waiting
        .post(builder.tar(name, "queued hand-over").await?)
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let result = reply.json();
    assert_eq!(result["status"], "success", "{result}");
    assert_eq!(result["deployment"]["status"], "queued", "{result}");
    assert_eq!(result["deployment"]["function"], name, "{result}");
    bench
        .functions
        .wait_for_page(name, "queued hand-over", PATIENCE)
        .await?;
    builder.close(name).await
}

/// The queue-worker sends on the headers of the builder's answer, and the answer as it is: so the signature holds.
#[tokio::test]
async fn the_deployer_as_callback_deploys_what_the_builder_signed() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let builder = Builder::via(&bench, "callback").await?;
    let name = "called-back";
    let tar = builder.tar(name, "called back").await?;
    let callback = format!("{}/function/deployer-fn", bench.stack.gateway.url);
    let reply = builder
        .queued
        .post_with_headers(tar.clone(), &[("X-Callback-Url", &callback)])
        .await?;
    assert_eq!(reply.status, 202, "{}", reply.text);
    let call_id = reply.call_id.context("a call id")?;
    bench
        .functions
        .wait_for_page(name, "called back", PATIENCE)
        .await?;
    let status = bench.functions.status(name).await?.context("no function")?;
    assert_eq!(status["annotations"]["slipway/call-id"], call_id, "{status}");

    // What was built is told, and nothing deployed, where nobody calls back.
    bench.functions.remove(name).await?;
    let answer: Reply = builder.waiting.post(tar).await?;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let deployment: Value = answer.json()["deployment"].clone();
    assert_eq!(deployment["status"], "handed_over", "{deployment}");
    assert!(bench.functions.status(name).await?.is_none());

    // Nobody else's word counts, were it the builder's own without its signature.
    let http = reqwest::Client::builder().no_proxy().build()?;
    let forged = http.post(&callback).body(answer.text).send().await?;
    assert_eq!(forged.status().as_u16(), 401);
    assert!(bench.functions.status(name).await?.is_none());
    builder.close(name).await
}
