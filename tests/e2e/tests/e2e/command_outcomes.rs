//! The exit statuses of `slipway up` that a healthy build of a working function does not have, on the real stack.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use slipway_e2e::{
    build_context::gated_command, builder_process::BuilderProcess, deployer_process::DeployerProcess,
    deployer_route::DeployerRoute, slipway_command::SlipwayProgram, tcp_proxy::TcpProxy, testbed::Testbed,
    work_dir::ClientFolder,
};

use super::slipway_command::{create_project, function_url_line};

/// The Dockerfile of the small template in a project.
const DOCKERFILE: &str = "template/small/Dockerfile";

/// The longest time until the queue has delivered the hand-overs of two builds.
const QUEUED_DEPLOYMENT_TIMEOUT: Duration = Duration::from_secs(180);

/// A ready timeout that is long enough for a function to be started on a busy machine.
const READY_TIMEOUT_SETTING: (&str, &str) = ("ready_timeout", "20s");

/// Replaces the last lines of the project's Dockerfile, from the one with the user on.
fn replace_dockerfile_from_user_on(folder: &ClientFolder, last_lines: &str) -> Result<()> {
    let dockerfile = fs::read_to_string(folder.path().join(DOCKERFILE))?;
    let (steps, _) = dockerfile.split_once("USER 1000").context("no user")?;
    folder.write_file(DOCKERFILE, format!("{steps}{last_lines}\n"))?;
    Ok(())
}

/// Returns the lines of `slipway status` for the newest build of a function.
async fn status_lines_of_newest_build(
    slipway: &SlipwayProgram,
    folder: &ClientFolder,
    function: &str,
) -> Result<Vec<String>> {
    let arguments = ["builds", "--function", function, "--limit", "1", "--json"];
    let list = slipway.run(folder.path(), &arguments).await?;
    let list = list.last_line_as_json_or_error_text();
    let id = list["builds"][0]["id"].as_str();
    let id = id.with_context(|| format!("no build: {list}"))?;
    let status = slipway.run(folder.path(), &["status", id]).await?;
    ensure!(status.code == 0, "{status:?}");
    Ok(status.stdout.lines().map(str::to_owned).collect())
}

#[tokio::test]
async fn a_version_that_exits_is_rolled_back_with_3_and_status_says_what_ran_afterwards() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let name = "cmd-rolled-back";
    testbed.functions.remove_function(name).await?;
    let folder = create_project(&testbed, name, "works").await?;
    let working = fs::read_to_string(folder.path().join(DOCKERFILE))?;
    // The stack's own deployer waits for minutes.
    let gateway = &testbed.stack.gateway.url;
    let deployer = DeployerProcess::start(&testbed, gateway, &[READY_TIMEOUT_SETTING]).await?;
    let route = DeployerRoute::start_forwarding_to(deployer.url()).await?;
    let builder =
        BuilderProcess::start_with_settings(&testbed, &[("gateway_url", route.gateway_url())]).await?;
    let slipway = SlipwayProgram::for_testbed(&testbed)
        .await?
        .with_variable("SLIPWAY_BUILDER_URL", builder.url());
    let up = ["up", "--via", "builder"];
    for (was_deployed, expected) in [(false, "nothing"), (true, "available replicas: 1")] {
        if was_deployed {
            folder.write_file(DOCKERFILE, &working)?;
            let output = slipway.run(folder.path(), &up).await?;
            assert_eq!(
                (output.code, output.stdout),
                (0, function_url_line(&testbed, name)),
                "{}",
                output.stderr
            );
        }
        replace_dockerfile_from_user_on(
            &folder,
            "USER 1000\nCMD [\"/bin/sh\", \"-c\", \"echo this version ends; exit 7\"]",
        )?;

        let output = slipway.run(folder.path(), &up).await?;

        assert_eq!((output.code, output.stdout.as_str()), (3, ""), "{output:?}");
        assert!(output.stderr.contains("next: "), "{}", output.stderr);
        let lines = status_lines_of_newest_build(&slipway, &folder, name).await?;
        let status = lines.iter().find_map(|line| line.strip_prefix("deployment: "));
        // A provider that starts the new version beside the old one rejects the update.
        assert!(
            status == Some("rolled_back") || (was_deployed && status == Some("refused")),
            "{lines:?}"
        );
        let state = lines
            .iter()
            .find_map(|line| line.strip_prefix("ran afterwards: "));
        assert!(
            state.is_some_and(|state| state.ends_with(expected)),
            "{expected}: {lines:?}"
        );
    }
    assert_eq!(
        testbed.functions.get_function_page(name).await?,
        (200, "works".to_owned())
    );
    testbed.functions.remove_function(name).await
}

