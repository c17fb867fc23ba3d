//! Faults of the platform: each has its status and message, and leaves nothing half-done behind.

use anyhow::Result;
use serde_json::json;
use slipway_e2e::{
    build_context::BuildContext, builder_process::BuilderProcess, outage::Outage, registry::Registry,
    testbed::Testbed,
};
use slipway_stack::Part;

fn small_context() -> BuildContext {
    BuildContext::dockerfile("FROM scratch\nCOPY a /a\n").file("a", "a")
}

#[tokio::test]
async fn a_wrong_registry_password_is_a_502_and_pushes_nothing() -> Result<()> {
    let testbed = Testbed::find()?;
    let _parts = testbed.share_parts().await;
    if !testbed.stack.registry_requires_password() {
        // A stack with faasd has a registry without a password, so this fault cannot occur there.
        anyhow::ensure!(testbed.stack.registry.user.is_empty());
        return Ok(());
    }
    let registry = &testbed.stack.registry;
    let wrong = Registry::docker_config(&registry.host, &registry.user, "not the password");
    let builder = BuilderProcess::start(&testbed, &wrong, &[]).await?;
    let image = testbed.image("e2e/wrong-password", "1");
    let config = json!({ "image": image, "deploy": { "service": "wrong-password" } });
    let reply = builder.client()?.post(small_context().tar(&config)?).await?;
    assert_eq!(reply.status, 502, "{}", reply.text);
    assert_eq!(reply.field("status"), "failed", "{}", reply.text);
    assert!(
        reply.field("error").contains("401 Unauthorized"),
        "{}",
        reply.text
    );
    assert!(
        !reply.text.contains("not the password"),
        "the answer contains the password: {}",
        reply.text
    );
    assert!(
        testbed
            .registry
            .manifest("e2e/wrong-password", "1")
            .await?
            .is_none()
    );
    assert!(testbed.functions.status("wrong-password").await?.is_none());
    assert_eq!(builder.leftover_files()?, Vec::<std::path::PathBuf>::new());
    Ok(())
}

#[tokio::test]
async fn a_caller_that_disconnects_leaves_no_file_and_no_build() -> Result<()> {
    let testbed = Testbed::find()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.busybox().await?;
    let registry = &testbed.stack.registry;
    let good = Registry::docker_config(&registry.host, &registry.user, &registry.password);
    let builder = BuilderProcess::start(&testbed, &good, &[]).await?;
    let image = testbed.image("e2e/dropped", "1");
    let at = format!("{:?}", std::time::SystemTime::now());
    let source = BuildContext::dockerfile(format!(
        "FROM {base}\nARG AT\nCOPY pad /pad\nRUN sleep 300; echo $AT\n"
    ))
    .file("pad", vec![1; 12 << 20]);
    let tar = source.tar(&json!({ "image": image, "buildArgs": { "AT": at } }))?;
    let client = builder.client()?;
    let running = tokio::spawn(async move { client.post(tar).await });
    testbed.wait_for_step("sleep 300", true).await?;
    running.abort();
    testbed.wait_for_step("sleep 300", false).await?;
    testbed
        .wait_until("the spool is free", || Ok(builder.leftover_files()?.is_empty()))
        .await?;
    assert!(testbed.registry.manifest("e2e/dropped", "1").await?.is_none());
    Ok(())
}

#[tokio::test]
async fn without_buildkit_a_build_is_a_502_and_afterwards_builds_work_again() -> Result<()> {
    let testbed = Testbed::find()?;
    let _alone = testbed.lock_parts().await;
    let tar = small_context().tar(
        &json!({ "image": testbed.image("e2e/no-buildkit", "1"), "deploy": { "service": "no-buildkit" } }),
    )?;
    let buildkit = Outage::prepare(&testbed, Part::Buildkit).await?;
    buildkit.begin().await?;
    let reply = buildkit.builder()?.post(tar.clone()).await;
    buildkit.end().await?;
    let reply = reply?;
    assert_eq!(reply.status, 502, "{}", reply.text);
    assert!(reply.field("error").contains("BuildKit"), "{}", reply.text);
    assert!(testbed.functions.status("no-buildkit").await?.is_none());
    assert!(testbed.registry.manifest("e2e/no-buildkit", "1").await?.is_none());

    let reply = buildkit
        .builder()?
        .post(small_context().tar(&json!({ "image": testbed.image("e2e/no-buildkit", "2") }))?)
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    Ok(())
}

#[tokio::test]
async fn buildkit_lost_during_a_build_is_a_502_and_leaves_no_session() -> Result<()> {
    let testbed = Testbed::find()?;
    let _alone = testbed.lock_parts().await;
    let base = testbed.busybox().await?;
    let at = format!("{:?}", std::time::SystemTime::now());
    let source = BuildContext::dockerfile(format!("FROM {base}\nARG AT\nRUN sleep 301; echo $AT\n"));
    // The tag is new in every run, so an image of an earlier run cannot be mistaken for this one's.
    let tag = std::process::id().to_string();
    let tar = source.tar(&json!({ "image": testbed.image("e2e/lost", &tag), "buildArgs": { "AT": at } }))?;
    let buildkit = Outage::prepare(&testbed, Part::Buildkit).await?;
    let client = buildkit.builder()?;
    let running = tokio::spawn(async move { client.post(tar).await });
    let started = testbed.wait_for_step("sleep 301", true).await;
    buildkit.begin().await?;
    buildkit.end().await?;
    started?;
    let reply = running.await??;
    assert_eq!(reply.status, 502, "{}", reply.text);
    assert!(reply.field("error").contains("BuildKit"), "{}", reply.text);
    assert!(testbed.registry.manifest("e2e/lost", &tag).await?.is_none());
    testbed
        .wait_until("no session is open", || Ok(buildkit.buildkit_connections()? == 0))
        .await
}

#[tokio::test]
async fn without_the_gateway_the_image_is_built_and_the_deployment_fails() -> Result<()> {
    let testbed = Testbed::find()?;
    let _alone = testbed.lock_parts().await;
    let name = "no-gateway";
    let tar = small_context()
        .tar(&json!({ "image": testbed.image("e2e/no-gateway", "1"), "deploy": { "service": name } }))?;
    let gateway = Outage::prepare(&testbed, Part::Gateway).await?;
    gateway.begin().await?;
    let reply = gateway.builder()?.post(tar).await;
    gateway.end().await?;
    let reply = reply?;
    assert_eq!(reply.status, 502, "{}", reply.text);
    let result = reply.json();
    assert_eq!(result["status"], "failed", "{result}");
    assert_eq!(result["deployment"]["status"], "failed", "{result}");
    assert!(reply.field("error").contains("gateway"), "{result}");
    assert!(testbed.functions.status(name).await?.is_none());
    testbed
        .wait_until("no session is open", || Ok(gateway.buildkit_connections()? == 0))
        .await
}

#[tokio::test]
async fn a_build_leaves_no_session() -> Result<()> {
    let testbed = Testbed::find()?;
    let _alone = testbed.lock_parts().await;
    let tar = small_context()
        .file("pad", vec![3; 12 << 20])
        .tar(&json!({ "image": testbed.image("e2e/tidy", "1") }))?;
    let buildkit = Outage::prepare(&testbed, Part::Buildkit).await?;
    let reply = buildkit.builder()?.post(tar).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    testbed
        .wait_until("no session is open", || Ok(buildkit.buildkit_connections()? == 0))
        .await
}
