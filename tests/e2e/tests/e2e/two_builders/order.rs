//! The newest source runs, whenever and wherever its build ends.

use anyhow::Result;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    TwoBuildersAndOneDeployer, assert_built_and_ready, assert_superseded, time_seconds_from_now,
    unused_call_id,
};

/// The way in which a builder learns when a source was submitted.
#[derive(Debug, Clone, Copy)]
enum SubmissionTimeSource {
    /// The builder learns the time from the config's key `submittedAt`.
    Config,
    /// The builder learns the time from the gateway's header.
    Gateway,
    /// The builder takes the time at which the request arrived.
    Arrival,
}

impl SubmissionTimeSource {
    /// Returns the config and the headers of a build that was submitted so many seconds ago.
    fn config_and_headers(
        self,
        mut config: Value,
        seconds_ago: i64,
        call_id: &str,
    ) -> Result<(Value, Vec<(&'static str, String)>)> {
        let mut headers = vec![("X-Call-Id", call_id.to_owned())];
        match self {
            Self::Config => config["submittedAt"] = json!(time_seconds_from_now(-seconds_ago)?),
            Self::Gateway => {
                let now = Timestamp::now().as_nanosecond();
                let time = now - i128::from(seconds_ago) * 1_000_000_000;
                // The gateway appends a value each time a call passes it; the first one counts.
                headers.push(("X-Start-Time", format!("{time}, {now}")));
            }
            Self::Arrival => {}
        }
        Ok((config, headers))
    }
}

fn borrowed_headers<'h>(headers: &'h [(&'static str, String)]) -> Vec<(&'static str, &'h str)> {
    headers
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect()
}

/// Builds an older version slowly at the first builder and a newer one at the second, and asserts that the newer one
/// runs, also after the older one is delivered again.
async fn assert_slower_older_build_never_replaces_newer(
    function_name: &str,
    submission: SubmissionTimeSource,
) -> Result<()> {
    let mut two = TwoBuildersAndOneDeployer::remove_function_and_start(function_name, &[]).await?;
    two.remove_image_manifest_if_any("v1").await?;
    let gate = format!("gate-of-{function_name}");
    let (older, newer) = (unused_call_id("v1")?, unused_call_id("v2")?);

    let (config, headers) = submission.config_and_headers(two.config_with_deployment("v1"), 5, &older)?;
    let v1 = two.gated_page_tar("v1", &gate, &config).await?;
    let slow = two
        .start_gated_build_and_wait_for_its_step(0, &v1, &gate, &borrowed_headers(&headers))
        .await?;
    let (config, newer_headers) =
        submission.config_and_headers(two.config_with_deployment("v2"), 2, &newer)?;
    let v2 = two.page_tar("v2", &config).await?;
    let reply = two
        .build_at_with_headers(1, &v2, &borrowed_headers(&newer_headers))
        .await?;
    assert_built_and_ready(&reply)?;

    // The older build ends by itself, although nobody opens its gate.
    assert_superseded(&slow.await??, &newer)?;
    two.testbed.wait_for_step(&gate, false).await?;
    two.assert_not_pushed("v1").await?;
    assert_eq!(two.get_function_page().await?, (200, "v2".to_owned()));

    // A queue delivers the older one again: to the other builder, and to builders without memory of either build.
    if !matches!(submission, SubmissionTimeSource::Arrival) {
        assert_superseded(
            &two.build_at_with_headers(1, &v1, &borrowed_headers(&headers))
                .await?,
            &newer,
        )?;
        two.replace_builders_one_after_the_other().await?;
        for index in [0, 1] {
            let again = two
                .build_at_with_headers(index, &v1, &borrowed_headers(&headers))
                .await?;
            assert_superseded(&again, &newer)?;
        }
        two.assert_not_pushed("v1").await?;
        assert_eq!(two.get_function_page().await?, (200, "v2".to_owned()));
    }
    two.remove_function().await
}

#[tokio::test]
async fn a_running_older_build_is_superseded_by_a_newer_one_by_the_signed_time() -> Result<()> {
    assert_slower_older_build_never_replaces_newer("ordered-by-config", SubmissionTimeSource::Config).await
}

#[tokio::test]
async fn a_running_older_build_is_superseded_by_a_newer_one_by_the_gateways_time() -> Result<()> {
    assert_slower_older_build_never_replaces_newer("ordered-by-gateway", SubmissionTimeSource::Gateway).await
}

#[tokio::test]
async fn a_running_older_build_is_superseded_by_a_newer_one_by_arrival() -> Result<()> {
    assert_slower_older_build_never_replaces_newer("ordered-by-arrival", SubmissionTimeSource::Arrival).await
}

#[tokio::test]
async fn an_older_build_whose_builder_was_killed_does_not_run_when_delivered_again() -> Result<()> {
    let mut two = TwoBuildersAndOneDeployer::remove_function_and_start("ordered-after-kill", &[]).await?;
    two.remove_image_manifest_if_any("v1").await?;
    let gate = "gate-of-ordered-after-kill";
    let (older, newer) = (unused_call_id("v1")?, unused_call_id("v2")?);
    let mut config = two.config_with_deployment("v1");
    config["submittedAt"] = json!(time_seconds_from_now(-5)?);
    let v1 = two.gated_page_tar("v1", gate, &config).await?;
    let slow = two
        .start_gated_build_and_wait_for_its_step(0, &v1, gate, &[("X-Call-Id", &older)])
        .await?;

    two.start_new_builder_then_kill_old(0).await?;
    assert!(slow.await?.is_err(), "the killed builder answered");
    two.testbed.wait_for_step(gate, false).await?;

    config = two.config_with_deployment("v2");
    config["submittedAt"] = json!(time_seconds_from_now(-2)?);
    let v2 = two.page_tar("v2", &config).await?;
    assert_built_and_ready(&two.build_at(1, &v2, &newer).await?)?;

    for index in [0, 1] {
        assert_superseded(&two.build_at(index, &v1, &older).await?, &newer)?;
    }
    two.assert_not_pushed("v1").await?;
    assert_eq!(two.get_function_page().await?, (200, "v2".to_owned()));
    two.remove_function().await
}

#[tokio::test]
async fn a_build_that_opts_out_or_deploys_nothing_is_not_ended_and_the_deployer_keeps_the_newer() -> Result<()>
{
    let two = TwoBuildersAndOneDeployer::remove_function_and_start("not-superseded", &[]).await?;
    let undeployed = two.config_without_deployment("undeployed");
    let mut opted_out = two.config_with_deployment("opted-out");
    opted_out["supersede"] = json!(false);
    let mut running = Vec::new();
    for (gate, mut config) in [
        ("gate-of-undeployed", undeployed),
        ("gate-of-opted-out", opted_out),
    ] {
        config["submittedAt"] = json!(time_seconds_from_now(-5)?);
        let tar = two.gated_page_tar(gate, gate, &config).await?;
        let id = unused_call_id(gate)?;
        let build = two
            .start_gated_build_and_wait_for_its_step(0, &tar, gate, &[("X-Call-Id", &id)])
            .await?;
        running.push((gate, build));
    }
    let newer = unused_call_id("newer")?;
    let tar = two
        .page_tar("newer", &two.config_with_deployment("newer"))
        .await?;
    assert_built_and_ready(&two.build_at(1, &tar, &newer).await?)?;

    let mut replies = Vec::new();
    for (gate, build) in running {
        two.testbed.open_gate_of_step(gate)?;
        replies.push(build.await??);
    }
    assert_eq!(replies[0].status, 200, "{}", replies[0].text);
    assert_eq!(
        replies[0].json_or_error_text()["status"],
        "success",
        "{}",
        replies[0].text
    );
    // It was built; the deployer does not replace a newer source with it.
    let manifest = two
        .testbed
        .registry
        .get_manifest(&two.repository_path_of_function(), "opted-out")
        .await?;
    assert!(manifest.is_some());
    assert_superseded(&replies[1], &newer)?;
    assert_eq!(two.get_function_page().await?, (200, "newer".to_owned()));
    two.remove_function().await
}

#[tokio::test]
async fn a_future_signed_time_is_rejected_and_a_future_gateway_time_does_not_count() -> Result<()> {
    let two = TwoBuildersAndOneDeployer::remove_function_and_start("clock-ahead", &[]).await?;
    let mut config = two.config_with_deployment("ahead");
    let ahead = time_seconds_from_now(60 * 60)?;
    config["submittedAt"] = json!(ahead);
    let tar = two.page_tar("ahead", &config).await?;
    for index in [0, 1] {
        let reply = two.build_at(index, &tar, &unused_call_id("ahead")?).await?;
        assert_eq!(reply.status, 400, "{}", reply.text);
        let error = reply.text_field("error");
        assert!(error.contains("submittedAt"), "{error}");
    }
    assert!(
        two.testbed
            .functions
            .function_status(&two.function)
            .await?
            .is_none()
    );

    // A gateway's clock that runs ahead does not count, so the next build is not older.
    let now = Timestamp::now().as_nanosecond() + 3_600_000_000_000;
    let (first, second) = (unused_call_id("first")?, unused_call_id("second")?);
    let headers = [("X-Call-Id", first.as_str()), ("X-Start-Time", &now.to_string())];
    let tar = two
        .page_tar("first", &two.config_with_deployment("first"))
        .await?;
    assert_built_and_ready(&two.build_at_with_headers(0, &tar, &headers).await?)?;
    let tar = two
        .page_tar("second", &two.config_with_deployment("second"))
        .await?;
    assert_built_and_ready(&two.build_at(1, &tar, &second).await?)?;
    assert_eq!(two.get_function_page().await?, (200, "second".to_owned()));
    two.remove_function().await
}
