//! `slipway dev` while a build is under way: a newer save replaces it.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::Value;
use slipway_e2e::{
    build_context::gated_command,
    slipway_command::{RunningSlipway, SlipwayProgram},
    testbed::Testbed,
};

use super::slipway_command::{create_project, function_url_line};

/// The longest time until the function serves a saved file.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(120);

/// The exit status of the command for a build that was superseded or cancelled.
const REPLACED_STATUS: i32 = 5;

/// Reads until the next build is submitted, and returns its ID.
async fn read_id_of_next_build(dev: &mut RunningSlipway) -> Result<String> {
    let printed = dev.read_stderr_lines_until_one_contains("\"submitted\"").await?;
    let submitted: Value = serde_json::from_str(printed.lines().last().unwrap_or_default())?;
    Ok(submitted["id"].as_str().context("no ID")?.to_owned())
}

/// The stack's queue-worker runs one call at a time: it begins the second build only once the first one has ended.
#[tokio::test]
async fn a_newer_save_ends_the_build_under_way_and_is_brought_live_by_every_route() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    for via in ["builder", "gateway", "queue"] {
        let name = format!("cmd-saved-{via}");
        let folder = create_project(&testbed, &name, "one").await?;
        let slipway = SlipwayProgram::for_testbed(&testbed).await?;
        let arguments = ["dev", "--via", via, "--progress", "json"];
        let mut dev = slipway.start(folder.path(), &arguments)?;
        dev.read_stderr_lines_until_one_contains("watching for changes")
            .await?;
        let dockerfile = fs::read_to_string(folder.path().join("template/small/Dockerfile"))?;

        let gate = format!("gate-cmd-saved-{via}");
        let step = format!("RUN {}\nUSER 1000", gated_command(&gate));
        folder.write_file(
            "template/small/Dockerfile",
            dockerfile.replace("USER 1000", &step),
        )?;
        let first = read_id_of_next_build(&mut dev).await?;
        testbed.wait_for_step(&gate, true).await?;
        folder.write_file(&format!("{name}/index.html"), "two")?;
        folder.write_file("template/small/Dockerfile", &dockerfile)?;

        dev.read_stderr_lines_until_one_contains("a new build replaces the one under way")
            .await?;
        let second = read_id_of_next_build(&mut dev).await?;
        assert_ne!(second, first);
        // Nobody opens its gate.
        testbed.wait_for_step(&gate, false).await?;
        testbed
            .functions
            .wait_until_page_equals(&name, "two", CHANGE_TIMEOUT)
            .await?;
        dev.read_stderr_lines_until_one_contains("watching for changes")
            .await?;
        let log = slipway.run(folder.path(), &["logs", &first, "-f"]).await?;
        assert_eq!(log.code, REPLACED_STATUS, "{via}: {log:?}");
        let status = slipway.run(folder.path(), &["status", &first, "--json"]).await?;
        let build = status.last_line_as_json_or_error_text();
        assert!(
            build["state"] == "cancelled" || build["supersededBy"] == second.as_str(),
            "{via}: {build:#}"
        );
        dev.interrupt()?;
        let output = dev.wait_for_end_and_rest_of_stderr().await?;
        assert_eq!(
            (output.code, output.stdout),
            (0, function_url_line(&testbed, &name).repeat(2)),
            "{via}: {}",
            output.stderr
        );
        testbed.functions.remove_function(&name).await?;
    }
    Ok(())
}
