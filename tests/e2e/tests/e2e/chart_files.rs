//! Files of the Helm chart that work without a cluster: the dashboard, and the sample that `helm test` builds.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use slipway_e2e::{
    build_context::BuildContext, builder_process::BuilderProcess, deployer_process::DeployerProcess,
    prometheus::PrometheusServer, testbed::Testbed,
};

/// The interval that Grafana puts in place of its variable, of which Prometheus knows nothing.
const RATE_INTERVAL: &str = "1m";

fn chart_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../chart/slipway/files")
        .join(name)
}

/// Returns the title and the query of each curve of the dashboard.
fn dashboard_queries() -> Result<Vec<(String, String)>> {
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(chart_file("dashboard.json"))?)?;
    let panels = dashboard["panels"].as_array().context("a list of panels")?;
    let mut queries = Vec::new();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = panel["title"].as_str().context("a title")?;
        let targets = panel["targets"].as_array().context("a list of targets")?;
        ensure!(!targets.is_empty(), "{title} has no query");
        for target in targets {
            let query = target["expr"].as_str().context("a query")?;
            let query = query.replace("$__rate_interval", RATE_INTERVAL);
            ensure!(!query.contains('$'), "{title}: an unknown variable in {query}");
            queries.push((title.to_owned(), query));
        }
    }
    Ok(queries)
}

/// Builds and deploys a function with these two, twice: the counters of what was built and deployed are 0 or missing
/// before, and Prometheus needs two values for a rate.
async fn build_and_deploy(
    testbed: &Testbed,
    builder: &BuilderProcess,
    deployer: &DeployerProcess,
) -> Result<()> {
    let name = "dashboard-sample";
    for text in ["first", "second"] {
        let config = json!({
            "image": testbed.image_name("e2e/dashboard-sample", text),
            "deploy": { "service": name },
            "probe": { "path": "/index.html" },
        });
        let base = testbed.build_busybox_once_and_get_name().await?;
        let tar = BuildContext::static_page_function(base, text).tar_with_config_last(&config)?;
        let reply = builder.build_client_with_own_key()?.post_signed(tar).await?;
        ensure!(reply.status == 200, "{}", reply.text);
        let hand_over = &reply.json_or_error_text()["deployment"]["handOver"];
        ensure!(hand_over.is_object(), "{}", reply.text);
        let deployed = deployer.send_hand_over_and_get_status_and_text(hand_over).await?;
        ensure!(deployed.status == 200, "{}", deployed.text);
    }
    testbed.functions.remove_function(name).await
}

#[tokio::test]
async fn every_query_of_the_dashboard_has_a_result_in_prometheus_once_a_function_was_built_and_deployed()
-> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let records = format!("{}/e2e/records/dashboard", testbed.stack.registry.host);
    let settings = [("deploy_via", "callback"), ("records_repository", &records)];
    let builder = BuilderProcess::start_with_settings(&testbed, &settings).await?;
    let deployer = DeployerProcess::start(&testbed, &testbed.stack.gateway.url, &[]).await?;
    let metrics = [builder.metrics_url(), deployer.metrics_url()];
    let prometheus = PrometheusServer::start_collecting_from(&metrics).await?;
    prometheus
        .wait_until_query_has_result("count(up == 1) == 2")
        .await?;
    build_and_deploy(&testbed, &builder, &deployer).await?;
    let built = "sum(increase(slipway_builds_total{outcome=\"success\"}[1m])) > 0";
    prometheus.wait_until_query_has_result(built).await?;

    let queries = dashboard_queries()?;
    assert!(queries.len() >= 20, "{}", queries.len());
    for (title, query) in queries {
        let results = prometheus
            .wait_until_query_has_result(&query)
            .await
            .with_context(|| title.clone())?;
        eprintln!("{title}: {} curves", results.len());
    }
    Ok(())
}

/// The script runs in BuildKit's image, with the programs of busybox and openssl.
#[tokio::test]
async fn the_sample_of_helm_test_is_built_deployed_and_called_and_a_failed_build_is_reported() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let base = testbed.build_busybox_once_and_get_name().await?;
    let programs = tempfile::tempdir()?;
    for program in [
        "cat", "cut", "date", "mkdir", "mktemp", "nc", "rm", "sed", "sh", "sleep", "tar", "tr", "wc",
    ] {
        symlink("/bin/busybox", programs.path().join(program))?;
    }
    symlink("/usr/bin/openssl", programs.path().join("openssl"))?;
    let name = "sample-of-helm-test";
    testbed.functions.remove_function(name).await?;
    let run = async |base: &str| {
        let mut script = Command::new(programs.path().join("sh"));
        script
            .arg(chart_file("sample.sh"))
            .env_clear()
            .env("PATH", programs.path())
            .env("GATEWAY", &testbed.stack.gateway.url)
            .env("BUILDER", "builder-fn")
            .env("IMAGE", testbed.image_name("e2e/sample-of-helm-test", "1"))
            .env("FUNCTION", name)
            .env("BASE_IMAGE", base)
            .env("KEY_FILE", &testbed.stack.payload_secret);
        let output = tokio::process::Command::from(script).output().await?;
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        anyhow::Ok((output.status.code(), text))
    };

    let (code, text) = run(base).await?;
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("the function answers: built by slipway at "),
        "{text}"
    );

    let missing = testbed.image_name("e2e/no-such-base", "1");
    let (code, text) = run(&missing).await?;
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("the build failed: the builder answered with the status 4"),
        "{text}"
    );
    assert!(text.contains("no-such-base"), "{text}");
    testbed.functions.remove_function(name).await
}
