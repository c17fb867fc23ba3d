//! Queued builds that the command `slipway` leaves, loses or cancels, on the real stack.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::Value;
use slipway_e2e::{
    build_context::gated_command,
    slipway_command::{RunningSlipway, SlipwayProgram},
    tcp_proxy::TcpProxy,
    testbed::Testbed,
    work_dir::ClientFolder,
};

use super::slipway_command::{create_project, function_url_line};

/// Creates a project whose build prints `before the gate`, waits at the gate, and prints `after the gate`.
async fn create_project_with_gated_build(testbed: &Testbed, name: &str, gate: &str) -> Result<ClientFolder> {
    let folder = create_project(testbed, name, name).await?;
    let dockerfile = fs::read_to_string(folder.path().join("template/small/Dockerfile"))?;
    // With an argument, so that the name of the step does not contain what it prints.
    let step = format!(
        "RUN echo before the $A; {}; echo after the $A",
        gated_command(gate)
    );
    folder.write_file(
        "template/small/Dockerfile",
        dockerfile.replace("USER 1000", &format!("ARG A=gate\n{step}\nUSER 1000")),
    )?;
    Ok(folder)
}

/// Starts `slipway up` by the queue, waits until its build is at the gate, and returns the ID of the build.
async fn start_up_and_wait_for_gate(
    testbed: &Testbed,
    slipway: &SlipwayProgram,
    folder: &ClientFolder,
    gate: &str,
) -> Result<(RunningSlipway, String)> {
    let mut up = slipway.start(folder.path(), &["up", "--via", "queue", "--progress", "json"])?;
    let printed = up.read_stderr_lines_until_one_contains("\"submitted\"").await?;
    let submitted: Value = serde_json::from_str(printed.lines().last().unwrap_or_default())?;
    let id = submitted["id"].as_str().context("no ID")?.to_owned();
    testbed.wait_for_step(gate, true).await?;
    Ok((up, id))
}

#[tokio::test]
async fn a_detached_build_goes_on_and_is_followed_by_its_id_to_the_running_function() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let (name, gate) = ("cmd-detached", "gate-cmd-detached");
    testbed.functions.remove_function(name).await?;
    let folder = create_project_with_gated_build(&testbed, name, gate).await?;
    let slipway = SlipwayProgram::for_testbed(&testbed).await?;

    let output = slipway
        .run(folder.path(), &["up", "--detach", "--progress", "json"])
        .await?;

    assert_eq!((output.code, output.stdout.as_str()), (0, ""), "{output:?}");
    let events = output.stderr.lines();
    let events: Vec<Value> = events.map(serde_json::from_str).collect::<Result<_, _>>()?;
    let submitted = events.iter().find(|event| event["event"] == "submitted");
    let id = submitted
        .and_then(|event| event["id"].as_str())
        .context("no ID")?;
    let notice = events.iter().find(|event| event["event"] == "notice");
    let notice = notice
        .and_then(|event| event["text"].as_str())
        .context("no notice")?;
    for command in [format!("slipway logs {id} -f"), format!("slipway cancel {id}")] {
        assert!(notice.contains(&command), "{command}: {notice}");
    }
    testbed.wait_for_step(gate, true).await?;
    let following = slipway.start(folder.path(), &["logs", id, "-f"])?;
    testbed.open_gate_of_step(gate)?;
    let followed = following.wait_for_end_and_rest_of_stderr().await?;
    assert_eq!(followed.code, 0, "{followed:?}");
    for line in ["before the gate\n", "after the gate\n"] {
        assert_eq!(
            followed.stderr.matches(line).count(),
            1,
            "{line}: {}",
            followed.stderr
        );
    }
    assert_eq!(
        testbed.functions.get_function_page(name).await?,
        (200, name.to_owned())
    );
    testbed.functions.remove_function(name).await
}

