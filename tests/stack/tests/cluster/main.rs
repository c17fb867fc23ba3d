//! Tests the cluster that the launcher starts on this machine, and looks for what it leaves behind.
//!
//! The tests need root and everything that `Cluster::start_complete_or_replace_changed_cluster` needs. They have a
//! cluster of their own and remove it.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on ends here, and reports what it measured"
)]

mod actors;
mod certificates;
mod chart;
mod daemons;
mod drains;
mod gateway;
mod greed;
mod hostile;
#[path = "../stack/machine.rs"]
#[expect(dead_code, reason = "the tests of stacks use all of it")]
mod machine;
mod platform;
mod pods;
mod probe;
mod reach;
mod readiness;
mod second;
mod source;
mod step;
mod tenants;

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use slipway_stack::{Cluster, LauncherError, ProgressSink, stop_cluster};
use tokio::sync::{Mutex, MutexGuard};

use self::{
    gateway::GatewayClient,
    hostile::{Layers, Tenants},
    machine::{HostFirewallSettingsAndFiles, StackFootprint},
};

/// The name of the cluster of these tests.
const CLUSTER_NAME: &str = "test";

/// The pause between two looks at a condition in the cluster.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Waits until a condition in the cluster holds, which sends no event to this process.
async fn wait_until(condition: &str, timeout: Duration, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + timeout;
    while !holds() {
        assert!(Instant::now() < end, "not within {timeout:?}: {condition}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

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

/// Attacks the release, lets pods end, and installs a second release.
async fn attacks_and_failures(cluster: &Cluster, gateway: &Arc<GatewayClient>) {
    let started = Instant::now();
    actors::create(cluster).await;
    let tenants = Tenants::create(cluster);
    for layers in [Layers::FirewallAlone, Layers::PoliciesAlone, Layers::Both] {
        hostile::a_build_reaches_nothing_of_the_cluster_with(layers, cluster, gateway, &tenants).await;
        println!("{layers:?} until {:?}", started.elapsed());
    }
    tenants::a_tenant_neither_reads_nor_overwrites_what_another_has(cluster, gateway, &tenants).await;
    tenants::the_steps_of_a_tenant_alone_reach_what_is_opened_for_it(cluster, gateway, &tenants).await;
    println!("tenants until {:?}", started.elapsed());
    greed::a_greedy_step_ends_and_neither_the_daemon_nor_a_neighbours_build_does(cluster, gateway, &tenants)
        .await;
    println!("greed until {:?}", started.elapsed());
    certificates::a_renewed_certificate_restarts_the_daemon_once_its_build_has_ended(
        cluster, gateway, &tenants,
    )
    .await;
    println!("renewal until {:?}", started.elapsed());

    // Without a policy from here on.
    drains::no_queued_build_is_lost_or_built_twice_when_pods_end(cluster, gateway).await;
    println!("drains until {:?}", started.elapsed());
    platform::a_key_without_a_policy_changes_neither_the_platform_nor_reads_its_secrets(cluster, gateway)
        .await;
    platform::a_message_that_a_pod_puts_into_nats_deploys_nothing(cluster).await;
    println!("platform until {:?}", started.elapsed());
    second::two_releases_share_a_namespace_and_a_step_that_fills_the_disk_ends(cluster, gateway).await;
    second::the_test_of_the_chart_succeeds(cluster, gateway).await;
    println!("second release until {:?}", started.elapsed());
    actors::remove(cluster);
}

/// The cluster of these tests, of which there is one at a time.
static CLUSTER: Mutex<()> = Mutex::const_new(());

/// The cluster of a test, and what tells whether it leaves anything on the machine.
struct ClusterOfTest {
    cluster: Cluster,
    footprint: StackFootprint,
    host_before: HostFirewallSettingsAndFiles,
    _only: MutexGuard<'static, ()>,
}

impl ClusterOfTest {
    /// Starts an empty cluster.
    async fn start(progress: &ProgressSink) -> Result<Self, LauncherError> {
        let only = CLUSTER.lock().await;
        stop_cluster(CLUSTER_NAME, progress).await?;
        let host_before = HostFirewallSettingsAndFiles::current_host_state();
        let cluster =
            Cluster::start_complete_or_replace_changed_cluster(CLUSTER_NAME, None, progress).await?;
        let node = cluster.node_address().to_string();
        let name = format!("cluster_{CLUSTER_NAME}");
        let footprint = StackFootprint::footprint(&name, &cluster.dir.root, &node);
        assert!(footprint.process_count() > 10, "{footprint:?}");
        assert!(!footprint.existing_control_groups().is_empty());
        Ok(Self {
            cluster,
            footprint,
            host_before,
            _only: only,
        })
    }

    /// Stops the cluster, and fails if it has left anything on the machine.
    async fn stop_leaving_nothing(self, progress: &ProgressSink) -> Result<(), LauncherError> {
        assert_eq!(
            HostFirewallSettingsAndFiles::current_host_state(),
            self.host_before,
            "while the cluster runs"
        );
        stop_cluster(CLUSTER_NAME, progress).await?;
        assert_eq!(
            self.footprint.remaining_traces_except_control_groups(),
            Vec::<String>::new()
        );
        assert_eq!(
            self.footprint.existing_control_groups(),
            Vec::<std::path::PathBuf>::new()
        );
        assert_eq!(
            HostFirewallSettingsAndFiles::current_host_state(),
            self.host_before,
            "after it was stopped"
        );
        assert!(!self.cluster.dir.root.exists());
        assert!(Cluster::load_running(CLUSTER_NAME)?.is_none());
        Ok(())
    }
}

#[tokio::test]
async fn in_a_cluster_the_chart_turns_source_into_a_function_that_answers() -> Result<(), LauncherError> {
    let progress = ProgressSink::to_stderr();
    let test = ClusterOfTest::start(&progress).await?;
    chart::install(&test.cluster);
    let gateway = Arc::new(GatewayClient::of_cluster(&test.cluster));
    chart::the_chart_turns_source_into_a_function_that_answers(&test.cluster, &gateway).await;
    test.stop_leaving_nothing(&progress).await
}

// One test, because all of it needs a cluster, and a cluster takes time and memory.
#[tokio::test]
async fn a_cluster_does_what_tests_need_and_leaves_nothing_on_the_machine() -> Result<(), LauncherError> {
    let progress = ProgressSink::to_stderr();
    let test = ClusterOfTest::start(&progress).await?;
    let cluster = &test.cluster;

    // Another start changes nothing.
    let pods = || {
        let list = [
            "get",
            "pods",
            "--all-namespaces",
            "--output=jsonpath={.items[*].metadata.uid}",
        ];
        kubectl_output(cluster, &list, "")
    };
    let first = pods();
    Cluster::start_complete_or_replace_changed_cluster(CLUSTER_NAME, None, &progress).await?;
    assert_eq!(pods(), first);

    pods::volumes_names_and_the_registry_work_in_pods(cluster);
    pods::network_policies_are_enforced(cluster);
    chart::install(cluster);
    let gateway = Arc::new(GatewayClient::of_cluster(cluster));
    chart::the_chart_turns_source_into_a_function_that_answers(cluster, &gateway).await;
    daemons::an_upgrade_that_replaces_all_pods_loses_no_running_build(cluster, &gateway).await;
    daemons::builds_use_all_daemons_and_return_to_theirs(cluster, &gateway).await;
    attacks_and_failures(cluster, &gateway).await;
    readiness::no_version_that_does_not_run_is_reported_ready_and_the_last_good_one_is_restored(
        cluster, &gateway,
    )
    .await;
    chart::uninstalling_leaves_only_volume_claims_secrets_and_functions(cluster, &gateway).await;
    test.stop_leaving_nothing(&progress).await
}
