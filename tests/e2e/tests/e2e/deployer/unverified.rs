//! Updates on a provider that answers before it replaces the old version, as faas-netes does: without the version
//! header in a function's answers, nothing tells the new version from the old one.
//!
//! The embedded provider updates a function in that way with the strategy `deferred`. But its name at
//! `GET /system/info` is that of a provider that replaces the old version first, so the tests' proxy answers there in
//! its place.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use slipway_e2e::{build_context::BuildContext, pausing_proxy::ExtraRoute};

use super::{DeployerFixture, STRATEGY_ANNOTATION, joined_reasons};

/// A timeout longer than a small function takes to start on a busy machine.
const FUNCTION_START_TIMEOUT: Duration = Duration::from_secs(60);

/// Settings without the check of the image: the deployer would refuse an image that is not in the registry.
const SETTINGS_WITHOUT_IMAGE_CHECK: &[(&str, &str)] = &[("ready_timeout", "20s"), ("check_image", "false")];

/// Opens a fixture on a provider that defers updates. `None` if this stack's provider cannot.
async fn deferring_fixture(case: &str) -> Result<Option<DeployerFixture>> {
    let fixture = DeployerFixture::open_sharing_parts(case, "deferred", SETTINGS_WITHOUT_IMAGE_CHECK).await?;
    if !fixture.testbed.stack.is_known_to_have_rolling_updates() {
        return Ok(None);
    }
    // As the gateway answers with faas-netes behind it.
    let info = json!({
        "provider": {
            "provider": "faas-netes", "orchestration": "kubernetes",
            "version": { "sha": "", "release": "0.18.13" },
        },
        "version": { "sha": "", "release": "0.27.12" },
        "arch": "x86_64",
    });
    fixture
        .proxy
        .add_route_for_exact_path("/system/info", ExtraRoute::Answer(info));
    Ok(Some(fixture))
}

impl DeployerFixture {
    /// Deploys an update and asserts that it was applied and is not verified.
    async fn deploy_build_and_assert_unverified(&self, image: &str, build_number: usize) -> Result<Value> {
        let reply = self.deploy_build(image, build_number).await?;
        ensure!(
            reply.status == 200,
            "{build_number}: {} {}",
            reply.status,
            reply.text
        );
        let report = reply.json_or_error_text();
        assert_eq!(report["status"], "unverified", "{report:#}");
        assert_eq!(report["changed"], true, "{report:#}");
        assert_eq!(report["running"]["image"], image, "{report:#}");
        assert!(!joined_reasons(&report).is_empty(), "{report:#}");
        Ok(report)
    }

    async fn get_function_page(&self) -> Result<(u16, String)> {
        self.testbed.functions.get_function_page(&self.name).await
    }
}

#[tokio::test]
async fn a_broken_update_behind_the_old_version_is_unverified_and_never_the_last_good_one() -> Result<()> {
    let Some(fixture) = deferring_fixture("false-ready").await? else {
        return Ok(());
    };
    let images = fixture.images;
    // There is no old version that could answer in place of the new one.
    fixture.deploy_build_and_assert_ready(&images.first, 1).await?;

    for (number, broken) in [(2, &images.crash), (3, &images.silent), (4, &images.absent)] {
        fixture.deploy_build_and_assert_unverified(broken, number).await?;
        assert_eq!(
            fixture.get_function_page().await?,
            (200, "first".to_owned()),
            "{number}"
        );
    }

    // A version that visibly fails is rolled back to the one that was ready, not to one of those in between.
    let mut failing = fixture.hand_over_of_build(&images.crash, 5);
    failing["deploy"]["annotations"][STRATEGY_ANNOTATION] = json!("recreate");
    let reply = fixture
        .deployer
        .send_hand_over_and_get_status_and_text(&failing)
        .await?;
    let report = reply.json_or_error_text();
    assert_eq!(reply.status, 422, "{report:#}");
    assert_eq!(report["status"], "rolled_back", "{report:#}");
    assert_eq!(report["running"]["image"], images.first, "{report:#}");
    let functions = &fixture.testbed.functions;
    functions
        .wait_until_page_equals(&fixture.name, "first", FUNCTION_START_TIMEOUT)
        .await?;
    fixture.remove_function().await
}

#[tokio::test]
async fn a_working_update_without_the_version_header_in_answers_is_unverified_and_runs() -> Result<()> {
    let Some(fixture) = deferring_fixture("no-header").await? else {
        return Ok(());
    };
    let images = fixture.images;
    fixture.deploy_build_and_assert_ready(&images.first, 1).await?;
    fixture
        .deploy_build_and_assert_unverified(&images.second, 2)
        .await?;
    let functions = &fixture.testbed.functions;
    functions
        .wait_until_page_equals(&fixture.name, "second", FUNCTION_START_TIMEOUT)
        .await?;
    fixture.remove_function().await
}

#[tokio::test]
async fn an_update_with_the_version_header_in_answers_is_ready_once_the_new_version_answers() -> Result<()> {
    let Some(fixture) = deferring_fixture("with-header").await? else {
        return Ok(());
    };
    let path = "/cgi-bin/version";
    for (number, text) in [(1, "first"), (2, "second")] {
        let image = build_image_with_version_header_page(&fixture, path, text).await?;
        let mut hand_over = fixture.hand_over_of_build(&image, number);
        hand_over["probe"] = json!({ "path": path });
        let reply = fixture
            .deployer
            .send_hand_over_and_get_status_and_text(&hand_over)
            .await?;
        assert_eq!(reply.status, 200, "{number}: {}", reply.text);
        assert_eq!(reply.text_field("status"), "ready", "{number}: {}", reply.text);
        let answer = fixture.testbed.functions.get_path(&fixture.name, path).await?;
        assert_eq!(answer, (200, format!("{text}\n")), "{number}");
    }
    fixture.remove_function().await
}

/// Builds a function with a page that answers with its version in the header, as functions of the template do.
async fn build_image_with_version_header_page(
    fixture: &DeployerFixture,
    path: &str,
    text: &str,
) -> Result<String> {
    let testbed = &fixture.testbed;
    let script =
        format!("#!/bin/sh\nprintf 'X-Slipway-Version: %s\\r\\n\\r\\n' \"$slipway_version\"\necho {text}\n");
    let context = BuildContext::static_page_function(testbed.build_busybox_once_and_get_name().await?, text)
        .with_file_of_mode(&format!("www{path}"), script, 0o755);
    let repository = format!("{}/e2e/deployed/versioned-{text}", testbed.stack.registry.host);
    let tar = context.tar_with_config_last(&json!({ "image": format!("{repository}:1") }))?;
    let reply = testbed.builder.post_signed(tar).await?;
    ensure!(reply.status == 200, "{text}: {} {}", reply.status, reply.text);
    let digest = reply.json_or_error_text()["digest"].as_str().map(str::to_owned);
    Ok(format!("{repository}@{}", digest.context("no digest")?))
}
