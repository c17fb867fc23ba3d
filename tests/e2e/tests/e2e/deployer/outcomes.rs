//! Undisturbed rollouts: working versions run, broken ones are rolled back, and the report says which.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{DeployerFixture, assert_rolled_back_or_refused, for_both_update_strategies, joined_reasons};

/// Settings with a ready timeout that is long enough for a version that works, also on a busy machine, and shorter than
/// the default for versions that never become ready.
const SHORT_READY_TIMEOUT_SETTINGS: &[(&str, &str)] = &[("ready_timeout", "20s")];

for_both_update_strategies!(
    a_hand_over_delivered_again_changes_nothing,
    a_version_that_crashes_is_rolled_back,
    a_version_that_never_listens_is_rolled_back,
    a_hand_over_that_cannot_be_deployed_changes_nothing,
    of_twenty_concurrent_updates_the_newest_runs,
);

async fn a_hand_over_delivered_again_changes_nothing(strategy: &'static str) -> Result<()> {
    let fixture = DeployerFixture::open_sharing_parts("lifecycle", strategy, &[]).await?;
    let images = fixture.images;

    let created = fixture.deploy_build_and_assert_ready(&images.first, 1).await?;
    assert_eq!(created["changed"], true, "{created:#}");
    assert_eq!(created["previousImage"], Value::Null, "{created:#}");
    assert!(created["durations"]["total"].as_f64() > Some(0.0), "{created:#}");

    let updated = fixture.deploy_build_and_assert_ready(&images.second, 2).await?;
    assert_eq!(updated["changed"], true, "{updated:#}");
    assert_eq!(updated["previousImage"], images.first, "{updated:#}");

    let before = fixture.function_status().await?;
    fixture.proxy.clear_requests();
    let again = fixture.deploy_build_and_assert_ready(&images.second, 2).await?;
    assert_eq!(again["changed"], false, "{again:#}");
    assert_eq!(fixture.proxy.changing_system_requests(), Vec::<String>::new());

    // A deployer without memory of the earlier rollout changes nothing either.
    let fixture = fixture.start_new_deployer_then_kill_old().await?;
    fixture.proxy.clear_requests();
    let again = fixture.deploy_build_and_assert_ready(&images.second, 2).await?;
    assert_eq!(again["changed"], false, "{again:#}");
    assert_eq!(fixture.proxy.changing_system_requests(), Vec::<String>::new());
    assert_eq!(fixture.function_status().await?["createdAt"], before["createdAt"]);

    let older = fixture.deploy_build(&images.first, 1).await?;
    assert_eq!(older.status, 409, "{}", older.text);
    assert_eq!(older.text_field("status"), "refused", "{}", older.text);
    let newer = format!("{}-2", fixture.name);
    assert_eq!(older.text_field("supersededBy"), newer, "{}", older.text);
    fixture.assert_build_runs_and_answers(&images.second, 2).await?;
    fixture.remove_function().await
}

async fn a_version_that_crashes_is_rolled_back(strategy: &'static str) -> Result<()> {
    let fixture =
        DeployerFixture::open_sharing_parts("crashes", strategy, SHORT_READY_TIMEOUT_SETTINGS).await?;
    let images = fixture.images;

    // There is no earlier version to restore.
    let nothing = fixture.deploy_build(&images.crash, 1).await?;
    assert_eq!(nothing.status, 422, "{}", nothing.text);
    assert_eq!(nothing.text_field("status"), "rolled_back", "{}", nothing.text);
    assert_eq!(
        nothing.json_or_error_text()["running"],
        Value::Null,
        "{}",
        nothing.text
    );
    assert!(fixture.function_is_absent().await?);

    fixture.deploy_build_and_assert_ready(&images.first, 2).await?;
    assert_rolled_back_or_refused(&fixture.deploy_build(&images.crash, 3).await?, &images.first);
    fixture.assert_build_runs_and_answers(&images.first, 2).await?;

    // A build that failed is not tried again when it is delivered again, not even by another deployer.
    let fixture = fixture.start_new_deployer_then_kill_old().await?;
    fixture.proxy.clear_requests();
    let again = fixture.deploy_build(&images.crash, 3).await?;
    if strategy == "recreate" || !fixture.testbed.stack.is_known_to_have_rolling_updates() {
        assert_eq!(fixture.proxy.changing_system_requests(), Vec::<String>::new());
    }
    assert_rolled_back_or_refused(&again, &images.first);
    fixture.assert_build_runs_and_answers(&images.first, 2).await?;

    // A newer build that works is deployed nevertheless.
    fixture.deploy_build_and_assert_ready(&images.second, 4).await?;
    fixture.remove_function().await
}

