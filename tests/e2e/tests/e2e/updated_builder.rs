//! Updates of builder-fn as a function, by the gateway: SIGTERM loses no build that it has accepted from the queue.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::{BuildContext, gated_command},
    client::{SigningClient, sign_body},
    testbed::Testbed,
};

/// The longest time until the stack has done what a step of the test waits for.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);

/// The time for which a builder finishes its builds after SIGTERM: shorter than that after which the provider kills it.
const GRACE: &str = "10s";

/// A copy of the stack's builder-fn, which keeps records of its builds and runs one at a time.
struct UpdatedBuilder<'t> {
    testbed: &'t Testbed,
    name: String,
    deployment: Value,
    key: Vec<u8>,
}

impl<'t> UpdatedBuilder<'t> {
    /// Deploys the copy, and waits until it is ready.
    async fn deploy(testbed: &'t Testbed, name: &str) -> Result<Self> {
        let functions = &testbed.functions;
        functions.remove_function(name).await?;
        let own = functions.function_status("builder-fn").await?;
        let own = own.context("the stack has no builder-fn")?;
        let mut variables = own["envVars"].clone();
        ensure!(variables.is_object(), "the provider shows no environment: {own}");
        // An earlier run has left records in its own repository.
        let run = Timestamp::now().as_nanosecond();
        let records = format!("{}/e2e/records/{name}-{run}", testbed.stack.registry.host);
        for (variable, value) in [
            ("records_repository", records.as_str()),
            ("max_inflight", "1"),
            ("queue_wait", "9m"),
            ("healthcheck_interval", "1s"),
            ("exec_timeout", "0s"),
            ("write_timeout", GRACE),
        ] {
            variables[variable] = json!(value);
        }
        let deployment = json!({
            "service": name, "image": own["image"], "envVars": variables, "secrets": own["secrets"],
            "readOnlyRootFilesystem": own["readOnlyRootFilesystem"] == true,
        });
        let created = functions.create_function(&deployment).await?;
        ensure!(created < 300, "{name} was not created: {created}");
        functions.wait_until_ready(name, STEP_TIMEOUT).await?;
        Ok(Self {
            key: std::fs::read(&testbed.stack.payload_secret)?
                .trim_ascii()
                .to_vec(),
            testbed,
            name: name.to_owned(),
            deployment,
        })
    }

    /// Replaces the builder by a new one. The provider sends SIGTERM to the old one.
    async fn update(&mut self, version: &str) -> Result<()> {
        self.deployment["envVars"]["updated_to"] = json!(version);
        let updated = self.testbed.functions.update_function(&self.deployment).await?;
        ensure!(updated < 300, "{} was not updated: {updated}", self.name);
        Ok(())
    }

    /// Asks about a build until it has this state, and returns the answer.
    async fn wait_for_state(&self, id: &str, state: &str) -> Result<Value> {
        let end = Instant::now() + STEP_TIMEOUT;
        let http = reqwest::Client::builder().no_proxy().build()?;
        loop {
            let path = format!("/builds/{id}");
            let signed_at = Timestamp::now().to_string();
            let signature = sign_body(&self.key, format!("GET\n{path}\n{signed_at}").as_bytes())?;
            let url = self.testbed.functions.function_url(&self.name) + &path;
            let request = http.get(url).header("X-Signed-At", signed_at);
            let request = request.header("X-Build-Signature", signature);
            // While the builder is replaced, the gateway may reach none.
            let answer = async { request.send().await?.text().await };
            let answer = answer.await.unwrap_or_else(|error| error.to_string());
            let parsed: Value = serde_json::from_str(&answer).unwrap_or_default();
            if parsed["state"] == state {
                return Ok(parsed);
            }
            ensure!(Instant::now() < end, "{id} is not {state}: {answer}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

#[tokio::test]
async fn an_update_of_the_builder_loses_neither_running_nor_waiting_nor_resumed_builds() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.busybox_image_name().await?;
    let mut builder = UpdatedBuilder::deploy(&testbed, "builder-updated").await?;
    let run = Timestamp::now().as_nanosecond();
    let gate = "gate-of-the-updated-builder";
    let repository = "e2e/updated-builder";
    let image = |tag: &str| testbed.image_name(repository, tag);
    for tag in ["running", "waiting"] {
        if let Some(manifest) = testbed.registry.get_manifest(repository, tag).await? {
            testbed
                .registry
                .delete_manifest(repository, &manifest.digest)
                .await?;
        }
    }
    let [running, waiting] = ["running", "waiting"].map(|name| format!("{name}-{run}"));
    let dockerfile = format!("FROM {base}\nRUN {}\n", gated_command(gate));
    let tar = BuildContext::dockerfile(dockerfile).tar_with_config(&json!({"image": image("running")}))?;
    let queued = SigningClient::new(testbed.functions.queued_call_url(&builder.name), &builder.key)?;
    let reply = queued.post_with_headers(tar, &[("X-Call-Id", &running)]).await?;
    assert_eq!(reply.status, 202, "{}", reply.text);
    testbed.wait_for_step(gate, true).await?;
    // The queue-worker delivers one call after the other: this one comes as a second worker's would.
    let tar = BuildContext::dockerfile(format!("FROM {base}\nRUN : {run}\n"))
        .tar_with_config(&json!({"image": image("waiting")}))?;
    let direct = SigningClient::new(testbed.functions.function_url(&builder.name), &builder.key)?;
    let (id, submitted) = (waiting.clone(), run.to_string());
    let delivery = tokio::spawn(async move {
        let headers = [("X-Call-Id", id.as_str()), ("X-Start-Time", submitted.as_str())];
        direct.post_with_headers(tar, &headers).await
    });
    builder.wait_for_state(&waiting, "waiting").await?;

    // The first update ends a builder with a running and a waiting build, and the second one a builder with resumed ones.
    for version in ["2", "3"] {
        builder.update(version).await?;
        testbed.wait_for_step(gate, false).await?;
        testbed.wait_for_step(gate, true).await?;
    }
    let answer = delivery.await??;
    assert_eq!(answer.status, 429, "{}", answer.text);
    testbed.open_gate_of_step(gate)?;
    for (id, tag) in [(&running, "running"), (&waiting, "waiting")] {
        let built = builder.wait_for_state(id, "success").await?;
        let pushed = testbed.registry.get_manifest(repository, tag).await?;
        assert_eq!(pushed.context("the image")?.digest, built["digest"], "{built:#}");
    }
    testbed.functions.remove_function(&builder.name).await
}
