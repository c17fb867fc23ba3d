//! Faults of the platform: each has its status and message, and leaves nothing half-done behind.

use anyhow::Result;
use serde_json::json;
use slipway_e2e::{
    build_context::BuildContext, builder_process::BuilderProcess, outage::PartOutage,
    registry::RegistryClient, testbed::Testbed,
};
use slipway_stack::StackPart;

fn small_context() -> BuildContext {
    BuildContext::dockerfile("FROM scratch\nCOPY a /a\n").with_file("a", "a")
}

#[tokio::test]
async fn a_wrong_registry_password_is_a_502_and_pushes_nothing() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    if !testbed.stack.registry_requires_password() {
        // A stack with faasd has a registry without a password, so this fault cannot occur there.
        anyhow::ensure!(testbed.stack.registry.user.is_empty());
        return Ok(());
    }
    let registry = &testbed.stack.registry;
    let wrong = RegistryClient::docker_config(&registry.host, &registry.user, "not the password");
    let builder = BuilderProcess::start_with_docker_config(&testbed, &wrong, &[]).await?;
    let image = testbed.image_name("e2e/wrong-password", "1");
    let config = json!({ "image": image, "deploy": { "service": "wrong-password" } });
    let reply = builder
        .build_client_with_own_key()?
        .post_signed(small_context().tar_with_config_last(&config)?)
        .await?;
    assert_eq!(reply.status, 502, "{}", reply.text);
    assert_eq!(reply.text_field("status"), "failed", "{}", reply.text);
    assert!(
        reply.text_field("error").contains("401 Unauthorized"),
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
            .get_manifest("e2e/wrong-password", "1")
            .await?
            .is_none()
    );
    assert!(
        testbed
            .functions
            .function_status("wrong-password")
            .await?
            .is_none()
    );
    assert_eq!(
        builder.files_in_spool_and_unlinked_open_files()?,
        Vec::<std::path::PathBuf>::new()
    );
    Ok(())
}

#[tokio::test]
async fn a_caller_that_disconnects_leaves_no_spooled_file_no_running_step_and_no_image() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let registry = &testbed.stack.registry;
    let good = RegistryClient::docker_config(&registry.host, &registry.user, &registry.password);
    let builder = BuilderProcess::start_with_docker_config(&testbed, &good, &[]).await?;
    let image = testbed.image_name("e2e/dropped", "1");
    let at = format!("{:?}", std::time::SystemTime::now());
    let source = BuildContext::dockerfile(format!(
        "FROM {base}\nARG AT\nCOPY pad /pad\nRUN sleep 300; echo $AT\n"
    ))
    .with_file("pad", vec![1; 12 << 20]);
    let tar = source.tar_with_config_last(&json!({ "image": image, "buildArgs": { "AT": at } }))?;
    let client = builder.build_client_with_own_key()?;
    let running = tokio::spawn(async move { client.post_signed(tar).await });
    testbed.wait_for_step("sleep 300", true).await?;
    running.abort();
    testbed.wait_for_step("sleep 300", false).await?;
    testbed
        .wait_until_condition("the spool is free", || {
            Ok(builder.files_in_spool_and_unlinked_open_files()?.is_empty())
        })
        .await?;
    assert!(testbed.registry.get_manifest("e2e/dropped", "1").await?.is_none());
    Ok(())
}

