//! Tests the cluster that the launcher starts on this machine, and looks for what it leaves behind.
//!
//! The tests need root and everything that `Cluster::start_complete_or_replace_changed_cluster` needs. They have a
//! cluster of their own and remove it.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on ends here, and reports what it measured"
)]

mod chart;
mod daemons;
mod gateway;
#[path = "../stack/machine.rs"]
#[expect(dead_code, reason = "the tests of stacks use all of it")]
mod machine;
mod pods;
mod readiness;
mod source;

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
    sync::Arc,
};

use slipway_stack::{Cluster, LauncherError, ProgressSink, stop_cluster};

use self::{
    gateway::GatewayClient,
    machine::{HostFirewallSettingsAndFiles, StackFootprint},
};

/// The name of the cluster of these tests.
const CLUSTER_NAME: &str = "test";

/// Runs a program with an input, and returns its output, whether it succeeded or not.
fn output_of(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Runs a program with an input, and returns its standard output; fails unless it succeeds.
fn run(command: &mut Command, input: &str) -> String {
    let output = output_of(command, input);
    let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{command:?}: {stdout}{stderr}");
    stdout
}

/// Returns a command for kubectl with the administrator's kubeconfig.
fn kubectl(cluster: &Cluster, arguments: &[&str]) -> Command {
    let mut kubectl = Command::new(cluster.programs_directory().join("kubectl"));
    kubectl.env("KUBECONFIG", cluster.kubeconfig()).args(arguments);
    kubectl
}

/// Runs kubectl with a manifest as its input, and returns its standard output; fails unless it succeeds.
fn kubectl_output(cluster: &Cluster, arguments: &[&str], input: &str) -> String {
    run(&mut kubectl(cluster, arguments), input)
}

// One test, because all of it needs a cluster, and a cluster takes time and memory.
#[tokio::test]
async fn a_cluster_does_what_tests_need_and_leaves_nothing_on_the_machine() -> Result<(), LauncherError> {
    let progress = ProgressSink::to_stderr();
    stop_cluster(CLUSTER_NAME, &progress).await?;
    let before = HostFirewallSettingsAndFiles::current_host_state();
    let cluster = Cluster::start_complete_or_replace_changed_cluster(CLUSTER_NAME, None, &progress).await?;
    let node = cluster.node_address().to_string();
    let footprint = StackFootprint::footprint(&format!("cluster_{CLUSTER_NAME}"), &cluster.dir.root, &node);
    assert!(footprint.process_count() > 10, "{footprint:?}");
    assert!(!footprint.existing_control_groups().is_empty());

    // Another start changes nothing.
    let pods = || {
        let list = [
            "get",
            "pods",
            "--all-namespaces",
            "--output=jsonpath={.items[*].metadata.uid}",
        ];
        kubectl_output(&cluster, &list, "")
    };
    let first = pods();
    Cluster::start_complete_or_replace_changed_cluster(CLUSTER_NAME, None, &progress).await?;
    assert_eq!(pods(), first);

    pods::volumes_names_and_the_registry_work_in_pods(&cluster);
    pods::network_policies_are_enforced(&cluster);
    chart::install(&cluster);
    let gateway = Arc::new(GatewayClient::of_cluster(&cluster));
    chart::the_chart_turns_source_into_a_function_that_answers(&cluster, &gateway).await;
    daemons::an_upgrade_that_replaces_all_pods_loses_no_running_build(&cluster, &gateway).await;
    daemons::builds_use_all_daemons_and_return_to_theirs(&cluster, &gateway).await;
    readiness::no_version_that_does_not_run_is_reported_ready_and_the_last_good_one_is_restored(
        &cluster, &gateway,
    )
    .await;
    chart::uninstalling_leaves_only_volume_claims_secrets_and_functions(&cluster, &gateway).await;

    assert_eq!(
        HostFirewallSettingsAndFiles::current_host_state(),
        before,
        "while the cluster runs"
    );
    stop_cluster(CLUSTER_NAME, &progress).await?;
    assert_eq!(
        footprint.remaining_traces_except_control_groups(),
        Vec::<String>::new()
    );
    assert_eq!(
        footprint.existing_control_groups(),
        Vec::<std::path::PathBuf>::new()
    );
    assert_eq!(
        HostFirewallSettingsAndFiles::current_host_state(),
        before,
        "after it was stopped"
    );
    assert!(!cluster.dir.root.exists());
    assert!(Cluster::load_running(CLUSTER_NAME)?.is_none());
    Ok(())
}
