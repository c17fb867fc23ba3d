//! One function has one identity, whether or not its namespace is written down, and several deployers do no harm.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use slipway_e2e::deployer_process::DeployerProcess;
use tokio::task::JoinSet;

use super::{
    TwoBuildersAndOneDeployer, assert_built_and_ready, assert_superseded, time_seconds_from_now,
    unused_call_id,
};

/// The namespace of functions that name none.
const DEFAULT_NAMESPACE: &str = "openfaas-fn";

#[tokio::test]
async fn a_function_without_a_namespace_and_in_the_default_one_is_one_function() -> Result<()> {
    let two = TwoBuildersAndOneDeployer::remove_function_and_start("one-identity", &[]).await?;
    for (round, older_has_namespace) in [(0, true), (1, false)] {
        let gate = format!("gate-of-one-identity-{round}");
        let (older, newer) = (unused_call_id("older")?, unused_call_id("newer")?);
        let config = |tag: &str, has_namespace: bool, seconds: i64| -> Result<Value> {
            let mut config = two.config_with_deployment(tag);
            // The sources of the second round are newer than those of the first, however fast that was.
            config["submittedAt"] = json!(time_seconds_from_now(10 * round - 20 - seconds)?);
            if has_namespace {
                config["deploy"]["namespace"] = json!(DEFAULT_NAMESPACE);
            }
            Ok(config)
        };
        let tar = two
            .gated_page_tar("older", &gate, &config("older", older_has_namespace, 2)?)
            .await?;
        let slow = two
            .start_gated_build_and_wait_for_its_step(0, &tar, &gate, &[("X-Call-Id", &older)])
            .await?;
        let page = format!("newer {round}");
        let tar = two
            .page_tar(&page, &config("newer", !older_has_namespace, 1)?)
            .await?;
        assert_built_and_ready(&two.build_at(1, &tar, &newer).await?)?;
        assert_superseded(&slow.await??, &newer)?;
        assert_eq!(two.get_function_page().await?, (200, page));
    }
    two.remove_function().await
}

/// Hand-overs of one function, by number: a greater number is a newer source.
struct NumberedHandOvers {
    function: String,
    images: [String; 2],
    times: Vec<String>,
}

impl NumberedHandOvers {
    /// Builds two images, whose pages are `even` and `odd`, and prepares hand-overs up to number `last_number`.
    async fn build_two_images_and_prepare(
        two: &TwoBuildersAndOneDeployer,
        last_number: usize,
    ) -> Result<Self> {
        let config = two.config_without_deployment("1");
        let image = async |page: &str| -> Result<String> {
            let tar = two.page_tar(page, &config).await?;
            let reply = two.build_at(0, &tar, &unused_call_id(page)?).await?;
            ensure!(reply.status == 200, "{} {}", reply.status, reply.text);
            let host = &two.testbed.stack.registry.host;
            Ok(format!(
                "{host}/{}@{}",
                two.repository_path_of_function(),
                reply.text_field("digest")
            ))
        };
        Ok(Self {
            function: two.function.clone(),
            images: [image("even").await?, image("odd").await?],
            times: (0..=last_number)
                .map(|number| time_seconds_from_now(i64::try_from(number)? - 60))
                .collect::<Result<_>>()?,
        })
    }

    /// Returns the hand-over with this number; every third one has the function's namespace.
    fn hand_over_with_number(&self, number: usize) -> Value {
        let mut deploy = json!({ "service": self.function, "envVars": { "NUMBER": number.to_string() } });
        if number.is_multiple_of(3) {
            deploy["namespace"] = json!(DEFAULT_NAMESPACE);
        }
        json!({
            "image": self.images[number % 2], "callId": format!("{}-{number}", self.function),
            "submittedAt": self.times[number], "builtAt": self.times[number], "deploy": deploy,
        })
    }

