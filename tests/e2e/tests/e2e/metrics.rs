//! Tests builder-fn's metrics after builds.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::SystemTime,
};

use anyhow::{Context as _, Result};
use serde_json::json;
use slipway_e2e::{build_context::BuildContext, builder_process::BuilderProcess, testbed::Testbed};
use slipway_stack::{LauncherDirectories, ProgressSink, unpack_promtool_if_missing};

#[tokio::test]
async fn metrics_count_builds_and_steps_and_pass_promtool() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let builder = BuilderProcess::start_with_settings(&testbed, &[]).await?;
    let value = async |name: &str| builder.metric_value(name).await;
    let success = "slipway_builds_total{outcome=\"success\"}";
    let failed = "slipway_builds_total{outcome=\"failed\"}";
    assert_eq!(
        (value(success).await?, value(failed).await?),
        (0.0, 0.0),
        "metrics are exported before the first build, with value 0"
    );

    let at = format!("{:?}", SystemTime::now());
    let source = BuildContext::dockerfile(format!("FROM {base}\nARG AT\nCOPY a /a\nRUN echo $AT\n"))
        .with_file("a", vec![1; 5000]);
    let config = json!({
        "image": testbed.image_name("e2e/metrics", "1"), "buildArgs": { "AT": at }, "skipPush": true,
    });
    let tar = source.tar_with_config_last(&config)?;
    let reply = builder
        .build_client_with_own_key()?
        .post_signed(tar.clone())
        .await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let executed = value("slipway_build_steps_total{result=\"executed\"}").await?;
    let cached = value("slipway_build_steps_total{result=\"cached\"}").await?;
    assert!(executed >= 2.0, "{executed} steps were executed");
    assert!(value("slipway_context_bytes_total").await? >= tar.len() as f64);
    assert!(value("slipway_context_sent_bytes_total").await? >= 5000.0);

    // The same context again: its steps are cached.
    let reply = builder.build_client_with_own_key()?.post_signed(tar).await?;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(value("slipway_build_steps_total{result=\"cached\"}").await? >= cached + 2.0);
    let failing =
        BuildContext::dockerfile(format!("FROM {base}\nRUN exit 3\n")).tar_with_config_last(&config)?;
    assert_eq!(
        builder
            .build_client_with_own_key()?
            .post_signed(failing)
            .await?
            .status,
        422
    );
    assert_eq!((value(success).await?, value(failed).await?), (2.0, 1.0));
    assert_eq!(value("slipway_builds_in_flight").await?, 0.0);
    assert_eq!(value("slipway_queue_duration_seconds_count").await?, 3.0);
    let successes = "slipway_build_duration_seconds_count{outcome=\"success\"}";
    assert_eq!(value(successes).await?, 2.0);

    assert_promtool_accepts(&builder.metrics_text().await?).await
}

/// Asserts that `promtool check metrics` reports nothing.
async fn assert_promtool_accepts(metrics: &str) -> Result<()> {
    let promtool =
        unpack_promtool_if_missing(&LauncherDirectories::from_env()?, &ProgressSink::to_stderr()).await?;
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("running promtool")?;
    child
        .stdin
        .take()
        .context("promtool has no input")?
        .write_all(metrics.as_bytes())?;
    let output = child.wait_with_output()?;
    let report =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && report.is_empty(),
        "promtool: {report}\nmetrics:\n{metrics}"
    );
    Ok(())
}
