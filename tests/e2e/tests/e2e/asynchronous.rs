//! Builds by way of the queue: the caller has its 202 at once, and sees the outcome in the function that answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use serde_json::json;
use slipway_e2e::{functions::Functions, shared::Bench, source::Source};

/// The Community gateway's limit for a queued body.
const QUEUE_LIMIT: usize = 256_000;

const PATIENCE: Duration = Duration::from_secs(90);

#[tokio::test]
async fn a_tar_through_the_queue_becomes_an_image_and_a_function_that_answers() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let base = bench.busybox().await?;
    let name = "queued";
    bench.functions.remove(name).await?;
    let config = json!({ "image": bench.image("e2e/queued", "1"), "deploy": { "service": name } });
    let tar = Source::pages(base, "by the queue").tar(&config)?;
    assert!(tar.len() < QUEUE_LIMIT);

    let reply = bench.queued.post(tar).await?;
    assert_eq!(reply.status, 202, "{}", reply.text);
    assert!(reply.call_id.is_some(), "the caller is given the call's id");

    bench
        .functions
        .wait_for_page(name, "by the queue", PATIENCE)
        .await?;
    assert!(bench.registry.manifest("e2e/queued", "1").await?.is_some());
    bench.functions.remove(name).await
}

/// The embedded provider starts the new version beside the old one and switches when it listens; faasd removes the old
/// one first, so there a gap is what the provider allows, and only the end is asserted.
#[tokio::test]
async fn a_second_version_replaces_the_first_without_a_failed_request() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let base = bench.busybox().await?;
    let name = "replaced";
    let config =
        |tag: &str| json!({ "image": bench.image("e2e/replaced", tag), "deploy": { "service": name } });

    assert_eq!(
        bench
            .queued
            .post(Source::pages(base, "first").tar(&config("1"))?)
            .await?
            .status,
        202
    );
    bench.functions.wait_for_page(name, "first", PATIENCE).await?;

    let done = Arc::new(AtomicBool::new(false));
    let watcher = tokio::spawn(watch(bench.functions.clone(), name, done.clone()));
    assert_eq!(
        bench
            .queued
            .post(Source::pages(base, "second").tar(&config("2"))?)
            .await?
            .status,
        202
    );
    let replaced = bench.functions.wait_for_page(name, "second", PATIENCE).await;
    // Some requests after the switch too, while the first version is being stopped.
    for _ in 0..50 {
        bench.functions.page(name).await.ok();
    }
    replaced?;
    done.store(true, Ordering::SeqCst);
    let seen = watcher.await?;

    assert!(seen.first > 0 && seen.second > 0, "{seen:?}");
    if bench.stack.replaces_without_a_gap() {
        assert!(
            seen.failed.is_empty(),
            "of {} requests failed: {:?}",
            seen.first + seen.second,
            seen.failed
        );
    }
    bench.functions.remove(name).await
}

#[derive(Debug, Default)]
struct Seen {
    first: usize,
    second: usize,
    failed: Vec<String>,
}

/// Calls the function one request after the other until told that the second version is there and has seen it, and
/// counts what came back.
async fn watch(functions: Functions, name: &'static str, done: Arc<AtomicBool>) -> Seen {
    let mut seen = Seen::default();
    // Where there is a gap, a call that began in it may end long after the second version is there.
    while !done.load(Ordering::SeqCst) || seen.second == 0 {
        match functions.page(name).await {
            Ok((200, page)) if page == "first" => seen.first += 1,
            Ok((200, page)) if page == "second" => seen.second += 1,
            other => seen.failed.push(format!("{other:?}")),
        }
    }
    seen
}
