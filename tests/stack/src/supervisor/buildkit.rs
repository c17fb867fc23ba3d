//! The specification of BuildKit: a daemon in a network of its own, whose steps have networks of their own.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::json;

use crate::{
    address::{BUILDKIT_ADDRESS, BUILDKIT_PORT, GENERAL_STEPS_SUBNET},
    certificates::{BUILDKIT_CLIENT_SECRET_NAMES, DAEMON_CERTIFICATE_FILE, DAEMON_KEY_FILE},
    cgroup::STEPS_GROUP,
    step_address, step_link, step_runtime,
    supervisor::{
        network,
        part_spec::{PartStartSpec, StackDirAndPlan},
        ready::HttpCommandLogOrRouteCheck,
    },
};

/// The time for which BuildKit at least keeps records of past builds; builder-fn recognises a redelivery by them
/// (docs/pitfalls.md#redelivery).
const BUILD_HISTORY_AGE: Duration = Duration::from_secs(48 * 60 * 60);

/// The number of records of past builds that BuildKit keeps even if they are older than its time limit.
const BUILD_HISTORY_RECORDS: u32 = 10_000;

/// The value without which BuildKit clips the output of a step at 2 MiB, and at 200 KiB a second.
const UNLIMITED_STEP_LOG_SETTING: &str = "-1";

/// The number of networks for steps that BuildKit prepares, so that a step does not wait for one.
const STEP_NETWORK_POOL_SIZE: u32 = 16;

impl StackDirAndPlan {
    /// Returns the specification of BuildKit.
    ///
    /// Its socket is for the machine; its port, for functions, requires a certificate.
    pub(super) fn buildkit_spec(&self) -> PartStartSpec {
        let config = self.dir.config_directory();
        let socket = format!("unix://{}", self.buildkit_socket_path().display());
        let networks = config.join("steps.conflist");
        let [authority, ..] =
            BUILDKIT_CLIENT_SECRET_NAMES.map(|name| self.dir.secrets_directory().join(name));
        let text = format!(
            "root = \"{root}\"\n\n[grpc]\n  address = [\"{socket}\", \"tcp://{BUILDKIT_ADDRESS}:{BUILDKIT_PORT}\"]\n  \
             [grpc.tls]\n    cert = \"{certificate}\"\n    key = \"{key}\"\n    ca = \"{authority}\"\n\n\
             [history]\n  maxAge = {history}\n  maxEntries = {BUILD_HISTORY_RECORDS}\n\n\
             [worker.containerd]\n  enabled = false\n\n\
             [worker.oci]\n  binary = \"{runtime}\"\n  defaultCgroupParent = \"{STEPS_GROUP}\"\n  \
             networkMode = \"cni\"\n  cniConfigPath = \"{networks}\"\n  cniBinaryPath = \"{plugins}\"\n  \
             cniPoolSize = {STEP_NETWORK_POOL_SIZE}\n  gc = true\n  reservedSpace = \"10%\"\n  maxUsedSpace = \"60%\"\n  \
             minFreeSpace = \"25%\"\n\n\
             [registry.\"{registry}\"]\n  http = true\n",
            root = self.dir.part_data_directory("buildkit").display(),
            certificate = config.join(DAEMON_CERTIFICATE_FILE).display(),
            key = config.join(DAEMON_KEY_FILE).display(),
            authority = authority.display(),
            history = BUILD_HISTORY_AGE.as_secs(),
            runtime = config.join(step_runtime::STEP_RUNTIME_PROGRAM_NAME).display(),
            networks = networks.display(),
            plugins = step_address::cni_plugin_directory_of_stack(&self.dir).display(),
            registry = self.plan.registry_host_and_port(),
        );
        let path = config.join("buildkitd.toml");
        let mut command = self.command_with_part_environment("nsenter");
        command.arg(format!("--net={}", network::BUILDKIT_NAMESPACE_FILE));
        command.arg(&self.plan.tools.buildkitd).arg("--config").arg(&path);
        for limit in ["BUILDKIT_STEP_LOG_MAX_SIZE", "BUILDKIT_STEP_LOG_MAX_SPEED"] {
            command.env(limit, UNLIMITED_STEP_LOG_SETTING);
        }
        let mut ready = self.command_with_part_environment(&self.plan.tools.buildctl);
        ready.args(["--addr", &socket, "debug", "workers"]);
        PartStartSpec {
            command,
            ready: HttpCommandLogOrRouteCheck::Command(ready),
            files: vec![(path, text), (networks, cni_configuration_of_steps())],
        }
    }

    /// Returns the command that makes BuildKit remove data of steps that failed; the cache stays.
    pub(super) fn prune_failed_step_data_command(&self) -> Command {
        let mut command = self.command_with_part_environment(&self.plan.tools.buildctl);
        let socket = self.buildkit_socket_path();
        command.arg("--addr").arg(format!("unix://{}", socket.display()));
        command.args(["prune", "--filter", "mutable,type==regular"]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }
}

/// Returns the CNI configuration of steps: each step has a pair of interfaces of its own, so that packets between
/// steps pass the firewall too. A bridge would deliver them. The firewall tells tenants apart by the addresses of
/// steps.
fn cni_configuration_of_steps() -> String {
    let link = json!({
        "type": step_link::LINK_PLUGIN_PROGRAM_NAME,
        "ipam": {
            "type": step_address::ADDRESS_PLUGIN_PROGRAM_NAME,
            "dataDir": "/run/slipway/step-addresses",
            "ranges": [[{ "subnet": GENERAL_STEPS_SUBNET }]],
            "routes": [{ "dst": "0.0.0.0/0" }],
        },
    });
    json!({ "cniVersion": "0.4.0", "name": "steps", "plugins": [link] }).to_string()
}