#[tokio::test]
async fn a_builder_without_buildkit_ends_with_4_and_a_next_step() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let name = "cmd-no-buildkit";
    let folder = create_project(&testbed, name, "never").await?;
    let buildkit = TcpProxy::start_to(&testbed.stack.buildkit_host).await?;
    let builder = BuilderProcess::start_with_settings(&testbed, &[("buildkit_url", buildkit.url())]).await?;
    let slipway = SlipwayProgram::for_testbed(&testbed).await?;
    let up = ["up", "--via", "builder", "--builder", builder.url()];
    buildkit.drop_connections_until_accepted_again();

    let output = slipway.run(folder.path(), &up).await?;

    assert_eq!((output.code, output.stdout.as_str()), (4, ""), "{output:?}");
    assert!(output.stderr.contains("next: "), "{output:?}");
    buildkit.accept_connections_again();
    testbed
        .wait_until_async_condition("the builder sees BuildKit again", async || {
            Ok(builder.get("/ready").await?.0 == 200)
        })
        .await?;
    let output = slipway.run(folder.path(), &up).await?;
    assert_eq!(output.code, 0, "{output:?}");
    testbed.functions.remove_function(name).await
}

#[tokio::test]
async fn a_deployment_whose_outcome_is_not_awaited_is_3_with_strict_and_0_without() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let name = "cmd-strict";
    let folder = create_project(&testbed, name, "first").await?;
    let builder = BuilderProcess::start_with_settings(&testbed, &[("deploy_via", "async-function")]).await?;
    let slipway = SlipwayProgram::for_testbed(&testbed).await?;
    let up = ["up", "--via", "builder", "--builder", builder.url()];
    let strict = slipway
        .run(folder.path(), &[&up[..], &["--strict"]].concat())
        .await?;
    assert_eq!((strict.code, strict.stdout.as_str()), (3, ""), "{strict:?}");
    assert!(
        strict.stderr.contains("not known to run") && strict.stderr.contains("next: "),
        "{strict:?}"
    );
    folder.write_file(&format!("{name}/index.html"), "second")?;
    let lenient = slipway.run(folder.path(), &up).await?;
    assert_eq!(
        (lenient.code, lenient.stdout.as_str()),
        (0, function_url_line(&testbed, name).as_str()),
        "{}",
        lenient.stderr
    );
    assert!(lenient.stderr.contains("not verified"), "{lenient:?}");
    testbed
        .functions
        .wait_until_page_equals(name, "second", QUEUED_DEPLOYMENT_TIMEOUT)
        .await?;
    testbed.functions.remove_function(name).await
}

#[tokio::test]
async fn up_whose_build_is_replaced_by_a_newer_one_exits_with_5_and_names_it() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let name = "cmd-replaced";
    let older = create_project(&testbed, name, "older").await?;
    let newer = create_project(&testbed, name, "newer").await?;
    let gate = "gate-cmd-replaced";
    replace_dockerfile_from_user_on(&older, &format!("RUN {}\nUSER 1000", gated_command(gate)))?;
    let slipway = SlipwayProgram::for_testbed(&testbed).await?;
    let up = ["up", "--via", "builder", "--progress", "json"];
    let mut replaced = slipway.start(older.path(), &up)?;
    replaced
        .read_stderr_lines_until_one_contains("\"submitted\"")
        .await?;
    testbed.wait_for_step(gate, true).await?;

    let output = slipway.run(newer.path(), &up).await?;

    assert_eq!(output.code, 0, "{output:?}");
    let submitted = output.stderr.lines().find(|line| line.contains("\"submitted\""));
    let submitted: serde_json::Value = serde_json::from_str(submitted.context("not submitted")?)?;
    let newer_id = submitted["id"].as_str().context("no ID")?;
    // Nobody opens its gate.
    let output = replaced.wait_for_end_and_rest_of_stderr().await?;
    assert_eq!((output.code, output.stdout.as_str()), (5, ""), "{output:?}");
    let next = format!("slipway logs {newer_id} -f");
    assert!(output.stderr.contains(&next), "{next}: {}", output.stderr);
    assert_eq!(
        testbed.functions.get_function_page(name).await?,
        (200, "newer".to_owned())
    );
    testbed.functions.remove_function(name).await
}
