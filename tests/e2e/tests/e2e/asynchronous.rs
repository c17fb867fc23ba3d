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
use slipway_e2e::{build_context::BuildContext, functions::Functions, testbed::Testbed};

/// The Community Edition's limit on a queued body, in bytes.
const QUEUED_BODY_MAX: usize = 256_000;

const TIMEOUT: Duration = Duration::from_secs(90);

#[tokio::test]
async fn a_tar_through_the_queue_becomes_an_image_and_a_function_that_answers() -> Result<()> {
    let testbed = Testbed::find()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.busybox().await?;
    let name = "queued";
    testbed.functions.remove(name).await?;
    let config = json!({ "image": testbed.image("e2e/queued", "1"), "deploy": { "service": name } });
    let tar = BuildContext::pages(base, "by the queue").tar(&config)?;
    assert!(tar.len() < QUEUED_BODY_MAX);

    let reply = testbed.queued.post(tar).await?;
    assert_eq!(reply.status, 202, "{}", reply.text);
    assert!(reply.call_id.is_some(), "the answer has no call id");

    testbed
        .functions
        .wait_for_page(name, "by the queue", TIMEOUT)
        .await?;
    assert!(testbed.registry.manifest("e2e/queued", "1").await?.is_some());
    testbed.functions.remove(name).await
}

/// The embedded provider starts the new version beside the old one and switches when it listens. faasd removes the
/// old one first; there, requests in between may fail, and only the result is asserted.
#[tokio::test]
async fn a_second_version_replaces_the_first_without_a_failed_request() -> Result<()> {
    let testbed = Testbed::find()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.busybox().await?;
    let name = "replaced";
    let config =
        |tag: &str| json!({ "image": testbed.image("e2e/replaced", tag), "deploy": { "service": name } });

    assert_eq!(
        testbed
            .queued
            .post(BuildContext::pages(base, "first").tar(&config("1"))?)
            .await?
            .status,
        202
    );
    testbed.functions.wait_for_page(name, "first", TIMEOUT).await?;

    let done = Arc::new(AtomicBool::new(false));
    let counting = tokio::spawn(count_pages(testbed.functions.clone(), name, done.clone()));
    assert_eq!(
        testbed
            .queued
            .post(BuildContext::pages(base, "second").tar(&config("2"))?)
            .await?
            .status,
        202
    );
    let replaced = testbed.functions.wait_for_page(name, "second", TIMEOUT).await;
    // Also request the page after the switch, while the first version is being stopped.
    for _ in 0..50 {
        testbed.functions.page(name).await.ok();
    }
    replaced?;
    done.store(true, Ordering::SeqCst);
    let counts = counting.await?;

    assert!(counts.first > 0 && counts.second > 0, "{counts:?}");
    if testbed.stack.has_rolling_updates() {
        assert!(
            counts.failed.is_empty(),
            "of {} requests failed: {:?}",
            counts.first + counts.second,
            counts.failed
        );
    }
    testbed.functions.remove(name).await
}

#[derive(Debug, Default)]
struct PageCounts {
    first: usize,
    second: usize,
    failed: Vec<String>,
}

/// Calls the function repeatedly until `done` is set and the second version has answered; counts the answers.
async fn count_pages(functions: Functions, name: &'static str, done: Arc<AtomicBool>) -> PageCounts {
    let mut counts = PageCounts::default();
    // With faasd, a call that began between the versions may end long after the second one is running.
    while !done.load(Ordering::SeqCst) || counts.second == 0 {
        match functions.page(name).await {
            Ok((200, page)) if page == "first" => counts.first += 1,
            Ok((200, page)) if page == "second" => counts.second += 1,
            other => counts.failed.push(format!("{other:?}")),
        }
    }
    counts
}