#[tokio::test]
async fn a_queued_build_whose_connection_is_lost_is_followed_on_without_a_line_lost_or_shown_twice()
-> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let (name, gate) = ("cmd-lost", "gate-cmd-lost");
    let folder = create_project_with_gated_build(&testbed, name, gate).await?;
    let proxy = TcpProxy::start_to(&testbed.stack.gateway.url).await?;
    let slipway = SlipwayProgram::for_testbed(&testbed)
        .await?
        .with_variable("OPENFAAS_URL", proxy.url())
        .with_variable("SLIPWAY_BUILDER_URL", "");
    let (mut up, _) = start_up_and_wait_for_gate(&testbed, &slipway, &folder, gate).await?;

    proxy.drop_connections_until_accepted_again();
    let mut printed = up
        .read_stderr_lines_until_one_contains("connecting again")
        .await?;
    testbed.open_gate_of_step(gate)?;
    testbed.wait_for_step(gate, false).await?;
    proxy.accept_connections_again();
    printed += &up.read_stderr_lines_until_one_contains("connected again").await?;

    let output = up.wait_for_end_and_rest_of_stderr().await?;
    printed += &output.stderr;
    assert_eq!(
        (output.code, output.stdout),
        (0, format!("{}/function/{name}\n", proxy.url())),
        "{printed}"
    );
    let outputs: Vec<Value> = printed
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    for text in ["before the gate", "after the gate"] {
        let shown = outputs
            .iter()
            .filter(|event| event["event"] == "output" && event["text"] == text);
        // Those that were shown before the connection was lost are not in `printed`.
        let most = shown.count();
        assert!(
            most == 1 || (most == 0 && text.starts_with("before")),
            "{text}: {printed}"
        );
    }
    testbed.functions.remove_function(name).await
}

#[tokio::test]
async fn one_ctrl_c_leaves_a_queued_build_with_130_and_two_cancel_it_with_5() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let (name, gate) = ("cmd-left", "gate-cmd-left");
    let folder = create_project_with_gated_build(&testbed, name, gate).await?;
    let slipway = SlipwayProgram::for_testbed(&testbed).await?;
    let (mut left, left_id) = start_up_and_wait_for_gate(&testbed, &slipway, &folder, gate).await?;
    left.interrupt()?;
    let printed = left
        .read_stderr_lines_until_one_contains("press Ctrl-C again")
        .await?;
    assert!(
        printed.contains(&format!("slipway logs {left_id} -f")),
        "{printed}"
    );
    let output = left.wait_for_end_and_rest_of_stderr().await?;
    assert_eq!((output.code, output.stdout.as_str()), (130, ""), "{output:?}");
    // The build goes on.
    testbed.open_gate_of_step(gate)?;
    let followed = slipway.run(folder.path(), &["logs", &left_id, "-f"]).await?;
    assert_eq!(followed.code, 0, "{followed:?}");
    assert_eq!(
        testbed.functions.get_function_page(name).await?,
        (200, name.to_owned())
    );

    let gate = "gate-cmd-cancelled-twice";
    let folder = create_project_with_gated_build(&testbed, name, gate).await?;
    let (mut cancelled, id) = start_up_and_wait_for_gate(&testbed, &slipway, &folder, gate).await?;
    cancelled.interrupt()?;
    cancelled
        .read_stderr_lines_until_one_contains("press Ctrl-C again")
        .await?;
    cancelled.interrupt()?;
    let output = cancelled.wait_for_end_and_rest_of_stderr().await?;
    assert_eq!((output.code, output.stdout.as_str()), (5, ""), "{output:?}");
    assert!(output.stderr.contains("cancelling the build"), "{output:?}");
    // Nobody opens its gate.
    testbed.wait_for_step(gate, false).await?;
    let status = slipway.run(folder.path(), &["status", &id, "--json"]).await?;
    assert_eq!(
        status.last_line_as_json_or_error_text()["state"],
        "cancelled",
        "{status:?}"
    );
    testbed.functions.remove_function(name).await
}

#[tokio::test]
async fn one_ctrl_c_on_a_build_by_the_builders_own_address_changes_nothing() -> Result<()> {
    let testbed = Testbed::find_running_stack()?;
    let _parts = testbed.share_parts().await;
    let (name, gate) = ("cmd-direct", "gate-cmd-direct");
    let folder = create_project_with_gated_build(&testbed, name, gate).await?;
    let slipway = SlipwayProgram::for_testbed(&testbed).await?;
    let mut up = slipway.start(folder.path(), &["up", "--via", "builder"])?;
    testbed.wait_for_step(gate, true).await?;
    up.interrupt()?;
    up.read_stderr_lines_until_one_contains("the build goes on")
        .await?;
    testbed.open_gate_of_step(gate)?;
    let output = up.wait_for_end_and_rest_of_stderr().await?;
    assert_eq!(
        (output.code, output.stdout),
        (0, function_url_line(&testbed, name)),
        "{}",
        output.stderr
    );
    testbed.functions.remove_function(name).await
}