async fn a_version_that_never_listens_is_rolled_back(strategy: &'static str) -> Result<()> {
    let fixture =
        DeployerFixture::open_sharing_parts("silent", strategy, SHORT_READY_TIMEOUT_SETTINGS).await?;
    fixture
        .deploy_build_and_assert_ready(&fixture.images.first, 1)
        .await?;
    // 502: the provider itself waits for the new version, and has not answered yet.
    let silent = fixture.deploy_build(&fixture.images.silent, 2).await?;
    assert!(matches!(silent.status, 422 | 502), "{}", silent.text);
    assert_eq!(silent.text_field("status"), "rolled_back", "{}", silent.text);
    assert_eq!(
        silent.json_or_error_text()["running"]["image"],
        fixture.images.first,
        "{}",
        silent.text
    );
    fixture
        .assert_build_runs_and_answers(&fixture.images.first, 1)
        .await?;
    fixture.remove_function().await
}

async fn a_hand_over_that_cannot_be_deployed_changes_nothing(strategy: &'static str) -> Result<()> {
    let fixture =
        DeployerFixture::open_sharing_parts("impossible", strategy, SHORT_READY_TIMEOUT_SETTINGS).await?;
    fixture
        .deploy_build_and_assert_ready(&fixture.images.first, 1)
        .await?;
    let before = fixture.function_status().await?;
    fixture.proxy.clear_requests();

    let mut secret = fixture.hand_over_of_build(&fixture.images.second, 2);
    secret["deploy"]["secrets"] = json!(["there-is-no-such-secret", "nor-this-one"]);
    let refused = fixture
        .deployer
        .send_hand_over_and_get_status_and_text(&secret)
        .await?;
    assert_eq!(refused.status, 422, "{}", refused.text);
    assert_eq!(refused.text_field("status"), "refused", "{}", refused.text);
    let reasons = joined_reasons(&refused.json_or_error_text());
    assert!(
        reasons.contains("there-is-no-such-secret") && reasons.contains("nor-this-one"),
        "{reasons}"
    );

    let mut namespace = fixture.hand_over_of_build(&fixture.images.second, 3);
    namespace["deploy"]["namespace"] = json!("nowhere");
    let refused = fixture
        .deployer
        .send_hand_over_and_get_status_and_text(&namespace)
        .await?;
    assert_eq!(refused.status, 422, "{}", refused.text);
    assert!(refused.text.contains("nowhere"), "{}", refused.text);

    let mut everything = fixture.hand_over_of_build(&fixture.images.absent, 4);
    everything["deploy"]["secrets"] = json!(["there-is-no-such-secret"]);
    let refused = fixture
        .deployer
        .send_hand_over_and_get_status_and_text(&everything)
        .await?;
    assert_eq!(refused.status, 422, "{}", refused.text);
    let reasons = joined_reasons(&refused.json_or_error_text());
    assert!(
        reasons.contains("has no image") && reasons.contains("there-is-no-such-secret"),
        "{reasons}"
    );

    assert_eq!(fixture.proxy.changing_system_requests(), Vec::<String>::new());
    assert_eq!(fixture.function_status().await?["createdAt"], before["createdAt"]);
    fixture
        .assert_build_runs_and_answers(&fixture.images.first, 1)
        .await?;
    fixture.remove_function().await
}

async fn of_twenty_concurrent_updates_the_newest_runs(strategy: &'static str) -> Result<()> {
    const UPDATE_COUNT: usize = 20;
    let fixture = DeployerFixture::open_sharing_parts("twenty", strategy, &[]).await?;
    let images = fixture.images;
    fixture.deploy_build_and_assert_ready(&images.first, 1).await?;

    let image = |number: usize| match number % 2 {
        0 => &images.second,
        _ => &images.first,
    };
    let mut deployments = JoinSet::new();
    for place in 0..UPDATE_COUNT {
        // In shuffled order: seven and twenty have no common divisor.
        let number = 2 + place * 7 % UPDATE_COUNT;
        let (hand_over, to) = (
            fixture.hand_over_of_build(image(number), number),
            fixture.deployer.hand_over_client()?,
        );
        deployments.spawn(async move {
            (
                number,
                to.send_hand_over_and_get_status_and_text(&hand_over).await,
            )
        });
    }
    let mut ready = BTreeSet::new();
    while let Some(ended) = deployments.join_next().await {
        let (number, reply) = ended?;
        let reply = reply?;
        match (reply.status, reply.text_field("status").as_str()) {
            (200, "ready") => drop(ready.insert(number)),
            (409, "refused") => {}
            _ => anyhow::bail!("{number}: {} {}", reply.status, reply.text),
        }
    }
    let newest = UPDATE_COUNT + 1;
    assert!(ready.contains(&newest), "{ready:?}");
    fixture
        .assert_build_runs_and_answers(image(newest), newest)
        .await?;
    fixture.remove_function().await
}
