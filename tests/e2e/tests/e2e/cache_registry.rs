//! Tests that a cache in the registry survives its BuildKit daemon.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::BuildContext, builder_process::BuilderProcess, buildkit::BuildkitDaemon, testbed::Testbed,
};

/// The longest wait for the export of a cache.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(120);

/// Starts a builder with one daemon, which exports caches to `caches`, and waits until it is ready.
async fn start_ready_builder(
    testbed: &Testbed,
    daemon: &BuildkitDaemon,
    caches: &str,
) -> Result<BuilderProcess> {
    let url = daemon.socket_url();
    let settings = [("buildkit_url", url.as_str()), ("cache_registry", caches)];
    let builder = BuilderProcess::start_with_settings(testbed, &settings).await?;
    builder.wait_until_ready().await?;
    Ok(builder)
}

/// Builds the tar, and returns the answer and how long it took.
async fn build(builder: &BuilderProcess, tar: &[u8]) -> Result<(Value, Duration)> {
    let start = Instant::now();
    let reply = builder
        .build_client_with_own_key()?
        .post_signed(tar.to_vec())
        .await?;
    ensure!(reply.status == 200, "{} {}", reply.status, reply.text);
    Ok((reply.json_or_error_text(), start.elapsed()))
}

async fn wait_until_cache_exported(builder: &BuilderProcess) -> Result<Duration> {
    let exported = "slipway_cache_exports_total{result=\"exported\"}";
    let start = Instant::now();
    while builder.metric_value(exported).await? < 1.0 {
        ensure!(
            start.elapsed() < EXPORT_TIMEOUT,
            "no export: {}",
            builder.log_text()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(start.elapsed())
}

#[tokio::test]
async fn after_the_loss_of_its_daemon_a_build_begins_with_the_cache_in_the_registry() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let run = Timestamp::now().as_nanosecond();
    let repository = format!("e2e/cache-registry/{run}/app");
    let caches = format!("{}/e2e/caches-{run}", testbed.stack.registry.host);
    let base = testbed.build_busybox_once_and_get_name().await?;
    // A step that runs again has another result, and so has an earlier stage, which is not in the image.
    let context = BuildContext::dockerfile(format!(
        "FROM {base} AS first\nRUN head -c 32 /dev/urandom | od -x > /random\n\
         FROM {base}\nCOPY --from=first /random /random\nCOPY file /file\nRUN head -c 32 /dev/urandom | od -x > /more\n"
    ))
    .with_file("file", "the same in both builds");
    let tar = context.tar_with_config_last(&json!({"image": testbed.image_name(&repository, "1")}))?;
    let layers = async || -> Result<Vec<String>> {
        let manifest = testbed.registry.get_manifest(&repository, "1").await?;
        Ok(manifest.context("no image")?.layer_digests())
    };

    let first = BuildkitDaemon::start(&testbed, "").await?;
    let builder = start_ready_builder(&testbed, &first, &caches).await?;
    let (_, cold) = build(&builder, &tar).await?;
    let export = wait_until_cache_exported(&builder).await?;
    let before = layers().await?;
    let (_, warm) = build(&builder, &tar).await?;
    assert_eq!(layers().await?, before, "the daemon has the cache");
    drop(builder);
    drop(first);

    let second = BuildkitDaemon::start(&testbed, "").await?;
    let builder = start_ready_builder(&testbed, &second, &caches).await?;
    let (answer, imported) = build(&builder, &tar).await?;
    println!("cold {cold:?}, export {export:?}, warm {warm:?}, on another daemon {imported:?}");
    assert_eq!(layers().await?, before, "no step ran again: {answer:#}");
    Ok(())
}
