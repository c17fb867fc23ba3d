//! Builds through the queue: the caller gets 202 at once, and the function's answer shows the outcome.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use serde_json::json;
use slipway_e2e::{build_context::BuildContext, functions::FunctionsClient, testbed::Testbed};

/// The Community Edition's limit on a queued body, in bytes.
const COMMUNITY_EDITION_QUEUED_BODY_MAX_BYTES: usize = 256_000;

/// The longest time from a queued request until the function's page shows its outcome. The queue-worker sends one
/// request after the other, also those of other tests.
const QUEUED_DEPLOYMENT_TIMEOUT: Duration = Duration::from_secs(180);

#[tokio::test]
async fn a_tar_through_the_queue_becomes_an_image_and_a_function_that_answers() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let name = "queued";
    testbed.functions.remove_function(name).await?;
    let config = json!({ "image": testbed.image_name("e2e/queued", "1"), "deploy": { "service": name } });
    let tar = BuildContext::static_page_function(base, "by the queue").tar_with_config_last(&config)?;
    assert!(tar.len() < COMMUNITY_EDITION_QUEUED_BODY_MAX_BYTES);

    let reply = testbed.queued.post_signed(tar).await?;
    assert_eq!(reply.status, 202, "{}", reply.text);
    assert!(reply.call_id.is_some(), "the answer has no call id");

    testbed
        .functions
        .wait_until_page_equals(name, "by the queue", QUEUED_DEPLOYMENT_TIMEOUT)
        .await?;
    assert!(testbed.registry.get_manifest("e2e/queued", "1").await?.is_some());
    testbed.functions.remove_function(name).await
}

/// The embedded provider starts the new version beside the old one and switches when it listens. faasd removes the
/// old one first; there, requests in between may fail, and only the result is asserted.
#[tokio::test]
async fn with_rolling_updates_a_second_version_replaces_the_first_without_a_failed_request() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let name = "replaced";
    let config = |tag: &str| json!({ "image": testbed.image_name("e2e/replaced", tag), "deploy": { "service": name } });

    assert_eq!(
        testbed
            .queued
            .post_signed(
                BuildContext::static_page_function(base, "first").tar_with_config_last(&config("1"))?
            )
            .await?
            .status,
        202
    );
    testbed
        .functions
        .wait_until_page_equals(name, "first", QUEUED_DEPLOYMENT_TIMEOUT)
        .await?;

    let done = Arc::new(AtomicBool::new(false));
    let counting = tokio::spawn(count_pages_until_done_and_second_seen(
        testbed.functions.clone(),
        name,
        done.clone(),
    ));
    assert_eq!(
        testbed
            .queued
            .post_signed(
                BuildContext::static_page_function(base, "second").tar_with_config_last(&config("2"))?
            )
            .await?
            .status,
        202
    );
    let replaced = testbed
        .functions
        .wait_until_page_equals(name, "second", QUEUED_DEPLOYMENT_TIMEOUT)
        .await;
    // Also request the page after the switch, while the first version is being stopped.
    for _ in 0..50 {
        testbed.functions.get_function_page(name).await.ok();
    }
    replaced?;
    done.store(true, Ordering::SeqCst);
    let counts = counting.await?;

    assert!(counts.first > 0 && counts.second > 0, "{counts:?}");
    if testbed.stack.is_known_to_have_rolling_updates() {
        assert!(
            counts.failed.is_empty(),
            "of {} requests failed: {:?}",
            counts.first + counts.second,
            counts.failed
        );
    }
    testbed.functions.remove_function(name).await
}

/// The number of answers of each version, and the answers that were neither.
#[derive(Debug, Default)]
struct PageCounts {
    first: usize,
    second: usize,
    failed: Vec<String>,
}

/// Calls the function repeatedly until `done` is set and the second version has answered; counts the answers.
async fn count_pages_until_done_and_second_seen(
    functions: FunctionsClient,
    name: &'static str,
    done: Arc<AtomicBool>,
) -> PageCounts {
    let mut counts = PageCounts::default();
    // With faasd, a call that began between the versions may end long after the second one is running.
    while !done.load(Ordering::SeqCst) || counts.second == 0 {
        match functions.get_function_page(name).await {
            Ok((200, page)) if page == "first" => counts.first += 1,
            Ok((200, page)) if page == "second" => counts.second += 1,
            other => counts.failed.push(format!("{other:?}")),
        }
    }
    counts
}
