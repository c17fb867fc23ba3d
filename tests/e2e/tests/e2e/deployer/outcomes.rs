//! Rollouts that nobody disturbs: what is good runs, what is bad is put back, and the report says which.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{Site, assert_not_taken, in_both_manners, reasons};

/// Enough for a version that works on a busy machine, and not for one that does not.
const SOON: &[(&str, &str)] = &[("ready_timeout", "8s")];

in_both_manners!(
    a_function_is_created_updated_and_then_left_alone,
    a_version_that_crashes_is_rolled_back_whole,
    a_version_that_never_listens_is_rolled_back,
    what_cannot_be_deployed_changes_nothing,
    twenty_updates_at_once_end_in_the_newest,
);

async fn a_function_is_created_updated_and_then_left_alone(manners: &'static str) -> Result<()> {
    let site = Site::open("lifecycle", manners, &[]).await?;
    let images = site.images;

    let created = site.ready(&images.first, 1).await?;
    assert_eq!(created["changed"], true, "{created:#}");
    assert_eq!(created["previousImage"], Value::Null, "{created:#}");
    assert!(created["durations"]["total"].as_f64() > Some(0.0), "{created:#}");

    let updated = site.ready(&images.second, 2).await?;
    assert_eq!(updated["changed"], true, "{updated:#}");
    assert_eq!(updated["previousImage"], images.first, "{updated:#}");

    let before = site.status().await?;
    site.door.open();
    let again = site.ready(&images.second, 2).await?;
    assert_eq!(again["changed"], false, "{again:#}");
    assert_eq!(site.door.changes(), Vec::<String>::new());

    // Nor does a deployer that remembers nothing.
    let site = site.restart_deployer().await?;
    site.door.open();
    let again = site.ready(&images.second, 2).await?;
    assert_eq!(again["changed"], false, "{again:#}");
    assert_eq!(site.door.changes(), Vec::<String>::new());
    assert_eq!(site.status().await?["createdAt"], before["createdAt"]);

    let older = site.deploy(&images.first, 1).await?;
    assert_eq!(older.status, 422, "{}", older.text);
    assert_eq!(older.field("status"), "refused", "{}", older.text);
    site.runs(&images.second, 2).await?;
    site.close().await
}

async fn a_version_that_crashes_is_rolled_back_whole(manners: &'static str) -> Result<()> {
    let site = Site::open("crashes", manners, SOON).await?;
    let images = site.images;

    // Before it there was nothing.
    let nothing = site.deploy(&images.crash, 1).await?;
    assert_eq!(nothing.status, 422, "{}", nothing.text);
    assert_eq!(nothing.field("status"), "rolled_back", "{}", nothing.text);
    assert_eq!(nothing.json()["running"], Value::Null, "{}", nothing.text);
    assert!(site.is_absent().await?);

    site.ready(&images.first, 2).await?;
    assert_not_taken(&site.deploy(&images.crash, 3).await?, &images.first);
    site.runs(&images.first, 2).await?;

    // It has failed; delivered again, it is not tried again, whoever asks.
    let site = site.restart_deployer().await?;
    site.door.open();
    let again = site.deploy(&images.crash, 3).await?;
    if manners == "faasd" || !site.bench.stack.replaces_without_a_gap() {
        assert_eq!(site.door.changes(), Vec::<String>::new());
    }
    assert_not_taken(&again, &images.first);
    site.runs(&images.first, 2).await?;

    // A newer one that works is taken nevertheless.
    site.ready(&images.second, 4).await?;
    site.close().await
}

async fn a_version_that_never_listens_is_rolled_back(manners: &'static str) -> Result<()> {
    let site = Site::open("silent", manners, SOON).await?;
    site.ready(&site.images.first, 1).await?;
    // 502 is of a provider that waits for the new version itself, and has not answered by then.
    let silent = site.deploy(&site.images.silent, 2).await?;
    assert!(matches!(silent.status, 422 | 502), "{}", silent.text);
    assert_eq!(silent.field("status"), "rolled_back", "{}", silent.text);
    assert_eq!(
        silent.json()["running"]["image"],
        site.images.first,
        "{}",
        silent.text
    );
    site.runs(&site.images.first, 1).await?;
    site.close().await
}

async fn what_cannot_be_deployed_changes_nothing(manners: &'static str) -> Result<()> {
    let site = Site::open("impossible", manners, SOON).await?;
    site.ready(&site.images.first, 1).await?;
    let before = site.status().await?;
    site.door.open();

    let mut secret = site.hand_over(&site.images.second, 2);
    secret["deploy"]["secrets"] = json!(["there-is-no-such-secret", "nor-this-one"]);
    let refused = site.deployer.deploy(&secret).await?;
    assert_eq!(refused.status, 422, "{}", refused.text);
    assert_eq!(refused.field("status"), "refused", "{}", refused.text);
    let told = reasons(&refused.json());
    assert!(
        told.contains("there-is-no-such-secret") && told.contains("nor-this-one"),
        "{told}"
    );

    let mut namespace = site.hand_over(&site.images.second, 3);
    namespace["deploy"]["namespace"] = json!("nowhere");
    let refused = site.deployer.deploy(&namespace).await?;
    assert_eq!(refused.status, 422, "{}", refused.text);
    assert!(refused.text.contains("nowhere"), "{}", refused.text);

    let mut everything = site.hand_over(&site.images.absent, 4);
    everything["deploy"]["secrets"] = json!(["there-is-no-such-secret"]);
    let refused = site.deployer.deploy(&everything).await?;
    assert_eq!(refused.status, 422, "{}", refused.text);
    let told = reasons(&refused.json());
    assert!(
        told.contains("has no image") && told.contains("there-is-no-such-secret"),
        "{told}"
    );

    assert_eq!(site.door.changes(), Vec::<String>::new());
    assert_eq!(site.status().await?["createdAt"], before["createdAt"]);
    site.runs(&site.images.first, 1).await?;
    site.close().await
}

async fn twenty_updates_at_once_end_in_the_newest(manners: &'static str) -> Result<()> {
    const UPDATES: usize = 20;
    let site = Site::open("twenty", manners, &[]).await?;
    let images = site.images;
    site.ready(&images.first, 1).await?;

    let image = |number: usize| match number % 2 {
        0 => &images.second,
        _ => &images.first,
    };
    let mut deployments = JoinSet::new();
    for place in 0..UPDATES {
        // In no order: seven and twenty have no common divisor.
        let number = 2 + place * 7 % UPDATES;
        let (hand_over, to) = (site.hand_over(image(number), number), site.deployer.hand_overs()?);
        deployments.spawn(async move { (number, to.deploy(&hand_over).await) });
    }
    let mut ready = BTreeSet::new();
    while let Some(ended) = deployments.join_next().await {
        let (number, reply) = ended?;
        let reply = reply?;
        match (reply.status, reply.field("status").as_str()) {
            (200, "ready") => drop(ready.insert(number)),
            (422, "refused") => {}
            _ => anyhow::bail!("{number}: {} {}", reply.status, reply.text),
        }
    }
    let newest = UPDATES + 1;
    assert!(ready.contains(&newest), "{ready:?}");
    site.runs(image(newest), newest).await?;
    site.close().await
}
