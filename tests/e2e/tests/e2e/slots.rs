//! How many builds run at a time, and what becomes of the others.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use serde_json::json;
use slipway_e2e::{client::Reply, plain::PlainBuilder, shared::Bench, source::Source};

const FULL: &str = "Concurrent request limit exceeded. Max concurrent requests: 1\n";

/// A build whose step takes so many seconds, in the background.
async fn slow(
    bench: &Bench,
    builder: &PlainBuilder,
    seconds: u32,
) -> Result<tokio::task::JoinHandle<Result<Reply>>> {
    let base = bench.busybox().await?;
    let at = format!("{:?}", SystemTime::now());
    let source = Source::dockerfile(format!("FROM {base}\nARG AT\nRUN sleep {seconds}; echo $AT\n"));
    let config =
        json!({ "image": bench.image("e2e/places", "1"), "buildArgs": { "AT": at }, "skipPush": true });
    let (client, tar) = (builder.client()?, source.tar(&config)?);
    Ok(tokio::spawn(async move { client.post(tar).await }))
}

fn small(bench: &Bench) -> Result<Vec<u8>> {
    Source::dockerfile("FROM scratch\nCOPY a /a\n")
        .file("a", "a")
        .tar(&json!({ "image": bench.image("e2e/places", "2"), "skipPush": true }))
}

fn assert_refused(reply: &Reply) {
    assert_eq!((reply.status, reply.text.as_str()), (429, FULL));
    let seconds = reply.retry_after.as_deref().map(str::parse::<u32>);
    assert!(matches!(seconds, Some(Ok(1..))), "{reply:?}");
}

#[tokio::test]
async fn over_max_inflight_a_call_is_refused_at_once_and_the_builder_is_not_ready() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let builder = PlainBuilder::with_settings(&bench, &[("max_inflight", "1")]).await?;
    builder.wait_until_ready().await?;
    let running = slow(&bench, &builder, 321).await?;
    bench.wait_for_step("sleep 321", true).await?;

    assert_refused(&builder.client()?.post(small(&bench)?).await?);
    for path in ["/ready", "/_/ready"] {
        assert_eq!(builder.get(path).await?.0, 503, "{path}");
    }
    assert_eq!(builder.get("/healthz").await?.0, 200);

    running.abort();
    bench.wait_for_step("sleep 321", false).await?;
    builder.wait_until_ready().await?;
    let reply = builder.client()?.post(small(&bench)?).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    Ok(())
}

#[tokio::test]
async fn with_queue_wait_a_call_waits_for_its_place_and_the_next_is_refused() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let settings = [
        ("max_inflight", "1"),
        ("queue_wait", "50s"),
        ("queue_length", "1"),
    ];
    let builder = PlainBuilder::with_settings(&bench, &settings).await?;
    builder.wait_until_ready().await?;
    let running = slow(&bench, &builder, 9).await?;
    bench.wait_for_step("sleep 9", true).await?;
    assert_eq!(builder.get("/ready").await?.0, 200, "one more may wait");

    let (client, tar) = (builder.client()?, small(&bench)?);
    let waiting = tokio::spawn(async move { client.post(tar).await });
    let full = async {
        while builder.get("/ready").await?.0 == 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(5), full)
        .await
        .context("it is not full")??;
    assert_refused(&builder.client()?.post(small(&bench)?).await?);

    for served in [running, waiting] {
        let reply = served.await??;
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
    builder.wait_until_ready().await
}

#[tokio::test]
async fn who_waits_in_vain_is_refused_in_the_same_words() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let builder = PlainBuilder::with_settings(&bench, &[("max_inflight", "1"), ("queue_wait", "1s")]).await?;
    let running = slow(&bench, &builder, 322).await?;
    bench.wait_for_step("sleep 322", true).await?;

    assert_refused(&builder.client()?.post(small(&bench)?).await?);

    running.abort();
    bench.wait_for_step("sleep 322", false).await?;
    Ok(())
}
