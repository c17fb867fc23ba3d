//! Builds whose caller waits for the answer.

use anyhow::{Context as _, Result};
use serde_json::json;
use slipway_e2e::{build_context::BuildContext, client::SigningClient, testbed::Testbed};

/// Builds and deploys a page with this client, asserts the answer, the image and the running function, and removes the
/// function.
async fn assert_page_is_built_and_deployed_and_remove_it(
    testbed: &Testbed,
    client: &SigningClient,
    name: &str,
) -> Result<()> {
    let base = testbed.build_busybox_once_and_get_name().await?;
    let image = testbed.image_name(&format!("e2e/{name}"), "1");
    let config = json!({ "image": image, "deploy": { "service": name } });
    let reply = client
        .post_signed(BuildContext::static_page_function(base, "first").tar_with_config_last(&config)?)
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);

    let result = reply.json_or_error_text();
    assert_eq!(result["status"], "success", "{result}");
    assert_eq!(result["image"], image.as_str(), "{result}");
    assert!(
        result["duration"].as_f64().is_some_and(|seconds| seconds > 0.0),
        "{result}"
    );
    assert!(
        result["log"].as_array().is_some_and(|lines| !lines.is_empty()),
        "{result}"
    );
    assert_eq!(result["deployment"]["status"], "ready", "{result}");
    assert_eq!(result["deployment"]["function"], name, "{result}");

    let manifest = testbed
        .registry
        .get_manifest(&format!("e2e/{name}"), "1")
        .await?
        .context("the image is not in the registry")?;
    let deployed = result["deployment"]["image"].as_str().unwrap_or_default();
    assert!(
        deployed.ends_with(&format!("@{}", manifest.digest)),
        "not deployed by the manifest's digest: {deployed}, {}",
        manifest.digest
    );
    assert_eq!(
        testbed.functions.get_function_page(name).await?,
        (200, "first".to_owned())
    );
    testbed.functions.remove_function(name).await
}

#[tokio::test]
async fn a_build_through_the_gateway_returns_its_result_and_the_function_runs() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    assert_page_is_built_and_deployed_and_remove_it(&testbed, &testbed.through_gateway, "through-gateway")
        .await
}

#[tokio::test]
async fn a_build_sent_to_the_builder_directly_returns_its_result_and_the_function_runs() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    assert_page_is_built_and_deployed_and_remove_it(&testbed, &testbed.builder, "straight-at-builder").await
}

#[tokio::test]
async fn the_root_path_builds_because_the_gateway_strips_the_functions_path() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let key = std::fs::read(&testbed.stack.payload_secret)?;
    let root = SigningClient::new(format!("{}/", testbed.stack.builder_url), &key)?;
    let image = testbed.image_name("e2e/root-path", "1");
    let reply = root.post_signed(
        BuildContext::dockerfile("FROM scratch\nCOPY a /a\n")
            .with_file("a", "a")
            .tar_with_config_last(&json!({ "image": image }))?,
    );
    assert_eq!(reply.await?.status, 200);
    assert!(
        testbed
            .registry
            .get_manifest("e2e/root-path", "1")
            .await?
            .is_some()
    );
    Ok(())
}

/// BuildKit drops a session after about ten seconds without an answer to its health checks, so the build has to
/// last longer.
#[tokio::test]
async fn a_build_of_over_twenty_seconds_keeps_its_session() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let image = testbed.image_name("e2e/long", "1");
    // The last COPY needs the session after the long step. The argument prevents caching.
    let dockerfile = format!("FROM {base}\nARG AT\nRUN sleep 22; echo $AT > /at\nCOPY late /late\n");
    let at = format!("{:?}", std::time::SystemTime::now());
    let config = json!({ "image": image, "buildArgs": { "AT": at } });
    let reply = testbed
        .builder
        .post_signed(
            BuildContext::dockerfile(dockerfile)
                .with_file("late", "late")
                .tar_with_config_last(&config)?,
        )
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(
        reply.json_or_error_text()["duration"]
            .as_f64()
            .is_some_and(|seconds| seconds > 20.0),
        "{}",
        reply.text
    );
    assert!(testbed.registry.get_manifest("e2e/long", "1").await?.is_some());
    Ok(())
}

/// The body is spooled to the disk of the function's container, neither to its memory nor to a tmpfs, which counts
/// as memory.
#[tokio::test]
async fn a_context_may_be_larger_than_the_builders_memory_limit() -> Result<()> {
    const BUILDER_MEMORY_LIMIT_BYTES: usize = 256 << 20;
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let config = json!({ "image": testbed.image_name("e2e/large", "1"), "skipPush": true });
    let tar = BuildContext::dockerfile("FROM scratch\nCOPY Dockerfile /\n")
        .with_file("pad", vec![7; BUILDER_MEMORY_LIMIT_BYTES + (8 << 20)])
        .tar_with_config_last(&config)?;
    let reply = testbed.builder.post_signed(tar).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    Ok(())
}

#[tokio::test]
async fn files_matched_by_dockerignore_do_not_reach_the_image() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let name = "dockerignored";
    let source = BuildContext::static_page_function(base, "kept")
        .with_file("www/secret.txt", "must not be seen")
        .with_file("www/logs/a.log", "must not be seen")
        .with_file("www/logs/keep.log", "seen")
        .with_file(
            ".dockerignore",
            "# a comment\n**/secret.txt\nwww/logs/*.log\n!www/logs/keep.log\n",
        );
    let config =
        json!({ "image": testbed.image_name("e2e/dockerignored", "1"), "deploy": { "service": name } });
    let reply = testbed
        .builder
        .post_signed(source.tar_with_config_last(&config)?)
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let call = |path: &'static str| testbed.functions.get_path(name, path);
    assert_eq!(call("/").await?, (200, "kept".to_owned()));
    assert_eq!(call("/logs/keep.log").await?, (200, "seen".to_owned()));
    assert_eq!(call("/secret.txt").await?.0, 404);
    assert_eq!(call("/logs/a.log").await?.0, 404);
    testbed.functions.remove_function(name).await
}

#[tokio::test]
async fn skip_push_leaves_no_manifest_under_the_images_tag() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let image = testbed.image_name("e2e/not-pushed", "1");
    let config = json!({ "image": image, "skipPush": true });
    let reply = testbed
        .builder
        .post_signed(
            BuildContext::dockerfile("FROM scratch\nCOPY a /a\n")
                .with_file("a", "a")
                .tar_with_config_last(&config)?,
        )
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(
        testbed
            .registry
            .get_manifest("e2e/not-pushed", "1")
            .await?
            .is_none()
    );
    Ok(())
}