    /// Asserts that the version of the hand-over with this number runs.
    async fn assert_version_runs(&self, two: &TwoBuildersAndOneDeployer, number: usize) -> Result<()> {
        let status = two.testbed.functions.function_status(&self.function).await?;
        let status = status.unwrap_or_default();
        assert_eq!(status["envVars"]["NUMBER"], number.to_string(), "{status:#}");
        let page = ["even", "odd"][number % 2];
        assert_eq!(two.get_function_page().await?, (200, page.to_owned()));
        Ok(())
    }
}

#[tokio::test]
async fn a_deployer_refuses_an_older_source_than_another_deployer_has_deployed() -> Result<()> {
    let two = TwoBuildersAndOneDeployer::remove_function_and_start("two-deployers", &[]).await?;
    let other = DeployerProcess::start(&two.testbed, two.proxy.url(), &[]).await?;
    let hand_overs = NumberedHandOvers::build_two_images_and_prepare(&two, 4).await?;
    for (older, newer) in [(0, 1), (2, 3)] {
        let reply = two
            .deployer
            .send_hand_over_and_get_status_and_text(&hand_overs.hand_over_with_number(newer))
            .await?;
        assert_eq!(reply.status, 200, "{}", reply.text);
        let reply = other
            .send_hand_over_and_get_status_and_text(&hand_overs.hand_over_with_number(older))
            .await?;
        assert_eq!(reply.status, 409, "{}", reply.text);
        assert_eq!(reply.text_field("status"), "refused", "{}", reply.text);
        let newer_id = format!("two-deployers-{newer}");
        assert_eq!(reply.text_field("supersededBy"), newer_id, "{}", reply.text);
        hand_overs.assert_version_runs(&two, newer).await?;
    }
    let reply = other
        .send_hand_over_and_get_status_and_text(&hand_overs.hand_over_with_number(4))
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    hand_overs.assert_version_runs(&two, 4).await?;
    two.remove_function().await
}

/// The gateway has no conditional update: a deployer cannot know of an update that another one sends at the same
/// moment. The newest hand-over, delivered again, still replaces an older version.
#[tokio::test]
async fn of_concurrent_hand_overs_to_two_deployers_the_newest_runs_when_it_is_delivered_again() -> Result<()>
{
    const NEWEST_NUMBER: usize = 10;
    let two = TwoBuildersAndOneDeployer::remove_function_and_start("racing-deployers", &[]).await?;
    let other = DeployerProcess::start(&two.testbed, two.proxy.url(), &[]).await?;
    let hand_overs = NumberedHandOvers::build_two_images_and_prepare(&two, NEWEST_NUMBER).await?;
    let first = two
        .deployer
        .send_hand_over_and_get_status_and_text(&hand_overs.hand_over_with_number(0))
        .await?;
    assert_eq!(first.status, 200, "{}", first.text);

    let clients = [two.deployer.hand_over_client()?, other.hand_over_client()?];
    let mut deployments = JoinSet::new();
    for place in 0..NEWEST_NUMBER {
        // In shuffled order: seven and ten have no common divisor.
        let hand_over = hand_overs.hand_over_with_number(1 + place * 7 % NEWEST_NUMBER);
        let client = clients[place % 2].clone();
        deployments.spawn(async move { client.send_hand_over_and_get_status_and_text(&hand_over).await });
    }
    while let Some(ended) = deployments.join_next().await {
        // Another deployer's update may replace a version while it is watched.
        let reply = ended??;
        ensure!(matches!(reply.status, 200 | 409 | 422 | 502), "{}", reply.text);
    }
    for client in &clients {
        let again = client
            .send_hand_over_and_get_status_and_text(&hand_overs.hand_over_with_number(NEWEST_NUMBER))
            .await?;
        assert_eq!(again.status, 200, "{}", again.text);
        assert_eq!(again.text_field("status"), "ready", "{}", again.text);
        hand_overs.assert_version_runs(&two, NEWEST_NUMBER).await?;
    }
    two.remove_function().await
}
