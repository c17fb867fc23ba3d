//! What breaks on the platform's side: each with its status and message, and afterwards nothing half-done is left.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use slipway_e2e::{away::Away, plain::PlainBuilder, registry::Registry, shared::Bench, source::Source};
use slipway_stack::Part;

fn small() -> Source {
    Source::dockerfile("FROM scratch\nCOPY a /a\n").file("a", "a")
}

#[tokio::test]
async fn a_wrong_registry_password_is_the_platforms_fault_and_pushes_nothing() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    if !bench.stack.registry_asks_for_a_password() {
        // The registry of a stack with faasd has none: the case is not to be had there, and the stack says so.
        anyhow::ensure!(bench.stack.registry.user.is_empty());
        return Ok(());
    }
    let registry = &bench.stack.registry;
    let wrong = Registry::docker_config(&registry.host, &registry.user, "not the password");
    let builder = PlainBuilder::start(&bench, &wrong, &[]).await?;
    let image = bench.image("e2e/wrong-password", "1");
    let config = json!({ "image": image, "deploy": { "service": "wrong-password" } });
    let reply = builder.client()?.post(small().tar(&config)?).await?;
    assert_eq!(reply.status, 502, "{}", reply.text);
    assert_eq!(reply.field("status"), "failed", "{}", reply.text);
    assert!(
        reply.field("error").contains("401 Unauthorized"),
        "{}",
        reply.text
    );
    assert!(
        !reply.text.contains("not the password"),
        "the password is told: {}",
        reply.text
    );
    assert!(
        bench
            .registry
            .manifest("e2e/wrong-password", "1")
            .await?
            .is_none()
    );
    assert!(bench.functions.status("wrong-password").await?.is_none());
    assert_eq!(builder.files_left()?, Vec::<std::path::PathBuf>::new());
    Ok(())
}

#[tokio::test]
async fn a_request_that_ends_before_its_time_leaves_no_file_and_no_build() -> Result<()> {
    let bench = Bench::find()?;
    let _parts = bench.undisturbed().await;
    let base = bench.busybox().await?;
    let registry = &bench.stack.registry;
    let good = Registry::docker_config(&registry.host, &registry.user, &registry.password);
    let builder = PlainBuilder::start(&bench, &good, &[]).await?;
    let image = bench.image("e2e/dropped", "1");
    let at = format!("{:?}", std::time::SystemTime::now());
    let source = Source::dockerfile(format!(
        "FROM {base}\nARG AT\nCOPY pad /pad\nRUN sleep 300; echo $AT\n"
    ))
    .file("pad", vec![1; 12 << 20]);
    let tar = source.tar(&json!({ "image": image, "buildArgs": { "AT": at } }))?;
    let client = builder.client()?;
    let running = tokio::spawn(async move { client.post(tar).await });
    bench.wait_for_step("sleep 300", true).await?;
    running.abort();
    bench.wait_for_step("sleep 300", false).await?;
    bench
        .wait_until(Duration::from_secs(10), "the spool is free", || {
            Ok(builder.files_left()?.is_empty())
        })
        .await?;
    assert!(bench.registry.manifest("e2e/dropped", "1").await?.is_none());
    Ok(())
}

#[tokio::test]
async fn without_buildkit_a_build_is_the_platforms_failure_and_works_again_after() -> Result<()> {
    let bench = Bench::find()?;
    let _alone = bench.alone().await;
    let tar = small().tar(
        &json!({ "image": bench.image("e2e/no-buildkit", "1"), "deploy": { "service": "no-buildkit" } }),
    )?;
    let buildkit = Away::of(&bench, Part::Buildkit).await?;
    buildkit.take().await?;
    let reply = buildkit.builder()?.post(tar.clone()).await;
    buildkit.give_back().await?;
    let reply = reply?;
    assert_eq!(reply.status, 502, "{}", reply.text);
    assert!(reply.field("error").contains("BuildKit"), "{}", reply.text);
    assert!(bench.functions.status("no-buildkit").await?.is_none());
    assert!(bench.registry.manifest("e2e/no-buildkit", "1").await?.is_none());

    let reply = buildkit
        .builder()?
        .post(small().tar(&json!({ "image": bench.image("e2e/no-buildkit", "2") }))?)
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    Ok(())
}

#[tokio::test]
async fn buildkit_lost_in_the_middle_of_a_build_is_told_and_leaves_no_session() -> Result<()> {
    let bench = Bench::find()?;
    let _alone = bench.alone().await;
    let base = bench.busybox().await?;
    let at = format!("{:?}", std::time::SystemTime::now());
    let source = Source::dockerfile(format!("FROM {base}\nARG AT\nRUN sleep 301; echo $AT\n"));
    // A tag of this run's own: what an earlier one left is no sign of this one.
    let tag = std::process::id().to_string();
    let tar = source.tar(&json!({ "image": bench.image("e2e/lost", &tag), "buildArgs": { "AT": at } }))?;
    let buildkit = Away::of(&bench, Part::Buildkit).await?;
    let client = buildkit.builder()?;
    let running = tokio::spawn(async move { client.post(tar).await });
    let started = bench.wait_for_step("sleep 301", true).await;
    buildkit.take().await?;
    buildkit.give_back().await?;
    started?;
    let reply = running.await??;
    assert_eq!(reply.status, 502, "{}", reply.text);
    assert!(reply.field("error").contains("BuildKit"), "{}", reply.text);
    assert!(bench.registry.manifest("e2e/lost", &tag).await?.is_none());
    bench
        .wait_until(Duration::from_secs(10), "no session is open", || {
            Ok(buildkit.sessions()? == 0)
        })
        .await
}

#[tokio::test]
async fn without_the_gateway_the_image_is_built_and_the_deployment_is_told_as_failed() -> Result<()> {
    let bench = Bench::find()?;
    let _alone = bench.alone().await;
    let name = "no-gateway";
    let tar = small()
        .tar(&json!({ "image": bench.image("e2e/no-gateway", "1"), "deploy": { "service": name } }))?;
    let gateway = Away::of(&bench, Part::Gateway).await?;
    gateway.take().await?;
    let reply = gateway.builder()?.post(tar).await;
    gateway.give_back().await?;
    let reply = reply?;
    assert_eq!(reply.status, 502, "{}", reply.text);
    let result = reply.json();
    assert_eq!(result["status"], "failed", "{result}");
    assert_eq!(result["deployment"]["status"], "failed", "{result}");
    assert!(reply.field("error").contains("gateway"), "{result}");
    assert!(bench.functions.status(name).await?.is_none());
    bench
        .wait_until(Duration::from_secs(10), "no session is open", || {
            Ok(gateway.sessions()? == 0)
        })
        .await
}

#[tokio::test]
async fn after_a_build_no_session_and_no_file_is_left() -> Result<()> {
    let bench = Bench::find()?;
    let _alone = bench.alone().await;
    let tar = small()
        .file("pad", vec![3; 12 << 20])
        .tar(&json!({ "image": bench.image("e2e/tidy", "1") }))?;
    let buildkit = Away::of(&bench, Part::Buildkit).await?;
    let reply = buildkit.builder()?.post(tar).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    bench
        .wait_until(Duration::from_secs(10), "no session is open", || {
            Ok(buildkit.sessions()? == 0)
        })
        .await
}