#[tokio::test]
async fn without_buildkit_a_build_is_a_502_and_afterwards_builds_work_again() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _alone = testbed.lock_parts().await;
    let tar = small_context().tar_with_config_last(
        &json!({ "image": testbed.image_name("e2e/no-buildkit", "1"), "deploy": { "service": "no-buildkit" } }),
    )?;
    let buildkit =
        PartOutage::start_affected_builder_unless_stacks_own(&testbed, StackPart::Buildkit).await?;
    buildkit.make_unavailable().await?;
    let reply = buildkit.builder_client()?.post_signed(tar.clone()).await;
    buildkit.make_available().await?;
    let reply = reply?;
    assert_eq!(reply.status, 502, "{}", reply.text);
    assert!(reply.text_field("error").contains("BuildKit"), "{}", reply.text);
    assert!(testbed.functions.function_status("no-buildkit").await?.is_none());
    assert!(
        testbed
            .registry
            .get_manifest("e2e/no-buildkit", "1")
            .await?
            .is_none()
    );

    let reply = buildkit
        .builder_client()?
        .post_signed(
            small_context()
                .tar_with_config_last(&json!({ "image": testbed.image_name("e2e/no-buildkit", "2") }))?,
        )
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    Ok(())
}

#[tokio::test]
async fn buildkit_lost_during_a_build_is_a_502_and_leaves_no_session() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _alone = testbed.lock_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let at = format!("{:?}", std::time::SystemTime::now());
    let source = BuildContext::dockerfile(format!("FROM {base}\nARG AT\nRUN sleep 301; echo $AT\n"));
    // The tag is new in every run, so an image of an earlier run cannot be mistaken for this one's.
    let tag = std::process::id().to_string();
    let tar = source.tar_with_config_last(
        &json!({ "image": testbed.image_name("e2e/lost", &tag), "buildArgs": { "AT": at } }),
    )?;
    let buildkit =
        PartOutage::start_affected_builder_unless_stacks_own(&testbed, StackPart::Buildkit).await?;
    let client = buildkit.builder_client()?;
    let running = tokio::spawn(async move { client.post_signed(tar).await });
    let started = testbed.wait_for_step("sleep 301", true).await;
    buildkit.make_unavailable().await?;
    buildkit.make_available().await?;
    started?;
    let reply = running.await??;
    assert_eq!(reply.status, 502, "{}", reply.text);
    assert!(reply.text_field("error").contains("BuildKit"), "{}", reply.text);
    assert!(testbed.registry.get_manifest("e2e/lost", &tag).await?.is_none());
    testbed
        .wait_until_condition("no session is open", || {
            Ok(buildkit.open_buildkit_connection_count()? == 0)
        })
        .await
}

#[tokio::test]
async fn without_the_gateway_a_build_with_a_deployment_is_a_502_and_leaves_no_session() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _alone = testbed.lock_parts().await;
    let name = "no-gateway";
    let tar = small_context().tar_with_config_last(
        &json!({ "image": testbed.image_name("e2e/no-gateway", "1"), "deploy": { "service": name } }),
    )?;
    let gateway = PartOutage::start_affected_builder_unless_stacks_own(&testbed, StackPart::Gateway).await?;
    gateway.make_unavailable().await?;
    let reply = gateway.builder_client()?.post_signed(tar).await;
    gateway.make_available().await?;
    let reply = reply?;
    assert_eq!(reply.status, 502, "{}", reply.text);
    let result = reply.json_or_error_text();
    assert_eq!(result["status"], "failed", "{result}");
    assert_eq!(result["deployment"]["status"], "failed", "{result}");
    assert!(reply.text_field("error").contains("gateway"), "{result}");
    assert!(testbed.functions.function_status(name).await?.is_none());
    testbed
        .wait_until_condition("no session is open", || {
            Ok(gateway.open_buildkit_connection_count()? == 0)
        })
        .await
}

#[tokio::test]
async fn a_successful_build_leaves_no_connection_to_buildkit_open() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _alone = testbed.lock_parts().await;
    let tar = small_context()
        .with_file("pad", vec![3; 12 << 20])
        .tar_with_config_last(&json!({ "image": testbed.image_name("e2e/tidy", "1") }))?;
    let buildkit =
        PartOutage::start_affected_builder_unless_stacks_own(&testbed, StackPart::Buildkit).await?;
    let reply = buildkit.builder_client()?.post_signed(tar).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    testbed
        .wait_until_condition("no session is open", || {
            Ok(buildkit.open_buildkit_connection_count()? == 0)
        })
        .await
}
